"""Rules and drafters that change what is said: for the lesson on their price, and for nothing else.

None of them has a name in `specnb.methods`: as text they need their address, as in
`Chain(5, verify=specnb.lossy:Typical(0.3))`, and every record made with one says "not lossless".
"""

from __future__ import annotations

from collections.abc import Iterator, Set
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from specnb.arguments import shown
from specnb.drafters.trees import Chain, Drawn, Level
from specnb.knobs import knob, settle
from specnb.outcome import Examined, Looks, Outcome
from specnb.sampling import Draws
from specnb.tree import DraftTree
from specnb.verify import recursive_rejection


@dataclass(frozen=True)
class Typical:
    """Typical acceptance: a draft is kept where the target thinks it typical, without any draw.

    Kept is a token of probability above min(epsilon, delta exp(-entropy)) (Medusa, 2401.10774);
    the token after the kept ones is drawn from the target's law.
    """

    epsilon: float = knob(0.3, least=0, most=1, words="a token above this is always kept")
    delta: float = knob(0.09, least=0, upto=1, words="the less, the more of an unsure target")
    not_lossless: ClassVar[str] = "keeps what is typical, and draws nothing"

    def __post_init__(self) -> None:
        settle(self)

    def __call__(
        self,
        tree: DraftTree,
        root_probs: Tensor,
        node_probs: Tensor,
        draws: Draws,
        eos_ids: Set[int] = frozenset(),
    ) -> Outcome:
        path: list[int] = []
        looks: Looks = []
        node, probs, lost = -1, root_probs, False
        while node < 0 or tree.tokens[node] not in eos_ids:
            entropy = torch.special.entr(probs).sum()
            least = min(self.epsilon, self.delta * float((-entropy).exp()))
            here = node
            for child in tree.draws_of(here):
                kept = float(probs[tree.tokens[child]]) > least
                looks.append((child, Examined(float(kept), 0.0, kept)))
                lost = not kept
                if kept:
                    node, probs = child, node_probs[child]
                    path.append(child)
                    break
            if node == here:
                final = "correction" if lost else "bonus" if path else "plain"
                token = draws.categorical(probs)
                return Outcome(tuple(path), token, final, probs, tuple(looks))
        return Outcome(tuple(path), None, None, None, tuple(looks))


@dataclass(frozen=True)
class Ensemble:
    """A mixture in the target's place: `weight` of the drafter's law in it, as in transformers.

    (`assistant_ensemble_weight`.) The output has the mixture's law where something was drafted.
    For chains.
    """

    weight: float = knob(0.3, least=0, most=1, words="of the drafter's law in the mixture")
    not_lossless: ClassVar[str] = "says what a mixture of target and drafter would say"

    def __post_init__(self) -> None:
        settle(self)

    def __call__(
        self,
        tree: DraftTree,
        root_probs: Tensor,
        node_probs: Tensor,
        draws: Draws,
        eos_ids: Set[int] = frozenset(),
    ) -> Outcome:
        if tree.parents != tuple(range(-1, len(tree) - 1)):
            raise ValueError("verify=Ensemble: it mixes the laws of a chain; draft with Chain")
        laws = torch.cat([root_probs[None], node_probs])
        mixed = torch.cat([torch.lerp(laws[:-1], tree.probs.to(laws), self.weight), laws[-1:]])
        plain = replace(tree, rule="recursive")
        return recursive_rejection(plain, mixed[0], mixed[1:], draws, eos_ids)


@dataclass(frozen=True)
class DropsUnsure(Chain):
    """A confidence rule that looks at the drawn token, and drops it where that is below `least`.

    A confidence that knows the token is its own probability, or `confidence`, one number by token
    id. Dropping belongs before the draw: see the two tokens of 2607.05147, appendix A.
    """

    least: float = knob(0.3, least=0, most=1, words="a drawn token below this is dropped")
    confidence: tuple[float, ...] = ()
    not_lossless: ClassVar[str] = "drops a drawn token for what it is"

    def expand(self, level: Level, draws: Draws) -> Iterator[Drawn]:
        if self.confidence and len(self.confidence) != level.probs.shape[-1]:
            raise ValueError(
                f"confidence={shown(self.confidence)}: give one number for each of the "
                f"{level.probs.shape[-1]} token ids"
            )
        for child in super().expand(level, draws):
            sure = self.confidence[child.token] if self.confidence else child.law[child.token]
            if sure >= self.least:
                yield child


@dataclass(frozen=True)
class GreedyAsDrawn(Chain):
    """Drafts the most probable token, and declares the law that it would have been drawn from."""

    not_lossless: ClassVar[str] = "declares a chosen token as a drawn one"

    def expand(self, level: Level, draws: Draws) -> Iterator[Drawn]:
        yield Drawn(0, int(level.probs[0].argmax()), level.probs[0])
