"""Batches: refused before they start, resumed after any death, collected without a doubt."""

from __future__ import annotations

import functools
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import papermill
import psutil
import pytest
from places import ROOT

from specnb import batch, files
from specnb.batch import (
    by_word,
    collect,
    configs,
    estimates,
    plan,
    plan_of,
    positions,
    read_sweep,
    scheduler,
)
from specnb.batch.execute import DIED_EARLY, execute, finished, read_row
from specnb.bench.batch import CUT

PARAMETERS = "draft_length: int = 4\ntemperature: float = 0.0\nseed: int = 0\nout_dir: str = ''"
# A run in miniature: it writes what a lesson writes, for two prompts.
WRITES = """import json, os, pathlib
times = {"seconds": 0.5 / draft_length, "plain_seconds": 1.0, "plain_tokens": 10}
one = {"task": "caption", "method": "chain", "budget": None, "tokens": 10, **times}
both = [one | {"prompt": n, "target_calls": 11 - draft_length - n} for n in (0, 1)]
row = {"notebook": STEM, "config": {}, "headline": {"length": draft_length, "ratio": 2 / 3}}
row |= {"measurements": both, "threads": os.environ.get("OMP_NUM_THREADS")}
pathlib.Path(out_dir, STEM + ".json").write_text(json.dumps(row))"""


def make_notebook(folder: Path, stem: str, *cells: str) -> Path:
    parameters = nbformat.v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})
    rest = [nbformat.v4.new_code_cell(cell.replace("STEM", repr(stem))) for cell in cells]
    notebook = nbformat.v4.new_notebook(cells=[parameters, *rest])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3 (ipykernel)"}
    notebook.metadata["language_info"] = {"name": "python"}
    nbformat.write(notebook, folder / f"{stem}.ipynb")
    return folder / f"{stem}.ipynb"


def make_sweep(folder: Path, text: str, name: str = "s.yml") -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


# ---- refused before anything starts


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[1, 2]", "write keys and values"),
        ("a: [", "no YAML that is safe"),
        ("x: !!python/object/apply:os.system ['true']", "no YAML that is safe"),
        ("notebook: [a]", "unknown key 'notebook', did you mean 'notebooks'?"),
        ("notebooks: []", "name at least one"),
        ("notebooks: [00_start_her]", "did you mean '00_start_here'?"),
        ("notebooks: [3]", "give a name or a path"),
        ("name: ../../etc\nnotebooks: [00_start_here]", "give a plain name"),
        ("notebooks: [00_start_here]\ngrid: {draft_len: [1]}", "did you mean 'draft_length'?"),
        ("notebooks: [00_start_here]\ngrid: {draft_length: 3}", "give a list of values"),
        ("notebooks: [00_start_here]\ngrid: {draft_length: [0]}", "draft_length=0: give a whole"),
        ("notebooks: [00_start_here]\ngrid: {draft_length: [x]}", "draft_length='x': give a whole"),
        ("notebooks: [00_start_here]\ngrid: {temperature: [-1]}", "temperature=-1"),
        ("notebooks: [00_start_here]\ngrid: {task: [captions]}", "choose one of caption"),
        ("notebooks: [00_start_here]\ngrid: {top_p: [1, 1.0]}", "are the same run"),
        ("notebooks: [00_start_here]\nsets: [{seed: 1}]\nseeds: [1]", "give one of them"),
        ("notebooks: [00_start_here]\nsets: [3]", "give names and values"),
        ("notebooks: [00_start_here]\nparameters: {out_dir: x}", "out_dir"),
        ("notebooks: [00_start_here]\nparameters: {target: nowhere/at/all}", "no such folder"),
        ("notebooks: [00_start_here]\nworkers: 0", "workers=0: give a whole number >= 1"),
        ("notebooks: [00_start_here]\nworkers: 2.0", "workers=2.0"),
        ("notebooks: [00_start_here]\ntimeout: .inf", "timeout=inf"),
        ("notebooks: [00_start_here]\nseeds: 0", "seeds=0"),
        ("notebooks: [00_start_here]\nseeds: []", "seeds=[]"),
        ("notebooks: [00_start_here]\ngrid: {1: [2]}", "1 is no name of a parameter"),
        ("notebooks: [00_start_here]\nretries: x", "retries='x'"),
        ("notebooks: [00_start_here]\ntimeout: 0.5", "timeout=0.5"),
        ("notebooks: [00_start_here]\nworkers: true", "workers=True: give a whole number >= 1"),
        ("notebooks: [00_start_here]\ntimeout: '9'", "timeout='9': give a finite number >= 1"),
        ("notebooks: [00_start_here]\nseeds: [1.5]", "seeds=1.5: give a whole number >= 0"),
        ("notebooks: [00_start_here]\nseeds: ['1']", "seeds='1': give a whole number >= 0"),
        ("notebooks: [00_start_here]\nseeds: [true]", "seeds=True: give a whole number >= 0"),
        ("notebooks: [00_start_here]\nseeds: true", "seeds=True: give a list"),
        ("notebooks: [00_start_here]\nseeds: [9223372036854775808]", "seeds=9223372036854775808"),
        ("notebooks: [00_start_here]\nseeds: 9007199254740993", "or a number >= 1 and <= 100000"),
        ("notebooks: [00_start_here]\ngrid: {seed: [1.0e+300]}", "seed=1e+300: give a whole"),
        (
            "notebooks: [00_start_here]\ngrid:\n  draft_length: [1, 2, 3]\n  draft_length: [7]",
            "line 4: the key 'draft_length' stands in line 3 already; leave one out",
        ),
        (
            "notebooks: [00_start_here]\nparameters: {temperature: 0.5}\n"
            "parameters: {temperature: 0.7}",
            "line 3: the key 'parameters' stands in line 2 already",
        ),
        ("notebooks: [00_start_here]\nsets: [{seed: 1, seed: 2}]", "the key 'seed' stands in line"),
        (
            "notebooks: [00_start_here]\nparameters: {seed: 1}\ngrid: {seed: [1, 2]}",
            "seed: it stands in parameters and in grid; leave one out",
        ),
        (
            "notebooks: [00_start_here]\nparameters: {top_p: 1}\nsets: [{seed: 1}, {top_p: 0.5}]",
            "top_p: it stands in parameters and in sets; leave one out",
        ),
        (
            "notebooks: [00_start_here]\ngrid: {draft_length: [1:30]}",
            "line 2: 1:30 would be read as 90; write that, or quotes around a text",
        ),
        ("notebooks: [00_start_here]\nseeds: [010]", "line 2: 010 would be read as 8"),
        ("notebooks: [00_start_here]\nname: 2001-99-99", "month must be in 1..12"),
        (
            "notebooks: [00_start_here]\nparameters: {seed: 1}\nsets: [{seed: 1}]",
            "seed: it stands in parameters and in sets; leave one out",
        ),
        (
            "notebooks: [00_start_here]\n"
            f"grid: {{seed: &a {list(range(99))}, n_prompts: *a, draft_length: *a}}",
            "grid: it has 970299 sets of values; take 100000 or fewer",
        ),
        ("a: " + "9" * 5000, "digits"),
        ("[" * 5000, "brackets within brackets"),
        ("a: &a [*a]", "aliases repeat too much"),
    ],
)
def test_a_sweep_file_is_judged_first(tmp_path, unchecked, text, words):
    path = make_sweep(tmp_path, text)
    with pytest.raises(ValueError, match="^s.yml: ") as caught:
        read_sweep(path)
    assert words in str(caught.value)
    assert os.listdir(tmp_path) == ["s.yml"]


def test_merged_keys_are_not_keys_that_stand_twice(tmp_path):
    """An anchor is written once and taken with changes: YAML's own way, and meant."""
    text = (
        "notebooks: [00_start_here]\n"
        "sets:\n"
        "  - &base {draft_length: 3, temperature: 0.5}\n"
        "  - {<<: *base, draft_length: 4}\n"
        "  - &late\n    <<: *base\n    temperature: 0.7\n"
        "  - {<<: *late, seed: 1}\n"
    )
    given = [dict(run.given) for run in read_sweep(make_sweep(tmp_path, text)).runs]
    assert given == [
        {"draft_length": 3, "temperature": 0.5},
        {"draft_length": 4, "temperature": 0.5},
        {"draft_length": 3, "temperature": 0.7},
        {"draft_length": 3, "temperature": 0.7, "seed": 1},
    ]


def test_errors_of_sweep_files_are_one_short_sentence(tmp_path):
    rows = "".join(
        f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n"
        for before, name in zip("abcdefgh", "bcdefghi", strict=True)
    )
    bomb = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + rows
    for text in (bomb, "notebooks: " + "[1, " * 50, "x: !!python/" + "a" * 9000, "a: \x00"):
        with pytest.raises(ValueError, match="^s.yml: ") as caught:
            read_sweep(make_sweep(tmp_path, text))
        assert len(str(caught.value)) < 300 and "\n" not in str(caught.value)
        assert ("aliases repeat too much" in str(caught.value)) is (text is bomb)


@pytest.mark.parametrize(
    ("data", "line"),
    [("name: a\n# café".encode("latin-1"), 2), ("name: a".encode("utf-16"), 1)],
)
def test_sweep_files_in_other_encodings_are_named(tmp_path, data, line):
    (tmp_path / "s.yml").write_bytes(data)
    with pytest.raises(ValueError, match=f"^s.yml, line {line}: this is not UTF-8"):
        read_sweep(tmp_path / "s.yml")
    (tmp_path / "s.yml").write_bytes(b"\xef\xbb\xbfnotebooks: [00_start_here]")
    assert len(read_sweep(tmp_path / "s.yml").runs) == 1


def test_seeds_are_exact_from_the_file_to_the_table(tmp_path):
    large = [2**53 + 1, 2**63 - 1]
    text = f"notebooks: [00_start_here]\nseeds: {large}"
    runs = read_sweep(make_sweep(tmp_path, text)).runs
    assert [run.parameters["seed"] for run in runs] == large
    text = f"notebooks: [00_start_here]\ngrid: {{seed: ['{large[0]}', {large[1]}]}}"
    assert [run.parameters["seed"] for run in read_sweep(make_sweep(tmp_path, text)).runs] == large
    out = tmp_path / "out"
    out.mkdir()
    rows = [a_row(id="a-1", seed=large[0]), a_row(id="a-2", seed=None), a_row(id="a-3", seed=7)]
    for row in rows:
        (out / f"{row['id']}.json").write_text(json.dumps(row))
    for table in (collect(out), pd.read_parquet(out / "table.parquet")):
        assert table["seed"][0] == large[0] and table["seed"].isna().tolist() == [
            False,
            True,
            False,
        ]
    assert str(large[0]) in (out / "table.csv").read_text()


def test_a_plan_takes_numbers_of_numpy(unchecked):
    made = plan.Plan((), workers=np.int64(2), threads=np.int32(1), timeout=np.float64(9))
    assert (made.workers, made.threads, made.timeout) == (2, 1, 9.0)
    assert type(made.workers) is int and type(made.timeout) is float


def test_a_parameter_that_is_given_twice_is_refused(tmp_path, capsys):
    argv = ["run", "-p", "seed", "1", "-p", "draft_length", "3", "-p", "seed", "2", "00_start_here"]
    with pytest.raises(SystemExit):
        batch.main([*argv, "--out", str(tmp_path / "out")])
    assert "-p seed: it is given twice" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# ---- what a notebook's parameters are

OWN = """# what may be varied
text: str = "key=value"  # with = and #
other = 'a # b = c'
both = again = -1.5
breadth: int
pair = (1, None)
many = [
    "a=1",
    2,  # not 3
]
long = '''two
lines = here'''
print("a=b")
table["x"] = 4
out_dir: str = ''"""


def own_notebook(folder: Path, parameters: str, **metadata) -> Path:
    path = make_notebook(folder, "own", WRITES)
    book = nbformat.read(path, as_version=4)
    book.cells[0].source = parameters
    book.metadata.update(metadata)
    nbformat.write(book, path)
    return path


def test_defaults_are_read_as_python_reads_them(tmp_path):
    path = own_notebook(tmp_path, OWN)
    parameters = plan_of([path]).runs[0].parameters
    wanted = {"text": "key=value", "other": "a # b = c", "both": -1.5, "again": -1.5}
    wanted |= {"pair": (1, None), "many": ["a=1", 2], "long": "two\nlines = here"}
    assert parameters == wanted
    (given,) = plan_of([path], [{"text": "z", "other": "="}]).runs
    assert given.parameters == wanted | {"text": "z", "other": "="}
    with pytest.raises(ValueError, match="has no parameter 'breadth'; it has: text, other, both"):
        plan_of([path], [{"breadth": 3}])
    with pytest.raises(ValueError, match="are the same run"):
        plan_of([path], [{}, {"text": "key=value"}])


def test_a_default_that_is_no_plain_value_has_to_be_given(tmp_path):
    path = own_notebook(tmp_path, "import os\nhome = os.environ['HOME']\nout_dir = ''")
    with pytest.raises(ValueError, match="^own.ipynb: give home a plain value, not os.environ"):
        plan_of([path])
    assert plan_of([path], [{"home": "x"}]).runs[0].parameters == {"home": "x"}


def test_a_parameter_cell_that_is_no_python_is_named(tmp_path):
    path = own_notebook(tmp_path, "out_dir = ''\n%matplotlib inline")
    with pytest.raises(ValueError, match="^own.ipynb: line 2 of the cell tagged 'parameters'"):
        plan_of([path])


def test_a_notebook_without_a_kernel_is_named(tmp_path):
    for lacking in ({"kernelspec": {}}, {"language_info": {}}):
        path = own_notebook(tmp_path, PARAMETERS, **lacking)
        with pytest.raises(ValueError, match="^own.ipynb: it does not say which kernel runs it"):
            plan_of([path])
    old = {"language_info": {}, "kernelspec": {"name": "python3", "language": "python"}}
    assert len(plan_of([own_notebook(tmp_path, PARAMETERS, **old)]).runs) == 1


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"{}", b"\xff\xfe{", b'{"cells": 3}'])
def test_a_file_that_is_no_notebook_is_named(tmp_path, data):
    (tmp_path / "own.ipynb").write_bytes(data)
    with pytest.raises(ValueError, match="^own.ipynb: this is no notebook"):
        plan_of([tmp_path / "own.ipynb"])


def test_a_kernel_that_is_not_installed_is_named(tmp_path):
    path = own_notebook(tmp_path, PARAMETERS, kernelspec={"name": "nosuch"})
    with pytest.raises(ValueError, match="^own.ipynb: its kernel 'nosuch' is not installed here"):
        plan_of([path])


@pytest.mark.parametrize("value", ["1 + 2j", "{1, 2}", "b'x'", "2 + 3", "some_call()"])
def test_a_default_that_no_row_can_hold_is_named(tmp_path, value):
    path = own_notebook(tmp_path, f"x = {value}\nout_dir = ''")
    with pytest.raises(ValueError, match="^own.ipynb: give x a plain value, not ") as caught:
        plan_of([path])
    assert "\n" not in str(caught.value)
    assert plan_of([path], [{"x": 5}]).runs[0].parameters == {"x": 5}


MINE = """from dataclasses import dataclass
from pathlib import Path

import specnb as sn

Path(__file__).with_suffix(".ran").touch()


@dataclass(frozen=True)
class MyConfig(sn.RunConfig):
    breadth: int = 3

    def __post_init__(self):
        super().__post_init__()
        if self.breadth > 9:
            raise ValueError(f"breadth={self.breadth}: give 9 or less")
"""
KNOBS = "breadth: int = 3\ndraft_length: int = 5\nout_dir: str = ''"


def config_notebook(folder: Path, *cells: str) -> Path:
    path = make_notebook(folder, "own", *cells, WRITES)
    book = nbformat.read(path, as_version=4)
    book.cells[0].source = KNOBS
    nbformat.write(book, path)
    return path


def anywhere(file: Path) -> bool:
    return True


@pytest.mark.parametrize(
    ("cells", "name"),
    [
        (["import specnb", "specnb.RunConfig.from_notebook(globals())"], "RunConfig"),
        (
            ["import specnb as s\ncfg = s.notebook.TreeConfig.from_notebook(globals())"],
            "TreeConfig",
        ),
        (
            ["import specnb.notebook as n\nn.StoppingConfig.from_notebook(globals())"],
            "StoppingConfig",
        ),
        (
            ["from specnb import notebook\nnotebook.ReportConfig.from_notebook(globals())"],
            "ReportConfig",
        ),
        (
            [
                "from specnb.notebook import TreeConfig as T",
                "%time\ncfg = T.from_notebook(globals())",
            ],
            "TreeConfig",
        ),
        (
            ["import specnb as sn\nC = sn.notebook.TreeConfig", "C.from_notebook(globals())"],
            "TreeConfig",
        ),
        (
            [
                "# sn.RunConfig.from_notebook(globals())",
                "x = 'sn.RunConfig.from_notebook(globals())'",
            ],
            None,
        ),
        (["import specnb as sn\nsn.RunConfig.from_notebook({})"], None),
        (
            [
                "import specnb as sn\n)",
                "sn.RunConfig(",
                "import specnb as sn\nsn.RunConfig.from_notebook(globals())",
            ],
            "RunConfig",
        ),
        (["from mine import MyConfig\nMyConfig.from_notebook(globals())"], "MyConfig"),
        (["import mine as m", "m.MyConfig.from_notebook(globals())"], "MyConfig"),
    ],
)
def test_a_config_is_found_by_what_the_notebook_imports(tmp_path, cells, name):
    (tmp_path / "mine.py").write_text(MINE)
    path = config_notebook(tmp_path, *cells)
    found = configs.config_of(path, nbformat.read(path, as_version=4), anywhere)
    assert (found and found.__name__) == name


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        (["sn.RunConfig.from_notebook(globals())"], "sn.RunConfig is not imported there"),
        (
            ["import specnb as sn\nclass C(sn.RunConfig): pass\nC.from_notebook(globals())"],
            "C is not",
        ),
        (
            ["from specnb import RunConfig\nRunConfig = 3\nRunConfig.from_notebook(globals())"],
            "RunConf",
        ),
        (
            ["import nowhere_at_all as n\nn.C.from_notebook(globals())"],
            "nowhere_at_all is not found",
        ),
        (["from .mine import C\nC.from_notebook(globals())"], "is not found here"),
        (
            ["from json import decoder as d\nd.JSONDecoder.from_notebook(globals())"],
            "would have to be",
        ),
    ],
)
def test_a_config_that_is_not_to_be_had_is_named(tmp_path, capsys, cells, said):
    path = config_notebook(tmp_path, *cells)
    assert plan_of([path], [{"draft_length": -1}, {"draft_length": 2}], tmp_path).runs
    (line,) = capsys.readouterr().err.splitlines()  # once, and not for every run
    assert line.startswith("own.ipynb: its values are read, but not judged: ") and said in line


def test_a_config_of_ones_own_judges_where_its_code_may_be_run(tmp_path, capsys):
    """As for drafters: beside the sweep, or anywhere with --allow-code."""
    (tmp_path / "away").mkdir(), (tmp_path / "here").mkdir()
    for folder in (tmp_path / "away", tmp_path / "here"):
        (folder / "mine.py").write_text(MINE)
        config_notebook(folder, "from mine import MyConfig as C", "C.from_notebook(globals())")
    text = "notebooks: [%s]\ngrid: {breadth: ['4', %s]}"
    here = tmp_path / "here"
    away = make_sweep(here, text % ("../away/own.ipynb", 12), "away.yml")
    given = [run.parameters["breadth"] for run in read_sweep(away).runs]
    assert given == ["4", 12] and not (tmp_path / "away" / "mine.ran").exists()
    said = capsys.readouterr().err
    assert "own.ipynb: its values are read, but not judged: " in said and "mine.py would" in said
    with pytest.raises(ValueError, match=r"own \(breadth=12\): breadth=12: give 9 or less"):
        read_sweep(away, allow_code=True)
    assert (tmp_path / "away" / "mine.ran").exists()
    (run, other) = read_sweep(make_sweep(here, text % ("own.ipynb", 5))).runs
    assert run.parameters["breadth"] == 4 and type(run.parameters["breadth"]) is int
    assert run.parameters["temperature"] == 0.0 and other.parameters["breadth"] == 5
    assert (here / "mine.ran").exists() and not capsys.readouterr().err
    (here / "mine.py").write_text(MINE.replace("> 9", "> 4"))  # another content is read anew
    with pytest.raises(ValueError, match="breadth=5: give 9 or less"):
        read_sweep(here / "s.yml")
    (here / "mine.py").write_text("import json\n1 / 0")
    with pytest.raises(ValueError, match="own.ipynb: C cannot be imported .ZeroDivisionError"):
        read_sweep(here / "s.yml")
    (here / "mine.py").write_text(MINE.replace("raise ValueError", "raise OSError"))
    with pytest.raises(ValueError, match="breadth=12.*its config fails .OSError: breadth=12"):
        read_sweep(make_sweep(here, text % ("own.ipynb", 12)))


def test_code_beside_a_notebook_is_part_of_the_id(tmp_path):
    (tmp_path / "mine.py").write_text("a = 1")
    (tmp_path / "other.py").write_text("a = 1")
    (tmp_path / "pack" / "sub").mkdir(parents=True)
    (tmp_path / "pack" / "sub" / "deep.py").write_text("a = 1")
    path = make_notebook(tmp_path, "a", "from mine import a\nimport pack.sub.deep", WRITES)
    ids = [plan_of([path]).runs[0].id]
    for name in ("mine.py", "pack/sub/deep.py", "other.py"):
        (tmp_path / name).write_text("a = 2")
        ids.append(plan_of([path]).runs[0].id)
    assert len(set(ids[:3])) == 3 and ids[3] == ids[2]


@pytest.mark.notebook
def test_a_run_finds_the_code_beside_its_notebook(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MINE)
    path = config_notebook(
        tmp_path, "from mine import MyConfig\ncfg = MyConfig.from_notebook(globals())"
    )
    (row,) = batch.run([path], tmp_path / "out", {"breadth": "7"})
    assert row["status"] == "ok", row["error"]
    assert row["parameters"]["breadth"] == 7
    with pytest.raises(ValueError, match="breadth=12: give 9 or less"):
        batch.run([path], tmp_path / "out", {"breadth": 12})


def test_parameters_are_plain_values(tmp_path, unchecked):
    """What neither a notebook nor a row can hold is refused before the night, not in it."""
    path = own_notebook(tmp_path, OWN)
    given = {"other": np.int64(3), "both": np.float64(0.5), "text": tmp_path, "pair": [1, None]}
    (run,) = plan_of([path], [given]).runs
    assert run.given == {"other": 3, "both": 0.5, "text": str(tmp_path), "pair": [1, None]}
    assert type(run.given["other"]) is int and type(run.given["both"]) is float
    for value in (object(), {1, 2}, b"x", [np.int64(3)]):
        with pytest.raises(ValueError, match="parameter text=.*: give a number, a text, or a list"):
            plan_of([path], [{"text": value}])
    with pytest.raises(ValueError, match="parameter text=datetime.date"):
        read_sweep(make_sweep(tmp_path, "notebooks: [own.ipynb]\nsets: [{text: 2024-01-01}]"))


def test_an_empty_path_stands_for_nothing(tmp_path, monkeypatch):
    """And not for the folder in which the plan is made."""
    path = own_notebook(tmp_path, "target = ''\nout_dir = ''")
    ids = set()
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text(name)
        monkeypatch.chdir(tmp_path / name)
        ids.add(plan_of([path]).runs[0].id)
    assert len(ids) == 1


def test_a_file_of_ones_own_kind_is_content_without_being_read(tmp_path):
    """Only a prompt file names pictures; a target of one's own may be any file."""
    (tmp_path / "model.gguf").write_bytes(b"\xff\x00")
    path = own_notebook(tmp_path, "target = ''\nout_dir = ''")

    def id_of() -> str:
        return plan_of([path], [{"target": str(tmp_path / "model.gguf")}]).runs[0].id

    first = id_of()
    (tmp_path / "model.gguf").write_bytes(b"\xff\x01")
    assert id_of() != first


def test_command_lines_are_judged_first(tmp_path, capsys):
    notebook = make_notebook(tmp_path, "a", WRITES)
    out = tmp_path / "out"
    with pytest.raises(ValueError, match="did you mean 'draft_length'.*it has: draft_length"):
        batch.run([notebook], out, {"draft_len": 3})
    with pytest.raises(ValueError, match="no such file"):
        batch.run([notebook, tmp_path / "b.ipynb"], out)
    with pytest.raises(ValueError, match="did you mean '00_start_here'"):
        batch.run(["00_start_her"], out)
    with pytest.raises(ValueError, match="named twice"):
        batch.run([notebook, notebook], out)
    with pytest.raises(ValueError, match="--out"):
        batch.run([notebook], out, {"out_dir": "x"})
    for argv in (
        ["run", "-p", "draft_len", "3", "--out", str(out), str(notebook)],
        ["run", "--workers", "0", "--out", str(out), str(notebook)],
        ["sweep", str(tmp_path / "none.yml")],
        ["collect", str(tmp_path / "none")],
        ["report", str(tmp_path / "none")],
    ):
        with pytest.raises(SystemExit) as exit_:
            batch.main(argv)
        assert exit_.value.code == 2
    assert "no such folder" in capsys.readouterr().err and not out.exists()


@pytest.mark.parametrize("where", ["file", "file/below", "file/far/below", "link", "link/below"])
def test_results_cannot_go_where_a_file_stands(tmp_path, capsys, monkeypatch, where):
    make_notebook(tmp_path, "a", WRITES)
    make_sweep(tmp_path, "notebooks: [a.ipynb]")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to("nowhere")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(scheduler, "local", lambda plan: pytest.fail("a worker was started"))
    said = "a file" if "file" in where else "a link to nowhere"
    at = "this" if "/" not in where else str(tmp_path / where.partition("/")[0])
    for argv in (["run", "a.ipynb"], ["sweep", "s.yml"], ["sweep", "s.yml", "--dry-run"]):
        with pytest.raises(SystemExit) as exit_:
            batch.main([*argv, "--out", where])
        assert exit_.value.code == 2
        wanted = f"python -m specnb.batch: error: out='{where}': {at} is {said}; give a folder\n"
        assert capsys.readouterr().err == wanted
    assert (tmp_path / "file").read_text() == "mine"


def test_what_is_no_notebook_ends_the_command_line_in_one_line(tmp_path, capsys):
    (tmp_path / "a.ipynb").write_text("hello")
    with pytest.raises(SystemExit) as exit_:
        batch.main(["run", "--out", str(tmp_path / "out"), str(tmp_path / "a.ipynb")])
    said = capsys.readouterr().err
    assert exit_.value.code == 2 and said.count("\n") == 1
    assert said.startswith("python -m specnb.batch: error: a.ipynb: this is no notebook (")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "value"),
    [("3", 3), ("0.7", 0.7), ("1e-3", 0.001), ("true", True), ("None", None), ("a b", "a b")]
    + [("[1, 2]", "[1, 2]"), ("liuhaotian/llava", "liuhaotian/llava"), ("", "")],
)
def test_command_line_values(text, value):
    assert batch._value(text) == value and type(batch._value(text)) is type(value)


def test_grid_sets_and_seeds_multiply(tmp_path):
    make_notebook(tmp_path, "a", WRITES), make_notebook(tmp_path, "b", WRITES)
    text = "notebooks: [a.ipynb, b.ipynb]\ngrid: {draft_length: [1, 2]}\nsets: [{draft_length: 9}]"
    found = read_sweep(make_sweep(tmp_path, text + "\nseeds: 2\nworkers: 3\nthreads: 2"))
    given = [
        (run.notebook.stem, run.given["draft_length"], run.given["seed"]) for run in found.runs
    ]
    assert given == [(s, n, seed) for s in "ab" for n in (1, 2, 9) for seed in (0, 1)]
    assert (found.workers, found.threads, found.name) == (3, 2, "s")
    assert len({run.id for run in found.runs}) == len(found.runs)
    named = "notebooks: [a.ipynb]\nparameters: {seed: 3}\ngrid: {draft_length: [1]}"
    found = read_sweep(make_sweep(tmp_path, named))
    assert found.name == "s" and found.runs[0].given == {"seed": 3, "draft_length": 1}


def test_shipped_sweeps_are_plans():
    plans = {p.stem: read_sweep(p) for p in (ROOT / "data" / "sweeps").glob("*.yml")}
    assert set(plans) == {"draft_length", "stopping", "trees", "smoke"}
    assert len(plans["smoke"].runs) >= 8


# ---- what a run is


def test_the_id_is_the_content(tmp_path, monkeypatch):
    path = make_notebook(tmp_path, "a", WRITES)

    def id_of(**given) -> str:
        return plan_of([path], [given]).runs[0].id

    first = id_of(draft_length=2)
    assert first.startswith("a-") and id_of(draft_length=2) == first
    assert id_of(draft_length=3) != first
    book = nbformat.read(path, as_version=4)
    book.cells[1].outputs = [nbformat.v4.new_output("stream", text="hello")]
    book.cells[1].metadata["x"] = 1
    nbformat.write(book, path)
    assert id_of(draft_length=2) == first  # outputs and metadata are not content
    book.cells[1].source += "\n# another thought"
    nbformat.write(book, path)
    changed = id_of(draft_length=2)
    assert changed != first
    for name, other in (("_code", lambda: "x"), ("_data", lambda: "y"), ("versions", dict)):
        with monkeypatch.context() as patch:
            patch.setattr(plan, name, functools.cache(other))
            assert id_of(draft_length=2) != changed, name


def test_the_id_holds_what_folders_and_files_hold(tmp_path):
    lesson = ROOT / "notebooks" / "00_start_here.ipynb"
    prompts = tmp_path / "p.jsonl"

    def id_of(text: str) -> str:
        prompts.write_text(text)
        return plan_of([lesson], [{"prompts": str(prompts)}]).runs[0].id

    one = id_of('{"prompt": "a"}\n')
    assert id_of('{"prompt": "b"}\n') != one and id_of('{"prompt": "a"}\n') == one
    picture = ROOT / "data" / "pictures"
    seen = []
    for name in ("01.png", "02.png"):
        shutil.copy(picture / name, tmp_path / "seen.png")
        seen.append(id_of('{"prompt": "a", "image": "seen.png"}\n'))
    assert seen[0] != seen[1]
    with pytest.raises(ValueError, match="line 1: this is no JSON"):
        id_of("{")
    drafter = ROOT / "data" / "models" / "drafter"
    for name in ("x", "y"):
        shutil.copytree(drafter, tmp_path / name)
    (tmp_path / "y" / "note.txt").write_text("retrained")

    def with_draft(folder: str) -> str:
        return plan_of([lesson], [{"draft": str(tmp_path / folder)}]).runs[0].id

    same = shutil.copytree(tmp_path / "x", tmp_path / "z")
    assert with_draft("x") == with_draft(same.name) != with_draft("y")


def test_a_knob_of_ones_own_is_part_of_the_id(tmp_path):
    """The config class does not know it; the run depends on it all the same."""
    book = nbformat.read(ROOT / "notebooks" / "00_start_here.ipynb", as_version=4)
    cell = next(c for c in book.cells if c.metadata.get("tags") == ["parameters"])
    cell.source += "\nmy_knob: int = 1"
    nbformat.write(book, tmp_path / "mine.ipynb")
    sets = [{"my_knob": 1}, {"my_knob": 2}]
    assert len({run.id for run in plan_of([tmp_path / "mine.ipynb"], sets).runs}) == 2
    with pytest.raises(ValueError, match="are the same run"):
        plan_of([tmp_path / "mine.ipynb"], [{}, {"my_knob": 1}])


def test_paths_begin_where_they_are_written(tmp_path, monkeypatch):
    (tmp_path / "p.jsonl").write_text('{"prompt": "a"}\n')
    text = "notebooks: [00_start_here]\nparameters: {prompts: p.jsonl}"
    (run,) = read_sweep(make_sweep(tmp_path, text)).runs
    assert run.given["prompts"] == str(tmp_path / "p.jsonl")
    monkeypatch.chdir(tmp_path)
    (again,) = plan_of(["00_start_here"], [{"prompts": "p.jsonl"}]).runs
    assert again.id == run.id and again.given == run.given


@pytest.mark.notebook
def test_what_has_changed_since_the_plan_is_not_run(tmp_path):
    path = make_notebook(tmp_path, "a", WRITES)
    made = plan_of([path])
    make_notebook(tmp_path, "a", WRITES, "# edited in the night")
    (row,) = batch.sweep(made, tmp_path / "out")
    assert row["status"] == "failed" and "not those of the plan" in row["error"]


def test_default_and_given_default_are_the_same_run():
    lesson = ROOT / "notebooks" / "00_start_here.ipynb"
    with pytest.raises(ValueError, match="are the same run"):
        plan_of([lesson], [{}, {"draft_length": "5"}])


def test_the_sum_of_the_code_sees_every_module(tmp_path):
    package = tmp_path / "specnb"
    shutil.copytree(ROOT / "specnb", package, ignore=shutil.ignore_patterns("__pycache__"))
    before = files.sum_of(package, package.rglob("*.py"))
    with (package / "views" / "style.py").open("a") as module:
        module.write("\n")
    assert files.sum_of(package, package.rglob("*.py")) != before


# ---- carried out


@pytest.mark.notebook
def test_what_ran_side_by_side_is_finished(tmp_path):
    """Workers share the cores, and a single one later finds nothing left to do."""
    books = [make_notebook(tmp_path, name, WRITES) for name in ("a", "b")]
    rows = batch.run(books, tmp_path / "out", workers=2)
    each = max(1, (os.cpu_count() or 1) // 2)
    assert [row["threads"] for row in rows] == [each, each]
    assert batch.run(books, tmp_path / "out") == rows


@pytest.mark.notebook
def test_a_failure_stops_nobody(tmp_path, capsys, monkeypatch):
    bad = make_notebook(tmp_path, "a_bad", "raise OSError('the\\nlast line')", WRITES)
    good = make_notebook(tmp_path, "b_good", "import specnb", WRITES)
    mute = make_notebook(tmp_path, "c_mute", "pass")
    out = tmp_path / "out"
    monkeypatch.chdir(tmp_path)  # a run does not depend on where it is started
    argv = ["run", "--out", str(out), "-p", "draft_length", "7", "--workers", "2"]
    assert batch.main([*argv, str(bad), str(good), str(mute)]) == 1
    printed = capsys.readouterr()
    lines = [line for line in printed.out.splitlines() if line.strip()]
    first_words = [line.split()[0] for line in lines]
    assert first_words == ["notebook", "a_bad", "b_good", "c_mute", "results:", "to"]
    assert lines[5] == f"to read: {out / 'index.html'}" and (out / "index.html").is_file()
    assert "failed last line" in lines[1] and "length 7, ratio 0.6667" in lines[2]
    assert "wrote no c_mute.json" in lines[3] and str(out) in lines[4]
    words = ("status", "failed", "ok", "failed")
    starts = {line.index(f" {word} ") for line, word in zip(lines, words, strict=False)}
    assert len(starts) == 1  # aligned; nothing is filled up behind the last column
    assert "100% 3/3" in printed.err and "a_bad (draft_length=7): failed" in printed.err
    rows = json.loads((out / "summary.json").read_text())
    assert [row["status"] for row in rows] == ["failed", "ok", "failed"]
    assert rows[1]["headline"]["length"] == 7
    for row in rows:
        assert (out / f"{row['id']}.ipynb").is_file()
    assert "the\\nlast line" in (out / f"{rows[0]['id']}.ipynb").read_text()
    assert not list(out.glob(".work-*")) and not list(out.glob("*.tmp"))


ODD = """import json, pathlib
one = {"task": "t", "method": "m", "prompt": 0, "tokens": 12, "target_calls": 4}
one |= {"seconds": float("nan"), "plain_seconds": 1.0, "plain_tokens": 10}
row = {"notebook": STEM, "headline": {"ratio": float("nan"), "rate": float("-inf"), "n": 3}}
pathlib.Path(out_dir, STEM + ".json").write_text(json.dumps(row | {"measurements": [one]}))"""


def no_odd_numbers(text: str) -> dict:
    def refused(name: str):
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refused)


@pytest.mark.notebook
def test_figures_that_are_no_numbers_are_missing_and_named_once(tmp_path, capsys):
    path, out = make_notebook(tmp_path, "a", ODD), tmp_path / "out"
    book = nbformat.read(path, as_version=4)
    book.cells[0].source += '\nprompt = "a # b = c"'  # papermill's own reading stumbles over it
    nbformat.write(book, path)
    sweep = make_sweep(tmp_path, "notebooks: [a.ipynb]\nparameters: {temperature: .inf}")
    assert batch.main(["sweep", str(sweep), "--out", str(out)]) == 0
    printed = capsys.readouterr()
    words = "headline.ratio is nan, headline.rate is -inf, measurements[0].seconds is nan"
    assert f"a (temperature=inf): ok {words}: kept as missing" in printed.err
    assert printed.err.count("kept as missing") == 1 and "Unable to parse" not in printed.err
    assert "ratio missing, rate missing, n 3" in printed.out
    (row,) = no_odd_numbers((out / "summary.json").read_text())
    assert no_odd_numbers((out / f"{row['id']}.json").read_text()) == row
    assert row["headline"] == {"ratio": None, "rate": None, "n": 3}
    assert row["not_finite"]["headline.rate"] == "-inf"
    assert row["parameters"]["temperature"] == "inf"  # it was asked for: not missing
    table = pd.read_csv(out / "table.csv")
    assert table[["figure.ratio", "figure.rate", "speedup"]].isna().all(axis=None)
    assert table["figure.n"][0] == 3 and table["block_efficiency"][0] == 3.0
    raw = (out / "table.csv").read_text().lower()
    assert "nan" not in raw and ",-inf" not in raw
    batch.export.write(out)
    assert "<dt>ratio</dt><dd>missing</dd>" in (out / "index.html").read_text()


def test_rows_with_odd_numbers_are_read_as_lacking_them(tmp_path, capsys):
    """As other versions, and others, write them."""
    rows = [a_row(headline={"tau": float("inf")}), a_row(id="a-2", headline={"tau": 2.5})]
    for row in rows:
        (tmp_path / f"{row['id']}.json").write_text(json.dumps(row))
    assert collect(tmp_path)["figure.tau"].isna().tolist() == [True, False]
    said = "a-1.json: headline.tau is inf: kept as missing\n"
    assert capsys.readouterr().err == said


@pytest.mark.notebook
def test_a_second_call_runs_only_what_is_missing(tmp_path, capsys):
    count = tmp_path / "count"
    tell = f"open({str(count)!r}, 'a').write(str(draft_length))"
    fails = "assert draft_length != 2 or __import__('pathlib').Path(FLAG).exists(), 'not yet'"
    fails = fails.replace("FLAG", repr(str(tmp_path / "flag")))
    make_notebook(tmp_path, "a", tell, fails, WRITES)
    text = "notebooks: [a.ipynb]\ngrid: {draft_length: [1, 2, 3]}\nretries: 1\nthreads: 1"
    argv = ["sweep", str(make_sweep(tmp_path, text)), "--out", str(tmp_path / "out")]
    assert batch.main(argv) == 1
    assert sorted(count.read_text()) == ["1", "2", "2", "3"]  # a second attempt, as configured
    rows = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [(row["status"], row["attempt"]) for row in rows] == [
        ("ok", 1),
        ("failed", 2),
        ("ok", 1),
    ]
    assert rows[0]["result"]["threads"] == "1" and "not yet" in rows[1]["error"]
    capsys.readouterr()
    assert batch.main([*argv, "--dry-run"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed[:3]] == ["finished", "to", "finished"]
    assert "1 of 3 runs to do" in listed[3]
    (tmp_path / "flag").touch()
    count.write_text("")
    assert batch.main(argv) == 0
    assert count.read_text() == "2" and "2 of 3 runs are finished" in capsys.readouterr().err
    count.write_text("")
    assert batch.main(argv) == 0 and count.read_text() == ""
    with pytest.raises(SystemExit):
        batch.main([*argv, "--workers", "0"])
    assert "workers=0" in capsys.readouterr().err


@pytest.mark.notebook
def test_a_failure_never_replaces_a_result(tmp_path):
    """Two workers on one run, as after a kill on a cluster: the one that fails comes last."""
    path = make_notebook(tmp_path, "a", "assert not __import__('os').environ.get('BAD')", WRITES)
    (run,) = plan_of([path]).runs
    first = execute(run, tmp_path, 60)
    body = (tmp_path / f"{run.id}.ipynb").read_bytes()
    os.environ["BAD"] = "1"
    try:
        assert execute(run, tmp_path, 60) == first
    finally:
        del os.environ["BAD"]
    assert finished(tmp_path, run) == first
    assert (tmp_path / f"{run.id}.ipynb").read_bytes() == body


@pytest.mark.notebook
def test_one_that_never_ends_is_ended(tmp_path):
    slow = make_notebook(tmp_path, "slow", "import time\ntime.sleep(60)", WRITES)
    made = plan_of([slow], timeout=4)
    start = time.monotonic()
    (row,) = batch.sweep(made, tmp_path / "out")
    assert row["status"] == "failed" and "timed out" in row["error"]
    assert time.monotonic() - start < 30


# Python runs it in its own start, here to end kernels before they answer; `starts` counts them.
DIES_EARLY = """import os, pathlib, sys
if "ipykernel_launcher" in sys.orig_argv:
    starts = pathlib.Path(__file__).with_name("starts")
    starts.write_text(starts.read_text() + "+")
    if len(starts.read_text()) < FROM:
        os._exit(1)"""


@pytest.mark.notebook
@pytest.mark.parametrize("good", [2, 3, 4])
def test_a_kernel_that_dies_in_its_start_is_started_again(tmp_path, good):
    (tmp_path / "starts").write_text("")
    (tmp_path / "sitecustomize.py").write_text(DIES_EARLY.replace("FROM", str(good)))
    made = plan_of([make_notebook(tmp_path, "a", WRITES)])
    (row,) = batch.sweep(made, tmp_path / "out")
    assert len((tmp_path / "starts").read_text()) == min(good, 3)
    assert row["attempt"] == 1  # it costs no attempt: the notebook had no part in it
    assert (row["status"], row["error"]) == (
        ("ok", "") if good <= 3 else ("failed", f"RuntimeError: {DIED_EARLY}")
    )


@pytest.mark.notebook
def test_two_at_work_in_one_folder(tmp_path):
    from filelock import FileLock

    (tmp_path / "out").mkdir()
    made = plan_of([make_notebook(tmp_path, "a", WRITES)])
    with FileLock(tmp_path / "out" / ".lock"):
        with pytest.raises(ValueError, match="another run is at work"):
            batch.sweep(made, tmp_path / "out")


KILLS_WORKER = """import os, pathlib, signal
if draft_length == 2 and not pathlib.Path(FLAG).exists():
    ONCE
    os.kill(os.getppid(), signal.SIGKILL)
    __import__('time').sleep(30)"""


@pytest.mark.notebook
@pytest.mark.slow
@pytest.mark.parametrize("always", [False, True])
def test_the_death_of_a_worker_costs_no_run(tmp_path, always):
    flag = repr(str(tmp_path / "flag"))
    cell = KILLS_WORKER.replace("ONCE", "pass" if always else f"pathlib.Path({flag}).touch()")
    make_notebook(tmp_path, "a", cell.replace("FLAG", flag), WRITES)
    text = "notebooks: [a.ipynb]\ngrid: {draft_length: [1, 2, 3, 4]}\nworkers: 2"
    made = read_sweep(make_sweep(tmp_path, text))
    rows = batch.sweep(made, tmp_path / "out")
    states = [row["status"] for row in rows]
    assert states == (["ok", "failed", "ok", "ok"] if always else ["ok"] * 4)
    if always:
        assert rows[1]["error"] == "its worker died 3 times (BrokenProcessPool)"
        table = collect(tmp_path / "out")  # it is in the table, and its notebook is kept
        assert list(table[table["status"] == "failed"]["run"]) == [rows[1]["id"]]
        kept = (tmp_path / "out" / f"{rows[1]['id']}.ipynb").read_text()
        assert "This run failed" in kept
    assert not list((tmp_path / "out").glob(".work-*"))


@pytest.mark.notebook
def test_a_pool_may_break_while_runs_are_handed_out(tmp_path, monkeypatch):
    real, pools = scheduler.local, []

    def local(plan):
        pools.append(real(plan))
        if len(pools) == 1:

            def submit(*_):
                raise BrokenProcessPool("a worker has just died")

            monkeypatch.setattr(pools[0], "submit", submit)
        return pools[-1]

    monkeypatch.setattr(scheduler, "local", local)
    (row,) = batch.run([make_notebook(tmp_path, "a", WRITES)], tmp_path / "out")
    assert row["status"] == "ok" and len(pools) == 2


# ---- killed and resumed

SWEEP = """notebooks: [a.ipynb]
grid: {draft_length: [1, 2, 3]}
seeds: 2
workers: 2
"""


def lasting(table: pd.DataFrame) -> pd.DataFrame:
    """What must be the same in a sweep that was killed: all but clocks and attempts."""
    return table.drop(columns=["finished"]).sort_values(["run", "prompt"], ignore_index=True)


def start(path: Path, out: Path, **env) -> subprocess.Popen:
    command = [sys.executable, "-m", "specnb.batch", "sweep", str(path), "--out", str(out)]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, **env},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A sweep of six, its table, and how long it took."""
    folder = tmp_path_factory.mktemp("sweep")
    make_notebook(folder, "a", "import time\ntime.sleep(0.5)", WRITES)
    path, began = make_sweep(folder, SWEEP), time.monotonic()
    assert start(path, folder / "whole").wait(120) == 0
    return path, collect(folder / "whole"), time.monotonic() - began


@pytest.mark.notebook
@pytest.mark.slow
def test_killed_at_any_moment_and_resumed(undisturbed, tmp_path):
    path, whole, seconds = undisturbed
    rng, n_left = random.Random(4), []
    for moment in range(3):
        out = tmp_path / str(moment)
        process = start(path, out)
        time.sleep(rng.uniform(0.3, 0.95) * seconds)
        process.send_signal(signal.SIGKILL)  # the process alone: nobody ends its workers for it
        process.wait()
        done = [read_row(p) for p in out.glob("a-*.json")]
        assert not any(isinstance(row, str) for row in done)  # whole or absent
        n_left.append(6 - len(done))
        rows = batch.sweep(read_sweep(path), out)
        assert [row["status"] for row in rows] == ["ok"] * 6
        table = collect(out)
        assert not table.duplicated(["run", "prompt"]).any()
        pd.testing.assert_frame_equal(lasting(table), lasting(whole))
    assert max(n_left) > 0  # at least one was killed with work left


AT_WORK = """import subprocess, time
from pathlib import Path
from specnb.files import write_whole


def work(path):
    kernel = subprocess.Popen(["sleep", "300"])
    write_whole(Path(path), str(kernel.pid))
    time.sleep(300)
"""
STARTS = """import sys
from at_work import work
from specnb.batch import plan, scheduler

scheduler.local(plan.Plan(())).submit(work, sys.argv[1]).result()
"""


@pytest.mark.slow
def test_a_killed_sweep_leaves_no_kernel(tmp_path):
    """Not even one in its start, when it does not yet look whether its parent lives."""
    (tmp_path / "at_work.py").write_text(AT_WORK)
    (tmp_path / "starts.py").write_text(STARTS)
    told = tmp_path / "pid"
    process = subprocess.Popen([sys.executable, str(tmp_path / "starts.py"), str(told)])
    until(told.is_file)
    kernel = psutil.Process(int(told.read_text()))
    process.send_signal(signal.SIGKILL)
    process.wait()
    until(lambda: not kernel.is_running() or kernel.status() == psutil.STATUS_ZOMBIE)


NO_GUARD = """import multiprocessing, sys
from pathlib import Path
from specnb import batch

with Path("runs.txt").open("a") as file:
    file.write("run\\n")
rows = batch.run(["a.ipynb"], "out", {"draft_length": 7})
assert sys.modules["__main__"].NO_GUARD
"""


@pytest.mark.notebook
def test_a_script_needs_no_guard(tmp_path):
    """Its workers do not run it again, which would start workers, and so on."""
    make_notebook(tmp_path, "a", WRITES)
    (tmp_path / "script.py").write_text("NO_GUARD = True\n" + NO_GUARD)
    process = subprocess.run(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr
    assert (tmp_path / "runs.txt").read_text() == "run\n"
    rows = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [(row["status"], row["attempt"]) for row in rows] == [("ok", 1)]


def until(holds, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.notebook
@pytest.mark.slow
def test_killed_in_a_write_and_resumed(undisturbed, tmp_path):
    path, whole, _ = undisturbed
    (tmp_path / "site").mkdir()
    flag = tmp_path / "flag"
    code = CUT.format(flag=str(flag))
    (tmp_path / "site" / "sitecustomize.py").write_text(code)
    out = tmp_path / "out"
    there = os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")])
    assert start(path, out, PYTHONPATH=there).wait(60) == -signal.SIGKILL and flag.exists()
    half = list(out.glob(".a-*.json.*.tmp"))
    assert half and not list(out.glob("a-*.json"))
    with pytest.raises(ValueError, match="no result"):
        collect(out)
    assert {row["status"] for row in batch.sweep(read_sweep(path), out)} == {"ok"}
    pd.testing.assert_frame_equal(lasting(collect(out)), lasting(whole))
    assert not list(out.glob(".*.tmp"))


@pytest.mark.notebook
@pytest.mark.slow
def test_half_a_row_would_be_noticed(undisturbed, tmp_path):
    """What an unsafe write leaves behind: it is neither counted nor trusted, but run again."""
    path, whole, _ = undisturbed
    made, out = read_sweep(path), tmp_path / "out"
    shutil.copytree(path.parent / "whole", out)
    victim = out / f"{made.runs[0].id}.json"
    victim.write_text(victim.read_text()[:200])
    assert collect(out)["run"].nunique() == 5
    batch.sweep(made, out)
    pd.testing.assert_frame_equal(lasting(collect(out)), lasting(whole))


def test_a_folder_without_a_result_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no result of a run"):
        collect(tmp_path)
    (tmp_path / "a-0123456789abcdef.json").write_text('{"half')
    with pytest.raises(ValueError, match="no result of a run"):
        collect(tmp_path)


# ---- a cluster


@pytest.mark.notebook
@pytest.mark.slow
def test_a_dask_cluster_loses_a_worker(undisturbed, tmp_path):
    path, whole, _ = undisturbed
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{probe.getsockname()[1]}"

    def dask(*words: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "distributed.cli." + words[0], *words[1:]]
        log = (tmp_path / f"{words[0]}.log").open("ab")
        more = {"cwd": tmp_path, "stdout": log, "stderr": log, "start_new_session": True}
        return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, **more)

    quiet = ("--no-dashboard",)
    processes = [
        dask("dask_scheduler", "--host", "127.0.0.1", "--port", address[-5:].lstrip(":"), *quiet)
    ]
    single = ("--nthreads", "1", "--no-nanny", "--host", "127.0.0.1", *quiet)
    try:
        processes += [dask("dask_worker", address, *single) for _ in range(2)]
        from distributed import Client

        with Client(address, timeout=60) as client:
            client.wait_for_workers(2, timeout=60)
        sweeping = subprocess.Popen(
            [
                *(sys.executable, "-m", "specnb.batch", "sweep", str(path)),
                *("--out", str(tmp_path / "out"), "--scheduler", address),
            ],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(600):  # until somebody is at work
            if list((tmp_path / "out").glob(".work-*")):
                break
            time.sleep(0.1)
        os.killpg(processes[-1].pid, signal.SIGKILL)
        errors = sweeping.communicate(timeout=180)[1]
        assert sweeping.returncode == 0, errors
        wide = dask("dask_worker", address, "--nthreads", "3", *single[2:])
        processes.append(wide)
        with Client(address, timeout=60) as client:
            client.wait_for_workers(2, timeout=60)
        with pytest.raises(ValueError, match="3 tasks at once; start dask worker"):
            scheduler.cluster(address)
    finally:
        for process in processes:
            os.killpg(process.pid, signal.SIGKILL) if process.poll() is None else None
            process.wait()
    table = collect(tmp_path / "out")
    assert not table.duplicated(["run", "prompt"]).any()
    same = lasting(table).drop(columns="machine")
    pd.testing.assert_frame_equal(same, lasting(whole).drop(columns="machine"))


@pytest.mark.slow
def test_nobody_at_the_address():
    with pytest.raises(ValueError, match="nobody answers there"):
        scheduler.cluster("tcp://127.0.0.1:9")


# ---- collected


def a_row(**more) -> dict:
    row = {"id": "a-1", "notebook": "a", "status": "ok", "parameters": {"seed": 3, "width": 2}}
    row |= {"seed": 3, "headline": {"tau": 2.5}, "measurements": [], "versions": {"torch": "2"}}
    row |= {"seconds": 1.0}
    return row | {"machine": "m", "threads": 1, "finished": "now", "error": ""} | more


def test_foreign_files_are_reported_and_left_out(tmp_path, capsys):
    (tmp_path / "a-1.json").write_text(json.dumps(a_row()))
    foreign = {
        "broken.json": "{",
        "list.json": "[1]",
        "empty.json": "{}",
        "code.json": '__import__("os").system("true")',
        "b-2.json": json.dumps(a_row(id="../../etc/passwd")),
        "c-3.json": json.dumps(a_row(id="c-3", headline=[])),
    }
    for name, text in foreign.items():
        (tmp_path / name).write_text(text)
    table = collect(tmp_path)
    said = capsys.readouterr().err
    assert list(table["run"]) == ["a-1"]
    for name in foreign:
        assert f"left out {name}: " in said
    assert "its id '../../etc/passwd' is no plain name" in said and "it has no headline" in said
    assert finished(tmp_path, plan.Run(Path("b.ipynb"), {}, {}, "b-2")) is None


def test_the_table_is_tidy(tmp_path):
    one = {"task": "caption", "method": "chain", "prompt": 0, "tokens": 12, "target_calls": 4}
    one |= {"seconds": 0.2, "plain_seconds": 1.0, "plain_tokens": 20, "unknown": 1}
    rows = [a_row(measurements=[one, one | {"prompt": 1, "target_calls": 3}]), a_row(id="a-2")]
    for row in rows:
        (tmp_path / f"{row['id']}.json").write_text(json.dumps(row))
    (tmp_path / "summary.json").write_text("[]")
    table = collect(tmp_path)
    assert list(table["block_efficiency"][:2]) == [3.0, 4.0] and len(table) == 3
    assert list(table["speedup"][:2]) == pytest.approx([3.0, 3.0])
    assert list(table["param.width"]) == [2] * 3 and list(table["figure.tau"]) == [2.5] * 3
    assert "unknown" not in table and list(table["seed"]) == [3] * 3
    for again in (
        pd.read_parquet(tmp_path / "table.parquet"),
        pd.read_csv(tmp_path / "table.csv", keep_default_na=True),
    ):
        assert list(again.columns) == list(table.columns) and len(again) == 3
        assert list(again["tokens"][:2]) == [12, 12]


def test_rows_of_other_code_are_named_and_left_out(tmp_path, capsys):
    for name in ("a-1", "a-2"):
        (tmp_path / f"{name}.json").write_text(json.dumps(a_row(id=name)))
    (tmp_path / "plan.json").write_text('["a-2"]')
    assert list(collect(tmp_path)["run"]) == ["a-2"]
    assert "left out a-1.json: it is not of the last sweep" in capsys.readouterr().err


def test_an_odd_row_stops_nobody(tmp_path, capsys):
    one = {"task": "t", "method": "m", "prompt": 0, "tokens": 12, "target_calls": 4, "seconds": 1}
    odd = [one | {"tokens": "12"}, {"x": 1}, 7]
    rows = [a_row(id="a-1", measurements=[one, *odd]), a_row(id="a-2", parameters={"width": "4"})]
    for row in rows:
        (tmp_path / f"{row['id']}.json").write_text(json.dumps(row))
    table = collect(tmp_path)
    assert list(table["param.width"]) == ["2", "4"] and table["speedup"].isna().all()
    assert "left out of a-1: 3 lines" in capsys.readouterr().err


def test_estimates_are_ratios_of_sums_with_intervals():
    rng = np.random.default_rng(1)
    n = 400
    frame = pd.DataFrame(
        {
            "method": ["a"] * n + ["b"] * n,
            "tokens": 60.0,
            "target_calls": np.r_[rng.integers(10, 21, n), rng.integers(20, 41, n)],
            "seconds": 0.1,
            "plain_seconds": np.r_[np.full(n, 0.2), np.full(n, 0.1)],
            "plain_tokens": 60.0,
        }
    )
    found = estimates(frame, ["method"]).set_index("method")
    for name in "ab":
        mine = frame[frame["method"] == name]
        ratio = mine["tokens"].sum() / mine["target_calls"].sum()
        line = found.loc[name]
        assert line["block_efficiency"] == pytest.approx(ratio)
        assert line["block_efficiency_low"] < ratio < line["block_efficiency_high"]
        spread = line["block_efficiency_high"] - line["block_efficiency_low"]
        calls = mine["target_calls"]
        theory = 2 * 1.96 * ratio * calls.std() / calls.mean() / n**0.5
        assert spread == pytest.approx(theory, rel=0.15)
    assert list(found["speedup"]) == pytest.approx([2.0, 1.0])
    with pytest.raises(ValueError, match="no column 'budget'"):
        estimates(frame, ["budget"])


def test_acceptance_by_position_from_the_lengths_that_were_kept():
    counted = ["1 0 3", "2 2", "4.0", None]  # a column of single numbers comes back as floats
    frame = pd.DataFrame({"method": "a", "prompt": range(4), "accepted_lengths": counted})
    found = positions(frame, ["method"])
    assert list(found["position"]) == [1, 2] and set(found["n"]) == {3}
    assert list(found["joint"]) == pytest.approx([5 / 12, 3 / 12])
    assert list(found["conditional"]) == pytest.approx([5 / 12, 3 / 5])
    for name in ("joint", "conditional"):
        assert (found[f"{name}_low"] <= found[name]).all()
        assert (found[name] <= found[f"{name}_high"]).all()
    with pytest.raises(ValueError, match="no line has 'accepted_lengths'"):
        positions(frame.assign(accepted_lengths=None), ["method"])


def test_acceptance_by_class_of_word():
    """Sums come before shares; a class that was never met has no line."""
    said = ["function 9/10, seen 1/4", "function 1/2", "", None]
    frame = pd.DataFrame({"method": "a", "prompt": range(4), "kept_by_word": said})
    found = by_word(frame, ["method"])
    assert list(found["word"]) == ["function", "seen"] and set(found["n"]) == {2}
    assert list(found["examined"]) == [12, 4]
    assert list(found["share"]) == pytest.approx([10 / 12, 1 / 4])
    assert (found["share_low"] <= found["share"]).all()
    assert (found["share"] <= found["share_high"]).all()
    for nothing in (frame.assign(kept_by_word=None), frame.drop(columns="kept_by_word")):
        with pytest.raises(ValueError, match="no line has 'kept_by_word'"):
            by_word(nothing, ["method"])


def test_what_was_measured_on_one_prompt_is_drawn_together():
    """Nine lines on a prompt are no nine prompts: the interval must not shrink."""
    rng = np.random.default_rng(2)
    once = pd.DataFrame({"method": "a", "tokens": 60.0, "target_calls": rng.integers(10, 30, 50)})
    once = once.assign(seconds=0.1, plain_seconds=0.2, plain_tokens=60.0, prompt=range(50), seed=0)
    many = pd.concat([once] * 9, ignore_index=True)
    names = ["n", "block_efficiency", "block_efficiency_low", "block_efficiency_high"]
    one, nine = (estimates(table, ["method"])[names].iloc[0] for table in (once, many))
    assert list(nine) == pytest.approx(list(one)) and nine["n"] == 50
    apart = many.assign(prompt=range(len(many)))  # were they prompts, it would
    wide, narrow = (
        x.iloc[3] - x.iloc[2] for x in (one, estimates(apart, ["method"])[names].iloc[0])
    )
    assert wide > 2.5 * narrow


# ---- the same by papermill alone, and the report


@pytest.mark.notebook
def test_papermill_alone_means_the_same(tmp_path):
    path = make_notebook(tmp_path, "a", WRITES)
    (tmp_path / "alone").mkdir()
    papermill.execute_notebook(
        path,
        tmp_path / "alone" / "out.ipynb",
        parameters={"draft_length": 7, "out_dir": str(tmp_path / "alone")},
        progress_bar=False,
    )
    (row,) = batch.run([path], tmp_path / "out", {"draft_length": 7})
    alone = json.loads((tmp_path / "alone" / "a.json").read_text())
    assert alone["headline"] == row["headline"] and alone["measurements"] == row["measurements"]


@pytest.mark.notebook
@pytest.mark.slow
def test_the_report_of_a_sweep(undisturbed, tmp_path, capsys):
    path, whole, _ = undisturbed
    out = tmp_path / "out"
    shutil.copytree(path.parent / "whole", out)
    assert batch.main(["collect", str(out)]) == 0
    assert "12 lines of 6 runs" in capsys.readouterr().out
    bad = json.loads(next(out.glob("a-*.json")).read_text())
    bad |= {"id": "a-bad", "status": "failed", "error": "it broke", "measurements": []}
    (out / "a-bad.json").write_text(json.dumps(bad))
    (out / "plan.json").unlink()  # or it would be none of the sweep's
    assert batch.main(["report", str(out)]) == 0
    page = (out / "report.html").read_text()
    assert "7 runs, 13 lines" in page and "it broke" in page
    assert page.count("Plotly.newPlot") >= 2  # against draft length
    tau = whole["tokens"].sum() / whole["target_calls"].sum()
    assert f"{tau:.2f} (" in page


# ---- what is printed


@pytest.mark.slow
@pytest.mark.notebook
def test_a_run_prints_no_noise(tmp_path):
    """A line per notebook and a table; no kernel's word on how it talks to its own machine."""
    path = make_notebook(tmp_path, "small", WRITES)
    command = [sys.executable, "-m", "specnb.batch", "run", str(path), "--out", str(tmp_path / "o")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "encryption" not in done.stderr and "WARNING" not in done.stderr
    printed = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    assert len(printed) == 5, printed  # progress, the table's head and row, two places
    assert max(map(len, printed)) < 140


def test_long_rows_are_cut_at_a_figure():
    row = {"notebook": "x", "seconds": 1.0, "status": "failed", "error": "E" * 200}
    text = batch.table([row | {"headline": {f"figure_{n}": 0.123456 for n in range(20)}}])
    assert "E" * 200 in text and text.endswith("0.1235, …")
    assert len(text.splitlines()[1].split("figure_0")[1]) < batch.FIGURES
