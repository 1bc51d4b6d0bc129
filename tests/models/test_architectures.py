"""Architectures of transformers on tiny random weights: exact, or refused in one sentence.

The most used half of the families; `python -m specnb.bench architectures` runs all of them.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

import specnb as sn
from specnb.bench import architectures
from specnb.bench.architectures import METHODS, N_TOKENS, PROMPT, Peer, Wrong, judge, picture
from specnb.bench.families import FAMILIES, WORDS, drafter_of
from specnb.models import hf
from specnb.models.hf import HFContext

USED = (
    *("llama", "llama_padded_vocabulary", "mistral_sliding", "mixtral_sliding", "qwen2"),
    *("qwen3_moe", "gemma2", "phi3_longrope", "starcoder2_sliding", "gpt2", "gpt_neo_local"),
    *("bloom", "deepseek_v3", "gpt_oss", "llama4_text"),
    *("llava_llama", "llava_next", "llava_onevision", "qwen2_vl", "qwen2_5_vl", "qwen3_vl"),
    *("idefics3", "smolvlm", "gemma3", "paligemma", "internvl", "mistral3", "aya_vision"),
)
REFUSED = tuple(name for name, family in FAMILIES.items() if family.expect == "refused")


@pytest.fixture(autouse=True)
def quiet():
    with architectures.quiet(), architectures.stills():
        yield


def loaded(family, root, rows: int = 0) -> tuple[sn.Pair, Peer]:
    folder = family.build(root / "target", seed=0)
    draft = drafter_of(family, folder, root / "draft", rows=rows)
    pair = sn.load_pair(folder, draft, device="cpu", dtype="float32", certify=False)
    return pair, Peer(folder, pair.target)


@pytest.mark.slow
@pytest.mark.parametrize("name", USED)
def test_a_family_is_exact(name, tmp_path):
    row = judge(FAMILIES[name], tmp_path, certify=False)
    assert row["status"] in ("ok", "chains"), row


TEXTS = [name for name in USED if not FAMILIES[name].sees]


def read_in_pieces(name, root, monkeypatch) -> float:
    """How far logits behind a prompt of 60 ids in pieces of 16 are off, of the largest."""
    folder = FAMILIES[name].build(root / "target", seed=0)
    given = {"device": "cpu", "dtype": "float32", "certify": False, "runtime": "transformers"}
    model = sn.load_model(folder, **given)
    ids = [(7 * i) % 200 + 10 for i in range(60)]
    found = []
    for size in (1024, 16):
        monkeypatch.setattr(hf, "PIECE", size)
        scores = model.open(ids).forward([5, 9], [-1, 0])
        found.append(torch.cat([scores.root[None], scores.nodes]))
    seen = found[0].isfinite()
    return float((found[1] - found[0])[seen].abs().max() / found[0][seen].abs().max())


@pytest.mark.slow
@pytest.mark.parametrize("name", TEXTS)
def test_a_long_prompt_is_read_in_pieces(name, tmp_path, monkeypatch, capsys):
    assert read_in_pieces(name, tmp_path, monkeypatch) < 1e-4
    assert "reading the prompt into a cache of 0." in capsys.readouterr().err


def test_pieces_at_other_positions_would_be_seen(tmp_path, monkeypatch):
    call = HFContext._call

    def shifted(self, tokens, positions, *more, **given):
        late = positions and [place + (place >= 32) for place in positions]
        return call(self, tokens, late if len(tokens) == 16 else positions, *more, **given)

    monkeypatch.setattr(HFContext, "_call", shifted)
    assert read_in_pieces("llama", tmp_path, monkeypatch) > 1e-3


@pytest.mark.parametrize("name", REFUSED)
def test_a_family_is_refused_in_one_sentence_before_its_weights_are_read(name, tmp_path):
    row = judge(FAMILIES[name], tmp_path)
    assert row["status"] == "refused", row
    assert str(tmp_path) not in row["refusal"]  # it may be stored


@pytest.mark.parametrize("name", ["gpt_oss", "llava_next"])
def test_a_family_is_the_same_every_time(name, tmp_path):
    """Wherever the global random numbers stand; which are left where they stood."""
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    one = FAMILIES[name].build(tmp_path / "one", seed=0)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(1)
    other = FAMILIES[name].build(tmp_path / "other", seed=0)
    contents = [(Path(folder) / "model.safetensors").read_bytes() for folder in (one, other)]
    assert contents[0] == contents[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in USED if FAMILIES[name].sees])
def test_the_picture_changes_the_answer(name, tmp_path):
    """Otherwise a lost picture would pass."""
    folder = FAMILIES[name].build(tmp_path, seed=0)
    peer = Peer(folder, sn.load_model(folder, "cpu", "float32", certify=False))
    one, other = (peer.logits(peer.inputs(PROMPT, picture(seed)), []) for seed in (3, 4))
    assert float((one - other).abs().max()) > 0.01 * float(one.abs().max())


# ------------------------------------------------------------------------ faults that must be seen


def without_token_types(pair, monkeypatch):
    encode = pair.target.encode

    def dropped(*args):
        ids, extras = encode(*args)
        return ids, {name: value for name, value in extras.items() if "token_type" not in name}

    monkeypatch.setattr(pair.target, "encode", dropped)


def window_off_by_one(pair, monkeypatch):
    plan = pair.target.plan
    monkeypatch.setattr(pair.target, "plan", dataclasses.replace(plan, window=plan.window + 1))


def chunk_off_by_one(pair, monkeypatch):
    plan = pair.target.plan
    monkeypatch.setattr(pair.target, "plan", dataclasses.replace(plan, chunk=plan.chunk + 1))


def positions_of_text(pair, monkeypatch):
    start = HFContext.__init__

    def unshifted(self, *args):
        start(self, *args)
        self.shift = 0

    monkeypatch.setattr(HFContext, "__init__", unshifted)


def one_slot_too_many(pair, monkeypatch):
    keep = HFContext._keep

    def wrong(self, slots, n_before):
        more = [n_before + len(slots)] if len(self.places) > n_before + len(slots) else []
        keep(self, [*slots, *more], n_before)

    monkeypatch.setattr(HFContext, "_keep", wrong)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("gemma3", without_token_types),
        ("mistral_sliding", window_off_by_one),
        ("gemma3", window_off_by_one),
        ("llama4_text", chunk_off_by_one),
        ("qwen2_vl", positions_of_text),
        ("gpt2", one_slot_too_many),
    ],
)
def test_a_planted_fault_is_seen(name, fault, tmp_path, monkeypatch):
    family = FAMILIES[name]
    pair, peer = loaded(family, tmp_path)
    fault(pair, monkeypatch)
    with pytest.raises((Wrong, RuntimeError, ValueError)):
        architectures.compare(family, pair, peer, {})


def test_a_refusal_must_be_a_sentence_with_a_remedy():
    family = dataclasses.replace(FAMILIES["t5"], words=("encoder-decoder",))

    def says(text: str):
        def call():
            raise ValueError(text)

        return call

    good = "model 't5': it is an encoder-decoder; choose another"
    assert architectures._sentence(family, says(good)) == good
    for bad in (good.replace(";", "."), good.replace("encoder", "x"), good + "\nmore", good * 20):
        with pytest.raises(Wrong):
            architectures._sentence(family, says(bad))
    with pytest.raises(Wrong, match="not refused"):
        architectures._sentence(family, lambda: None)


# ------------------------------------------------------------------------------------ vocabularies


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("smolvlm", WORDS),  # as SmolVLM's 49,280 rows over SmolLM2's 49,152
        ("internvl", WORDS),  # its own special ids over Qwen's
        ("llava_llama", WORDS),  # as 32,064 over 32,000
        ("llava_llama", WORDS + 64),
        ("qwen2_5_untied", WORDS),  # as 152,064 over 151,936, and the other way round
        ("qwen2_5_untied", WORDS + 64),
    ],
)
def test_pairs_whose_vocabularies_differ(name, rows, tmp_path):
    family = FAMILIES[name]
    pair, peer = loaded(family, tmp_path, rows)
    assert pair.draft.own_vocab_size == rows != pair.target.vocab_size == pair.draft.vocab_size
    image = picture() if family.sees else None
    wanted = peer.generate(peer.inputs(PROMPT, image), N_TOKENS)
    for method, drafter in METHODS.items():
        assert 0 < architectures.acceptance(pair, image, drafter, wanted, method) < 1
    law = sn.Sampling(1.0).probs(pair.draft.open(PROMPT).forward().root)
    assert float(law[min(rows, WORDS) :].sum()) == 0


# --------------------------------------------------------------------------------- several pictures


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llava_llama", "qwen2_vl", "idefics3", "gemma3"])
def test_several_pictures_in_one_prompt(name, tmp_path):
    pair, peer = loaded(FAMILIES[name], tmp_path)
    images = [picture(3), picture(4).resize((40, 60))]
    inputs = peer.inputs(PROMPT, images)
    assert pair.target.encode(PROMPT, images)[0] == inputs["input_ids"][0].tolist()
    assert architectures.worst_node(pair.target, peer, images, trees=True) < architectures.BOUND
    plain = sn.autoregressive(pair.target, PROMPT, images, max_new_tokens=24)
    assert plain.token_ids == peer.generate(inputs, 24)
    run = sn.speculative(pair, PROMPT, images, drafter=METHODS["tree"], max_new_tokens=24)
    assert run.token_ids == plain.token_ids
    swapped = peer.logits(peer.inputs(PROMPT, images[::-1]), [])
    assert not torch.allclose(swapped, peer.logits(inputs, []), atol=1e-2)


# --------------------------------------------------------------------------------- the command line


def test_the_table_has_a_row_for_every_family():
    figures = architectures.measure(only=["llama", "t5"])
    assert figures["passed"] and [row["name"] for row in figures["rows"]] == ["llama", "t5"]
    text = architectures.table(figures)
    assert "| llama | ok | 40/40 |" in text and "| t5 | refused |" in text
    assert text.endswith("2 families, 0 not as expected")
    with pytest.raises(ValueError, match="no such family"):
        architectures.measure(only=["nothing"])
