"""How logits become probabilities, and the only source of randomness in decoding."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from specnb.arguments import number, whole
from specnb.arguments import seed as checked_seed

if TYPE_CHECKING or "jaxtyping" in sys.modules:  # not on Colab; the tests have it
    from jaxtyping import Float, Int


COLDEST, HOTTEST = 1e-30, 1e30  # beyond them float32 divides by 0 or by infinity


class NoNumbers(ValueError):
    """Logits that are NaN or infinite."""


@dataclass(frozen=True)
class Sampling:
    """Temperature, then top-k, then top-p, in the order of transformers. Temperature 0 is greedy.

    top_k = 0 and top_p = 1.0 switch the respective filter off. ValueError names what is no number
    in its range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        temperature = number("temperature", self.temperature, 0, note=" (0 is greedy decoding)")
        if temperature and not COLDEST <= temperature <= HOTTEST:
            size = "small" if temperature < COLDEST else "large"
            raise ValueError(
                f"temperature={temperature}: it is too {size} to divide by; give 0 (greedy "
                f"decoding), or a number from {COLDEST:g} to {HOTTEST:g}"
            )
        top_k = whole("top_k", self.top_k, 0, note=" (0 keeps every token)")
        top_p = number("top_p", self.top_p, 0, 1, above=True, note=" (1 keeps every token)")
        object.__setattr__(self, "temperature", temperature)
        object.__setattr__(self, "top_k", top_k)
        object.__setattr__(self, "top_p", top_p)

    def probs(self, logits: Float[Tensor, "*batch vocab"]) -> Float[Tensor, "*batch vocab"]:
        """The law that tokens are drawn from; float32, or float64 where the logits are.

        Temperature 0 gives a one-hot row (ties go to the lowest id). ValueError where a row has
        NaN, a positive infinity, or nothing but negative ones.
        """
        if logits.dtype != torch.float64:
            logits = logits.float()
        if self.temperature == 0.0:
            largest, best = logits.max(dim=-1, keepdim=True)  # the first of equals
            _judge(largest)
            return torch.zeros_like(logits).scatter_(-1, best, 1.0)
        largest = logits.amax(dim=-1, keepdim=True)
        _judge(largest)
        if self.temperature == 1.0 and not self.top_k and self.top_p == 1.0:
            return logits.softmax(dim=-1)  # bit by bit what the rest comes to
        # Differences to the best token, so that no temperature can overflow.
        logits = (logits - largest) / self.temperature
        if 0 < self.top_k < logits.shape[-1]:
            kth = logits.topk(self.top_k, dim=-1).values[..., -1:]
            logits = logits.masked_fill(logits < kth, -math.inf)
        if self.top_p < 1.0:
            ranked, order = logits.sort(dim=-1, descending=True, stable=True)
            mass = ranked.softmax(dim=-1)
            above = mass.cumsum(dim=-1) - mass  # what the more probable tokens hold
            drop = (above >= self.top_p).scatter(-1, order, above >= self.top_p)
            logits = logits.masked_fill(drop, -math.inf)
        return logits.softmax(dim=-1)


def _judge(largest: Float[Tensor, "*batch 1"]) -> None:
    """Refuses logits by each row's largest, which is NaN where anything in the row is."""
    total = largest if largest.numel() == 1 else largest.sum()  # of one row: a kernel less
    if math.isfinite(total) or largest.isfinite().all():  # a sum may overflow
        return
    raise NoNumbers(
        "logits are NaN or infinite: numbers overflowed, or the weights are damaged; load the "
        "model with dtype='float32', or copy its files again"
    )


def residual(
    target_probs: Float[Tensor, " vocab"], draft_probs: Float[Tensor, " vocab"]
) -> Float[Tensor, " vocab"]:
    """The law of the token after a rejection: norm(max(0, target - draft)).

    Leviathan et al. 2211.17192, section 2.3. Where the two laws are equal nothing is left of it;
    a rejection can then only come from rounding, and the target's own law is the right one.
    """
    rest = (target_probs - draft_probs).clamp_min(0.0)
    mass = rest.sum()
    return rest / mass if mass > 0 else target_probs


class Draws:
    """All random decisions of one decoding run, from a generator of its own.

    The global generator is never touched. `specnb.exact` puts an enumerator in this place that
    walks every outcome, so decoding must make each random choice by one of these four calls.
    """

    def __init__(self, seed: int = 0):
        self._generator = torch.Generator().manual_seed(checked_seed("seed", seed))
        self._ready: list[float] = []

    def _uniform(self) -> float:
        """The next uniform number in [0, 1); made many at a time, one by one they are dear."""
        if not self._ready:
            self._ready = torch.rand(64, generator=self._generator, dtype=torch.float64).tolist()
        return self._ready.pop()

    def accept(self, prob: float) -> tuple[bool, float]:
        """True with probability `prob`, and the uniform number in [0, 1) that decided it."""
        uniform = self._uniform()
        return uniform < prob, uniform

    def categorical(self, probs: Float[Tensor, " vocab"]) -> int:
        """One token id drawn from `probs`; never one of probability 0."""
        # An array, as its single numbers come much faster than a tensor's.
        mass = probs.cumsum(dim=-1, dtype=torch.float64).numpy(force=True)
        total = float(mass[-1])
        if not (0 < total < math.inf):
            raise ValueError(f"probabilities sum to {total}: there is nothing to draw from")
        point = self._uniform() * total
        if point < total:
            return int(mass.searchsorted(point, "right"))  # the first entry that exceeds it
        return int(mass.searchsorted(total))  # rounding has carried the point that far

    def without_replacement(
        self, probs: Float[Tensor, "nodes vocab"], k: int
    ) -> Int[Tensor, "nodes k"]:
        """k distinct ids per row in draw order; -1 where fewer than k have probability > 0.

        Gumbel top-k (Kool et al. 1903.06059): the k largest perturbed log-probabilities in
        descending order are a sequence of draws without replacement.
        """
        k_possible = min(k, probs.shape[-1])
        scores = probs.double().log() + self.gumbel(tuple(probs.shape)).to(probs.device)
        values, ids = scores.topk(k_possible, dim=-1)
        ids = ids.masked_fill(values == -math.inf, -1)
        return torch.nn.functional.pad(ids, (0, k - k_possible), value=-1)

    def gumbel(self, shape: tuple[int, ...]) -> Float[Tensor, "*shape"]:
        """Independent standard Gumbel numbers (float64)."""
        exponential = torch.empty(shape, dtype=torch.float64)
        return -exponential.exponential_(generator=self._generator).log()
