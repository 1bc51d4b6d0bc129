"""Replays make of a text what decoding does: block by block where nothing is drawn, else on
average; and acceptance by sibling rank is what records say."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from mutate import replaced

import specnb as sn
from specnb.measure import (
    KnownAcceptance,
    Oracle,
    accepted_by_rank,
    costed,
    follow,
    followed,
    places_of,
    pooled,
    replay,
    replay_tree,
    replayed_row,
    rollouts,
    row_of,
)
from specnb.measure import scores as scores_module
from specnb.models import TableModel

TARGET, NOISE = TableModel.random(6, order=2, seed=1), TableModel.random(6, order=2, seed=2)
PAIR = sn.Pair(TARGET, TableModel(TARGET.logits + 0.7 * NOISE.logits))
SLOPE = torch.linspace(-0.4, 0.6, 6, dtype=torch.float64)
HEADED = sn.Pair(TARGET, TableModel(PAIR.draft.logits))
HEADED.draft.acceptance_head = lambda: lambda logits: torch.sigmoid(1.0 + logits @ SLOPE)
ONE = sn.Sampling(1.0)
RULES = {
    "fixed": sn.FixedLength(),
    "AdaEDL": sn.AdaEDL(0.45),
    "AdaEDL that moves": sn.AdaEDL(0.45, epsilon=0.3, beta2=0.2),
    "MaxConfidence": sn.MaxConfidence(0.5),
    "SumEntropy": sn.SumEntropy(3.0),
    "PathScore": sn.PathScore(0.15),
    "SpecDecPP": sn.SpecDecPP(0.3),
}
PROMPTS = [[a, b] for a in range(6) for b in range(6)]


def blocks_of(run: sn.Record) -> list[tuple]:
    return [
        (b.n_drafted, b.draft_forwards, b.n_accepted, b.n_emitted, b.threshold) for b in run.blocks
    ]


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_a_greedy_replay_is_decoding_block_by_block(rule, unchecked):
    lengths = set()
    for prompt in PROMPTS[::6]:
        text = follow(HEADED, prompt, sn.Sampling(), max_new_tokens=30)
        for length in (1, 4, 16):
            drafter = sn.Chain(length, stop=rule)
            run = sn.speculative(HEADED, prompt, drafter=drafter, max_new_tokens=30)
            found = [tuple(block) for block in replay(text, rule, length)]
            assert found == blocks_of(run)
            lengths |= {block[0] for block in found}
            row = replayed_row(text, replay(text, rule, length))
            assert row._replace(prompt="", seconds=0.0) == row_of(run)._replace(seconds=0.0)
    assert len(lengths) > 2


def means(number: int) -> dict[str, tuple[list[float], list[float]]]:
    """Tokens per call and drafts per call of each run, decoded and replayed."""
    methods = {name: sn.Chain(8, stop=rule) for name, rule in RULES.items()}
    methods["tree"] = sn.StaticTree((-1, -1, 0, 0, 1, 2))
    found: dict[str, tuple[list, list]] = {name: ([], []) for name in methods}
    for seed in range(number):
        prompt = PROMPTS[seed % len(PROMPTS)]
        text = follow(HEADED, prompt, ONE, seed=seed + 1000, max_new_tokens=40)
        for name, drafter in methods.items():
            run = sn.speculative(
                HEADED, prompt, drafter=drafter, sampling=ONE, max_new_tokens=40, seed=seed
            )
            if name == "tree":
                blocks = replay_tree(text, drafter.parents)
            else:
                blocks = replay(text, RULES[name], 8)
            found[name][0].append((len(run.blocks), sum(b.n_drafted for b in run.blocks)))
            found[name][1].append((len(blocks), sum(b.drafted for b in blocks)))
    return found


def differences(number: int) -> list[float]:
    """In standard errors, of calls and of drafts per text."""
    found = []
    for ours, theirs in means(number).values():
        a, b = np.array(ours, float), np.array(theirs, float)
        error = np.sqrt((a.var(0) + b.var(0)) / number)
        found += list(abs(a.mean(0) - b.mean(0)) / error)
    return found


@pytest.mark.slow
def test_a_replay_is_decoding_on_average(unchecked):
    assert max(differences(120)) < 4


@pytest.mark.slow
@pytest.mark.parametrize(
    "old, new",
    [
        ("draft.gather(1, own) / target.gather(1, own)", "target.gather(1, own)"),
        ("draft.gather(1, own) / target.gather(1, own)", "draft.gather(1, own)"),
    ],
)
def test_other_chances_would_be_seen(monkeypatch, unchecked, old, new):
    monkeypatch.setattr(rollouts, "_ranks", replaced(rollouts._ranks, old, new))
    assert max(differences(60)) > 6


@pytest.mark.slow
def test_no_rule_beats_the_oracle(unchecked):
    texts = followed(HEADED, PROMPTS[:12], ONE)

    def speed(rule, length, cost=0.2):
        rows = [replayed_row(text, replay(text, rule, length)) for text in texts]
        return pooled(costed(rows, cost), "tokens_per_second")

    best = speed(Oracle(), 16)
    for rule in (*RULES.values(), KnownAcceptance(0.5), KnownAcceptance(0.3, whole=True)):
        assert best > max(speed(rule, length) for length in (1, 2, 4, 8, 16))
    for text in texts:  # nothing wasted
        for block in replay(text, Oracle(), 16):
            assert block.drafted == block.accepted


def test_a_learned_rule_is_not_replayed_without_a_head(unchecked):
    text = follow(PAIR, PROMPTS[0], ONE)
    with pytest.raises(ValueError, match=r"SpecDecPP.*followed without an acceptance head"):
        replay(text, sn.SpecDecPP(), 8)


def test_a_head_that_cannot_be_used_is_none(unchecked):
    """As of a drafter with fewer ids than its hidden states have numbers: only the rule that asks
    for a guess is refused."""

    def too_narrow():
        raise ValueError("k=3: an acceptance head is read from logits")

    pair = sn.Pair(TARGET, TableModel(PAIR.draft.logits))
    pair.draft.acceptance_head = too_narrow
    text, plain = (follow(one, PROMPTS[0], ONE, seed=3) for one in (pair, PAIR))
    assert np.isnan(text.guess).all()
    np.testing.assert_equal(tuple(text), tuple(plain))
    with pytest.raises(ValueError, match="without an acceptance head"):
        replay(text, sn.SpecDecPP(), 8)


def test_a_draft_model_whose_positions_end_within_the_text_is_not_replayed(unchecked):
    short = TableModel(PAIR.draft.logits, max_positions=8)
    pair = sn.Pair(TARGET, short)
    run = sn.speculative(pair, [0, 1, 2], drafter=sn.Chain(4), max_new_tokens=16)
    assert run.blocks[-2].n_drafted == 0  # what a replay would not know
    with pytest.raises(ValueError, match="5 positions behind it.*needs 32; give a shorter prompt"):
        follow(pair, [0, 1, 2], sn.Sampling(), max_new_tokens=16)


def test_known_acceptance_is_what_is_kept_on_average(unchecked):
    texts = followed(PAIR, PROMPTS, ONE)
    kept = np.concatenate([text.kept for text in texts])
    overlap = np.concatenate([text.overlap for text in texts])
    error = math.sqrt((overlap * (1 - overlap)).sum()) / len(kept)
    assert abs(kept.mean() - overlap.mean()) < 4 * error


def test_texts_are_kept_and_taken_again(tmp_path, unchecked):
    def texts(**more):
        cache = sn.measure.RowCache(tmp_path / "texts.jsonl", rollouts.Stored)
        before = len(cache)
        found = followed(PAIR, PROMPTS[:3], ONE, kept=cache, **more)
        return found, len(cache) - before

    first, n = texts()
    again, none = texts()
    assert (n, none) == (3, 0) and texts(draft_sampling=sn.Sampling(2.0))[1] == 3
    for one, other in zip(first, again, strict=True):
        np.testing.assert_equal(tuple(one), tuple(other))  # NaN is NaN
        assert replay(one, sn.AdaEDL(), 8) == replay(other, sn.AdaEDL(), 8)


@pytest.mark.slow
def test_ranks_are_those_of_records(unchecked):
    """Counted in runs that draw all siblings, and read off followed texts. Every place of these
    models is like every other: in real text, places where a block begins are not like all."""
    a, b = TableModel.random(6, order=0, seed=1), TableModel.random(6, order=0, seed=2)
    pair = sn.Pair(a, TableModel(a.logits + 0.7 * b.logits))
    runs = [
        sn.speculative(pair, [0], drafter=sn.GumbelTopK((3,)), sampling=ONE, seed=seed)
        for seed in range(40)
    ]
    shares = accepted_by_rank(runs, 3)
    n = sum(len(places_of(run)) for run in runs)
    texts = followed(pair, [[0]] * 40, ONE)
    ranks = np.concatenate([text.rank for text in texts])
    for rank, share in enumerate(shares, 1):
        other = float((ranks == rank).mean())
        assert abs(share - other) < 4 * math.sqrt(share * (1 - share) * (1 / n + 1 / len(ranks)))
    by_hand = places_of(runs[0])
    assert all(place.n_children == 3 and place.depth == 1 for place in by_hand)
    accepted = sum(row.verdict == "accepted" for row in runs[0].tokens)
    assert accepted == sum(place.rank > 0 for place in by_hand)


def test_ranks_that_were_never_drawn_are_not_known(unchecked):
    run = sn.speculative(PAIR, [0, 1], drafter=sn.GumbelTopK((2,)), sampling=ONE)
    assert len(accepted_by_rank([run], 2)) == 2
    with pytest.raises(ValueError, match="most=3: in these runs no node has more than 2 children"):
        accepted_by_rank([run], 3)
    with pytest.raises(ValueError, match="most=0"):
        accepted_by_rank([run], 0)
    with pytest.raises(ValueError, match="^records: no draft"):
        accepted_by_rank([], 3)


def test_auc_by_hand():
    scores, events = np.array([0.1, 0.4, 0.4, 0.9]), np.array([False, True, False, True])
    assert scores_module.auc(scores, events) == (1 + 0.5 + 1 + 1) / 4
    assert math.isnan(scores_module.auc(scores, np.ones(4, bool)))


def test_a_high_entropy_speaks_against_a_token(unchecked):
    texts = followed(PAIR, PROMPTS[:6], ONE)
    entropy = np.concatenate([text.entropy[:, 0] for text in texts])
    kept = np.concatenate([text.kept for text in texts])
    found = sn.measure.auc_of(texts, sn.SumEntropy())
    assert found == pytest.approx(1 - scores_module.auc(entropy, kept))
    assert found == sn.measure.whole_auc(texts, longest=1)["SumEntropy"]


def test_calibration_by_hand(unchecked):
    (text,) = followed(PAIR, PROMPTS[:1], ONE)
    bins = sn.measure.calibration([text], sn.MaxConfidence())
    assert sum(one["n"] for one in bins) == len(text.kept)
    mean = sum(one["n"] * one["acceptance"] for one in bins) / len(text.kept)
    assert mean == pytest.approx(text.overlap.mean())
    for one in bins:
        inside = (text.top[:, 0] * 10).astype(int) == int(one["score"] * 10 + 1e-9)
        assert one["score"] == pytest.approx(text.top[inside, 0].mean())


@pytest.mark.parametrize(
    "match, call",
    [
        ("signal='raw'", lambda text: replay(text, sn.AdaEDL(signal="adjusted"), 3)),
        ("draft_length=17", lambda text: replay(text, sn.FixedLength(), 17)),
        ("at most 8 siblings", lambda text: replay_tree(text, (-1,) * 9)),
        ("draft=None", lambda text: follow(sn.Pair(TARGET), [0, 1], ONE)),
        (r"parents=\(\): give the earlier", lambda text: replay_tree(text, ())),
        (r"parents=\(0, 1\): give the earlier", lambda text: replay_tree(text, (0, 1))),
        (
            "rule=SumEntropy.*no probability",
            lambda text: sn.measure.calibration([text], sn.SumEntropy()),
        ),
        ("rule=Oracle.*no probability", lambda text: sn.measure.calibration([text], Oracle())),
    ],
)
def test_what_a_replay_refuses(match, call, unchecked):
    with pytest.raises(ValueError, match=match):
        call(follow(PAIR, [0, 1], ONE, max_new_tokens=8))


LAWS = [((0.7, 0.3), (0.55, 0.45)), ((0.4, 0.6), (0.65, 0.35))]


def kept_at_first(draft, target, seeds: int = 800) -> float:
    """How far the share of first drafts that are kept is off, in standard errors."""
    models = (TableModel(torch.tensor([law], dtype=torch.float64).log()) for law in (target, draft))
    pair = sn.Pair(*models)
    overlap = sum(map(min, draft, target))
    texts = (follow(pair, [0], ONE, seed=seed, max_new_tokens=2) for seed in range(seeds))
    share = np.mean([text.kept[0] for text in texts])
    return float(abs(share - overlap) / math.sqrt(overlap * (1 - overlap) / seeds))


@pytest.mark.slow
@pytest.mark.parametrize("draft, target", LAWS)
def test_the_first_draft_of_a_replay_is_kept_as_often_as_it_should(draft, target, unchecked):
    assert kept_at_first(draft, target) < 4


@pytest.mark.slow
def test_a_replay_with_the_texts_own_numbers_would_be_seen(monkeypatch, unchecked):
    monkeypatch.setattr(rollouts, "_own_draws", rollouts.Draws)
    assert min(kept_at_first(*laws) for laws in LAWS) > 4
