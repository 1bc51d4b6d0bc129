"""When a drafter stops: rules that look at a law *before* the token is drawn from it.

A rule must not see the drawn token: a token dropped because of itself would change the law.
"""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class RuleState(Protocol):
    """A rule at work in one run."""

    threshold: float | None
    state: Hashable

    def stop(self, logits: Tensor, probs: Tensor) -> bool:
        """Whether to end drafting before a token is drawn from `probs` ([vocab])."""

    def update(self, depth_drafted: int, n_accepted: int, max_depth: int) -> None:
        """Takes in how a block went."""


@runtime_checkable
class StoppingRule(Protocol):
    """Frozen settings of a rule."""

    def start(self, carried: RuleState | None = None) -> RuleState:
        """A fresh state, or the one carried over from another prompt."""


@dataclass(frozen=True)
class FixedLength:
    """Never stops before the drafter's own length: speculative decoding as first published."""

    def start(self, carried: RuleState | None = None) -> "FixedLength":
        return self

    @property
    def threshold(self) -> None:
        return None

    @property
    def state(self) -> tuple:
        return ()

    def stop(self, logits: Tensor, probs: Tensor) -> bool:
        return False

    def update(self, depth_drafted: int, n_accepted: int, max_depth: int) -> None:
        pass
