"""Plain sliders over one view."""

from __future__ import annotations

import html
import time
from collections.abc import Callable, Mapping
from typing import Any

import ipywidgets as w

from specnb.live.page import PLAIN, WIDE, Page, framed, named
from specnb.views import Html


class Sliders(w.VBox):
    """Sliders over one view; see `sliders`."""

    def __init__(self, function: Callable[..., Any], controls: Mapping[str, tuple]):
        self._function, self.page = function, Page()
        self._names = {name: description for name, (_, _, _, description) in controls.items()}
        self.controls: dict[str, w.IntSlider] = {}
        for name, (value, least, greatest, description) in controls.items():
            if not least <= value <= greatest:
                raise ValueError(f"{name}={value}: give a number from {least} to {greatest}")
            self.controls[name] = w.IntSlider(
                value=value,
                min=least,
                max=greatest,
                description=description,
                continuous_update=False,
                style=PLAIN,
                layout={"width": "420px"},
            )
        named(**self.controls)
        self.view = w.HTML(layout=WIDE)
        self._compute()
        for control in self.controls.values():
            control.observe(self.page.on(self._compute), names="value")
        super().__init__([*self.controls.values(), self.page.status, self.page.alert, self.view])

    @property
    def values(self) -> dict[str, int]:
        """Where the sliders stand."""
        return {name: control.value for name, control in self.controls.items()}

    def static(self) -> Html:
        """What the sliders show just now, for copies without a kernel."""
        shown = self.page.alert.value or self.view.value
        return Html(f"<div><div><b>{html.escape(self._words())}</b></div>{shown}</div>")

    def _words(self) -> str:
        return ", ".join(f"{self._names[name]} {value}" for name, value in self.values.items())

    def _compute(self) -> None:
        self.page.say("working …")
        start_s = time.perf_counter()
        shown = self._function(**self.values)
        if not hasattr(shown, "_repr_html_"):
            kind = type(shown).__name__
            raise TypeError(f"{kind}: the function must give back something in HTML")
        self.view.value = framed(shown._repr_html_(), self.values, "sliders")
        self.page.clear()
        self.page.say(f"{self._words()}, computed in {time.perf_counter() - start_s:.1f} s")


def sliders(
    function: Callable[..., Any], controls: Mapping[str, tuple[int, int, int, str]]
) -> Sliders:
    """Sliders; every move calls `function` with all values by name and shows its HTML.

    `controls` maps a name to (value, least, greatest, description). Nothing is cached: what is on
    the screen was computed for it. The first call may raise; an exception of a later one is shown
    in words, and the next move recovers from it. `static()` gives what stands there now.
    """
    return Sliders(function, controls)
