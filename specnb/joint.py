"""Verification of a path as a whole: how far it is kept is decided from joint probabilities.

Node by node a chain is as good as its first weak token. Here a weight is carried along the path:
how much of what the drafter says so far the target wants. A later token may win back what an
earlier one has lost, so that on average more is kept; what is said is still the target's.
"""

from __future__ import annotations

import sys
from collections.abc import Set
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from specnb.outcome import Examined, Looks, Outcome, declared
from specnb.sampling import Draws, residual
from specnb.tree import DraftTree

if TYPE_CHECKING or "jaxtyping" in sys.modules:  # not on Colab; the tests have it
    from jaxtyping import Float


Found = tuple[list[int], Tensor, bool]  # a path, the law after it, whether a draft failed there


def block_verification(
    tree: DraftTree,
    root_probs: Float[Tensor, " vocab"],
    node_probs: Float[Tensor, "nodes vocab"],
    draws: Draws,
    eos_ids: Set[int] = frozenset(),
) -> Outcome:
    """Block verification of a chain: the longest prefix whose own test passes (2403.10444, alg. 2).

    The weight of a prefix is w_i = min(1, w_{i-1} target / draft), w_0 = 1. Every prefix is tested,
    each with a uniform number of its own: the whole chain with w_n, a shorter one with
    r_i / (r_i + 1 - w_i), where r_i = sum max(w_i target - draft, 0) over the tokens after it is
    what the target still wants there. The correction is drawn from norm(max(w target - draft, 0)).
    On average no fewer tokens than node by node. ValueError where the tree branches.
    """
    for node, parent in enumerate(tree.parents):
        if parent != node - 1:
            raise ValueError(
                f"node {node} follows node {parent}: rule='block' judges one path; draft a chain, "
                "or give rule='traversal'"
            )
    ends = [place for place, token in enumerate(tree.tokens, 1) if token in eos_ids]
    length = min([*ends, len(tree)])  # nothing is ever said after the end
    weights = _weights(tree, root_probs, node_probs, length)
    tests = _tests(tree, node_probs, weights)
    decided = [draws.accept(test) for test in tests]
    kept = max((place for place, (passed, _) in enumerate(decided, 1) if passed), default=0)
    looks = tuple(
        (node, Examined(tests[node], uniform, node < kept))
        for node, (_, uniform) in enumerate(decided)
    )
    path, probs = tuple(range(kept)), node_probs[kept - 1] if kept else root_probs
    final = "bonus" if length else "plain"
    if kept < length:
        probs, final = residual(weights[kept] * probs, tree.probs[kept]), "correction"
    elif ends:
        return Outcome(path, None, None, None, looks)
    return Outcome(path, draws.categorical(probs), final, probs, looks)


def _weights(tree: DraftTree, root_probs: Tensor, node_probs: Tensor, length: int) -> list[float]:
    """w_0 .. w_length: the share of each prefix, as drafted, that the target wants."""
    places, tokens = range(length), list(tree.tokens[:length])
    drafted = tree.probs[places, tokens].tolist()
    wanted = [*root_probs[tokens[:1]].tolist(), *node_probs[places[:-1], tokens[1:]].tolist()]
    weights = [1.0]
    for node, (target_prob, draft_prob) in enumerate(zip(wanted, drafted, strict=True)):
        if not draft_prob > 0.0:
            declared(tree, node)  # says so
        weights.append(min(weights[-1] * target_prob / draft_prob, 1.0))  # NaN stays NaN
    return weights


def _tests(tree: DraftTree, node_probs: Tensor, weights: list[float]) -> list[float]:
    """The chance with which each prefix passes, from the one of a single token to the whole."""
    inner = weights[1:-1]
    if not inner:
        return weights[1:]
    scale = torch.tensor(inner, dtype=node_probs.dtype, device=node_probs.device)[:, None]
    left = (scale * node_probs[: len(inner)]).sub(tree.probs[1 : len(weights) - 1]).clamp_min_(0.0)
    rests = left.sum(dim=-1).tolist()
    return [*(end_here(rest, w) for rest, w in zip(rests, inner, strict=True)), weights[-1]]


def end_here(rest: float, weight: float) -> float:
    """The chance that a path ends at a node whose continuations have failed.

    A share `weight` of the node is wanted; what was kept after it leaves `rest` of that, among a
    share of rest + 1 - weight in which nothing after it was kept. 0 / 0, two equal laws, is 1.
    """
    return 1.0 if weight >= 1.0 else rest / (rest + 1.0 - weight)


def traversal_verification(
    tree: DraftTree,
    root_probs: Float[Tensor, " vocab"],
    node_probs: Float[Tensor, "nodes vocab"],
    draws: Draws,
    eos_ids: Set[int] = frozenset(),
) -> Outcome:
    """Traversal verification of a tree, from the leaves to the root (2505.12398, algorithm 1).

    A node is tested once all that hangs on it has failed; after each child that failed its weight
    and the target's law after it become what is left of them. On a chain this is the block rule.
    Exact where siblings are drawn without replacement, or chosen, and where how many a node gets is
    settled before any token of their level is drawn: a subtree is then lost as often, however it
    was grown. Stochastic beams let the paths of a level compete by their draws, so their levels say
    something about each other. ValueError where a node is listed twice, as independent draws do.
    The accepted path's nodes before its last one have no look of their own.
    """
    order = tree.drawn or ()
    if len(set(order)) < len(order):
        twice = next(node for node in order if order.count(node) > 1)
        raise ValueError(
            f"node {twice} was drawn twice: rule='traversal' needs siblings without replacement; "
            "draw them so, or give rule='recursive'"
        )
    looks: Looks = []

    def descend(node: int, weight: float, probs: Tensor) -> Found | None:
        """The path from this node on, the law after it, and whether something failed there."""
        ended = node >= 0 and tree.tokens[node] in eos_ids
        children = [] if ended else tree.draws_of(node)
        for child in children:
            ratio = float(probs[tree.tokens[child]]) / declared(tree, child)
            through = min(weight * ratio, 1.0)  # NaN stays NaN
            if found := descend(child, through, node_probs[child]):
                return [child, *found[0]], *found[1:]
            left = (weight * probs - tree.probs[child]).clamp_min_(0.0)
            rest = float(left.sum())
            weight = end_here(rest, weight)
            probs = left / rest if rest > 0.0 else probs
        if node >= 0:
            accepted, uniform = draws.accept(weight)
            looks.append((node, Examined(weight, uniform, accepted)))
            if not accepted:
                return None
        return [], probs, bool(children)

    path, probs, failed = cast(Found, descend(-1, 1.0, root_probs))  # nothing fails at the root
    if path and tree.tokens[path[-1]] in eos_ids:
        return Outcome(tuple(path), None, None, None, tuple(looks))
    final = "correction" if failed else "bonus" if path else "plain"
    return Outcome(tuple(path), draws.categorical(probs), final, probs, tuple(looks))
