"""The theme of all figures: large type, plain ground, palette, markers and patterns."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from specnb.views.style import COLOURS

# Markers, dashes and patterns say the same as colours.
MARKERS = ("circle", "square", "diamond", "triangle-up", "x", "star", "cross")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot", "solid")
PATTERNS = ("", "/", "x", ".", "\\", "|", "+")


def figure_of(title: str, x: str, y: str) -> go.Figure:
    """An empty figure in the theme, readable from the back of a room."""
    figure = go.Figure()
    figure.update_layout(
        template="simple_white",
        title={"text": title, "font": {"size": 19}, "x": 0.02},
        font={"size": 15, "family": "DejaVu Sans, Arial, sans-serif"},
        height=440,
        margin={"l": 80, "r": 30, "t": 70, "b": 70},
        legend={"bgcolor": "rgba(255,255,255,0.8)"},
        xaxis={"title": {"text": x}},
        yaxis={"title": {"text": y}, "showgrid": True, "gridcolor": "#dddddd"},
    )
    return figure


def _style(index: int, kinds: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """Colour of the n-th line or bar, and its sign of each of these kinds, together used once.

    Behind the last colour they come again with the next sign. ValueError behind the last style.
    """
    lap, place = divmod(index, len(COLOURS))
    if lap >= len(COLOURS):
        raise ValueError(
            f"{index + 1} lines: {len(COLOURS) ** 2} can be told apart in one figure; show fewer, "
            "or several figures"
        )
    return COLOURS[place], *(kind[(place + lap) % len(kind)] for kind in kinds)


def line_of(index: int, name: str) -> dict[str, Any]:
    """Keyword arguments of a scatter trace: the style of the n-th line."""
    colour, symbol, dash = _style(index, (MARKERS, DASHES))
    return {
        "name": html.escape(name),
        "showlegend": bool(name),
        "mode": "lines+markers",
        "line": {"color": colour, "dash": dash, "width": 2.5},
        "marker": {"color": colour, "symbol": symbol, "size": 10},
    }


def bars_of(index: int, name: str) -> dict[str, Any]:
    """Keyword arguments of a bar trace: the style of the n-th bar of a group."""
    colour, shape = _style(index, (PATTERNS,))
    pattern = {"shape": shape, "fgcolor": "#ffffff", "size": 7}
    return {"name": html.escape(name), "marker": {"color": colour, "pattern": pattern}}


def ruled(dash: str = "solid") -> dict[str, Any]:
    """Keyword arguments of a line that is no data; a template's own has no width."""
    return {"line": {"color": "#555555", "width": 1.5, "dash": dash}, "opacity": 1.0}
