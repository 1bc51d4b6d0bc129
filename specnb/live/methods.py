"""The panel's methods by name, and their controls; a text has the controls of its knobs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import ipywidgets as w

from specnb import knobs, methods
from specnb.drafters import Chain, Drafter, GumbelTopK, IIDTree, PromptLookup, StochasticBeam
from specnb.live.page import LABELLED, NARROW, named, show
from specnb.models.base import Pair
from specnb.stopping import AdaEDL, MaxConfidence

LONGEST = 16  # draft length that a slider offers
LONGEST_NGRAM = 8
MOST_NODES = 128  # of a tree that a slider may ask for: it is drawn, and drafted while one waits
OWN, LOOKUP = "own class", "prompt lookup"
# A method by its name in the panel, and the controls that it listens to.
METHODS = {
    "chain": ("draft_length",),
    "AdaEDL": ("draft_length", "threshold"),
    "MaxConfidence": ("draft_length", "threshold"),
    "RSD-C": ("branching",),
    "RSD-S": ("width", "draft_length"),
    "iid tree": ("branching",),
    LOOKUP: ("ngram", "draft_length"),
    OWN: ("path",),
}


def methods_for(pair: Pair) -> tuple[str, ...]:
    """The methods that can draft for a pair: without a draft model, those that need none."""
    return tuple(METHODS) if pair.draft else (LOOKUP, OWN)


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

    def fitted(self, pair: Pair) -> Method:
        """This method, or with the same settings the first one that can draft for the pair."""
        able = methods_for(pair)
        return self if self.name in able else replace(self, name=able[0])

    def drafter(self) -> Drafter:
        """The drafter; ValueError in words where the controls describe none."""
        if self.name == OWN:
            return methods.method(self.path)
        if self.name in ("RSD-C", "iid tree"):
            shape = knobs.shape_of(self.branching)
            nodes = sum(math.prod(shape[:level]) for level in range(1, len(shape) + 1))
            if nodes > MOST_NODES:
                raise ValueError(
                    f"branching={self.branching!r}: that is {nodes} nodes per target call; "
                    f"give at most {MOST_NODES}"
                )
            return (GumbelTopK if self.name == "RSD-C" else IIDTree)(shape)
        if self.name == "RSD-S":
            return StochasticBeam(self.width, self.draft_length)
        if self.name == LOOKUP:
            return PromptLookup(self.ngram, self.draft_length)
        rules = {"AdaEDL": AdaEDL, "MaxConfidence": MaxConfidence}
        if self.name in rules:
            return Chain(self.draft_length, stop=rules[self.name](self.threshold))
        return Chain(self.draft_length)


class MethodControls(w.VBox):
    """A method and its controls; those that it does not listen to are hidden."""

    def __init__(self, method: Method, label: str, offered: Sequence[str] = tuple(METHODS)):
        look = {"style": LABELLED, "layout": NARROW}
        late = {"continuous_update": False, **look}
        longest = max(LONGEST, method.draft_length)
        self.method = w.Dropdown(
            options=list(offered), value=method.name, description=label, **look
        )
        self.controls: dict[str, Any] = {
            "draft_length": w.IntSlider(
                method.draft_length, min=1, max=longest, description="draft length", **late
            ),
            "threshold": w.FloatSlider(
                value=method.threshold,
                min=min(0, method.threshold),
                max=max(1, method.threshold),
                step=0.05,
                description="threshold",
                **late,
            ),
            "branching": w.Text(value=method.branching, description="branching", **late),
            "width": w.IntSlider(
                method.width, min=1, max=max(8, method.width), description="width", **late
            ),
            "ngram": w.IntSlider(
                method.ngram,
                min=1,
                max=max(LONGEST_NGRAM, method.ngram),
                description="ngram",
                **late,
            ),
            "path": w.Text(
                value=method.path, description="class", placeholder="package:Class", **late
            ),
        }
        named(method=self.method, **self.controls)
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
    if made is not None:
        named(**{name.replace(".", "_"): made})
    return made
