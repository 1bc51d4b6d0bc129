"""Losses: values and gradients against what theory says, by finite differences in float64."""

from __future__ import annotations

import math

import pytest
import torch

from specnb.training import losses
from specnb.training.losses import LOSSES, acceptance, advantages, loss_of, mixed

SHAPE = (3, 4, 7)
MASK = torch.rand(SHAPE[:2], generator=torch.Generator().manual_seed(5)) < 0.7


def logits(seed: int, spread: float = 1.5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return spread * torch.randn(SHAPE, generator=generator, dtype=torch.float64)


def numbers(seed: int = 0):
    """(p, q) at the marked positions, and the logits they come from."""
    theirs, ours = logits(seed), logits(seed + 100)
    return theirs[MASK].softmax(-1), ours[MASK].softmax(-1), theirs, ours


def gradient(loss, theirs: torch.Tensor, ours: torch.Tensor) -> torch.Tensor:
    ours = ours.clone().requires_grad_()
    loss(theirs, ours, MASK).backward()
    return ours.grad


def differences(value, ours: torch.Tensor, step: float = 1e-6) -> torch.Tensor:
    """The gradient of `value(ours)` by central differences."""
    found = torch.zeros_like(ours)
    for place in torch.cartesian_prod(*map(torch.arange, ours.shape)).tolist():
        at = tuple(place)
        up, down = ours.clone(), ours.clone()
        up[at] += step
        down[at] -= step
        found[at] = (value(up) - value(down)) / (2 * step)
    return found


VALUES = {
    "ce": lambda p, q: -q.gather(-1, p.argmax(-1, keepdim=True))[..., 0].log(),
    "kl": lambda p, q: (p * (p / q).log()).sum(-1),
    "rkl": lambda p, q: (q * (q / p).log()).sum(-1),
    "jsd": lambda p, q: (
        ((p * (2 * p / (p + q)).log()).sum(-1) + (q * (2 * q / (p + q)).log()).sum(-1)) / 2
    ),
    "tv": lambda p, q: (p - q).abs().sum(-1) / 2,
    "nla": lambda p, q: -(torch.minimum(p, q).sum(-1)).log(),
}


@pytest.mark.parametrize("name", VALUES)
def test_values_are_those_of_the_formulas(name):
    p, q, theirs, ours = numbers()
    assert LOSSES[name](theirs, ours, MASK).item() == pytest.approx(
        VALUES[name](p, q).mean().item(), abs=1e-12
    )


@pytest.mark.parametrize("name", [*VALUES, "lk"])
def test_gradients_are_those_of_the_values(name):
    _, _, theirs, ours = numbers(1)
    loss = LOSSES[name]
    value = loss
    if name == "lk":  # its share of KL is a constant
        alpha = acceptance(theirs, ours)[MASK]

        def value(theirs, x, mask):
            share = (-losses.ETA * alpha).exp()
            p, q = theirs[mask].softmax(-1), x[mask].softmax(-1)
            return (share * VALUES["kl"](p, q) + (1 - share) * VALUES["tv"](p, q)).mean()

        assert value(theirs, ours, MASK).item() == pytest.approx(loss(theirs, ours, MASK).item())
    found = differences(lambda x: value(theirs, x, MASK).item(), ours)
    assert torch.allclose(gradient(loss, theirs, ours), found, atol=1e-8)


def test_tv_is_one_minus_the_acceptance_that_is_met():
    """By hand: a token is drawn from q and accepted with min(1, p / q)."""
    p, q, theirs, ours = numbers(2)
    met = (q * (p / q).clamp(max=1)).sum(-1)
    assert torch.allclose(acceptance(theirs, ours)[MASK], met, atol=1e-12)
    assert losses.tv(theirs, ours, MASK).item() == pytest.approx(1 - met.mean().item(), abs=1e-12)


def policy_gradient(theirs, ours, reward_of, sign: float = -1.0) -> torch.Tensor:
    """E_q[sign * reward * grad log q], mean over marked positions, written out by hand."""
    p, q = theirs.softmax(-1), ours.softmax(-1)
    reward = reward_of(p, q)
    by_hand = sign * q * (reward - (q * reward).sum(-1, keepdim=True))
    return by_hand * MASK[..., None] / MASK.sum()


def test_the_gradient_of_tv_is_a_policy_gradient():
    _, _, theirs, ours = numbers(3)

    def reward(p, q):
        return (p > q).double()

    found = differences(lambda x: losses.tv(theirs, x, MASK).item(), ours)
    assert torch.allclose(found, policy_gradient(theirs, ours, reward), atol=1e-8)
    # Planted: the sign of the reward. The same check must see it.
    assert not torch.allclose(found, policy_gradient(theirs, ours, reward, 1.0), atol=1e-3)


def test_tvdpp_divides_the_gradient_of_tv_by_the_deviation_of_the_reward():
    p, q, theirs, ours = numbers(4)
    mean = (q * (p > q)).sum(-1)
    deviation = (mean * (1 - mean)).sqrt() + losses.LEAST_SIGMA
    plain = gradient(losses.tv, theirs, ours)
    assert torch.allclose(
        gradient(losses.tvdpp, theirs, ours)[MASK], plain[MASK] / deviation[:, None], atol=1e-12
    )


def test_over_the_batch_weighted_tvdpp_is_tv_but_for_one_factor():
    _, _, theirs, ours = numbers(5)

    def loss(*given):
        return losses.tvdpp(*given, over="batch")

    factors = gradient(loss, theirs, ours)[MASK] / gradient(losses.tv, theirs, ours)[MASK]
    assert torch.allclose(factors, factors.mean(), rtol=1e-9) and factors.mean() > 1


def test_unweighted_tvdpp_points_elsewhere():
    _, _, theirs, ours = numbers(6)

    def loss(*given):
        return losses.tvdpp(*given, weighted=False)

    a, b = gradient(loss, theirs, ours).flatten(), gradient(losses.tv, theirs, ours).flatten()
    assert 0 < torch.cosine_similarity(a, b, dim=0) < 0.97


@pytest.mark.parametrize("over", ["position", "batch"])
def test_advantages_have_mean_0_and_deviation_1(over):
    p, q, _, _ = numbers(7)
    found = advantages((p > q).double(), q, over)
    mean, square = (q * found).sum(-1), (q * found.square()).sum(-1)
    if over == "batch":
        mean, square = mean.mean(), square.mean()
    assert mean.abs().max() < 1e-12 and torch.allclose(square, torch.ones_like(square), atol=1e-4)


def test_a_planted_sign_is_found(monkeypatch):
    """The check of TVD++ fails where its reward is 1{p < q}."""
    right = advantages
    monkeypatch.setattr(losses, "advantages", lambda r, w, over: right(1 - r, w, over))
    with pytest.raises(AssertionError):
        test_tvdpp_divides_the_gradient_of_tv_by_the_deviation_of_the_reward()


def test_tv_from_nothing_hardly_starts_and_nla_does():
    """Where the two hardly overlap, TV's gradient vanishes; -log(alpha) divides by alpha."""
    theirs = torch.zeros(SHAPE, dtype=torch.float64)
    ours = theirs.clone()
    theirs[..., 0], ours[..., 1] = 12.0, 12.0
    sizes = {name: gradient(LOSSES[name], theirs, ours).norm() for name in ("tv", "kl", "nla")}
    assert sizes["tv"] < 1e-4 * sizes["kl"] and sizes["nla"] > 0.1 * sizes["kl"]
    alpha = acceptance(theirs, ours).mean()
    assert sizes["nla"] == pytest.approx((sizes["tv"] / alpha).item(), rel=1e-6)


def test_for_a_certain_target_nla_is_cross_entropy():
    theirs = torch.full(SHAPE, -torch.inf, dtype=torch.float64)
    theirs[..., 2] = 0.0
    ours = logits(9)
    assert LOSSES["nla"](theirs, ours, MASK).item() == pytest.approx(
        LOSSES["ce"](theirs, ours, MASK).item(), abs=1e-9
    )


@pytest.mark.parametrize("name", LOSSES)
def test_ids_that_neither_says_count_nothing(name):
    _, _, theirs, ours = numbers(10)
    more = [torch.cat([x, torch.full((*SHAPE[:2], 2), -torch.inf)], -1) for x in (theirs, ours)]
    small, large = LOSSES[name](theirs, ours, MASK), LOSSES[name](*more, MASK)
    grads = gradient(LOSSES[name], theirs, ours), gradient(LOSSES[name], *more)[..., :7]
    assert small.item() == pytest.approx(large.item(), abs=1e-12)
    assert torch.allclose(*grads, atol=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_number_formats(name):
    _, _, theirs, ours = numbers(11)
    assert LOSSES[name](theirs, ours, MASK).dtype == torch.float64
    for kind in (torch.float32, torch.bfloat16):
        found = LOSSES[name](theirs.to(kind), ours.to(kind), MASK)
        assert found.dtype == torch.float32 and math.isfinite(found)


@pytest.mark.parametrize("name", LOSSES)
def test_only_marked_positions_count(name):
    _, _, theirs, ours = numbers(12)
    changed = torch.where(MASK[..., None], ours, 9 * ours.flip(-1))
    assert torch.equal(LOSSES[name](theirs, ours, MASK), LOSSES[name](theirs, changed, MASK))
    with pytest.raises(ValueError, match="marks no position"):
        LOSSES[name](theirs, ours, torch.zeros_like(MASK))


def test_mixtures():
    _, _, theirs, ours = numbers(13)
    wanted = 0.1 * losses.ce(theirs, ours, MASK) + 0.9 * losses.tv(theirs, ours, MASK)
    for loss in (mixed({"ce": 0.1, "tv": 0.9}), loss_of("0.1 ce + 0.9 tv"), loss_of("0.1*ce+.9tv")):
        assert loss(theirs, ours, MASK).item() == pytest.approx(wanted.item(), abs=1e-14)
    assert loss_of("kl") is LOSSES["kl"]
    for written_out in ("1 kl", "1.0 kl", " 1*kl "):
        found = loss_of(written_out)(theirs, ours, MASK)
        assert found.item() == losses.kl(theirs, ours, MASK).item()
    with pytest.raises(ValueError, match="one loss at least"):
        mixed({})
    for wrong in ("", "hinge", "kl + kl", "-1 kl", "kl - tv", "2"):
        with pytest.raises(ValueError, match="choose one of ce, kl"):
            loss_of(wrong)
    for weight in (0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="number above 0"):
            mixed({"kl": weight})
    with pytest.raises(ValueError, match="'position' or 'batch'"):
        losses.tvdpp(theirs, ours, MASK, over="row")
