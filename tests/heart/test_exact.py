"""The law of speculative decoding is the target's, proven by enumeration of the production code."""

import itertools
import math

import pytest
import torch
from toys import (
    GREEDY,
    PLAIN,
    TOLERANCE,
    Hierarchy,
    Repeated,
    Siblings,
    check_law,
    models,
    table,
)

import specnb as sn
from specnb import exact
from specnb import verify as verify_module
from specnb.drafters import (
    BestFirst,
    Chain,
    Either,
    GumbelTopK,
    IIDTree,
    NoDraft,
    PromptLookup,
    SinkRecent,
    SparseSelf,
    TopKTree,
)
from specnb.models import Pair, TableModel
from specnb.sampling import Sampling
from specnb.stopping import AdaEDL

SAMPLINGS = (
    GREEDY,
    Sampling(0.5),
    PLAIN,
    Sampling(1.7),
    Sampling(1.0, top_k=2),
    Sampling(1.3, top_p=0.7),
    Sampling(0.8, top_k=3, top_p=0.9),
)


def events(law: exact.Law, name: str) -> set:
    return {event[1:] for event in law.outcomes if event[0] == name}


# ---- chains


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("length", [1, 2, 3])
@pytest.mark.parametrize("vocab_size", [2, 3, 4, 5])
def test_chain(vocab_size, length, order):
    """Three tokens clipped at every sampling; unclipped ones as far as they are affordable."""
    target, draft = models(vocab_size, order, seed=10 * vocab_size + length)
    for sampling in SAMPLINGS:
        check_law(target, draft, Chain(length), sampling, clip=True)
        support = min(vocab_size, sampling.top_k or vocab_size) if sampling.temperature else 1
        if support**length <= 8:
            check_law(target, draft, Chain(length), sampling)
        elif sampling in (PLAIN, SAMPLINGS[-2]) and order == 1:
            n_tokens = 3 if support**length < 27 else 2 if support**length < 64 else 1
            check_law(target, draft, Chain(length), sampling, n_tokens)


@pytest.mark.parametrize("length", [1, 2, 3])
def test_every_outcome_occurs(length):
    """An enumeration that never rejects, or never gets deep, would prove nothing."""
    law = check_law(*models(3, seed=4), Chain(length), PLAIN)
    depths = {(depth, 0) for depth in range(1, length + 1)}
    assert events(law, "accepted") == depths
    assert events(law, "rejected") == depths
    assert law.outcomes["bonus",] > 0 and law.outcomes["correction",] > 0
    assert law.outcomes["plain",] == 0
    assert events(law, "drafted") == {(length,)}
    clipped = check_law(*models(3, seed=4), Chain(length), PLAIN, clip=True)
    assert events(clipped, "drafted") == {(n,) for n in range(min(length, 2) + 1)}
    assert clipped.outcomes["plain",] > 0  # where one token is left, nothing can be drafted


@pytest.mark.parametrize("clip", [False, True])
def test_a_model_drafting_for_itself_is_never_rejected(clip):
    for order, sampling in itertools.product((1, 2), SAMPLINGS):
        target, _ = models(3, order, seed=7)
        law = check_law(target, target, Chain(2), sampling, clip=clip)
        assert not events(law, "rejected") and not law.outcomes["correction",]
        assert events(law, "accepted") >= {(1, 0)}


@pytest.mark.parametrize("nothing", [-math.inf, -1e9])
@pytest.mark.parametrize("clip", [False, True])
def test_disjoint_supports(nothing, clip):
    """Every draft is rejected, and the output is still the target's."""
    logits = torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ours, theirs = logits.clone(), logits.clone()
    ours[:, :2], theirs[:, 2:] = nothing, nothing
    law = check_law(TableModel(ours), TableModel(theirs), Chain(2), PLAIN, clip=clip)
    assert not events(law, "accepted") and not law.outcomes["bonus",]
    assert events(law, "rejected") == {(1, 0)}


@pytest.mark.parametrize("clip", [False, True])
def test_zeros_on_either_side(clip):
    """The drafter says what the target never says, and the other way round."""
    target = table([[0.0, 0.4, 0.6, 0.0], [0.5, 0.0, 0.5, 0.0], [0, 0, 0.2, 0.8], [1, 0, 0, 0]])
    draft = table([[0.5, 0.0, 0.3, 0.2], [0.1, 0.9, 0.0, 0.0], [0, 0, 1.0, 0.0], [0.3, 0.7, 0, 0]])
    for length in (1, 2, 3):
        for a, b in ((target, draft), (draft, target)):
            law = check_law(a, b, Chain(length), PLAIN, clip=clip)
            assert events(law, "rejected") and events(law, "accepted")
            assert (law.probs == 0).any()


@pytest.mark.slow
@pytest.mark.parametrize("draft_sampling", [GREEDY, Sampling(0.6), Sampling(2.0), Sampling(1, 1)])
def test_the_drafter_may_sample_otherwise(draft_sampling):
    for target, draft in (models(3, seed=11), models(4, seed=12)):
        for sampling in (GREEDY, PLAIN, Sampling(0.8, top_p=0.8)):
            check_law(target, draft, Chain(2), sampling, draft_sampling=draft_sampling)
        for drafter in (Siblings(2, 1), Repeated(2)):
            check_law(target, draft, drafter, PLAIN, 2, draft_sampling=draft_sampling)


def test_models_of_different_order_and_a_longer_prompt():
    target, draft = models(3, order=2, seed=3, draft_order=1)
    for a, b in ((target, draft), (draft, target)):
        for prompt in ((0,), (2, 1), (1, 1, 2, 0)):
            check_law(a, b, Chain(2), PLAIN, prompt=prompt)


def test_plain_decoding_has_the_law_that_the_chain_rule_gives():
    target, _ = models(3, order=2, seed=5)
    for sampling in SAMPLINGS:
        law = check_law(target, None, NoDraft(), sampling)
        assert set(law.outcomes) == {("plain",), ("drafted", 0)}


def test_target_law_against_a_product_by_hand():
    """`target_law` is what everything is held against, so it needs a witness of its own."""
    rows = [[0.2, 0.8], [0.7, 0.3]]
    joint = exact.target_law(table(rows), PLAIN, 3, prompt=(1,))
    for a, b, c in itertools.product(range(2), repeat=3):
        assert math.isclose(joint[a, b, c], rows[1][a] * rows[a][b] * rows[b][c], rel_tol=1e-12)


# ---- the end of a text


def decoded(target, draft, drafter, n_tokens, prompt) -> torch.Tensor:
    """The joint law of whole runs of `Decoding`; an end token fills the places behind it."""

    def decide(draws):
        asked = sn.Request(list(prompt), sampling=PLAIN, max_new_tokens=n_tokens)
        run = sn.Decoding(Pair(target, draft), asked, drafter)
        run.draws = draws
        while run.finish is None:
            run.step()
        return tuple(token for block in run.blocks for token in block.token_ids)

    probs = torch.zeros((target.vocab_size,) * n_tokens, dtype=torch.float64)
    for text, prob in walk(decide).items():
        probs[(*text, *text[-1:] * (n_tokens - len(text)))] += prob
    return probs


ENDED = (
    Chain(2),
    Chain(3, verify="block"),
    pytest.param(GumbelTopK((2, 1)), marks=pytest.mark.slow),
    pytest.param(GumbelTopK((2, 1), verify="traversal"), marks=pytest.mark.slow),
    pytest.param(IIDTree((2,), verify="kseq"), marks=pytest.mark.slow),
    BestFirst(3),
    PromptLookup(1, 2),
    Either(PromptLookup(1, 2), Chain(2)),
    SparseSelf(SinkRecent(0), 1, 2),
    NoDraft(),
)


@pytest.mark.parametrize("drafter", ENDED, ids=repr)
def test_an_end_token_ends_the_text_as_in_decoding(drafter):
    target, draft = models(3, seed=1)
    target.eos_ids = frozenset({2})
    prompt = (0, 1, 0)
    wanted = decoded(target, None, NoDraft(), 3, prompt)
    assert wanted[2].sum() == wanted[2, 2, 2] > 0.1
    assert torch.allclose(wanted, exact.target_law(target, PLAIN, 3, prompt), rtol=0, atol=1e-12)
    found = check_law(target, draft, drafter, PLAIN, 3, clip=True, prompt=prompt)
    check_law(target, draft, drafter, PLAIN, 2, prompt=prompt)
    again = decoded(target, draft, drafter, 3, prompt)
    assert torch.allclose(found.probs, again, rtol=0, atol=1e-12)


def test_nothing_is_drawn_behind_an_accepted_end():
    """So that a call gives one token less there, and no bonus is counted."""
    target = table([[0.1, 0.9], [0.5, 0.5]])
    target.eos_ids = frozenset({1})
    found = check_law(target, target, Chain(2), PLAIN, n_tokens=2)
    assert None not in {event[0] for event in found.outcomes} and found.outcomes["bonus",]
    # Kept are "1", "0 1" or "0 0" and one more: 0.9 * 1 + 0.09 * 2 + 0.01 * 3.
    assert exact.tokens_per_call(target, target, Chain(2), PLAIN) == pytest.approx(1.11)
    lengths = exact.accepted_lengths(target, target, Chain(2), PLAIN)
    assert lengths.tolist() == pytest.approx([0.0, 0.9, 0.1])
    assert exact.distortion(target, target, Chain(2), PLAIN).largest_ratio == pytest.approx(1.0)
    said = {exact.two_tokens(target, target, Chain(2), PLAIN, sn.Draws(seed)) for seed in range(99)}
    assert said == {(1, 1), (0, 1), (0, 0)}


# ---- trees


@pytest.mark.slow
@pytest.mark.parametrize("vocab_size, width, depth", [(3, 2, 1), (4, 2, 1), (4, 3, 1), (3, 2, 2)])
def test_siblings_without_replacement(vocab_size, width, depth):
    """Recursive rejection: each sibling is held against what its elder siblings left over."""
    target, draft = models(vocab_size, seed=20 + vocab_size)
    law = check_law(target, draft, Siblings(width, depth), PLAIN, n_tokens=2)
    places = set(itertools.product(range(1, depth + 1), range(width)))
    assert events(law, "accepted") == places
    assert events(law, "rejected") == places
    assert law.outcomes["bonus",] and law.outcomes["correction",]
    check_law(target, draft, Siblings(width, depth), PLAIN, n_tokens=3, clip=True)
    check_law(target, draft, Siblings(width, depth), Sampling(1.0, top_k=2), n_tokens=2)
    check_law(target, draft, Siblings(width, depth), GREEDY, n_tokens=3)
    check_law(target, draft, Siblings(width, 1), PLAIN, 2, draft_sampling=Sampling(0.5))


@pytest.mark.parametrize("vocab_size", [2, 3])
def test_all_tokens_drafted_means_one_is_accepted(vocab_size):
    """With every token a sibling the last look accepts: its residual is all on that token."""
    target, draft = models(vocab_size, seed=31)
    wanted = exact.target_law(target, PLAIN, 2)
    law = exact.law(target, draft, Siblings(vocab_size), PLAIN, 2, clip=True)
    assert float((law.probs - wanted).abs().max()) <= TOLERANCE
    # Rounding may leave a rejection with a probability of the order of 1e-16, nothing above it.
    assert ("accepted", 1, vocab_size - 1) in law.outcomes


@pytest.mark.parametrize("n_draws", [2, 3])
def test_independent_draws_of_one_place(n_draws):
    """A token drawn twice is looked at twice."""
    target, draft = models(3, seed=40)
    law = check_law(target, draft, Repeated(n_draws), PLAIN, n_tokens=2)
    assert events(law, "drafted") == {(n,) for n in range(1, n_draws + 1)}
    assert law.outcomes["accepted", 1, 1] and law.outcomes["rejected", 1, 0]


def test_trees_with_zeros_and_disjoint_supports():
    target = table([[0.0, 0.4, 0.6, 0.0], [0.5, 0.0, 0.5, 0.0], [0, 0, 0.2, 0.8], [1, 0, 0, 0]])
    draft = table([[0.5, 0.0, 0.3, 0.2], [0.1, 0.9, 0.0, 0.0], [0, 0, 1.0, 0.0], [0.3, 0.7, 0, 0]])
    for a, b in ((target, draft), (draft, target)):
        for drafter in (Siblings(2, 1), Siblings(3, 1), Siblings(2, 2), Repeated(2)):
            check_law(a, b, drafter, PLAIN, n_tokens=3, clip=True)


@pytest.mark.parametrize("flaw", ["sorted", "same row", "not renormalised"])
def test_a_wrong_tree_drafter_is_caught(flaw):
    """Negative control: the same check, the same models, siblings ordered or declared wrongly."""
    target, draft = models(4, seed=24)
    check_law(target, draft, Siblings(2, 1), PLAIN, n_tokens=2)
    with pytest.raises((AssertionError, ValueError), match="law differs|mass|no distribution"):
        check_law(target, draft, Siblings(2, 1, flaw), PLAIN, n_tokens=2)


# ---- a drafter that runs a draft/verify loop itself


@pytest.mark.parametrize("one_block", [False, True])
@pytest.mark.parametrize("draft_length, inner_length", [(1, 1), (2, 1), (2, 2)])
def test_hierarchy(draft_length, inner_length, one_block):
    vocab_size = 3 if draft_length * inner_length < 4 else 2
    target, middle = models(vocab_size, order=2, seed=50)
    small = TableModel.random(vocab_size, seed=99)
    drafter = Hierarchy(middle, draft_length, inner_length, one_block)
    law = check_law(target, small, drafter, PLAIN, n_tokens=2)
    depths = {(depth, 0) for depth in range(1, draft_length + 1)}
    assert events(law, "accepted") == events(law, "rejected") == depths
    check_law(target, small, drafter, PLAIN, n_tokens=3, clip=True)
    check_law(target, small, drafter, GREEDY, n_tokens=3)


@pytest.mark.parametrize("flaw", ["small's law", "accepted only"])
def test_a_wrong_hierarchy_is_caught(flaw):
    """Handing up the small model's law, or only what the inner loop accepted, biases the output."""
    target, middle = models(3, order=2, seed=50)
    small = TableModel.random(3, seed=99)
    with pytest.raises(AssertionError, match="law differs"):
        check_law(target, small, Hierarchy(middle, 1, flaw=flaw), PLAIN, n_tokens=2)


# ---- the instrument


def test_check_law_fails_for_a_wrong_target():
    target, draft = models(3, seed=60)
    law = exact.law(target, draft, Chain(2), PLAIN, 2)
    for wrong in (Sampling(0.99), Sampling(1.0, top_k=2), GREEDY):
        assert exact.distance(law.probs, exact.target_law(target, wrong, 2)) > 1e-3
    assert exact.distance(law.probs, exact.target_law(draft, PLAIN, 2)) > 1e-2


def walk(decide) -> dict:
    """The law of what `decide(draws)` returns."""
    scripts, found = [[]], {}
    while scripts:
        draws = exact.Enumerator(scripts.pop())
        value = decide(draws)
        scripts += draws.open
        found[value] = found.get(value, 0.0) + draws.prob
    return found


def test_enumerator_walks_every_branch_once_with_its_probability():
    probs = torch.tensor([0.5, 0.0, 0.2, 0.3], dtype=torch.float64)

    def decide(draws):
        token = draws.categorical(probs)
        return token, draws.accept(0.25)[0] if token else None

    assert walk(decide) == pytest.approx(
        {(0, None): 0.5, (2, True): 0.05, (2, False): 0.15, (3, True): 0.075, (3, False): 0.225}
    )
    assert walk(lambda draws: (draws.accept(0.0)[0], draws.accept(1.0)[0])) == {(False, True): 1.0}


def test_enumerator_without_replacement():
    probs = torch.tensor([[0.5, 0.0, 0.2, 0.3]], dtype=torch.float64)
    pairs = walk(lambda draws: tuple(draws.without_replacement(probs, 2)[0].tolist()))
    ids = (0, 2, 3)
    p = probs[0].tolist()
    wanted = {(a, b): p[a] * p[b] / (1 - p[a]) for a in ids for b in ids if a != b}
    assert pairs == pytest.approx(wanted)
    four = walk(lambda draws: tuple(draws.without_replacement(probs, 4)[0].tolist()))
    assert len(four) == 6 and all(key[3] == -1 for key in four)
    rows = torch.tensor([[0.4, 0.6], [0.0, 1.0]])
    two = walk(lambda draws: tuple(map(tuple, draws.without_replacement(rows, 2).tolist())))
    assert two == pytest.approx({((0, 1), (1, -1)): 0.4, ((1, 0), (1, -1)): 0.6})
    tiny = torch.tensor([[1.0, 1e-300, 0.0]], dtype=torch.float64)  # 1 - 1.0 leaves nothing
    assert sum(walk(lambda d: tuple(d.without_replacement(tiny, 2)[0].tolist())).values()) == 1.0


def test_enumerator_refuses_continuous_noise():
    with pytest.raises(TypeError, match="continuous"):
        exact.Enumerator().gumbel((2, 3))


# ---- shapes


SMALL = (
    Chain(2, stop=AdaEDL(0.4)),
    GumbelTopK((2, 1)),
    IIDTree((2, 1)),
    IIDTree((2,), verify="kseq"),
    TopKTree((2, 1)),
    PromptLookup(1, 2),
    NoDraft(),
)


@pytest.mark.slow
@pytest.mark.parametrize("drafter", SMALL, ids=lambda drafter: type(drafter).__name__)
def test_shapes_hold_along_an_enumeration(drafter):
    """With the checks of shapes on, which `check_law` leaves out."""
    target, draft = models(3, seed=6)
    found = exact.law(target, draft, drafter, PLAIN, n_tokens=2, prompt=(0, 1, 0))
    wanted = exact.target_law(target, PLAIN, 2, prompt=(0, 1, 0))
    assert torch.allclose(found.probs, wanted, rtol=0, atol=TOLERANCE)


def test_a_wrong_shape_along_an_enumeration_is_caught(monkeypatch):
    target, draft = models(3, seed=6)

    def flat(tree, root_probs, node_probs, draws, eos_ids=frozenset(), real=verify_module.verify):
        return real(tree, root_probs[None], node_probs, draws, eos_ids)

    monkeypatch.setattr("specnb.decode.verify", flat)
    with pytest.raises(Exception, match="root_probs"):
        exact.law(target, draft, Chain(2), PLAIN, n_tokens=1)


def test_the_bound_on_noise_is_twice_the_mean_distance():
    """Of two tokens: the distance is |k - n / 2| / n, and the mean of it is known for n = 2."""
    fair = torch.tensor([0.5, 0.5], dtype=torch.float64)
    assert exact.noise_bound(fair, 1) == 1.0  # always half away
    assert exact.noise_bound(fair, 2, repeats=4000) == pytest.approx(0.5, abs=0.04)


def test_an_enumeration_drafts_each_tree_once(monkeypatch):
    """However many outcomes its verification has: on 3 tokens a chain of 2 is one of 9."""
    from specnb.drafters.trees import TreeDrafting

    calls, usual = [], TreeDrafting.propose

    def counted(self, draws, max_depth):
        calls.append(1)
        return usual(self, draws, max_depth)

    monkeypatch.setattr(TreeDrafting, "propose", counted)
    target, draft = models(3, seed=2)
    exact.accepted_lengths(target, draft, Chain(2), PLAIN)
    assert len(calls) == 9
