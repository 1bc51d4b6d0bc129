"""The draft tree of one block as a static SVG picture, level by level or with its verdicts."""

import html

from specnb.record import EMITTED, Record, TokenRow
from specnb.views.canvas import EDGE, GROUND, INK, RIM, Picture, draw, text_width, words
from specnb.views.style import STYLES, cut, number
from specnb.views.svg import box_width, token_box

_ROW, _HIGH, _GAP = 34, 24, 46  # px; boxes are as high as in the strip
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
    widths = {0: text_width(start) + 12}
    for row in rows:
        widths[row.depth] = max(widths.get(row.depth, 0), box_width(cut(row.text)))
    left, x = {}, float(EDGE)
    for depth in sorted(widths):
        left[depth] = x
        x += widths[depth] + _GAP
    headline = _summary(rows, block, levels)
    width = max(420.0, x - _GAP + EDGE + 40, len(headline) * _HEAD + 2 * EDGE)
    high = max([place[None], *(place[id(row)] for row in rows)])
    top = EDGE + 34
    height = top + high + _ROW + 8
    shapes = []
    nodes = {row.node: row for row in rows if row.node >= 0}
    for row in rows:  # edges first: boxes lie on them
        parent = nodes.get(row.parent)
        depth = parent.depth if parent else 0
        x0 = left[depth] + (box_width(cut(parent.text)) if parent else widths[0])
        y0 = top + place[id(parent) if parent else None] + _HIGH / 2
        x1, y1 = left[row.depth], top + place[id(row)] + _HIGH / 2
        emitted = levels is None and row.verdict in EMITTED
        stroke = f'stroke="{INK}" stroke-width="2.6"' if emitted else 'stroke="#999999"'
        dash = "" if emitted or levels is not None else ' stroke-dasharray="4 3"'
        middle = (x0 + x1) / 2
        shapes.append(
            f'<path d="M{x0:g} {y0:g}C{middle:g} {y0:g} {middle:g} {y1:g} {x1:g} {y1:g}" '
            f'fill="none" {stroke}{dash}/>'
        )
    y = top + place[None]
    shapes.append(
        f'<rect x="{left[0]:g}" y="{y:g}" width="{widths[0]:g}" height="{_HIGH}" rx="4" '
        f'fill="{GROUND}" stroke="{RIM}"/>'
        + words(start, left[0] + 6, y + 16.5, 14, mono=True, fitted=True)
    )
    halo = f' stroke="{GROUND}" stroke-width="3" paint-order="stroke"'  # edges pass there
    for row in rows:
        text = cut(row.text)
        verdict = row.verdict if levels is None else "unexamined"
        x, y = left[row.depth], top + place[id(row)]
        said = f"{text}: {verdict}, draft {number(row.draft_prob)}"
        said += f", target {number(row.target_prob)}"
        shapes.append(f"<g><title>{html.escape(said)}</title>")
        shapes.append(token_box(text, verdict, x, y) + "</g>")
        if levels is None and row.accept_prob is not None:
            end = x + box_width(text) + 3
            accept = number(row.accept_prob)
            shapes.append(words(accept, end, y + 8, 11, fill="#444444", more=halo))
    return draw(shapes, width, height, headline)


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
    counts = {name: sum(row.verdict == name for row in rows) for name in STYLES}
    said = ", ".join(f"{n} {name}" for name, n in counts.items() if n)
    return f"block {block + 1}: {drafted} drafted; {said}"
