"""Recursive rejection sampling: which drafted tokens the target keeps, and what it says instead."""

from __future__ import annotations

import sys
from collections.abc import Set
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from specnb.sampling import Draws, residual
from specnb.tree import DraftTree

if TYPE_CHECKING or "jaxtyping" in sys.modules:  # not on Colab; the tests have it
    from jaxtyping import Float


@dataclass(frozen=True)
class Examined:
    """One look at a candidate: how likely it was to be accepted, and what decided."""

    accept_prob: float
    uniform: float
    accepted: bool


@dataclass(frozen=True)
class Outcome:
    """The accepted path and the target's own token after it (None behind an accepted EOS).

    `examined` lists (node, look) in order; `final` is "plain" where nothing was proposed at all,
    "correction" after a rejection, "bonus" where the path ended without one.
    """

    path: tuple[int, ...]
    token: int | None
    final: str | None
    final_probs: Tensor | None
    examined: tuple[tuple[int, Examined], ...]


def verify(
    tree: DraftTree,
    root_probs: Float[Tensor, " vocab"],
    node_probs: Float[Tensor, "nodes vocab"],
    draws: Draws,
    eos_ids: Set[int] = frozenset(),
) -> Outcome:
    """Walks the tree from the root; the emitted tokens follow the target's law exactly.

    At each node the children are examined in draw order: accept with min(1, target / draft),
    otherwise the target's law becomes the residual for the next sibling (2211.17192 for one
    child; 2402.14160, algorithm 1, for several). `root_probs` and `node_probs` are the target's
    laws behind the last committed token and behind each node.
    """
    if tree.rule != "recursive":
        raise ValueError(f"rule={tree.rule!r}: this verifier knows 'recursive'")
    path: list[int] = []
    examined: list[tuple[int, Examined]] = []
    node, target_probs = -1, root_probs
    final = "bonus" if len(tree) else "plain"
    while True:
        for child in tree.draws_of(node):
            draft_probs, token = tree.probs[child], tree.tokens[child]
            declared = float(draft_probs[token])
            if not declared > 0.0:  # NaN, too
                raise ValueError(f"node {child}: token {token} was drawn with probability 0")
            accept_prob = min(float(target_probs[token]) / declared, 1.0)  # NaN stays NaN
            accepted, uniform = draws.accept(accept_prob)
            examined.append((child, Examined(accept_prob, uniform, accepted)))
            if accepted:
                path.append(child)
                node, target_probs, final = child, node_probs[child], "bonus"
                if token in eos_ids:  # nothing is ever said behind the end
                    return Outcome(tuple(path), None, None, None, tuple(examined))
                break
            target_probs = residual(target_probs, draft_probs)
            final = "correction"
        else:
            token = draws.categorical(target_probs)
            return Outcome(tuple(path), token, final, target_probs, tuple(examined))
