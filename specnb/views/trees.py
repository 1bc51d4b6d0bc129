"""The draft tree of one block as a static SVG picture, level by level or with its verdicts."""

import html

from specnb.record import EMITTED, Record, TokenRow
from specnb.views.look import CARD, LOOKS, cut, number
from specnb.views.svg import Picture, columns, token_box

_ROW, _HIGH, _GAP, _CHAR, _EDGE = 34, 24, 46, 8.4, 16  # px, as in the strip
_HEAD = 7.8  # px per character of the headline, at most


def tree(record: Record, block: int = 0, levels: int | None = None) -> Picture:
    """What was drafted in a block (numbered from 0), and what the target made of it.

    `levels` shows the first levels as they were drafted, before the target has looked. Thick
    edges lead along the emitted tokens. A number at a node is its accept probability.
    """
    if not 0 <= block < len(record.blocks):
        raise ValueError(f"block={block}: this run has blocks 0 to {len(record.blocks) - 1}")
    deepest = max((row.depth for row in record.tokens if row.block == block), default=0)
    if levels is not None and not 0 <= levels <= deepest:
        raise ValueError(f"levels={levels}: this block has levels 0 to {deepest}")
    rows = [row for row in record.tokens if row.block == block]
    if levels is not None:
        rows = [row for row in rows if row.node >= 0 and row.depth <= levels]
    place = _layout(rows)
    before = [row.text for row in record.emitted if row.block < block][-4:]
    start = cut("".join(before).strip() or "prompt")
    widths = {0: columns(start) * _CHAR + 12}
    for row in rows:
        box = columns(cut(row.text)) * _CHAR + 24
        widths[row.depth] = max(widths.get(row.depth, 0), box)
    left, x = {}, float(_EDGE)
    for depth in sorted(widths):
        left[depth] = x
        x += widths[depth] + _GAP
    ink, ground, rim = CARD["light"]
    headline = _summary(rows, block, levels)
    width = max(420.0, x - _GAP + _EDGE + 40, len(headline) * _HEAD + 2 * _EDGE)
    high = max([place[None], *(place[id(row)] for row in rows)])
    height = _EDGE + 34 + high + _ROW + 8
    top = _EDGE + 34
    shapes = []
    nodes = {row.node: row for row in rows if row.node >= 0}
    for row in rows:  # edges first: boxes lie on them
        parent = nodes.get(row.parent)
        depth = parent.depth if parent else 0
        x0 = left[depth] + (columns(cut(parent.text)) * _CHAR + 24 if parent else widths[0])
        y0 = top + place[id(parent) if parent else None] + _HIGH / 2
        x1, y1 = left[row.depth], top + place[id(row)] + _HIGH / 2
        said = levels is None and row.verdict in EMITTED
        stroke = f'stroke="{ink}" stroke-width="2.6"' if said else 'stroke="#999999"'
        dash = "" if said or levels is not None else ' stroke-dasharray="4 3"'
        middle = (x0 + x1) / 2
        shapes.append(
            f'<path d="M{x0:g} {y0:g}C{middle:g} {y0:g} {middle:g} {y1:g} {x1:g} {y1:g}" '
            f'fill="none" {stroke}{dash}/>'
        )
    y = top + place[None]
    shapes.append(
        f'<rect x="{left[0]:g}" y="{y:g}" width="{widths[0]:g}" height="{_HIGH}" rx="4" '
        f'fill="{ground}" stroke="{rim}"/><text x="{left[0] + 6:g}" y="{y + 16.5:g}" '
        f'font-family="\'DejaVu Sans Mono\',monospace" font-size="14" xml:space="preserve" '
        f'textLength="{columns(start) * _CHAR:g}" lengthAdjust="spacingAndGlyphs" '
        f'fill="{ink}">{html.escape(start)}</text>'
    )
    for row in rows:
        text = cut(row.text)
        verdict = row.verdict if levels is None else "unexamined"
        box = columns(text) * _CHAR + 24
        x, y = left[row.depth], top + place[id(row)]
        words = f"{text}: {verdict}, draft {number(row.draft_prob)}"
        words += f", target {number(row.target_prob)}"
        shapes.append(f"<g><title>{html.escape(words)}</title>")
        shapes.append(token_box(text, verdict, x, y, box) + "</g>")
        if levels is None and row.accept_prob is not None:
            shapes.append(
                f'<text x="{x + box + 3:g}" y="{y + 8:g}" font-family="sans-serif" '
                f'font-size="11" fill="#444444" stroke="{ground}" stroke-width="3" '
                f'paint-order="stroke">{number(row.accept_prob)}</text>'
            )
    line = html.escape(headline)
    return Picture(
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height:g}" '
        f'viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{line}">'
        f'<rect x="0.5" y="0.5" width="{width - 1:g}" height="{height - 1:g}" rx="6" '
        f'fill="{ground}" stroke="{rim}"/><text x="{_EDGE}" y="{_EDGE + 12}" '
        f'font-family="sans-serif" font-size="15" fill="{ink}">{line}</text>'
        f"{''.join(shapes)}</svg>"
    )


def _layout(rows: list[TokenRow]) -> dict:
    """y of every row by identity, of the root under None: leaves one below another, parents in
    the middle of their children."""
    children: dict[int, list[TokenRow]] = {}
    for row in rows:
        children.setdefault(row.parent, []).append(row)
    place: dict = {}
    n_leaves = 0

    def put(key, kids) -> float:
        nonlocal n_leaves
        if not kids:
            place[key] = n_leaves * float(_ROW)
            n_leaves += 1
        else:
            ys = [put(id(kid), children.get(kid.node, []) if kid.node >= 0 else []) for kid in kids]
            place[key] = (ys[0] + ys[-1]) / 2
        return place[key]

    put(None, children.get(-1, []))
    return place


def _summary(rows: list[TokenRow], block: int, levels: int | None) -> str:
    drafted = sum(row.node >= 0 for row in rows)
    if levels is not None:
        return f"block {block + 1}: {drafted} tokens drafted in {levels} levels"
    counts = {name: sum(row.verdict == name for row in rows) for name in LOOKS}
    said = ", ".join(f"{n} {name}" for name, n in counts.items() if n)
    return f"block {block + 1}: {drafted} drafted; {said}"
