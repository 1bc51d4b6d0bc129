"""What a verification rule decides: the accepted path, the target's own token, and every look."""

from __future__ import annotations

from collections.abc import Callable, Set
from dataclasses import dataclass

from torch import Tensor

from specnb.sampling import Draws
from specnb.tree import DraftTree

FINALS = ("plain", "correction", "bonus")


@dataclass(frozen=True)
class Examined:
    """One look at a candidate: how likely it was to be accepted, and what decided.

    Node by node a candidate is `accepted` where its uniform number is below `accept_prob`. Rules
    over a whole path test whether the path may end at a node, so `accept_prob` is the chance of
    that, and a node is accepted, too, where the path ends after it.
    """

    accept_prob: float
    uniform: float
    accepted: bool


@dataclass(frozen=True)
class Outcome:
    """The accepted path and the target's own token after it (None after an accepted EOS).

    `examined` lists (node, look) in order; `final` is "plain" where nothing was proposed at all,
    "correction" after a rejection, "bonus" where the path ended without one; "forced" where the
    token was not drawn but given.
    """

    path: tuple[int, ...]
    token: int | None
    final: str | None
    final_probs: Tensor | None
    examined: tuple[tuple[int, Examined], ...]


Looks = list[tuple[int, Examined]]
Rule = Callable[[DraftTree, Tensor, Tensor, Draws, Set[int]], Outcome]


def declared(tree: DraftTree, child: int) -> float:
    """The probability that the drafter says it drew this child with."""
    prob = float(tree.probs[child, tree.tokens[child]])
    if not prob > 0.0:  # NaN, too
        raise ValueError(f"node {child}: token {tree.tokens[child]} was drawn with probability 0")
    return prob
