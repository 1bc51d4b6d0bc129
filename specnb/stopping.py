"""When a drafter stops: rules that look at a law *before* the token is drawn from it.

A rule must not see the drawn token: a token dropped because of itself would change the law.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from specnb.knobs import CHOICE, knob, settle

HIGHEST = 0.95  # of an adaptive threshold


@runtime_checkable
class RuleState(Protocol):
    """A rule at work. Itself a rule: `start` gives it back, so a drafter whose `stop` is a started
    rule carries its threshold from prompt to prompt."""

    @property
    def threshold(self) -> float | None:
        """What the score of a law is held against now; None where there is none."""

    @property
    def state(self) -> Hashable:
        """With the committed text, all that later decisions depend on."""

    def start(self) -> RuleState:
        """This very state."""

    def stop(self, logits: Tensor, probs: Tensor) -> bool:
        """Whether to end drafting before a token is drawn from `probs` ([vocab]).

        A rule that names a keyword `path` here is also told the scores of this node's ancestors in
        this block, the first node's first, as its own `score(logits, probs)` gave them. One that
        names `acceptance` is told, here and in `score`, what the draft model's own head guesses
        (`specnb.models.head`), and is refused beside a draft model without one.
        """

    def update(self, depth_drafted: int, n_accepted: int, max_depth: int) -> None:
        """Takes in how a block went."""


@runtime_checkable
class StoppingRule(Protocol):
    """Frozen settings of a rule."""

    def start(self) -> RuleState:
        """A fresh state."""


def is_rule(value: Any) -> bool:
    """Whether this is a stopping rule, and not a class of one, nor a drafter, whose `start` takes
    a pair and a prompt."""
    if isinstance(value, type) or not isinstance(value, StoppingRule):
        return False
    return not inspect.signature(value.start).parameters


@dataclass(frozen=True)
class FixedLength:
    """Never stops before the drafter's own length: speculative decoding as first published."""

    def start(self) -> FixedLength:
        return self

    @property
    def threshold(self) -> None:
        return None

    @property
    def state(self) -> tuple[()]:
        return ()

    def stop(self, logits: Tensor, probs: Tensor) -> bool:
        return False

    def update(self, depth_drafted: int, n_accepted: int, max_depth: int) -> None:
        pass


@dataclass(frozen=True, kw_only=True)
class _Adaptive:
    """Settings of the threshold's drift, the same for both rules (2410.18351, algorithm 1).

    alpha: the acceptance rate aimed at. beta1, beta2: how slowly the running rate and the
    threshold move. epsilon: the size of a move. `adaptive=False` keeps the threshold.
    signal: "raw" scores the softmax of the drafter's logits, so that a rule works at temperature
    0, too; "adjusted" scores the law that the token is drawn from.
    """

    adaptive: bool = knob(True, words="whether the threshold moves")
    alpha: float = knob(0.9, least=0, most=1, words="acceptance rate aimed at")
    beta1: float = knob(0.5, least=0, most=1, words="inertia of the running rate")
    beta2: float = knob(0.9, least=0, most=1, words="inertia of the threshold")
    epsilon: float = knob(0.01, least=0, upto=0.1, step=0.005, words="size of a move")
    signal: str = knob("raw", kind=CHOICE, choices=("raw", "adjusted"), words="what is scored")

    def __post_init__(self) -> None:
        settle(self)

    @property
    def threshold(self) -> float:
        """Where drafting stops at first; the field of every rule."""
        raise NotImplementedError

    def score(self, probs: Tensor) -> float:
        """What is held against the threshold; at most 1."""
        raise NotImplementedError

    def start(self) -> ThresholdState:
        return ThresholdState(self, self.threshold)


@dataclass(frozen=True)
class MaxConfidence(_Adaptive):
    """Stops where the most probable token has less than `threshold` (AdaEDL's paper's baseline).

    adaptive: whether the threshold moves (2410.18351, algorithm 1): up where fewer than `alpha` of
    the drafts are accepted, down where more are. beta1, beta2: how slowly the running rate and the
    threshold move, epsilon: the size of a move. signal: "raw" scores the softmax of the drafter's
    logits, so that the rule works at temperature 0, too; "adjusted" scores the distribution that
    the token is drawn from.
    """

    threshold: float = knob(0.4, finite=False, upto=1, step=0.05, words="stops below it")

    def score(self, probs: Tensor) -> float:
        return float(probs.max())


@dataclass(frozen=True)
class AdaEDL(_Adaptive):
    """Stops where 1 - sqrt(entropy_factor * H) < threshold (2410.18351, equation of section 3).

    H is the entropy of the drafter's law in nats. By Pinsker's inequality the score is a lower
    bound of the acceptance probability, as far as the cross-entropy to the target is
    (1 + 2 * entropy_factor) * H: a guess, and the notebook shows how good a one.

    adaptive: whether the threshold moves (2410.18351, algorithm 1): up where fewer than `alpha` of
    the drafts are accepted, down where more are. beta1, beta2: how slowly the running rate and the
    threshold move, epsilon: the size of a move. signal: "raw" scores the softmax of the drafter's
    logits, so that the rule works at temperature 0, too; "adjusted" scores the distribution that
    the token is drawn from.
    """

    threshold: float = knob(0.4, finite=False, upto=1, step=0.05, words="stops below it")
    entropy_factor: float = knob(0.2, least=0, upto=1, kw_only=True, words="weight of the entropy")

    def score(self, probs: Tensor) -> float:
        return entropy_bound(float(torch.special.entr(probs).sum()), self.entropy_factor)


@dataclass(frozen=True)
class _WholeDraft:
    """A rule over all of a draft: a token counts only if every token before it is accepted.

    It has a fixed threshold and no state but the draft's own path, on a tree the path of each node.
    """

    def __post_init__(self) -> None:
        settle(self)

    @property
    def threshold(self) -> float:
        """Where drafting stops; the field of every rule."""
        raise NotImplementedError

    def start(self) -> Any:  # `stop` of a subclass asks for keywords, which no protocol knows
        return self

    @property
    def state(self) -> tuple[()]:
        return ()

    def update(self, depth_drafted: int, n_accepted: int, max_depth: int) -> None:
        pass


@dataclass(frozen=True, kw_only=True)
class _Entropies(_WholeDraft):
    """A rule over the entropies of a draft. signal: as of AdaEDL, "raw" by default."""

    signal: str = knob("raw", kind=CHOICE, choices=("raw", "adjusted"), words="what is scored")

    def stop(self, logits: Tensor, probs: Tensor, *, path: Sequence[float] = ()) -> bool:
        raise NotImplementedError

    def _entropy(self, logits: Tensor, probs: Tensor) -> float:
        """In nats, of the law that the signal names."""
        return float(torch.special.entr(_scored(self.signal, logits, probs)).sum())


@dataclass(frozen=True)
class SumEntropy(_Entropies):
    """Stops where the entropies of this draft's laws, in nats, sum up to more than `threshold`.

    The sum runs from the block's first law to the one that the next token would be drawn from.

    signal: "raw" scores the softmax of the drafter's logits, "adjusted" the distribution that the
    token is drawn from.
    """

    threshold: float = knob(3.0, finite=False, upto=10, step=0.25, words="stops above it, in nats")

    def score(self, logits: Tensor, probs: Tensor) -> float:
        """The entropy of one law, in nats."""
        return self._entropy(logits, probs)

    def stop(self, logits: Tensor, probs: Tensor, *, path: Sequence[float] = ()) -> bool:
        return math.fsum((*path, self.score(logits, probs))) > self.threshold


@dataclass(frozen=True)
class PathScore(_Entropies):
    """Stops where the product of AdaEDL's scores along the draft falls below `threshold`.

    Each score is 1 - sqrt(entropy_factor * H), but not below 0 (2410.18351, equation of section 3,
    for one token); as a guess at the probability that all of the draft is kept, they multiply.

    signal: "raw" scores the softmax of the drafter's logits, "adjusted" the distribution that the
    token is drawn from.
    """

    threshold: float = knob(0.2, finite=False, upto=1, step=0.05, words="stops below it")
    entropy_factor: float = knob(0.2, least=0, upto=1, kw_only=True, words="weight of the entropy")

    def score(self, logits: Tensor, probs: Tensor) -> float:
        """AdaEDL's guess at the acceptance probability of one token, from 0 to 1."""
        return max(0.0, entropy_bound(self._entropy(logits, probs), self.entropy_factor))

    def stop(self, logits: Tensor, probs: Tensor, *, path: Sequence[float] = ()) -> bool:
        return math.prod((*path, self.score(logits, probs))) < self.threshold


@dataclass(frozen=True)
class SpecDecPP(_WholeDraft):
    """Stops where a draft is kept whole with a probability below `threshold`, as the draft model
    itself has learned to guess (SpecDec++, 2405.19715, with h = 1 - threshold).

    Its acceptance head guesses for each token, at temperature 1, and the guesses are multiplied.
    """

    threshold: float = knob(0.2, finite=False, upto=1, step=0.05, words="stops below it")

    def score(self, logits: Tensor, probs: Tensor, *, acceptance: float) -> float:
        """The guess for one token, from 0 to 1."""
        return acceptance

    def stop(
        self, logits: Tensor, probs: Tensor, *, acceptance: float, path: Sequence[float] = ()
    ) -> bool:
        return math.prod((*path, acceptance)) < self.threshold


def asks_for(rule: RuleState, name: str) -> bool:
    """Whether a rule's `stop` takes this keyword: `path`, the scores of a node's ancestors, or
    `acceptance`, the draft model's own guess."""
    return name in inspect.signature(rule.stop).parameters


def _scored(signal: str, logits: Tensor, probs: Tensor) -> Tensor:
    """The law that a signal names: the drafter's at temperature 1, or the one drawn from."""
    if signal != "raw":
        return probs
    return (logits if logits.dtype == torch.float64 else logits.float()).softmax(dim=-1)


def entropy_bound(entropy: float, entropy_factor: float = 0.2) -> float:
    """1 - sqrt(entropy_factor * entropy): AdaEDL's estimate of the acceptance probability."""
    return 1.0 - math.sqrt(entropy_factor * max(entropy, 0.0))


class ThresholdState:
    """A threshold and the running acceptance rate that moves it."""

    def __init__(self, rule: _Adaptive, threshold: float):
        self.rule, self.threshold = rule, threshold
        self.acceptance = 0.0  # as in the code of Draft & Verify (2309.08168); the paper is silent

    def __repr__(self) -> str:
        return f"{self.rule!r} carried on"  # stands in a record's settings

    def start(self) -> ThresholdState:
        return self

    @property
    def state(self) -> Hashable:
        return self.threshold, self.acceptance

    def stop(self, logits: Tensor, probs: Tensor) -> bool:
        return self.rule.score(_scored(self.rule.signal, logits, probs)) < self.threshold

    def update(self, depth_drafted: int, n_accepted: int, max_depth: int) -> None:
        """Algorithm 1 of the paper, once per block.

        A block without a draft says nothing about acceptance and changes nothing. Without the
        upper limit that would be a trap: no score exceeds 1, so a threshold of 1 ends drafting,
        and with it every update, for good.
        """
        rule = self.rule
        if not rule.adaptive or depth_drafted == 0:
            return
        rate = n_accepted / depth_drafted
        self.acceptance = rule.beta1 * self.acceptance + (1 - rule.beta1) * rate
        moved = self.threshold
        if self.acceptance < rule.alpha:
            moved += rule.epsilon
        elif n_accepted != max_depth:
            moved -= rule.epsilon
        mixed = rule.beta2 * self.threshold + (1 - rule.beta2) * moved
        self.threshold = min(mixed, max(HIGHEST, rule.threshold))
