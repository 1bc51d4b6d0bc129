"""Prompt lookup with a model behind it: exact, by the rule it states, each side at its turn."""

from __future__ import annotations

import copy

import pytest
from toys import check_law

from specnb import methods
from specnb.drafters import (
    Chain,
    Either,
    EitherDrafting,
    GumbelTopK,
    Hierarchy,
    PromptLookup,
    PromptLookupDrafting,
    SparseSelf,
    parameter_ratio,
)
from specnb.models import Pair, TableModel
from specnb.sampling import Draws, Sampling
from specnb.stopping import AdaEDL

TARGET, DRAFT = TableModel.random(3, seed=1), TableModel.random(3, seed=2)
SAMPLED = Sampling(1.0)


@pytest.mark.parametrize("prompt", [(0,), (0, 1, 0, 1)], ids=repr)
@pytest.mark.parametrize(
    "otherwise", [Chain(2), Chain(2, stop=AdaEDL(0.5)), GumbelTopK((2, 1))], ids=repr
)
@pytest.mark.parametrize("lookup", [PromptLookup(1, 2), PromptLookup(2, 2)], ids=repr)
def test_laws(lookup, otherwise, prompt):
    found = check_law(TARGET, DRAFT, Either(lookup, otherwise), SAMPLED, prompt=prompt)
    assert found.outcomes["bonus",] and found.outcomes["correction",]


@pytest.mark.parametrize("sampling", [Sampling(0.0), Sampling(0.6, top_p=0.8)], ids=repr)
def test_laws_of_other_samplings(sampling):
    check_law(TARGET, DRAFT, Either(PromptLookup(1, 2), Chain(2)), sampling)


def test_a_rule_that_peeks_is_caught(monkeypatch):
    """Planted: which side drafts is decided by what the model has drawn."""

    def propose(self, draws, max_depth):
        tree = self.otherwise.propose(draws, max_depth)
        self.looked_up = bool(tree.tokens) and tree.tokens[0] == 0
        return self.lookup.propose(draws, 0) if self.looked_up else tree

    monkeypatch.setattr(EitherDrafting, "propose", propose)
    with pytest.raises(AssertionError, match="law differs"):
        check_law(TARGET, DRAFT, Either(PromptLookup(2, 2), Chain(2)), SAMPLED)


def drafting(prompt, stop=None):
    pair = Pair(TARGET, DRAFT)
    otherwise = Chain(4, stop=stop) if stop else Chain(4)
    return Either(PromptLookup(2, 3), otherwise).start(pair, list(prompt), None, SAMPLED)


def test_a_long_match_is_looked_up_and_a_short_one_is_not():
    both = drafting((0, 1, 2, 0, 1))
    tree = both.propose(Draws(0), 9)
    assert tree.tokens == (2, 0, 1) and tree.forwards == 0
    short = drafting((2, 1, 2, 0, 1))  # only the last token was said before
    tree = short.propose(Draws(0), 9)
    assert len(tree.tokens) == 4 and tree.forwards == 4
    assert PromptLookup(2, 3).start(Pair(TARGET), [2, 1, 2, 0, 1], None, SAMPLED).continuation()


@pytest.mark.parametrize("prompt", [(0, 1, 2, 0, 1), (2, 1, 2, 0, 1)], ids=repr)
def test_the_text_is_looked_through_once(prompt, monkeypatch):
    looks = []
    right = PromptLookupDrafting.continuation

    def counted(self, *given, **more):
        looks.append(given)
        return right(self, *given, **more)

    monkeypatch.setattr(PromptLookupDrafting, "continuation", counted)
    drafting(prompt).propose(Draws(0), 9)
    assert len(looks) == 1


def test_parameters_read_are_those_of_the_drafter_behind():
    """Not those of the pair's draft model, where another one drafts."""
    assert parameter_ratio(Either(), Pair(TARGET, DRAFT)) == 1.0
    small = Pair(TARGET, TableModel(DRAFT.logits[:1]))
    behind = {Chain(2): 1 / 3, SparseSelf(): 1.0, Hierarchy(): None}
    for otherwise, ratio in behind.items():
        both = Either(PromptLookup(1, 2), otherwise)
        assert parameter_ratio(both, small) == parameter_ratio(otherwise, small) == ratio
        assert parameter_ratio(Either(PromptLookup(2, 2), both), small) == ratio


def test_the_model_follows_the_text_while_the_lookup_drafts():
    both = drafting((0, 1, 2, 0, 1))
    both.propose(Draws(0), 9)
    both.commit([2, 0, 0], 2)
    assert both.otherwise.context.committed == [0, 1, 2, 0, 1, 2, 0, 0]
    assert both.lookup.text == both.otherwise.context.committed


def test_a_stopping_rule_learns_from_its_own_drafts_only():
    """A lookup that fails says nothing of the model: its threshold stays."""
    both = drafting((0, 1, 2, 0, 1), stop=AdaEDL(0.5))
    before = both.state
    both.propose(Draws(0), 9)
    both.commit([0], 0)
    assert both.state == before
    both.propose(Draws(0), 9)  # "1, 0" was never said
    both.commit([0], 0)
    assert both.state != before


def test_a_fork_goes_on_by_itself():
    both = drafting((0, 1, 2))
    other = copy.deepcopy(both)
    other.propose(Draws(0), 9)
    other.commit([0], 0)
    assert both.lookup.text == [0, 1, 2] and len(other.lookup.text) == 4


def test_its_text_and_what_is_refused(unchecked):
    text = "Either(PromptLookup(3, 8), Chain(5))"
    assert methods.method(text) == Either() and methods.name_of(Either()) == text
    assert Either(otherwise=GumbelTopK((2, 1))).branches and not Either().branches
    with pytest.raises(ValueError, match="as in PromptLookup"):
        Either(Chain(5))
    with pytest.raises(ValueError, match="give a drafter"):
        Either(PromptLookup(), AdaEDL(0.5))
    with pytest.raises(ValueError, match="draft=None"):
        Either().start(Pair(TARGET), [0], None, SAMPLED)
