"""Stopping rules and trees keep the target's law: the production code, enumerated."""

import itertools
from dataclasses import replace

import pytest
import torch
from mutate import replaced
from toys import GREEDY, PLAIN, Once, check_law, models, table

import specnb as sn
from specnb import exact
from specnb import verify as verify_module
from specnb.drafters import (
    Chain,
    GumbelTopK,
    IIDTree,
    PromptLookup,
    StaticTree,
    StochasticBeam,
    TopKTree,
)
from specnb.drafters import trees as tree_drafters
from specnb.exact import noise_bound, two_tokens
from specnb.models import Pair
from specnb.sampling import Draws, Sampling
from specnb.stopping import AdaEDL, FixedLength, MaxConfidence, PathScore, SumEntropy
from specnb.tree import depths

SAMPLINGS = [
    Sampling(temperature, top_p=top_p)
    for temperature, top_p in itertools.product((0.0, 0.5, 1.0, 1.7), (0.8, 1.0))
]
# The threshold moves at once and far, so that histories show; both kinds of signal.
RESTLESS = {"epsilon": 0.5, "beta2": 0.0}
RULES = {
    "AdaEDL": AdaEDL(0.35, **RESTLESS),
    "AdaEDL adjusted": AdaEDL(0.35, signal="adjusted", **RESTLESS),
    "AdaEDL fixed": AdaEDL(0.35, adaptive=False),
    "MaxConfidence": MaxConfidence(0.5, **RESTLESS),
    "MaxConfidence adjusted": MaxConfidence(0.5, signal="adjusted", **RESTLESS),
    "SumEntropy": SumEntropy(),
    "PathScore adjusted": PathScore(signal="adjusted"),
}
METHODS = {
    "RSD-C": GumbelTopK,
    "iid": IIDTree,
    "k-SEQ": lambda branching, **rule: IIDTree(branching, verify="kseq", **rule),
    "top-k": TopKTree,
}


@pytest.fixture(autouse=True)
def remembered(monkeypatch):
    """One look for the root of k-SEQ per pair of laws: an enumeration asks for few, often."""
    plain, known = verify_module.k_sequential_rho, {}

    def lookup(target_probs, draft_probs, k):
        key = (*target_probs.tolist(), *draft_probs.tolist(), k)
        if key not in known:
            known[key] = plain(target_probs, draft_probs, k)
        return known[key]

    monkeypatch.setattr(verify_module, "k_sequential_rho", lookup)


def set_between(rule, draft):
    """The rule with a threshold that some laws of the drafter pass and others do not."""
    scores = scores_of(rule, draft)
    if isinstance(rule, SumEntropy):  # two laws, as a rule, and not every first one
        return replace(rule, threshold=0.9 * max(scores))
    return replace(rule, threshold=(min(scores) + max(scores)) / 2)


def scores_of(rule, draft) -> list[float]:
    """What a rule thinks of each of the drafter's laws."""
    whole = isinstance(rule, SumEntropy | PathScore)
    laws = [(row, row.softmax(-1)) if whole else (row.softmax(-1),) for row in draft.logits]
    return [rule.score(*law) for law in laws]


def events(law: exact.Law, name: str) -> set:
    return {event[1:] for event in law.outcomes if event[0] == name}


def places(branching) -> set:
    """Every (depth, draw) of a tree."""
    return {(depth + 1, draw) for depth, n in enumerate(branching) for draw in range(n)}


# ---- stopping rules on chains


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("length", [1, 2, 3])
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_a_stopping_rule_keeps_the_law(rule, length, order):
    target, draft = models(3, order, seed=length)
    rule = set_between(rule, draft)
    for sampling in SAMPLINGS:
        check_law(target, draft, Chain(length, stop=rule), sampling, clip=True)
    law = check_law(target, draft, Chain(length, stop=rule), PLAIN)
    lengths = {n for (n,) in events(law, "drafted")}
    assert len(lengths) > 1, "the rule never stopped, or always"
    assert events(law, "accepted") and events(law, "rejected") and law.outcomes["bonus",]


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_a_stopping_rule_with_more_tokens(rule):
    for vocab_size in (4, 5):
        target, draft = models(vocab_size, seed=3)
        check_law(target, draft, Once(Chain(2, stop=rule)), PLAIN, n_tokens=3)
    check_law(target, target, Chain(2, stop=rule), PLAIN)
    for a, b in zeros(), zeros()[::-1], disjoint():
        check_law(a, b, Chain(2, stop=rule), PLAIN)


@pytest.mark.parametrize("rule", [RULES["AdaEDL"], RULES["MaxConfidence"]])
def test_draft_length_follows_from_the_history(rule):
    """The same text with different thresholds: the enumeration keeps such histories apart."""
    target, draft = models(2, order=0, seed=5)  # every law is the same, only the rule moves
    rule = type(rule)(rule.score(draft.logits[0].softmax(-1)) - 0.1, **RESTLESS)
    law = check_law(target, draft, Chain(2, stop=rule), PLAIN, n_tokens=4)
    assert events(law, "drafted") == {(0,), (2,)}


# ---- trees


def zeros():
    """A target and a drafter with tokens that only one of them says."""
    target = table([[0.0, 0.4, 0.6, 0.0], [0.5, 0.0, 0.5, 0.0], [0, 0, 0.2, 0.8], [1, 0, 0, 0]])
    draft = table([[0.5, 0.0, 0.3, 0.2], [0.1, 0.9, 0.0, 0.0], [0, 0, 1.0, 0.0], [0.3, 0.7, 0, 0]])
    return target, draft


def disjoint():
    return table([[0.3, 0.7, 0, 0]] * 4), table([[0, 0, 0.6, 0.4]] * 4)


SHAPES = [((2,), 3), ((2,), 5), ((3,), 4), ((2, 1), 3), ((2, 1), 4), ((2, 2), 3), ((2, 2, 1), 2)]


@pytest.mark.slow
@pytest.mark.parametrize("branching, vocab_size", SHAPES)
@pytest.mark.parametrize("method", METHODS)
def test_a_tree_keeps_the_law(method, branching, vocab_size, unchecked):
    target, draft = models(vocab_size, seed=20 + vocab_size)
    drafter = METHODS[method](branching)
    n_tokens = len(branching) + 1
    law = check_law(target, draft, Once(drafter), PLAIN, n_tokens)
    if vocab_size > max(branching):
        wanted = places(branching)
        assert events(law, "accepted") >= wanted and events(law, "rejected") >= wanted
    assert law.outcomes["bonus",] and law.outcomes["correction",]


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_tree_at_every_sampling(method, unchecked):
    """Block after block, with text that remembers two tokens: a wrong cache would show."""
    for order, seed in ((1, 30), (2, 31)):
        target, draft = models(3, order, seed)
        for sampling in SAMPLINGS:
            check_law(target, draft, METHODS[method]((2,)), sampling, n_tokens=3)
            check_law(target, draft, METHODS[method]((2, 1)), sampling, n_tokens=3, clip=True)
    target, draft = models(2, 2, 32)
    check_law(target, draft, METHODS[method]((2, 1)), PLAIN, n_tokens=4)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_tree_with_other_drafts_than_the_target_samples(method, unchecked):
    target, draft = models(3, seed=33)
    for sampling, draft_sampling in ((GREEDY, PLAIN), (PLAIN, GREEDY), (PLAIN, Sampling(0.5))):
        drafter = METHODS[method]((2, 1))
        check_law(target, draft, drafter, sampling, 2, draft_sampling=draft_sampling)


@pytest.mark.parametrize("method", METHODS)
def test_a_tree_with_zeros_equal_laws_and_disjoint_supports(method, unchecked):
    for branching in ((2,), (3,), (2, 1)):
        drafter = METHODS[method](branching)
        for a, b in zeros(), zeros()[::-1]:
            check_law(a, b, Once(drafter), PLAIN, n_tokens=2)
        law = check_law(*disjoint(), Once(drafter), PLAIN, n_tokens=2)
        assert not events(law, "accepted") and not law.outcomes["bonus",]
    if method != "top-k":  # which declares certainty, and a model is not certain of its best
        target, _ = models(3, seed=34)
        check_law(target, target, METHODS[method]((2, 1)), PLAIN, n_tokens=2)


@pytest.mark.parametrize("vocab_size", [2, 3, 4])
def test_every_token_a_sibling_means_one_is_accepted(vocab_size, unchecked):
    """Without replacement, K = V has acceptance 1; with it, a token may be missing."""
    target, draft = models(vocab_size, seed=35)
    for drafter in (GumbelTopK((vocab_size,)), TopKTree((vocab_size,))):
        law = exact.law(target, draft, Once(drafter), PLAIN, 2)
        wanted = exact.target_law(target, PLAIN, 2)
        assert float((law.probs - wanted).abs().max()) <= 1e-12
        accepted = exact.acceptance(target, draft, drafter, PLAIN)
        assert accepted == pytest.approx(1.0, abs=1e-12)
    assert exact.acceptance(target, draft, IIDTree((vocab_size,)), PLAIN) < 0.999


# ---- static trees: nodes of a level with different numbers of children

STATIC = {"one goes on": (-1, -1, 0), "the other": (-1, -1, 1), "two below": (-1, -1, 0, 0)}


@pytest.mark.parametrize("parents", STATIC.values(), ids=STATIC)
def test_a_static_tree_keeps_the_law(parents, unchecked):
    target, draft = models(3, order=2, seed=20)
    check_law(target, draft, StaticTree(parents), PLAIN, n_tokens=2, clip=True)
    law = check_law(target, draft, StaticTree(parents), PLAIN, n_tokens=2)
    order = [parents[:node].count(parent) for node, parent in enumerate(parents)]
    wanted = set(zip(depths(parents), order, strict=True))
    assert events(law, "accepted") >= wanted and events(law, "rejected") >= wanted
    for sampling in SAMPLINGS[::3]:
        check_law(target, draft, Once(StaticTree(parents)), sampling, n_tokens=2)
    for a, b in zeros(), zeros()[::-1], disjoint():
        check_law(a, b, Once(StaticTree(parents)), PLAIN, n_tokens=2)
    target, _ = models(3, seed=34)  # whose rows sum to 1 without rounding
    check_law(target, target, StaticTree(parents), PLAIN, n_tokens=2)


@pytest.mark.parametrize(
    "old, new",
    [
        ("zip(tokens, laws,", "zip(tokens[::-1], laws,"),
        ("found[: len(below[row])]", "found[len(found) - len(below[row]) :]"),
        ("level.probs[row], tokens)", "level.probs[rows[0]], tokens)"),
    ],
)
def test_a_wrong_static_tree_is_caught(monkeypatch, old, new, unchecked):
    """Tokens in another order than their laws; the last draws for the first; another row's laws."""
    monkeypatch.setattr(StaticTree, "expand", replaced(StaticTree.expand, old, new))
    target, draft = models(3, order=2, seed=21)
    with pytest.raises((AssertionError, ValueError), match="law differs|probability 0"):
        for parents in ((-1, -1), (-1, -1, 0, 1), (-1, -1, 0, 0, 1)):
            check_law(target, draft, Once(StaticTree(parents)), PLAIN, n_tokens=2)


def test_a_static_tree_grows_its_shape():
    """Node for node where nothing ends early, with as many forwards as it has levels; the same
    tree as RSD-C where the shape is one of its."""
    target, draft = models(9, seed=22)
    parents = (-1, -1, -1, 0, 0, 1, 3, 6)
    for drafter in (StaticTree(parents), StaticTree((-1, -1, 0, 0, 1, 1)), GumbelTopK((2, 2))):
        drafting = drafter.start(Pair(target, draft), [0], None, PLAIN)
        tree = drafting.propose(Draws(3), 9)
        wanted = getattr(drafter, "parents", (-1, -1, 0, 0, 1, 1))
        assert tree.parents == wanted and tree.forwards == drafter.depth
        assert tree.stopped_by == "length" and drafter.branches
        siblings = {parent: [tree.tokens[n] for n in tree.draws_of(parent)] for parent in wanted}
        assert all(len(set(tokens)) == len(tokens) for tokens in siblings.values())
    assert not StaticTree((-1, 0, 1)).branches and StaticTree((-1, 0, 1)).depth == 3


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["AdaEDL", "MaxConfidence adjusted", "SumEntropy"])
@pytest.mark.parametrize("method", METHODS)
def test_an_entropy_stopped_tree_keeps_the_law(method, rule, unchecked):
    """Some nodes of a level are expanded and others are not."""
    target, draft = models(3, seed=36)
    rule = set_between(RULES[rule], draft)
    scores, summed = scores_of(rule, draft), isinstance(rule, SumEntropy)
    best = min(scores) if summed else max(scores)
    prompt = (scores.index(best),)  # the root is expanded, what follows not always
    still = rule if summed else replace(rule, adaptive=False)
    drafter = METHODS[method]((2, 2), stop=still)
    law = check_law(target, draft, Once(drafter), PLAIN, n_tokens=3, prompt=prompt)
    sizes = {n for (n,) in events(law, "drafted")}
    assert len(sizes) > 1, "every level was grown in full"
    restless = METHODS[method]((2, 1), stop=rule)
    check_law(target, draft, restless, PLAIN, n_tokens=2, prompt=prompt)
    check_law(target, draft, restless, GREEDY, n_tokens=3, prompt=prompt)


def test_a_rule_gets_depths_and_not_numbers_of_nodes():
    seen = []

    class Watched(FixedLength):
        def update(self, depth_drafted, n_accepted, max_depth):
            seen.append((depth_drafted, n_accepted, max_depth))

    target, _ = models(3, seed=37)
    drafter = GumbelTopK((3, 2, 2), stop=Watched())
    sn.speculative(Pair(target, target), [0], drafter=drafter, sampling=PLAIN, max_new_tokens=8)
    assert seen[0] == (3, 3, 3) and all(depth <= 3 for depth, _, _ in seen)


# ---- proposals without a model


@pytest.mark.parametrize("length", [1, 2, 3])
def test_prompt_lookup_keeps_the_law(length):
    target, _ = models(3, order=2, seed=38)
    for sampling in SAMPLINGS:
        drafter = PromptLookup(ngram=2, length=length)
        law = check_law(target, None, drafter, sampling, 3, prompt=(0, 1, 2, 0, 1))
        assert law.outcomes["drafted", length] > 0
    law = check_law(target, None, drafter, PLAIN, 3, prompt=(0, 1, 2, 0, 1))
    assert {(1, 0)} <= events(law, "accepted") and {(1, 0)} <= events(law, "rejected")
    check_law(target, None, drafter, PLAIN, 3, prompt=(0,))  # nothing to look up at first


def test_prompt_lookup_takes_the_last_longest_match():
    drafting = PromptLookup(ngram=2, length=3).start(
        Pair(models(9)[0]), [1, 2, 5, 6, 1, 2, 7, 8, 3, 2, 4, 1, 2], None, PLAIN
    )
    assert drafting.propose(Draws(), 9).tokens == (7, 8, 3)
    assert drafting.propose(Draws(), 2).tokens == (7, 8)
    drafting.commit([6], 0)  # "2 6" was never said, "6" was
    assert drafting.propose(Draws(), 9).tokens == (1, 2, 7)
    drafting.commit([0], 0)
    assert drafting.propose(Draws(), 9).tokens == ()


# ---- stochastic beam search: continuous noise, so by sampling


BEAM = StochasticBeam(width=2, depth=2)


def beam_counts(n_rounds: int, drafter=BEAM, seed: int = 0) -> torch.Tensor:
    """How often each pair of first two tokens comes out of `n_rounds` runs on V = 5."""
    target, draft = models(5, seed=39)
    counts = torch.zeros(5, 5, dtype=torch.float64)
    draws = Draws(seed)
    for _ in range(n_rounds):
        counts[two_tokens(target, draft, drafter, PLAIN, draws)] += 1
    return counts


@pytest.mark.slow
def test_stochastic_beam_keeps_the_law(unchecked):
    target, _ = models(5, seed=39)
    wanted = exact.target_law(target, PLAIN, 2)
    n_rounds = 15_000  # `bench exactness` takes 200,000
    bound = noise_bound(wanted, n_rounds)
    found = beam_counts(n_rounds)
    assert exact.distance(found / n_rounds, wanted) < bound
    assert exact.distance(wanted, wanted.T) > bound  # the bound can fail


@pytest.mark.slow
@pytest.mark.parametrize(
    "owner, name, old, new",
    [
        # The maximum of a node's children is the node's own number; without that, a node's
        # place says something about its token.
        (tree_drafters, "without_replacement_laws", "left / left.sum()", "left"),
        (verify_module, "node_by_node", "tree.draws_of(node)\n", "tree.draws_of(node)[::-1]\n"),
        (
            Draws,
            "gumbel",
            "torch.empty(shape,",
            "self._generator.manual_seed(1) and torch.empty(shape,",
        ),
    ],
    ids=["not renormalised", "reverse order", "noise reused across rounds"],
)
def test_planted_bugs_in_the_beam_show_by_sampling(owner, name, old, new, monkeypatch, unchecked):
    target, _ = models(5, seed=39)
    wanted = exact.target_law(target, PLAIN, 2)
    n_rounds = 10_000
    mutant = replaced(getattr(owner, name), old, new)
    monkeypatch.setattr(owner, name, mutant)
    if old == "left / left.sum()":  # what it declares is no distribution, which is refused
        with pytest.raises(ValueError, match="is no distribution, it sums to 0"):
            beam_counts(n_rounds)
        return
    found = beam_counts(n_rounds) / n_rounds
    assert exact.distance(found, wanted) > noise_bound(wanted, n_rounds)
