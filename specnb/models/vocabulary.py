"""A smaller vocabulary for a drafter: the ids that its target says most.

VocabTrim (2506.22694) and FR-Spec (2502.14856): a drafter that can say `k` ids only multiplies by
`k` rows of its head, and its distributions are computed, and drawn from, over `k` ids. Of the
others it gives none, so that nothing is lost but the drafts that would have been one of them: the
target's distribution is kept whatever the ids are.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from pathlib import Path

from specnb.arguments import shown, whole, wholes

FREQUENT = "frequent_ids.json"  # in a drafter's folder: all ids, what the target says most first


def kept_ids(
    path: str, k: int, ids: Sequence[int] | None, allowed: Collection[int]
) -> tuple[int, ...]:
    """The first `k` of the ids that are `allowed`, in ascending order.

    `ids` stand in the order in which they are wanted; without them that order is read from
    frequent_ids.json in the folder `path`. ValueError where it is not there, where none of the ids
    is allowed, or fewer than `k` are.
    """
    if ids is None:
        file = Path(path) / FREQUENT
        if not file.is_file():
            raise ValueError(
                f"k={shown(k)}: {path} has no {FREQUENT} that says which ids its target says most; "
                "give ids=, in the order in which they are wanted"
            )
        ids = json.loads(file.read_text(encoding="utf-8"))
    ranked = wholes("ids", ids, 0, "give token ids, those that are said most first")
    if len(set(ranked)) < len(ranked):
        raise ValueError("ids: one of them stands there twice; give each once")
    found = [token for token in ranked if token in allowed]
    if not found:
        raise ValueError(
            f"ids={shown(ids)}: {path} can say none of them; give ids of its vocabulary that have "
            "a word"
        )
    return tuple(sorted(found[: whole("k", k, 1, len(found), " (ids that it may say)")]))
