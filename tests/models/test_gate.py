"""What is refused by its config alone, and what comes of weights that do not fit it."""

from __future__ import annotations

import json
from pathlib import Path

import builders
import pytest
import torch
from safetensors.torch import load_file, save_file

import specnb as sn
from specnb.models import gate, load, settings

PROMPT = "Once upon a time"


def config(kind: str, **settings):
    from transformers import CONFIG_MAPPING

    return CONFIG_MAPPING[kind](**settings)


REFUSED = [
    ("t5", {}, "encoder-decoder"),
    ("bart", {}, "encoder-decoder"),
    ("bert", {}, "reads in both directions"),
    ("gemma3_text", {"use_bidirectional_attention": True}, "reads in both directions"),
    ("mamba", {}, "cannot be taken back"),
    ("rwkv", {}, "cannot be taken back"),
    ("jamba", {}, "cannot be taken back"),
    ("falcon_h1", {}, "cannot be taken back"),
    ("lfm2", {"num_hidden_layers": 2, "layer_types": ["conv", "full_attention"]}, "kind conv"),
    ("qwen3_next", {}, "layers of kind linear_attention"),
    ("gpt2", {"add_cross_attention": True}, "cross-attention"),
    ("xlnet", {}, "takes no cache"),
    ("clip", {}, "no language model of type clip"),
]


@pytest.mark.parametrize(("kind", "settings", "words"), REFUSED)
def test_what_is_refused_in_one_sentence(kind, settings, words):
    with pytest.raises(ValueError) as caught:
        gate.judge(config(kind, **settings), "somewhere")
    text = str(caught.value)
    assert words in text and text.startswith("model 'somewhere': ") and text.count("; ") == 1
    assert "\n" not in text and len(text) < 250


def test_a_bert_that_decodes_is_let_through():
    assert gate.judge(config("bert", is_decoder=True), "x").only_chains == ""


def test_it_is_refused_before_weights_are_read(tmp_path, monkeypatch):
    """The folder holds a config that is refused and weights that would fail."""
    folder = Path(builders.llama(tmp_path / "m"))
    (folder / "config.json").write_text(config("mamba", vocab_size=300).to_json_string())
    monkeypatch.setattr(load, "_weights", None)
    with pytest.raises(ValueError, match="cannot be taken back"):
        sn.load_model(str(folder), "cpu")


CHAINS = [("bloom", {}), ("mpt", {}), ("falcon", {"alibi": True}), ("gpt_neo", {})]


@pytest.mark.parametrize(("kind", "settings"), CHAINS)
def test_models_for_chains_only(kind, settings):
    assert gate.judge(config(kind, **settings), "x").only_chains
    assert not gate.judge(config("falcon", alibi=False), "x").only_chains


def test_windows_chunks_and_limits():
    plan = gate.judge(config("mistral", sliding_window=64), "x")
    assert plan.kinds == {gate.SLIDING} and plan.window == 64
    assert gate.judge(config("mistral", sliding_window=None), "x").kinds == {gate.FULL}
    plan = gate.judge(config("llama4_text", attention_chunk_size=32), "x")
    assert plan.kinds == {gate.FULL, gate.CHUNKED} and plan.chunk == 32
    assert gate.judge(config("qwen2", use_sliding_window=False), "x").kinds == {gate.FULL}
    assert gate.judge(config("bloom"), "x").max_positions == gate.NO_LIMIT
    assert gate.judge(config("mpt", max_seq_len=99), "x").max_positions == 99
    assert gate.judge(config("gpt2", n_positions=77), "x").max_positions == 77


def test_a_rope_that_changes_with_the_length():
    factors = [1.0] * 48
    rope = {"rope_type": "longrope", "short_factor": factors, "long_factor": factors}
    settings = {"max_position_embeddings": 131072, "original_max_position_embeddings": 4096}
    plan = gate.judge(config("phi3", rope_parameters=rope, **settings), "x")
    assert plan.switch == 4096
    assert plan.positions_for(100, "x") == plan.positions_for(4096, "x") == 4096
    assert plan.positions_for(4098, "x") == 131072
    with pytest.raises(ValueError, match="a token shorter or longer"):
        plan.positions_for(4097, "x")


# ----------------------------------------------------------------------------------- loaded tensors


def changed(root: Path, name: str) -> tuple[str, str]:
    """A folder whose tensors do not fit its config, and a word that the refusal must hold."""
    folder = Path(builders.llama(root / name))
    path = folder / "model.safetensors"
    tensors = load_file(path)
    settings = json.loads((folder / "config.json").read_text())
    layer = "model.layers.1.mlp.up_proj.weight"
    word = layer
    if name == "missing":
        del tensors[layer]
    elif name == "no head":
        del tensors["lm_head.weight"]
        word = "lm_head.weight"
    elif name == "prefix":
        tensors = {f"base_model.{key}": value for key, value in tensors.items()}
        word = "files"
    elif name == "shape":
        tensors[layer] = torch.zeros(7, 32)
    elif name == "more layers said":
        settings["num_hidden_layers"], word = 3, "model.layers.2"
    elif name == "fewer layers said":
        settings["num_hidden_layers"] = 1
        word = "model.layers.1"
    (folder / "config.json").write_text(json.dumps(settings))
    save_file(tensors, path, {"format": "pt"})
    return str(folder), word


KINDS = ["missing", "no head", "prefix", "shape", "more layers said", "fewer layers said"]


@pytest.mark.parametrize("name", KINDS)
def test_tensors_that_do_not_fit_the_config_are_refused(tmp_path, name):
    folder, word = changed(tmp_path, name)
    with pytest.raises(ValueError) as caught:
        sn.load_model(folder, "cpu")
    text = str(caught.value)
    assert word in text and "must be of one model" in text and "\n" not in text
    assert text.count("model.layers") <= 3


def test_buffers_of_older_files_do_no_harm(tmp_path):
    folder = Path(builders.llama(tmp_path / "m"))
    wanted = sn.autoregressive(sn.load_model(str(folder), "cpu"), PROMPT, max_new_tokens=8)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    found = sn.autoregressive(sn.load_model(str(folder), "cpu"), PROMPT, max_new_tokens=8)
    assert found.token_ids == wanted.token_ids


def test_code_of_a_models_own_is_never_run(tmp_path):
    folder = Path(builders.llama(tmp_path / "m"))
    settings = json.loads((folder / "config.json").read_text())
    settings |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config"}}
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "mine.py").write_text("raise SystemExit('it ran')")
    with pytest.raises(ValueError, match="brings code of its own"):
        sn.load_model(str(folder), "cpu")


# ------------------------------------------------------------------------------------------- logits


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers_are_an_error(tmp_path, value, temperature):
    model = sn.load_model(builders.llama(tmp_path / "m"), "cpu", "float32", "transformers")
    with torch.no_grad():
        model.module.lm_head.weight[5] = value
    with pytest.raises(ValueError) as caught:
        sn.autoregressive(model, PROMPT, sampling=sn.Sampling(temperature), max_new_tokens=3)
    text = str(caught.value)
    assert model.path in text and "float32" in text and "NaN or infinite" in text


# ---------------------------------------------------------------------------------------------- ids


def test_a_target_does_not_replace_ids_that_it_lacks(tmp_path):
    folder = builders.llama(tmp_path / "m", 300, tokenizer_size=310)
    model = sn.load_model(folder, "cpu")
    with pytest.raises(ValueError, match=r"prompt: id 305 \('entry305'\) is beyond the 300"):
        model.open([1, 5, 305, 7])
    assert model.open([1, 5, 299, 7]).committed == [1, 5, 299, 7]
    larger = sn.load_model(builders.llama(tmp_path / "l", 310), "cpu")
    beside = model.beside(larger)
    assert beside.open([1, 5, 305, 7]).committed == [1, 5, 305, 7]  # only acceptance can suffer


def test_what_generate_follows_and_we_do_not_is_named(tmp_path):
    folder = Path(builders.llama(tmp_path / "m"))
    assert "not followed" not in sn.load_pair(str(folder), str(folder)).describe()
    path = folder / "generation_config.json"
    settings = json.loads(path.read_text()) | {"repetition_penalty": 3.0, "min_p": 0.1}
    path.write_text(json.dumps(settings))
    text = sn.load_pair(str(folder)).describe()
    assert "repetition_penalty=3.0, min_p=0.1" in text


# ------------------------------------------------------------------------------------------ devices


def test_devices_and_what_they_need(tmp_path, monkeypatch):
    folder = builders.llama(tmp_path / "m")
    for given, words in (
        ({"device": "mps"}, "float64"),
        ({"device": "cuda:x"}, "choose one of"),
        ({"device": "cpu", "quantization": "4bit"}, "needs a CUDA device"),
        ({"quantization": "3bit"}, "'4bit'"),
        ({"device": "cpu", "device_map": "auto"}, "leave it out"),
    ):
        with pytest.raises(ValueError, match=words):
            sn.load_model(folder, **given)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="no CUDA device"):
        sn.load_model(folder, device="cuda:1")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"accelerate is missing; pip install -e '.\[gpu\]'"):
        sn.load_model(folder, device_map="auto")


def test_the_format_that_setup_was_asked_for_holds_on_a_gpu(monkeypatch):
    monkeypatch.setattr(settings, "_dtype", dict(settings._dtype))
    assert settings.dtype("cuda") == "auto" and settings.dtype("cpu") == "float32"
    settings.set_dtype("float16", "cuda")
    assert settings.dtype("cuda:1") == "float16" and settings.dtype("cpu") == "float32"
