"""One token among all: the distributions at its position."""

from __future__ import annotations

from specnb import exact, views
from specnb.decode import Decoding
from specnb.live.page import line
from specnb.record import TokenRow
from specnb.replay import Distributions, distributions_at
from specnb.views.style import visible

TOP = 5  # tokens of a place for which the best possible is computed


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
    return picture._repr_html_() + line(words) + _of_several(found)


def _of_several(found: Distributions) -> str:
    """How likely one of k drafts of this place is kept, beside the most that any rule could keep.

    Nothing where the drafter has no distribution here, or where both are sure of one token.
    """
    if found.at_node is None or max(float(found.target.max()), float(found.at_node.max())) == 1.0:
        return ""
    target, draft, ids = exact.cut(found.target, found.at_node, TOP)
    kept = "; ".join(
        f"{k} drafts {exact.recursive_acceptance(target, draft, k):.3f}, "
        f"at best {exact.best_acceptance(target, draft, k):.3f}"
        for k in (2, 3)
    )
    one = exact.recursive_acceptance(target, draft, 1)
    return line(
        f"Of k independent drafts of this place, cut to its {len(ids)} most probable tokens, one "
        f"is kept with probability: 1 draft {one:.3f}; {kept}."
    )
