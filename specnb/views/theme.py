"""The theme of all figures: large type, plain ground, palette, markers and patterns."""

from __future__ import annotations

import html
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


def line_of(index: int, name: str) -> dict[str, Any]:
    """Keyword arguments of a scatter trace: the style of the n-th line."""
    colour = COLOURS[index % len(COLOURS)]
    return {
        "name": html.escape(name),
        "showlegend": bool(name),
        "mode": "lines+markers",
        "line": {"color": colour, "dash": DASHES[index % len(DASHES)], "width": 2.5},
        "marker": {"color": colour, "symbol": MARKERS[index % len(MARKERS)], "size": 10},
    }


def bars_of(index: int, name: str) -> dict[str, Any]:
    """Keyword arguments of a bar trace: the style of the n-th bar of a group."""
    colour = COLOURS[index % len(COLOURS)]
    pattern = {"shape": PATTERNS[index % len(PATTERNS)], "fgcolor": "#ffffff", "size": 7}
    return {"name": html.escape(name), "marker": {"color": colour, "pattern": pattern}}
