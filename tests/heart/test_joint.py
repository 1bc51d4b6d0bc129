"""Rules that judge whole paths: the target's law to the last digit, and never fewer tokens."""

from functools import partial

import pytest
import torch
from toys import GREEDY, PLAIN, Once, check_law, models, table

import specnb as sn
from specnb import exact
from specnb.drafters import Chain, GumbelTopK, IIDTree, StochasticBeam, TopKTree
from specnb.models import Pair, TableModel
from specnb.sampling import Sampling
from specnb.stopping import AdaEDL
from specnb.tree import DraftTree

SHAPES = (((2,), 4), ((3,), 4), ((2, 1), 3), ((2, 2), 3), ((2, 2, 1), 2))
DRAWN, CHOSEN = GumbelTopK, TopKTree
STOP = AdaEDL(0.35, epsilon=0.5, beta2=0.0)


def zeros():
    target = table([[0.0, 0.4, 0.6, 0.0], [0.5, 0.0, 0.5, 0.0], [0, 0, 0.2, 0.8], [1, 0, 0, 0]])
    draft = table([[0.5, 0.0, 0.3, 0.2], [0.1, 0.9, 0.0, 0.0], [0, 0, 1.0, 0.0], [0.3, 0.7, 0, 0]])
    return target, draft


# ---- exact


@pytest.mark.parametrize(
    "length, vocab_size, n_tokens", [(1, 5, 3), (2, 4, 2), (3, 3, 2), (4, 2, 3)]
)
def test_block_keeps_the_law(length, vocab_size, n_tokens):
    for order in (1, 2):
        target, draft = models(vocab_size, order, seed=length)
        law = check_law(target, draft, Chain(length, verify="block"), PLAIN, n_tokens)
        depths = {(depth, 0) for depth in range(1, length + 1)}
        assert {event[1:] for event in law.outcomes if event[0] == "accepted"} == depths
        assert law.outcomes["bonus",] and law.outcomes["correction",]


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(0.5), Sampling(1.3, top_p=0.7), PLAIN])
def test_block_at_every_sampling(sampling):
    target, draft = models(3, order=2, seed=5)
    for drafter in (Chain(2, verify="block"), Chain(3, verify="block", stop=STOP)):
        check_law(target, draft, drafter, sampling, clip=True)
        check_law(target, target, drafter, sampling, n_tokens=2)
        for other in (GREEDY, Sampling(0.6)):
            check_law(target, draft, drafter, sampling, 2, draft_sampling=other, clip=True)


@pytest.mark.slow
@pytest.mark.parametrize("branching, vocab_size", SHAPES)
@pytest.mark.parametrize("made_by", [DRAWN, CHOSEN])
def test_traversal_keeps_the_law(made_by, branching, vocab_size):
    target, draft = models(vocab_size, order=2, seed=7)
    drafter = made_by(branching, verify="traversal")
    law = check_law(target, draft, Once(drafter), PLAIN, n_tokens=2)
    assert law.outcomes["bonus",] and law.outcomes["correction",]
    stopped = made_by(branching[:2], verify="traversal", stop=STOP)
    check_law(target, draft, Once(stopped), PLAIN, n_tokens=2)
    if made_by is DRAWN:
        check_law(target, target, Once(drafter), PLAIN, n_tokens=2)


def test_zeros_and_disjoint_supports(unchecked):
    disjoint = table([[0.3, 0.7, 0, 0]] * 4), table([[0, 0, 0.6, 0.4]] * 4)
    for drafter in (
        Chain(2, verify="block"),
        GumbelTopK((2, 1), verify="traversal"),
        TopKTree((2, 1), verify="traversal"),
    ):
        for a, b in zeros(), zeros()[::-1], disjoint:
            check_law(a, b, Once(drafter), PLAIN, n_tokens=2)
        assert exact.acceptance(*disjoint, drafter, PLAIN) == 0.0


def test_nothing_is_said_after_an_end_token():
    target, draft = models(3, order=2, seed=8)
    target.eos_ids = frozenset({1})
    for drafter in (Chain(3, verify="block"), GumbelTopK((2, 1), verify="traversal")):
        law = check_law(target, draft, drafter, PLAIN, n_tokens=2)
        blocks = sum(n for event, n in law.outcomes.items() if event[0] == "drafted")
        finals = sum(n for event, n in law.outcomes.items() if len(event) == 1)
        assert finals < blocks, "no block ended with the end token"


def test_traversal_of_a_chain_is_the_block_rule(unchecked):
    """Leaf to root in turn, or all tests at once: the same paths with the same probabilities."""
    for seed in range(4):
        target, draft = models(2, seed=seed)
        block = exact.accepted_lengths(target, draft, Chain(3, verify="block"), PLAIN)
        leaves = GumbelTopK((1, 1, 1), verify="traversal")
        other = exact.accepted_lengths(target, draft, leaves, PLAIN)
        assert torch.allclose(block, other, rtol=0, atol=1e-13)


class Knowing(GumbelTopK):
    """The first child has a child of its own only if its sibling is token 2."""

    def expand(self, level, draws):
        children = list(super().expand(level, draws))
        if level.number:
            yield from (c for c in children if level.carried[c.row] != "alone")
            return
        known = "" if children[1].token == 2 else "alone"
        yield from (c._replace(carried=m) for c, m in zip(children, (known, ""), strict=True))


@pytest.mark.parametrize("rule", ["recursive", "traversal"])
def test_the_shape_may_depend_on_earlier_levels(rule):
    """How far a subtree goes says nothing: it is lost as often, however it was grown."""
    target, draft = models(3, seed=3)
    law = check_law(target, draft, Once(Knowing((2, 1), verify=rule)), PLAIN, n_tokens=2)
    assert {event[1] for event in law.outcomes if event[0] == "drafted"} == {0, 3, 4}


# ---- never worse


def gains(one, other, vocab_size: int, n: int) -> torch.Tensor:
    """Expected tokens of a call by two methods, [n, 2], on random pairs of laws."""
    found = []
    for seed in range(n):
        pair = (TableModel.random(vocab_size, seed=2 * seed + i) for i in (0, 1))
        target, draft = pair
        found.append([exact.tokens_per_call(target, draft, d, PLAIN) for d in (one, other)])
    return torch.tensor(found, dtype=torch.float64)


@pytest.mark.slow
def test_block_is_never_below_the_token_rule(unchecked):
    tokens, block = gains(Chain(2), Chain(2, verify="block"), 3, 200).T
    assert (block >= tokens).all()
    assert 1.01 < (block / tokens).mean() < 1.04  # 2.1 % where others have looked


@pytest.mark.slow
@pytest.mark.parametrize(
    "branching, vocab_size, n",
    [((2,), 3, 50), ((3,), 4, 4), ((2, 1), 3, 10), ((2, 2), 3, 3), ((2, 2, 1), 2, 3)],
)
def test_traversal_is_not_below_the_recursive_rule(branching, vocab_size, n, unchecked):
    drawn = (GumbelTopK(branching), GumbelTopK(branching, verify="traversal"))
    recursive, traversal = gains(*drawn, vocab_size, n).T
    assert (traversal >= recursive - 1e-13).all()
    if len(branching) == 1:  # one level: there is no path to judge
        assert torch.allclose(traversal, recursive, rtol=0, atol=1e-13)
    elif branching == (2, 1):
        assert (traversal / recursive).mean() > 1.01
    else:  # on few pairs: a gain that no rounding makes
        assert (traversal / recursive).max() > 1.001
    chosen = (TopKTree(branching), TopKTree(branching, verify="traversal"))
    recursive, traversal = gains(*chosen, vocab_size, n).T
    assert torch.allclose(traversal, recursive, rtol=0, atol=1e-13)  # certain drafts: no gain


# ---- records


def run(drafter, sampling=PLAIN, seed=0):
    target, draft = models(5, order=2, seed=9)
    given = {"sampling": sampling, "max_new_tokens": 40, "seed": seed, "drafter": drafter}
    return sn.speculative(Pair(target, draft), [0], **given)


def test_greedy_texts_and_verdicts_are_the_token_rules():
    for draft_length in (1, 3, 6):
        token, block = (run(Chain(draft_length, verify=v), GREEDY) for v in ("recursive", "block"))
        assert token.token_ids == block.token_ids
        assert [r.verdict for r in token.tokens] == [r.verdict for r in block.tokens]


def test_a_record_tells_tests_and_what_was_kept():
    record = run(Chain(4, verify="block"))
    for number, block in enumerate(record.blocks):
        rows = [row for row in record.tokens if row.block == number and row.node >= 0]
        verdicts = [row.verdict for row in rows]
        kept = block.n_accepted
        behind = ["unexamined"] * len(verdicts[kept + 1 :])
        assert verdicts == ["accepted"] * kept + ["rejected"] * (kept < len(rows)) + behind
        passed = [row.uniform < row.accept_prob for row in rows]
        assert not any(passed[kept:]) and (not kept or passed[kept - 1])
    kept_late = [r for r in record.tokens if r.verdict == "accepted" and r.uniform >= r.accept_prob]
    assert kept_late, "no token of this run was kept because a later test passed"
    assert sn.Record.from_json(record.to_json()) == record


def test_a_traversal_record_has_every_kept_token():
    record = run(GumbelTopK((2, 2, 1), verify="traversal"), seed=1)
    for number, block in enumerate(record.blocks):
        rows = [row for row in record.tokens if row.block == number]
        assert sum(row.verdict == "accepted" for row in rows) == block.n_accepted
    assert {row.verdict for row in record.tokens} >= {"accepted", "rejected", "unexamined"}
    assert sn.Record.from_json(record.to_json()) == record


# ---- refused


def test_refused_at_construction_in_words():
    for made_by in (GumbelTopK, IIDTree, TopKTree):
        with pytest.raises(
            ValueError, match=f"verify='block': {made_by.__name__} .* one path as a"
        ):
            made_by((2, 1), verify="block")
    for make in (partial(IIDTree, (2, 1)), partial(StochasticBeam, 2, 2), partial(Chain, 2)):
        with pytest.raises(
            ValueError, match="verify='traversal': .* without replacement, or chosen"
        ):
            make(verify="traversal")
    with pytest.raises(ValueError, match="verify='kseq': Chain .* independent draws of one law"):
        Chain(2, verify="kseq")
    assert sn.method("Chain(4, verify='block')") == Chain(4, verify="block")
    assert sn.name_of(GumbelTopK((2, 1), verify="traversal")) == (
        "GumbelTopK((2, 1), verify='traversal')"
    )


def test_rules_see_the_whole_tree_and_leave_it_as_it_was():
    target, draft = models(4, seed=2)
    probs = torch.stack([PLAIN.probs(draft.next_logits([0]))] * 2)
    before = probs.clone()
    tree = DraftTree((1, 2), (-1, 0), probs, rule="block")
    laws = torch.stack([PLAIN.probs(target.next_logits([t])) for t in (0, 1, 2)])
    kept = laws.clone()
    for seed in range(20):
        sn.verify.verify(tree, laws[0], laws[1:], sn.Draws(seed))
    assert torch.equal(probs, before) and torch.equal(laws, kept)


def test_both_rules_share_the_draws_of_their_first_block():
    """What lesson 08 puts side by side: the same drafts, and the same number for each of them."""
    apart = 0
    for seed in range(20):
        token, block = (
            [row for row in run(drafter, seed=seed).tokens if row.block == 0 and row.node >= 0]
            for drafter in (Chain(4), Chain(4, verify="block"))
        )
        assert [row.token_id for row in token] == [row.token_id for row in block]
        numbers = [
            (mine.uniform, theirs.uniform)
            for mine, theirs in zip(token, block, strict=True)
            if mine.uniform is not None
        ]
        assert numbers and all(mine == theirs for mine, theirs in numbers)
        apart += [row.verdict for row in token] != [row.verdict for row in block]
    assert apart  # or there would be nothing to compare
