"""The lean runtime: transformers' logits for random configurations, caches, what it refuses."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys

import builders
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import specnb as sn
from specnb.models import llama as lean
from specnb.models import load, small
from specnb.models import settings as formats
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


@pytest.mark.slow
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
    config = builders.llama_config()
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
    module, _, llama = modules(builders.llama_config())
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
    _, _, llama = modules(builders.llama_config(), dtype=torch.bfloat16)
    assert llama.head.func.__name__ == "_linear"
    if torch.backends.mkldnn.is_available():
        _, _, llama = modules(builders.llama_config())
        assert llama.head.func.__name__ == "_packed_linear"


def test_bfloat16_is_as_near_as_bfloat16_can_be():
    """Both differ from float32 by rounding; the lean one must not differ by more."""
    config = builders.llama_config()
    exact, _, _ = modules(config)
    module, _, llama = modules(config, dtype=torch.bfloat16)
    ids = torch.arange(30)[None]
    with torch.inference_mode():
        wanted, usual = exact(ids).logits[0], module(ids).logits[0].float()
    found = llama.forward(llama.embed(ids[0].tolist()), range(30), llama.empty_cache(30), 0)
    assert found.dtype == torch.bfloat16
    error, theirs = ((logits.float() - wanted).abs().mean() for logits in (found, usual))
    assert float(error) < 1.5 * float(theirs)


halves = pytest.mark.skipif(not lean.has_halves(), reason="no FBGEMM")


@halves
@settings(max_examples=30)
@given(config=configs(), seed=st.integers(0, 9), n=st.integers(1, 20))
def test_fp16_weights_are_rounded_once_and_nothing_else_is(config, seed, n):
    """Within 1e-5 of the module with the rounded weights, in float32; near the weights as saved."""
    from transformers import LlamaForCausalLM

    exact, _, _ = modules(config, seed)
    torch.manual_seed(seed)
    module = LlamaForCausalLM(config).eval()
    module.load_state_dict(exact.state_dict())
    llama = Llama.of(module, halves=True)
    ids = torch.randint(0, config.vocab_size, (1, n))
    with torch.inference_mode():
        saved, rounded = exact(ids).logits[0], module(ids).logits[0]
    x, cache = llama.embed(ids[0].tolist()), llama.empty_cache(n)
    found = llama.forward(x, range(n), cache, 0)
    assert found.dtype == x.dtype == cache.dtype == torch.float32
    scale = max(1.0, float(rounded.abs().max()))
    assert torch.allclose(found, rounded, rtol=0, atol=1e-5 * scale)
    assert torch.allclose(found, saved, rtol=0, atol=1e-2 * scale)
    assert not torch.equal(rounded, saved)


@halves
def test_fp16_weights_are_no_bfloat16(monkeypatch):
    """Eight times as near; weights with eight bits would not pass for them."""
    exact, _, _ = modules(builders.llama_config())
    ids = torch.arange(30)[None]
    errors = []
    for kind in (torch.float16, torch.bfloat16):
        monkeypatch.setattr(
            lean, "_rounded", lambda w, halves, kind=kind: w.copy_(w.to(kind)) if halves else w
        )
        _, twin, _ = modules(builders.llama_config())
        llama = Llama.of(twin, halves=True)
        x = llama.embed(ids[0].tolist())
        with torch.inference_mode():
            wanted = exact(ids).logits[0]
        found = llama.forward(x, range(30), llama.empty_cache(30), 0)
        errors.append(float((found - wanted).abs().mean() / wanted.abs().max()))
    assert errors[0] < 1e-3 and 4 * errors[0] < errors[1]


@halves
def test_one_row_and_many_are_as_near_as_in_float32(tmp_path):
    """So greedy texts part only at ties of float32, with fp16 weights, too."""
    model = sn.load_model(builders.llama(tmp_path / "a", eos=None), "cpu", "float16")
    nodes = model.open("Once upon a time").forward(range(5, 25), range(-1, 19)).nodes
    context = model.open("Once upon a time")
    rows = [
        context.forward([token], [place - 1]).nodes[0] for place, token in enumerate(range(5, 25))
    ]
    scale = float(nodes.abs().max())
    assert torch.allclose(torch.stack(rows), nodes, rtol=0, atol=1e-5 * scale)
    plain = sn.autoregressive(model, "Once", max_new_tokens=60)
    helped = sn.speculative(
        sn.Pair(model, None), "Once", drafter=sn.PromptLookup(), max_new_tokens=60
    )
    assert sn.exact.same_greedy(model, "Once", None, plain, helped) == "equal"


@halves
@pytest.mark.parametrize("saved", [torch.float32, torch.bfloat16, torch.float16])
def test_every_saved_format_loads_with_fp16_weights(tmp_path, saved):
    from transformers import LlamaForCausalLM

    folder = builders.llama(tmp_path / "a")
    LlamaForCausalLM.from_pretrained(folder, dtype=saved).save_pretrained(folder)
    found, usual = (sn.load_model(folder, "cpu", kind, "lean") for kind in ("float16", "float32"))
    assert (found.dtype, found.activations) == (torch.float16, torch.float32)
    assert found.module.dtype == torch.float32 == found.open("Once").cache.dtype
    assert found.runtime == "lean runtime, fp16 weights with float32 activations"
    a, b = (model.open("Once upon").forward().root for model in (found, usual))
    assert torch.allclose(a, b, rtol=0, atol=0.01 * float(b.abs().max())) and not torch.equal(a, b)


@halves
def test_the_picture_is_seen_in_float32(tmp_path):
    folder = builders.llava15(tmp_path / "a")
    found, usual = (sn.load_model(folder, "cpu", kind) for kind in ("float16", "float32"))
    picture = Image.linear_gradient("L").resize((96, 72)).convert("RGB")
    _, extras = found.encode("What is this?", picture)
    assert torch.equal(found.image_features(extras), usual.image_features(extras))


@halves
@pytest.mark.parametrize("where", ["o_proj", "q_proj", "up_proj", "embed_tokens", "norm"])
def test_weights_beyond_fp16_are_refused(tmp_path, where):
    """By one sentence, also where only the folded gain takes them there; none is cut to 65504."""
    from transformers import LlamaForCausalLM

    folder = builders.llama(tmp_path / "a")
    module = LlamaForCausalLM.from_pretrained(folder)
    block = module.model.layers[1]
    with torch.no_grad():
        if where == "o_proj":
            block.self_attn.o_proj.weight[3, 2] = -7e4
        elif where == "embed_tokens":
            module.model.embed_tokens.weight[3, 2] = 7e4
        elif where == "norm":  # a gain that no number of the file gives away
            block.post_attention_layernorm.weight[7] = 4e4
        else:
            part = block.self_attn if where == "q_proj" else block.mlp
            getattr(part, where).weight[3, 2] = 6e4  # times the root of the width, 32
    module.save_pretrained(folder)
    with pytest.raises(ValueError) as caught:
        sn.load_model(folder, "cpu", "float16", certify=False)
    for word in ("do not fit in fp16", "65504", "dtype='float32' or 'bfloat16'"):
        assert word in str(caught.value)
    assert str(caught.value).count(". ") == 0
    sn.load_model(folder, "cpu", "float32", certify=False)


@halves
def test_what_nobody_asked_for_is_not_refused(tmp_path, monkeypatch):
    """Where set-up has found fp16 fastest, a model that cannot have it is loaded in float32."""
    from transformers import LlamaForCausalLM

    folder = builders.llama(tmp_path / "a")
    monkeypatch.setattr(formats, "_dtype", {"cpu": "float16", "gpu": "auto"})
    assert sn.load_model(folder, "cpu").dtype == torch.float16
    module = LlamaForCausalLM.from_pretrained(folder)
    module.model.layers[0].mlp.down_proj.weight.data[0, 0] = 1e5
    module.save_pretrained(tmp_path / "b")
    builders.byte_tokenizer(300).save_pretrained(tmp_path / "b")
    wide = sn.load_model(str(tmp_path / "b"), "cpu")
    assert wide.dtype == wide.activations == torch.float32 and wide.certificate.count("float32")
    assert "float32 for fp16 (weights up to 1e+05 do not fit in fp16)" in sn.Pair(wide).describe()
    other = sn.load_model(builders.gpt2(tmp_path / "c"), "cpu")
    assert (
        other.dtype == torch.float32 and other.runtime == "transformers runtime (model type gpt2)"
    )
    monkeypatch.setattr(load, "no_halves", lambda module: "no FBGEMM here for fp16 weights")
    words = sn.Pair(sn.load_model(folder, "cpu")).describe()
    assert "numpy, float32 for fp16 (no FBGEMM here for fp16 weights)" in words


def test_where_there_is_no_fbgemm_fp16_is_what_transformers_makes_of_it(tmp_path, monkeypatch):
    """It was asked for, so it is done, and `describe` says how."""
    folder = builders.llama(tmp_path / "a")
    monkeypatch.setattr(lean, "has_halves", lambda: False)
    model = sn.load_model(folder, "cpu", "float16")
    assert model.dtype == model.activations == model.module.dtype == torch.float16
    words = sn.Pair(model).describe()
    assert "transformers runtime (no FBGEMM here for fp16 weights), checked in float16 (" in words
    asked = sn.load_model(folder, "cpu", "float16", runtime="transformers")
    assert asked.runtime == "transformers runtime (asked for)" and asked.dtype == torch.float16
    monkeypatch.setattr(lean, "has_halves", lambda: True)
    monkeypatch.setattr(lean, "MOST_PACKED", 100)
    large = sn.load_model(folder, "cpu", "float16")
    assert "(more than 0 M parameters)" in large.runtime and large.dtype == torch.float16


def test_has_halves_is_tried_not_believed(monkeypatch):
    """An operator that is there may refuse the processor, or be wrong on it."""
    tried = lean.has_halves.__wrapped__

    def refuses(*args):
        raise RuntimeError("Your CPU doesn't support FBGEMM.")

    for wrong in (refuses, lambda x, packed, bias: x[:, :4] + 1e-3):
        monkeypatch.setattr(torch, "fbgemm_pack_gemm_matrix_fp16", lambda weight: weight, False)
        monkeypatch.setattr(torch, "fbgemm_linear_fp16_weight_fp32_activation", wrong, False)
        assert tried() is False
    monkeypatch.delattr(torch, "fbgemm_pack_gemm_matrix_fp16")
    assert tried() is False


@halves
@pytest.mark.parametrize("n", [1, 2, 6, 9])
def test_both_ways_of_multiplying_halves_are_the_product(n):
    """With one thread and with two; also under inference mode, and from rows that are apart."""
    generator = torch.Generator().manual_seed(n)
    weight = torch.randn(300, 40, generator=generator).half().float()
    x = torch.randn(n, 80, generator=generator)[:, ::2]
    wanted = x.double() @ weight.double().T
    threads = torch.get_num_threads()
    for kind in (lean.HalfLinear, lean.SplitHalf):
        with torch.inference_mode():
            multiply = kind(weight)
        for n_threads in (1, 2):
            torch.set_num_threads(n_threads)
            found = multiply(x)
            assert found.dtype == torch.float32 and found.shape == (n, 300)
            assert torch.allclose(found.double(), wanted, rtol=0, atol=1e-4)
    torch.set_num_threads(threads)


@halves
def test_large_matrices_are_split(monkeypatch):
    _, module, _ = modules(builders.llama_config())
    monkeypatch.setattr(lean, "LEAST_SPLIT", 50 * 32)
    llama = Llama.of(module, halves=True)
    assert isinstance(llama.head, lean.SplitHalf)
    assert isinstance(llama.layers[0].out, lean.HalfLinear)
    found = llama.forward(llama.embed([3, 4, 5]), range(3), llama.empty_cache(3), 0)
    with torch.inference_mode():
        wanted = module(torch.tensor([[3, 4, 5]])).logits[0]
    assert torch.allclose(found, wanted, rtol=0, atol=1e-5)


@halves
def test_packed_halves_are_shared_not_copied(tmp_path):
    model = sn.load_model(builders.llama(tmp_path / "a"), "cpu", "float16")
    head = model.llama.head
    assert copy.deepcopy(head) is head
    with pytest.raises(TypeError, match="load the model again"):
        pickle.dumps(head)
    context = model.open("Once upon a time")
    fork = copy.deepcopy(context)
    fork.commit([7])
    fork.forward([8], [-1])
    assert torch.equal(context.forward().root, model.open("Once upon a time").forward().root)


@halves
def test_nothing_is_said_about_deprecation():
    """torch says it once per process, so it is a process of its own that must be silent."""
    code = (
        "import torch; from specnb.models import llama;"
        "print(llama._half_kernel(torch.eye(4, 8))(torch.ones(2, 8)).sum().item())"
    )
    done = subprocess.run(
        [sys.executable, "-W", "always", "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout == "8.0\n" and "deprecated" not in done.stderr


def test_a_wrong_gain_is_caught(monkeypatch):
    """The comparison above sees a norm that was not folded in."""
    monkeypatch.setattr(lean, "_scaled", lambda weight, gain: weight)
    module, _, llama = modules(builders.llama_config())
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

    module = LlamaForCausalLM(builders.llama_config(**change))
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


@pytest.mark.parametrize("planted", [False, True])
def test_a_long_prompt_is_read_in_pieces(tmp_path, monkeypatch, capsys, planted):
    """Logits and greedy text are those of one piece; a piece at the wrong place is noticed."""
    folder = builders.llama(tmp_path / "model", seed=3)
    model = sn.load_model(folder, dtype="float32", runtime="lean", certify=False)
    ids = [(7 * i) % 60 + 2 for i in range(50)]
    whole = model.open(ids).forward([5], [-1])
    assert "reading" not in capsys.readouterr().err
    monkeypatch.setattr(lean, "PIECE", 16)
    if planted:
        feed = lean.LlamaContext._feed

        def shifted(self, x, positions, mask, n_logits):
            late = [place + (place >= 32) for place in positions]
            return feed(self, x, late, mask, n_logits)

        monkeypatch.setattr(lean.LlamaContext, "_feed", shifted)
    context = model.open(ids)
    shape = context.cache.shape  # before the first piece is read, its size is said
    said = f"reading the prompt into a cache of {4e-6 * shape.numel():.1f} MB"
    assert said in capsys.readouterr().err
    pieces = context.forward([5], [-1])
    near = torch.allclose(whole.root, pieces.root, atol=1e-4)
    assert near is not planted
