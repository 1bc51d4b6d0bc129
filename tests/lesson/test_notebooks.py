"""The notebooks: form, exercises, every one executed, and one planted bug that each must notice.

Notebooks run in kernels of their own, on the embedded models unless a test says otherwise.
"""

import ast
import contextlib
import io
import json
import os
import re
import statistics
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import builders
import nbformat
import papermill
import pytest
import torch
from places import REAL, ROOT

from specnb import __version__, batch, checks, notebook
from specnb.batch import configs

PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LESSONS = [path for path in PATHS if not path.stem.startswith("9")]  # 9x are reports
STEMS = [path.stem for path in LESSONS]
# {"target": ..., "draft": ...}: another pair in place of the embedded one, while that is trained.
PAIR = json.loads(os.environ.get("SPECNB_TEST_PAIR", "{}"))

every = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
lesson_by_lesson = pytest.mark.parametrize("path", LESSONS, ids=STEMS)


def read(path: Path):
    return nbformat.read(path, as_version=4)


def cells(path: Path, kind: str) -> list:
    return [cell for cell in read(path).cells if cell.cell_type == kind]


def tagged(path: Path, tag: str) -> list:
    return [cell for cell in read(path).cells if tag in cell.metadata.get("tags", [])]


def config_of(path: Path):
    """The config class that a notebook reads its parameters into."""
    return configs.config_of(path, read(path), lambda file: False)


def lines(cell) -> list[str]:
    return [line for line in cell.source.splitlines() if line.strip()]


# ---- form


def test_there_are_notebooks():
    assert STEMS == [*PLANTED]


@every
def test_code_keeps_its_budget(path):
    code = cells(path, "code")
    sizes = sorted(len(lines(cell)) for cell in code)
    assert len(code) <= 35
    assert sizes[-1] <= 25
    own = [cell for cell in code if cell not in tagged(path, "exercise")]  # not the reader's
    assert sum(cell.source.count("\ndef ") + cell.source.startswith("def ") for cell in own) <= 4
    assert all(len(line) <= 100 for cell in code for line in cell.source.splitlines())


@every
def test_prose_keeps_its_budget(path):
    words = [len(cell.source.split()) for cell in cells(path, "markdown")]
    assert sum(words) <= 2500
    assert statistics.median(words) <= 45


@every
def test_file_is_clean(path):
    book = read(path)
    assert book.metadata["kernelspec"]["name"] == "python3"
    assert set(book.metadata) <= {"kernelspec", "language_info"}
    for cell in cells(path, "code"):
        assert cell.outputs == [] and cell.execution_count is None
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"/work/|/home/|/root/|/tmp/", text)


@every
def test_cells_stand_in_order(path):
    book = read(path).cells
    tags = [cell.metadata.get("tags", []) for cell in book]
    assert book[0].source.startswith(f"# {path.stem[:2]} ")
    assert book[0].source.splitlines()[0].endswith("?")
    assert "**You will**" in book[1].source and "**Prerequisite**" in book[1].source
    assert tags[2] == ["setup"] and tags[3] == ["parameters"]
    assert "Config.from_notebook(globals())" in book[4].source
    assert tags[-2] == ["results"] and "save_row(cfg, " in book[-2].source
    assert f'"{path.stem}"' in book[-2].source
    assert "## Summary" in book[-3].source and "arXiv" in book[-1].source
    for index, tag in enumerate(tags):
        if tag == ["live"]:
            assert book[index - 1].cell_type == "markdown" and "?" in book[index - 1].source
            name = book[index].source.splitlines()[-1]  # what the cell shows
            copy = next(i for i in range(index + 1, len(book)) if book[i].cell_type == "code")
            assert tags[copy] == ["static"] and book[copy].source == f"{name}.static()"
        if tag == ["exercise"]:
            assert tags[index + 1] == ["check"]
            assert "<summary>Hint" in book[index + 2].source
            assert "<summary>Solution" in book[index + 3].source
            assert "NotImplementedError" in book[index].source
    assert (["live"] in tags) == (path in LESSONS)
    assert (["exercise"] in tags) <= (path in LESSONS)


def test_bootstrap_cells_are_equal():
    sources = {tagged(path, "setup")[0].source for path in PATHS}
    assert len(sources) == 1


@pytest.mark.slow
def test_bootstrap_runs_twice_and_from_a_subfolder():
    source = tagged(PATHS[0], "setup")[0].source
    code = f"source = {source!r}\nexec(source); exec(source); print(sys.path.count(str(ROOT)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT / "notebooks", capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    first, second, count = done.stdout.splitlines()
    assert first == second and first.startswith("specnb ") and count == "1"


def test_bootstrap_says_what_to_do_without_an_address():
    source = tagged(PATHS[0], "setup")[0].source
    code = f"import sys\nsys.modules['google.colab'] = sys\nexec({source!r})"
    command = [sys.executable, "-S", "-c", code]  # without site-packages: not installed either
    done = subprocess.run(command, cwd="/", capture_output=True, text=True, env=unaware())
    assert done.returncode != 0 and "address of your copy" in done.stderr


def unaware() -> dict[str, str]:
    """The environment without a hint where specnb is."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def test_bootstrap_says_where_to_start(tmp_path):
    """A folder that is only called specnb, as above a clone, is not taken for the package."""
    (tmp_path / "specnb").mkdir()
    command = [sys.executable, "-S", "-c", tagged(PATHS[0], "setup")[0].source]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=unaware())
    assert done.returncode != 0 and "specnb not found: start in the repository" in done.stderr


@every
def test_parameters_are_the_fields_of_the_config(path):
    body = ast.parse(tagged(path, "parameters")[0].source).body
    assert all(isinstance(line, ast.AnnAssign) for line in body)
    named = {line.target.id: (line.annotation.id, ast.literal_eval(line.value)) for line in body}
    kinds = {field.name: field.type for field in fields(config_of(path))}
    assert {name: kind for name, (kind, _) in named.items()} == kinds
    assert config_of(path)(**{name: value for name, (_, value) in named.items()})
    known = papermill.inspect_notebook(str(path))
    assert list(known) == list(kinds)
    told = ("draft_length", "temperature", "prompts") if path in LESSONS else ("folder",)
    assert all(known[name]["help"] for name in told)


def test_ruff_has_nothing_to_say():
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "notebooks"],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout


# ---- exercises


def exercises() -> dict[str, tuple[str, str, str]]:
    """Name of the function -> stub, check cell and solution, as they stand in the notebooks."""
    found = {}
    for path in PATHS:
        book = read(path).cells
        for index, cell in enumerate(book):
            if cell.metadata.get("tags") == ["exercise"]:
                name = ast.parse(cell.source).body[0].name
                block = re.search(r"```python\n(.*?)```", book[index + 3].source, re.S)
                found[name] = (cell.source, book[index + 1].source, block[1])
    return found


EXERCISES = exercises()
WRONG = {
    "accept_prob": [
        (lambda t, d: t / d, "never above 1"),
        (lambda t, d: min(1.0, d / t), "ZeroDivisionError|divide draft by target"),
    ],
    "residual": [
        (lambda t, d: (t - d).clamp_min(0), "divide by their sum"),
        (lambda t, d: (t - d).abs() / (t - d).abs().sum(), "must get 0"),
    ],
    "expected_tokens": [
        (lambda a, g: (1 - a ** (g + 1)) / (1 - a), "ZeroDivisionError"),
        (lambda a, g: sum(a**k for k in range(g)), "bonus"),
    ],
    "mbsu": [
        (lambda tau, n, c: tau / (c * n), "target's own pass"),
        (lambda tau, n, c: tau / (1 + c), "several times"),
    ],
    "entropy_bound": [
        (
            lambda p, f: 1 - (f * float(torch.special.entr(p).sum()) / 0.6931471805599453) ** 0.5,
            "in bits",
        ),
        (lambda p, f: float(1 - (f * -(p * p.log()).sum()).sqrt()), "not a number"),
    ],
    "threshold_update": [
        (lambda t, a, n, k, longest: (t, a), "expected"),
        (
            lambda t, a, n, k, longest: (
                t + 0.01 * (-1 if k == n and k != longest else k < n),
                (a + k / n) / 2,
            ),
            "a tenth of the step",
        ),
    ],
    "gumbel_top_k": [
        (lambda p, g, k: (p + g).topk(k).indices, "logarithms"),
        (lambda p, g, k: (p.log() + g).topk(k).indices.sort().values, "their order counts"),
    ],
    "rejection_step": [
        (lambda t, d, x: ((t - d).clamp_min(0) / (t - d).clamp_min(0).sum(), d), "second time"),
        (
            lambda t, d, x: (
                (t - d).clamp_min(0) / (t - d).clamp_min(0).sum(),
                d * (torch.arange(len(d)) != x),
            ),
            "sum to 1 again",
        ),
    ],
    "sink_recent_mask": [
        (
            lambda n, budget, sink: (torch.arange(n) < sink) | (torch.arange(n) >= n - budget),
            "sink is part of the budget",
        ),
        (lambda n, budget, sink: torch.arange(n) < budget, "These are the first slots"),
    ],
}


def defined(source: str, name: str):
    space = {"torch": torch}
    exec(source, space)
    return space[name]


def judged(check, function) -> tuple[object, str]:
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        result = check(function)
    return result, printed.getvalue()


def test_every_exercise_is_known():
    assert set(EXERCISES) == set(WRONG)


@pytest.mark.parametrize("name", EXERCISES)
def test_exercise(name):
    stub, check_cell, solution = EXERCISES[name]
    check = getattr(checks, name)
    assert check_cell == f"{name} = sn.checks.{name}({name})"
    right = defined(solution, name)
    result, said = judged(check, right)
    assert result is right and "cases right" in said
    assert check(right, strict=True) is right
    signature = ast.unparse(ast.parse(stub).body[0].args)
    assert signature == ast.unparse(ast.parse(solution).body[0].args)

    result, said = judged(check, defined(stub, name))
    assert "not written yet" in said
    assert judged(check, result)[0] is result  # the reference is right

    for wrong, message in WRONG[name]:
        result, said = judged(check, wrong)
        assert result is not wrong
        assert re.search(message, said) and ("expected" in said or "stops with" in said), said
        with pytest.raises(AssertionError, match=message):
            check(wrong, strict=True)


@pytest.mark.parametrize("answer", [None, "text", torch.ones(7), {}, [1, 2]])
def test_checks_survive_any_answer(answer):
    for name in EXERCISES:
        result, said = judged(getattr(checks, name), lambda *_, value=answer: value)
        assert callable(result) and "expected" in said


# ---- executed


@pytest.mark.notebook
@pytest.mark.slow
@pytest.mark.weights
@every
def test_runs_with_defaults(path, executed):
    _, rows = executed
    (row,) = (row for row in rows if row["notebook"] == path.stem)
    assert row["status"] == "ok", row["error"]
    assert row["headline"] and row["result"]["notebook"] == path.stem
    assert set(row["result"]["config"]) == {field.name for field in fields(config_of(path))}
    assert row["seconds"] < 180  # a minute on a quiet machine
    if path in LESSONS:  # what a sweep collects
        for one in row["measurements"]:
            assert one["tokens"] >= one["target_calls"] > 0
            assert one["seconds"] > 0 and one["plain_seconds"] > 0 and one["method"]
        assert row["measurements"]


@pytest.mark.notebook
@pytest.mark.slow
@pytest.mark.weights
@lesson_by_lesson
def test_runs_with_other_parameters(path, tmp_path):
    other = {"temperature": 0.8, "draft_length": 3, "task": "science", "n_prompts": 1, "seed": 1}
    (row,) = batch.run([path], tmp_path, {**PAIR, **other})
    assert row["status"] == "ok", row["error"]
    assert {name: row["result"]["config"][name] for name in other} == other
    assert {name: row["parameters"][name] for name in other} == other


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


@pytest.mark.notebook
@pytest.mark.slow
@pytest.mark.weights
@lesson_by_lesson
def test_a_planted_bug_is_noticed(path, tmp_path):
    _, bug, message = PLANTED[path.stem]
    book = read(path)
    book.cells.insert(3, nbformat.v4.new_code_cell(bug))
    nbformat.write(book, tmp_path / path.name)
    with pytest.raises(papermill.PapermillExecutionError) as caught:
        papermill.execute_notebook(
            tmp_path / path.name,
            tmp_path / "out.ipynb",
            parameters=PAIR,
            cwd=ROOT,
            progress_bar=False,
            store_widget_state=False,
            execution_timeout=300,
        )
    assert caught.value.ename == "AssertionError"
    assert message in caught.value.evalue


@pytest.mark.notebook
@pytest.mark.slow
def test_text_only_pair_with_prompts_of_ones_own(tmp_path):
    """No pictures, no words of our world, a short context: sentences instead of errors."""
    if not REAL.is_dir():
        pytest.skip(f"{REAL} is missing: two small models trained elsewhere")
    prompts = tmp_path / "prompts.jsonl"
    starts = ("Once upon a time", "One day a girl", "There was a dog")
    prompts.write_text("".join(json.dumps({"prompt": start}) + "\n" for start in starts))
    own = {"target": str(REAL / "stories260K"), "draft": str(REAL / "llama2xs-500it")}
    batch_rows = batch.run(LESSONS, tmp_path / "out", {**own, "prompts": str(prompts)})
    assert [row["status"] for row in batch_rows] == ["ok"] * len(LESSONS), [
        row["error"] for row in batch_rows
    ]


@pytest.mark.notebook
@pytest.mark.slow
def test_interface_of_the_real_thing(tmp_path):
    """LLaVA-1.5's shape, 576 image tokens, with a 32,000-vocabulary drafter; random weights."""

    own = {
        "target": builders.llava15(tmp_path / "target"),
        "draft": builders.llama(tmp_path / "draft", 32000, seed=5, layers=1),
    }
    rows = batch.run(LESSONS, tmp_path / "out", {**own, "n_prompts": 1, "draft_length": 2})
    assert [row["status"] for row in rows] == ["ok"] * len(LESSONS), [row["error"] for row in rows]
    (executed,) = (tmp_path / "out").glob("02_language_only_drafting-*.ipynb")
    executed = executed.read_text(encoding="utf-8")
    assert "576 image tokens stay in the drafter's prompt" in executed


# ---- teaching


TEACHING = (ROOT / "notebooks" / "TEACHING.md").read_text(encoding="utf-8")


def flat(text: str) -> str:
    return " ".join(re.sub(r"[*>]", " ", text).split())


def lesson(stem: str) -> str:
    """What TEACHING.md says of a notebook."""
    parts = dict(re.findall(r"^## (\S+)\n(.*?)(?=^## |\Z)", TEACHING, re.M | re.S))
    return parts[stem]


@lesson_by_lesson
def test_teaching_knows_every_notebook(path):
    said = lesson(path.stem)
    minutes = re.search(r"About (\d+) minutes", read(path).cells[0].source)[1]
    assert said.strip().startswith(f"{minutes} minutes.")
    row = re.search(rf"`{path.stem}` \|.*\| (\d+) \|", (ROOT / "README.md").read_text("utf-8"))
    assert row[1] == minutes
    start = "\n".join(cell.source for cell in read(PATHS[0]).cells)
    title = path.stem.replace("_", " ").replace("language only", "language-only")
    assert re.search(rf"^\| {title} \|.*\| {minutes} \|$", start, re.M), "the map in 00"


@lesson_by_lesson
def test_teaching_asks_what_the_notebook_asks(path):
    """Every question before a live cell, word by word; every exercise by its title."""
    said, book = flat(lesson(path.stem)), read(path).cells
    panels = [i for i, cell in enumerate(book) if cell.metadata.get("tags") == ["live"]]
    for index in panels:
        text = flat(book[index - 1].source)
        asked = re.findall(r"(?:(?<=[.:?] )|^)([^.:?]*\?)", text)
        assert asked, "a live cell without a question"
        for question in asked:
            assert question.strip() in said, question
    assert lesson(path.stem).count("**Ask before the") == len(panels)
    titles = re.findall(r"^### (Exercise .*)$", "\n".join(c.source for c in book), re.M)
    assert re.findall(r"^### (Exercise .*)$", lesson(path.stem), re.M) == titles
    assert said.count("What the room should see") == len(panels)
    assert said.count("Usual wrong answers") == max(1, len(titles))


@pytest.mark.parametrize("minutes", [60, 90, 180])
def test_routes_take_the_time_they_say(minutes):
    table = re.search(rf"^### {minutes} minutes\n(.*?)^##", TEACHING, re.M | re.S)[1]
    rows = re.findall(r"^\| (\d+) \| (.*) \|$", table, re.M)
    assert sum(int(length) for length, _ in rows) == minutes
    named = [stem for stem in STEMS if any(stem in what for _, what in rows)]
    assert len(named) >= 3
    sections = "\n".join(c.source for path in PATHS for c in cells(path, "markdown"))
    for heading in re.findall(r'"([^"]*)"', table):
        assert f"## {heading}" in sections, heading


def test_there_are_enough_exercises():
    assert 8 <= len(EXERCISES) <= 12


def test_of_the_set_up_one_line_is_seen():
    """JupyterLab and Colab fold it; `make address` does that to a new notebook."""
    for path in PATHS:
        cell = tagged(path, "setup")[0]
        assert cell.metadata["jupyter"] == {"source_hidden": True}, path.name
        assert cell.metadata["cellView"] == "form"
        assert cell.source.startswith("# @title Set-up") and cell.source.count("@title") == 1


def test_the_address_stands_in_one_place(tmp_path):
    """pyproject.toml has it; the notebooks are written from there."""
    import shutil
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    line = f'REPO, TAG = "{project["urls"]["Repository"]}", "v{__version__}"'
    for path in PATHS:
        assert line in tagged(path, "setup")[0].source
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    text = (ROOT / "pyproject.toml").read_text("utf-8").replace("/OWNER/", "/someone/")
    (tmp_path / "pyproject.toml").write_text(text)
    assert notebook.write_address(tmp_path) == len(PATHS)
    assert notebook.write_address(tmp_path) == len(PATHS)  # again, and nothing is doubled
    for path in PATHS:
        written = tmp_path / "notebooks" / path.name
        assert "github.com/someone/specnb" in tagged(written, "setup")[0].source
        assert len(written.read_bytes()) == len(path.read_bytes()) + len("someone") - len("OWNER")
