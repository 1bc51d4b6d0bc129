"""A reader's answer to an exercise, held against the reference: one verdict, in words.

Nothing that a reader's function does stops a notebook, and the reference is never taken for theirs.
"""

from __future__ import annotations

import copy
import functools
import inspect
import math
import numbers
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Function = Callable[..., Any]
Mistake = tuple[Function, str]  # a typical wrong answer, and what to tell its author
Sign = tuple[Callable[..., bool], str]  # of (answer, *case): what an answer looks like, likewise

RELATIVE, ABSOLUTE = 1e-4, 1e-5  # float32 is right, a forgotten factor is not
MARK = "_specnb_reference"
MOST_ENTRIES = 8  # of a tensor that are shown
# What Python and torch say of common slips, and what to do about it.
SLIPS = (
    (
        "Boolean value of Tensor",
        "`min`, `max` and `if` compare single numbers; for every entry of a tensor take "
        "`clamp_min`, `clamp_max` or `torch.where`.",
    ),
    (
        "only one element tensors can be converted",
        "The functions of `math` take one number; torch has the same ones for whole tensors.",
    ),
    (
        "converted to Python scalars",
        "The functions of `math` take one number; torch has the same ones for whole tensors.",
    ),
    ("positional argument", "The arguments must be those of the cell as it was given."),
    ("is not defined", "A name is misspelt, or made in a cell that was not run."),
)


@dataclass(frozen=True)
class Exercise:
    """What an answer is held against.

    title: as printed, "exercise 1". function: the name that the reader defines. reference: the
    right function, its arguments named as the reader's. cases: its arguments, case by case. A
    mistake's hint is given where its function does in *every* case what the reader's does; a sign
    is looked for in the first case that differs. results: the names of the parts of an answer that
    has several.
    """

    title: str
    function: str
    reference: Function
    cases: Sequence[tuple[Any, ...]]
    mistakes: Sequence[Mistake] = ()
    signs: Sequence[Sign] = ()
    results: tuple[str, ...] = ()


def judge(exercise: Exercise, function: Any, strict: bool) -> Function:
    """Prints a verdict; gives back the reader's function where it is right, else the reference.

    With `strict`, an AssertionError in place of anything but "right".
    """
    n = len(exercise.cases)

    def find() -> tuple[str | None, str]:
        return problem(exercise, function), f"{n} of {n} cases right"

    return verdict(exercise.title, function, exercise.reference, strict, find)


def verdict(
    title: str,
    function: Any,
    reference: Function,
    strict: bool,
    find: Callable[[], tuple[str | None, str]],
) -> Function:
    """`judge` for any `find`, which gives the problem, None where there is none, and what to say
    in that case."""
    if getattr(function, MARK, False):
        again = (
            f"{title}: this is the reference that the notebook goes on with, not your answer. Run "
            "the cell with your function again, then this one."
        )
        if strict:
            raise AssertionError(again)
        print(again)
        return function
    found, right = find()
    if found is None:
        print(f"{title}: {right}")
        return function
    if strict:
        raise AssertionError(f"{title}: {found}")
    print(f"{title}: {found}\nThe notebook goes on with the reference.")
    return marked(reference)


class Unsound(ValueError):
    """What a reader's code did cannot be right; the words say why."""


def examined(
    name: str, function: Any, examine: Callable[[Function], tuple[str | None, str]]
) -> tuple[str | None, str]:
    """What `examine` finds of a reader's function, as `verdict` takes it.

    The problem is also that of a ValueError: `Unsound`, or what the production loop says itself.
    """
    if not callable(function):
        return f"{name} is not a function; give the function itself.", ""
    try:
        return examine(function)
    except NotImplementedError:
        return "not written yet.", ""
    except ValueError as wrong:
        return str(wrong), ""


def called(what: str, function: Function, *arguments: Any) -> Any:
    """What a reader's function gives back; Unsound where it stops, in words that begin so."""
    try:
        return function(*arguments)
    except (NotImplementedError, Unsound):
        raise
    except Exception as error:  # whatever a beginner's code raises is an answer to explain
        raise Unsound(f"{what} stops with {type(error).__name__}: {error}.") from error


def marked(reference: Function) -> Function:
    """The reference, so that a check that is run again knows it."""

    @functools.wraps(reference)
    def same(*arguments: Any, **named: Any) -> Any:
        return reference(*arguments, **named)

    setattr(same, MARK, True)
    return same


def problem(exercise: Exercise, function: Any) -> str | None:
    """What is wrong with an answer, in one or two sentences; None where it is right."""
    if not callable(function):
        return f"{exercise.function} is {_kind(function)}; give the function itself."
    cases = exercise.cases
    expected = [exercise.reference(*case) for case in cases]
    found = []
    for case in cases:
        outcome = _run(function, case)
        if isinstance(outcome.value, NotImplementedError):
            return "not written yet."
        found.append(outcome)
    for index, (outcome, wanted) in enumerate(zip(found, expected, strict=True)):
        if isinstance(outcome.value, Exception) or not _right(outcome.value, wanted):
            return _explained(exercise, function, index, found, expected)
        if outcome.changed:
            names = " and ".join(_names(exercise.reference)[i] for i in outcome.changed)
            return (
                f"the result is right, but {names} is changed in place: whoever calls the function "
                f"goes on with other numbers. Work on a copy, as `{names.split()[0]}.clone()` "
                "gives it."
            )
    return None


@dataclass(frozen=True)
class _Outcome:
    value: Any  # what came back, or the exception
    changed: list[int]  # the arguments that are not what they were


def _run(function: Function, case: tuple[Any, ...]) -> _Outcome:
    given = copy.deepcopy(case)
    try:
        value = function(*given)
    except Exception as error:  # whatever a beginner's code raises is an answer to explain
        value = error
    changed = [
        i
        for i, (now, before) in enumerate(zip(given, case, strict=True))
        if isinstance(before, (Tensor, list)) and not _identical(now, before)
    ]
    return _Outcome(value, changed)


def _identical(now: Any, before: Any) -> bool:
    return torch.equal(now, before) if isinstance(before, Tensor) else bool(now == before)


def _explained(
    exercise: Exercise,
    function: Function,
    index: int,
    found: Sequence[_Outcome],
    expected: Sequence[Any],
) -> str:
    """The first case that differs, number `index`, and why, where that is known."""
    case, outcome, wanted = exercise.cases[index], found[index], expected[index]
    got, call = outcome.value, _call(exercise, case)
    if isinstance(got, Exception):
        said = f"{call} stops with {type(got).__name__}: {got}."
        why = [hint for words, hint in SLIPS if words in str(got)]
        why += _hints(exercise, index, found)
        return " ".join([said, *why[:1]])
    if len(exercise.results) == 2 and all(
        not isinstance(one.value, Exception) and _right(_parts(one.value)[::-1], right)
        for one, right in zip(found, expected, strict=True)
    ):
        first, second = exercise.results
        return f"{call}: the two results are exchanged: give {first} first, then {second}."
    if form := _form(got, wanted, exercise.results):
        said = f"{call}: expected {_kind(wanted, exercise.results)}, got {_kind(got)}."
        return " ".join([said, *[*_hints(exercise, index, found, signs=False), form][:1]])
    again = _run(function, case).value
    if not isinstance(again, Exception) and not _alike(again, got):
        return (
            f"{call} gives one answer now and another the next time; it is to use its arguments, "
            "and no random numbers of its own."
        )
    said = f"{call}: {_apart(wanted, got, exercise.results)}"
    why = _hints(exercise, index, found)
    if outcome.changed and not why:
        names = " and ".join(_names(exercise.reference)[i] for i in outcome.changed)
        why = [f"It also changes {names} in place."]
    return " ".join([said, *why[:1]])


def _hints(
    exercise: Exercise, index: int, found: Sequence[_Outcome], signs: bool = True
) -> list[str]:
    """The hints that explain every case, then signs that fit the first wrong one, `index`."""
    case, got = exercise.cases[index], found[index].value
    fitting = [
        hint
        for wrong, hint in exercise.mistakes
        if all(
            _alike(_run(wrong, one).value, outcome.value)
            for one, outcome in zip(exercise.cases, found, strict=True)
        )
    ]
    for looks, hint in exercise.signs if signs else ():
        if not isinstance(got, Exception) and looks(got, *copy.deepcopy(case)):
            fitting.append(hint)
    return fitting


# -------------------------------------------------------------------------------- comparing


def _right(got: Any, wanted: Any) -> bool:
    """Whether an answer has the form and the value that are wanted."""
    return not _form(got, wanted, ()) and _near(got, wanted)


def _near(got: Any, wanted: Any) -> bool:
    """Whether values agree, as far as float32 tells; their forms do."""
    if isinstance(wanted, tuple):
        parts = _parts(got)
        return len(parts) == len(wanted) and all(map(_near, parts, wanted))
    if isinstance(wanted, list):
        return [int(one) for one in got] == wanted
    a = torch.as_tensor(got).detach().cpu().double()
    b = torch.as_tensor(wanted).double()
    return a.shape == b.shape and torch.allclose(a, b, rtol=RELATIVE, atol=ABSOLUTE)


def _alike(a: Any, b: Any) -> bool:
    """Whether two answers, wrong ones too, are the same; NaN is like NaN, an error like an error
    of its kind."""
    if isinstance(a, Exception) or isinstance(b, Exception):
        return type(a) is type(b)
    try:
        if isinstance(a, (tuple, list)) or isinstance(b, (tuple, list)):
            one, other = _parts(a), _parts(b)
            return len(one) == len(other) and all(map(_alike, one, other))
        x, y = (torch.as_tensor(one).detach().cpu().double() for one in (a, b))
    except (TypeError, ValueError, RuntimeError):
        return bool(a is b)
    return x.shape == y.shape and torch.allclose(x, y, rtol=RELATIVE, atol=ABSOLUTE, equal_nan=True)


def _parts(value: Any) -> tuple[Any, ...]:
    """The parts of a pair, also of a stacked tensor; a single value is one part."""
    if isinstance(value, Tensor):
        return tuple(value.unbind()) if value.ndim else (value,)
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


def _form(got: Any, wanted: Any, results: tuple[str, ...]) -> str:
    """What to do about an answer that is not the kind of thing that is wanted; "" where it is."""
    if got is None:
        return "It gives nothing back: is `return` missing?"
    if callable(got) and not isinstance(got, Tensor):
        return "It gives a function back: call it."
    if isinstance(got, tuple) and hasattr(got, "indices") and hasattr(got, "values"):
        name = type(got).__name__
        return f"`{name}` gives values and indices; take `.indices` or `.values` of it."
    if isinstance(wanted, tuple):
        parts = _parts(got)
        if len(parts) != len(wanted) or not isinstance(got, (tuple, list, Tensor)):
            return f"Give {len(wanted)} results, {' and '.join(results)}."
        for part, one, name in zip(parts, wanted, results or [""] * len(wanted), strict=True):
            if form := _form(part, one, ()):
                return f"This is about the {name}: {form[0].lower()}{form[1:]}"
        return ""
    if isinstance(wanted, Tensor):
        if not isinstance(got, Tensor):
            return (
                "`torch.tensor(...)` makes a tensor of it." if _countable(got) else "Give a tensor."
            )
        if got.shape == wanted.shape:
            if wanted.dtype == torch.bool and got.dtype != torch.bool:
                return "Give truth values: `.bool()` makes them."
            return "" if not got.is_complex() else "Give real numbers."
        if got.ndim > wanted.ndim and got.numel() == wanted.numel():
            return "There is an axis too many: `squeeze()` takes it away."
        return "The shapes differ."
    if isinstance(wanted, list):
        if isinstance(got, Tensor) and got.ndim == 1:
            return ""
        if isinstance(got, (list, tuple)) and all(_number(one) for one in got):
            return ""
        return "Give a list of token ids."
    if isinstance(got, bool):
        return "It decides; give the number that the decision rests on."
    if isinstance(got, Tensor) and got.ndim:
        return "`.item()` takes the number out." if got.numel() == 1 else "Give one number."
    if isinstance(got, complex):
        return "It is a root or a power of a number below 0: is a sum negative by rounding?"
    return "" if _number(got) else "Give a number."


def _number(value: Any) -> bool:
    """A number of Python's, numpy's or torch's."""
    if isinstance(value, Tensor):
        return value.ndim == 0 and not value.is_complex()
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _countable(value: Any) -> bool:
    if hasattr(value, "dtype"):  # numpy's
        return True
    return isinstance(value, (list, tuple)) and all(
        _number(one) or isinstance(one, bool) for one in value
    )


# -------------------------------------------------------------------------------------- words


def _names(function: Function) -> list[str]:
    return list(inspect.signature(function).parameters)


def _call(exercise: Exercise, case: tuple[Any, ...]) -> str:
    """The call, its arguments by name."""
    given = zip(_names(exercise.reference), case, strict=True)
    return f"{exercise.function}({', '.join(f'{name}={_word(one)}' for name, one in given)})"


def _apart(wanted: Any, got: Any, results: tuple[str, ...]) -> str:
    """Expected and got, with as many digits as it takes to see the difference."""
    if isinstance(wanted, tuple):
        for name, part, one in zip(results, _parts(got), wanted, strict=True):
            if not _near(part, one):
                return f"the {name}: {_apart(one, part, ())}"
    if isinstance(wanted, Tensor) and wanted.numel() > MOST_ENTRIES:
        place = int((torch.as_tensor(got).double() - wanted.double()).abs().nan_to_num(1).argmax())
        return f"entry {place}: {_apart(float(wanted[place]), float(got[place]), ())}"
    for digits in (4, 7, 10, 17):
        one, other = _word(wanted, digits), _word(got, digits)
        if one != other:
            break
    return f"expected {one}, got {other}."


def _word(value: Any, digits: int = 4) -> str:
    if isinstance(value, Tensor):
        if value.ndim == 0:
            return _word(value.item(), digits)
        if value.ndim > 1:
            return _kind(value)
        shown = [_word(one, digits) for one in value.flatten().tolist()[:MOST_ENTRIES]]
        more = [f"... {value.numel()} entries"] if value.numel() > MOST_ENTRIES else []
        return f"[{', '.join(shown + more)}]"
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(_word(one, digits) for one in value)}]"
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, numbers.Integral):
        return str(int(value))
    if isinstance(value, numbers.Real):
        return f"{float(value):.{digits}g}"
    return getattr(value, "__name__", None) or repr(value)


def _kind(value: Any, results: tuple[str, ...] = ()) -> str:
    """What kind of thing this is."""
    if results:
        return " and ".join(results)
    if value is None:
        return "None"
    if isinstance(value, Tensor):
        what = "truth values" if value.dtype == torch.bool else "numbers"
        return f"{what} of shape {list(value.shape)}" if value.ndim else "a number"
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, numbers.Real):
        return "a number"
    if isinstance(value, str):
        return "a text"
    if callable(value):
        return "a function"
    if isinstance(value, (list, tuple)):
        size = f"{len(value)} things" if len(value) != 1 else "one thing"
        return f"a {type(value).__name__} of {size}"
    return f"a {type(value).__name__}"


def said_of(guess: Any, answer: float, what: str, why: str, close: float = 0.1) -> str:
    """What to say of a number that was written down before the answer was known.

    `close` is how far off, as a share of the answer, still counts as close.
    """
    if guess is ... or guess is None:
        return f"{what}: write your own number down first."
    if not _number(guess) or not math.isfinite(float(guess)):
        return f"{what}: your guess is {_kind(guess)}; write a number."
    near = abs(float(guess) - answer) <= close * abs(answer)
    return f"{what}: {_word(answer)}; you said {_word(guess)}{', close' if near else ''}. {why}"
