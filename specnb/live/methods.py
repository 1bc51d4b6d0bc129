"""The panel's methods by name, each a text of `specnb.methods` with places for the controls."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import ipywidgets as w

from specnb import knobs, methods
from specnb.drafters import Drafter
from specnb.live.page import LABELLED, NARROW, named, show
from specnb.models.base import Pair

MOST_NODES = 128  # of a tree that a slider may ask for: it is drawn, and drafted while one waits
OWN, LOOKUP, PLAIN = "own class", "prompt lookup", "plain decoding"
# The one list: a name, and the text of the method. A control stands behind the knob that it is
# for, so that a slider keeps its place from one method to the next.
TEXTS = {
    "chain": "Chain(draft_length={draft_length})",
    "AdaEDL": "Chain(draft_length={draft_length}, stop=AdaEDL(threshold={threshold}))",
    "MaxConfidence": (
        "Chain(draft_length={draft_length}, stop=MaxConfidence(threshold={threshold}))"
    ),
    "RSD-C": "GumbelTopK(branching={branching})",
    "RSD-S": "StochasticBeam(width={width}, depth={draft_length})",
    "iid tree": "IIDTree(branching={branching})",
    LOOKUP: "PromptLookup(ngram={ngram}, length={draft_length})",
    PLAIN: "NoDraft()",
    OWN: "{path}",
}
SETTING = re.compile(r"(\w+)=\{(\w+)\}")  # a knob, and its control
# A method by its name in the panel, and the controls that it listens to.
METHODS = {
    name: tuple(control for _, control in SETTING.findall(text)) for name, text in TEXTS.items()
} | {OWN: ("path",)}


def methods_for(pair: Pair) -> tuple[str, ...]:
    """The methods that can draft for a pair: without a draft model, those that need none."""
    return tuple(METHODS) if pair.draft else (LOOKUP, PLAIN, OWN)


@dataclass(frozen=True)
class Method:
    """A drafter as the panel's controls describe it."""

    name: str = "chain"
    draft_length: int = 5
    threshold: float = 0.5
    branching: str = "3,2,1"
    width: int = 3
    ngram: int = 3
    path: str = ""  # the text of a method, such as package:Class or Chain(5)

    def __post_init__(self):
        if self.name not in METHODS:
            raise ValueError(f"method={self.name!r}: choose one of {', '.join(METHODS)}")

    def __str__(self) -> str:
        if self.name == OWN:
            return self.path or OWN
        words = [f"{name.replace('_', ' ')} {getattr(self, name)}" for name in METHODS[self.name]]
        return ", ".join([self.name, *words])

    @property
    def short(self) -> str:
        """The method in a narrow column: its name and its numbers."""
        if self.name == OWN:
            return str(self)
        return f"{self.name} {', '.join(str(getattr(self, name)) for name in METHODS[self.name])}"

    @property
    def open(self) -> bool:
        """Whether the reader has still to say which class it is."""
        return self.name == OWN and not self.path.strip()

    def fitted(self, pair: Pair) -> Method:
        """This method, or with the same settings the first one that can draft for the pair."""
        able = methods_for(pair)
        return self if self.name in able else replace(self, name=able[0])

    def drafter(self) -> Drafter:
        """The drafter; ValueError in words where the controls describe none."""
        return methods.method(self.text())

    def text(self) -> str:
        """The text of the drafter, as `specnb.methods` reads it."""
        values = {name: getattr(self, name) for name in METHODS[self.name]}
        if "branching" in values:
            values["branching"] = _shape(self.branching)
        return TEXTS[self.name].format(**values)


def _shape(branching: str) -> tuple[int, ...]:
    shape = knobs.shape_of(branching)
    nodes = sum(math.prod(shape[:level]) for level in range(1, len(shape) + 1))
    if nodes > MOST_NODES:
        raise ValueError(
            f"branching={branching!r}: that is {nodes} nodes per target call; "
            f"give at most {MOST_NODES}"
        )
    return shape


@functools.cache
def _declared() -> dict[str, knobs.Knob]:
    """The knob behind each control: that of the first method that listens to it."""
    found: dict[str, knobs.Knob] = {}
    for name, text in TEXTS.items():
        if settings := SETTING.findall(text):
            made = methods.knobs_in(Method(name).text())
            by_name = {full.rpartition(".")[2]: knob for full, (knob, _) in made.items()}
            for knob, control in settings:
                found.setdefault(control, by_name[knob])
    return found


class MethodControls(w.VBox):
    """A method and its controls; those that it does not listen to are hidden."""

    def __init__(self, method: Method, label: str, offered: Sequence[str] = tuple(METHODS)):
        look = {"style": LABELLED, "layout": NARROW}
        self.method = w.Dropdown(
            options=list(offered), value=method.name, description=label, **look
        )
        self.controls: dict[str, Any] = {
            name: _control(name, knob, getattr(method, name)) for name, knob in _declared().items()
        }
        self.controls["path"] = w.Text(
            value=method.path,
            description="class",
            placeholder="package:Class",
            continuous_update=False,
            **look,
        )
        named(method=self.method, path=self.controls["path"])
        self.knobs = w.VBox()  # of the method that the text names
        self._written = ""  # the text that the knobs themselves have made
        self._fit(None)
        self._offer_knobs(None)
        self.method.observe(self._fit, names="value")
        self.controls["path"].observe(self._offer_knobs, names="value")
        super().__init__([self.method, *self.controls.values(), self.knobs])

    def _fit(self, _) -> None:
        for name, control in self.controls.items():
            show(control, name in METHODS[self.method.value])
        show(self.knobs, self.method.value == OWN)

    def _offer_knobs(self, _) -> None:
        """Controls for the knobs of the text, none where it names no method."""
        text = self.controls["path"].value
        if text and text == self._written:
            return  # the knobs stay under the hand that turns them
        try:
            found = methods.knobs_in(text) if text else {}
        except ValueError:  # the panel says what is wrong when it decodes
            found = {}
        made = {name: _control(name, *one) for name, one in found.items()}
        self.knobs.children = [control for control in made.values() if control is not None]
        for name, control in made.items():
            if control is not None:
                control.observe(partial(self._turned, name), names="value")

    def _turned(self, name: str, change: Mapping[str, Any]) -> None:
        text = methods.with_knobs(self.controls["path"].value, {name: change["new"]})
        self._written = text
        self.controls["path"].value = text

    def offer(self, names: Sequence[str]) -> None:
        """From now on these methods; the one that is on stays on where it is among them."""
        value = self.method.value
        self.method.options = list(names)
        self.method.value = value if value in names else names[0]

    def all(self) -> list[w.DOMWidget]:
        """Every control."""
        return [self.method, *self.controls.values()]

    def value(self) -> Method:
        """The method that the controls describe."""
        return Method(self.method.value, **{name: c.value for name, c in self.controls.items()})


def _control(name: str, knob: knobs.Knob, value: Any) -> w.DOMWidget | None:
    """The control of a knob; None for one that is better written into the text."""
    words = name.replace(".", ": ").replace("_", " ")
    look = {"style": LABELLED, "layout": NARROW, "description": words, "tooltip": knob.words}
    low, high = knob.range
    made: w.DOMWidget | None = None
    if knob.kind == knobs.WHOLE:
        low, high = min(int(low), value), max(int(high), value)
        made = w.IntSlider(value, min=low, max=high, continuous_update=False, **look)
    elif knob.kind == knobs.NUMBER and math.isfinite(value):
        limits = {"min": min(low, value), "max": max(high, value), "step": knob.step or 0.05}
        made = w.FloatSlider(value=value, continuous_update=False, **limits, **look)
    elif knob.kind == knobs.FLAG:
        made = w.Checkbox(value=value, indent=False, **look)
    elif knob.kind in (knobs.CHOICE, knobs.RULE) and len(knob.choices) > 1:
        made = w.Dropdown(options=list(knob.choices), value=value, **look)
    elif knob.kind == knobs.WHOLES and isinstance(value, str):  # as the panel writes them: 3,2,1
        made = w.Text(value=value, continuous_update=False, **look)
    if made is not None:
        named(**{name.replace(".", "_"): made})
    return made
