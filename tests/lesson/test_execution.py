"""Every notebook executed in a kernel of its own: with its defaults, with a planted bug that it
must notice, and with models of other kinds. With other parameters they run in the browser's tests.
"""

import json
import os
from dataclasses import fields
from pathlib import Path

import builders
import nbformat
import papermill
import pytest
from places import REAL, ROOT

from specnb import batch
from specnb.batch import configs
from specnb.batch.execute import execute_notebook

PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LESSONS = [path for path in PATHS if not path.stem.startswith("9")]  # 9x are reports
# {"target": ..., "draft": ...}: another pair in place of the embedded one, while that is trained.
PAIR = json.loads(os.environ.get("SPECNB_TEST_PAIR", "{}"))

STEMS = [path.stem for path in LESSONS]
pytestmark = [pytest.mark.slow, pytest.mark.notebook]

every = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
lesson_by_lesson = pytest.mark.parametrize("path", LESSONS, ids=STEMS)


@pytest.mark.weights
@every
def test_runs_with_defaults(path, executed):
    _, rows = executed
    config = configs.config_of(path, nbformat.read(path, as_version=4), lambda file: False)
    (row,) = (row for row in rows if row["notebook"] == path.stem)
    assert row["status"] == "ok", row["error"]
    assert row["headline"] and row["result"]["notebook"] == path.stem
    assert set(row["result"]["config"]) == {field.name for field in fields(config)}
    assert row["seconds"] < 180  # a minute on a quiet machine
    if path in LESSONS:  # what a sweep collects
        for one in row["measurements"]:
            assert one["tokens"] >= one["target_calls"] > 0
            assert one["seconds"] > 0 and one["plain_seconds"] > 0 and one["method"]
        assert row["measurements"]


PLANTED = {
    "00_start_here": (
        "every guess is kept",
        "import specnb.sampling\nspecnb.sampling.Draws.accept = lambda self, prob: (True, 0.0)",
        "the text has changed",
    ),
    "01_speculative_sampling": (
        "no residual after a rejection",
        "import specnb.verify\nspecnb.verify.residual = lambda target, draft: target",
        "the law of three words has changed",
    ),
    "02_language_only_drafting": (
        "rejected tokens stay in the cache",
        "import specnb.models.table\n"
        "specnb.models.table.TableContext._keep = lambda self, slots, n_before: None",
        "the blind drafter has changed the law",
    ),
    "03_entropy_stopping": (
        "no residual after a rejection",
        "import specnb.verify\nspecnb.verify.residual = lambda target, draft: target",
        "stopping has changed the law",
    ),
    "04_tree_drafting": (
        "not renormalised after a removal",
        "import specnb.drafters.trees\n"
        "def laws(probs, tokens):\n"
        "    return [probs for _ in tokens]\n"
        "specnb.drafters.trees.without_replacement_laws = laws",
        "has changed the law",
    ),
    "05_training_a_drafter": (
        "no residual after a rejection",
        "import specnb.verify\nspecnb.verify.residual = lambda target, draft: target",
        "training has changed the law",
    ),
    "07_your_own_drafter": (
        "no residual after a rejection",
        "import specnb.verify\nspecnb.verify.residual = lambda target, draft: target",
        "the text is not the target's",
    ),
    "08_verification": (
        "the token rule's residual behind a block",
        "import specnb.joint\n"
        "real = specnb.joint.residual\n"
        "def residual(target_probs, draft_probs):\n"
        "    return real(target_probs / target_probs.sum(), draft_probs)\n"
        "specnb.joint.residual = residual",
        "has changed the distribution",
    ),
    "06_long_context": (
        "drafts stay behind in the buffer",
        "import specnb.models.llama as lean\n"
        "forget = lean.LlamaSparse._forget\n"
        "def wrong(self):\n"
        "    used = self.used\n"
        "    forget(self)\n"
        "    self.used = used\n"
        "lean.LlamaSparse._forget = wrong",
        "is not the target",
    ),
}


def test_every_lesson_has_a_planted_bug():
    assert STEMS == sorted(PLANTED)


@pytest.mark.weights
@lesson_by_lesson
def test_a_planted_bug_is_noticed(path, tmp_path):
    _, bug, message = PLANTED[path.stem]
    book = nbformat.read(path, as_version=4)
    book.cells.insert(3, nbformat.v4.new_code_cell(bug))
    nbformat.write(book, tmp_path / path.name)
    with pytest.raises(papermill.PapermillExecutionError) as caught:
        execute_notebook(
            str(tmp_path / path.name),
            str(tmp_path / "out.ipynb"),
            parameters=PAIR,
            cwd=ROOT,
            progress_bar=False,
            store_widget_state=False,
            execution_timeout=300,
        )
    assert caught.value.ename == "AssertionError"
    assert message in caught.value.evalue


def run_all(folder: Path, given: dict) -> None:
    """Every lesson with these parameters; a few steps are enough to see that one trains."""
    for path in LESSONS:
        steps = {"steps": 4} if path.stem.startswith("05") else {}
        (row,) = batch.run([path], folder, {**given, **steps})
        assert row["status"] == "ok", f"{path.stem}: {row['error']}"


def test_text_only_pair_with_prompts_of_ones_own(tmp_path):
    """No pictures, no words of our world, a short context: sentences instead of errors."""
    if not REAL.is_dir():
        pytest.skip(f"{REAL} is missing: two small models trained elsewhere")
    prompts = tmp_path / "prompts.jsonl"
    starts = ("Once upon a time", "One day a girl", "There was a dog")
    prompts.write_text("".join(json.dumps({"prompt": start}) + "\n" for start in starts))
    own = {"target": str(REAL / "stories260K"), "draft": str(REAL / "llama2xs-500it")}
    run_all(tmp_path / "out", {**own, "prompts": str(prompts)})


def test_interface_of_the_real_thing(tmp_path):
    """LLaVA-1.5's shape, 576 image tokens, with a 32,000-vocabulary drafter; random weights."""
    own = {
        "target": builders.llava15(tmp_path / "target"),
        "draft": builders.llama(tmp_path / "draft", 32000, seed=5, layers=1),
    }
    run_all(tmp_path / "out", {**own, "n_prompts": 1, "draft_length": 2})
    (executed,) = (tmp_path / "out").glob("02_language_only_drafting-*.ipynb")
    executed = executed.read_text(encoding="utf-8")
    assert "576 image tokens stay in the drafter's prompt" in executed
