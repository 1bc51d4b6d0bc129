"""What a drafter is trained to make small: `LOSSES`, name -> loss.

Every loss is a function of (target_logits, draft_logits, mask). With p = softmax(target logits) and
q = softmax(draft logits) at a position, a drafted token is accepted with probability
alpha = sum_v min(p_v, q_v) = 1 - TV(p, q) (2211.17192, corollary 3.6). The value is the mean over
the positions that `mask` marks, in float32, or in float64 where the logits are float64. The target
is a constant: nothing is ever differentiated with respect to it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING or "jaxtyping" in sys.modules:  # not on Colab; the tests have it
    from jaxtyping import Bool, Float

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
LEAST_ALPHA = 1e-5  # -log(alpha) is cut off here, as in the public code of LK losses
LEAST_SIGMA = 1e-5  # added to a deviation before it divides, as in the public code of TVD++
ETA = 3.0  # LK hybrid's, as used for EAGLE-3 drafters


def _pair(target_logits: Tensor, draft_logits: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """(p, log q) at the marked positions, [marked, vocab]."""
    if target_logits.shape != draft_logits.shape or mask.shape != draft_logits.shape[:-1]:
        raise ValueError(
            f"target_logits {tuple(target_logits.shape)}, draft_logits "
            f"{tuple(draft_logits.shape)}, mask {tuple(mask.shape)}: give logits of one shape and "
            "a mask without its last axis"
        )
    if not mask.any():
        raise ValueError("mask: it marks no position; leave such a batch out")
    kind = torch.promote_types(
        torch.promote_types(target_logits.dtype, draft_logits.dtype), torch.float32
    )
    p = target_logits[mask].detach().to(kind).softmax(-1)
    log_q = draft_logits[mask].to(kind).log_softmax(-1)
    return p, log_q.clamp(min=torch.finfo(kind).min)  # with -inf a product with 0 were no number


def _expected(weights: Tensor, values: Tensor) -> Tensor:
    """sum_v weights * values per position; what has no weight counts 0, even where it is -inf."""
    return torch.where(weights > 0, weights * values, 0.0).sum(-1)


def _log(p: Tensor) -> Tensor:
    return p.clamp(min=torch.finfo(p.dtype).tiny).log()


def acceptance(
    target_logits: Float[Tensor, "*batch vocab"], draft_logits: Float[Tensor, "*batch vocab"]
) -> Float[Tensor, "*batch"]:
    """alpha = sum_v min(p_v, q_v): how probably a token drawn from q is accepted, per position."""
    everywhere = torch.ones(draft_logits.shape[:-1], dtype=torch.bool, device=draft_logits.device)
    p, log_q = _pair(target_logits, draft_logits, everywhere)
    return torch.minimum(p, log_q.exp()).sum(-1).view(everywhere.shape)


def ce(
    target_logits: Float[Tensor, "*batch vocab"],
    draft_logits: Float[Tensor, "*batch vocab"],
    mask: Bool[Tensor, "*batch"],
) -> Float[Tensor, ""]:
    """Cross-entropy on what the target would say greedily: -log q(argmax p)."""
    p, log_q = _pair(target_logits, draft_logits, mask)
    return -log_q.gather(-1, p.argmax(-1, keepdim=True)).mean()


def kl(
    target_logits: Float[Tensor, "*batch vocab"],
    draft_logits: Float[Tensor, "*batch vocab"],
    mask: Bool[Tensor, "*batch"],
) -> Float[Tensor, ""]:
    """Forward KL divergence, sum_v p log(p / q): covers all that the target may say."""
    p, log_q = _pair(target_logits, draft_logits, mask)
    return _kl(p, log_q).mean()


def _kl(p: Tensor, log_q: Tensor) -> Tensor:
    return _expected(p, _log(p) - log_q)


def rkl(
    target_logits: Float[Tensor, "*batch vocab"],
    draft_logits: Float[Tensor, "*batch vocab"],
    mask: Bool[Tensor, "*batch"],
) -> Float[Tensor, ""]:
    """Reverse KL divergence, sum_v q log(q / p): seeks what the target says most.

    Tokens of which p is 0 (also by underflow) count as if p were the smallest normal number.
    """
    p, log_q = _pair(target_logits, draft_logits, mask)
    return _expected(log_q.exp(), log_q - _log(p)).mean()


def jsd(
    target_logits: Float[Tensor, "*batch vocab"],
    draft_logits: Float[Tensor, "*batch vocab"],
    mask: Bool[Tensor, "*batch"],
) -> Float[Tensor, ""]:
    """Jensen-Shannon divergence, (KL(p | m) + KL(q | m)) / 2 with m = (p + q) / 2; <= log 2."""
    p, log_q = _pair(target_logits, draft_logits, mask)
    q = log_q.exp()
    log_m = _log((p + q) / 2)
    return (_expected(p, _log(p) - log_m) + _expected(q, log_q - log_m)).mean() / 2


def tv(
    target_logits: Float[Tensor, "*batch vocab"],
    draft_logits: Float[Tensor, "*batch vocab"],
    mask: Bool[Tensor, "*batch"],
) -> Float[Tensor, ""]:
    """Total variation distance, 1 - sum_v min(p, q): exactly the probability of a rejection.

    Its gradient is E_q[-r grad log q] with r = 1{p > q} (2403.00858): where the two hardly overlap
    q is small wherever r is 1, and so is the gradient. It starts from a drafter that has learned.
    """
    p, log_q = _pair(target_logits, draft_logits, mask)
    return _tv(p, log_q).mean()


def _tv(p: Tensor, log_q: Tensor) -> Tensor:
    return 1 - torch.minimum(p, log_q.exp()).sum(-1)


def tvdpp(
    target_logits: Float[Tensor, "*batch vocab"],
    draft_logits: Float[Tensor, "*batch vocab"],
    mask: Bool[Tensor, "*batch"],
    over: str = "position",
    weighted: bool = True,
) -> Float[Tensor, ""]:
    """TVD++ (2403.00858): TV's policy gradient with its reward r = 1{p > q} made an advantage.

    The value is -sum_v q A log q, with q as a weight and A = (r - mean) / deviation held constant:
    a surrogate, only its gradient means something. `over` says over what mean and deviation
    are taken, "position" (the vocabulary at each position) or "batch" (all marked positions); the
    abstract does not say. With `weighted` the expectation under q is exact, so that a mean taken
    off changes no gradient at all: "batch" is then TV but for one factor, and "position" divides
    TV's gradient by sqrt(m (1 - m)) with m = sum of q where p > q. Without it tokens count alike,
    mean and deviation too, which is what public code does and no gradient of TV.
    """
    if over not in ("position", "batch"):
        raise ValueError(f"over={over!r}: choose 'position' or 'batch'")
    p, log_q = _pair(target_logits, draft_logits, mask)
    q = log_q.detach().exp()
    weights = q if weighted else torch.full_like(q, 1 / q.shape[-1])
    advantage = advantages((p > q).to(q.dtype), weights, over)
    return -_expected(weights, advantage * log_q).mean()


def advantages(
    reward: Float[Tensor, "positions vocab"], weights: Float[Tensor, "positions vocab"], over: str
) -> Float[Tensor, "positions vocab"]:
    """(reward - mean) / (deviation + 1e-5) under `weights`, whose rows sum to 1."""
    mean = (weights * reward).sum(-1, keepdim=True)
    if over == "batch":
        mean = mean.mean()
    variance = (weights * (reward - mean).square()).sum(-1, keepdim=True)
    if over == "batch":
        variance = variance.mean()
    return (reward - mean) / (variance.sqrt() + LEAST_SIGMA)


def nla(
    target_logits: Float[Tensor, "*batch vocab"],
    draft_logits: Float[Tensor, "*batch vocab"],
    mask: Bool[Tensor, "*batch"],
) -> Float[Tensor, ""]:
    """-log(alpha) (2602.23881): TV's gradient divided by alpha, so that it starts by itself.

    For a target that is certain of its token it is cross-entropy. alpha counts as at least 1e-5,
    below which there is no gradient.
    """
    p, log_q = _pair(target_logits, draft_logits, mask)
    return -(1 - _tv(p, log_q)).clamp(min=LEAST_ALPHA).log().mean()


def lk(
    target_logits: Float[Tensor, "*batch vocab"],
    draft_logits: Float[Tensor, "*batch vocab"],
    mask: Bool[Tensor, "*batch"],
    eta: float = ETA,
    over: str = "position",
) -> Float[Tensor, ""]:
    """LK hybrid (2602.23881): lambda KL + (1 - lambda) TV with lambda = exp(-eta alpha), constant.

    KL where the drafter is bad, TV where it is good. alpha is that of each position, or with
    over="batch" the mean over all marked ones; public code does both.
    """
    if over not in ("position", "batch"):
        raise ValueError(f"over={over!r}: choose 'position' or 'batch'")
    p, log_q = _pair(target_logits, draft_logits, mask)
    distance = _tv(p, log_q)
    alpha = 1 - distance.detach()
    share = (-eta * (alpha.mean() if over == "batch" else alpha)).exp()
    return (share * _kl(p, log_q) + (1 - share) * distance).mean()


LOSSES: dict[str, Loss] = {
    "ce": ce,
    "kl": kl,
    "rkl": rkl,
    "jsd": jsd,
    "tv": tv,
    "tvdpp": tvdpp,
    "nla": nla,
    "lk": lk,
}


def mixed(weights: Mapping[str, float]) -> Loss:
    """The weighted sum of named losses, as one loss. ValueError for another name, a weight that is
    not above 0, or no loss at all."""
    if not weights:
        raise ValueError(f"weights={weights!r}: give one loss at least, as in {{'kl': 1.0}}")
    for name, weight in weights.items():
        if name not in LOSSES:
            raise ValueError(f"loss={name!r}: choose one of {', '.join(LOSSES)}")
        if not 0 < weight < float("inf"):
            raise ValueError(f"loss={name!r}: its weight is {weight}; give a number above 0")
    parts = [(weight, LOSSES[name]) for name, weight in weights.items()]

    def loss(target_logits: Tensor, draft_logits: Tensor, mask: Tensor) -> Tensor:
        return sum(  # type: ignore[return-value]  # of at least one tensor
            weight * part(target_logits, draft_logits, mask) for weight, part in parts
        )

    return loss


def loss_of(text: str) -> Loss:
    """The loss of a text: a name of `LOSSES`, or a sum as in "0.1 ce + 0.9 tv"."""
    weights: dict[str, float] = {}
    for part in str(text).split("+"):
        found = re.fullmatch(r"\s*(?:(\d+(?:\.\d*)?|\.\d+)\s*\*?\s*)?([a-z]+)\s*", part)
        if found is None or found[2] not in LOSSES or found[2] in weights:
            raise ValueError(
                f"loss={text!r}: choose one of {', '.join(LOSSES)}, or a sum as in "
                "'0.1 ce + 0.9 tv'"
            )
        weights[found[2]] = float(found[1] or 1)
    only = next(iter(weights))
    return LOSSES[only] if weights == {only: 1.0} else mixed(weights)
