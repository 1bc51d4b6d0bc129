"""What is to be run: sweep files and command lines as a list of checked runs, each with its id."""

from __future__ import annotations

import ast
import difflib
import functools
import hashlib
import importlib.metadata
import itertools
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from specnb.files import sha256_of, sum_of

ROOT = Path(__file__).resolve().parents[2]
PATHS = ("target", "draft", "prompts", "folder")  # parameters that may name files
TIMEOUT_S = 600  # per run: one that never ends must not hold up the night
SAFE = re.compile(r"[A-Za-z0-9][\w.-]*")
CONFIG = re.compile(r"sn\.(?:notebook\.)?(\w*Config)\.from_notebook")
KEYS = (
    *("name", "notebooks", "parameters", "grid", "sets", "seeds"),
    *("workers", "threads", "timeout", "retries"),
)


@dataclass(frozen=True)
class Run:
    """One execution of a notebook. `given` is handed over, `parameters` are all that hold then."""

    notebook: Path
    given: Mapping[str, Any]
    parameters: Mapping[str, Any]
    id: str

    def __str__(self) -> str:
        words = ", ".join(f"{name}={value}" for name, value in self.given.items())
        return f"{self.notebook.stem} ({words})" if words else self.notebook.stem


@dataclass(frozen=True)
class Plan:
    """Runs, and how they are carried out. `threads` are for each worker, `timeout` is in seconds
    per run, `retries` counts further attempts after a failure."""

    runs: tuple[Run, ...]
    workers: int = 1
    threads: int | None = None
    timeout: float = TIMEOUT_S
    retries: int = 0
    name: str = field(default="", compare=False)

    def __post_init__(self):
        for name, least in (("workers", 1), ("timeout", 1), ("retries", 0)):
            _number(name, getattr(self, name), least)
        if self.threads is not None:
            _number("threads", self.threads, 1)


def _number(name: str, value: Any, least: int) -> None:
    kinds = (int, float) if name == "timeout" else (int,)
    if type(value) not in kinds or not math.isfinite(value) or value < least:
        kind = "number" if name == "timeout" else "whole number"
        raise ValueError(f"{name}={value!r}: give a {kind} >= {least}")


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint that names the most similar of the known names; empty where none is similar."""
    found = difflib.get_close_matches(name, list(known), n=1)
    return f", did you mean {found[0]!r}?" if found else ""


def plan_of(
    notebooks: Sequence[str | Path],
    sets: Sequence[Mapping[str, Any]] = ({},),
    base: Path | None = None,
    **how: Any,
) -> Plan:
    """Every notebook with every set of parameters. ValueError, before anything runs, where a
    notebook or a name is missing, a value is wrong, or two runs would be the same.

    A notebook is a name in notebooks/ or a path; paths, also those of models and prompts, begin at
    `base` (the working directory), or else at the project.
    """
    look_anew()
    base = (base or Path.cwd()).resolve()
    paths = [_notebook(str(notebook), base) for notebook in notebooks]
    for path in paths:
        if not SAFE.fullmatch(path.stem):
            raise ValueError(f"notebook {path.name}: rename it, letters, digits and _.- only")
    stems = [path.stem for path in paths]
    if len(set(stems)) < len(stems):
        raise ValueError(f"notebooks={stems}: one of them is named twice")
    runs = [run_of(path, _absolute(given, base)) for path in paths for given in sets]
    if not runs:
        raise ValueError("there is nothing to run: give at least one set of parameters")
    seen: dict[str, Run] = {}
    for run in runs:
        if run.id in seen:
            raise ValueError(f"{run} and {seen[run.id]} are the same run: leave one out")
        seen[run.id] = run
    return Plan(tuple(runs), **how)


def _absolute(given: Mapping[str, Any], base: Path) -> dict[str, Any]:
    """The same with whole paths: a run has a working directory of its own."""
    found = dict(given)
    for name in PATHS:
        there = base / str(given.get(name) or "")
        if given.get(name) and there.exists():
            found[name] = str(there.resolve())
    return found


def run_of(path: Path, given: Mapping[str, Any]) -> Run:
    """A checked run of one notebook."""
    import papermill

    if "out_dir" in given:
        raise ValueError("parameter 'out_dir' is set by the run itself: use out_dir= or --out")
    known = papermill.inspect_notebook(str(path))
    for name in sorted({*given, "out_dir"} - set(known)):
        there = ", ".join(known) or "none"
        hint = nearest(name, known)
        raise ValueError(f"{path.name} has no parameter {name!r}{hint}; it has: {there}")
    parameters = _checked(path, given, known)
    parameters.pop("out_dir")
    return Run(path, given, parameters, identity(path, parameters))


def _checked(path: Path, given: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """All parameters of the notebook with the given ones in place, judged by its own config."""
    from specnb import notebook as lessons

    source = "\n".join(text for _, text in _source(path))
    config = CONFIG.search(source)
    kind = getattr(lessons, config[1], None) if config else None
    every = {name: _default(path, name, info["default"]) for name, info in known.items()}
    every |= given
    if kind is None:  # a notebook of the reader's own
        return every
    try:
        checked = kind.from_notebook(every)
        if getattr(checked, "prompts", ""):
            lessons.items(checked)  # every line of the file is judged, and its pictures opened
        return every | asdict(checked)
    except ValueError as error:
        words = ", ".join(f"{name}={value}" for name, value in given.items())
        raise ValueError(f"{path.stem} ({words}): {error}") from None


def _default(path: Path, name: str, text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        raise ValueError(f"{path.name}: give {name} a plain value, not {text}") from None


def _source(path: Path) -> list[tuple[str, str]]:
    """Kind and text of every cell: neither outputs nor metadata."""
    import nbformat

    book = nbformat.read(path, as_version=4)
    return [(cell.cell_type, cell.source) for cell in book.cells]


def look_anew() -> None:
    """Forgets what files held: they may have changed since."""
    for sum_ in (_code, _data, _content):
        sum_.cache_clear()


def identity(path: Path, parameters: Mapping[str, Any]) -> str:
    """The content of a run as its id: what would give the same result has the same one."""
    held = {name: _content(value) if name in PATHS else value for name, value in parameters.items()}
    what = {
        "notebook": path.stem,
        "source": _source(path),
        "parameters": held,
        "code": _code(),
        "data": _data(),
        "versions": versions(),
    }
    text = json.dumps(what, sort_keys=True, default=str)
    return f"{path.stem}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def versions() -> dict[str, str]:
    """Of what computes the figures."""
    return {name: importlib.metadata.version(name) for name in ("torch", "transformers")}


@functools.cache
def _code() -> str:
    package = ROOT / "specnb"
    return sum_of(package, package.rglob("*.py"))


@functools.cache
def _data() -> str:
    """Models, tokenizer, texts and pictures in data/, but not what is said about them."""
    folder = ROOT / "data"
    parts = ("models", "tokenizer", "eval", "pictures")
    files = (path for part in parts for path in (folder / part).rglob("*") if path.is_file())
    return sum_of(folder, (path for path in files if path.suffix != ".md"))


@functools.cache
def _content(name: str) -> str:
    """What a model folder or a prompt file holds; a hub id stands for itself."""
    path = Path(name)
    if not name or not path.exists():
        return name
    if path.is_file():
        sums = [sha256_of(file) for file in [path, *_pictures_of(path)]]
        return hashlib.sha256("".join(sums).encode()).hexdigest()
    return sum_of(path, (file for file in path.rglob("*") if file.is_file()))


def _pictures_of(prompts: Path) -> list[Path]:
    """The pictures that a prompt file names, in its order."""
    rows = (json.loads(line) for line in prompts.read_text("utf-8").splitlines() if line.strip())
    return [prompts.parent / row["image"] for row in rows if row.get("image")]


# ------------------------------------------------------------------------------- sweep files


def read_sweep(path: str | Path) -> Plan:
    """The plan of a sweep file (YAML, see README). ValueError names what is wrong in it."""
    import yaml

    path = Path(path)
    if not path.is_file():
        raise ValueError(f"sweep {path}: no such file")
    try:
        asked = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path.name}: this is no YAML that is safe to read: {error}") from None
    if not isinstance(asked, dict):
        raise ValueError(f"{path.name}: write keys and values, such as notebooks: [...]")
    try:
        return _plan(asked, path)
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from None


def _plan(asked: dict, path: Path) -> Plan:
    for key in asked:
        if key not in KEYS:
            hint = nearest(str(key), KEYS)
            raise ValueError(f"unknown key {key!r}{hint}; known are {', '.join(KEYS)}")
    name = asked.get("name", path.stem)
    if not isinstance(name, str) or not SAFE.fullmatch(name):
        raise ValueError(f"name={name!r}: give a plain name, letters, digits and _.- only")
    notebooks = _list(asked, "notebooks")
    if not notebooks:
        raise ValueError("notebooks=[]: name at least one")
    for entry in notebooks:
        if not isinstance(entry, str):
            raise ValueError(f"notebooks: {entry!r}: give a name or a path")
    common = _mapping(asked, "parameters")
    grid = {key: _values(key, value) for key, value in _mapping(asked, "grid").items()}
    sets = [_entry(entry) for entry in _list(asked, "sets")]
    if grid or not sets:
        sets = [dict(zip(grid, row, strict=True)) for row in itertools.product(*grid.values())] + (
            sets
        )
    seeds = asked.get("seeds")
    if seeds is not None:
        if any("seed" in one for one in (common, *sets)):
            raise ValueError("seeds and a parameter seed: give one of them")
        if type(seeds) is int and seeds > 0:
            seeds = list(range(seeds))
        elif not isinstance(seeds, list) or not seeds:
            raise ValueError(f"seeds={seeds!r}: give a list, as in [1, 2], or a number >= 1")
        sets = [{**one, "seed": seed} for one in sets for seed in seeds]
    how = {key: asked[key] for key in ("workers", "threads", "timeout", "retries") if key in asked}
    sets = [{**common, **one} for one in sets]
    return plan_of(notebooks, sets, path.parent, **how, name=name)


def _notebook(entry: str, base: Path) -> Path:
    """A name in notebooks/, or a path."""
    shelf = {book.stem: book for book in (ROOT / "notebooks").glob("*.ipynb")}
    found = (base / entry).resolve()
    if not found.is_file():
        found = shelf.get(entry.removesuffix(".ipynb"), found)
    if not found.is_file():
        raise ValueError(f"notebook {entry!r}: no such file{nearest(entry, shelf)}")
    return found


def _list(asked: Mapping, key: str) -> list:
    value = asked.get(key) or []
    if not isinstance(value, list):
        raise ValueError(f"{key}={value!r}: give a list, as in [1, 2]")
    return value


def _mapping(asked: Mapping, key: str) -> dict:
    value = asked.get(key) or {}
    if not isinstance(value, dict):
        raise ValueError(f"{key}={value!r}: give names and values")
    return _named(value)


def _named(values: dict) -> dict:
    for name in values:
        if not isinstance(name, str):
            raise ValueError(f"{name!r} is no name of a parameter: write it in quotes")
    return values


def _values(name: str, values: Any) -> list:
    if not isinstance(values, list) or not values:
        raise ValueError(f"grid: {name}={values!r}: give a list of values, as in [1, 2]")
    return values


def _entry(entry: Any) -> dict:
    if not isinstance(entry, dict):
        raise ValueError(f"sets: {entry!r}: give names and values, as in {{draft_length: 5}}")
    return _named(entry)
