"""Models of transformers behind our contract: equality, caches, vocabularies, contexts, ends."""

from __future__ import annotations

import copy
import dataclasses
import random
from collections import Counter

import builders
import pytest
import torch
from toys import EVERY

import specnb as sn
from specnb.bench.architectures import second_token_p_value
from specnb.bench.exactness import generate
from specnb.models.hf import HFContext, HFModel
from specnb.models.llama import LlamaContext
from specnb.models.small import SmallContext
from specnb.scenes import TASKS, examples, random_scene, render
from specnb.tree import path_to

RUNTIMES = [  # GPT-2 has no lean runtime; these Llamas are small enough for that in numpy
    "llava", "llava lean", "llava by transformers",
    "llama", "llama lean", "llama by transformers", "gpt2",
]  # fmt: skip
PICTURE = render(random_scene(3))
PROMPT = "Tell me a story"


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("models")
    made = {
        "llava": builders.llava15(root / "llava"),
        "llava_draft": builders.llama(root / "llava_draft", 32000, seed=5, layers=1),
        "llama": builders.llama(root / "llama"),
        "gpt2": builders.gpt2(root / "gpt2"),
        "gpt2_draft": builders.gpt2(root / "gpt2_draft", seed=0, layers=1),
    }
    made["llama_near"] = builders.llama(root / "near", noise_of=root / "llama", noise=0.1, seed=1)
    return made


@pytest.fixture(scope="module")
def pairs(folders) -> dict[str, sn.Pair]:
    names = {"llava": "llava_draft", "llama": "llama_near", "gpt2": "gpt2_draft"}
    made = {}
    for a, b in names.items():
        made[a] = sn.load_pair(folders[a], folders[b], device="cpu")
        slow = sn.load_pair(folders[a], folders[b], device="cpu", runtime="transformers")
        made[f"{a} by transformers"] = slow
        if a != "gpt2":
            lean = sn.load_pair(folders[a], folders[b], device="cpu", runtime="lean")
            made[f"{a} lean"] = lean
    return made


def picture_for(model) -> object:
    return PICTURE if model.sees_images else None


# ------------------------------------------------------------------------------ greedy equality


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNTIMES)
def test_greedy_output_is_plain_decoding_and_generate(pairs, name):
    pair = pairs[name]
    image = picture_for(pair.target)
    plain = sn.autoregressive(pair.target, PROMPT, image, max_new_tokens=30)
    peer = pairs[f"{name.split()[0]} by transformers"].target  # whose weights nobody has folded
    assert plain.token_ids == generate(peer, PROMPT, image, 30)
    assert len(set(plain.token_ids)) > 3
    for length in (1, 3, 5, 7):
        drafter = sn.Chain(length)
        run = sn.speculative(pair, PROMPT, image, drafter=drafter, max_new_tokens=30)
        assert run.token_ids == plain.token_ids


@pytest.mark.slow
@pytest.mark.parametrize("method", EVERY)
@pytest.mark.parametrize("name", RUNTIMES)
def test_greedy_output_of_every_method_is_plain_decoding(pairs, name, method):
    """Drafts are drawn at temperature 1: at 0 a tree without replacement is a chain."""
    pair, drafter = pairs[name], EVERY[method]
    image = picture_for(pair.target)
    plain = sn.autoregressive(pair.target, PROMPT, image, max_new_tokens=24)
    for seed, draft_sampling in enumerate((sn.Sampling(1.0), None)):
        run = sn.speculative(
            pair,
            PROMPT,
            image,
            drafter=drafter,
            draft_sampling=draft_sampling,
            max_new_tokens=24,
            seed=seed,
        )
        assert run.token_ids == plain.token_ids
        assert run == sn.Record.from_json(run.to_json())


@pytest.mark.weights
@pytest.mark.parametrize("method", EVERY)
def test_greedy_output_of_every_method_on_the_embedded_pair(method):
    pair = sn.load_pair()
    for task in TASKS:
        (item,) = examples(task, 1, 11)
        plain = sn.autoregressive(pair.target, item.prompt, item.image, max_new_tokens=40)
        run = sn.speculative(
            pair,
            item.prompt,
            item.image,
            drafter=EVERY[method],
            draft_sampling=sn.Sampling(1.0),
            max_new_tokens=40,
        )
        assert run.token_ids == plain.token_ids


@pytest.mark.parametrize("name", ["llama", "llama lean", "llama by transformers"])
def test_one_target_forward_per_block_and_one_drafter_forward_per_level(pairs, name, monkeypatch):
    pair = pairs[name]
    calls = Counter()
    for role in ("target", "draft"):
        model = getattr(pair, role)
        module = model.small or model.llama or model.module

        def counted(*args, _f=module.forward, _role=role, **kwargs):
            calls[_role] += 1
            return _f(*args, **kwargs)

        monkeypatch.setattr(module, "forward", counted)
    drafter, sampling = sn.GumbelTopK((3, 2, 2)), sn.Sampling(1.0)
    run = sn.speculative(pair, PROMPT, drafter=drafter, sampling=sampling, max_new_tokens=30)
    prefill = 0 if name == "llama" else 1  # in numpy prompts are read by another runtime
    assert calls["target"] == prefill + len(run.blocks)
    assert calls["draft"] == prefill + sum(block.draft_forwards for block in run.blocks)
    full = [block for block in run.blocks if block.stopped_by == "length"]
    assert {(block.draft_forwards, block.n_drafted) for block in full} == {(3, 3 + 6 + 12)}


def test_the_near_copy_is_accepted_sometimes(pairs):
    """Neither all nor none: equality above was tested on both kinds of blocks."""
    run = sn.speculative(pairs["llama"], PROMPT, max_new_tokens=60)
    assert 0 < run.metrics.acceptance_rate < 1


@pytest.mark.parametrize("name", ["llava", "llava by transformers"])
def test_the_image_is_encoded_once_and_hidden_from_the_drafter(pairs, name, monkeypatch):
    pair = pairs[name]
    tower = pair.target.module.model.vision_tower
    calls = []
    monkeypatch.setattr(
        tower, "forward", lambda *a, _f=tower.forward, **k: calls.append(1) or _f(*a, **k)
    )
    sn.speculative(pair, PROMPT, PICTURE, max_new_tokens=12)
    assert len(calls) == 1
    ids, pixels = pair.target.encode(PROMPT, PICTURE)
    assert ids.count(32000) == 576 and pixels is not None
    context = pair.target.open(PROMPT, PICTURE)
    assert context.offset == 576 and context.length == len(ids) - 576
    draft_ids = pair.draft.open(PROMPT).committed
    assert 32000 not in draft_ids and "ASSISTANT:" in pair.draft.decode(draft_ids)
    draft = pair.draft
    some = range(100)
    for raw in (
        draft.with_image_placeholders(576),
        draft.trimmed(100, some).with_image_placeholders(576).narrow,
        draft.with_image_placeholders(576).trimmed(100, some).narrow,
    ):
        assert raw.open(PROMPT).length > 576


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_one_greedy_text_or_a_tie(folders, dtype):
    """What a notebook says of two texts; a tie is one only where the numbers are that coarse.

    With fp16 weights beside float32 activations they are not.
    """
    model = sn.load_model(folders["llama"], "cpu", dtype)
    run = sn.autoregressive(model, PROMPT, max_new_tokens=8)
    assert sn.exact.same_greedy(model, PROMPT, None, run, run) == "equal"
    with pytest.raises(AssertionError, match="has changed: 8 tokens and 7"):
        shorter = dataclasses.replace(run, token_ids=run.token_ids[:7])
        sn.exact.same_greedy(model, PROMPT, None, run, shorter)
    context = model.open(PROMPT)
    context.commit(run.token_ids[:5])
    second, last = context.forward().root.topk(300).indices[[1, -1]].tolist()
    ids = list(run.token_ids)
    ids[5] = last
    far = dataclasses.replace(run, token_ids=tuple(ids))
    with pytest.raises(AssertionError, match="has changed: token 6"):
        sn.exact.same_greedy(model, PROMPT, None, run, far)

    class Coarse(type(context)):  # the second best token is now a bit's breadth behind
        def forward(self, *args):
            scores = super().forward(*args)
            root = scores.root.clone()
            root[second] = root.max() * (1 - 2**-10)
            return scores._replace(root=root)

    context.__class__ = Coarse
    ids[5] = second
    near = dataclasses.replace(run, token_ids=tuple(ids))
    model.open = lambda *args: _rewound(context, run.token_ids[:5])
    if model.activations == torch.float32:
        with pytest.raises(AssertionError, match="has changed: token 6"):
            sn.exact.same_greedy(model, PROMPT, None, run, near)
    else:
        assert "a tie" in sn.exact.same_greedy(model, PROMPT, None, run, near)


def _rewound(context, path):
    """A fork that stands where `path` is about to be committed."""
    fork = context.copy()
    fork.__class__ = context.__class__
    fork.commit = lambda tokens: None
    return fork


# ----------------------------------------------------------------------------------------- caches


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNTIMES)
def test_rows_equal_a_fresh_prefill_after_every_kind_of_round(pairs, name):
    assert worst_cache_error(pairs[name].target, picture_for(pairs[name].target)) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llava by transformers", "llama by transformers"])
def test_rows_with_eager_attention(pairs, name, monkeypatch):
    """Eager attention adds the mask to the scores: a mask of True and False would hide nothing."""
    model = copy.copy(pairs[name].target)
    module = model.module
    before = module.config._attn_implementation
    module.set_attn_implementation("eager")
    try:
        assert worst_cache_error(model, picture_for(model)) < 1e-5
        call = HFContext._call

        def as_bool(self, tokens, positions, mask, extra, keep):
            return call(self, tokens, positions, mask if mask is None else mask == 0, extra, keep)

        monkeypatch.setattr(HFContext, "_call", as_bool)
        assert worst_cache_error(model, picture_for(model)) > 1e-3
    finally:
        module.set_attn_implementation(before)


def test_the_drafters_rows_as_well(pairs):
    assert worst_cache_error(pairs["llava"].draft, None) < 1e-5


def worst_cache_error(model, image, rounds: int = 20) -> float:
    """Largest logit difference to fresh forwards after accepting all, none, n - 1 of n, trees.

    As a share of the largest logit, where that is above 1: rounding is, too.
    """
    rng = random.Random(0)
    context = model.open(PROMPT, image)
    start, worst = list(context.committed), 0.0
    for step in range(rounds):
        parents = [-1, 0, 1, 2] if step % 2 else [-1, -1, 0, 0, 1, 2]
        tokens = [rng.randrange(3, 250) for _ in parents]
        if step % 3 == 2:  # level by level, as a drafter grows its tree
            scores = [context.forward(tokens[:2], parents[:2])]
            scores.append(context.forward(tokens[2:], parents[2:]))
            root, nodes = scores[0].root, torch.cat([part.nodes for part in scores])
        else:
            root, nodes = context.forward(tokens, parents)
        node = rng.randrange(len(parents))
        text = context.committed[len(start) :]
        path = [tokens[i] for i in path_to(node, parents)]
        finite = model.allowed
        fresh = model.open(PROMPT, image)
        fresh.commit(text)
        scale = max(1.0, float(root[finite].abs().max()))
        worst = max(worst, float((fresh.forward().root - root)[finite].abs().max()) / scale)
        other = model.open(PROMPT, image)
        other.commit([*text, *path])
        found = float((other.forward().root - nodes[node])[finite].abs().max())
        worst = max(worst, found / scale)
        kept = {0: path, 1: [], 2: path[:-1], 3: path}[step % 4]
        context.commit(kept if step % 4 == 3 else [*kept, rng.randrange(3, 250)])
    return worst


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llava", "llava lean", "llama", "llama lean"])
@pytest.mark.parametrize("planted", ["one kept too many", "one too far back", "not gathered"])
def test_a_wrong_rollback_of_the_lean_cache_is_caught(pairs, name, planted, monkeypatch):
    kind = LlamaContext if name.endswith("lean") else SmallContext
    keep = kind._keep

    def wrong(self, slots, n_before):
        if planted == "not gathered":
            self.used = n_before + len(slots)
            return
        keep(self, slots, n_before)
        self.used += 1 if planted == "one kept too many" else -1

    monkeypatch.setattr(kind, "_keep", wrong)
    try:
        error = worst_cache_error(pairs[name].target, picture_for(pairs[name].target), 8)
    except (RuntimeError, IndexError, ValueError):
        return  # shapes no longer fit: caught as well
    assert error > 1e-3


@pytest.mark.parametrize("name", ["llava by transformers", "llama by transformers", "gpt2"])
@pytest.mark.parametrize("off_by", [1, -1])
def test_a_wrong_rollback_is_caught(pairs, name, off_by, monkeypatch):
    keep = HFContext._keep

    def wrong(self, slots, n_before):
        end = n_before + len(slots) + off_by  # one too many kept, or one too far back
        total = self.cache.layers[0].keys.shape[2]
        keep(self, [*range(n_before, min(end, total))], n_before)
        if off_by < 0:
            for layer in self.cache.layers:
                layer.keys, layer.values = layer.keys[:, :, :end], layer.values[:, :, :end]

    monkeypatch.setattr(HFContext, "_keep", wrong)
    try:
        error = worst_cache_error(pairs[name].target, picture_for(pairs[name].target), 8)
    except (RuntimeError, IndexError, ValueError):
        return  # shapes no longer fit: caught as well
    assert error > 1e-3


# ------------------------------------------------------------------------------------ vocabularies


def test_ids_that_only_one_side_has(tmp_path):
    target = builders.llama(tmp_path / "target", 300, seed=3)
    for size in (290, 320):
        draft = builders.llama(tmp_path / f"draft{size}", size, seed=4)
        pair = sn.load_pair(target, draft, device="cpu")
        assert pair.draft.vocab_size == pair.target.vocab_size == 300
        probs = sn.Sampling(1.0).probs(pair.draft.open(PROMPT).forward().root)
        assert probs.shape == (300,) and float(probs.sum()) == pytest.approx(1)
        assert float(probs[290:].sum()) == 0 if size == 290 else float(probs[290:].sum()) > 0
        plain = sn.autoregressive(pair.target, PROMPT, max_new_tokens=20)
        assert sn.speculative(pair, PROMPT, max_new_tokens=20).token_ids == plain.token_ids


def test_ids_without_an_entry_are_masked_everywhere(tmp_path):
    folder = builders.llama(tmp_path / "padded", 320, tokenizer_size=300, seed=3)
    pair = sn.load_pair(folder, folder, device="cpu")
    root = pair.target.open(PROMPT).forward().root
    assert root.shape == (320,) and bool((root[300:] == -torch.inf).all())
    raw = pair.target.module(torch.tensor([pair.target.encode(PROMPT)[0]])).logits[0, -1]
    assert torch.allclose(root[:300], raw[:300], atol=1e-5)  # nothing else is altered
    for seed in range(3):
        law = sn.Sampling(1.7)
        for run in (
            sn.speculative(pair, PROMPT, sampling=law, max_new_tokens=40, seed=seed),
            sn.autoregressive(pair.target, PROMPT, sampling=law, max_new_tokens=40, seed=seed),
        ):
            assert max(run.token_ids) < 300


def test_other_tokenizers_are_refused_with_the_first_difference(tmp_path):
    target = builders.llama(tmp_path / "a", 300)
    draft = builders.llama(tmp_path / "b", 300, prefix="other")
    with pytest.raises(ValueError) as caught:
        sn.load_pair(target, draft, device="cpu")
    text = str(caught.value)
    assert target in text and draft in text and "entry259" in text and "other259" in text


# -------------------------------------------------------------------------------- contexts and ends


def test_the_drafters_context_ends_first(tmp_path, folders):
    n_prompt = len(PROMPT) + 1
    short = builders.llama(tmp_path / "short", 300, seed=1, positions=n_prompt + 8)
    pair = sn.load_pair(folders["llama"], short, device="cpu")
    run = sn.speculative(pair, PROMPT, max_new_tokens=40)
    assert run.token_ids == sn.autoregressive(pair.target, PROMPT, max_new_tokens=40).token_ids
    assert run.blocks[0].n_drafted > 0
    late = [block for block in run.blocks if block.stopped_by == "context"]
    assert late and run.blocks[-2].n_drafted == 0


def test_the_targets_context_ends(tmp_path):
    n_prompt = len(PROMPT) + 1
    folder = builders.llama(tmp_path / "short", 300, positions=n_prompt + 10, eos=None)
    pair = sn.load_pair(folder, folder, device="cpu")
    run = sn.speculative(pair, PROMPT, max_new_tokens=40)
    assert run.finish == "context" and len(run.token_ids) == 11
    assert run.token_ids == sn.autoregressive(pair.target, PROMPT, max_new_tokens=40).token_ids


@pytest.mark.parametrize("as_list", [False, True])
def test_ends_inside_a_block(tmp_path, folders, as_list):
    """Whatever token comes fourth is made the end token: BOS may be it, several may be."""
    free = sn.autoregressive(sn.load_model(folders["llama"], "cpu"), PROMPT, max_new_tokens=12)
    end = next(t for i, t in enumerate(free.token_ids) if i >= 3 and t not in free.token_ids[:i])
    where = free.token_ids.index(end)
    eos = [299, end] if as_list else end
    folder = builders.llama(tmp_path / "ends", noise_of=folders["llama"], noise=0.0, eos=eos)
    pair = sn.load_pair(folder, folder, device="cpu")
    assert pair.target.eos_ids == frozenset([299, end] if as_list else [end])
    for length in (1, 2, 5, 9):
        run = sn.speculative(pair, PROMPT, drafter=sn.Chain(length), max_new_tokens=12)
        assert run.token_ids == free.token_ids[: where + 1] and run.finish == "eos"


def test_bos_as_the_end_token(tmp_path):
    folder = builders.llama(tmp_path / "bos", 300, eos=1)
    assert sn.load_model(folder, "cpu").eos_ids == frozenset([1])


@pytest.mark.parametrize("n", [1, 2, 3, 6, 7])
def test_never_beyond_max_new_tokens(pairs, n):
    run = sn.speculative(pairs["llama"], PROMPT, drafter=sn.Chain(5), max_new_tokens=n)
    assert len(run.token_ids) == n and run.finish == "length"


# ---------------------------------------------------------------------------------------- the law


@pytest.mark.slow
def test_the_law_of_the_second_token(folders):
    pair = sn.load_pair(folders["llama"], folders["llama_near"], device="cpu")
    assert second_token_p_value(pair, None, 2000) > 1e-4


@pytest.mark.slow
def test_the_same_check_catches_a_missing_residual(folders, monkeypatch):
    pair = sn.load_pair(folders["llama"], folders["llama_near"], device="cpu")
    monkeypatch.setattr("specnb.verify.residual", lambda target_probs, draft_probs: target_probs)
    assert second_token_p_value(pair, None, 2000) < 1e-4


def test_a_model_folder_is_described(pairs):
    text = pairs["llava"].describe()
    assert "sees images, lean runtime" in text and isinstance(pairs["llava"].target, HFModel)
    assert text.count("lean runtime") == 2
    assert "transformers runtime (model type gpt2)" in pairs["gpt2"].describe()
    assert "transformers runtime (asked for)" in pairs["llama by transformers"].describe()
    model = pairs["llava"].target
    own = sum(p.numel() for p in model.module.model.vision_tower.parameters())
    assert model.n_parameters < sum(p.numel() for p in model.module.parameters()) - own
