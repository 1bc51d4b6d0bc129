"""The check that every model goes through: what it lets pass, and what it must catch by itself."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import builders
import pytest
import torch

import specnb as sn
from specnb.bench.families import FAMILIES
from specnb.models import certificate, folders, gate, hf, llama, small
from specnb.models import load as loading
from specnb.models.hf import HFContext
from specnb.models.miniature import miniatures, small_ids

FOLDERS = ("llama", "mistral_sliding", "gemma2", "llama4_text", "llava_llama", "gemma3")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("families")
    return {name: str(FAMILIES[name].build(root / name, seed=0)) for name in FOLDERS}


@pytest.fixture(autouse=True)
def nothing_remembered(tmp_path, monkeypatch):
    """Each test has a memory of its own."""
    monkeypatch.setattr(certificate, "_memory", lambda: tmp_path / "certificates.json")


def load(folder: str, **settings):
    return sn.load_model(folder, "cpu", "float32", **settings)


def no_weights(monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("weights were read")

    monkeypatch.setattr(loading, "_weights", fail)


# ------------------------------------------------------------------------------ what is remembered


def test_a_model_is_checked_once_and_again_when_its_files_change(tmp_path, monkeypatch):
    folder = Path(builders.llama(tmp_path / "m"))
    calls = []
    rounds = certificate.rounds
    monkeypatch.setattr(
        certificate, "rounds", lambda *a, **k: calls.append(k["small"]) or rounds(*a, **k)
    )
    model = load(str(folder))
    assert calls == [False, True]  # the structure, then the weights
    assert model.certificate.startswith("checked in float32 (largest difference ")
    assert load(str(folder)).certificate == model.certificate and len(calls) == 2
    settings = json.loads((folder / "generation_config.json").read_text())
    config = json.loads((folder / "config.json").read_text()) | {"rope_theta": 5000.0}
    (folder / "config.json").write_text(json.dumps(config))
    load(str(folder))
    assert len(calls) == 4 and settings
    load(str(folder), runtime="transformers")
    assert len(calls) == 6


def test_what_is_remembered_is_a_convenience(tmp_path, monkeypatch):
    """A broken memory, or a home that cannot be written to, costs a second and nothing else."""
    memory = tmp_path / "file" / "certificates.json"
    memory.parent.write_text("in the way")
    monkeypatch.setattr(certificate, "_memory", lambda: memory)
    assert "checked in" in load(builders.llama(tmp_path / "m")).certificate


def test_left_out_on_request_and_said_in_every_record(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("it was checked")

    folder = builders.llama(tmp_path / "m")
    pair = sn.load_pair(folder, folder, device="cpu")
    run = sn.speculative(pair, "hello", max_new_tokens=3)
    assert "checked in float32" in run.settings["certificates"]["target"]
    monkeypatch.setattr(certificate, "rounds", fail)
    pair = sn.load_pair(folder, folder, device="cpu", dtype="float16", certify=False)
    assert pair.describe().count("not checked") == 2
    run = sn.speculative(pair, "hello", max_new_tokens=3)
    assert run.settings["certificates"] == {"target": "not checked", "draft": "not checked"}


def test_the_embedded_pair_is_not_checked_at_every_start(monkeypatch):
    monkeypatch.setattr(certificate, "rounds", None)
    assert sn.load_pair().describe().count(", embedded") == 2


def test_at_most_twelve_forwards_of_the_weights(made, monkeypatch):
    for name in ("mistral_sliding", "gemma3"):
        calls = []
        check = certificate.Check.weights

        def counted(self, model, calls=calls, check=check):
            model.module.register_forward_pre_hook(lambda *a: calls.append(1))
            return check(self, model)

        with monkeypatch.context() as patched:  # an undo would give the user's cache back, too
            patched.setattr(certificate.Check, "weights", counted)
            load(made[name])
        assert 8 <= len(calls) <= 12


# ------------------------------------------------------------------------------------- planted bugs


def planted(name: str, monkeypatch) -> None:
    """One mistake in the code that runs models."""
    masks, call, keep = HFContext._masks, HFContext._call, HFContext._keep
    encode, run = hf.HFModel.encode, HFContext._run

    def off_by_one(self, visible, positions):
        plan = self.model.plan
        wider = gate.Plan(**{**vars(plan), "window": plan.window + 1})
        self.model.plan = wider
        try:
            return masks(self, visible, positions)
        finally:
            self.model.plan = plan

    def one_mask(self, visible, positions):
        found = masks(self, visible, positions)
        full = found[gate.FULL]
        return {kind: full for kind in found}

    def by_slot(self, tokens, positions, visible):
        first = len(self.places)
        return run(self, tokens, list(range(first, first + len(tokens))), visible)

    def state_kept(self, slots, n_before):
        first = self.cache.layers[0]
        keys, values = first.keys, first.values
        keep(self, slots, n_before)
        n = len(self.places)  # as many slots as are right, with what was rejected in them
        first.keys, first.values = keys[:, :, -n:], values[:, :, -n:]

    def crop(self, slots, n_before):
        keep(self, slots, n_before)
        self.places = self.places[:-1]
        for layer in self.cache.layers:
            layer.keys, layer.values = layer.keys[:, :, :-1], layer.values[:, :, :-1]

    def no_types(self, tokens, positions, mask, extras, kept):
        extras = {key: value for key, value in extras.items() if not key.endswith("type_ids")}
        return call(self, tokens, positions, mask, extras, kept)

    def image_lost(self, prompt, image=None):
        ids, extras = encode(self, prompt, image)
        if extras is None:
            return ids, extras
        ids = list(ids)
        ids.remove(self.image_token_id)
        return ids, extras

    def feed_unturned(self, positions):
        return llama.Llama.rotations_of_old(self, [0] * len(positions))

    where = {
        "window off by one": ("_masks", off_by_one),
        "one mask for all layers": ("_masks", one_mask),
        "positions by slot": ("_run", by_slot),
        "a state kept": ("_keep", state_kept),
        "a crop one too far": ("_keep", crop),
        "a dropped token type": ("_call", no_types),
    }
    if name in where:
        monkeypatch.setattr(HFContext, *where[name])
    elif name == "an image token lost":
        monkeypatch.setattr(hf.HFModel, "encode", image_lost)
    elif name == "no rotation in numpy":
        turns = small.SmallLlama._turns
        monkeypatch.setattr(small.SmallLlama, "_turns", lambda self, at: turns(self, [0] * len(at)))
    else:
        assert name == "no rotation"
        monkeypatch.setattr(llama.Llama, "rotations_of_old", llama.Llama.rotations, raising=False)
        monkeypatch.setattr(llama.Llama, "rotations", feed_unturned)


PLANTED = [
    ("mistral_sliding", "window off by one"),
    ("gemma2", "window off by one"),
    ("gemma2", "one mask for all layers"),
    ("llama4_text", "one mask for all layers"),
    ("mistral_sliding", "positions by slot"),
    ("gemma3", "positions by slot"),
    ("mistral_sliding", "a state kept"),
    ("gemma2", "a crop one too far"),
    ("gemma3", "a dropped token type"),
    ("llava_llama", "an image token lost"),
    ("gemma3", "an image token lost"),
    ("llama", "no rotation"),
    ("llama", "no rotation in numpy"),
]


@pytest.mark.parametrize(("family", "bug"), PLANTED)
def test_planted_bugs_are_caught_before_weights_are_read(made, family, bug, monkeypatch):
    planted(bug, monkeypatch)
    no_weights(monkeypatch)
    with pytest.raises(ValueError) as caught:
        load(made[family])
    assert "is not decoded exactly here" in str(caught.value), str(caught.value)


@pytest.mark.parametrize("family", FOLDERS)
def test_without_a_bug_the_same_models_pass(made, family):
    assert "checked in float32" in load(made[family]).certificate


def test_weights_that_are_run_otherwise_than_they_are_are_caught(made, monkeypatch):
    """The second stage alone: the structure is right, one matrix of the lean runtime is not."""
    monkeypatch.setattr(certificate.Check, "structure", lambda self: None)
    for runtime, kind in (("auto", small.SmallLlama), ("lean", llama.Llama)):

        class Other(kind):
            def __init__(self, *weights):
                super().__init__(*weights)
                self.head = lambda x, head=self.head: 1.01 * head(x)

        monkeypatch.setattr(hf, kind.__name__, Other)
        with pytest.raises(ValueError, match="its weights in float32 are not decoded exactly"):
            sn.load_model(made["llama"], "cpu", "float32", runtime)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_coarser_numbers_are_checked_by_what_they_may_round(made, dtype, monkeypatch):
    for family in ("llama", "gemma2", "llava_llama"):
        assert f"checked in {dtype}" in sn.load_model(made[family], "cpu", dtype).certificate
    monkeypatch.setattr(certificate.Check, "structure", lambda self: None)
    planted("one mask for all layers", monkeypatch)
    monkeypatch.setattr(certificate, "_remembered", dict)
    with pytest.raises(ValueError, match=f"weights in {dtype}"):
        sn.load_model(made["gemma2"], "cpu", dtype)


@pytest.mark.skipif(not llama.has_halves(), reason="no FBGEMM")
def test_fp16_weights_are_held_against_the_same_weights_in_float32(made, monkeypatch):
    """To a ten-thousandth of the largest logit; the weights before they were rounded are others."""
    found = sn.load_model(made["llama"], "cpu", "float16")
    assert found.certificate.startswith("checked in float16 beside float32 (largest difference ")
    assert float(found.certificate.split()[7]) < certificate.STRICT
    monkeypatch.setattr(certificate, "_remembered", dict)
    parts = hf.parts

    def of_a_copy(module, halves):  # the module's own weights stay as they were saved
        return parts(copy.deepcopy(module), halves)

    monkeypatch.setattr(hf, "parts", of_a_copy)
    load(made["llama"])
    with pytest.raises(ValueError, match="its weights in float16 beside float32 are not decoded"):
        sn.load_model(made["llama"], "cpu", "float16")


# --------------------------------------------------------------------------------------- miniatures


def test_a_miniature_keeps_every_kind_of_layer_and_cuts_the_rest():
    from transformers import Gemma3TextConfig

    large = Gemma3TextConfig(vocab_size=262_144, num_hidden_layers=34, hidden_size=2560)
    small = next(iter(miniatures(large)))
    assert set(small.layer_types) == set(large.layer_types)
    assert small.num_hidden_layers == len(small.layer_types) == 2
    assert small.head_dim == large.head_dim and small.sliding_window == 8
    assert small.vocab_size == 512 and large.vocab_size == 262_144
    assert small_ids([large.eos_token_id, 7], large)[0] == small.eos_token_id
    fewest = sum(p.numel() for p in _model(small).parameters())
    assert fewest < 10_000_000


def _model(config):
    from transformers import Gemma3ForCausalLM

    return certificate.random_model(Gemma3ForCausalLM, config)


def test_random_models_leave_the_random_numbers_alone(made):
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    load(made["llama"])
    assert torch.equal(torch.rand(3), wanted)


def test_the_key_is_the_content(tmp_path):
    a, b = builders.llama(tmp_path / "a"), builders.llama(tmp_path / "b")
    assert folders.fingerprint(a) == folders.fingerprint(b)


def test_weights_that_are_no_numbers_are_refused_in_words(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = builders.llama(tmp_path / "damaged")
    path = Path(folder) / "model.safetensors"
    tensors = load_file(path)
    tensors["model.norm.weight"] = torch.full_like(tensors["model.norm.weight"], torch.nan)
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="logits are not numbers; the weights are damaged"):
        sn.load_model(folder, device="cpu", dtype="float32")
