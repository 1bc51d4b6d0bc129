"""Runs on one prompt held side by side: their strips, token under token, and their figures."""

from __future__ import annotations

import html
from collections.abc import Mapping
from itertools import zip_longest
from statistics import fmean
from typing import Any

from specnb.record import (
    Record,
    TokenRow,
    acceptance_by_depth,
    accepted_lengths,
    joint_acceptance,
)
from specnb.scenes.words import WORDS, word_classes
from specnb.views.canvas import Html
from specnb.views.style import summary
from specnb.views.tokens import HINT, rest, style_sheet, token_cell

_CSS = """
.snb-aligned{max-height:26em;overflow:auto;padding:3px;display:flex;flex-wrap:wrap;gap:9px 3px}
.snb-pairs{display:flex;flex-direction:column;gap:3px;align-items:stretch;text-align:center}
.snb-cell{display:flex;align-items:center;min-height:1.75em}
.snb-cell .snb-t{flex:1}
.snb-first{border-left:3px solid #8a8a8a;padding-left:3px}
.snb-names{font-weight:bold;padding-right:4px}
.snb-figures{border-collapse:collapse;font-size:14px;margin:8px 0}
.snb-figures th,.snb-figures td{padding:3px 14px 3px 0;border-bottom:1px solid #8a8a8a;
 text-align:right;font-variant-numeric:tabular-nums}
.snb-figures th:first-child{text-align:left;font-weight:normal}
"""


def aligned(records: Mapping[str, Record], *, title: str = "Side by side") -> Html:
    """The emitted tokens of every run, those at the same place of the text below each other.

    A thick bar stands where a target call begins, with its number. Drafted tokens that did
    not become text are counted in the line above. ValueError for fewer than two runs.
    """
    if len(records) < 2:
        raise ValueError(f"records={list(records)}: give at least two runs by name")
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[: len(records)]
    lines = "".join(
        f"<div><b>{letter}</b> {html.escape(name)}: {summary(record)}, "
        f"{wasted(record)} wasted</div>"
        for letter, (name, record) in zip(letters, records.items(), strict=True)
    )
    names = "".join(f'<div class="snb-cell snb-names">{letter}</div>' for letter in letters)
    places = zip_longest(*(record.emitted for record in records.values()))
    runs = list(records.values())
    columns = [f'<div class="snb-pairs" aria-hidden="true">{names}</div>']
    before: list[int | None] = [None] * len(runs)
    for rows in places:
        cells = ""
        for which, row in enumerate(rows):
            cells += _cell(runs[which], row, before[which])
            before[which] = row.block if row else None
        columns.append(f'<div class="snb-pairs">{cells}</div>')
    head = html.escape(title)
    return Html(
        f'<div class="snb-tokens" role="group" aria-label="{head}">{style_sheet(_CSS)}'
        f'<div class="snb-title">{head}</div>{lines}<div>{_where_they_differ(records)} {HINT}</div>'
        f'<div class="snb-aligned">{"".join(columns)}</div>'
        f"{rest(runs[0], runs[0].emitted)}</div>"
    )


def _cell(record: Record, row: TokenRow | None, block_before: int | None) -> str:
    if row is None:
        return '<div class="snb-cell">&nbsp;</div>'
    if row.block == block_before:
        return f'<div class="snb-cell">{token_cell(record, row)}</div>'
    number = f'<span class="snb-number">{row.block + 1}</span>'
    return f'<div class="snb-cell snb-first">{number}{token_cell(record, row)}</div>'


def _where_they_differ(records: Mapping[str, Record]) -> str:
    texts = [record.token_ids for record in records.values()]
    for place, ids in enumerate(zip_longest(*texts)):
        if len(set(ids)) > 1:
            return f"The texts differ from token {place + 1} on."
    return f"The texts are the same, token for token ({len(texts[0])} tokens)."


def wasted(record: Record) -> int:
    """Drafted tokens that did not become text."""
    return sum(row.verdict in ("rejected", "unexamined") for row in record.tokens)


def figures(
    records: Mapping[str, Record], plain: Record | None = None, *, prompt: str = ""
) -> Html:
    """The metrics of every run as a table, against plain decoding where that is given.

    "Times as fast" is plain decoding's time per token / the run's, without prefill, measured once.
    With the `prompt` of answers about the picture world acceptance stands there by kind of word,
    too (`specnb.scenes.words`).
    """
    runs = records if plain is None else {**records, "plain decoding": plain}
    columns = {name: _figures_of(record, plain) for name, record in runs.items()}
    rows = _ROWS
    if prompt:
        place = rows.index("wasted")
        rows = (*rows[:place], _BY_WORD, *rows[place:])
        for name, record in runs.items():
            columns[name].insert(place, _by_word(record, prompt))
    head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in columns)
    body = "".join(
        f'<tr><th scope="row">{name}</th>'
        + "".join(f"<td>{column[place]}</td>" for column in columns.values())
        + "</tr>"
        for place, name in enumerate(rows)
    )
    return Html(
        f'<div class="snb-tokens" role="group" aria-label="figures">{style_sheet(_CSS)}'
        f'<table class="snb-figures"><thead><tr><th scope="col">measured on this prompt</th>{head}'
        f"</tr></thead><tbody>{body}</tbody></table></div>"
    )


_ROWS = (
    "tokens",
    "target calls",
    "block efficiency (tokens per target call)",
    "acceptance rate",
    "kept at position 1, 2 …, % of calls with drafts",
    "the same, % of calls that examined one there",
    "calls that keep 0, 1, 2 … drafts",
    "wasted",
    "memory-bound speed-up",
    "ms per token",
    "times as fast as plain decoding",
)


_BY_WORD = f"kept of the {', '.join(WORDS)} words, % of examined"


def _by_word(record: Record, prompt: str) -> str:
    """Acceptance by class of word, in percent; nothing where no draft was examined."""
    found = word_classes([record], [prompt])
    shares = (f"{100 * fmean(found[name]):.0f}" if name in found else "–" for name in WORDS)
    return " ".join(shares) if found else "–"


def _by_position(record: Record) -> list[str]:
    """Joint and conditional acceptance by position, in percent, and the lengths that are kept."""
    shares = (
        " ".join(f"{100 * share:.0f}" for share in found)
        for found in (joint_acceptance(record), acceptance_by_depth(record))
    )
    return [text or "–" for text in (*shares, " ".join(map(str, accepted_lengths(record))))]


def _figures_of(record: Record, plain: Record | None) -> list[str]:
    m = record.metrics
    rate = m.tokens_per_second
    ratio = None
    if plain is not None and rate and plain.metrics.tokens_per_second:
        ratio = rate / plain.metrics.tokens_per_second

    def said(value: Any, form: str) -> str:
        return "–" if value is None else format(value, form)

    return [
        str(m.n_tokens),
        str(m.n_target_calls),
        said(m.block_efficiency, ".2f"),
        said(m.acceptance_rate, ".0%"),
        *_by_position(record),
        str(wasted(record)),
        said(m.mbsu, ".2f"),
        said(1e3 / rate if rate else None, ".1f"),
        said(ratio, ".2f"),
    ]
