"""Two small models that nobody here trained, where they lie beside the repository."""

from __future__ import annotations

import pytest
from places import REAL
from toys import EVERY

import specnb as sn
from specnb.bench.exactness import generate

PROMPTS = ("Once upon a time", "One day, a little girl", "Tom and Lily", "There was a dog")
# Block efficiency by an independent implementation, 4 prompts x 100 tokens: about +-10 %.
GREEDY = {3: 2.41, 5: 2.84, 7: 2.96}
SAMPLED = {3: 2.37, 5: 2.58, 7: 2.76}

pytestmark = pytest.mark.skipif(
    not REAL.is_dir(), reason="the two real models are not here (../shared/real)"
)


@pytest.fixture(scope="module")
def pair() -> sn.Pair:
    return sn.load_pair(str(REAL / "stories260K"), str(REAL / "llama2xs-500it"), device="cpu")


@pytest.mark.slow
def test_greedy_equality_and_end_token(pair):
    pair.target.eos_ids = frozenset([1])  # their config says 2; they end a story with 1
    peer = sn.load_model(pair.target.path, "cpu", runtime="transformers")
    peer.eos_ids = pair.target.eos_ids
    for prompt in PROMPTS:
        plain = sn.autoregressive(pair.target, prompt, max_new_tokens=100)
        assert plain.token_ids == generate(peer, prompt, None, 100)
        run = sn.speculative(pair, prompt, max_new_tokens=100)
        assert run.token_ids == plain.token_ids


@pytest.mark.slow
@pytest.mark.parametrize("method", EVERY)
def test_greedy_output_of_every_method(pair, method):
    plain = sn.autoregressive(pair.target, PROMPTS[0], max_new_tokens=60)
    run = sn.speculative(
        pair,
        PROMPTS[0],
        drafter=EVERY[method],
        draft_sampling=sn.Sampling(1.0),
        max_new_tokens=60,
    )
    assert run.token_ids == plain.token_ids
    assert len(run.blocks) < 60  # some drafts were kept


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_block_efficiency_is_the_reference_one(pair, temperature):
    for length, reference in (GREEDY if temperature == 0 else SAMPLED).items():
        emitted = calls = 0
        for seed, prompt in enumerate(PROMPTS * (1 if temperature == 0 else 2)):
            run = sn.speculative(
                pair,
                prompt,
                drafter=sn.Chain(length),
                sampling=sn.Sampling(temperature),
                max_new_tokens=100,
                seed=seed,
            )
            emitted, calls = emitted + len(run.token_ids), calls + len(run.blocks)
        assert emitted / calls == pytest.approx(reference, rel=0.12)
