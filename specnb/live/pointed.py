"""One token among all: the distributions at its position."""

from __future__ import annotations

from specnb import views
from specnb.decode import Decoding
from specnb.live.page import line
from specnb.record import TokenRow
from specnb.replay import distributions_at
from specnb.views.style import visible


def draw_distributions(decoding: Decoding, row: TokenRow, place: str) -> str:
    """The distributions at a token, drawn, and its probabilities: as recorded, and computed anew.

    `place` begins the title. What comes back is HTML.
    """
    found = distributions_at(decoding, row)
    title = f"{place}: “{visible(row.text)}”, {row.verdict} in block {row.block + 1}"
    names = decoding.pair.target.piece
    picture = views.distributions(
        found.target, found.draft, names, left=found.left, token=row.token_id, title=title
    )
    pairs = [("target", row.target_prob, found.target)]
    if row.draft_prob is not None and found.draft is not None:
        pairs.append(("draft", row.draft_prob, found.draft))
    words = "; ".join(
        f"{name}: recorded {recorded:.4f}, computed anew {float(probs[row.token_id]):.4f}"
        for name, recorded, probs in pairs
    )
    return picture._repr_html_() + line(words)
