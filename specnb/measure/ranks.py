"""Which sibling does the target keep? Acceptance by rank in draw order, read off records."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from specnb.arguments import whole
from specnb.record import Record


class Place(NamedTuple):
    """A node of a draft tree at whose children the target looked.

    `rank` is that of the accepted child in draw order, from 1; 0 where none was accepted.
    `depth` is the children's.
    """

    block: int
    depth: int
    n_children: int
    rank: int


def places_of(record: Record) -> list[Place]:
    """Every node of a run's trees at whose children the target looked, in order."""
    children: dict[tuple[int, int], list[str]] = {}
    depth: dict[tuple[int, int], int] = {}
    for row in record.tokens:
        if row.node >= 0:
            children.setdefault((row.block, row.parent), []).append(row.verdict)
            depth[row.block, row.parent] = row.depth
    return [
        Place(
            block=block,
            depth=depth[block, parent],
            n_children=len(verdicts),
            rank=verdicts.index("accepted") + 1 if "accepted" in verdicts else 0,
        )
        for (block, parent), verdicts in children.items()
        if {"accepted", "rejected"} & set(verdicts)
    ]


def accepted_by_rank(records: Iterable[Record], most: int) -> tuple[float, ...]:
    """How often the first, second ... up to the `most`-th draw at a node is the accepted one.

    For `best_tree`. The runs must have drawn `most` children at every node, as
    `GumbelTopK((most,))` does; where fewer tokens have probability > 0, the rest counts as not
    accepted. ValueError where there is nothing to count, or no node has so many children: nothing
    is known of ranks that were never drawn.
    """
    most = whole("most", most, 1)
    places = [place for record in records for place in places_of(record)]
    if places and (widest := max(place.n_children for place in places)) < most:
        raise ValueError(
            f"most={most}: in these runs no node has more than {widest} children; give runs of "
            f"GumbelTopK(({most},)), or a smaller most"
        )
    return shares([place.rank for place in places], most)


def shares(ranks: Sequence[int], most: int) -> tuple[float, ...]:
    """The share of each of the ranks 1 to `most` among all places."""
    if not ranks:
        raise ValueError("records: no draft was looked at; give runs of a drafter that drafts")
    return tuple(ranks.count(rank) / len(ranks) for rank in range(1, most + 1))
