"""The loop: where it stops, what it equals, how many tokens a call gives. Table models only."""

import doctest
import inspect
import itertools
import math
import statistics
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mutate import replaced
from toys import (
    EVERY,
    GREEDY,
    PLAIN,
    Hierarchy,
    Repeated,
    Siblings,
    check_law,
    models,
    unchecked,
)

from specnb import theory
from specnb import verify as verify_module
from specnb.decode import Decoding, Request, autoregressive, speculative
from specnb.drafters import Chain, NoDraft
from specnb.models import Pair, TableModel
from specnb.models.table import TableContext
from specnb.sampling import Sampling
from specnb.tree import depths

DRAFTERS = (Chain(1), Chain(3), Siblings(2, 2), Siblings(3, 1), NoDraft(), *EVERY.values())


def verdicts(record) -> list[str]:
    return [row.verdict for row in record.tokens]


def successor(*following: int, eos_ids=(), **more) -> TableModel:
    """A model that says `following[token]` behind each token, for sure."""
    logits = torch.full((len(following), len(following)), -math.inf)
    logits[range(len(following)), following] = 0.0
    return TableModel(logits, eos_ids, **more)


# ---- greedy


@pytest.mark.slow
@given(st.integers(0, 10**6), st.sampled_from(DRAFTERS), st.sampled_from([None, PLAIN]))
def test_greedy_equals_plain_decoding(seed, drafter, draft_sampling):
    """Whatever is drafted and however: token for token."""
    with unchecked():  # shapes have been looked at with fewer examples below
        greedy_is_plain(seed, drafter, draft_sampling)


def greedy_is_plain(seed, drafter, draft_sampling):
    target, draft = models(2 + seed % 9, order=1 + seed % 2, seed=seed)
    # A drafter that is wrong now and then; the random one is wrong nearly always.
    close = TableModel(target.logits + 0.5 * draft.logits)
    for drafts in (draft, close, target):
        pair = Pair(target, drafts)
        run = speculative(
            pair, [0, 1], drafter=drafter, max_new_tokens=30, draft_sampling=draft_sampling
        )
        assert run.token_ids == autoregressive(target, [0, 1], max_new_tokens=30).token_ids
        assert run.finish == "length" and len(run.token_ids) == 30


def test_the_greedy_test_saw_acceptance_and_rejection():
    rates = []
    for seed in range(20):
        target, draft = models(8, order=2, seed=seed)
        close = TableModel(target.logits + 0.5 * draft.logits)
        run = speculative(Pair(target, close), [0], drafter=Chain(3), max_new_tokens=30)
        rates.append(run.metrics.acceptance_rate)
    assert 0.05 < statistics.fmean(rates) < 0.95


def test_greedy_equality_can_fail(monkeypatch):
    wrong = replaced(verify_module.recursive, "draws.accept(accept_prob)", "(True, 0.0)")
    monkeypatch.setattr(verify_module, "recursive", wrong)
    target, draft = models(8, seed=1)
    run = speculative(Pair(target, draft), [0], drafter=Chain(3), max_new_tokens=30)
    assert run.token_ids != autoregressive(target, [0], max_new_tokens=30).token_ids


def test_a_model_drafting_for_itself_gives_full_blocks():
    target, _ = models(5, seed=3)
    for sampling in (GREEDY, PLAIN):
        run = speculative(
            Pair(target, target), [0], drafter=Chain(4), sampling=sampling, max_new_tokens=25
        )
        assert run.metrics.block_efficiency == 5.0 and run.metrics.acceptance_rate == 1.0


def test_default_drafter_and_sampling():
    target, draft = models(5, seed=3)
    run = speculative(Pair(target, draft), [0], max_new_tokens=9)
    assert run.settings["drafter"] == "Chain(5)" and run.settings["sampling"] == repr(GREEDY)
    assert run.token_ids == autoregressive(target, [0], max_new_tokens=9).token_ids


def test_same_seed_same_run():
    pair = Pair(*models(6, seed=4))

    def run(seed):
        return speculative(pair, [0], sampling=PLAIN, max_new_tokens=40, seed=seed).token_ids

    assert run(1) == run(1) != run(2)


# ---- end tokens


@pytest.mark.parametrize(
    "draft, length, eos_ids, tokens, wanted",
    [
        # The target says 1 2 3 4 0 behind 0. The end is an accepted draft: nothing behind it.
        ((1, 2, 3, 4, 0), 4, {2}, (1, 2), ["accepted"] * 2),
        ((1, 2, 3, 4, 0), 2, {2}, (1, 2), ["accepted"] * 2),
        ((1, 2, 3, 4, 0), 4, {1}, (1,), ["accepted"]),
        ((1, 2, 3, 4, 0), 4, {4, 3}, (1, 2, 3), ["accepted"] * 3),
        # the correction
        ((1, 4, 0, 0, 0), 3, {2}, (1, 2), ["accepted", "rejected", "unexamined", "correction"]),
        ((3, 0, 0, 0, 0), 1, {1}, (1,), ["rejected", "correction"]),
        # the bonus
        ((1, 2, 3, 4, 0), 1, {2}, (1, 2), ["accepted", "bonus"]),
        ((1, 2, 3, 4, 0), 3, {4, 0}, (1, 2, 3, 4), ["accepted"] * 3 + ["bonus"]),
        # An end token that is drafted but rejected ends nothing.
        ((4, 2, 3, 4, 0), 1, {2, 4}, (1, 2), ["rejected", "correction", "accepted"]),
    ],
)
def test_end_token_inside_a_block(draft, length, eos_ids, tokens, wanted):
    target = successor(1, 2, 3, 4, 0, eos_ids=eos_ids)
    pair = Pair(target, successor(*draft))
    run = speculative(pair, [0], drafter=Chain(length), max_new_tokens=50)
    assert run.token_ids == tokens and run.finish == "eos"
    assert verdicts(run) == wanted
    assert autoregressive(target, [0], max_new_tokens=50).token_ids == tokens
    assert sum(block.n_emitted for block in run.blocks) == len(tokens)


def test_nothing_is_drafted_behind_a_drafted_end():
    target = successor(1, 2, 3, 4, 0, eos_ids={2})
    run = speculative(Pair(target, target), [0], drafter=Chain(9), max_new_tokens=50)
    (block,) = run.blocks
    assert (block.n_drafted, block.draft_forwards, block.stopped_by) == (2, 2, "eos")


def test_end_token_in_plain_decoding_and_in_the_prompt():
    target = successor(1, 2, 0, eos_ids={0})
    run = autoregressive(target, [0], max_new_tokens=50)
    assert run.token_ids == (1, 2, 0) and verdicts(run) == ["plain"] * 3


@given(st.integers(0, 10**6), st.sampled_from((*DRAFTERS, Repeated(2))))
def test_never_a_token_behind_the_end(seed, drafter):
    target, draft = models(5, seed=seed)
    eos_ids = {seed % 5, (seed + 2) % 5} if seed % 3 else {seed % 5}
    pair = Pair(TableModel(target.logits, eos_ids), draft)
    run = speculative(
        pair, [0], drafter=drafter, sampling=Sampling(1.2), max_new_tokens=30, seed=seed
    )
    ends = [token in eos_ids for token in run.token_ids]
    assert not any(ends[:-1])
    assert ends[-1] == (run.finish == "eos") and len(ends) <= 30
    assert (run.finish == "eos") or len(ends) == 30


@pytest.mark.slow
@unchecked()
def test_law_of_the_length_with_end_tokens():
    """Exact enumeration runs without end tokens, so the law of stopping is checked by sampling.

    An end token of probability 0.3 everywhere: lengths are geometric, cut at 4.
    """
    from scipy import stats

    logits = torch.tensor([[0.3, 0.4, 0.3]] * 3).log()
    close = torch.tensor([[0.1, 0.6, 0.3], [0.5, 0.2, 0.3], [0.6, 0.3, 0.1]]).log()
    pair = Pair(TableModel(logits, eos_ids={0}), TableModel(close))
    counts = [0] * 4
    for seed in range(1500):
        run = speculative(pair, [1], drafter=Chain(2), sampling=PLAIN, max_new_tokens=4, seed=seed)
        counts[len(run.token_ids) - 1] += 1
    wanted = [0.3, 0.7 * 0.3, 0.49 * 0.3, 0.343]
    assert stats.chisquare(counts, [1500 * p for p in wanted]).pvalue > 1e-4
    control = [0.36, 0.64 * 0.36, 0.64**2 * 0.36, 0.64**3]  # an end 6 points more likely
    assert stats.chisquare(counts, [1500 * p for p in control]).pvalue < 1e-4


# ---- limits


@pytest.mark.parametrize("drafter", (*DRAFTERS, Repeated(3)))
@pytest.mark.parametrize("drafts_for_itself", [False, True])
def test_max_new_tokens_is_reached_exactly(drafter, drafts_for_itself):
    target, draft = models(4, seed=6)
    pair = Pair(target, target if drafts_for_itself else draft)
    for sampling in (GREEDY, PLAIN):
        for n in (1, 2, 3, 5, 12):
            run = speculative(
                pair, [0], drafter=drafter, sampling=sampling, max_new_tokens=n, seed=n
            )
            assert len(run.token_ids) == n and run.finish == "length"
            # One place is left for the target's own token, so drafts never reach the limit.
            assert all(row.depth < n for row in run.tokens if row.node >= 0)


def test_one_token_is_a_plain_step():
    target, draft = models(4, seed=6)
    run = speculative(Pair(target, draft), [0], max_new_tokens=1)
    assert verdicts(run) == ["plain"] and run.metrics.n_target_calls == 1
    assert run.blocks[0].stopped_by == "budget" and run.blocks[0].clipped


def test_where_the_drafter_s_positions_end_decoding_goes_on():
    target, draft = models(4, seed=7)
    short = TableModel(draft.logits, max_positions=6)
    run = speculative(Pair(target, short), [0, 1], drafter=Chain(3), max_new_tokens=20)
    assert run.finish == "length" and len(run.token_ids) == 20
    assert run.token_ids == autoregressive(target, [0, 1], max_new_tokens=20).token_ids
    length = 2
    for block in run.blocks[:-1]:
        room = max(0, 6 - length)
        assert block.n_drafted == min(3, room)
        assert block.stopped_by == ("context" if room < 3 else "length")
        assert block.clipped == (room < 3)
        length += block.n_emitted
    assert run.blocks[0].n_drafted == 3 and run.blocks[-1].stopped_by == "context"
    assert run.blocks[-1].n_drafted == 0 and run.blocks[-1].draft_forwards == 0


@pytest.mark.parametrize("drafter", DRAFTERS)
@pytest.mark.parametrize("sampling", [GREEDY, PLAIN])
def test_where_the_target_s_positions_end(drafter, sampling):
    """Positions are all used; the last token needs none, for nothing is fed behind it."""
    target, draft = models(4, seed=8)
    short = TableModel(target.logits, max_positions=9)
    fed = []
    run_method = TableContext._run

    def watched(self, tokens, positions, visible):
        if self.model is short:
            fed.extend(positions)
        return run_method(self, tokens, positions, visible)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TableContext, "_run", watched)
        run = speculative(
            Pair(short, draft), [0, 1], drafter=drafter, sampling=sampling, max_new_tokens=50
        )
    assert run.finish == "context" and len(run.token_ids) == 8
    assert max(fed) == 8  # positions 0..8 exist
    if sampling is GREEDY:
        assert run.token_ids == autoregressive(target, [0, 1], max_new_tokens=8).token_ids


def test_max_new_tokens_before_and_at_the_end_of_the_context():
    target = TableModel(models(4, seed=8)[0].logits, max_positions=9)
    assert autoregressive(target, [0, 1], max_new_tokens=7).finish == "length"
    assert autoregressive(target, [0, 1], max_new_tokens=8).finish == "length"
    assert autoregressive(target, [0, 1], max_new_tokens=9).finish == "context"
    full = autoregressive(target, [0] * 9, max_new_tokens=9)
    assert full.finish == "context" and len(full.token_ids) == 1


# ---- errors


@pytest.mark.parametrize(
    "match, arguments",
    [
        ("^max_new_tokens=0: give a whole number >= 1", {"max_new_tokens": 0}),
        ("^max_new_tokens=-3", {"max_new_tokens": -3}),
        (r"^prompt=\[\]: it is empty", {"prompt": []}),
        ("^prompt='  ': it is empty", {"prompt": "  "}),
        ("^image=object: table is a text-only model; leave the image out", {"image": object()}),
        ("^prompt: it has 7 tokens, .* at most 6; shorten", {"prompt": [0] * 7}),
    ],
)
def test_bad_input_is_refused_before_any_model_runs(match, arguments, monkeypatch):
    target, draft = models(4, seed=1)
    pair = Pair(TableModel(target.logits, max_positions=6), draft)

    def never(*_):
        raise RuntimeError("a model ran")

    monkeypatch.setattr("specnb.models.table.TableContext._run", never)
    with pytest.raises(ValueError, match=match):
        speculative(pair, **{"prompt": [0], **arguments})


def test_chain_needs_a_length_and_a_model():
    for length in (0, -1):
        with pytest.raises(ValueError, match=f"^draft_length={length}: give a whole number >= 1"):
            Chain(length)
    with pytest.raises(ValueError, match="^draft=None: Chain needs a draft model"):
        speculative(Pair(models(4)[0]), [0], drafter=Chain(2))


# ---- how many tokens a call gives


def synthetic_pair(acceptance: float, vocab_size: int = 8) -> Pair:
    """Uniform target; the drafter prefers one half so that sum(min(p, q)) = acceptance."""
    half = vocab_size // 2
    high = (1 + 2 * (1 - acceptance)) / vocab_size
    low = (1 - 2 * (1 - acceptance)) / vocab_size
    row = torch.tensor([high] * half + [low] * half, dtype=torch.float64)
    uniform = torch.full_like(row, 1 / vocab_size)
    assert float(torch.minimum(row, uniform).sum()) == pytest.approx(acceptance)
    return Pair(TableModel(uniform.log()[None]), TableModel(row.log()[None]))


@pytest.mark.slow
@pytest.mark.parametrize("acceptance, length", [(0.6, 1), (0.7, 4), (0.9, 3)])
def test_block_efficiency_is_what_theory_expects(acceptance, length):
    pair = synthetic_pair(acceptance)
    emitted, by_depth = [], []
    for seed in range(6):
        run = speculative(
            pair, [0], drafter=Chain(length), sampling=PLAIN, max_new_tokens=300, seed=seed
        )
        emitted += [block.n_emitted for block in run.blocks if not block.clipped]
        by_depth += [run.metrics.acceptance_by_depth]
    # Clipped blocks are left out: the limit cut their drafts.
    error = statistics.stdev(emitted) / math.sqrt(len(emitted))
    mean = statistics.fmean(emitted)
    assert abs(mean - theory.expected_tokens(acceptance, length)) < 4 * error
    assert abs(mean - theory.expected_tokens(acceptance - 0.1, length)) > 4 * error  # the control
    for depth in range(length):
        rates = statistics.fmean(rates[depth] for rates in by_depth)
        assert rates == pytest.approx(acceptance, abs=0.06)


def test_a_hierarchy_decodes():
    """Target <- middle <- small through the whole loop; its law is proven in test_exact.py."""
    target, middle = models(5, order=2, seed=9)
    drafter = Hierarchy(middle, draft_length=3, inner_length=2)
    small = TableModel.random(5, seed=77)
    run = speculative(Pair(target, small), [0], drafter=drafter, max_new_tokens=25)
    assert run.token_ids == autoregressive(target, [0], max_new_tokens=25).token_ids
    sampled = speculative(
        Pair(target, small), [0], drafter=drafter, sampling=PLAIN, max_new_tokens=25
    )
    assert len(sampled.token_ids) == 25
    for row in sampled.tokens:
        assert row.node < 0 or row.draft_prob > 0


# ---- closed forms


def test_doctests_of_theory():
    """One by one: doctest does not look through the wrapper of the type checker."""
    runner, n_found = doctest.DocTestRunner(), 0
    for name, function in inspect.getmembers(theory, inspect.isfunction):
        text = inspect.getdoc(function) or ""
        found = doctest.DocTestParser().get_doctest(text, dict(vars(theory)), name, None, None)
        n_found += len(found.examples)
        runner.run(found)
    assert n_found >= 5 and runner.failures == 0


@given(st.floats(0.0, 0.999), st.integers(0, 40))
def test_expected_tokens_is_the_paper_s_quotient(acceptance, length):
    quotient = (1 - acceptance ** (length + 1)) / (1 - acceptance)
    assert theory.expected_tokens(acceptance, length) == pytest.approx(quotient, rel=1e-9)
    assert theory.expected_tokens(1.0, length) == length + 1
    if length:
        found = theory.acceptance_rate_of(quotient, length)
        assert theory.expected_tokens(found, length) == pytest.approx(quotient, abs=1e-9)


PUBLISHED = {  # cost ratio: acceptance -> (best length, its improvement); 2211.17192, theorem 3.8
    0.0164: {0.5: (5, 1.82), 0.6: (6, 2.21), 0.7: (8, 2.83), 0.8: (12, 3.95), 0.9: (20, 6.71)},
    0.05: {0.5: (3, 1.63), 0.6: (4, 1.92), 0.7: (6, 2.35), 0.8: (8, 3.09), 0.9: (13, 4.67)},
    0.1: {0.5: (2, 1.46), 0.6: (3, 1.67), 0.7: (4, 1.98), 0.8: (6, 2.47), 0.9: (10, 3.43)},
}


@pytest.mark.parametrize("cost_ratio", PUBLISHED)
def test_optimal_draft_length(cost_ratio):
    for acceptance, (length, gain) in PUBLISHED[cost_ratio].items():
        assert theory.optimal_draft_length(acceptance, cost_ratio) == length
        found = theory.walltime_improvement(acceptance, length, cost_ratio)
        assert found == pytest.approx(gain, abs=0.006)


def test_the_best_length_is_the_best_of_all():
    """Of any length, and with what a block of so many rows costs."""
    assert theory.optimal_draft_length(0.99, 0.001) == 259

    def dear(rows):
        return 1 + 0.08 * (rows - 1) + 0.3 * (rows > 4)

    for acceptance in (0.3, 0.6, 0.9):
        for cost_ratio, verify in ((0.02, 1.3), (0.1, dear), (0.0, dear)):
            own = verify if callable(verify) else lambda rows, v=verify: v

            def gain(length, a=acceptance, c=cost_ratio, own=own):
                return theory.walltime_improvement(a, length, c, own(length + 1))

            best = theory.optimal_draft_length(acceptance, cost_ratio, verify_ratio=verify)
            assert gain(best) == max(map(gain, range(150)))
            assert theory.optimal_draft_length(acceptance, cost_ratio, 2, verify) == max(
                range(3), key=gain
            )


def trees_of(n: int, most: int):
    """Every tree of n nodes with at most so many children at a node, as what each node follows."""
    for parents in itertools.product(*(range(-1, node) for node in range(n))):
        if max(map(parents.count, parents), default=0) <= most:
            yield parents


@pytest.mark.parametrize("ranks", [(0.8, 0.1), (0.5, 0.2, 0.1), (0.3, 0.3, 0.3), (0.2, 0.0, 0.5)])
@pytest.mark.parametrize("costs", [(0, 0), (0.0225, 0), (0.1, 0.05), (0.4, 0.0), (0.0, 0.3)])
def test_the_best_tree_is_the_best_of_all(ranks, costs):
    def speed(parents):
        levels = max(depths(parents), default=0)
        cost = 1 + costs[0] * levels + costs[1] * len(parents)
        return theory.expected_tree_tokens(parents, ranks) / cost

    for budget in (1, 2, 3, 4, 5):
        every = [tree for n in range(budget + 1) for tree in trees_of(n, len(ranks))]
        found = theory.best_tree(ranks, budget, *costs)
        assert len(found) <= budget and list(found) == sorted(found)  # level by level
        assert speed(found) == pytest.approx(max(map(speed, every)), abs=1e-12)


def test_a_best_tree_without_siblings_is_the_best_chain():
    for acceptance in (0.4, 0.7, 0.9):
        for cost in (0.0225, 0.1, 0.5):
            chain = theory.best_tree((acceptance,), 40, cost)
            assert chain == (*range(-1, len(chain) - 1),)
            assert len(chain) == theory.optimal_draft_length(acceptance, cost, 40)
    assert theory.best_tree((0.1,), 9, 0.2) == ()  # below the cost of a draft


def test_drafting_pays_only_above_the_cost_ratio():
    assert theory.optimal_draft_length(0.1, 0.2) == 0
    assert theory.optimal_draft_length(0.2, 0.1) >= 1
    assert theory.walltime_improvement(0.7, 1, 0.1) == pytest.approx(1.7 / 1.1)
    assert theory.walltime_improvement(0.8, 5, 0.1, verify_ratio=1.5) == pytest.approx(
        theory.expected_tokens(0.8, 5) / 2.0
    )
    assert theory.operations_growth(0.8, 5, 0.1) == pytest.approx(6.5 * 0.2 / (1 - 0.8**6))
    assert theory.mbsu(3.0, 0, 0.5) == 3.0


@pytest.mark.parametrize(
    "match, call",
    [
        ("acceptance_rate=1.1", lambda: theory.expected_tokens(1.1, 2)),
        ("acceptance_rate=nan", lambda: theory.expected_tokens(math.nan, 2)),
        ("draft_length=-1", lambda: theory.expected_tokens(0.5, -1)),
        ("cost_ratio=-1", lambda: theory.walltime_improvement(0.5, 2, -1.0)),
        ("verify_ratio=0", lambda: theory.walltime_improvement(0.5, 2, 0.1, 0.0)),
        (r"block_efficiency=7.0: .*\[1, 6\]", lambda: theory.acceptance_rate_of(7.0, 5)),
        ("mbsu", lambda: theory.mbsu(math.nan, 2, 0.1)),
        ("give longest", lambda: theory.optimal_draft_length(1.0, 0.1)),
        ("cost_ratio=0.0: .* give longest", lambda: theory.optimal_draft_length(0.5, 0.0)),
        (r"ranks=\(0.7, 0.4\)", lambda: theory.best_tree((0.7, 0.4), 3)),
        (r"ranks=\(\)", lambda: theory.best_tree((), 3)),
        ("budget=0", lambda: theory.best_tree((0.7,), 0)),
        ("node_cost=-1", lambda: theory.best_tree((0.7,), 3, 0.1, -1)),
        ("node 1 follows 5", lambda: theory.expected_tree_tokens((-1, 5), (0.7,))),
        ("at most 1 children", lambda: theory.expected_tree_tokens((-1, -1), (0.7,))),
    ],
)
def test_theory_refuses_what_cannot_be(match, call):
    with pytest.raises(ValueError, match=match):
        call()


def test_a_prompt_that_the_drafter_cannot_read_ends_drafting_not_decoding():
    target, draft = TableModel.random(4, seed=0), TableModel.random(4, seed=1)
    short = TableModel(draft.logits, max_positions=3)
    run = speculative(Pair(target, short), [0, 1, 2, 3], max_new_tokens=6)
    assert run.token_ids == autoregressive(target, [0, 1, 2, 3], max_new_tokens=6).token_ids
    assert run.blocks[0].stopped_by == "context"
    assert all(block.n_drafted == 0 for block in run.blocks)


@dataclass(frozen=True)
class Reader:
    """Drafts what the draft model says; may read the target's context, and keeps what it saw."""

    def start(self, pair, prompt, image, sampling, target):
        return Reading(Chain(2).start(pair, prompt, image, sampling), target)


class Reading:
    def __init__(self, inner, target):
        self.inner, self.target, self.lengths = inner, target, []

    @property
    def state(self):
        return self.inner.state

    def propose(self, draws, max_depth):
        self.lengths.append(self.target.length)
        return self.inner.propose(draws, max_depth)

    def commit(self, token_ids, n_accepted):
        self.inner.commit(token_ids, n_accepted)


def test_a_drafter_that_asks_is_given_the_target_s_context():
    target, draft = models(3)
    pair, request = Pair(target, draft), Request([0, 1], max_new_tokens=12)
    decoding = Decoding(pair, request, Reader())
    assert decoding.drafting.target is decoding.target
    decoding.step()
    fork = decoding.fork()  # reads its own target from here on, not the one it was forked from
    assert fork.drafting.target is fork.target is not decoding.target
    while decoding.finish is None:
        decoding.step()
    while fork.finish is None:
        fork.step()
    assert fork.drafting.lengths == decoding.drafting.lengths
    assert (
        decoding.record().token_ids == autoregressive(target, [0, 1], max_new_tokens=12).token_ids
    )
    check_law(target, draft, Reader(), PLAIN, n_tokens=3)
