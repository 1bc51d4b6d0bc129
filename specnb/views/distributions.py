"""Target, draft and residual distribution at one position as bars: static SVG."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from specnb.sampling import residual
from specnb.views.canvas import EDGE, INK, Picture, draw, text_width, words
from specnb.views.style import cut, number

_BAR, _GAP, _LONG = 11, 12, 320  # px
# Okabe and Ito's colours; full, light and empty with a broken rim tell them apart without colour.
_FILLS = {
    "target": ("#0072b2", "#0072b2", ""),
    "draft": ("#b84f00", "#f9d9c3", ""),
    "residual": ("#00684c", "#ffffff", ' stroke-dasharray="4 2"'),
}


def distributions(
    target_probs: Sequence[float] | Tensor,
    draft_probs: Sequence[float] | Tensor | None,
    names: Callable[[int], str] | Mapping[int, str] | Sequence[str],
    top: int = 8,
    *,
    left: Sequence[float] | Tensor | None = None,
    token: int | None = None,
    with_residual: bool = True,
    title: str = "",
) -> Picture:
    """Three bars for each of the `top` likeliest tokens, `token` marked and always among them.

    Tokens of probability 0 in every distribution are left out. `left` is the residual, by default
    that of the two; `with_residual=False` leaves it out, and without `draft_probs` only the target
    is drawn. `names` gives a token id its
    text. ValueError for rows of different lengths, and for a `token` that they do not have.
    """
    given = {"target": target_probs, "draft": draft_probs, "residual": left}
    rows = {k: torch.as_tensor(v).double().cpu() for k, v in given.items() if v is not None}
    shapes = [[*row.shape] for row in rows.values()]
    if len(shapes[0]) != 1 or any(shape != shapes[0] for shape in shapes):
        raise ValueError(f"distributions of shape {shapes}: give rows of one length")
    if draft_probs is not None and left is None and with_residual:
        rows["residual"] = residual(rows["target"], rows["draft"])
    if not title:
        title = "Target, draft, and what is left for a correction"
        if "residual" not in rows:
            title = "Target and draft" if "draft" in rows else "Target"
    if token is not None and not 0 <= token < shapes[0][0]:
        raise ValueError(f"token={token}: give an id from 0 to {shapes[0][0] - 1}")
    likeliest = torch.stack(list(rows.values())).amax(0)
    ids = [i for i in likeliest.topk(min(top, len(likeliest))).indices.tolist() if likeliest[i] > 0]
    if token is not None and token not in ids:
        ids[top - 1 :] = [token]
    ids.sort(key=lambda i: (-float(rows["target"][i]), i))

    name_of = names if callable(names) else names.__getitem__
    texts = [cut(name_of(i)) for i in ids]
    left_px = EDGE + max(map(text_width, texts)) + 34
    width = left_px + _LONG + 80
    pitch = len(rows) * _BAR + _GAP
    top_px = 74
    height = top_px + pitch * len(ids) + 6
    drawn = []
    x = float(EDGE)
    for name in rows:
        drawn.append(_bar(name, x, 44, 22))
        drawn.append(words(name, x + 28, 53))
        x += 46 + 8 * len(name)
    for place, (i, text) in enumerate(zip(ids, texts, strict=True)):
        y = top_px + place * pitch
        chosen = i == token
        if chosen:
            drawn.append(
                f'<rect x="6" y="{y - _GAP / 2:g}" width="{width - 12:g}" height="{pitch}" '
                f'fill="#fff6d6" stroke="{INK}"/>'
            )
        middle = y + len(rows) * _BAR / 2 + 5
        mark = "▶ " if chosen else ""
        drawn.append(words(mark + text, left_px - 10, middle, 14, anchor="end", mono=True))
        for line, (name, row) in enumerate(rows.items()):
            value = float(row[i])
            high = y + line * _BAR
            drawn.append(f"<g><title>{html.escape(f'{text}: {name} {number(value)}')}</title>")
            drawn.append(_bar(name, left_px, high, value * _LONG))
            end = left_px + value * _LONG + 5
            drawn.append(words(number(value), end, high + 9, 11) + "</g>")
    return draw(drawn, width, height, title)


def _bar(name: str, x: float, y: float, width: float) -> str:
    rim, fill, dash = _FILLS[name]
    return (
        f'<rect x="{x:g}" y="{y + 1:g}" width="{max(width, 0.5):g}" height="{_BAR - 2}" '
        f'fill="{fill}" stroke="{rim}"{dash}/>'
    )
