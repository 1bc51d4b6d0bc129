"""Trees that grow where it pays: the next draws go to the nodes that promise the most tokens.

How many draws a node gets is settled before any of them is made; a drawn token is never dropped.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from specnb.drafters.trees import Drawn, Level, _OfDraftModel, without_replacement_laws
from specnb.knobs import knob, rule_knob
from specnb.sampling import Draws
from specnb.stopping import entropy_bound


class Reach(NamedTuple):
    """What a node knows of itself and, at the time it was drawn, of the whole tree."""

    share: float  # how likely the target is to keep the path down to this node: a guess
    tokens: float  # expected of the tree so far, the target's own token included
    nodes: int
    levels: int


ROOT = Reach(1.0, 1.0, 0, 0)


@dataclass(frozen=True)
class _Unevenly(_OfDraftModel):
    """Draws without replacement, a number of its own for each node of a level."""

    verify: str | Callable[..., Any] = field(
        default="recursive", kw_only=True, metadata=rule_knob("recursive", "traversal")
    )

    def plan(self, level: Level) -> list[list[Any]]:
        """For each node of a level what its children will carry, one entry per draw.

        Made before any of them is drawn.
        """
        raise NotImplementedError

    def expand(self, level: Level, draws: Draws) -> Iterator[Drawn]:
        for row, planned in enumerate(self.plan(level)):
            if not planned:
                continue
            probs = level.probs[row]
            if len(planned) == 1:  # most nodes: a plain draw is the same, and costs a third
                yield Drawn(row, draws.categorical(probs), probs, planned[0])
                continue
            (drawn,) = draws.without_replacement(probs[None], len(planned)).tolist()
            tokens = [token for token in drawn if token >= 0]
            laws = without_replacement_laws(probs, tokens)
            for token, law, carried in zip(tokens, laws, planned, strict=False):
                yield Drawn(row, token, law, carried)

    def child_law(self, probs: Tensor, earlier: Sequence[int], token: int) -> Tensor:
        return without_replacement_laws(probs, [*earlier, token])[-1]


@dataclass(frozen=True)
class BestFirst(_Unevenly):
    """At most `budget` nodes, level by level, each draw where it promises most (2406.16858's idea).

    A drafter's law of entropy H is guessed to be right with s = 1 - sqrt(entropy_factor * H), as in
    AdaEDL; sibling number j of a node that is reached with probability r then adds
    r s (1 - s)^(j - 1) tokens. A draw is made where that is more than its cost, `node_cost` times
    the tokens per time of the tree so far; a level is begun where its best draw would pay for
    itself and for the drafter's forward. Costs are in target calls of one token: `draft_cost` of a
    drafter's forward, `node_cost` of a node that the target scores. EAGLE-2 prunes by the drawn
    token's own probability, which is lossless for chosen tokens and not for drawn ones: here
    nothing drawn is dropped. depth: levels, at most. stop, verify: as of `GumbelTopK`.
    """

    budget: int = knob(16, least=1, upto=64, words="nodes per target call, at most")
    draft_cost: float = knob(0.1, least=0, upto=1, step=0.01, words="a drafter's forward")
    node_cost: float = knob(0.05, least=0, upto=1, step=0.01, words="a node that is scored")
    depth: int = knob(12, least=1, upto=16, words="levels of the tree, at most")
    entropy_factor: float = knob(0.2, least=0, upto=1, kw_only=True, words="weight of the entropy")

    def plan(self, level: Level) -> list[list[Reach]]:
        reached = [carried or ROOT for carried in level.carried]
        right = [max(0.0, entropy_bound(h, self.entropy_factor)) for h in _entropies(level.logits)]
        tokens, nodes, levels = reached[0].tokens, reached[0].nodes, level.number + 1
        shares: list[list[float]] = [[] for _ in reached]
        best = [
            (-one.share * s, row) for row, (one, s) in enumerate(zip(reached, right, strict=True))
        ]
        heapq.heapify(best)
        while nodes < self.budget:
            gain, row = -best[0][0], best[0][1]
            if gain <= self.node_cost * self._rate(tokens, nodes, levels):
                break
            heapq.heapreplace(best, (-gain * (1.0 - right[row]), row))
            shares[row].append(gain)
            tokens, nodes = tokens + gain, nodes + 1
        return [[Reach(gain, tokens, nodes, levels) for gain in row] for row in shares]

    def worth_a_level(self, carried: Sequence[Reach]) -> bool:
        """Whether draws after these nodes, if all were right, would pay for themselves and for the
        drafter's forward that they need."""
        tree = carried[0]
        rate = self._rate(tree.tokens, tree.nodes, tree.levels)
        gains = sum(max(0.0, one.share - self.node_cost * rate) for one in carried)
        return tree.nodes < self.budget and gains > self.draft_cost * rate

    def _rate(self, tokens: float, nodes: int, levels: int) -> float:
        """Tokens per time of a tree, in target calls of one token."""
        return tokens / (1.0 + self.draft_cost * levels + self.node_cost * nodes)


@dataclass(frozen=True)
class BranchWhereUnsure(_Unevenly):
    """One child where the drafter is sure, `width` where its law has more than `entropy` nats.

    The simplest tree that spends its nodes by the drafter's law; at most `budget` of them, in at
    most `depth` levels. stop, verify: as of `GumbelTopK`.
    """

    depth: int = knob(5, least=1, upto=16, words="levels of the tree")
    width: int = knob(2, least=1, upto=8, words="children where it is unsure")
    entropy: float = knob(1.0, least=0, upto=5, step=0.1, words="unsure above it", unit="nats")
    budget: int = knob(30, least=1, upto=64, words="nodes per target call, at most")

    def plan(self, level: Level) -> list[list[int]]:
        nodes = level.carried[0] or 0
        counts: list[int] = []
        for entropy in _entropies(level.logits):
            room = self.budget - nodes - sum(counts)
            counts.append(min(room, self.width if entropy > self.entropy else 1))
        return [[nodes + sum(counts)] * count for count in counts]  # the tree's nodes so far


def _entropies(logits: Tensor) -> list[float]:
    """Of the drafter's laws at temperature 1, in nats: so that they tell something at 0, too."""
    found: list[float] = torch.special.entr(logits.softmax(-1)).sum(-1).tolist()
    return found
