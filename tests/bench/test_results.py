"""RESULTS.md is what the stored results give, and prose says no figure that they do not hold."""

from __future__ import annotations

import functools
import json
import re

import pandas as pd
import pytest
from places import ROOT

import specnb as sn
from specnb.batch import columns
from specnb.bench import __main__ as command
from specnb.bench import results

PAGE = (ROOT / "RESULTS.md").read_text(encoding="utf-8")
RENEW = "python -m specnb.bench results"

pytestmark = pytest.mark.weights


def test_the_page_is_what_the_stored_results_give():
    assert results.render() == PAGE, f"RESULTS.md is not up to date: {RENEW}"


def test_every_subject_is_stored_with_all_that_a_reader_needs():
    stored = results.load()
    for name in set(command.SUBJECTS) - set(stored):  # said to be so, and not left out
        assert results.unmeasured(name) in PAGE
        assert "Skipped" in results.unmeasured(name) and name in results.unmeasured(name)
    for name, one in stored.items():
        assert one["command"] and one["machine"], name
        assert re.fullmatch(r"2\d{3}-\d\d-\d\d", one["date"]) and one["commit"], name
        assert ("figures" in one) != ("printed" in one), name
        assert "printed" not in one or one["printed_in"], name
        text = results.section(one)
        assert f"    {one['command']}\n" in text and "|---" in text.replace(" ", ""), name


def test_a_changed_figure_changes_the_page(tmp_path):
    (tmp_path / "models").mkdir()
    folder = tmp_path / "results"
    folder.mkdir()
    for path in results.FOLDER.glob("*.json"):
        (folder / path.name).write_bytes(path.read_bytes())
    for name in ("quality", "exactness"):
        source = results.DATA / "models" / f"{name}.json"
        (tmp_path / "models" / source.name).write_bytes(source.read_bytes())
    assert results.render(folder) == PAGE
    figures = json.loads((tmp_path / "models" / "exactness.json").read_text())
    figures["greedy"]["equal_to_plain"] -= 1
    (tmp_path / "models" / "exactness.json").write_text(json.dumps(figures))
    assert results.render(folder) != PAGE


def test_storing_adds_what_a_reader_needs(tmp_path):
    module = "specnb.bench.exactness"
    figures = results.load()["exactness"]["figures"]
    path = results.store(
        "exactness",
        module,
        figures,
        "python -m specnb.bench exactness",
        folder=tmp_path / "results",
    )
    stored = json.loads(path.read_text())
    assert stored["figures"] == figures and stored["versions"].keys() >= {"python", "torch"}
    assert "cores" in stored["machine"] and stored["date"] > "2026"
    assert "600 of 600 prompts" in results.section(stored)
    skipped = figures | {"skipped": [{"what": "stories260K", "why": "no such folder"}]}
    folder = tmp_path / "results"
    results.store("exactness", module, skipped, "x", folder=folder)
    text = results.section(results.load(folder)["exactness"])
    assert "Skipped: stories260K: no such folder." in text
    results.store("exactness", module, figures | {"left_out": "no x"}, "x", folder=folder)
    assert "Skipped: no x." in results.section(results.load(folder)["exactness"])


@pytest.mark.parametrize(
    ("subject", "module", "figures", "words"),
    [
        ("No name", "specnb.bench.speed", {}, "subject='No name'"),
        ("speed", "os.path", {}, "module='os.path'"),
        ("speed", "specnb.paths", {}, "neither markdown"),
        ("speed", "specnb.bench.speed", {"a": float("nan")}, "figures of speed"),
        ("speed", "specnb.bench.speed", {"a": {1, 2}}, "figures of speed"),
    ],
)
def test_bad_results_are_refused(tmp_path, subject, module, figures, words):
    with pytest.raises(ValueError, match=words):
        results.store(subject, module, figures, "x", folder=tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_speed_bench_prints_its_tables():
    """Of figures in the shape that `measure` returns, with all six cells."""
    from specnb.bench import speed

    def row(ms, **more):
        ratio = {"ratio": 2.0, "low": 1.0, "high": 3.0}
        overs = {f"{w}over {base}": ratio for base in speed.BASES for w in ("", "with prefill ")}
        return {"ms_per_token": ms, "block_efficiency": 3.25, **overs, **more}

    names = [*speed.BASES, "speculative 5", "plain, float32", "speculative 5, float32"]
    cells = [
        {"task": task, "temperature": t, "gamma": 5, "c": 0.1, "v": 1.5, "predicted": 1.7}
        | {"measured": 1.8, "measured / predicted": 1.06, "fastest": "speculative 5"}
        | {"where": {"draft_step_us": 210.0, "drafting": 0.2}}
        | {"rows": {name: row(number + 0.25) for number, name in enumerate(names)}}
        for t in speed.TEMPERATURES
        for task in speed.TASKS
    ]
    tuned = {"chosen": "Chain(5)", "behind": 0.02, "candidates": [1, 2]}
    figures = {
        "n": 30,
        "machine": speed.WIDE,
        "chosen": {"plain": "float32, 1 thread", "speculative": "float32, 1 thread"},
        "cells": cells,
        "bars": speed._bars(cells),
        "growth": {"plain": {"64 ms/token": 2.0}},
        "tune": {"0.0": tuned},
        "recording": {"on / off": 1.02},
        "process": {"import_s": 0.01, "first_token_s": 4.0, "peak_memory_gb": 0.6},
    }
    text = speed.markdown(figures)
    assert len(re.findall(r"^\| (?:caption|conversation|science) \| ", text, re.M)) == 6
    assert "| plain | **2.00** |" in text and "| float32 | 6.25 / 7.25 |" in text
    stored = {"subject": "speed", "module": "specnb.bench.speed", "figures": figures}
    stored |= {"command": "x", "date": "2026-01-01"}
    assert results.bars(stored)[0] == ("plain", 2.0)
    widths = {len(line.split("|")) for line in text.splitlines() if line.startswith("| caption")}
    assert widths == {16} and text.count("| 210 | 20% |") == 6


def test_speed_is_kept_by_class_of_machine(monkeypatch):
    """A smaller processor's figures stand beside those of the larger one, with how they came."""
    from specnb.bench import AVX2, live, speed

    names, panels = [], []
    for kind in (speed.WIDE, speed.NARROW, "AVX-512"):
        for module in (speed, live):
            monkeypatch.setattr(module, "machine_class", lambda kind=kind: kind)
        names.append(speed.stored_as())
        panels.append(live.stored_as())
    assert names == ["speed", "speed_avx2", "speed_other"]
    assert panels == ["live", "live_other", "live_other"]
    assert results.ABOUT.keys() >= {*names, *panels}
    for name in AVX2:
        monkeypatch.delenv(name, raising=False)
    assert results.kept_to() == []
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx2")
    assert results.kept_to() == ["ATEN_CPU_CAPABILITY=avx2"]


def test_nothing_stored_names_a_folder_of_the_machine():
    places = re.compile(r"/(?:tmp|root|home|work|Users|var)/")
    said = {path.name: path.read_text("utf-8") for path in results.FOLDER.glob("*.json")}
    said |= {"RESULTS.md": PAGE, "a planted one": "model '/tmp/tmpm12/t5/target'"}
    assert [name for name, text in said.items() if places.search(text)] == ["a planted one"]


def test_the_picture_of_speed_shows_what_is_stored():
    words, picture = results.PICTURES["speed"]
    assert f"![{words}]({picture})" in PAGE
    shown = results.noted_bars(ROOT / picture)
    assert shown == results.bars(results.load()["speed"]), f"{RENEW} --pictures"


# ------------------------------------------------------------------------------- figures in prose


def quoting(text: str) -> list[tuple[str, list[str]]]:
    """Paragraphs of a cell that quote a stored result, with the subjects they name.

    The ones behind a paragraph that names a command are taken to speak of it as well, tables for
    one, where its rows are stored; of a section that was taken over from print only its own.
    """
    stored = results.load()
    found, named = [], []
    for part in re.split(r"\n\s*\n", text):
        here = [name for name in re.findall(r"specnb\.bench\s+(\w+)", part) if name in stored]
        here = here or ([*stored] if "RESULTS.md" in part else [])
        if here or named:
            found.append((part, here or named))
        named = [name for name in here or named if "figures" in stored[name]]
    return found


def unsupported(*cells: str) -> list[tuple[str, list[str]]]:
    stored = results.load()
    found = []
    for part, names in (one for cell in cells for one in quoting(cell)):
        wanting = results.missing(part, [share(), *(results.section(stored[n]) for n in names)])
        if wanting:
            found.append((part[:80], wanting))
    return found


@functools.cache
def share() -> str:
    """The drafter's share of parameters, which lessons put beside results."""
    ratio = sn.load_pair().parameter_ratio
    return f"{ratio:.4f} {ratio:.3f}"


def prose(path) -> list[str]:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return ["".join(c["source"]) for c in cells if c["cell_type"] == "markdown"]


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda p: p.stem)
def test_lessons_quote_what_is_stored(path):
    assert not unsupported(*prose(path)), f"{path.name}: not in data/results"


def test_the_readme_quotes_what_is_stored():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = re.search(r"<!-- results -->(.*?)<!-- /results -->", text, re.S)
    assert table and "|---|" in table[1]
    sources = [results.section(one) for one in results.load().values()]
    assert not results.missing(table[1], sources)


def test_a_figure_that_is_not_stored_is_found():
    rows = ["| AdaEDL | 1.084 (1.048-1.120) |", "| a tree | 1.047 | 1.145 |"]
    assert results.missing("AdaEDL is 1.37 times as fast", rows) == ["1.37"]
    assert not results.missing("AdaEDL is 1.08 times as fast, a tree 4.7 to 14.5 % better", rows)
    assert results.missing("8.4 tokens more", rows) == ["8.4"]  # it is 8.4 %
    assert not results.missing("8.4 % more tokens, from 4.8 to 12.0 percent", rows)
    assert unsupported("`python -m specnb.bench stopping`: AdaEDL is 1.37193 times as fast.")
    table = "`python -m specnb.bench quality`:\n\n| a |\n|---|\n"
    assert unsupported(f"{table}| 3.99 |") and not unsupported(f"{table}| 3.48 |")
    assert not unsupported("No result is quoted here: 1234.5.")
    assert list(results.numbers("of `x = 17`, 3.5 and 21,212 (arXiv 2211.17192)")) == [
        "3.5",
        "21,212",
    ]


# ---------------------------------------------------------------------------- the data dictionary


@pytest.mark.parametrize(
    "figure, words",
    [
        ("two_siblings", "share of places where one of the first two siblings is kept"),
        ("mbsu_caption", "memory-bound speed-up of one task: caption"),
        (
            "speedup_caption_Chain",
            "mean speed-up of a task and method of the reported",
        ),
        ("RSD-C_10", "tokens per target call of a method at a budget of nodes: RSD-C 10"),
        ("a_figure_of_ones_own", "a figure of ones own"),
    ],
)
def test_a_figure_has_words(figure, words):
    assert columns.meaning(figure).startswith(words)


def test_every_column_of_the_shipped_sweep_is_described():
    table = pd.read_csv(ROOT / "data" / "sweeps" / "example.csv", nrows=2)
    assert not [name for name in table.columns if not columns.describes(name)]
    assert not columns.describes("param.colour") and not columns.describes("figure")


def test_every_parameter_and_headline_is_described(tmp_path):
    assert columns.describes("param.draft_length") and columns.describes("figure.mbsu_caption")
    assert columns.UNDESCRIBED not in columns.markdown()
    assert not set(columns.headlines()) - set(columns.FIGURES)
    cell = {"cell_type": "code", "metadata": {"tags": ["parameters"]}, "source": ["x: int = 1"]}
    more = {"cell_type": "code", "metadata": {}, "source": ["headline = {f'new_{x}': 1}"]}
    (tmp_path / "05_new.ipynb").write_text(json.dumps({"cells": [cell, more]}))
    assert columns.headlines(tmp_path) == {"new_*": ["05"]}
    assert columns.markdown(tmp_path).count(columns.UNDESCRIBED) == 2  # neither is described
    assert list(columns.parameters(tmp_path)) == ["x"]
