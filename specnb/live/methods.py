"""A method and its controls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ipywidgets as w

from specnb.live.page import LABELLED, NARROW, named, show
from specnb.studio import METHODS, Method

LONGEST = 16  # draft length that a slider offers
LONGEST_NGRAM = 8


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
        self._fit(None)
        self.method.observe(self._fit, names="value")
        super().__init__([self.method, *self.controls.values()])

    def _fit(self, _) -> None:
        for name, control in self.controls.items():
            show(control, name in METHODS[self.method.value])

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
