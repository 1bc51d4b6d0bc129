"""Stopping rules by hand, and rejection sampling on one node as a property."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toys import GREEDY, PLAIN, models

import specnb as sn
from specnb.drafters import conditioned, without_replacement_laws
from specnb.models import Pair
from specnb.sampling import Draws
from specnb.stopping import HIGHEST, AdaEDL, FixedLength, MaxConfidence, entropy_bound
from specnb.tree import DraftTree
from specnb.verify import k_sequential_rho, recursive

LAW = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)


def test_scores_by_hand():
    entropy = 1.5 * math.log(2)
    assert MaxConfidence().score(LAW) == 0.5
    assert AdaEDL(entropy_factor=0.2).score(LAW) == pytest.approx(1 - math.sqrt(0.2 * entropy))
    assert AdaEDL().score(torch.tensor([1.0, 0.0])) == entropy_bound(0.0) == 1.0
    assert AdaEDL().score(torch.full((32000,), 1 / 32000)) < 0  # a wide law: always a stop


@pytest.mark.parametrize("rule", [AdaEDL, MaxConfidence])
def test_a_rule_stops_below_its_threshold(rule):
    score = rule().score(LAW)
    assert rule(score + 1e-9).start().stop(LAW.log(), LAW)
    assert not rule(score).start().stop(LAW.log(), LAW)
    # Raw: the softmax of the logits, also where the law drawn from is certain.
    certain = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    assert rule(score + 1e-9).start().stop(LAW.log(), certain)
    assert not rule(score + 1e-9, signal="adjusted").start().stop(LAW.log(), certain)


def test_algorithm_1_by_hand():
    state = AdaEDL(0.4).start()
    state.update(depth_drafted=5, n_accepted=3, max_depth=7)
    assert state.acceptance == pytest.approx(0.3)  # 0.5 * 0 + 0.5 * 3/5
    assert state.threshold == pytest.approx(0.9 * 0.4 + 0.1 * 0.41)  # too little was accepted
    state.acceptance = 0.9
    state.update(5, 5, 7)  # 0.95 > alpha, and not the longest draft: later stops
    assert state.threshold == pytest.approx(0.401 - 0.001)
    state.update(7, 7, 7)  # all of the longest draft: as it is
    assert state.threshold == pytest.approx(0.4)
    before = state.state
    state.update(0, 0, 7)  # nothing drafted, nothing learnt
    assert state.state == before
    fixed = MaxConfidence(0.4, adaptive=False).start()
    fixed.update(5, 0, 7)
    assert fixed.state == (0.4, 0.0)


def test_the_threshold_never_locks_drafting_up():
    state = AdaEDL(0.9, epsilon=0.5, beta2=0.0).start()
    for _ in range(100):
        state.update(1, 0, 7)
    assert state.threshold == HIGHEST < 1
    assert MaxConfidence(2.0).start().threshold == 2.0  # "never draft" may be asked for


@pytest.mark.parametrize("threshold, drafted", [(-math.inf, {4}), (2.0, {0})])
@pytest.mark.parametrize("rule", [AdaEDL, MaxConfidence])
def test_extreme_thresholds_are_static_and_plain_decoding(rule, threshold, drafted):
    target, draft = models(4, seed=1)
    drafter = sn.Chain(4, stop=rule(threshold, adaptive=False))
    run = sn.speculative(
        Pair(target, draft), [0], drafter=drafter, sampling=PLAIN, max_new_tokens=40
    )
    assert {block.n_drafted for block in run.blocks if not block.clipped} == drafted
    if drafted == {0}:
        assert {block.stopped_by for block in run.blocks} == {"rule", "budget"}
        assert {row.verdict for row in run.tokens} == {"plain"}
        assert run.blocks[0].draft_forwards == 1  # a stop wastes the forward that led to it


@pytest.mark.parametrize("rule", [AdaEDL, MaxConfidence])
def test_rules_stop_at_temperature_0_and_the_output_is_greedy(rule):
    target, draft = models(5, order=2, seed=2)
    scores = [rule().score(row.softmax(-1)) for row in draft.logits]
    threshold = sorted(scores)[len(scores) // 2]
    pair = Pair(target, draft)
    drafter = sn.Chain(6, stop=rule(threshold, adaptive=False))
    run = sn.speculative(pair, [0, 1], drafter=drafter, sampling=GREEDY, max_new_tokens=40)
    assert "rule" in {block.stopped_by for block in run.blocks}
    assert run.token_ids == sn.autoregressive(target, [0, 1], max_new_tokens=40).token_ids


def test_the_record_holds_the_threshold_of_every_block_and_a_started_rule_carries_it_on():
    target, draft = models(4, seed=3)
    pair, rule = Pair(target, draft), AdaEDL(0.3, epsilon=0.1, beta2=0.0)

    def thresholds(stop):
        drafter = sn.Chain(3, stop=stop)
        run = sn.speculative(pair, [0], drafter=drafter, sampling=PLAIN, max_new_tokens=20)
        return [block.threshold for block in run.blocks]

    assert thresholds(rule) == thresholds(rule)
    assert thresholds(rule)[0] == 0.3 and len(set(thresholds(rule))) > 1
    carried = rule.start()
    first, second = thresholds(carried), thresholds(carried)
    assert first == thresholds(rule) and second[0] != 0.3
    assert set(thresholds(FixedLength())) == {None}


# ---- rules over the whole draft


def test_whole_draft_rules_by_hand():
    """Three laws of known entropy; what is compared is the sum or the product up to each."""
    logits = [torch.tensor(law, dtype=torch.float64).log() for law in ([0.5, 0.5], [0.9, 0.1])]
    entropies = [math.log(2), -0.9 * math.log(0.9) - 0.1 * math.log(0.1)]
    adaedl = [1 - math.sqrt(0.2 * h) for h in entropies]
    for rule, scores, whole in (
        (sn.SumEntropy, entropies, math.fsum),
        (sn.PathScore, adaedl, math.prod),
    ):
        settings = rule()
        found = [settings.score(row, row.softmax(-1)) for row in logits]
        assert found == pytest.approx(scores)
        for path in ([], [0], [0, 0, 0], [1, 0]):
            told = [scores[i] for i in path]
            for last in (0, 1):
                limit, row = whole([*told, scores[last]]), logits[last]
                above, below = (rule(limit + step) for step in (1e-9, -1e-9))
                stops = [
                    one.start().stop(row, row.softmax(-1), path=told) for one in (above, below)
                ]
                assert stops == ([False, True] if rule is sn.SumEntropy else [True, False])
    certain = torch.tensor([1.0, 0.0])  # drawn at temperature 0, where logits still have entropy
    assert sn.SumEntropy(0.1).stop(logits[0], certain)
    assert not sn.SumEntropy(0.1, signal="adjusted").stop(logits[0], certain)
    assert sn.PathScore().score(torch.zeros(32000), torch.full((32000,), 1 / 32000)) == 0.0
    assert settings.state == () and settings.start() is settings


def test_a_rule_is_told_the_scores_of_a_node_s_ancestors_and_of_no_other_node():
    """On a tree that branches at every level: each path is that of the node's own tokens."""
    target, draft = models(3, order=2, seed=4)
    told = []

    class Watched(sn.SumEntropy):
        def stop(self, logits, probs, *, path=()):
            told.append((logits, tuple(path)))
            return super().stop(logits, probs, path=path)

    tree = sn.GumbelTopK((2, 2, 1), stop=Watched(100.0))
    drafting = tree.start(Pair(target, draft), [0, 1], None, PLAIN)
    drafted = drafting.propose(Draws(0), 8)

    def entropy(text):
        return float(torch.special.entr(draft.next_logits(text).softmax(-1)).sum())

    def texts_along(node):
        tokens = [drafted.tokens[i] for i in drafted.path(node)]
        return [[0, 1, *tokens[:n]] for n in range(len(tokens) + 1)]

    asked = [-1, *(i for i, depth in enumerate(drafted.depth) if depth <= 2)]
    assert len(told) == len(asked) == 1 + 2 + 4
    for node, (logits, path) in zip(asked, told, strict=True):
        texts = texts_along(node) if node >= 0 else [[0, 1]]
        assert torch.equal(logits, draft.next_logits(texts[-1]))
        assert path == pytest.approx([entropy(text) for text in texts[:-1]])


def test_a_rule_over_the_draft_forgets_it_after_a_block():
    """Every block starts with nothing on its path, whatever came before it."""
    target, draft = models(4, seed=1)
    first = []

    class Watched(sn.PathScore):
        def stop(self, logits, probs, *, path=()):
            first.append(len(path))
            return super().stop(logits, probs, path=path)

    drafter = sn.Chain(3, stop=Watched(0.0))
    run = sn.speculative(
        Pair(target, draft), [0], drafter=drafter, sampling=PLAIN, max_new_tokens=20
    )
    lengths = [block.draft_forwards for block in run.blocks]
    assert first == [depth for n in lengths for depth in range(n)] and len(lengths) > 3


@pytest.mark.parametrize(
    "make, match",
    [
        (lambda: sn.SumEntropy(math.nan), "threshold=nan"),
        (lambda: sn.PathScore(entropy_factor=-1), "entropy_factor=-1"),
        (lambda: sn.PathScore(signal="top"), "signal='top'"),
        (lambda: AdaEDL(math.nan), "threshold=nan"),
        (lambda: AdaEDL(entropy_factor=-1), "entropy_factor=-1"),
        (lambda: MaxConfidence(alpha=1.5), "alpha=1.5"),
        (lambda: MaxConfidence(beta2=-0.1), "beta2=-0.1"),
        (lambda: AdaEDL(epsilon=math.inf), "epsilon=inf"),
        (lambda: AdaEDL(signal="top"), "signal='top'"),
        (lambda: sn.GumbelTopK(()), r"branching=\(\)"),
        (lambda: sn.GumbelTopK((2, 0)), "branching=0"),
        (lambda: sn.IIDTree((2,), verify="typical"), "verify='typical'"),
        (lambda: sn.StochasticBeam(0, 2), "width=0"),
        (lambda: sn.StochasticBeam(2, 1.5), "depth=1.5"),
        (lambda: sn.PromptLookup(ngram=0), "ngram=0"),
        (lambda: sn.PromptLookup(length=-1), "length=-1"),
    ],
)
def test_bad_settings_are_named(make, match, unchecked):
    with pytest.raises(ValueError, match=match):
        make()


@pytest.mark.parametrize("drafter", [sn.Chain(2), sn.GumbelTopK((2,)), sn.StochasticBeam(2, 2)])
def test_a_missing_draft_model_is_named(drafter):
    target, _ = models(3)
    with pytest.raises(ValueError, match=f"draft=None: {type(drafter).__name__}"):
        sn.speculative(Pair(target), [0], drafter=drafter)


# ---- one node, any two laws


def laws(size: int):
    weights = st.lists(
        st.sampled_from([0.0, 1e-6, 0.1, 0.5, 1.0, 3.0]), min_size=size, max_size=size
    )
    return weights.filter(any).map(lambda w: torch.tensor(w, dtype=torch.float64) / sum(w))


@st.composite
def nodes(draw):
    size = draw(st.integers(2, 5))
    return draw(laws(size)), draw(laws(size)), draw(st.integers(1, size))


@given(nodes())
def test_recursive_rejection_emits_the_target(node):
    """By the invariant of the proof, without the enumerator: mass emitted plus mass passed on."""
    target, draft, k = node

    def emitted(target_probs, taken):
        """Law of the emitted token, over the ways in which the remaining siblings come."""
        laws_so_far = without_replacement_laws(draft, [*taken, 0])
        law = laws_so_far[-1]
        if len(taken) == k or not torch.isfinite(law).all() or law.sum() <= 0:
            return target_probs
        found = torch.zeros_like(target_probs)
        for token in law.nonzero().flatten().tolist():
            tree = DraftTree((token,), (-1,), law[None])
            (look,), rest = recursive(tree, [0], target_probs, Refusing())
            accept = look[1].accept_prob
            found[token] += law[token] * accept
            if accept < 1:
                found += law[token] * (1 - accept) * emitted(rest, [*taken, token])
        return found

    assert torch.allclose(emitted(target, []), target, atol=1e-9)


class Refusing(Draws):
    def accept(self, prob):
        return False, 1.0


@given(nodes())
def test_the_root_of_k_seq_is_valid_and_smallest(node):
    target, draft, k = node
    rho, mass, accepted = k_sequential_rho(target, draft, k)
    assert 1.0 <= rho <= k and 0.0 <= mass <= 1.0 + 1e-12
    assert accepted <= rho * mass + 1e-9
    said = torch.minimum(draft, target / rho) * (accepted / mass if mass else 0.0)
    assert (said <= target + 1e-9).all()  # no token more often than the target says it
    if rho > 1 + 1e-6:
        smaller = rho - 1e-6
        less = float(torch.minimum(draft, target / smaller).sum())
        assert 1 - (1 - less) ** k > smaller * less - 1e-9


@given(st.integers(0, 999), st.integers(1, 4), st.integers(2, 6))
def test_conditioned_gumbels_have_the_given_maximum_and_keep_their_order(seed, rows, vocab):
    numbers = Draws(seed).gumbel((rows, vocab))
    numbers[0, 0] = -math.inf
    maximum = Draws(seed + 1).gumbel((rows, 1))
    found = conditioned(numbers, maximum)
    assert torch.allclose(found.amax(-1, keepdim=True), maximum)
    assert torch.equal(found.argsort(-1), numbers.argsort(-1))
    assert found[0, 0] == -math.inf
