"""Rejection sampling on a tree: which drafted tokens the target keeps, and what it says instead."""

from __future__ import annotations

import sys
from collections.abc import Callable, Set
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from specnb.arguments import shown
from specnb.joint import block_verification, traversal_verification
from specnb.outcome import FINALS, Looks
from specnb.outcome import Examined as Examined
from specnb.outcome import Outcome as Outcome
from specnb.outcome import Rule as Rule
from specnb.outcome import declared as _declared
from specnb.sampling import Draws, residual
from specnb.tree import DraftTree

if TYPE_CHECKING or "jaxtyping" in sys.modules:  # not on Colab; the tests have it
    from jaxtyping import Float


SUM_TOLERANCE = {torch.float64: 1e-9}  # how far a row may be from 1; 1e-3 in narrower numbers


@dataclass(frozen=True)
class Block:
    """One target call: what was proposed, what the target says, what came of it."""

    tree: DraftTree
    target_probs: Tensor  # [1 + nodes, vocab]; row 0 belongs to the last committed token
    outcome: Outcome
    token_ids: tuple[int, ...]  # emitted
    draft_s: float
    verify_s: float


def verify(
    tree: DraftTree,
    root_probs: Float[Tensor, " vocab"],
    node_probs: Float[Tensor, "nodes vocab"],
    draws: Draws,
    eos_ids: Set[int] = frozenset(),
) -> Outcome:
    """Decides by the tree's rule which drafted tokens stay, and what the target says after them.

    `root_probs` and `node_probs` are the target's laws after the last committed token and after
    each node; the drafter's may lie on another device. `tree.rule` is a name of RULES or a function
    of one's own with these same arguments. ValueError, before anything is drawn, where a row that
    the drafter declares is no distribution; after it, where such a function's outcome is none.
    """
    rule = rule_of(tree.rule)
    if tree.probs.device != root_probs.device:
        tree = replace(tree, probs=tree.probs.to(root_probs.device))
    check_rows(tree)
    outcome = rule(tree, root_probs, node_probs, draws, eos_ids)
    if callable(tree.rule):
        check_outcome(tree, outcome, eos_ids, root_probs.shape[-1])
    return outcome


def recursive_rejection(
    tree: DraftTree,
    root_probs: Tensor,
    node_probs: Tensor,
    draws: Draws,
    eos_ids: Set[int] = frozenset(),
) -> Outcome:
    """Recursive rejection sampling, node by node: exact for the declared laws of any tree."""
    return node_by_node(recursive, tree, root_probs, node_probs, draws, eos_ids)


def k_sequential_selection(
    tree: DraftTree,
    root_probs: Tensor,
    node_probs: Tensor,
    draws: Draws,
    eos_ids: Set[int] = frozenset(),
) -> Outcome:
    """SpecTr's selection, node by node: exact where siblings are independent draws of one law."""
    return node_by_node(k_sequential, tree, root_probs, node_probs, draws, eos_ids)


def rule_of(rule: str | Rule) -> Rule:
    """The function behind a rule's name; a function stays what it is."""
    if callable(rule):
        return rule
    if rule not in RULES:
        raise ValueError(
            f"rule={rule!r}: this verifier knows {' and '.join(map(repr, RULES))}; give one of "
            "them, or a function of your own"
        )
    return RULES[rule]


def node_by_node(
    examine: Examine,
    tree: DraftTree,
    root_probs: Float[Tensor, " vocab"],
    node_probs: Float[Tensor, "nodes vocab"],
    draws: Draws,
    eos_ids: Set[int],
) -> Outcome:
    """Walks the tree from the root; the emitted tokens follow the target's law exactly.

    At each node `examine` looks at the children in draw order until one is accepted.
    """
    path: list[int] = []
    examined: list[tuple[int, Examined]] = []
    node, target_probs = -1, root_probs
    final = "bonus" if len(tree) else "plain"
    while True:
        children = tree.draws_of(node)
        looks, target_probs = examine(tree, children, target_probs, draws)
        examined += looks
        if not looks or not looks[-1][1].accepted:
            final = "correction" if looks else final
            token = draws.categorical(target_probs)
            return Outcome(tuple(path), token, final, target_probs, tuple(examined))
        node = looks[-1][0]
        path.append(node)
        target_probs, final = node_probs[node], "bonus"
        if tree.tokens[node] in eos_ids:  # nothing is ever said after the end
            return Outcome(tuple(path), None, None, None, tuple(examined))


def check_rows(tree: DraftTree) -> None:
    """ValueError naming the first node whose declared law is no distribution; none is repaired."""
    rows = tree.probs
    if len(rows) != len(tree):
        raise ValueError(f"probs: {len(rows)} rows for {len(tree)} nodes; declare one law for each")
    if not len(tree):
        return
    tolerance = SUM_TOLERANCE.get(rows.dtype, 1e-3)
    lowest, sums = rows.amin(dim=-1).tolist(), rows.sum(dim=-1).tolist()
    for node, (low, total) in enumerate(zip(lowest, sums, strict=True)):
        # Written so that NaN, which compares with nothing, is wrong.
        if not (low >= 0.0 and abs(total - 1.0) <= tolerance):
            wrong = f"it sums to {total:.6g}" if low >= 0.0 else f"its lowest entry is {low:.6g}"
            raise ValueError(
                f"node {node}: token {tree.tokens[node]} was declared with a law that is no "
                f"distribution, {wrong}; declare the probabilities that it was drawn with"
            )


def check_outcome(tree: DraftTree, outcome: Any, eos_ids: Set[int], vocab_size: int) -> None:
    """ValueError where what a rule of one's own decided cannot be said by any text."""
    wrong = ""
    if not isinstance(outcome, Outcome):
        wrong = f"it gave {shown(outcome)}, and no Outcome"
    elif not all(0 <= node < len(tree) for node in outcome.path) or any(
        tree.parents[node] != before
        for before, node in zip((-1, *outcome.path), outcome.path, strict=False)
    ):
        wrong = f"its path {outcome.path} does not lead down from the root"
    else:
        ended = bool(outcome.path) and tree.tokens[outcome.path[-1]] in eos_ids
        if ended != (outcome.token is None):
            wrong = "a token of the target's own follows, unless the path ends with an end token"
        elif outcome.token is not None and not 0 <= outcome.token < vocab_size:
            wrong = f"its token {outcome.token} is no id from 0 to {vocab_size - 1}"
        elif any(tree.tokens[node] in eos_ids for node in outcome.path[:-1]):
            wrong = "its path goes on after an end token"
        elif outcome.token is not None and outcome.final_probs is None:
            wrong = "it drew a token and does not say from which law (final_probs)"
        elif outcome.token is not None and outcome.final not in FINALS:
            wrong = f"final={outcome.final!r} is none of {', '.join(FINALS)}"
    if wrong:
        raise ValueError(f"verify={shown(tree.rule)}: {wrong}")


Examine = Callable[[DraftTree, list[int], Tensor, Draws], tuple[Looks, Tensor]]


def recursive(
    tree: DraftTree, children: list[int], target_probs: Tensor, draws: Draws
) -> tuple[Looks, Tensor]:
    """Recursive rejection sampling: the looks, and the law of the token if all were rejected.

    Accept with min(1, target / draft), otherwise the target's law becomes the residual for the
    next sibling (2211.17192 for one child; 2402.14160, algorithm 1, for several).
    """
    looks: Looks = []
    for child in children:
        token, draft_probs = tree.tokens[child], tree.probs[child]
        accept_prob = min(float(target_probs[token]) / _declared(tree, child), 1.0)  # NaN stays NaN
        accepted, uniform = draws.accept(accept_prob)
        looks.append((child, Examined(accept_prob, uniform, accepted)))
        if accepted:
            break
        target_probs = residual(target_probs, draft_probs)
    return looks, target_probs


def k_sequential(
    tree: DraftTree, children: list[int], target_probs: Tensor, draws: Draws
) -> tuple[Looks, Tensor]:
    """SpecTr's k-sequential selection among K draws of one law (2310.15141, algorithm 3).

    Each draw is accepted with min(1, target / (rho * draft)), and the first accepted one wins.
    rho is the smallest number that leaves no token more often accepted than the target says it.
    """
    looks: Looks = []
    if not children:
        return looks, target_probs
    draft_probs = tree.probs[children[0]]
    rho, mass, accepted_mass = k_sequential_rho(target_probs, draft_probs, len(children))
    for child in children:
        ratio = float(target_probs[tree.tokens[child]]) / _declared(tree, child)
        accept_prob = min(ratio / rho, 1.0)
        accepted, uniform = draws.accept(accept_prob)
        looks.append((child, Examined(accept_prob, uniform, accepted)))
        if accepted:
            return looks, target_probs
    if mass > 0:
        said = torch.minimum(draft_probs, target_probs / rho) * (accepted_mass / mass)
        rest = (target_probs - said).clamp_min(0.0)
        if rest.sum() > 0:  # else a rejection came from rounding alone
            target_probs = rest / rest.sum()
    return looks, target_probs


def k_sequential_rho(
    target_probs: Tensor, draft_probs: Tensor, k: int
) -> tuple[float, float, float]:
    """(rho, mass, accepted): a draw is accepted with probability mass, any of k with accepted.

    rho in [1, k] is the root of 1 - (1 - mass(rho))^k = rho * mass(rho), where mass(rho) =
    sum min(draft, target / rho). Rounded up: every larger rho is exact, too, and accepts less.
    """
    target, draft = target_probs.double(), draft_probs.double()
    low, high = 1.0, float(k)
    mass, accepted = _masses(target, draft, k, low)
    if accepted <= low * mass + 1e-14:  # rounding must not make equal laws disagree
        return low, mass, accepted
    while high - low > 1e-9:
        middle = (low + high) / 2
        mass, accepted = _masses(target, draft, k, middle)
        if accepted <= middle * mass:
            high = middle
        else:
            low = middle
    return high, *_masses(target, draft, k, high)


def _masses(target_probs: Tensor, draft_probs: Tensor, k: int, rho: float) -> tuple[float, float]:
    """How likely one draw is to be accepted with this rho, and any of k."""
    mass = float(torch.minimum(draft_probs, target_probs / rho).sum())
    return mass, 1.0 - (1.0 - min(mass, 1.0)) ** k


RULES: dict[Any, Rule] = {
    "recursive": recursive_rejection,
    "kseq": k_sequential_selection,
    "block": block_verification,
    "traversal": traversal_verification,
}
