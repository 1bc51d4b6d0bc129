"""How tokens are drawn: temperature, top-p, how many, seed; folded into one line that says them."""

from __future__ import annotations

from typing import Any

import ipywidgets as w

from specnb.live.page import LABELLED, NARROW, named, show
from specnb.sampling import Sampling


class Drawing(w.VBox):
    """The controls by name, under a button that says where they stand and unfolds them."""

    def __init__(self, sampling: Sampling, seed: int):
        late = {"continuous_update": False, "style": LABELLED, "layout": NARROW}
        self.controls: dict[str, Any] = {
            "temperature": w.FloatSlider(
                value=sampling.temperature,
                min=0,
                max=max(2.0, sampling.temperature),
                step=0.1,
                description="temperature",
                **late,
            ),
            "top_p": w.FloatSlider(
                value=sampling.top_p,
                min=min(0.05, sampling.top_p),
                max=1,
                step=0.05,
                description="top-p",
                **late,
            ),
            "new_tokens": w.IntSlider(64, min=8, max=128, step=8, description="new tokens", **late),
            "seed": w.BoundedIntText(seed, min=0, max=10**9, description="seed", **late),
        }
        self.fold = w.ToggleButton(layout=NARROW)
        self._folded = w.VBox(list(self.controls.values()))
        named(drawing=self.fold, **self.controls)
        self.fold.observe(self._fit, names="value")
        for control in self.controls.values():
            control.observe(self._fit, names="value")
        self._fit(None)
        super().__init__([self.fold, self._folded])

    def _fit(self, _) -> None:
        at = {name: control.value for name, control in self.controls.items()}
        self.fold.description = (
            f"{'▾' if self.fold.value else '▸'} temperature {at['temperature']:.2g}, "
            f"top-p {at['top_p']:.2g}, at most {at['new_tokens']}, seed {at['seed']}"
        )
        show(self._folded, self.fold.value)
