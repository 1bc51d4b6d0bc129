"""How logits become laws, and draws from them: against transformers, exact laws and chi-square."""

import itertools
import math
import random
import re
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from specnb.decode import speculative
from specnb.drafters import Chain
from specnb.models import Pair, TableModel
from specnb.sampling import Draws, Sampling, residual

# Seeds are fixed, so a test is red or green for ever; below this a right law would be a freak.
P_MIN = 1e-4


def chi_square(counts, law) -> float:
    """p-value of counts against probabilities; impossible outcomes must not occur at all."""
    counts = np.asarray(counts, dtype=float)
    law = np.asarray(law, dtype=float)
    assert counts[law == 0].sum() == 0, "something impossible was drawn"
    seen = law > 0
    if seen.sum() == 1:
        return 1.0
    return float(stats.chisquare(counts[seen], counts.sum() * law[seen] / law.sum()).pvalue)


# ---- Sampling


@given(
    st.integers(0, 2**31),
    st.sampled_from([0.0, 0.3, 1.0, 2.5]),
    st.integers(0, 12),
    st.sampled_from([0.05, 0.5, 0.9, 1.0]),
    st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
)
def test_probs_sum_to_one_in_the_right_precision(seed, temperature, top_k, top_p, dtype):
    generator = torch.Generator().manual_seed(seed)
    logits = (4 * torch.randn(2, 3, 9, generator=generator)).to(dtype)
    probs = Sampling(temperature, top_k, top_p).probs(logits)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert probs.dtype == wide and probs.shape == logits.shape
    tolerance = 1e-12 if wide == torch.float64 else 1e-6
    assert torch.allclose(probs.sum(-1), torch.ones(2, 3, dtype=wide), atol=tolerance)
    assert (probs >= 0).all()
    # Whatever is filtered, the most probable token stays the most probable one.
    best = logits.argmax(-1, keepdim=True)
    assert torch.equal(probs.gather(-1, best), probs.max(-1, keepdim=True).values)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_temperature_zero_takes_the_lowest_of_equals(dtype):
    logits = torch.tensor([[1, 3, 3, 3], [2, 2, 2, 2], [-math.inf, 0, 0, -1]], dtype=dtype)
    probs = Sampling(0.0, top_k=2, top_p=0.5).probs(logits)
    assert probs.tolist() == [[0, 1, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0]]
    assert not logits.isnan().any() and logits[0, 1] == 3  # nothing is written into the logits


BAD_ROWS = {
    "NaN": [0.0, math.nan, 1.0],
    "NaN beside infinity": [math.inf, math.nan, 1.0],
    "infinity": [0.0, math.inf, 1.0],
    "nothing is possible": [-math.inf] * 3,
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("temperature", [0.0, 1e-30, 0.7, 1e30])
@pytest.mark.parametrize("row", BAD_ROWS)
def test_logits_that_are_no_numbers_are_refused_at_every_temperature(row, temperature, dtype):
    fine = [0.0, -math.inf, 1.0]
    for rows in ([BAD_ROWS[row]], [fine, BAD_ROWS[row]], [BAD_ROWS[row], fine, fine]):
        for shape in ((len(rows), 3), (1, len(rows), 3)):
            logits = torch.tensor(rows, dtype=dtype).reshape(shape)
            with pytest.raises(ValueError, match="^logits are NaN or infinite: .* dtype='float32'"):
                Sampling(temperature, top_k=2, top_p=0.9).probs(logits)
    with pytest.raises(ValueError, match="^logits are NaN"):
        Sampling(temperature).probs(torch.tensor(BAD_ROWS[row], dtype=dtype))
    assert Sampling(temperature).probs(torch.tensor([fine], dtype=dtype))[0, 1] == (
        pytest.approx(0.0)
    )


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_large_logits_are_no_infinite_ones(temperature):
    """Their sum overflows where each of them does not."""
    logits = torch.tensor([[3e38, 0.0], [3e38, 2e38]])
    assert logits.amax(-1).sum().isinf()
    assert Sampling(temperature).probs(logits).tolist() == [[1, 0], [1, 0]]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize("temperature", [1e-30, 1e-20, 1e-10, 1e30])
def test_extreme_temperatures_give_laws(temperature, dtype):
    logits = torch.tensor([[1.0, 1.0, 0.5, -math.inf], [6e4, -6e4, 6e4 - 64, -math.inf]])
    probs = Sampling(temperature).probs(logits.to(dtype))
    assert probs.isfinite().all() and torch.allclose(probs.sum(-1), probs.new_ones(2))
    hot = [[1 / 3, 1 / 3, 1 / 3, 0]] * 2
    wanted = [[0.5, 0.5, 0, 0], [1, 0, 0, 0]] if temperature < 1 else hot
    assert torch.allclose(probs, probs.new_tensor(wanted))


@pytest.mark.parametrize(
    ("temperature", "size"),
    [(9.9e-31, "small"), (1e-46, "small"), (5e-324, "small")]
    + [(1.1e30, "large"), (1e300, "large")],
)
def test_temperatures_that_numbers_cannot_divide_by(temperature, size):
    said = f"^temperature={re.escape(str(temperature))}: it is too {size} to divide by; give 0 "
    with pytest.raises(ValueError, match=said):
        Sampling(temperature)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("side", ["target", "draft"])
def test_the_model_whose_logits_are_no_numbers_is_named(side, temperature):
    """By path and number format; never a text that looks like any other."""
    models = {name: TableModel.random(4, seed=n) for n, name in enumerate(("target", "draft"))}
    models[side].logits[:, 2] = math.nan
    models[side].path, models[side].dtype = "own/model", torch.float16
    pair = Pair(models["target"], models["draft"])
    with pytest.raises(ValueError, match="^own/model in float16: logits are NaN or infinite"):
        speculative(pair, [0], drafter=Chain(2), sampling=Sampling(temperature))


def test_a_low_temperature_becomes_greedy():
    logits = torch.randn(50, 20, generator=torch.Generator().manual_seed(0))
    assert torch.equal(Sampling(1e-5).probs(logits).round(), Sampling(0.0).probs(logits))


def test_filters_keep_what_they_say():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64).log()
    for sampling, kept in (
        (Sampling(1.0, top_k=2), [5 / 8, 3 / 8, 0, 0]),
        (Sampling(1.0, top_k=4), [0.5, 0.3, 0.15, 0.05]),
        (Sampling(1.0, top_k=99), [0.5, 0.3, 0.15, 0.05]),
        (Sampling(1.0, top_p=0.79), [5 / 8, 3 / 8, 0, 0]),
        (Sampling(1.0, top_p=0.81), [0.5 / 0.95, 0.3 / 0.95, 0.15 / 0.95, 0]),
        (Sampling(1.0, top_p=1e-9), [1, 0, 0, 0]),
        # Temperature comes before top-p: squared and renormalised, .68 is enough.
        (Sampling(0.5, top_p=0.68), [1, 0, 0, 0]),
        # Top-k comes before top-p: of 5/8 and 3/8 the first suffices.
        (Sampling(1.0, top_k=2, top_p=0.6), [1, 0, 0, 0]),
    ):
        assert Sampling.probs(sampling, logits).tolist() == pytest.approx(kept), sampling


def test_top_k_keeps_all_equals_of_the_last():
    """As transformers does it: a cut between equals would be arbitrary."""
    probs = Sampling(1.0, top_k=2).probs(torch.tensor([0.0, 1.0, 0.0, 0.0]))
    assert (probs > 0).all()


def test_probs_equal_those_of_transformers():
    from transformers.generation.logits_process import (
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    generator = torch.Generator().manual_seed(3)
    settings = itertools.product((0.2, 0.7, 1.0, 1.6), (0, 1, 3, 17, 100), (0.1, 0.5, 0.95, 1.0))
    for temperature, top_k, top_p in settings:
        logits = 3 * torch.randn(40, 30, generator=generator, dtype=torch.float64)
        wanted = TemperatureLogitsWarper(temperature)(None, logits)
        wanted = TopKLogitsWarper(top_k)(None, wanted) if top_k else wanted
        wanted = TopPLogitsWarper(top_p)(None, wanted) if top_p < 1 else wanted
        found = Sampling(temperature, top_k, top_p).probs(logits)
        assert torch.allclose(found, wanted.softmax(-1), atol=1e-14), (temperature, top_k, top_p)
        assert torch.equal(found > 0, wanted > -math.inf)


@pytest.mark.parametrize(
    "name, value, remedy",
    [
        ("temperature", -0.1, "finite number >= 0"),
        ("temperature", math.nan, "finite number >= 0"),
        ("temperature", math.inf, "finite number >= 0"),
        ("top_k", -1, "whole number >= 0"),
        ("top_k", 1.5, "whole number >= 0"),
        ("top_k", math.nan, "whole number >= 0"),
        ("top_k", math.inf, "whole number >= 0"),
        ("top_p", 0.0, r"\(0, 1\]"),
        ("top_p", -0.5, r"\(0, 1\]"),
        ("top_p", 1.01, r"\(0, 1\]"),
        ("top_p", math.nan, r"\(0, 1\]"),
    ],
)
def test_errors_name_argument_value_and_remedy(name, value, remedy, unchecked):
    with pytest.raises(ValueError, match=f"^{name}={value}: give a .*{remedy}"):
        Sampling(**{name: value})


# ---- residual


def test_residual_of_known_laws():
    target = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    draft = torch.tensor([0.1, 0.6, 0.2, 0.1], dtype=torch.float64)
    assert residual(target, draft).tolist() == pytest.approx([0, 0, 0.25, 0.75])
    assert residual(draft, target).tolist() == pytest.approx([0, 1, 0, 0])


def test_residual_of_equal_laws_is_the_target():
    target = torch.tensor([0.25, 0.75])
    assert torch.equal(residual(target, target.clone()), target)
    tiny = target + torch.tensor([1e-8, 0.0])  # rounding in favour of the drafter only
    assert torch.isfinite(residual(target, tiny)).all()


def test_residual_of_disjoint_supports_is_the_target():
    target = torch.tensor([0.0, 0.0, 0.3, 0.7], dtype=torch.float64)
    draft = torch.tensor([0.5, 0.5, 0.0, 0.0], dtype=torch.float64)
    assert torch.equal(residual(target, draft), target)


@given(st.integers(0, 2**31), st.integers(2, 8))
def test_accepted_plus_residual_is_the_target(seed, vocab_size):
    """min(p, q) + P(rejected) * residual = p: equation by equation, for one draft."""
    generator = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(2, vocab_size, generator=generator, dtype=torch.float64)
    target, draft = Sampling(1.0, top_p=0.9).probs(logits)
    accepted = torch.minimum(target, draft)
    total = accepted + (1 - accepted.sum()) * residual(target, draft)
    assert torch.allclose(total, target, atol=1e-15)


# ---- Draws

LAW = torch.tensor([0.0, 0.1, 0.2, 0.0, 0.3, 0.4, 0.0])
WRONG = torch.tensor([0.0, 0.12, 0.2, 0.0, 0.28, 0.4, 0.0])  # the negative control: 2 points off
N = 30_000


def test_accept_has_its_probability():
    draws = Draws(1)
    for prob in (0.05, 0.5, 0.9):
        looks = [draws.accept(prob) for _ in range(N)]
        assert all(accepted == (uniform < prob) for accepted, uniform in looks)
        n = sum(accepted for accepted, _ in looks)
        assert chi_square([n, N - n], [prob, 1 - prob]) > P_MIN
        assert chi_square([n, N - n], [prob + 0.03, 0.97 - prob]) < 1e-9
        assert stats.kstest([uniform for _, uniform in looks], "uniform").pvalue > P_MIN


def test_accept_at_the_ends(monkeypatch):
    """u < p with u in [0, 1): 0 is never accepted, not even at u = 0, and 1 always."""
    draws = Draws(0)
    for uniform in (0.0, 1 - 2**-53):
        monkeypatch.setattr(Draws, "_uniform", lambda self, uniform=uniform: uniform)
        assert draws.accept(0.0) == (False, uniform)
        assert draws.accept(1.0) == (True, uniform)
        assert draws.accept(math.nan)[0] is False


@pytest.mark.parametrize("scale", [1.0, 7.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_categorical_has_its_law(dtype, scale):
    """Also where the numbers do not sum to 1: rounding must not make the last token special."""
    draws, probs = Draws(2), scale * LAW.to(dtype)
    counts = np.bincount([draws.categorical(probs) for _ in range(N)], minlength=len(LAW))
    assert chi_square(counts, LAW) > P_MIN
    assert chi_square(counts, WRONG) < 1e-9


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_categorical_never_draws_the_impossible(dtype, monkeypatch):
    """At every edge of the cumulated law, one step below and above it, and at the ends of [0, 1).

    Random points hit an edge once in 1e16 draws; these are the points where it matters.
    """
    laws = [LAW, torch.tensor([0.0, 1.0, 0.0]), torch.tensor([1.0]), torch.tensor([0.0, 0.0, 5.0])]
    laws += [torch.tensor([1 / 3, 1 / 3, 1 / 3, 0.0]), torch.tensor([0.0] + [0.1] * 10 + [0.0])]
    laws.append(torch.tensor([1.0, 1e-30, 0.0]))
    for law in laws:
        law = law.to(dtype)
        edges = law.double().cumsum(0) / law.double().sum()
        points = [0.0, 5e-324, 2**-53, 1 - 2**-53]
        for edge in edges.tolist():
            points += [math.nextafter(edge, 0.0), edge, math.nextafter(edge, 2.0)]
        for point in points:
            if 0.0 <= point < 1.0:
                monkeypatch.setattr(Draws, "_uniform", lambda self, point=point: point)
                assert law[Draws(0).categorical(law)] > 0, (law, point)


@pytest.mark.parametrize("bad", [[0.0, 0.0], [math.nan, 1.0], [math.inf, 0.0]])
def test_categorical_without_a_law(bad):
    with pytest.raises(ValueError, match="nothing to draw from"):
        Draws(0).categorical(torch.tensor(bad))


def sequences(probs, k: int, n: int, seed: int) -> dict:
    drawn = Draws(seed).without_replacement(probs.expand(n, -1), k)
    rows, counts = drawn.unique(dim=0, return_counts=True)
    return {tuple(row): count for row, count in zip(rows.tolist(), counts.tolist(), strict=True)}


def law_of_sequences(probs, k: int) -> dict:
    """Sequential draws: p(a) p(b) / (1 - p(a)) ..., for every order of k tokens."""
    weights = {i: p for i, p in enumerate(probs.double().tolist()) if p > 0}
    total, law = sum(weights.values()), {}
    for order in itertools.permutations(weights, min(k, len(weights))):
        prob, left = 1.0, total
        for token in order:
            prob *= weights[token] / left
            left -= weights[token]
        law[order + (-1,) * (k - len(order))] = prob
    return law


@pytest.mark.parametrize("k", [1, 2, 3, 4, 6])
def test_without_replacement_has_the_sequential_law_in_order(k):
    counts, law = sequences(LAW, k, 200_000, seed=k), law_of_sequences(LAW, k)
    assert counts.keys() <= law.keys()
    assert math.isclose(sum(law.values()), 1.0)
    keys = list(law)
    observed = [counts.get(key, 0) for key in keys]
    assert chi_square(observed, [law[key] for key in keys]) > P_MIN
    wrong = law_of_sequences(WRONG, k)
    assert chi_square(observed, [wrong[key] for key in keys]) < 1e-9
    if k > 1:  # the same sets in another order are another law
        backwards = [counts.get(key[: min(k, 4)][::-1] + key[min(k, 4) :], 0) for key in keys]
        assert chi_square(backwards, [law[key] for key in keys]) < 1e-9


def test_without_replacement_rows_are_independent():
    """Two rows of one call: the joint law of their first tokens is the product."""
    law = LAW[LAW > 0].double()
    pairs = torch.stack(
        [Draws(seed).without_replacement(law.expand(2, -1), 1)[:, 0] for seed in range(4000)]
    )
    counts = torch.zeros(4, 4)
    for a, b in pairs.tolist():
        counts[a, b] += 1
    assert chi_square(counts.flatten(), torch.outer(law, law).flatten()) > P_MIN


def test_a_million_draws_and_never_an_impossible_token():
    law = torch.tensor([0.0, 0.001, 0.0, 0.999, 0.0])
    drawn = Draws(5).without_replacement(law.expand(1_000_000, -1), 3)
    assert set(drawn[:, :2].unique().tolist()) == {1, 3}
    assert drawn[:, 2].unique().tolist() == [-1]
    assert chi_square(torch.bincount(drawn[:, 0], minlength=5), law) > P_MIN


@pytest.mark.parametrize("k, wanted", [(1, 1), (2, 2), (3, 2), (9, 2)])
def test_exhausted_support_gives_minus_one(k, wanted):
    probs = torch.tensor([[0.0, 0.5, 0.5, 0.0], [0.0, 0.0, 1.0, 0.0], [0.25] * 4])
    drawn = Draws(0).without_replacement(probs, k)
    assert drawn.shape == (3, k) and drawn.dtype == torch.int64
    found = (drawn >= 0).sum(1).tolist()
    assert found == [wanted, 1, min(k, 4)]
    for row, n in zip(drawn.tolist(), found, strict=True):
        assert -1 not in row[:n] and set(row[n:]) <= {-1} and len(set(row[:n])) == n


def test_without_replacement_of_no_rows_and_of_nothing():
    assert Draws(0).without_replacement(torch.empty(0, 4), 2).shape == (0, 2)
    assert Draws(0).without_replacement(torch.zeros(1, 3), 2).tolist() == [[-1, -1]]


def test_gumbel_is_gumbel():
    noise = Draws(8).gumbel((4, 5000))
    assert noise.dtype == torch.float64 and noise.shape == (4, 5000)
    assert stats.kstest(noise.flatten().numpy(), "gumbel_r").pvalue > P_MIN
    assert stats.kstest(noise.flatten().numpy() + 0.1, "gumbel_r").pvalue < 1e-9
    assert stats.kstest(-noise.flatten().numpy(), "gumbel_r").pvalue < 1e-9
    assert noise.isfinite().all()


def everything(draws: Draws) -> list:
    law = LAW.expand(2, -1)
    return [
        draws.accept(0.5),
        draws.categorical(LAW),
        draws.without_replacement(law, 3).tolist(),
        draws.gumbel((2,)).tolist(),
        draws.accept(0.5),
    ]


def test_same_seed_same_draws():
    assert everything(Draws(3)) == everything(Draws(3))
    assert everything(Draws(3)) != everything(Draws(4))
    draws = Draws(3)
    assert everything(draws) != everything(draws)


@contextmanager
def global_generators_untouched():
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    yield
    assert torch.equal(torch.get_rng_state(), before[0]), "torch's global generator was touched"
    assert random.getstate() == before[1], "random's generator was touched"
    assert (np.random.get_state()[1] == before[2]).all(), "numpy's generator was touched"


def decode_something():
    pair = Pair(TableModel.random(5, seed=1), TableModel.random(5, seed=2))
    return speculative(pair, [0], drafter=Chain(3), sampling=Sampling(1.0), max_new_tokens=20)


def test_global_generators_stay_untouched(unchecked):
    with global_generators_untouched():
        everything(Draws(1))
        first = decode_something()
    torch.manual_seed(99)  # and they have no say either
    assert decode_something().token_ids == first.token_ids


@pytest.mark.parametrize("leak", [lambda: torch.rand(1), random.random, np.random.rand])
def test_the_guard_would_catch_a_leak(leak, monkeypatch, unchecked):
    def leaking(self):
        leak()
        return 0.5

    monkeypatch.setattr(Draws, "_uniform", leaking)
    with pytest.raises(AssertionError, match="touched"), global_generators_untouched():
        decode_something()
