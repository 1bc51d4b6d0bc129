"""One token among all: the laws at its place."""

from __future__ import annotations

from specnb import views
from specnb.decode import Decoding
from specnb.live.page import line
from specnb.record import TokenRow
from specnb.replay import distributions_at
from specnb.views.style import visible


def laws_at(decoding: Decoding, row: TokenRow, place: str) -> str:
    """The laws at a token, drawn, and its probabilities as recorded and computed anew, as HTML."""
    laws = distributions_at(decoding, row)
    title = f"{place}: “{visible(row.text)}”, {row.verdict} in block {row.block + 1}"
    names = decoding.pair.target.piece
    picture = views.laws(
        laws.target, laws.draft, names, left=laws.left, token=row.token_id, title=title
    )
    pairs = [("target", row.target_prob, laws.target)]
    if row.draft_prob is not None and laws.draft is not None:
        pairs.append(("draft", row.draft_prob, laws.draft))
    words = "; ".join(
        f"{name}: recorded {recorded:.4f}, computed anew {float(law[row.token_id]):.4f}"
        for name, recorded, law in pairs
    )
    return picture._repr_html_() + line(words)
