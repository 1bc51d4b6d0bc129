"""What views give back, and what all SVG pictures share: frame, title and text.

SVG pictures are light in every theme: they also go to pages that take no style sheets.
"""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

from specnb.views.style import CARD

INK, GROUND, RIM = CARD["light"]
EDGE = 16  # px, the margin
COLUMN = 8.4  # px, one column of monospace text in size 14
SANS, MONO = "sans-serif", "'DejaVu Sans Mono',Menlo,Consolas,monospace"


@dataclass(frozen=True)
class Html:
    """Finished HTML, without controls; a notebook shows it as a cell's last value."""

    html: str

    def _repr_html_(self) -> str:
        return self.html


@dataclass(frozen=True)
class Picture:
    """A finished SVG picture; a notebook shows it as a cell's last value."""

    svg: str

    def _repr_html_(self) -> str:
        return f'<div style="overflow-x:auto;max-width:100%">{self.svg}</div>'


def draw(
    shapes: Iterable[str],
    width: float,
    height: float,
    title: str,
    *,
    label: str = "",
    corner: tuple[float, float] = (EDGE, 28),
) -> Picture:
    """Shapes on a card of `width` x `height` pixels, under a title that starts at `corner`.

    Screen readers read `label` in place of the picture, by default the title.
    """
    return Picture(
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height:g}" '
        f'viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{html.escape(label or title)}">'
        f'<rect x="0.5" y="0.5" width="{width - 1:g}" height="{height - 1:g}" rx="6" '
        f'fill="{GROUND}" stroke="{RIM}"/>{words(title, *corner, 15)}{"".join(shapes)}</svg>'
    )


def words(
    text: str,
    x: float,
    y: float,
    size: int = 13,
    *,
    fill: str = INK,
    bold: bool = False,
    anchor: str = "",
    mono: bool = False,
    fitted: bool = False,
    more: str = "",
) -> str:
    """Text with its base line at (x, y), which is its start, or its "middle" or "end" by `anchor`.

    `fitted` monospace text takes `text_width` pixels whatever font the reader has. `more` holds
    attributes of one text alone.
    """
    family = MONO if mono else SANS
    kind = ' font-weight="bold"' if bold else ""
    kind += f' text-anchor="{anchor}"' if anchor else ""
    kind += ' xml:space="preserve"' if mono else ""
    if fitted:
        kind += f' textLength="{text_width(text):g}" lengthAdjust="spacingAndGlyphs"'
    return (
        f'<text x="{x:g}" y="{y:g}" font-family="{family}" font-size="{size}"{kind} '
        f'fill="{fill}"{more}>{html.escape(text)}</text>'
    )


def columns(text: str) -> int:
    """Columns of a monospace font: wide characters take two, marks none."""
    return sum(
        0 if unicodedata.combining(char) else 1 + (unicodedata.east_asian_width(char) in "WF")
        for char in text
    )


def text_width(text: str) -> float:
    """Pixels of monospace text in size 14."""
    return columns(text) * COLUMN
