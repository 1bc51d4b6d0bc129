"""README stays short and true; code on the pages of docs/ runs as printed."""

import re

import pytest
from places import ROOT

from specnb.lesson import address

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = sorted((ROOT / "docs").glob("*.md"))
DRAFTER = (ROOT / "docs" / "drafter.md").read_text(encoding="utf-8")


def python_in(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, re.S)


def test_the_drafter_is_exact():
    drafter, proof = python_in(DRAFTER)
    code = [line for line in drafter.splitlines() if line.strip()]
    assert len(code) <= 32
    names = {}
    exec(drafter, names)
    exec(proof, names)
    law = names["law"]
    assert law.outcomes["accepted", 1, 0] and law.outcomes["rejected", 1, 0]
    assert law.outcomes["accepted", 2, 0] and law.outcomes[("bonus",)]


def test_a_wrong_law_fails_the_proof():
    drafter, proof = python_in(DRAFTER)
    wrong = drafter.replace("one_hot.double()", "one_hot.double() * 0.5 + 0.125")
    assert wrong != drafter
    names = {}
    exec(wrong, names)
    with pytest.raises(AssertionError):
        exec(proof, names)


@pytest.mark.weights
def test_the_example_runs(monkeypatch):
    monkeypatch.chdir(ROOT)
    example = python_in((ROOT / "docs" / "python.md").read_text(encoding="utf-8"))[0]
    names = {}
    exec(example, names)
    assert names["run"].text and names["run"].metrics.block_efficiency > 1


def test_a_stranger_can_read_it_in_a_minute():
    shown = re.sub(r"\]\([^)]*\)", "]", re.sub(r"<!--.*?-->", "", README))  # no addresses, no marks
    assert len([word for word in shown.split() if re.search(r"\w", word)]) < 900
    for command in ("make run", "make test", "make lab", "make address", "make site"):
        assert command in README


def test_lessons_and_badges_are_what_make_address_writes():
    lessons = re.search(r"<!-- lessons -->\n(.*?)\n<!-- /lessons -->", README, re.S)[1]
    assert lessons == address.table(ROOT / "notebooks"), "run `make address`"
    badges = re.search(r"<!-- badges -->\n(.*?)\n<!-- /badges -->", README, re.S)[1]
    assert badges == address.badges(repository()), "run `make address`"


def repository() -> str:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project["urls"]["Repository"]


def test_badges_lead_where_they_say():
    text = address.badges("https://github.com/Some-One/specnb")
    assert "https://some-one.github.io/specnb/" in text
    assert "colab.research.google.com/github/Some-One/specnb/blob/v" in text
    assert "mybinder.org/v2/gh/Some-One/specnb/HEAD?urlpath=lab/tree/notebooks/00_" in text
    assert "http" not in address.badges("https://github.com/OWNER/specnb")


@pytest.mark.parametrize("path", [ROOT / "README.md", *PAGES], ids=lambda path: path.stem)
def test_no_page_names_a_missing_file(path):
    text = path.read_text(encoding="utf-8")
    named = re.findall(r"`((?:notebooks|data|binder|docs)/[\w./-]+)`", text)
    assert not [name for name in named if not (ROOT / name).exists()]
    if path.name == "README.md":  # links between pages are resolved by the builder of the site
        links = re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", text)
        assert links and not [link for link in links if not (ROOT / link).exists()]


@pytest.mark.parametrize("path", [ROOT / "README.md", *PAGES], ids=lambda path: path.stem)
def test_outer_links_are_well_formed(path):
    text = path.read_text(encoding="utf-8")
    for link in re.findall(r"https?://[^\s)>\"`]+", text):
        assert re.fullmatch(r"https://[\w.-]+\.[a-z]{2,}(/[\w./?=%&-]*)?", link.rstrip(".,")), link
