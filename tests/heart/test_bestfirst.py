"""Trees that grow where it pays: the target's law, budgets, and where the nodes go."""

import pytest
import torch
from mutate import replaced
from toys import GREEDY, PLAIN, Once, check_law, models, table

import specnb as sn
from specnb import exact
from specnb.drafters import BestFirst, BranchWhereUnsure, bestfirst
from specnb.drafters.trees import Level
from specnb.models import Pair
from specnb.sampling import Sampling
from specnb.stopping import AdaEDL

SMALL = BestFirst(4, 0.05, 0.15, 3)
UNSURE = BranchWhereUnsure(2, 2, 0.8, 4)


@pytest.mark.parametrize("rule", ["recursive", "traversal"])
@pytest.mark.parametrize(
    "drafter", [(4, 0.05, 0.15, 3), (5, 0.0, 0.1, 2), (2, 2, 0.8, 4), (2, 2, 0.8, 3)]
)
def test_an_uneven_tree_keeps_the_law(drafter, rule):
    made_by = BestFirst if isinstance(drafter[1], float) else BranchWhereUnsure
    target, draft = models(3, order=2, seed=4)
    law = check_law(target, draft, Once(made_by(*drafter, verify=rule)), PLAIN, n_tokens=2)
    assert law.outcomes["bonus",] and law.outcomes["correction",]


@pytest.mark.slow
def test_shapes_differ_from_text_to_text():
    target, draft = models(3, order=2, seed=4)
    for drafter in (SMALL, UNSURE):
        law = check_law(target, draft, drafter, PLAIN, n_tokens=2)
        assert len([event for event in law.outcomes if event[0] == "drafted"]) > 1
        check_law(target, draft, drafter, GREEDY, n_tokens=3)
        check_law(target, draft, drafter, Sampling(0.6, top_p=0.9), n_tokens=3, clip=True)
        check_law(target, draft, drafter, PLAIN, 2, draft_sampling=Sampling(1.5))
    stopped = BestFirst(4, 0.05, 0.15, 3, stop=AdaEDL(0.3, adaptive=False))
    check_law(target, draft, stopped, PLAIN, n_tokens=2)
    assert exact.acceptance(target, target, SMALL, PLAIN) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("drafter", [SMALL, UNSURE])
def test_pruning_drawn_tokens_by_their_probability_is_caught(drafter, monkeypatch):
    target, draft = models(3, order=2, seed=4)
    check_law(target, draft, Once(drafter), PLAIN, n_tokens=2)
    mutant = replaced(
        bestfirst._Unevenly.expand,
        "[token for token in drawn if token >= 0]",
        "[token for token in drawn if token >= 0 and level.probs[row, token] > 0.3]",
    )
    monkeypatch.setattr(bestfirst._Unevenly, "expand", mutant)
    with pytest.raises(AssertionError, match="law differs"):
        check_law(target, draft, Once(drafter), PLAIN, n_tokens=2)


def level(*rows, carried=None, number=0) -> Level:
    laws = torch.tensor(rows, dtype=torch.float64)
    return Level(number, laws.log(), laws, (1,) * len(rows), carried or (None,) * len(rows))


SURE, UNSURE_ROW = [0.98, 0.01, 0.01], [0.4, 0.3, 0.3]


def test_draws_go_where_they_promise_most_by_hand():
    right = [1 - (0.2 * float(torch.special.entr(torch.tensor(r)).sum())) ** 0.5
             for r in (SURE, UNSURE_ROW)]  # fmt: skip
    first, second = right[1], right[1] * (1 - right[1])
    free = BestFirst(3, 0.0, 0.0)
    (shares,) = free.plan(level(UNSURE_ROW))
    assert [one.share for one in shares[:2]] == pytest.approx([first, second])
    assert len(shares) == 3 == shares[0].nodes and shares[0].levels == 1
    assert shares[0].tokens == pytest.approx(1 + sum(one.share for one in shares))
    half = bestfirst.Reach(0.5, 1.8, 2, 1)
    low = bestfirst.Reach(0.3, 1.8, 2, 1)
    found = BestFirst(5, 0.0, 0.0).plan(level(SURE, UNSURE_ROW, carried=(half, low), number=1))
    assert [len(row) for row in found] == [1, 2]  # 0.46, then 0.16 and 0.07 against 0.03
    dear = BestFirst(5, 0.1, 0.2).plan(level(SURE, UNSURE_ROW, carried=(half, low), number=1))
    assert [len(row) for row in dear] == [1, 0]  # a draw must bring 0.2 of 1.8 / 1.6 tokens
    assert not BestFirst(2, 0.0, 0.0).plan(level(SURE, carried=(half,), number=1))[0]


def test_a_level_must_be_worth_its_forward():
    likely, lost = bestfirst.Reach(0.9, 1.9, 1, 1), bestfirst.Reach(0.05, 1.9, 1, 1)
    drafter = BestFirst(8, 0.1, 0.02)
    assert drafter.worth_a_level([likely]) and not drafter.worth_a_level([lost])
    assert not BestFirst(1, 0.0, 0.0).worth_a_level([likely])
    target, draft = models(3, seed=4)
    run = sn.speculative(Pair(target, draft), [0], drafter=BestFirst(8, 1.0, 0.0), sampling=PLAIN)
    assert {block.draft_forwards for block in run.blocks[:-1]} == {1}  # no second forward pays


@pytest.mark.parametrize("budget", [1, 4, 9])
def test_budgets_hold(budget):
    target, draft = models(12, seed=6)
    for drafter in (BestFirst(budget, 0.0, 0.0), BranchWhereUnsure(6, 3, 0.1, budget)):
        run = sn.speculative(Pair(target, draft), [0], drafter=drafter, sampling=PLAIN)
        sizes = [block.n_drafted for block in run.blocks]
        assert max(sizes) == budget


def test_one_child_where_sure_and_several_where_not():
    drafter = BranchWhereUnsure(3, 3, 0.5, 30)
    assert [len(row) for row in drafter.plan(level(SURE, UNSURE_ROW))] == [1, 3]
    never = BranchWhereUnsure(3, 3, 5.0, 30)
    target, draft = models(4, seed=5)
    chain, same = (
        sn.speculative(Pair(target, draft), [0], drafter=d, sampling=PLAIN, max_new_tokens=30)
        for d in (sn.Chain(3), never)
    )
    assert chain.token_ids == same.token_ids


def test_texts_and_refusals():
    assert sn.method("BestFirst(16, 0.1, 0.02, 8)") == BestFirst(16, 0.1, 0.02, 8)
    assert sn.name_of(UNSURE) == "BranchWhereUnsure(2, 2, 0.8, 4)"
    with pytest.raises(ValueError, match="budget=0"):
        BestFirst(0)
    with pytest.raises(ValueError, match="verify='block': BestFirst cannot have it"):
        BestFirst(verify="block")


def test_certain_laws_make_a_chain():
    same = table([[1.0, 0.0, 0.0]] * 3)
    run = sn.speculative(Pair(same, same), [0], drafter=BestFirst(8, 0.0, 0.0, 8), sampling=PLAIN,
                         max_new_tokens=18)  # fmt: skip
    assert [block.n_drafted for block in run.blocks] == [8, 8]
