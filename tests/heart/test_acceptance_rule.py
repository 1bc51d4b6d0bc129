"""SpecDec++: a rule that asks for the acceptance head keeps the target's distribution."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from toys import PLAIN, check_law, models

import specnb as sn
from specnb.sampling import Draws


def with_head(draft):
    """A table model whose head is sure of some of its laws and not of others."""
    weight = torch.linspace(-1.5, 1.5, draft.vocab_size, dtype=torch.float64)
    draft = copy.copy(draft)
    draft.acceptance_head = lambda: lambda logits: torch.sigmoid(logits @ weight)
    return draft


def guess(draft, text) -> float:
    return float(draft.acceptance_head()(draft.next_logits(text)))


@pytest.mark.parametrize("drafter", [sn.Chain, lambda n, **kw: sn.GumbelTopK((2,) * n, **kw)])
@pytest.mark.parametrize("order", [1, 2])
def test_the_rule_keeps_the_law(order, drafter):
    target, draft = models(3, order, seed=3)
    draft = with_head(draft)
    guesses = sorted(guess(draft, [token] * order) for token in range(3))
    rule = sn.SpecDecPP(guesses[1] * guesses[2] * 0.999)
    law = check_law(target, draft, drafter(2, stop=rule), PLAIN)
    lengths = {event[1:] for event in law.outcomes if event[0] == "drafted"}
    assert len(lengths) > 1, "the rule never stopped, or always"


def test_a_rule_that_sees_the_drawn_token_would_be_found():
    """The planted bug: one that guesses for the token, and not before it is drawn."""
    target, draft = models(3, 1, seed=3)

    class Peeking(sn.Chain):
        def expand(self, level, draws):
            for child in super().expand(level, draws):
                if child.token != 0:  # a token dropped because of itself
                    yield child

    with pytest.raises(AssertionError):
        check_law(target, draft, Peeking(2), PLAIN)


def test_a_node_is_told_its_own_guess_and_its_ancestors_as_path():
    target, draft = models(3, order=2, seed=4)
    draft, told = with_head(draft), []

    class Watched(sn.SpecDecPP):
        def stop(self, logits, probs, *, acceptance, path=()):
            told.append((acceptance, tuple(path)))
            return False

    drafting = sn.GumbelTopK((2, 2, 1), stop=Watched()).start(
        sn.Pair(target, draft), [0, 1], None, PLAIN
    )
    tree = drafting.propose(Draws(0), 8)
    asked = [-1, *(i for i, depth in enumerate(tree.depth) if depth <= 2)]
    assert len(told) == len(asked) == 1 + 2 + 4
    for node, (own, path) in zip(asked, told, strict=True):
        tokens = [tree.tokens[i] for i in tree.path(node)] if node >= 0 else []
        texts = [[0, 1, *tokens[:n]] for n in range(len(tokens) + 1)]
        assert [*path, own] == pytest.approx([guess(draft, text) for text in texts])


def test_the_rule_stops_where_the_product_falls_below_the_threshold():
    rule, row = sn.SpecDecPP(0.3), torch.zeros(4)
    for path, own, stops in (
        ([], 0.31, False),
        ([], 0.29, True),
        ([0.5, 0.8], 0.76, False),
        ([0.5, 0.8], 0.74, True),
    ):
        assert rule.stop(row, row, acceptance=own, path=path) is stops
    assert rule.score(row, row, acceptance=0.4) == 0.4 and rule.state == ()


def test_without_a_head_it_is_refused_before_a_token_is_drawn():
    target, draft = models(3, 1, seed=3)
    with pytest.raises(ValueError, match=r"stop=SpecDecPP.*no acceptance head; train one with"):
        sn.speculative(sn.Pair(target, draft), [0], drafter=sn.Chain(3, stop=sn.SpecDecPP()))


def test_thresholds_are_checked():
    with pytest.raises(ValueError, match="threshold=nan"):
        sn.SpecDecPP(math.nan)
    assert sn.name_of(sn.Chain(8, stop=sn.SpecDecPP(0.3))) == "Chain(8, stop=SpecDecPP(0.3))"
    assert sn.method("Chain(8, stop=SpecDecPP(0.3))") == sn.Chain(8, stop=sn.SpecDecPP(0.3))
