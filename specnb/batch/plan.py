"""What is to be run: sweep files and command lines as a list of checked runs, each with its id."""

from __future__ import annotations

import ast
import difflib
import functools
import hashlib
import importlib.metadata
import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from specnb.files import sum_of

ROOT = Path(__file__).resolve().parents[2]
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
    if isinstance(value, bool) or not isinstance(value, int | float) or value < least:
        raise ValueError(f"{name}={value!r}: give a number >= {least}")
    if name != "timeout" and value != int(value):
        raise ValueError(f"{name}={value!r}: give a whole number")


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint that names the most similar of the known names; empty where none is similar."""
    found = difflib.get_close_matches(name, list(known), n=1)
    return f", did you mean {found[0]!r}?" if found else ""


def plan_of(
    notebooks: Sequence[str | Path], sets: Sequence[Mapping[str, Any]] = ({},), **how: Any
) -> Plan:
    """Every notebook with every set of parameters. ValueError, before anything runs, where a
    notebook or a name is missing, a value is wrong, or two runs would be the same."""
    paths = [Path(notebook).resolve() for notebook in notebooks]
    for path in paths:
        if not path.is_file():
            raise ValueError(f"notebook {path}: no such file")
        if not SAFE.fullmatch(path.stem):
            raise ValueError(f"notebook {path.name}: rename it, letters, digits and _.- only")
    stems = [path.stem for path in paths]
    if len(set(stems)) < len(stems):
        raise ValueError(f"notebooks={stems}: one of them is named twice")
    runs = [run_of(path, given) for path in paths for given in sets]
    seen: dict[str, Run] = {}
    for run in runs:
        if run.id in seen:
            raise ValueError(f"{run} and {seen[run.id]} are the same run: leave one out")
        seen[run.id] = run
    return Plan(tuple(runs), **how)


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
    return Run(path, dict(given), parameters, _id(path, parameters))


def _checked(path: Path, given: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """All parameters of the notebook with the given ones in place, judged by its own config."""
    from specnb import notebook as lessons

    source = _source(path)
    config = CONFIG.search("\n".join(text for _, text in source))
    if config is None:  # a notebook of the reader's own, without one
        return {name: given.get(name, info["default"]) for name, info in known.items()}
    kind = getattr(lessons, config[1])
    defaults = {name: ast.literal_eval(info["default"]) for name, info in known.items()}
    try:
        return asdict(kind.from_notebook({**defaults, **given}))
    except ValueError as error:
        words = ", ".join(f"{name}={value}" for name, value in given.items())
        raise ValueError(f"{path.stem} ({words}): {error}") from None


def _source(path: Path) -> list[tuple[str, str]]:
    """Kind and text of every cell: neither outputs nor metadata."""
    import nbformat

    book = nbformat.read(path, as_version=4)
    return [(cell.cell_type, cell.source) for cell in book.cells]


def _id(path: Path, parameters: Mapping[str, Any]) -> str:
    """The content of a run as a name: what would give the same result has the same id."""
    held = {
        name: _content(value) if name in ("target", "draft", "prompts") else value
        for name, value in parameters.items()
    }
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
    """Everything in data/ but the sweep files themselves and texts about it."""
    folder = ROOT / "data"
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".md")
    return sum_of(folder, (path for path in files if "sweeps" not in path.parts))


@functools.cache
def _content(name: str) -> str:
    """What a model folder or a prompt file holds; a hub id stands for itself."""
    path = Path(name)
    if not name or not path.exists():
        return name
    if path.is_file():
        return sum_of(path.parent, [path])
    return sum_of(path, (file for file in path.rglob("*") if file.is_file()))


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
    notebooks = [_notebook(entry, path) for entry in _list(asked, "notebooks")]
    if not notebooks:
        raise ValueError("notebooks=[]: name at least one")
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
        seeds = list(range(seeds)) if isinstance(seeds, int) else _list(asked, "seeds")
        sets = [{**one, "seed": seed} for one in sets for seed in seeds]
    how = {key: asked[key] for key in ("workers", "threads", "timeout", "retries") if key in asked}
    return plan_of(notebooks, [{**common, **one} for one in sets], **how, name=name)


def _notebook(entry: Any, path: Path) -> Path:
    """A name in notebooks/, or a path from the sweep file on."""
    if not isinstance(entry, str):
        raise ValueError(f"notebooks: {entry!r}: give a name or a path")
    shelf = {book.stem: book for book in (ROOT / "notebooks").glob("*.ipynb")}
    found = shelf.get(entry.removesuffix(".ipynb"))
    if found is None:
        found = (path.parent / entry).resolve()
        if not found.is_file():
            raise ValueError(f"notebook {entry!r}: no such notebook{nearest(entry, shelf)}")
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
    return value


def _values(name: str, values: Any) -> list:
    if not isinstance(values, list) or not values:
        raise ValueError(f"grid: {name}={values!r}: give a list of values, as in [1, 2]")
    return values


def _entry(entry: Any) -> dict:
    if not isinstance(entry, dict):
        raise ValueError(f"sets: {entry!r}: give names and values, as in {{draft_length: 5}}")
    return entry
