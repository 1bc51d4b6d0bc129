"""What heads look at: a row per head, a column per slot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from specnb.views.theme import figure_of

PICTURE = "#D55E00"  # the strip over slots of a picture


def attention(weights: Any, words: Sequence[str], image_slots: Sequence[int] = ()) -> go.Figure:
    """Attention of one token, `weights` [layers, heads, slots], rows of which sum to 1.

    `words` names the slots. Darker is more; the scale is that of the square root, or little would
    be seen beside the first slot. A strip above marks the slots of pictures. ValueError where
    words and slots are not equally many.
    """
    layers, heads, slots = weights.shape
    if len(words) != slots:
        raise ValueError(f"{len(words)} words, {slots} slots: give one word per slot")
    rows = weights.reshape(layers * heads, slots)
    names = [f"layer {layer}, head {head}" for layer in range(layers) for head in range(heads)]
    figure = figure_of("What each head looks at", "slot in the cache", "layer")
    figure.add_heatmap(
        z=(rows**0.5).tolist(),
        customdata=[
            [[name, word, float(weight)] for word, weight in zip(words, row, strict=True)]
            for name, row in zip(names, rows.tolist(), strict=True)
        ],
        hovertemplate="%{customdata[0]}: %{customdata[2]:.3f} on %{customdata[1]}<extra></extra>",
        colorscale="Greys",
        zmin=0,
        zmax=1,
        showscale=False,
    )
    for first, last in _runs(image_slots):
        figure.add_shape(
            type="rect",
            x0=first - 0.5,
            x1=last + 0.5,
            y0=layers * heads,
            y1=layers * heads + heads / 2,
            fillcolor=PICTURE,
            opacity=1,
            line_width=0,
        )
    ticks = [heads * layer + (heads - 1) / 2 for layer in range(layers)]
    figure.update_yaxes(tickvals=ticks, ticktext=[str(layer) for layer in range(layers)])
    figure.update_yaxes(showgrid=False, range=[-0.5, layers * heads + heads / 2])
    return figure


def _runs(slots: Sequence[int]) -> list[tuple[int, int]]:
    """First and last of each stretch of slots that follow each other."""
    found: list[tuple[int, int]] = []
    for slot in sorted(slots):
        if found and slot == found[-1][1] + 1:
            found[-1] = (found[-1][0], slot)
        else:
            found.append((slot, slot))
    return found
