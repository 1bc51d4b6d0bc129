"""The token strip as static SVG, for pages that take no style sheets."""

from specnb.record import Record
from specnb.views.canvas import draw, text_width, words
from specnb.views.style import STYLES, by_block, cut, summary

_LINE, _HIGH, _EDGE = 36, 24, 14  # px: line pitch, box, margin
_DASHES = {"dashed": ' stroke-dasharray="5 3"', "dotted": ' stroke-dasharray="1.5 2.5"'}


def svg(record: Record, width: int = 900) -> str:
    """The strip as an SVG document `width` pixels wide, as high as it needs, without panels."""
    if width < 320:
        raise ValueError(f"width={width}: give at least 320 pixels")
    shapes: list[str] = []
    x, y = float(_EDGE), _EDGE + 42.0
    for block, rows in by_block(record):
        for place, row in enumerate(rows):
            text = cut(row.text)
            box = box_width(text)
            room = 22 if place == 0 else 0  # a block's number stays with its first token
            if x + room + box > width - _EDGE and x > _EDGE:
                x, y = float(_EDGE), y + _LINE
            if place == 0:
                shapes.append(
                    words(str(block + 1), x + 9, y + 16.5, 12, bold=True, anchor="middle")
                )
                x += room
            shapes.append(token_box(text, row.verdict, x, y))
            # A rule under the tokens of one block ties them together across line ends.
            end = x + box + (0 if place == len(rows) - 1 else 3)
            shapes.append(_rule(x - room, end, y + _HIGH + 3.5))
            x += box + 3
        x += 9
    x, y = float(_EDGE), y + _LINE + 6
    seen = {row.verdict for row in record.tokens}
    for verdict in (name for name in STYLES if name in seen):
        box = box_width(verdict)
        if x + box > width - _EDGE:
            x, y = float(_EDGE), y + _LINE
        shapes.append(token_box(verdict, verdict, x, y))
        x += box + 8
    height = y + _HIGH + _EDGE
    return draw(shapes, width, height, summary(record), corner=(_EDGE, _EDGE + 16)).svg


def _rule(start: float, end: float, y: float) -> str:
    return f'<path d="M{start:g} {y:g}H{end:g}" stroke="#555555" stroke-width="1.5"/>'


def box_width(text: str) -> float:
    """Pixels of a token's box."""
    return text_width(text) + 24


def token_box(text: str, verdict: str, x: float, y: float) -> str:
    """A token with its verdict: sign, colours and rim."""
    style = STYLES[verdict]
    ink, ground, rim = style.light
    box = box_width(text)
    line = _DASHES.get(style.line, "")
    stroke = 2.5 if style.line == "double" else 1.2
    parts = [
        f'<rect x="{x:g}" y="{y:g}" width="{box:g}" height="{_HIGH}" rx="4" fill="{ground}" '
        f'stroke="{rim}" stroke-width="{stroke}"{line}/>',
        words(style.sign, x + 5, y + 16.5, 12, fill=ink, bold=True),
        words(text, x + 19, y + 16.5, 14, fill=ink, mono=True, fitted=True),
    ]
    if verdict == "rejected" and text != verdict:  # not in the legend
        middle = y + _HIGH / 2 + 0.5
        parts.append(
            f'<path d="M{x + 18:g} {middle:g}H{x + box - 4:g}" stroke="{ink}" stroke-width="1.4"/>'
        )
    return "".join(parts)
