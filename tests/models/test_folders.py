"""Model folders: what is missing or broken is named; what is remembered changes with its model."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from places import ROOT
from safetensors.numpy import save_file

from specnb.models import folders
from specnb.models.folders import Stored, check_folder, check_quantization, fingerprint, header

POINTER = (
    "version https://git-lfs.github.com/spec/v1\n"
    "oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"
)
TOKENIZER = {"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": []}}


def tensors() -> dict[str, np.ndarray]:
    chance = np.random.default_rng(0)
    return {
        "embed.weight": chance.standard_normal((40, 8)).astype("float32"),
        "head.weight": chance.standard_normal((8, 40)).astype("float16"),
    }


@pytest.fixture
def folder(tmp_path) -> Path:
    """A small whole folder; nothing in these tests needs it to be a model that runs."""
    path = tmp_path / "model"
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": 8}))
    (path / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    save_file(tensors(), path / "model.safetensors")
    return path


@pytest.fixture
def sharded(folder) -> Path:
    """The same in two files with an index."""
    (folder / "model.safetensors").unlink()
    places = {}
    for number, (name, tensor) in enumerate(tensors().items(), 1):
        places[name] = f"model-0000{number}-of-00002.safetensors"
        save_file({name: tensor}, folder / places[name])
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def refused(folder: object, *words: str, take: Callable = check_folder) -> None:
    with pytest.raises(ValueError) as caught:
        take(folder)
    said = str(caught.value)
    assert said.startswith("model ") and "\n" not in said, said
    assert all(word in said for word in words), said


# ------------------------------------------------------------------------------ which folder


def test_whole_folders_are_taken(folder, tmp_path, monkeypatch):
    assert check_folder(folder) == str(folder)
    assert check_folder(str(folder)) == str(folder)
    monkeypatch.chdir(tmp_path)
    assert check_folder(Path("model")) == "model"
    assert check_folder("./model") == "./model"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    for home in ("~/model", Path("~/model")):
        assert Path(check_folder(home)) == folder
        assert len(fingerprint(home)) == 64
    for name in ("config.json", "tokenizer.json"):  # as the hub's cache keeps them
        (folder / name).rename(tmp_path / name)
        (folder / name).symlink_to(tmp_path / name)
    assert check_folder(folder) == str(folder)


def test_a_folder_in_several_files_is_taken(sharded):
    assert check_folder(sharded) == str(sharded)
    files = [file.name for file in folders.weight_files(sharded)]
    assert files == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    save_file(tensors(), sharded / "model.safetensors")  # transformers then reads this one alone
    for name in files:
        (sharded / name).unlink()
    assert [file.name for file in folders.weight_files(sharded)] == ["model.safetensors"]
    assert check_folder(sharded) == str(sharded)


@pytest.mark.weights
@pytest.mark.parametrize("name", ["target", "drafter"])
def test_the_embedded_models_are_whole(name):
    path = ROOT / "data" / "models" / name
    assert check_folder(path) == str(path)
    assert sum(np.prod(one.shape) for one in header(path / "model.safetensors").values()) > 1e5


@pytest.mark.parametrize("hub_id", ["owner/name", "llava-hf/llava-1.5-7b-hf", "Qwen/Qwen2.5_x"])
def test_hub_ids_are_left_alone(hub_id):
    assert check_folder(hub_id) == hub_id


@pytest.mark.parametrize(
    "given",
    ["", "nothing", "./owner/name", "~/owner_name", "/no/where", "owner/", "a/b/c", "a b/c"]
    + ["owner/a\0b", "owner/" + "x" * 5000, Path("owner/name"), Path("gone"), "~nobody_at_all/x"],
)
def test_no_such_folder(given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    refused(given, repr(str(given)), "no such folder", "check the path")


def test_other_things_than_folders(folder, monkeypatch):
    refused(42, "42", "give a folder or a hub id")
    refused(None, "None", "give a folder or a hub id")
    refused(folder / "config.json", "this is a file", "the folder that holds it")

    def closed(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", closed)
    refused(folder, str(folder), "cannot be read", "Permission denied", "permissions")


# ------------------------------------------------------------------------- missing and broken


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["config.json"], ["config.json is missing", "transformers folder"]),
        (["tokenizer.json"], ["no tokenizer", "add tokenizer.json"]),
        (["model.safetensors"], ["model.safetensors is missing", "copy the folder again"]),
        (["model.safetensors", "+pytorch_model.bin"], ["pytorch_model.bin is a pickle", "convert"]),
        (["model.safetensors", "+model.gguf"], ["model.gguf is GGUF", "safetensors"]),
        (
            ["model.safetensors", "config.json", "+adapter_config.json"],
            ["adapter_config.json says that this is an adapter", "merge"],
        ),
        (
            ["model.safetensors", "+model-00001-of-00002.safetensors"],
            ["model.safetensors.index.json is missing", "copy the folder again"],
        ),
    ],
)
def test_missing_files(folder, names, words):
    for name in names:
        if name.startswith("+"):
            (folder / name[1:]).write_text("{}")
        else:
            (folder / name).unlink()
    refused(folder, *words)


def test_missing_shards_and_broken_indexes(sharded):
    index = sharded / "model.safetensors.index.json"
    second = sharded / "model-00002-of-00002.safetensors"
    whole, kept = index.read_text(), second.read_bytes()
    second.unlink()
    refused(sharded, second.name, "is missing", "copy the folder again")
    second.write_bytes(kept[:-1])
    refused(sharded, second.name, "damaged or cut", "copy it again")
    second.write_text(POINTER)
    refused(sharded, second.name, "Git LFS pointer")
    second.write_bytes(kept)
    for broken, word in (
        (whole[:60], "no valid JSON"),
        ('{"metadata": {}}', "does not say where the weights are"),
        ('{"weight_map": {}}', "does not say where the weights are"),
        ("[]", "no JSON object"),
    ):
        index.write_text(broken)
        refused(sharded, index.name, word, "copy it again")
    index.write_text(whole)
    assert check_folder(sharded) == str(sharded)


def test_weights_that_the_config_names(folder):
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    (folder / "config.json").write_text('{"transformers_weights": "other.safetensors"}')
    assert check_folder(folder) == str(folder)
    (folder / "other.safetensors").unlink()
    refused(folder, "other.safetensors is missing", "config.json asks for")


ANY = ("config.json", "tokenizer.json", "model.safetensors", "generation_config.json")
ANY += ("tokenizer.model", "processor_config.json", "chat_template.jinja", "merges.txt")


@pytest.mark.parametrize("name", ANY)
def test_what_arrived_in_place_of_a_file(folder, name):
    for content, words in (
        (POINTER, ["is a Git LFS pointer", "git lfs pull"]),
        ("", ["is empty", "copy it again"]),
        ("\n<!DOCTYPE html>\n<html>Sign in</html>", ["is a web page", "download it again"]),
        ("<HTML lang='en'>", ["is a web page"]),
    ):
        (folder / name).write_text(content)
        refused(folder, str(folder), f": {name} ", *words)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_json_that_is_none(folder, name):
    whole = json.dumps({"a": [1, 2, {"b": "c"}], "name": "x"}).encode()
    (folder / name).write_bytes(whole)
    assert check_folder(folder) == str(folder)
    cuts = [whole[:length] for length in range(1, len(whole))]
    for content in (*cuts, b"Entry not found", b"\xff\xfe{}", b"\xef\xbb\xbf{}", b"{}" * 2):
        (folder / name).write_bytes(content)
        refused(folder, name, "no valid JSON", "copy it again")
    (folder / name).write_bytes(b"[" * 200_000)
    refused(folder, name, "no valid JSON")
    (folder / name).write_bytes(b"[1]")
    refused(folder, name, "no JSON object")


def test_files_that_nobody_reads_do_not_matter(folder):
    (folder / "README.md").write_text("")
    (folder / "trainer_state.json").write_text("{")
    (folder / "adapter_config.json").write_text("{}")  # beside the weights it was merged into
    (folder / "consolidated.safetensors").write_text(POINTER)
    (folder / "tokenizer.json.lock").write_text("")
    assert check_folder(folder) == str(folder)


# ---------------------------------------------------------------------------------- headers


def test_headers_are_read_as_they_are(folder):
    wanted = {"embed.weight": Stored("F32", (40, 8)), "head.weight": Stored("F16", (8, 40))}
    assert header(folder / "model.safetensors") == wanted
    assert header(str(folder / "model.safetensors")) == wanted
    save_file(tensors(), folder / "noted.safetensors", metadata={"format": "pt"})
    assert header(folder / "noted.safetensors") == wanted


def test_every_cut_of_a_weight_file_is_seen(folder):
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    inside = [1, 7, 8, 9, 8 + length // 2, 7 + length, 8 + length, 9 + length]
    for kept in [*inside, *range(10 + length, len(whole), 97), len(whole) - 1]:
        file.write_bytes(whole[:kept])
        refused(folder, "model.safetensors is damaged or cut", "copy it again")
        refused(file, "model.safetensors is damaged or cut", take=header)
    for more in (b"\0", whole):
        file.write_bytes(whole + more)
        refused(folder, "damaged or cut")
    file.write_bytes(bytes(len(whole)))
    refused(folder, "damaged or cut")
    file.write_bytes(b"\xff" * 16)
    refused(folder, "damaged or cut")
    file.write_bytes(whole)
    assert check_folder(folder) == str(folder)


def test_damaged_headers_are_errors_in_words(folder):
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    chance, n_refused = random.Random(0), 0
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(chance.randint(1, 3)):
            data[chance.randrange(8 + length)] = chance.randrange(256)
        file.write_bytes(data)
        try:
            header(file)  # another letter in a tensor's name cannot be seen here
        except ValueError as error:
            assert "model.safetensors is damaged or cut" in str(error)
            n_refused += 1
    assert n_refused > 200


def test_a_large_file_is_judged_by_its_header(folder):
    """Half a terabyte that is not there: reading it would not end."""
    size = 1 << 39
    entry = {"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}
    raw = json.dumps(entry).encode()
    file = folder / "model.safetensors"
    with file.open("wb") as stream:
        stream.write(len(raw).to_bytes(8, "little") + raw)
        try:
            stream.truncate(8 + len(raw) + size)
        except OSError:
            pytest.skip("this file system keeps no sparse file of this size")
    assert check_folder(folder) == str(folder)
    assert header(file) == {"w": Stored("U8", (size,))}
    assert len(fingerprint(folder)) == 64


# ------------------------------------------------------------------------------ fingerprints


def test_a_fingerprint_is_that_of_the_content(folder, tmp_path):
    before = fingerprint(folder)
    assert len(before) == 64 and int(before, 16)
    copied = shutil.copytree(folder, tmp_path / "copy")
    (copied / "README.md").write_text("words")
    assert fingerprint(copied) == fingerprint(folder) == before


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "chat_template.jinja"])
def test_a_fingerprint_changes_with_every_file_that_is_read(folder, name):
    before = fingerprint(folder)
    file = folder / name
    file.write_text(file.read_text().replace("8", "9") + " " if file.exists() else "{{ x }}")
    assert fingerprint(folder) != before


def test_a_fingerprint_tells_files_apart_that_read_the_same_in_a_row(folder):
    (folder / "merges.txt").write_text("a")
    (folder / "chat_template.jinja").write_text("b")
    before = fingerprint(folder)
    (folder / "chat_template.jinja").unlink()
    (folder / "merges.txt").write_text("achat_template.jinjab")
    assert fingerprint(folder) != before


def test_a_fingerprint_changes_with_a_config_value(folder):
    seen = set()
    for size in (8, 16):
        (folder / "config.json").write_text(json.dumps({"hidden_size": size}))
        seen.add(fingerprint(folder))
    assert len(seen) == 2


def test_a_fingerprint_changes_with_a_header(folder):
    file = folder / "model.safetensors"
    before, whole = fingerprint(folder), file.read_bytes()
    for old, new in (
        (b"head.weight", b"heap.weight"),
        (b'"F16"', b'"I16"'),
        (b"[40,8]", b"[8,40]"),
    ):
        assert old in whole
        file.write_bytes(whole.replace(old, new))
        assert fingerprint(folder) != before
    file.write_bytes(whole)
    assert fingerprint(folder) == before


def test_a_fingerprint_changes_with_the_files_names(sharded):
    before = fingerprint(sharded)
    index = sharded / "model.safetensors.index.json"
    (sharded / "model-00001-of-00002.safetensors").rename(sharded / "first.safetensors")
    index.write_text(index.read_text().replace("model-00001-of-00002", "first"))
    assert [file.name for file in folders.weight_files(sharded)][0] == "first.safetensors"
    assert fingerprint(sharded) != before  # although they are read in the same order


def test_every_byte_of_a_small_file_counts(folder, monkeypatch):
    monkeypatch.setattr(folders, "BLOCK", 130)  # 16 of them are a little more than its 1920 bytes
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    seen = {fingerprint(folder)}
    for place in range(8 + int.from_bytes(whole[:8], "little"), len(whole), 50):
        data = bytearray(whole)
        data[place] ^= 1
        file.write_bytes(data)
        seen.add(fingerprint(folder))
    assert len(seen) == 1 + len(range(8 + int.from_bytes(whole[:8], "little"), len(whole), 50))


def test_samples_are_even_from_first_to_last_byte(folder, monkeypatch):
    monkeypatch.setattr(folders, "BLOCK", 3)
    file = folder / "model.safetensors"
    save_file({"w": np.zeros(301, np.uint8)}, file)
    whole = file.read_bytes()
    start, end = 8 + int.from_bytes(whole[:8], "little"), len(whole)
    before = fingerprint(folder)

    def counts(place: int) -> bool:
        data = bytearray(whole)
        data[place] ^= 1
        file.write_bytes(data)
        return fingerprint(folder) != before

    seen = [place for place in range(start, end) if counts(place)]
    firsts = [place for place in seen if place - 1 not in seen]
    assert len(seen) == 48 and len(firsts) == 16
    assert firsts[0] == start and seen[-1] == end - 1
    gaps = np.diff(firsts)
    assert gaps.max() - gaps.min() <= 1


def test_no_fingerprint_of_what_is_not_there(folder):
    refused("owner/name", "no such folder", "give a local one", take=fingerprint)
    (folder / "model.safetensors").write_text(POINTER)
    refused(folder, "Git LFS pointer", take=fingerprint)
    (folder / "config.json").unlink()
    refused(folder, "config.json is missing", take=fingerprint)


# ------------------------------------------------------------------------------ quantisation


def installed(monkeypatch, *names: str) -> None:
    monkeypatch.setattr(folders, "_installed", lambda name: name in names)


def quantised(method: str, **more) -> dict:
    return {"model_type": "llama", "quantization_config": {"quant_method": method, **more}}


@pytest.mark.parametrize(
    ("settings", "install"),
    [
        ({"quant_method": "gptq", "bits": 4}, "optimum gptqmodel"),
        ({"quant_method": "awq", "bits": 4}, "gptqmodel accelerate"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes accelerate"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "bitsandbytes accelerate"),
        ({"load_in_8bit": True}, "bitsandbytes accelerate"),  # as it was written at first
        ({"quant_method": "compressed-tensors"}, "compressed-tensors"),
        ({"quant_method": "fp8"}, "accelerate"),
        ({"quant_method": "mxfp4"}, "accelerate"),
        ({"quant_method": "quanto"}, "optimum-quanto accelerate"),
        ({"quant_method": "auto-round"}, "auto-round"),
        ({"quant_method": "torchao"}, "torchao"),
        ({"quant_method": "hqq"}, "hqq"),
    ],
)
def test_the_packages_to_install_are_named(settings, install, monkeypatch):
    installed(monkeypatch)
    method = settings.get("quant_method", "bitsandbytes")
    for config in (
        {"quantization_config": settings},
        {"text_config": {"quantization_config": settings}},
    ):
        with pytest.raises(ValueError) as caught:
            check_quantization(config)
        said = str(caught.value)
        assert said.startswith(f"quantization_config.quant_method={method!r}: ")
        assert said.endswith(f"; pip install {install}")


def test_only_what_is_missing_is_named(monkeypatch):
    installed(monkeypatch, "optimum", "accelerate")
    with pytest.raises(ValueError, match="; pip install gptqmodel$"):
        check_quantization(quantised("gptq"))
    installed(monkeypatch, "optimum", "gptqmodel", "bitsandbytes", "accelerate")
    check_quantization(quantised("gptq"))
    check_quantization(quantised("awq"))
    check_quantization(quantised("bitsandbytes", load_in_4bit=True))


def test_a_package_whose_parent_is_missing_is_missing():
    assert not folders._installed("no_such_parent.child")
    assert folders._installed("json") and not folders._installed("no_such_package")


def test_configs_of_transformers_are_judged_as_dicts_are(monkeypatch):
    from transformers import BitsAndBytesConfig, GPTQConfig, LlamaConfig

    check_quantization(LlamaConfig())
    check_quantization({"model_type": "llama", "quantization_config": None})
    installed(monkeypatch)
    as_dict = quantised("gptq")["quantization_config"]
    for settings, method in (
        (BitsAndBytesConfig(load_in_4bit=True), "bitsandbytes"),
        (GPTQConfig(bits=4), "gptq"),
        (as_dict, "gptq"),
    ):
        with pytest.raises(ValueError, match=rf"quant_method='{method}': .*pip install"):
            check_quantization(LlamaConfig(quantization_config=settings))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (quantised("modelopt"), ["'modelopt'", "unknown", "gptq"]),
        ({"quantization_config": {}}, ["None", "unknown"]),
        (quantised("bitsandbytes"), ["neither load_in_4bit nor load_in_8bit"]),
        (quantised("nvfp4"), ["cannot load"]),
    ],
)
def test_methods_that_transformers_would_skip_or_refuse(config, words):
    """An unknown method is only logged there, and the packed numbers are taken for weights."""
    with pytest.raises(ValueError) as caught:
        check_quantization(config)
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize("method", folders.ON_GPU_ONLY)
def test_methods_for_a_gpu_only(method, monkeypatch):
    installed(monkeypatch, *folders.PACKAGES[method])
    monkeypatch.setattr(folders, "_has_gpu", lambda: False)
    with pytest.raises(ValueError, match=f"{method}.*GPU only, and here is none; choose"):
        check_quantization(quantised(method))
    monkeypatch.setattr(folders, "_has_gpu", lambda: True)
    check_quantization(quantised(method))


def test_what_transformers_refuses_here_is_refused_before():
    """Each of its methods, held against its own check of this machine."""
    from transformers.quantizers import auto

    methods = {getattr(name, "value", name) for name in auto.AUTO_QUANTIZATION_CONFIG_MAPPING}
    assert len(methods) > 15
    differ = []
    for method in sorted(methods):
        settings = {"quant_method": method, "bits": 4}
        if method.startswith("bitsandbytes_"):
            bits = method.removeprefix("bitsandbytes_")
            settings = {"quant_method": "bitsandbytes", f"load_in_{bits}": True}
        elif method != "gptq":
            settings.pop("bits")
        ours = theirs = None
        try:
            check_quantization({"quantization_config": dict(settings)})
        except ValueError as error:
            ours = error
        try:
            quantizer = auto.AutoHfQuantizer.from_config(settings, pre_quantized=True)
            quantizer.validate_environment(device_map=None, weights_only=True)
        except Exception as error:
            theirs = error
        if (ours is None) != (theirs is None) and not (method == "sinq" and ours):
            differ.append((method, ours, theirs))  # sinq is imported later, unchecked
    assert not differ
    known = {name.removesuffix("_4bit").removesuffix("_8bit") for name in methods}
    assert known - {"nvfp4"} <= set(folders.PACKAGES)


def test_a_gpu_is_seen(monkeypatch):
    monkeypatch.setattr(torch.xpu, "is_available", lambda: False)
    for there in (True, False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: there)  # noqa: B023
        assert folders._has_gpu() is there
