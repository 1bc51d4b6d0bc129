"""The runtime in numpy: transformers' logits and laws, caches, which models get it, one draw."""

from __future__ import annotations

import math
import subprocess
import sys

import builders
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_llama import ROPES

import specnb as sn
from specnb.models import hf, small
from specnb.models.llama import Llama, LlamaContext, has_halves, parts
from specnb.models.load import EMBEDDED
from specnb.models.small import SmallContext, SmallLlama, fits
from specnb.sampling import Draws, Sampling
from specnb.tree import path_to

TREE = (-1, -1, 0, 1, 1, 3, 4)
ATOL = 1e-5


@st.composite
def configs(draw):
    from transformers import LlamaConfig

    n_kv = draw(st.sampled_from([1, 2, 3]))
    heads = n_kv * draw(st.sampled_from([1, 2, 4]))
    rope = draw(st.sampled_from(list(ROPES)))
    return LlamaConfig(
        vocab_size=draw(st.integers(5, 70)),
        hidden_size=heads * draw(st.sampled_from([2, 6])),  # need not be heads * dim
        intermediate_size=draw(st.sampled_from([8, 20])),
        num_hidden_layers=draw(st.integers(1, 4)),
        num_attention_heads=heads,
        num_key_value_heads=n_kv,
        head_dim=draw(st.sampled_from([4, 8, 16])),
        max_position_embeddings=256,
        rms_norm_eps=draw(st.sampled_from([1e-6, 1e-3])),
        rope_parameters={
            "rope_type": rope,
            "rope_theta": draw(st.sampled_from([100.0, 10000.0])),
            **ROPES[rope],
        },
        tie_word_embeddings=draw(st.booleans()),
        initializer_range=0.2,
    )


def made(config, seed: int = 0):
    """A module with gains that are not 1, and a model for contexts around its copy."""
    from transformers import LlamaForCausalLM

    modules = []
    for _ in range(2):
        torch.manual_seed(seed)
        module = LlamaForCausalLM(config).eval()
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                if "norm" in name:
                    parameter.uniform_(0.5, 1.5)
        modules.append(module)
    return modules[0], Bare(modules[1])


class Bare:
    """As much of a model as its contexts ask for."""

    def __init__(self, module):
        weights = parts(module)
        self.llama, self.small = Llama(weights), SmallLlama(weights)
        self.max_positions = module.config.max_position_embeddings
        self.image_token_id = None

    def own_ids(self, token_ids):
        return list(token_ids)

    def logits(self, raw):
        return raw


@torch.inference_mode()
def reference(module, ids, rows):
    return module(torch.tensor([ids])).logits[0, -rows:]


def worst_error(module, model, seed: int, n_prompt: int, rounds: int = 4) -> float:
    """The largest difference of logits and of laws to forwards over whole texts by transformers.

    A prompt, chains token by token, then trees level by level, each partly committed.
    """
    generator = torch.Generator().manual_seed(seed)
    vocab = module.config.vocab_size

    def some(n: int) -> list[int]:
        return torch.randint(0, vocab, (n,), generator=generator).tolist()

    text, worst = some(n_prompt), 0.0
    context = SmallContext(model, text, None)

    def compare(found, wanted):
        nonlocal worst
        laws = Sampling(1.0).probs(found) - Sampling(1.0).probs(wanted)
        worst = max(worst, float((found - wanted).abs().max()), float(laws.abs().max()))

    for number in range(rounds):
        parents = (-1, 0, 1, 2) if number % 2 == 0 else TREE
        tokens = some(len(parents))
        root = context.forward().root
        compare(root, reference(module, text, 1)[0])
        first, rows = 0, []
        levels = [1, 1, 1, 1] if number % 2 == 0 else [2, 1, 2, 2]
        for size in levels:
            part = slice(first, first + size)
            rows.append(context.forward(tokens[part], parents[part]).nodes)
            first += size
        nodes = torch.cat(rows)
        for node in range(len(parents)):
            path = [tokens[i] for i in path_to(node, parents)]
            compare(nodes[node], reference(module, text + path, 1)[0])
        n_kept = int(torch.randint(0, 4, (1,), generator=generator))
        kept = [tokens[i] for i in path_to(len(parents) - 1, parents)][:n_kept]
        emitted = kept + some(1 if number < rounds - 1 else 40)  # more than one forward takes
        context.commit(emitted)
        text += emitted
    compare(context.forward().root, reference(module, text, 1)[0])
    return worst


@pytest.mark.slow
@settings(max_examples=40)
@given(config=configs(), seed=st.integers(0, 9), n=st.integers(1, 40))
def test_logits_and_laws_are_those_of_transformers(config, seed, n):
    module, model = made(config, seed)
    assert worst_error(module, model, seed, n) < ATOL


@settings(max_examples=10)
@given(config=configs(), seed=st.integers(0, 9))
def test_products_in_pieces_are_the_same(config, seed):
    """Sizes as of models and texts a thousand times as large."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(small, "STEPS", 90)
        patch.setattr(small, "ONE_ROW", 50)
        module, model = made(config, seed)
        assert worst_error(module, model, seed, 9) < ATOL


def wrong_turns(patch):
    turns = SmallLlama._turns
    patch.setattr(SmallLlama, "_turns", lambda self, at: turns(self, [i + 1 for i in at]))


def wrong_mask(patch):
    attention = small._attention
    patch.setattr(small, "_attention", lambda q, k, v, hidden: attention(q, k, v, None))


def wrong_norm(patch):
    patch.setattr(SmallLlama, "_norm", lambda self, x: x * np.float32(0.3))


def wrong_rollback(patch):
    def keep(self, slots, n_before):
        self.used = n_before + len(slots)

    patch.setattr(SmallContext, "_keep", keep)


@pytest.mark.parametrize("bug", [wrong_turns, wrong_mask, wrong_norm, wrong_rollback])
def test_the_comparison_catches(bug, monkeypatch):
    module, model = made(builders.llama_config())
    assert worst_error(module, model, 0, 9) < ATOL
    bug(monkeypatch)
    assert worst_error(module, model, 0, 9) > 1e-3


def test_what_a_forward_gave_stays_as_it_is():
    """Nothing that is handed out lies in memory that the next step writes to."""
    _, model = made(builders.llama_config())
    context = SmallContext(model, [1, 2, 3], None)
    given_out = [context.forward().root]
    given_out += [context.forward([token], [token - 5]).nodes for token in (4, 5, 6)]
    before = [rows.clone() for rows in given_out]
    context.forward([7], [2])
    context.commit([4, 5, 9])
    context.forward([8, 9], [-1, 0])
    assert all(torch.equal(a, b) for a, b in zip(before, given_out, strict=True))


def test_forks_are_independent():
    module, model = made(builders.llama_config())
    context = SmallContext(model, [1, 2, 3], None)
    context.forward([4, 5], [-1, 0])
    fork = context.copy()
    fork.commit([6])
    fork.forward([7, 8, 9], [-1, 0, 1])
    context.commit([4, 5])
    root = context.forward([10], [-1]).root
    assert torch.allclose(root, reference(module, [1, 2, 3, 4, 5], 1)[0], rtol=0, atol=ATOL)
    again = fork.forward([10], [2]).nodes[0]
    wanted = reference(module, [1, 2, 3, 6, 7, 8, 9, 10], 1)[0]
    assert torch.allclose(again, wanted, rtol=0, atol=ATOL)


def test_pictures_and_prompts_that_are_too_long(tmp_path):
    folder = builders.llama(tmp_path / "a", positions=24)
    model = sn.load_model(folder, "cpu")
    with pytest.raises(ValueError, match="it has 25 tokens, .* reads at most 24; shorten it"):
        model.open([5] * 25)
    full = model.open([5] * 24)
    assert isinstance(full, SmallContext) and full.room == 0
    free = sn.load_model(folder, "cpu", runtime="lean").open([5] * 24)
    assert torch.allclose(full.forward().root, free.forward().root, rtol=0, atol=ATOL)


# ------------------------------------------------------------------------------------ who gets it


def test_who_gets_it(tmp_path, monkeypatch):
    folder = builders.llama(tmp_path / "a")
    model = sn.load_model(folder, "cpu", "float32")
    assert model.runtime == "lean runtime in numpy"
    assert isinstance(model.open("Once"), SmallContext)
    for settings_ in ({"runtime": "lean"}, {"dtype": "bfloat16"}):
        other = sn.load_model(folder, "cpu", **settings_)
        assert other.runtime == "lean runtime" and isinstance(other.open("Once"), LlamaContext)
    assert sn.load_model(folder, "cpu", runtime="transformers").small is None
    if has_halves():  # the same numbers as those of the lean runtime, rounded once
        rounded, twin = (sn.load_model(folder, "cpu", "float16", how) for how in ("auto", "lean"))
        assert rounded.runtime == "lean runtime in numpy, fp16 weights with float32 activations"
        a, b, exact = (one.open("Once upon").forward().root for one in (rounded, twin, model))
        assert torch.allclose(a, b, rtol=0, atol=ATOL) and not torch.allclose(a, exact, atol=ATOL)
    deep = sn.load_model(builders.llama(tmp_path / "b", layers=5), "cpu")
    assert deep.runtime == "lean runtime"
    assert "lean runtime in numpy" in sn.Pair(model, model).describe()


def test_the_structure_of_a_large_model_is_tried_on_its_own_runtime(tmp_path, monkeypatch):
    """The random model of the certificate is small, whatever the model is."""
    wrapped = []
    init = hf.HFModel.__init__

    def noted(self, *args, **kwargs):
        init(self, *args, **kwargs)
        wrapped.append(self.runtime)

    monkeypatch.setattr(hf.HFModel, "__init__", noted)
    monkeypatch.setattr("specnb.models.certificate._memory", lambda: tmp_path / "memory.json")
    sn.load_model(builders.llama(tmp_path / "b", layers=5), "cpu", "float32")
    assert wrapped == ["lean runtime"] * 2
    wrapped.clear()
    sn.load_model(builders.llama(tmp_path / "a", layers=3), "cpu", "float32")
    assert wrapped == ["lean runtime in numpy"] * 2


def test_sizes_are_counted_as_models_count_them(tmp_path, monkeypatch):
    model = sn.load_model(builders.llama(tmp_path / "a"), "cpu")
    config = model.module.config
    n_norms = (2 * config.num_hidden_layers + 1) * config.hidden_size
    for size, found in (
        (model.n_parameters - n_norms, True),
        (model.n_parameters - n_norms - 1, False),
    ):
        monkeypatch.setattr(small, "MOST_PARAMETERS", size)
        assert fits(config, "cpu", torch.float32) is found
    monkeypatch.undo()
    assert not fits(config, "cuda", torch.float32) and not fits(config, "cpu", torch.bfloat16)
    gpt2 = sn.load_model(builders.gpt2(tmp_path / "b"), "cpu")
    assert not fits(gpt2.module.config, "cpu", torch.float32)


@pytest.mark.weights
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_embedded_drafter_drafts_the_same_tokens(temperature):
    """As with the lean runtime in torch, for the same seed."""
    from specnb.scenes import examples

    pair = sn.load_pair(dtype="float32")
    assert pair.draft.runtime == "lean runtime in numpy" and pair.target.runtime == "lean runtime"
    lean = sn.load_model(str(EMBEDDED / "drafter"), "cpu", "float32", "lean").beside(pair.target)
    (item,) = examples("caption", 1, 3)
    sampling = Sampling(temperature)
    a, b = (
        sn.speculative(
            sn.Pair(pair.target, draft), item.prompt, item.image, sampling=sampling, seed=4
        )
        for draft in (pair.draft, lean)
    )
    assert [row.token_id for row in a.tokens] == [row.token_id for row in b.tokens]
    for one, other in zip(a.tokens, b.tokens, strict=True):
        assert one.draft_prob is None or one.draft_prob == pytest.approx(other.draft_prob, abs=ATOL)


FORWARDS = """
import sys, time
import specnb as sn
from specnb.models.llama import LlamaContext
from specnb.models.small import SmallContext

model = sn.load_model(sys.argv[1], "cpu", "float32")
contexts = [kind(model, list(range(5, 40)), None) for kind in (SmallContext, LlamaContext)]
times = [[], []]
for _ in range(200):
    for context, spent in zip(contexts, times):
        context.commit([5])
        began = time.thread_time()
        context.forward()
        spent.append(time.thread_time() - began)
print(min(times[0]) / min(times[1]))
"""


@pytest.mark.weights
def test_it_is_faster():
    """Interleaved minima; they differ by a factor of more than two on machines seen so far.

    In a process of its own, where calls are as quick as in notebooks: the shape checker of the
    tests costs a forward in numpy as much as the forward itself.
    """
    command = [sys.executable, "-c", FORWARDS, str(EMBEDDED / "drafter")]
    ratio = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert ratio < 0.7


# ------------------------------------------------------------------------------- the law and a draw


def slow_categorical(draws: Draws, probs: torch.Tensor) -> int:
    """`Draws.categorical` as it is written in torch."""
    mass = probs.cumsum(dim=-1, dtype=torch.float64)
    total = mass[-1].item()
    point = draws._uniform() * total
    if point < total:
        return int(torch.searchsorted(mass, point, right=True))
    return int(torch.searchsorted(mass, total))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_a_draw_is_the_one_of_torch(dtype):
    """For the same uniform number: cumulated one by one in float64, both of them."""
    generator = torch.Generator().manual_seed(0)
    fast, slow = Draws(3), Draws(3)
    for vocab in (1, 2, 7, 990, 32_000):
        for spread in (0.0, 1.0, 6.0, 80.0):
            for _ in range(20):
                logits = spread * torch.randn(vocab, generator=generator)
                probs = logits.softmax(-1).to(dtype)
                mass = probs.cumsum(dim=-1, dtype=torch.float64).numpy()
                assert np.array_equal(mass, probs.double().numpy().cumsum())
                assert fast.categorical(probs) == slow_categorical(slow, probs)
    with_gradient = torch.tensor([0.5, 0.5], requires_grad=True)
    assert fast.categorical(with_gradient) == slow_categorical(slow, with_gradient)


@given(st.integers(0, 2**31), st.sampled_from([torch.float32, torch.float64]))
def test_the_law_at_temperature_one_is_that_of_the_general_way(seed, dtype):
    logits = 5 * torch.randn(3, 200, generator=torch.Generator().manual_seed(seed)).to(dtype)
    logits[0, 3], logits[1, 1:] = -math.inf, -math.inf
    general = ((logits - logits.amax(-1, keepdim=True)) / 1.0).softmax(-1)
    for rows in (slice(0, 3), slice(2, 3)):
        assert torch.equal(Sampling(1.0).probs(logits[rows]), general[rows])
