"""What the views of a run share: signs and colours, visible text, reading order."""

import unicodedata
from itertools import groupby
from typing import NamedTuple

from specnb.record import Record, TokenRow


class Style(NamedTuple):
    """How a verdict is drawn; colours are (text, ground, rim), tested for WCAG AA contrast."""

    sign: str  # tells the verdict without colour vision, as does the rim's line
    meaning: str
    line: str
    light: tuple[str, str, str]
    dark: tuple[str, str, str]


# Hues from Okabe and Ito's palette, darkened or lightened until the text on them is readable.
_OWN = "the target's own token"
STYLES = {
    "accepted": Style("✓", "drafted, and the target keeps it", "solid",
        ("#00513c", "#dff3ec", "#009e73"), ("#b7f0dc", "#0b3a2d", "#2fbf95")),
    "rejected": Style("✗", "drafted, but the target turns it down", "dashed",
        ("#7a2e00", "#fbe6da", "#d55e00"), ("#ffd2b8", "#4a1f06", "#f08a4b")),
    "correction": Style("↺", f"{_OWN} in place of the rejected one", "solid",
        ("#003f68", "#dcebf7", "#0072b2"), ("#bfe3ff", "#06314d", "#56b4e9")),
    "bonus": Style("+", f"{_OWN}, free: the whole draft was accepted", "double",
        ("#5c4300", "#fdf0cf", "#b87f00"), ("#ffe3a1", "#4a3500", "#e69f00")),
    "unexamined": Style("·", "drafted, but never looked at", "dotted",
        ("#666666", "#ffffff", "#999999"), ("#a8a8a8", "#1e1e1e", "#777777")),
    "plain": Style("○", f"{_OWN}, nothing was drafted", "solid",
        ("#222222", "#eeeeee", "#777777"), ("#eeeeee", "#333333", "#999999")),
    "forced": Style("!", "put here by hand, whatever the target thought", "solid",
        ("#6b1f4f", "#f9e6f0", "#b0508a"), ("#f5c6e0", "#43122f", "#cc79a7")),
}  # fmt: skip
# Okabe and Ito's, for what is drawn side by side.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
CARD = {"light": ("#1b1b1b", "#ffffff", "#8a8a8a"), "dark": ("#eeeeee", "#1e1e1e", "#777777")}
_LOOKED = ("accepted", "rejected")
LONGEST = 28  # characters of a token in the strip; the panel shows all of it


def visible(text: str) -> str:
    """The text with nothing hidden in it: spaces at its ends, line ends, controls by number.

    Characters that draw nothing or turn the direction of what follows (controls, bidi overrides,
    lone surrogates, unassigned) become their code points. Not escaped for HTML.
    """
    if not text:
        return "∅"
    inner = text.strip(" ")
    start = len(text) - len(text.lstrip(" "))
    ends = "␣" * start, "␣" * (len(text) - len(inner) - start)
    shown = [_glyph(char) for char in inner]
    if inner and unicodedata.category(inner[0]).startswith("M"):
        shown.insert(0, "◌")  # a mark needs something to stand on, else it lands on our sign
    return ends[0] + "".join(shown) + ends[1]


def _glyph(char: str) -> str:
    if char in " \n\t":
        return {" ": " ", "\n": "⏎", "\t": "⇥"}[char]
    hidden = unicodedata.category(char)[0] in "CZ" or char in "\u115f\u1160\u3164\uffa0"
    return f"⟨U+{ord(char):04X}⟩" if hidden else char


def number(value: float | None) -> str:
    """Three decimals, an exponent below 0.001, a dash for None."""
    if value is None:
        return "–"
    return f"{value:.3f}" if value == 0 or value >= 0.0005 else f"{value:.0e}"


def cut(text: str) -> str:
    """`visible`, at most `LONGEST` characters of it."""
    shown = visible(text)
    return shown if len(shown) <= LONGEST else shown[: LONGEST - 1] + "…"


def counted(n: int, what: str) -> str:
    """So many of something."""
    return f"{n} {what}{'' if n == 1 else 's'}"


def summary(record: Record) -> str:
    """One line: tokens (and how many by hand), target calls, block efficiency, acceptance rate."""
    m = record.metrics
    by_hand = f" and {record.n_forced} by hand" if record.n_forced else ""
    rate = "nothing drafted"
    if m.acceptance_rate is not None:
        rate = f"acceptance rate {m.acceptance_rate:.0%}"
    efficiency = "–" if m.block_efficiency is None else f"{m.block_efficiency:.2f}"
    return (
        f"{counted(m.n_tokens - record.n_forced, 'token')} in "
        f"{counted(m.n_target_calls, 'target call')}{by_hand}, "
        f"block efficiency {efficiency}, {rate}"
    )


def by_block(record: Record) -> list[tuple[int, list[TokenRow]]]:
    """(block, rows) in reading order: siblings stand together, the one that was kept behind the
    others, the target's own token behind those that it replaces; levels that nobody looked at
    come last."""
    looked = {(row.block, row.parent) for row in record.tokens if row.verdict in _LOOKED}
    last = {"rejected": 0, "unexamined": 1, "accepted": 2}

    def place(row: TokenRow) -> tuple:
        unseen = row.node >= 0 and (row.block, row.parent) not in looked
        own = row.node < 0
        return (row.block, unseen, row.depth, own, row.parent, last.get(row.verdict, 3))

    order = sorted(record.tokens, key=place)
    return [(block, list(rows)) for block, rows in groupby(order, key=lambda row: row.block)]


def columns_of(rows: list[TokenRow]) -> list[list[TokenRow]]:
    """The rows of a block as places of its text: in a tree all candidates for a place together,
    of levels that nobody looked at all of a level; in a chain every token alone."""
    columns: list[list[TokenRow]] = []
    for (depth, _), group in groupby(rows, key=lambda row: (row.depth, row.parent)):
        found = list(group)
        before = columns[-1] if columns else []
        unseen = all(row.verdict == "unexamined" for row in [*before[:1], *before[-1:], *found])
        if before and unseen and before[0].depth == depth:
            before.extend(found)
        else:
            columns.append(found)
    if any(sum(row.node >= 0 for row in column) > 1 for column in columns):
        return columns
    return [[row] for row in rows]
