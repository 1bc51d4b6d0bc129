"""A method is a value with a name: texts such as "Chain(16, stop=AdaEDL(0.5))", both ways.

Notebooks, sweeps, the panel, benches and records name a drafter by such a text. Known by name are
the classes of this package and what other packages register as entry points of the group
"specnb.methods"; a class or function of one's own has an address in front, `package.module:Name`
or `file.py:Name`. Nothing in a text is ever evaluated but such calls with literal arguments.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import functools
import hashlib
import importlib.metadata
import importlib.util
import inspect
import pkgutil
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from specnb import drafters, knobs, stopping
from specnb.arguments import shown
from specnb.drafters import Drafter

GROUP = "specnb.methods"
DRAFTERS = (
    drafters.Chain,
    drafters.GumbelTopK,
    drafters.StaticTree,
    drafters.StochasticBeam,
    drafters.IIDTree,
    drafters.TopKTree,
    drafters.BestFirst,
    drafters.BranchWhereUnsure,
    drafters.PromptLookup,
    drafters.SparseSelf,
    drafters.Hierarchy,
    drafters.Either,
    drafters.NoDraft,
)
RULES = (
    stopping.FixedLength,
    stopping.AdaEDL,
    stopping.MaxConfidence,
    stopping.SumEntropy,
    stopping.PathScore,
    stopping.SpecDecPP,
)
SELECTORS = (
    drafters.SinkRecent,
    drafters.Chunks,
    drafters.SparQ,
    drafters.LastVerification,
)
NAMED: tuple[type, ...] = (*DRAFTERS, *RULES, *SELECTORS)  # what a text knows without an address
LONGEST = 2000  # characters of a text
EXAMPLE = "Chain(16, stop=AdaEDL(0.5))"

# Texts in quotes are passed over; the rest of an address has no blanks, brackets or signs in it.
ADDRESS = re.compile(
    r"""'(?:[^'\\]|\\.)*' | "(?:[^"\\]|\\.)*"
    | (?P<address> (?:[A-Za-z]:(?=[\\/]))? [^\s,()='":\[\]]+ : [A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)""",
    re.VERBOSE,
)
# A whole text may have a file with blanks in its path.
FILE = re.compile(r"(?P<address>[^'\"()]*\.py:[A-Za-z_]\w*)(?P<call>\(.*\))?", re.DOTALL)

_files: dict[str, Path] = {}  # the files that modules of addresses were made of


def method(text: str, beside: str | Path = "") -> Drafter:
    """The drafter that a text names.

    `beside` is the folder that relative paths of `file.py:Name` start from; else the current one.
    ValueError, in one sentence, for whatever is wrong, with the nearest right name or knob.
    """
    found = _value(text, beside)
    if stopping.is_rule(found):
        raise ValueError(
            f"drafter={shown(text)}: {type(found).__name__} is a stopping rule; give it to a "
            f"drafter, as in {EXAMPLE}"
        )
    if isinstance(found, type) or not isinstance(found, Drafter):
        raise ValueError(
            f"drafter={shown(text)}: a drafter has start(pair, prompt, image, sampling); "
            f"{type(found).__name__} has not"
        )
    return found


def name_of(drafter: Any) -> str:
    """The text that gives an equal drafter (or rule): `method(name_of(d)) == d`.

    Positional knobs always stand there, the others where they differ from their default. ValueError
    where there is no such text: a class inside a function, an object that is no dataclass, a rule
    that was started already.
    """
    text = _text(drafter)
    if dataclasses.is_dataclass(drafter) and _value(text, "") != drafter:
        raise ValueError(
            f"drafter={shown(drafter)}: {text} gives another one; make its settings plain values "
            "of a frozen dataclass"
        )
    return text


def label_of(drafter: Any) -> str:
    """`name_of`, or the drafter's own repr where it has no text: for records and tables."""
    try:
        return name_of(drafter)
    except ValueError:
        return repr(drafter)


def addresses(text: str) -> tuple[str, ...]:
    """The addresses in a text, `module:Name` or `file.py:Name`, unread and not imported."""
    if whole := FILE.fullmatch(text.strip()):
        return whole["address"], *addresses(whole["call"] or "")
    return tuple(m["address"] for m in ADDRESS.finditer(text) if m["address"])


def absolute(text: str, beside: str | Path) -> str:
    """The text with the whole path of every file that lies in the folder `beside`."""
    folder = Path(beside)

    def moved(address: str) -> str:
        place, _, name = address.rpartition(":")
        there = folder / place
        if not place.endswith(".py") or not there.is_file():
            return address
        return f"{there.resolve().as_posix()}:{name}"

    start, rest = "", text.strip()
    if whole := FILE.fullmatch(rest):
        start, rest = moved(whole["address"]), whole["call"] or ""
    return start + ADDRESS.sub(lambda m: moved(m["address"]) if m["address"] else m[0], rest)


def source_of(address: str, beside: str | Path = "") -> Path | None:
    """The file that an address stands in; None where that is not known, as for `__main__`."""
    place = address.rpartition(":")[0]
    if place.endswith(".py"):
        return _path(place, beside)
    if module := sys.modules.get(place):
        file = getattr(module, "__file__", None)
        return Path(file) if file else None
    try:
        spec = importlib.util.find_spec(place)
    except (ImportError, ValueError):
        return None
    return Path(spec.origin) if spec and spec.has_location and spec.origin else None


def knobs_in(text: str, beside: str | Path = "") -> dict[str, tuple[knobs.Knob, Any]]:
    """The knobs of the class or function that a text names, with the values that it gives them.

    Those of its stopping rule follow as "stop.threshold". ValueError as of `method`.
    """
    method(text, beside)
    call, made = _read(text)
    return dict(_knobs(call, made, beside, ""))


def with_knobs(text: str, values: dict[str, Any], beside: str | Path = "") -> str:
    """The text with other values for some of its knobs, named as in `knobs_in`."""
    call, made = _read(text)
    return _written(call, made, beside, values, "")


def known() -> tuple[str, ...]:
    """Every name that needs no address: of this package, and what other packages register."""
    return tuple(dict.fromkeys([*(cls.__name__ for cls in NAMED), *_points()]))


# ----------------------------------------------------------------------------------- reading


def _read(text: str) -> tuple[ast.expr, dict[str, str]]:
    """The text as an expression, and the addresses that stand behind its placeholders."""
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"drafter={shown(text)}: give package:Class, or a text such as {EXAMPLE}")
    if len(text) > LONGEST:
        raise ValueError(f"drafter={shown(text)}: it is longer than {LONGEST} characters")
    behind: dict[str, str] = {}

    def placeholder(address: str) -> str:
        behind[name := f"_address_{len(behind)}"] = address
        return name

    stripped, start = text.strip(), ""
    if whole := FILE.fullmatch(stripped):
        start, stripped = placeholder(whole["address"]), whole["call"] or ""
    plain = start + ADDRESS.sub(
        lambda m: placeholder(m["address"]) if m["address"] else m[0], stripped
    )
    try:
        return ast.parse(plain, mode="eval").body, behind
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        why = error.msg if isinstance(error, SyntaxError) else "it is nested too deep"
        raise ValueError(
            f"drafter={shown(text)}: this cannot be read ({why}); write it as in {EXAMPLE}"
        ) from None


def _value(text: str, beside: str | Path) -> Any:
    call, behind = _read(text)
    try:
        return _made(call, behind, beside)
    except ValueError as error:
        words = str(error)
        raise ValueError(f"drafter={shown(text)}: {words}") from error.__cause__


def _made(node: ast.expr, behind: dict[str, str], beside: str | Path) -> Any:
    """What a call, or a bare name, gives."""
    maker, given = _given(node, behind, beside)
    values: dict[str, Any] = {}
    kinds = knobs.knobs_of(maker)
    for name, value in given.items():
        if isinstance(value, ast.Name) and kinds[name].kind == knobs.RULE:
            values[name] = _maker(value, behind, beside)  # the function itself, not what it gives
        elif isinstance(value, ast.Call | ast.Name):
            values[name] = _made(value, behind, beside)
        else:
            values[name] = _literal(name, value)
    title = _title(node, behind)
    try:
        made = maker(**values)
        if dataclasses.is_dataclass(made):
            knobs.settle(made)
    except ValueError:
        raise
    except TypeError as error:
        raise ValueError(f"{title} cannot be made with these settings ({error})") from None
    except Exception as error:  # whatever a class of the reader's own may raise
        raise ValueError(f"{title} failed ({type(error).__name__}: {error})") from error
    return made


def _given(
    node: ast.expr, behind: dict[str, str], beside: str | Path
) -> tuple[Callable[..., Any], dict[str, ast.expr]]:
    """Who makes the value of a call, and the settings that the text gives it, by name."""
    if not isinstance(node, ast.Call | ast.Name):
        raise ValueError(f"{ast.unparse(node)} is no method; write it as in {EXAMPLE}")
    maker, title = _maker(node, behind, beside), _title(node, behind)
    if isinstance(node, ast.Name):
        return maker, {}
    names = _positional(maker)
    if any(isinstance(one, ast.Starred) for one in node.args) or len(node.args) > len(names):
        listed = f"{', '.join(names)}" if names else "none"
        raise ValueError(f"{title} takes without a name: {listed}; {len(node.args)} are given")
    given = dict(zip(names, node.args, strict=False))
    known = list(knobs.knobs_of(maker))
    for keyword in node.keywords:
        if keyword.arg is None:
            raise ValueError(f"{title}: ** is not read; write every knob by its name")
        if keyword.arg not in known:
            raise ValueError(
                f"{title} has no knob {shown(keyword.arg)}{_nearest(keyword.arg, known)}"
            )
        if keyword.arg in given:
            raise ValueError(f"{title}: {keyword.arg} is given twice; leave one out")
        given[keyword.arg] = keyword.value
    return maker, given


def _positional(maker: Callable[..., Any]) -> list[str]:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [n for n, p in inspect.signature(maker).parameters.items() if p.kind in kinds]


def _literal(name: str, node: ast.expr) -> Any:
    """A number, text, truth value, None, or a tuple of such."""
    try:
        value = ast.literal_eval(node)
    except (ValueError, TypeError, RecursionError, MemoryError):
        value = object
    found = tuple(value) if isinstance(value, list) else value
    parts = found if isinstance(found, tuple) else (found,)
    if not all(isinstance(part, int | float | str | None) for part in parts):
        raise ValueError(
            f"{name}={ast.unparse(node)}: give a number, a text, True, False, None, a list of "
            "those, or a method with its knobs"
        )
    return found


# ------------------------------------------------------------------------------------ makers


def _title(node: ast.expr, behind: dict[str, str]) -> str:
    head = node.func if isinstance(node, ast.Call) else node
    name = ast.unparse(head)
    return behind.get(name, name)


def _maker(node: ast.expr, behind: dict[str, str], beside: str | Path) -> Callable[..., Any]:
    title = _title(node, behind)
    if ":" in title:
        return _addressed(title, str(beside))
    own = {cls.__name__: cls for cls in NAMED}
    if title in own:
        return own[title]
    if title in _points():
        return _loaded(title)
    near = _nearest(title, known())
    raise ValueError(
        f"{title} is no method that is known{near}; a class of your own has its address in front, "
        "as in mine.py:Name or package.module:Name"
    )


def _nearest(name: str, known: Iterable[str]) -> str:
    known = list(known)
    near = difflib.get_close_matches(name.lower(), [one.lower() for one in known], 1, 0.5)
    if near:
        return f"; did you mean {next(one for one in known if one.lower() == near[0])}?"
    return f"; known are {', '.join(known)}"


@functools.cache
def _points() -> dict[str, importlib.metadata.EntryPoint]:
    return {point.name: point for point in importlib.metadata.entry_points(group=GROUP)}


def _loaded(name: str) -> Callable[..., Any]:
    try:
        return _callable(_points()[name].load(), name)
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(
            f"{name}, which another package registers, cannot be imported ({error})"
        ) from error


def _addressed(address: str, beside: str) -> Callable[..., Any]:
    place, _, name = address.rpartition(":")
    try:
        if place.endswith(".py"):
            found: Any = module_of(_path(place, beside))
            for part in name.split("."):
                found = getattr(found, part)
        else:
            found = pkgutil.resolve_name(address)
    except ValueError:
        raise
    except AttributeError as error:
        raise ValueError(f"{address} cannot be imported ({error})") from error
    except Exception as error:  # whatever stands in a file of the reader's own
        raise ValueError(
            f"{address} cannot be imported ({type(error).__name__}: {error})"
        ) from error
    return _callable(found, address)


def _callable(found: Any, title: str) -> Callable[..., Any]:
    try:
        inspect.signature(found)
    except (TypeError, ValueError):
        raise ValueError(f"{title} is no class and no function, but {shown(found)}") from None
    return found


def _path(place: str, beside: str | Path) -> Path:
    return (Path(beside) / place).expanduser()


def module_of(path: Path) -> ModuleType:
    """A file as a module, read anew when it has changed; its neighbours can be imported there.

    ValueError where there is no such file; whatever the file itself raises is raised here, too.
    """
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file")
    path = path.resolve()
    content = path.read_bytes()
    mark = hashlib.sha256(content + str(path).encode()).hexdigest()[:16]
    name = f"specnb_own_{path.stem}_{mark}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader  # a .py file always has both
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look for their module there
    sys.path.insert(0, str(path.parent))
    try:
        exec(compile(content, str(path), "exec"), module.__dict__)  # the bytes that were hashed
    except BaseException:
        del sys.modules[name]
        raise
    finally:
        sys.path.remove(str(path.parent))
    _files[name] = path
    return module


# ----------------------------------------------------------------------------------- writing


def _text(thing: Any) -> str:
    cls = type(thing)
    if not dataclasses.is_dataclass(thing) and getattr(thing, "__dict__", True):
        raise ValueError(
            f"drafter={shown(thing)}: only a dataclass can be written as a text with its knobs"
        )
    parts, named = [], []  # a base class may have declared its keywords first
    for field in dataclasses.fields(thing) if dataclasses.is_dataclass(thing) else ():
        value = getattr(thing, field.name)
        written = _text_of_value(value)
        if field.init and not field.kw_only:
            parts.append(written)
        elif field.init and value != _default(field):
            named.append(f"{field.name}={written}")
    return f"{_head(cls)}({', '.join([*parts, *named])})"


def _default(field: dataclasses.Field) -> Any:
    made = field.default_factory
    return field.default if made is dataclasses.MISSING else made()


def _head(cls: type) -> str:
    """The name of a class, or its address where it has none."""
    if cls in NAMED:
        return cls.__name__
    address = f"{cls.__module__}:{cls.__qualname__}"
    points = (name for name, point in _points().items() if point.value == address)
    return next(points, None) or _address_of(cls)


def _address_of(cls: type | FunctionType) -> str:
    if "<" in cls.__qualname__:  # <locals>, <lambda>
        what = "class" if isinstance(cls, type) else "function"
        raise ValueError(
            f"drafter: {cls.__qualname__} stands inside a function and has no address; move the "
            f"{what} to the top of a file or notebook"
        )
    if path := _files.get(cls.__module__):
        here = Path.cwd()
        place = path.relative_to(here) if path.is_relative_to(here) else path
        return f"{place.as_posix()}:{cls.__qualname__}"
    return f"{cls.__module__}:{cls.__qualname__}"


def _text_of_value(value: Any) -> str:
    if isinstance(value, int | float | str | tuple | None):
        return repr(value)
    if inspect.isfunction(value):
        return _address_of(value)
    return _text(value)


# ------------------------------------------------------------------------------------- knobs


def _knobs(
    node: ast.expr, behind: dict[str, str], beside: str | Path, prefix: str
) -> Iterable[tuple[str, tuple[knobs.Knob, Any]]]:
    maker, given = _given(node, behind, beside)
    for name, knob in knobs.knobs_of(maker).items():
        value = given.get(name)
        if knob.kind == knobs.RULE and isinstance(value, ast.Name):
            continue  # a function has no knobs
        if isinstance(value, ast.Call | ast.Name):
            yield from _knobs(value, behind, beside, f"{prefix}{name}.")
        elif knob.kind != knobs.OTHER:
            yield prefix + name, (knob, _literal(name, value) if value else knob.default)


def _written(
    node: ast.expr, behind: dict[str, str], beside: str | Path, values: dict[str, Any], prefix: str
) -> str:
    maker, given = _given(node, behind, beside)
    positional, parts = _positional(maker), []
    named = False  # behind the first setting that is left out, the others need their name
    for name, knob in knobs.knobs_of(maker).items():
        if prefix + name in values:
            written = repr(values[prefix + name])
        elif isinstance(given.get(name), ast.Name) and knob.kind == knobs.RULE:
            written = _title(given[name], behind)
        elif isinstance(given.get(name), ast.Call | ast.Name):
            written = _written(given[name], behind, beside, values, f"{prefix}{name}.")
        elif name in given:
            written = ast.unparse(given[name])
        else:
            named = True
            continue
        parts.append(written if name in positional and not named else f"{name}={written}")
    return f"{_title(node, behind)}({', '.join(parts)})"
