"""Knobs: what a setting of a method may be, said once, on the field of its dataclass.

From here come the check of its value, the slider of the panel, and the words of the documentation.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from specnb import arguments

KEY = "knob"  # of a field's metadata
WHOLE, NUMBER, FLAG, CHOICE, WHOLES = "whole", "number", "flag", "choice", "wholes"
RULE, OTHER = "rule", "other"
SPAN = 16  # the end of a slider for a whole number that nobody has limited


@dataclass(frozen=True)
class Knob:
    """What one setting may be.

    kind: one of whole, number, flag, choice, wholes (several whole numbers), rule (one of the
    choices, or a function), other. least, most: the limits of a number, `least` itself left out
    where `above` is true. upto: where a slider ends if no limit comes first; step: its step. words,
    unit: for the reader.
    """

    kind: str
    default: Any = None
    least: float = -math.inf
    most: float = math.inf
    above: bool = False
    finite: bool = True
    upto: float | None = None
    step: float | None = None
    choices: tuple[str, ...] = ()
    words: str = ""
    unit: str = ""

    def checked(self, name: str, value: Any) -> Any:
        """The value as Python's own kind; ValueError names it where it is out of range."""
        if self.kind == WHOLE:
            least = -(2**63) if math.isinf(self.least) else int(self.least)
            most = None if math.isinf(self.most) else int(self.most)
            return arguments.whole(name, value, least, most)
        if self.kind == NUMBER:
            return arguments.number(
                name, value, self.least, self.most, above=self.above, finite=self.finite
            )
        if self.kind == FLAG:
            return arguments.flag(name, value)
        if self.kind == RULE and callable(value) and not isinstance(value, type):
            return value
        if self.kind in (CHOICE, RULE) and value not in self.choices:
            choices = " or ".join(map(repr, self.choices))
            if self.kind == RULE:
                choices += ", or give a function of your own"
            raise ValueError(f"{name}={arguments.shown(value)}: choose {choices}")
        if self.kind == WHOLES:
            remedy = "give one number of children per level, as in (2, 2, 1)"
            least = 0 if math.isinf(self.least) else int(self.least)
            return arguments.wholes(name, value, least, remedy)
        return value

    @property
    def range(self) -> tuple[float, float]:
        """Where a slider begins and ends."""
        low = 0.0 if math.isinf(self.least) else self.least
        given = self.default if isinstance(self.default, int | float) else 0.0
        given = given if math.isfinite(given) else 0.0
        usual = max(SPAN, 4 * given) if self.kind == WHOLE else max(1.0, 2 * given)
        high = usual if self.upto is None else self.upto
        return min(low, given), min(self.most, max(high, given))


def knob(default: Any, *, kind: str = "", kw_only: bool = False, **limits: Any) -> Any:
    """A dataclass field that declares its knob: `length: int = knob(4, least=1, words="...")`.

    `limits` are fields of `Knob`; the kind is that of the default where it is not given.
    """
    declared = Knob(kind or _kind(default), default, **limits)
    told = True if kw_only else dataclasses.MISSING  # else the class says which it is
    return dataclasses.field(default=default, metadata={KEY: declared}, kw_only=told)


def rule_knob(*choices: str) -> dict[str, Knob]:
    """The metadata of a field that holds a verification rule: one of the names, or a function.

    Written `field(default=..., kw_only=True, metadata=rule_knob(...))`: type checkers see that the
    field is for keywords only, which they cannot see through `knob`.
    """
    return {KEY: Knob(RULE, choices[0], choices=choices, words="verification rule")}


def knobs_of(made_by: Callable[..., Any]) -> dict[str, Knob]:
    """The knobs of a dataclass or of a function, by name, in its order.

    A setting that declares none has the one that its default speaks of; without a default, or with
    one that is no plain value, it is "other".
    """
    declared = {}
    if isinstance(made_by, type) and dataclasses.is_dataclass(made_by):
        declared = {
            f.name: f.metadata[KEY] for f in dataclasses.fields(made_by) if KEY in f.metadata
        }
    found = {}
    for name, parameter in inspect.signature(made_by).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        default = None if parameter.default is parameter.empty else parameter.default
        found[name] = declared.get(name) or Knob(_kind(default), default)
    return found


def settle(settings: Any) -> None:
    """Checks every declared knob of a frozen dataclass, and stores it as Python's own kind."""
    for field in dataclasses.fields(settings):
        if KEY in field.metadata:
            value = field.metadata[KEY].checked(field.name, getattr(settings, field.name))
            object.__setattr__(settings, field.name, value)


def shape_of(branching: str) -> tuple[int, ...]:
    """The children per level of a text such as "3,2,1"."""
    parts = [part.strip() for part in branching.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ValueError(
            f"branching={branching!r}: give whole numbers >= 1 with commas, as in 3,2,1"
        )
    return tuple(map(int, parts))


def _kind(default: Any) -> str:
    kinds = {bool: FLAG, int: WHOLE, float: NUMBER}
    if isinstance(default, tuple) and default and all(type(one) is int for one in default):
        return WHOLES
    return kinds.get(type(default), OTHER)
