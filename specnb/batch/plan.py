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
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from typing import Any

from specnb import arguments, methods, paths, smollm2
from specnb.arguments import shown
from specnb.batch import configs, yaml_files
from specnb.files import json_rows, sha256_of, sum_of
from specnb.lesson import prompts
from specnb.lesson.config import OVERRIDDEN

DRAFTER = "drafter"
TEXTS = (DRAFTER, "select")  # parameters that hold a method's text
PATHS = ("target", "draft", "prompts", "folder", "drafter_checkpoint")  # that may name files
TIMEOUT_S = 600  # per run: one that never ends must not hold up the night
MOST_SEEDS = 100_000  # that a number may ask for
MOST_SETS = 100_000  # of parameters that a grid may ask for
SAFE = re.compile(r"[A-Za-z0-9][\w.-]*")
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
        words = _listed(self.given)
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
        checked = {"timeout": arguments.number("timeout", self.timeout, 1)}
        for name, least in (("workers", 1), ("retries", 0), ("threads", 1)):
            if name != "threads" or self.threads is not None:
                checked[name] = arguments.whole(name, getattr(self, name), least)
        for name, value in checked.items():
            object.__setattr__(self, name, value)


def _listed(given: Mapping[str, Any]) -> str:
    words = (f"{name}={v if isinstance(v, str) else shown(v)}" for name, v in given.items())
    return ", ".join(words)


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint that names the most similar of the known names; empty where none is similar."""
    found = difflib.get_close_matches(name, list(known), n=1)
    return f", did you mean {found[0]!r}?" if found else ""


def plan_of(
    notebooks: Sequence[str | Path],
    sets: Sequence[Mapping[str, Any]] = ({},),
    base: Path | None = None,
    allow_code: bool = False,
    **how: Any,
) -> Plan:
    """Every notebook with every set of parameters. ValueError, before anything runs, where a
    notebook or a name is missing, a value is wrong, or two runs would be the same.

    A notebook is a name in notebooks/ or a path; paths, also those of models and prompts, begin at
    `base` (the working directory), or else at the project. A notebook's own config class judges its
    parameters where it may be imported: from this package, from code that lies in `base`, and with
    `allow_code` from anywhere. Elsewhere the values are only read, which is said on stderr.
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
    kinds = {path: _config_of(path, base, allow_code) for path in paths}
    runs = [run_of(path, _absolute(given, base), kinds[path]) for path in paths for given in sets]
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
    for name in TEXTS:
        if isinstance(text := given.get(name), str):
            found[name] = methods.absolute(text, base)
    return found


def _check_code(sets: Sequence[Mapping[str, Any]], base: Path) -> None:
    """ValueError where a sweep names code that does not lie beside it.

    A file that is not there is refused as well: it would be looked for in the working directory.
    """
    for name, text in ((name, one.get(name)) for one in sets for name in TEXTS):
        for address in methods.addresses(text) if isinstance(text, str) else ():
            place = address.rpartition(":")[0]
            file = (base / place).resolve()
            beside = file.is_file() and file.is_relative_to(base.resolve())
            if not place.endswith(".py") or not beside:
                raise ValueError(
                    f"{name}={shown(text)}: a sweep runs code that lies beside it, as in "
                    "mine.py:Name, and no other; put the file there, or start the sweep with "
                    "--allow-code if you trust it"
                )


def _check_overridden(given: Mapping[str, Any]) -> None:
    """ValueError where a drafter stands beside parameters that it would override."""
    both = [name for name in OVERRIDDEN if name in given]
    if given.get(DRAFTER) and both:
        raise ValueError(
            f"drafter={shown(given[DRAFTER])} and {both[0]}={shown(given[both[0]])}: the drafter "
            "says it all; leave one of them out"
        )


def _config_of(path: Path, base: Path, allow_code: bool) -> Any:
    """The class that judges a notebook's parameters; None where there is none, or it may not."""

    def trusted(file: Path) -> bool:
        return allow_code or file.is_relative_to(base)

    try:
        return configs.config_of(path, _book(path), trusted)
    except configs.NotImported as why:
        print(f"{path.name}: its values are read, but not judged: {why}", file=sys.stderr)
        return None


def run_of(path: Path, given: Mapping[str, Any], kind: Any = None) -> Run:
    """A checked run of one notebook, judged by its config class `kind` where it has one."""
    if "out_dir" in given:
        raise ValueError("parameter 'out_dir' is set by the run itself: use out_dir= or --out")
    given = {name: _plain(name, value) for name, value in given.items()}
    _check_overridden(given)
    book = _book(path)
    known = _defaults(path, book)
    for name in sorted({*given, "out_dir"} - set(known)):
        there = ", ".join(known) or "none"
        hint = nearest(name, known)
        raise ValueError(f"{path.name} has no parameter {name!r}{hint}; it has: {there}")
    _check_kernel(path, book)
    parameters = _checked(path, given, known, kind)
    parameters.pop("out_dir")
    return Run(path, given, parameters, identity(path, parameters))


def _check_kernel(path: Path, book: Any) -> None:
    """ValueError where a notebook does not name its kernel, or that is not installed."""
    kernel = book.metadata.get("kernelspec", {})
    language = book.metadata.get("language_info", {}).get("name") or kernel.get("language")
    if not kernel.get("name") or not language:
        raise ValueError(
            f"{path.name}: it does not say which kernel runs it; open it in Jupyter, choose one, "
            "and save it"
        )
    if not _is_installed(kernel["name"]):
        raise ValueError(
            f"{path.name}: its kernel {shown(kernel['name'])} is not installed here; install it, "
            "or choose another one in Jupyter and save the notebook"
        )


@functools.cache
def _is_installed(kernel: str) -> bool:
    import nbformat
    from nbclient import NotebookClient

    client = NotebookClient(nbformat.v4.new_notebook(), kernel_name=kernel)
    try:
        return client.create_kernel_manager().kernel_spec is not None
    except KeyError:  # NoSuchKernel
        return False


def _plain(name: str, value: Any) -> Any:
    """A value as it can stand in a notebook and in a row."""
    value = str(value) if isinstance(value, Path) else arguments.plain(value)
    try:
        json.dumps(value)
    except (TypeError, ValueError):  # a date of YAML, an object, a list within itself
        raise ValueError(
            f"parameter {name}={shown(value)}: give a number, a text, or a list of them"
        ) from None
    return value


def _checked(
    path: Path, given: Mapping[str, Any], known: Mapping[str, str], kind: Any
) -> dict[str, Any]:
    """All parameters of the notebook with the given ones in place, judged by its own config."""
    every = {
        name: given[name] if name in given else _default(path, name, known[name]) for name in known
    }
    if kind is None:  # a notebook of the reader's own
        return every
    try:
        checked = kind.from_notebook(every)
        if getattr(checked, "prompts", ""):
            prompts.items(checked)  # every line of the file is judged, and its pictures opened
        is_one = is_dataclass(checked) and not isinstance(checked, type)
        judged = asdict(checked) if is_one else {}
        return every | {name: _plain(name, value) for name, value in judged.items()}
    except ValueError as error:
        raise ValueError(f"{path.stem} ({_listed(given)}): {error}") from None
    except Exception as error:  # whatever a class of the reader's own may raise
        words = f"{type(error).__name__}: {error}"
        raise ValueError(f"{path.stem} ({_listed(given)}): its config fails ({words})") from error


def _book(path: Path) -> Any:
    """A notebook; ValueError where the file is none."""
    import nbformat

    try:
        return nbformat.read(path, as_version=4)
    except (ValueError, AttributeError, KeyError, TypeError, nbformat.ValidationError) as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path.name}: this is no notebook ({why[:100]})") from None


def _defaults(path: Path, book: Any) -> dict[str, str]:
    """The names that the first cell tagged "parameters" sets, each with its default as written."""
    tagged = (cell for cell in book.cells if "parameters" in cell.metadata.get("tags", []))
    cell = next(tagged, None)
    if cell is None:
        return {}
    try:
        statements = ast.parse(cell.source).body
    except SyntaxError as error:
        raise ValueError(
            f"{path.name}: line {error.lineno} of the cell tagged 'parameters' is no Python; "
            "write names and values there, nothing else"
        ) from None
    found = {}
    for statement in statements:
        if isinstance(statement, ast.Assign):
            targets, value = statement.targets, statement.value
        elif isinstance(statement, ast.AnnAssign) and statement.value is not None:
            targets, value = [statement.target], statement.value
        else:
            continue
        for target in targets:
            if isinstance(target, ast.Name):
                found[target.id] = ast.unparse(value)
    return found


def _default(path: Path, name: str, written: str) -> Any:
    try:
        return _plain(name, ast.literal_eval(written))
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        raise ValueError(
            f"{path.name}: give {name} a plain value, not {shown(written)[1:-1]}"
        ) from None


def _source(path: Path) -> list[tuple[str, str]]:
    """Kind and text of every cell: neither outputs nor metadata."""
    return [(cell.cell_type, cell.source) for cell in _book(path).cells]


def look_anew() -> None:
    """Forgets what files held and which kernels there are: they may have changed since."""
    for found in (_code, _data, _content, _neighbours, _is_installed):
        found.cache_clear()


def identity(path: Path, parameters: Mapping[str, Any]) -> str:
    """The content of a run as its id: what would give the same result has the same one."""
    held = {name: _held(name, value) for name, value in parameters.items()}
    what = {
        "notebook": path.stem,
        "source": _source(path),
        "beside": _neighbours(path),
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
def _neighbours(path: Path) -> str:
    """What stands in the files beside a notebook that it imports; not in those that they import."""
    return sum_of(path.parent, configs.neighbours(path, _book(path)))


@functools.cache
def _code() -> str:
    """The package, its benches included: lessons take figures from some of them."""
    return sum_of(paths.PACKAGE, paths.PACKAGE.rglob("*.py"))


@functools.cache
def _data() -> str:
    """All that lies in data/, models and stored results among it, but not what is said about it."""
    files = (path for path in paths.DATA.rglob("*") if path.is_file() and path.suffix != ".md")
    return sum_of(paths.DATA, files)


def _held(name: str, value: Any) -> Any:
    """A parameter as part of an id: a path stands for what lies there."""
    if name == "target":
        value = smollm2.named(value)
    if name in TEXTS and value:
        files = (methods.source_of(address) for address in methods.addresses(value))
        return [value, *(sha256_of(file) for file in files if file and file.is_file())]
    if name not in PATHS or not isinstance(value, str) or not value or not Path(value).exists():
        return value
    return _content(value, name == "prompts")


@functools.cache
def _content(name: str, prompts: bool) -> str:
    """What a model folder or a file holds, with the pictures that a prompt file names."""
    path = Path(name)
    if path.is_file():
        sums = [sha256_of(file) for file in [path, *(_pictures_of(path) if prompts else ())]]
        return hashlib.sha256("".join(sums).encode()).hexdigest()
    return sum_of(path, (file for file in path.rglob("*") if file.is_file()))


def _pictures_of(prompts: Path) -> list[Path]:
    """The pictures that a prompt file names, in its order."""
    named = (row.get("image") for _, row in json_rows(prompts))
    return [prompts.parent / name for name in named if name and isinstance(name, str)]


# ------------------------------------------------------------------------------- sweep files


def read_sweep(path: str | Path, allow_code: bool = False) -> Plan:
    """The plan of a sweep file (YAML, see docs/sweeps.md). ValueError names what is wrong in it.

    A drafter of the reader's own must stand in a file beside the sweep, unless `allow_code`; a
    notebook's own config class judges its parameters under the same condition.
    """
    path = Path(paths.resolved(str(path)))
    if not path.is_file():
        raise ValueError(f"sweep {path}: no such file")
    asked = yaml_files.read(path)
    if not isinstance(asked, dict):
        raise ValueError(f"{path.name}: write keys and values, such as notebooks: [...]")
    try:
        return _plan(asked, path, allow_code)
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from None


def _plan(asked: dict, path: Path, allow_code: bool) -> Plan:
    for key in asked:
        if key not in KEYS:
            hint = nearest(str(key), KEYS)
            raise ValueError(f"unknown key {shown(key)}{hint}; known are {', '.join(KEYS)}")
    name = asked.get("name", path.stem)
    if not isinstance(name, str) or not SAFE.fullmatch(name):
        raise ValueError(f"name={shown(name)}: give a plain name, letters, digits and _.- only")
    notebooks = _list(asked, "notebooks")
    if not notebooks:
        raise ValueError("notebooks=[]: name at least one")
    for entry in notebooks:
        if not isinstance(entry, str):
            raise ValueError(f"notebooks: {shown(entry)}: give a name or a path")
    common = _mapping(asked, "parameters")
    grid = {key: _values(key, value) for key, value in _mapping(asked, "grid").items()}
    sets = [_entry(entry) for entry in _list(asked, "sets")]
    for where, names in (("grid", [grid]), ("sets", sets)):
        for key in common:
            if any(key in one for one in names):
                raise ValueError(f"{key}: it stands in parameters and in {where}; leave one out")
    if (n_sets := math.prod(map(len, grid.values()))) > MOST_SETS:
        raise ValueError(f"grid: it has {n_sets} sets of values; take {MOST_SETS} or fewer")
    if grid or not sets:
        sets = [dict(zip(grid, row, strict=True)) for row in itertools.product(*grid.values())] + (
            sets
        )
    seeds = asked.get("seeds")
    if seeds is not None:
        if any("seed" in one for one in (common, *sets)):
            raise ValueError("seeds and a parameter seed: give one of them")
        if isinstance(seeds, int) and not isinstance(seeds, bool) and 0 < seeds <= MOST_SEEDS:
            seeds = range(seeds)
        elif not isinstance(seeds, list) or not seeds:
            raise ValueError(
                f"seeds={shown(seeds)}: give a list, as in [1, 2], or a number >= 1 and <= "
                f"{MOST_SEEDS}"
            )
        seeds = [arguments.seed("seeds", one) for one in seeds]
        sets = [{**one, "seed": seed} for one in sets for seed in seeds]
    how = {key: asked[key] for key in ("workers", "threads", "timeout", "retries") if key in asked}
    sets = [{**common, **one} for one in sets]
    if not allow_code:
        _check_code(sets, path.parent)
    return plan_of(notebooks, sets, path.parent, allow_code, **how, name=name)


def _notebook(entry: str, base: Path) -> Path:
    """A name in notebooks/, or a path."""
    shelf = {book.stem: book for book in paths.NOTEBOOKS.glob("*.ipynb")}
    found = (base / entry).resolve()
    if not found.is_file():
        found = shelf.get(entry.removesuffix(".ipynb"), found)
    if not found.is_file():
        paths.need_share()
        raise ValueError(f"notebook {entry!r}: no such file{nearest(entry, shelf)}")
    return found


def _list(asked: Mapping, key: str) -> list:
    value = asked.get(key) or []
    if not isinstance(value, list):
        raise ValueError(f"{key}={shown(value)}: give a list, as in [1, 2]")
    return value


def _mapping(asked: Mapping, key: str) -> dict:
    value = asked.get(key) or {}
    if not isinstance(value, dict):
        raise ValueError(f"{key}={shown(value)}: give names and values")
    return _named(value)


def _named(values: dict) -> dict:
    for name in values:
        if not isinstance(name, str):
            raise ValueError(f"{shown(name)} is no name of a parameter: write it in quotes")
    return values


def _values(name: str, values: Any) -> list:
    if not isinstance(values, list) or not values:
        raise ValueError(f"grid: {name}={shown(values)}: give a list of values, as in [1, 2]")
    return values


def _entry(entry: Any) -> dict:
    if not isinstance(entry, dict):
        raise ValueError(f"sets: {shown(entry)}: give names and values, as in {{draft_length: 5}}")
    return _named(entry)
