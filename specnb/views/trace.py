"""A rule's score along a text, and where drafting stops: static SVG."""

import html
from collections.abc import Sequence

from specnb.views.canvas import GROUND, INK, Picture, draw, words
from specnb.views.style import cut, number

_STEP, _HIGH, _TOP, _LEFT, _BELOW = 22, 180, 52, 46, 110  # px


def trace(
    texts: Sequence[str], scores: Sequence[float], threshold: float, title: str = "score"
) -> Picture:
    """One stem per token: the score of the distribution that it was drawn from, before the draw.

    Where the score is below `threshold` drafting would have stopped: an open square, else a
    filled dot. Scores below 0 are drawn at 0. ValueError where
    texts and scores are not equally many.
    """
    if len(texts) != len(scores):
        raise ValueError(f"{len(texts)} texts, {len(scores)} scores: give one score per token")
    width = _LEFT + _STEP * max(len(texts), 12) + 24

    def height_of(score: float) -> float:
        return _TOP + _HIGH * (1 - min(max(score, 0.0), 1.0))

    stops = sum(score < threshold for score in scores)
    line = f"{title}: below {threshold:.2f} at {stops} of {len(scores)} tokens"
    shapes = []
    for mark in (0.0, 0.5, 1.0):
        y = height_of(mark)
        shapes.append(
            f'<path d="M{_LEFT} {y:g}H{width - 14:g}" stroke="#cccccc"/>'
            + words(f"{mark:g}", _LEFT - 8, y + 4, 12, anchor="end")
        )
    for index, (text, score) in enumerate(zip(texts, scores, strict=True)):
        x, y = _LEFT + _STEP * (index + 0.7), height_of(score)
        stop = score < threshold
        colour = "#d55e00" if stop else "#0072b2"
        mark = (
            f'<rect x="{x - 5:g}" y="{y - 5:g}" width="10" height="10" fill="{GROUND}" '
            f'stroke="{colour}" stroke-width="2.5"/>'
            if stop
            else f'<circle cx="{x:g}" cy="{y:g}" r="5" fill="{colour}"/>'
        )
        foot = height_of(0.0)
        said = f"{cut(text)}: {number(max(score, 0.0))}{', stop' if stop else ''}"
        turned = f' transform="translate({x + 4:g} {foot + 10:g}) rotate(-60)"'
        shapes.append(
            f"<g><title>{html.escape(said)}</title>"
            f'<path d="M{x:g} {foot:g}V{y:g}" stroke="{colour}" stroke-width="1.5"/>{mark}'
            f"{words(cut(text), 0, 0, 12, anchor='end', mono=True, more=turned)}</g>"
        )
    y = height_of(threshold)
    shapes.append(
        f'<path d="M{_LEFT} {y:g}H{width - 14:g}" stroke="{INK}" stroke-width="2" '
        'stroke-dasharray="6 4"/>'
    )
    return draw(shapes, width, _TOP + _HIGH + _BELOW, line, corner=(14, 28))
