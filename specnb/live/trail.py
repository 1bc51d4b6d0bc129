"""The reader's moves so far: what each brought, as a table and two small curves.

A move is noted once its run is on the screen, from figures that the record has already: the strip
never waits for it.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import ipywidgets as w

from specnb.live.page import named
from specnb.record import Record
from specnb.views.canvas import words
from specnb.views.compare import wasted
from specnb.views.style import COLOURS, counted

ROWS = 5  # of the table: the last moves
MOST = 200  # moves that are remembered
_WIDE, _HIGH, _LEFT, _TOP, _FOOT = 156, 138, 32, 22, 34  # px of a curve
_STYLE = (
    "<style>.snb-trail{display:flex;flex-wrap:wrap;gap:4px 10px;align-items:flex-start;"
    "line-height:1.3;font-size:12.5px}.snb-trail table{border-collapse:collapse;flex:0 1 340px}"
    ".snb-trail th,.snb-trail td{padding:1px 0 1px 8px;text-align:right;font-weight:normal;"
    "vertical-align:bottom;font-variant-numeric:tabular-nums}"
    ".snb-trail thead th{border-bottom:1px solid;font-weight:bold}"
    ".snb-trail th:first-child{text-align:left;padding-left:0;min-width:6.5em;"
    "overflow-wrap:anywhere}"
    ".snb-trail tbody tr:last-child>*{font-weight:bold}.snb-trail svg{flex:none}</style>"
)


class Move(NamedTuple):
    """What one run brought."""

    kind: str  # moves of a kind share a line
    method: str  # and its numbers
    asked: Any  # what has to be equal for two moves to be compared
    guessed: float  # tokens drafted per target call, the mean
    calls: int
    per_call: float  # tokens per target call
    wasted: int
    ms: float | None  # per token


def move_of(kind: str, method: str, asked: Any, record: Record) -> Move:
    m = record.metrics
    rate = m.tokens_per_second
    return Move(
        kind,
        method,
        asked,
        m.target_budget or 0.0,
        m.n_target_calls,
        m.block_efficiency or 0.0,
        wasted(record),
        1e3 / rate if rate else None,
    )


def in_short(records: Mapping[str, Record]) -> str:
    """The five figures of every run in a line, as HTML."""
    lines = []
    for name, record in records.items():
        m = record.metrics
        rate = m.tokens_per_second
        figures = [
            (m.n_tokens, "tokens" if m.n_tokens != 1 else "token"),
            (m.n_target_calls, "target calls" if m.n_target_calls != 1 else "target call"),
            ("–" if m.block_efficiency is None else f"{m.block_efficiency:.2f}", "tokens per call"),
            (wasted(record), "guesses wasted"),
            ("–" if not rate else f"{1e3 / rate:.1f}", "ms per token"),
        ]
        said = " · ".join(f"<b>{value}</b> {what}" for value, what in figures)
        lines.append(f"<div>{html.escape(name)}: {said}</div>")
    return f'<div class="snb-line" style="line-height:1.5;font-size:15px">{"".join(lines)}</div>'


class Trail(w.VBox):
    """The moves, and a button that forgets them."""

    def __init__(self) -> None:
        self.moves: list[Move] = []
        self.view = w.HTML()
        self.forget = w.Button(description="forget moves", layout={"width": "auto"})
        named(forget_moves=self.forget)
        self.forget.on_click(lambda _: self.clear())
        super().__init__([self.view], layout={"flex": "1 1 440px", "min_width": "0"})

    def note(self, moves: Sequence[Move]) -> None:
        """These came last."""
        self.moves = [*self.moves, *moves][-MOST:]
        self._draw()

    def clear(self) -> None:
        """Forgets all but the last move, which is on the screen still."""
        self.moves = self.moves[-1:]
        self._draw()

    def _draw(self) -> None:
        self.view.value = drawn(self.moves)


def drawn(moves: Sequence[Move]) -> str:
    """The table of the last moves and the curves of those that can be compared, as HTML."""
    if not moves:
        return ""
    like = [move for move in moves if move.asked == moves[-1].asked]
    curves = _curve(like, "tokens per call", [move.per_call for move in like])
    curves += _curve(like, "ms per token", [move.ms for move in like])
    return f'{_STYLE}<div class="snb-trail">{curves}{_table(moves)}</div>'


def _table(moves: Sequence[Move]) -> str:
    heads = ("your moves", "guesses per call", "target calls", "wasted", "ms per token")
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    rows = "".join(
        f'<tr><th scope="row">{html.escape(move.method)}</th><td>{move.guessed:.1f}</td>'
        f"<td>{move.calls}</td><td>{move.wasted}</td>"
        f"<td>{'–' if move.ms is None else f'{move.ms:.1f}'}</td></tr>"
        for move in moves[-ROWS:]
    )
    before = len(moves) - ROWS
    more = f"<caption>{counted(before, 'move')} before these</caption>" if before > 0 else ""
    return f"<table>{more}<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _curve(moves: Sequence[Move], title: str, heights: Sequence[float | None]) -> str:
    """Heights over the guesses per call: a line per method, a ring around the last move."""
    known = [(move, y) for move, y in zip(moves, heights, strict=True) if y is not None]
    most_x = max([5.0, *(move.guessed for move, _ in known)])
    most_y = _round(max([1.0, *(y for _, y in known)]))
    wide, high = _WIDE - _LEFT - 12, _HIGH - _TOP - _FOOT

    def at(move: Move, y: float) -> tuple[float, float]:
        return _LEFT + move.guessed / most_x * wide, _TOP + high * (1 - y / most_y)

    axes = f"M{_LEFT} {_TOP}V{_TOP + high}H{_LEFT + wide}"
    parts = [f'<path d="{axes}" fill="none" stroke="currentColor"/>']
    for value in (0.0, most_y):
        y = _TOP + high * (1 - value / most_y)
        parts.append(_word(f"{value:g}", _LEFT - 5, y + 4, "end"))
    parts.append(_word(f"{most_x:.0f}", _LEFT + wide, _TOP + high + 13, "end"))
    parts.append(_word("guesses per call", _LEFT + wide / 2, _HIGH - 4, "middle"))
    kinds = list(dict.fromkeys(move.kind for move, _ in known))
    for index, kind in enumerate(kinds):
        colour = COLOURS[index % 6]  # not the black one: the ground may be dark
        mine = [at(*one) for one in known if one[0].kind == kind]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in sorted(mine))
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>'
            + "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in mine)
        )
    if known and known[-1][0] is moves[-1]:
        x, y = at(*known[-1])
        ring = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="6" fill="none" stroke="currentColor"'
        parts.append(f'{ring} stroke-width="2"/>')
    said = "; ".join(f"{move.guessed:.1f} guesses: {y:.2f}" for move, y in known[-ROWS:])
    return (
        f'<svg width="{_WIDE}" height="{_HIGH}" viewBox="0 0 {_WIDE} {_HIGH}" role="img" '
        f'aria-label="{html.escape(f"{title}, over guesses per call: {said}")}">'
        f"{_word(title, _LEFT - 28, 13, '', bold=True)}{''.join(parts)}</svg>"
    )


def _word(text: str, x: float, y: float, anchor: str, bold: bool = False) -> str:
    return words(text, x, y, 12, fill="currentColor", anchor=anchor, bold=bold)


def _round(value: float) -> float:
    """The next 1, 2 or 5 times a power of ten that is not below it."""
    power = 1.0
    while power < value:
        power *= 10
    return next(part for part in (power / 10, power / 5, power / 2, power) if part >= value)
