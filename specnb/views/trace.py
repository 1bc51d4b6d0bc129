"""A rule's score along a text, and where drafting stops: static SVG."""

import html
from collections.abc import Sequence

from specnb.views.look import CARD, cut, number
from specnb.views.svg import Picture

_STEP, _HIGH, _TOP, _LEFT, _BELOW = 22, 180, 52, 46, 110  # px


def trace(
    texts: Sequence[str], scores: Sequence[float], threshold: float, title: str = "score"
) -> Picture:
    """One stem per token: the score of the law that it was drawn from, before it was drawn.

    Where the score is below `threshold` drafting would have stopped: an open square, else a
    filled dot. Scores below 0 are drawn at 0.
    """
    if len(texts) != len(scores):
        raise ValueError(f"{len(texts)} texts, {len(scores)} scores: give one score per token")
    ink, ground, rim = CARD["light"]
    width = _LEFT + _STEP * max(len(texts), 12) + 24

    def height_of(score: float) -> float:
        return _TOP + _HIGH * (1 - min(max(score, 0.0), 1.0))

    stops = sum(score < threshold for score in scores)
    line = f"{title}: below {threshold:.2f} at {stops} of {len(scores)} tokens"
    shapes = [
        f'<text x="14" y="28" font-family="sans-serif" font-size="15" fill="{ink}">'
        f"{html.escape(line)}</text>"
    ]
    for mark in (0.0, 0.5, 1.0):
        y = height_of(mark)
        shapes.append(
            f'<path d="M{_LEFT} {y:g}H{width - 14:g}" stroke="#cccccc"/>'
            f'<text x="{_LEFT - 8}" y="{y + 4:g}" text-anchor="end" font-size="12" '
            f'font-family="sans-serif" fill="{ink}">{mark:g}</text>'
        )
    for index, (text, score) in enumerate(zip(texts, scores, strict=True)):
        x, y = _LEFT + _STEP * (index + 0.7), height_of(score)
        stop = score < threshold
        colour = "#d55e00" if stop else "#0072b2"
        mark = (
            f'<rect x="{x - 5:g}" y="{y - 5:g}" width="10" height="10" fill="{ground}" '
            f'stroke="{colour}" stroke-width="2.5"/>'
            if stop
            else f'<circle cx="{x:g}" cy="{y:g}" r="5" fill="{colour}"/>'
        )
        foot = height_of(0.0)
        words = f"{cut(text)}: {number(max(score, 0.0))}{', stop' if stop else ''}"
        shapes.append(
            f"<g><title>{html.escape(words)}</title>"
            f'<path d="M{x:g} {foot:g}V{y:g}" stroke="{colour}" stroke-width="1.5"/>{mark}'
            f'<text transform="translate({x + 4:g} {foot + 10:g}) rotate(-60)" text-anchor="end" '
            f'font-family="\'DejaVu Sans Mono\',monospace" font-size="12" '
            f'xml:space="preserve" fill="{ink}">{html.escape(cut(text))}</text></g>'
        )
    y = height_of(threshold)
    shapes.append(
        f'<path d="M{_LEFT} {y:g}H{width - 14:g}" stroke="{ink}" stroke-width="2" '
        'stroke-dasharray="6 4"/>'
    )
    height = _TOP + _HIGH + _BELOW
    return Picture(
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height}" '
        f'viewBox="0 0 {width:g} {height}" role="img" aria-label="{html.escape(line)}">'
        f'<rect x="0.5" y="0.5" width="{width - 1:g}" height="{height - 1}" rx="6" '
        f'fill="{ground}" stroke="{rim}"/>{"".join(shapes)}</svg>'
    )
