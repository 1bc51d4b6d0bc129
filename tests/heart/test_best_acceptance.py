"""How far a node is from the best: the least cut against the linear program that it solves."""

import itertools
import math

import pytest
import torch
from scipy.optimize import linprog

from specnb import exact
from specnb.drafters import IIDTree
from specnb.models.table import TableModel
from specnb.sampling import Sampling


def laws(vocab_size: int, seed: int, spread: float = 1.5) -> tuple[torch.Tensor, torch.Tensor]:
    noise = torch.Generator().manual_seed(seed)
    logits = spread * torch.randn(2, vocab_size, generator=noise, dtype=torch.float64)
    return tuple(logits.softmax(-1))


def transport(target, draft, k: int, replacement: bool) -> float:
    """The most mass that flows from sequences of k drafts to a token among them, by a program."""
    vocab = range(len(target))
    ways = itertools.product(vocab, repeat=k) if replacement else itertools.permutations(vocab, k)
    mass: dict[tuple, float] = {}
    for way in ways:
        prob, left = 1.0, 1.0
        for token in way:
            prob *= float(draft[token]) / left
            left -= 0.0 if replacement else float(draft[token])
        key = tuple(sorted(set(way)))
        mass[key] = mass.get(key, 0.0) + prob
    edges = [(place, token) for place, way in enumerate(mass) for token in way]
    rows = [[float(place == at) for place, _ in edges] for at in range(len(mass))]
    rows += [[float(token == at) for _, token in edges] for at in vocab]
    limits = [*mass.values(), *target.tolist()]
    return -linprog([-1.0] * len(edges), A_ub=rows, b_ub=limits, method="highs").fun


@pytest.mark.parametrize("replacement", [True, False])
@pytest.mark.parametrize(
    "vocab_size, k", [(2, 1), (2, 2), (3, 2), (4, 1), (4, 2), (4, 3), (5, 2), (5, 3)]
)
def test_the_least_cut_is_the_programs_optimum(vocab_size, k, replacement):
    for seed in range(8):
        target, draft = laws(vocab_size, seed)
        wanted = transport(target, draft, k, replacement)
        found = exact.best_acceptance(target, draft, k, replacement=replacement)
        assert found == pytest.approx(wanted, abs=1e-9)


def test_one_draft_is_the_overlap_of_the_laws():
    target, draft = laws(50, 1)
    overlap = float(torch.minimum(target, draft).sum())
    for replacement in (True, False):
        found = exact.best_acceptance(target, draft, 1, replacement=replacement)
        assert found == pytest.approx(overlap, abs=1e-12)


def test_zeros_equal_laws_and_disjoint_supports():
    half, other = torch.tensor([0.5, 0.5, 0.0, 0.0]), torch.tensor([0.0, 0.0, 0.3, 0.7])
    for replacement in (True, False):
        for k in (1, 2, 3):
            assert exact.best_acceptance(half, half, k, replacement=replacement) == 1.0
            assert exact.best_acceptance(half, other, k, replacement=replacement) == 0.0
    three = torch.tensor([0.2, 0.3, 0.5])
    assert exact.best_acceptance(three, three.flip(0), 3, replacement=False) == pytest.approx(1.0)
    assert exact.best_acceptance(three, three.flip(0), 3) < 0.99  # all three may be one token


@pytest.mark.parametrize("replacement", [True, False])
@pytest.mark.parametrize("k", [0, -1, 1.5, True])
def test_a_number_of_drafts_is_whole_and_above_0(k, replacement, unchecked):
    with pytest.raises(ValueError, match="give a whole number >= 1"):
        exact.best_acceptance(*laws(4, 1), k, replacement=replacement)


@pytest.mark.parametrize("wrong", [[0.5, 0.6], [-0.5, 1.5], [math.nan, 1.0], [2.0, -3.0]])
def test_what_is_no_law_is_refused(wrong, unchecked):
    right, other = torch.tensor([0.4, 0.6]), torch.tensor(wrong)
    with pytest.raises(ValueError, match="^target_probs: give probabilities"):
        exact.best_acceptance(other, right, 2)
    with pytest.raises(ValueError, match="^draft_probs: give probabilities"):
        exact.best_acceptance(right, other, 2)
    with pytest.raises(ValueError, match=r"\(2,\), draft_probs \(3,\): give two laws over"):
        exact.best_acceptance(right, torch.tensor([0.2, 0.3, 0.5]), 2)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_every_way_stays_below_the_best(k, unchecked):
    for seed in (3, 4):
        found = exact.acceptance_by_way(*laws(4, seed), k)
        assert found["one draft"] <= found["independent, k-SEQ"] + 1e-9
        for way in ("recursive", "k-SEQ"):
            assert found[f"independent, {way}"] <= found["independent, best possible"] + 1e-9
        best = found["without replacement, best"]
        assert found["without replacement, recursive"] <= best + 1e-9
        assert best >= found["independent, best possible"] - 1e-9


@pytest.mark.parametrize("k", [1, 2, 3])
def test_recursive_rejection_in_closed_form_is_the_production_code_enumerated(k):
    for seed in range(3):
        target, draft = laws(3, seed)
        tables = (TableModel(law.log()[None]) for law in (target, draft))
        walked = exact.acceptance(*tables, IIDTree((k,)), Sampling(1.0))
        assert exact.recursive_acceptance(target, draft, k) == pytest.approx(walked, abs=1e-12)
    equal = exact.recursive_acceptance(target, target, k)
    assert equal == pytest.approx(1.0, abs=1e-12)
    assert exact.recursive_acceptance(*torch.eye(2), k) == 0.0


def test_too_many_sequences_are_refused_and_cut_laws_are_not():
    target, draft = laws(200, 5)
    with pytest.raises(ValueError, match="200 tokens, k=4: too many sequences .* cut the laws"):
        exact.best_acceptance(target, draft, 4, replacement=False)
    exact.best_acceptance(target, draft, 4)  # independent drafts need no sequences
    small_target, small_draft, ids = exact.cut(target, draft, 8)
    assert len(ids) == 8 and float(target[ids[0]]) in (float(target.max()), float(target[ids[0]]))
    assert float(small_target.sum()) == pytest.approx(1.0) == float(small_draft.sum())
    ratio = target[ids] / target[ids].sum()
    assert torch.allclose(small_target, ratio) and int(target.argmax()) in ids
    assert exact.best_acceptance(small_target, small_draft, 4, replacement=False) <= 1.0
