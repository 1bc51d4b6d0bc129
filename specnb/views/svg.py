"""Static SVG pictures, for pages that take no style sheets: here the token strip."""

import html
import unicodedata
from dataclasses import dataclass

from specnb.record import Record
from specnb.views.look import CARD, LOOKS, by_block, cut, summary

_LINE, _HIGH, _CHAR, _EDGE = 36, 24, 8.4, 14  # px: line pitch, box, one monospace column, margin
_MONO = "'DejaVu Sans Mono',Menlo,Consolas,monospace"
_DASHES = {"dashed": ' stroke-dasharray="5 3"', "dotted": ' stroke-dasharray="1.5 2.5"'}


@dataclass(frozen=True)
class Picture:
    """A finished SVG picture; a notebook shows it as a cell's last value."""

    svg: str

    def _repr_html_(self) -> str:
        return f'<div style="overflow-x:auto;max-width:100%">{self.svg}</div>'


def svg(record: Record, width: int = 900) -> str:
    """The strip as an SVG document `width` pixels wide, as high as it needs, without panels."""
    if width < 320:
        raise ValueError(f"width={width}: give at least 320 pixels")
    ink, ground, rim = CARD["light"]
    shapes: list[str] = []
    x, y = float(_EDGE), _EDGE + 42.0
    for block, rows in by_block(record):
        for place, row in enumerate(rows):
            text = cut(row.text)
            box = columns(text) * _CHAR + 24
            room = 22 if place == 0 else 0  # a block's number stays with its first token
            if x + room + box > width - _EDGE and x > _EDGE:
                x, y = float(_EDGE), y + _LINE
            if place == 0:
                shapes.append(_number(block + 1, x, y))
                x += room
            shapes.append(token_box(text, row.verdict, x, y, box))
            # A rule under the tokens of one block ties them together across line ends.
            end = x + box + (0 if place == len(rows) - 1 else 3)
            shapes.append(_rule(x - room, end, y + _HIGH + 3.5))
            x += box + 3
        x += 9
    x, y = float(_EDGE), y + _LINE + 6
    seen = {row.verdict for row in record.tokens}
    for verdict in (name for name in LOOKS if name in seen):
        box = len(verdict) * _CHAR + 24
        if x + box > width - _EDGE:
            x, y = float(_EDGE), y + _LINE
        shapes.append(token_box(verdict, verdict, x, y, box))
        x += box + 8
    height = y + _HIGH + _EDGE
    line = html.escape(summary(record))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height:g}" '
        f'viewBox="0 0 {width} {height:g}" role="img" aria-label="{line}">'
        f'<rect x="0.5" y="0.5" width="{width - 1}" height="{height - 1:g}" rx="6" '
        f'fill="{ground}" stroke="{rim}"/>'
        f'<text x="{_EDGE}" y="{_EDGE + 16}" font-family="sans-serif" font-size="15" '
        f'fill="{ink}">{line}</text>{"".join(shapes)}</svg>'
    )


def columns(text: str) -> int:
    """Columns of a monospace font: wide characters take two, marks none."""
    return sum(
        0 if unicodedata.combining(char) else 1 + (unicodedata.east_asian_width(char) in "WF")
        for char in text
    )


def _number(number: int, x: float, y: float) -> str:
    return (
        f'<text x="{x + 9:g}" y="{y + 16.5:g}" font-family="sans-serif" font-size="12" '
        f'font-weight="bold" text-anchor="middle" fill="{CARD["light"][0]}">{number}</text>'
    )


def _rule(start: float, end: float, y: float) -> str:
    return f'<path d="M{start:g} {y:g}H{end:g}" stroke="#555555" stroke-width="1.5"/>'


def token_box(text: str, verdict: str, x: float, y: float, box: float) -> str:
    look = LOOKS[verdict]
    ink, ground, rim = look.light
    line = _DASHES.get(look.line, "")
    stroke = 2.5 if look.line == "double" else 1.2
    parts = [
        f'<rect x="{x:g}" y="{y:g}" width="{box:g}" height="{_HIGH}" rx="4" fill="{ground}" '
        f'stroke="{rim}" stroke-width="{stroke}"{line}/>',
        f'<text x="{x + 5:g}" y="{y + 16.5:g}" font-family="sans-serif" font-size="12" '
        f'font-weight="bold" fill="{ink}">{look.sign}</text>',
        # textLength holds the text inside its box whatever font the reader has.
        f'<text x="{x + 19:g}" y="{y + 16.5:g}" font-family="{_MONO}" font-size="14" '
        f'xml:space="preserve" textLength="{columns(text) * _CHAR:g}" '
        f'lengthAdjust="spacingAndGlyphs" fill="{ink}">{html.escape(text)}</text>',
    ]
    if verdict == "rejected" and text != verdict:  # not in the legend
        middle = y + _HIGH / 2 + 0.5
        parts.append(
            f'<path d="M{x + 18:g} {middle:g}H{x + box - 4:g}" stroke="{ink}" stroke-width="1.4"/>'
        )
    return "".join(parts)
