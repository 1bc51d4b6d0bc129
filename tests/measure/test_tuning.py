"""Tuning: what is replayed is what decoding does, costs are the loop's, and the best one wins."""

from __future__ import annotations

import dataclasses

import builders
import pytest

import specnb as sn
from specnb import tuning
from specnb.scenes import examples

PROMPTS = ["Tell me a story", "Once upon a time", "What is this?"]


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> sn.Pair:
    root = tmp_path_factory.mktemp("models")
    target = builders.llama(root / "llama")
    near = builders.llama(root / "near", noise_of=root / "llama", noise=0.1, seed=1)
    return sn.load_pair(target, near, device="cpu")


RULES = {
    "fixed": sn.FixedLength(),
    "AdaEDL": sn.AdaEDL(0.3, adaptive=False),
    "MaxConfidence": sn.MaxConfidence(0.3, adaptive=False),
}


@pytest.fixture(scope="module")
def places(pair) -> dict[str, list[tuning.Place]]:
    """From one run with a draft that never ends, so that every place has been examined."""
    found = {}
    for prompt in PROMPTS:
        long = sn.speculative(pair, prompt, drafter=sn.Chain(48), max_new_tokens=48)
        laws = tuning._along(pair, prompt, long)
        found[prompt] = tuning._kept(long, laws, sn.Sampling())
    return found


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
def test_a_replay_cuts_the_greedy_text_as_decoding_does(pair, places, rule):
    for prompt in PROMPTS:
        for length in (1, 3, 8):
            drafter = sn.Chain(length, stop=RULES[rule])
            real = sn.speculative(pair, prompt, drafter=drafter, max_new_tokens=48)
            found = list(tuning._replay(places[prompt], length, drafter.stop))
            assert [b.tokens for b in found] == [b.n_emitted for b in real.blocks]
            if rule == "fixed":
                assert [b.drafted for b in found] == [b.n_drafted for b in real.blocks]


@pytest.mark.slow
def test_a_replay_that_forgets_the_bonus_is_caught(pair, places, monkeypatch):
    wrong = tuning.Block
    monkeypatch.setattr(tuning, "Block", lambda d, f, tokens: wrong(d, f, max(1, tokens - 1)))
    real = sn.speculative(pair, PROMPTS[0], drafter=sn.Chain(5), max_new_tokens=48)
    found = list(tuning._replay(places[PROMPTS[0]], 5, sn.FixedLength()))
    assert [b.tokens for b in found] != [b.n_emitted for b in real.blocks]


@pytest.mark.weights
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_embedded_pair(temperature):
    pair, items = sn.load_pair(), examples("caption", 2, 3)
    found = sn.tune(pair, items, sampling=sn.Sampling(temperature), max_new_tokens=24)
    assert found.drafter == found.candidates[0].drafter
    took = [candidate.ms_per_token for candidate in found.candidates]
    assert took == sorted(took) and len(took) == tuning.LONGEST + len(tuning.THRESHOLDS) + 2
    assert found.predicted == pytest.approx(found.plain_ms / took[0])
    assert found.measured > 0 and "predicted" in repr(found)
    table = found.to_pandas()
    assert len(table) == len(took) and table.iloc[0, 0] in repr(found)
    for candidate in found.candidates:
        assert 1 <= candidate.block_efficiency <= tuning.LONGEST + 1


def test_costs_are_read_off_records(pair):
    """A run whose every block took 2 ms for the target and 1 ms for each draft forward."""
    run = sn.speculative(pair, PROMPTS[0], max_new_tokens=50)
    blocks = tuple(
        block._replace(
            verify_s=0.002 + 0.001 * block.n_drafted, draft_s=0.001 * block.draft_forwards
        )
        for block in run.blocks
    )
    run = dataclasses.replace(run, blocks=blocks)
    verify = tuning._verify_cost([run])
    assert verify(5) == pytest.approx(0.007)
    assert sum(tuning._draft_cost([run])) == pytest.approx(0.001)


def test_without_a_prompt(pair):
    with pytest.raises(ValueError, match=r"prompts=\[\]"):
        sn.tune(pair, [])


def test_one_text_is_no_list_of_prompts(pair):
    """Of which every letter would be measured as a prompt."""
    methods = {"it": sn.Chain(2)}
    for wrong in (
        lambda: sn.tune(pair, "Hello"),
        lambda: tuning.costs(pair, "Hello"),
        lambda: sn.measure.in_turns(pair, "Hello", methods, sn.Sampling()),
        lambda: sn.measure.followed(pair, "Hello", sn.Sampling()),
    ):
        with pytest.raises(ValueError, match="prompts='Hello': this is one text; put it into a"):
            wrong()


def test_a_drafter_that_ends_within_its_longest_draft_is_refused_first(monkeypatch):
    """Its replay would score places at which decoding never drafts."""
    from specnb.models import TableModel

    target = TableModel.random(6, seed=1)
    few = sn.Pair(target, TableModel(target.logits, max_positions=30))
    monkeypatch.setattr(tuning, "decode", lambda *given, **more: pytest.fail("it was decoded"))
    with pytest.raises(ValueError, match="prompts: after one of them the draft model has"):
        sn.tune(few, [[0, 1], [2] * 8], max_new_tokens=16)
    tuning._check_room(few, [[0, 1]], 16)
