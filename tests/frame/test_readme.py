"""The README's code runs as printed, and its drafter is proven by enumeration."""

import re

import pytest
from places import ROOT

README = (ROOT / "README.md").read_text()


def blocks_under(heading: str) -> list[str]:
    section = README.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    return re.findall(r"```python\n(.*?)```", section, re.S)


def test_the_drafter_is_exact():
    drafter, proof = blocks_under("A drafter in 30 lines")
    code = [line for line in drafter.splitlines() if line.strip()]
    assert len(code) <= 32
    names = {}
    exec(drafter, names)
    exec(proof, names)
    law = names["law"]
    assert law.outcomes["accepted", 1, 0] and law.outcomes["rejected", 1, 0]
    assert law.outcomes["accepted", 2, 0] and law.outcomes[("bonus",)]


def test_a_wrong_law_fails_the_proof():
    drafter, proof = blocks_under("A drafter in 30 lines")
    wrong = drafter.replace("one_hot.double()", "one_hot.double() * 0.5 + 0.125")
    assert wrong != drafter
    names = {}
    exec(wrong, names)
    with pytest.raises(AssertionError):
        exec(proof, names)


def test_the_example_runs(monkeypatch):
    monkeypatch.chdir(ROOT)
    (example,) = blocks_under("In Python")
    names = {}
    exec(example, names)
    assert names["run"].text and names["run"].metrics.block_efficiency > 1


def test_the_readme_names_no_missing_file():
    for path in re.findall(r"`((?:notebooks|data|binder)/[\w./-]+)`|\]\(([\w./-]+)\)", README):
        assert (ROOT / (path[0] or path[1])).exists(), path
