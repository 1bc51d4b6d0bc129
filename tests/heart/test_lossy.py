"""What changes the law says so, and by how much: nothing lossy passes for lossless."""

import math

import pytest
import torch
from toys import PLAIN, check_law, models, table

import specnb as sn
from specnb import exact, lossy, methods
from specnb.drafters import Chain, GumbelTopK, TopKTree
from specnb.models import Pair

LOSSY = {
    "typical": Chain(2, verify=lossy.Typical()),
    "ensemble": Chain(2, verify=lossy.Ensemble(0.3)),
    "drops a drawn token": lossy.DropsUnsure(2, 0.3),
    "greedy, declared as drawn": lossy.GreedyAsDrawn(2),
}


@pytest.mark.parametrize("drafter", LOSSY.values(), ids=LOSSY)
def test_a_lossy_method_is_found_out_and_marked(drafter):
    target, draft = models(4, order=2, seed=1)
    with pytest.raises(AssertionError, match="law differs"):
        check_law(target, draft, drafter, PLAIN, n_tokens=2)
    price = exact.distortion(target, draft, drafter, PLAIN)
    assert price.distance > 0.01 and price.largest_ratio > 1.01
    record = sn.speculative(Pair(target, draft), [0], drafter=drafter, sampling=PLAIN)
    assert record.settings["not lossless"]
    again = sn.Record.from_json(record.to_json())
    assert again.settings["not lossless"] == record.settings["not lossless"]
    text = sn.name_of(drafter)  # with its address, and so it can be swept over
    assert "specnb.lossy:" in text and sn.method(text) == drafter
    named = {"Typical", "Ensemble", "DropsUnsure", "GreedyAsDrawn"}
    assert named <= set(vars(lossy)) and not named & {*methods.known(), *dir(sn)}


def test_what_is_lossless_has_no_price_and_no_mark():
    target, draft = models(3, seed=2)
    for drafter in (Chain(2), Chain(2, verify="block"), TopKTree((2, 1)), GumbelTopK((2,))):
        price = exact.distortion(target, draft, drafter, PLAIN)
        assert price.distance < 1e-12 and abs(price.largest_ratio - 1.0) < 1e-9
        record = sn.speculative(Pair(target, draft), [0], drafter=drafter, max_new_tokens=4)
        assert "not lossless" not in record.settings
    plain = exact.tokens_per_call(target, draft, Chain(2), PLAIN)
    assert exact.distortion(target, draft, Chain(2), PLAIN).tokens_per_call == plain


def test_two_tokens_of_a_scheduler_that_looks_at_the_token():
    """2607.05147, appendix A: target (0.7, 0.3) and drafter (0.5, 0.5) come out as (0.85, 0.15)."""
    target, draft = table([[0.7, 0.3]]), table([[0.5, 0.5]])
    accepts = (1.0, 0.6)  # min(1, target / draft) of either token
    drops = lossy.DropsUnsure(1, 0.8, accepts)
    found = exact.law(target, draft, drops, PLAIN, 1)
    assert torch.allclose(found.probs, torch.tensor([0.85, 0.15], dtype=torch.float64))
    price = exact.distortion(target, draft, drops, PLAIN, 1)
    assert price.distance == pytest.approx(0.15)
    check_law(target, draft, lossy.DropsUnsure(1, 0.5, accepts), PLAIN, 1)  # nothing is dropped


def test_an_ensemble_says_what_its_mixture_says():
    target, draft = models(4, seed=3)
    found = exact.law(target, draft, Chain(1, verify=lossy.Ensemble(0.25)), PLAIN, 1)
    one, other = (PLAIN.probs(model.next_logits([0])) for model in (target, draft))
    assert torch.allclose(found.probs, 0.75 * one + 0.25 * other)
    check_law(target, draft, Chain(2, verify=lossy.Ensemble(0.0)), PLAIN, 2)
    tree = GumbelTopK((2,), verify=lossy.Ensemble(0.5))
    with pytest.raises(ValueError, match="it mixes the laws of a chain"):
        exact.law(target, draft, tree, PLAIN, 1)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda: lossy.Ensemble(2.0), "weight=2.0"),
        (lambda: lossy.Ensemble(-1.0), "weight=-1.0"),
        (lambda: lossy.Ensemble(math.nan), "weight=nan"),
        (lambda: lossy.Ensemble("x"), "weight='x'"),
        (lambda: lossy.Typical(-1), "epsilon=-1"),
        (lambda: lossy.Typical(0.3, -0.1), "delta=-0.1"),
        (lambda: lossy.DropsUnsure(1, 1.5), "least=1.5"),
    ],
)
def test_numbers_that_no_rule_has_are_refused(made, said, unchecked):
    with pytest.raises(ValueError, match=f"^{said}: give"):
        made()


def test_a_confidence_is_of_every_token(unchecked):
    target, draft = models(4, seed=3)
    drops = lossy.DropsUnsure(1, 0.3, (0.5,))
    with pytest.raises(ValueError, match=r"confidence=\(0.5,\): .* each of the 4 token ids"):
        sn.speculative(Pair(target, draft), [0], drafter=drops)


def test_typical_acceptance_by_hand():
    """Entropy of (0.8, 0.2) is 0.50: kept is what has more than min(0.3, 0.5 / 1.65) = 0.3."""
    target, draft = table([[0.8, 0.2]]), table([[0.5, 0.5]])
    rule = lossy.Typical(epsilon=0.3, delta=0.5)
    assert 0.5 * math.exp(0.8 * math.log(0.8) + 0.2 * math.log(0.2)) > 0.3
    found = exact.law(target, draft, Chain(1, verify=rule), PLAIN, 1).probs
    assert found.tolist() == pytest.approx([0.5 + 0.5 * 0.8, 0.5 * 0.2])
    ends = frozenset({0})
    tree = sn.DraftTree((0, 1), (-1, 0), torch.tensor([[0.5, 0.5]] * 2, dtype=torch.float64))
    laws = torch.tensor([[0.8, 0.2]] * 3, dtype=torch.float64)
    ended = rule(tree, laws[0], laws[1:], sn.Draws(0), ends)
    assert (ended.path, ended.token, ended.final) == ((0,), None, None)
