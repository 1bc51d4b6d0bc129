"""The lean runtime: transformers' logits for random configurations, caches, what it refuses."""

from __future__ import annotations

import builders
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import specnb as sn
from specnb.models import llama as lean
from specnb.models import small
from specnb.models.llama import Llama, why_not

ROPES = {
    "default": {},
    "linear": {"factor": 2.0},
    "llama3": {
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 16},
}


@st.composite
def configs(draw):
    from transformers import LlamaConfig

    n_kv = draw(st.sampled_from([1, 2, 3]))
    heads = n_kv * draw(st.sampled_from([1, 2, 4]))
    dim = draw(st.sampled_from([4, 8, 16]))
    rope = draw(st.sampled_from(list(ROPES)))
    theta = draw(st.sampled_from([100.0, 10000.0, 500000.0]))
    return LlamaConfig(
        vocab_size=draw(st.integers(5, 70)),
        hidden_size=heads * draw(st.sampled_from([2, 6])),  # need not be heads * dim
        intermediate_size=draw(st.sampled_from([8, 20])),
        num_hidden_layers=draw(st.integers(1, 3)),
        num_attention_heads=heads,
        num_key_value_heads=n_kv,
        head_dim=dim,
        max_position_embeddings=64,
        rms_norm_eps=draw(st.sampled_from([1e-6, 1e-3])),
        rope_parameters={"rope_type": rope, "rope_theta": theta, **ROPES[rope]},
        tie_word_embeddings=draw(st.booleans()),
        initializer_range=0.2,
    )


def modules(config, seed: int = 0, dtype=torch.float32):
    """A module with gains that are not 1, and its lean twin (which changes its own copy)."""
    from transformers import LlamaForCausalLM

    made = []
    for _ in range(2):
        torch.manual_seed(seed)
        module = LlamaForCausalLM(config).eval()
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                if "norm" in name:
                    parameter.uniform_(0.5, 1.5)
        made.append(module.to(dtype))
    return made[0], made[1], Llama.of(made[1])


@settings(max_examples=60)
@given(config=configs(), seed=st.integers(0, 9), n=st.integers(1, 20))
def test_logits_are_those_of_transformers(config, seed, n):
    """A prefill, a causal piece behind it, one token, and four nodes of a tree."""
    module, changed, llama = modules(config, seed)
    ids = torch.randint(0, config.vocab_size, (1, n + 8))
    with torch.inference_mode():
        wanted = module(ids).logits[0]
        assert torch.allclose(changed(ids).logits[0], wanted, atol=1e-5)  # it keeps working
    cache = llama.empty_cache(n + 8)
    pieces, start = [], 0
    for size in (n, 3, 1):
        piece = llama.embed(ids[0, start : start + size].tolist())
        pieces.append(llama.forward(piece, range(start, start + size), cache, start))
        start += size
    assert torch.allclose(torch.cat(pieces), wanted[: n + 4], rtol=0, atol=1e-5)

    visible = torch.ones(4, n + 8, dtype=torch.bool)  # two children, a child of the second, ...
    visible[:, n + 4 :] = torch.tensor([[1, 0, 0, 0], [0, 1, 0, 0], [0, 1, 1, 0], [0, 1, 1, 1]])
    positions = [n + 4, n + 4, n + 5, n + 6]
    mask = torch.zeros(4, n + 8).masked_fill_(~visible, -torch.inf)
    tree = llama.forward(llama.embed(ids[0, n + 4 :].tolist()), positions, cache, n + 4, mask)
    path = torch.cat([ids[:, : n + 4], ids[:, n + 5 :]], dim=1)  # without the first child
    with torch.inference_mode():
        assert torch.allclose(tree[0], module(ids[:, : n + 5]).logits[0, -1], rtol=0, atol=1e-5)
        assert torch.allclose(tree[1:], module(path).logits[0, -3:], rtol=0, atol=1e-5)


def test_only_the_last_logits():
    config = _config()
    _, _, llama = modules(config)
    x = llama.embed([1, 2, 3, 4])
    every = llama.forward(x, range(4), llama.empty_cache(4), 0)
    last = llama.forward(x, range(4), llama.empty_cache(4), 0, None, 2)
    assert torch.allclose(last, every[2:], atol=1e-6)
    assert len(llama.forward(x, range(4), llama.empty_cache(4), 0, None, 0)) == 0


@pytest.mark.parametrize("layout", ["packed", "transposed", "as stored"])
def test_every_layout_of_the_weights(layout, monkeypatch):
    monkeypatch.setattr(lean, "LEAST_PACKED", {"packed": 0}.get(layout, 2**30))
    monkeypatch.setattr(lean, "MOST_PACKED", {"as stored": 0}.get(layout, 2**30))
    module, _, llama = modules(_config())
    kernel = {"packed": "_packed_linear", "transposed": "_matmul", "as stored": "_linear"}[layout]
    if kernel != "_packed_linear" or lean.packs(torch.float32):
        assert llama.head.func.__name__ == kernel
    for n in (1, 5, 40):
        ids = torch.arange(n)[None] % 50
        with torch.inference_mode():
            wanted = module(ids).logits[0]
        found = llama.forward(llama.embed(ids[0].tolist()), range(n), llama.empty_cache(n), 0)
        assert torch.allclose(found, wanted, rtol=0, atol=1e-5)


def test_a_processor_without_bfloat16(monkeypatch):
    """Its library refuses to pack such weights; they must stay as they are."""
    monkeypatch.setattr(lean, "LEAST_PACKED", 0)
    monkeypatch.setattr(lean, "packs", lambda dtype: dtype == torch.float32)
    _, _, llama = modules(_config(), dtype=torch.bfloat16)
    assert llama.head.func.__name__ == "_linear"
    if torch.backends.mkldnn.is_available():
        _, _, llama = modules(_config())
        assert llama.head.func.__name__ == "_packed_linear"


def test_bfloat16_is_as_near_as_bfloat16_can_be():
    """Both differ from float32 by rounding; the lean one must not differ by more."""
    config = _config()
    exact, _, _ = modules(config)
    module, _, llama = modules(config, dtype=torch.bfloat16)
    ids = torch.arange(30)[None]
    with torch.inference_mode():
        wanted, usual = exact(ids).logits[0], module(ids).logits[0].float()
    found = llama.forward(llama.embed(ids[0].tolist()), range(30), llama.empty_cache(30), 0)
    assert found.dtype == torch.bfloat16
    error, theirs = ((logits.float() - wanted).abs().mean() for logits in (found, usual))
    assert float(error) < 1.5 * float(theirs)


def test_a_wrong_gain_is_caught(monkeypatch):
    """The comparison above sees a norm that was not folded in."""
    monkeypatch.setattr(lean, "_scaled", lambda weight, gain: weight)
    module, _, llama = modules(_config())
    ids = torch.arange(9)[None]
    with torch.inference_mode():
        wanted = module(ids).logits[0]
    found = llama.forward(llama.embed(ids[0].tolist()), range(9), llama.empty_cache(9), 0)
    assert not torch.allclose(found, wanted, atol=1e-3)


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"attention_bias": True}, "biases"),
        ({"mlp_bias": True}, "biases"),
        ({"hidden_act": "gelu"}, "activation gelu"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, "rope"),
        ({}, "dtype float16"),
    ],
)
def test_what_it_does_not_know_is_left_to_transformers(change, reason):
    from transformers import LlamaForCausalLM

    module = LlamaForCausalLM(_config(**change))
    if not change:
        module = module.half()
    assert reason in why_not(module)


def test_what_it_knows(tmp_path):
    model = sn.load_model(builders.llama(tmp_path / "a"), "cpu", runtime="lean")
    assert model.llama is not None and model.small is None and model.runtime == "lean runtime"
    other = sn.load_model(builders.gpt2(tmp_path / "b"), "cpu")
    assert other.llama is None and "gpt2" in other.runtime


@pytest.mark.parametrize("runtime", ["auto", "lean"])
def test_a_fork_has_a_cache_of_its_own(tmp_path, runtime):
    model = sn.load_model(builders.llama(tmp_path / "a"), "cpu", runtime=runtime)
    context = model.open("Once upon a time")
    context.forward([5, 6], [-1, 0])
    fork = context.copy()
    fork.commit([7])
    fork.forward([8, 9], [-1, -1])
    context.commit([5])
    fresh = model.open("Once upon a time")
    fresh.commit([5])
    assert torch.allclose(context.forward().root, fresh.forward().root, atol=1e-5)


@pytest.mark.parametrize("runtime", ["auto", "lean"])
def test_the_cache_grows(tmp_path, monkeypatch, runtime):
    model = sn.load_model(builders.llama(tmp_path / "a", eos=None), "cpu", runtime=runtime)
    roomy = sn.autoregressive(model, "Once", max_new_tokens=40)
    monkeypatch.setattr(lean, "GROWTH", 3)
    monkeypatch.setattr(small, "GROWTH", 3)
    tight = sn.autoregressive(model, "Once", max_new_tokens=40)
    assert tight.token_ids == roomy.token_ids


def _config(**change):
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
        **change,
    )
