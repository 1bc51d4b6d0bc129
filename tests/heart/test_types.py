"""The contracts hold for a type checker, too: what a reader writes is judged by his editor."""

import importlib.util
import os
import re
import subprocess
import sys

import pytest
from places import ROOT

# Packages of others are left unread: that takes seconds in place of a minute, and changes nothing
# about our own contracts. `make types` reads them.
SETTINGS = """
[mypy]
strict = true
[mypy-torch.*,transformers.*,numpy.*,pandas.*,plotly.*,PIL.*,jaxtyping.*]
follow_imports = skip
follow_imports_for_stubs = true
[mypy-specnb.*]
follow_imports = silent
"""

RIGHT = """
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import specnb as sn
from specnb.models import TableModel


class Silent:
    state = ()

    def propose(self, draws: sn.Draws, max_depth: int) -> sn.DraftTree:
        return sn.tree.empty_tree(4, "length")

    def commit(self, token_ids: Sequence[int], n_accepted: int) -> None:
        pass


@dataclass(frozen=True)
class Mine:
    knob: int = 3

    def start(self, pair: sn.Pair, prompt: Any, image: Any, sampling: sn.Sampling) -> Silent:
        return Silent()


class Never:
    threshold = None
    state: Hashable = ()

    def start(self) -> "Never":
        return self

    def stop(self, logits: Any, probs: Any) -> bool:
        return False

    def update(self, depth_drafted: int, n_accepted: int, max_depth: int) -> None:
        pass


class Own:
    vocab_size, max_positions, n_parameters = 4, 100, 1
    eos_ids: frozenset[int] = frozenset()
    tokenizer, path, sees_images, dtype = None, "own", False, None

    def chat(self, prompt: Any, image: int = 0) -> str:
        return str(prompt)

    def encode(self, prompt: Any, image: Any = None) -> tuple[list[int], Any]:
        return [0], None

    def open(self, prompt: Any, image: Any = None) -> sn.Context:
        return TableModel.random(4).open([0])

    def piece(self, token_id: int) -> str:
        return ""

    def decode(self, token_ids: Sequence[int]) -> str:
        return ""


pair = sn.load_pair()
small, large = TableModel.random(4), TableModel.random(4, seed=1)
run: sn.Record = sn.speculative(pair, "p", drafter=sn.Chain(5), sampling=sn.Sampling(0.7))
sn.speculative(pair, "p", drafter=sn.Chain(16, stop=sn.AdaEDL(0.4)))
sn.speculative(pair, "p", drafter=sn.Chain(16, stop=Never()))
sn.speculative(sn.Pair(large, small), [0], drafter=sn.GumbelTopK((2, 2, 1)))
sn.speculative(sn.Pair(Own(), small), [0], drafter=Mine(knob=5))
sn.autoregressive(Own(), [0])
law = sn.exact.law(large, small, sn.PromptLookup(), sn.Sampling(1.0), 2)
methods: list[sn.Drafter] = [sn.StochasticBeam(), sn.IIDTree(), sn.TopKTree(), Mine()]
rules: list[sn.StoppingRule] = [sn.FixedLength(), sn.MaxConfidence(), sn.AdaEDL(), Never()]
models: list[sn.Model] = [pair.target, small, Own()]
"""

WRONG = """
from collections.abc import Sequence

import specnb as sn


class NoStart:
    def begin(self) -> None:
        pass


class ForgetsToCommit:
    state = ()

    def propose(self, draws: sn.Draws, max_depth: int) -> sn.DraftTree:
        return sn.tree.empty_tree(4, "length")


pair = sn.load_pair()
sn.speculative(pair, "p", drafter=NoStart())  # 1
drafting: sn.Drafting = ForgetsToCommit()  # 2
sn.Chain(5, stop=sn.Chain(3))  # 3
sn.Pair("target")  # 4
sn.nothing_of_this_name  # 5
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory) -> str:
    """What mypy says of both texts."""
    if importlib.util.find_spec("mypy") is None:
        pytest.skip("mypy is missing: pip install -c requirements.lock -e '.[dev]'")
    folder = tmp_path_factory.mktemp("types")
    for name, text in {"mypy.ini": SETTINGS, "right.py": RIGHT, "wrong.py": WRONG}.items():
        (folder / name).write_text(text, encoding="utf-8")
    command = [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "right.py", "wrong.py"]
    found = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "MYPYPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 1, found.stdout + found.stderr  # 2: it did not get that far
    return found.stdout


def test_what_a_reader_writes_rightly_is_accepted(said):
    assert "right.py" not in said, said


def test_what_a_reader_writes_wrongly_is_reported(said):
    planted = [n for n, line in enumerate(WRONG.splitlines(), 1) if re.search(r"# \d$", line)]
    found = re.findall(r"^wrong.py:(\d+): error: (.*)$", said, re.M)
    assert [int(line) for line, _ in found] == planted, said
    assert '"NoStart"; expected "Drafter | None"' in found[0][1]
    assert re.search(r"^wrong.py:\d+: note: +commit$", said, re.M), said  # what is missing


def test_every_exception_has_a_code_and_a_reason():
    rule = re.compile(r"# type: ignore(?!\[[a-z-]+\]  # \w)")
    assert rule.search("x = 1  # type: ignore") and rule.search("x = 1  # type: ignore[misc]")
    assert not rule.search("x = 1  # type: ignore[misc]  # transformers says nothing of it")
    files = [*(ROOT / "specnb").rglob("*.py"), *(ROOT / "specnb").rglob("*.pyi")]
    bare = [path.name for path in files if rule.search(path.read_text(encoding="utf-8"))]
    assert not bare
    assert "ignore_errors" not in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
