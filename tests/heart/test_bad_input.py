"""Wrong input gives one ValueError that names argument, value and remedy, before a model runs."""

from __future__ import annotations

import json
import math
from pathlib import Path

import builders
import pytest
import torch
from PIL import Image

import specnb as sn
from specnb.models.hf import HFContext
from specnb.models.pictures import as_picture
from specnb.scenes import examples, random_scene, render

pytestmark = pytest.mark.usefixtures("unchecked")  # our own words, not the type checker's


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def text_pair(root) -> sn.Pair:
    folder = builders.llama(root / "text", positions=64)
    return sn.load_pair(folder, folder, device="cpu")


@pytest.fixture(scope="module")
def seeing(root):
    return sn.load_model(builders.llava15(root / "llava"), "cpu")


def broken_folder(root: Path, name: str) -> str:
    """A copy of a good folder with one thing wrong."""
    folder = root / name
    builders.llama(folder)
    weights = folder / "model.safetensors"
    if name == "no-config":
        (folder / "config.json").unlink()
    if name in ("no-weights", "pickle", "no-shard"):
        weights.unlink()
    if name == "pickle":
        (folder / "pytorch_model.bin").write_bytes(b"")
    if name == "no-shard":
        index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    if name == "no-tokenizer":
        (folder / "tokenizer.json").unlink()
    return str(folder)


SETTINGS = [
    (lambda: sn.Chain(0), ["draft_length", "0", ">= 1"]),
    (lambda: sn.Chain(-3), ["draft_length", "-3", ">= 1"]),
    (lambda: sn.Sampling(-0.1), ["temperature", "-0.1", ">= 0"]),
    (lambda: sn.Sampling(math.nan), ["temperature", "nan", ">= 0"]),
    (lambda: sn.Sampling(math.inf), ["temperature", "inf", "finite"]),
    (lambda: sn.Sampling(1.0, top_p=0.0), ["top_p", "0.0", "(0, 1]"]),
    (lambda: sn.Sampling(1.0, top_p=1.2), ["top_p", "1.2", "(0, 1]"]),
    (lambda: sn.Sampling(1.0, top_p=math.nan), ["top_p", "nan", "(0, 1]"]),
    (lambda: sn.Sampling(1.0, top_k=-1), ["top_k", "-1", ">= 0"]),
    (lambda: examples("poem", 1, 0), ["task", "poem", "caption"]),
    (lambda: sn.load_model("x/y", device="tpu"), ["device", "tpu", "cuda"]),
    (lambda: sn.load_model("x/y", dtype="int3"), ["dtype", "int3", "float32"]),
    (lambda: sn.load_model("./nowhere"), ["model", "nowhere", "check the path"]),
]


@pytest.mark.parametrize(("call", "words"), SETTINGS)
def test_settings(call, words):
    with pytest.raises(ValueError) as caught:
        call()
    assert all(word in str(caught.value) for word in words), str(caught.value)


FOLDERS = {
    "no-config": ["config.json is missing"],
    "no-weights": ["model.safetensors is missing", "copy"],
    "no-shard": ["model-00001-of-00002.safetensors is missing", "copy"],
    "pickle": ["pytorch_model.bin", "pickle", "safetensors"],
    "no-tokenizer": ["tokenizer.json"],
}


@pytest.mark.parametrize("name", FOLDERS)
def test_model_folders(root, name):
    folder = broken_folder(root, name)
    with pytest.raises(ValueError) as caught:
        sn.load_model(folder)
    assert all(word in str(caught.value) for word in [folder, *FOLDERS[name]])


def test_a_file_is_no_folder(root):
    path = root / "file"
    path.write_text("x")
    with pytest.raises(ValueError, match="give the folder"):
        sn.load_model(str(path))


def no_forward(monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("a model ran before the input was refused")

    monkeypatch.setattr(HFContext, "_call", fail)


PROMPTS = [
    ({"prompt": ""}, ["prompt", "''", "write"]),
    ({"prompt": " \n "}, ["prompt", "empty"]),
    ({"prompt": "long " * 40}, ["prompt", "tokens", "64", "shorten"]),
    ({"prompt": "hi", "image": Image.new("RGB", (8, 8))}, ["image", "text-only", "LLaVA"]),
    ({"prompt": "hi", "max_new_tokens": 0}, ["max_new_tokens", "0", ">= 1"]),
]


@pytest.mark.parametrize(("arguments", "words"), PROMPTS)
def test_prompts(text_pair, arguments, words, monkeypatch):
    no_forward(monkeypatch)
    with pytest.raises(ValueError) as caught:
        sn.speculative(text_pair, **arguments)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_pictures(seeing, tmp_path, monkeypatch):
    no_forward(monkeypatch)
    good = tmp_path / "good.png"
    render(random_scene(1)).save(good)
    cut = tmp_path / "cut.png"
    cut.write_bytes(good.read_bytes()[:400])
    words = tmp_path / "words.png"
    words.write_text("this is no picture")
    for image, wanted in (
        (tmp_path / "missing.png", ["missing.png", "no such file"]),
        (str(cut), ["cut.png", "damaged"]),
        (words, ["words.png", "no picture"]),
        (42, ["image", "int", "PIL"]),
    ):
        with pytest.raises(ValueError) as caught:
            sn.speculative(sn.Pair(seeing, None), "Describe.", image, drafter=sn.Chain(2))
        assert all(word in str(caught.value) for word in wanted), str(caught.value)


def test_other_kinds_of_pictures_are_converted(tmp_path):
    half = Image.new("RGBA", (2, 1), (255, 0, 0, 0))
    half.putpixel((1, 0), (0, 0, 255, 255))
    assert as_picture(half).getpixel((0, 0)) == (255, 255, 255)
    assert as_picture(half).getpixel((1, 0)) == (0, 0, 255)
    assert as_picture(Image.new("L", (3, 2), 9)).getpixel((0, 0)) == (9, 9, 9)
    palette = Image.new("RGB", (2, 2), (10, 200, 30)).convert("P")
    assert as_picture(palette).mode == "RGB"
    turned = Image.new("RGB", (4, 2), "red")
    deep = Image.fromarray(torch.tensor([[0, 0x7F00, 0xFFFF]], dtype=torch.uint16).numpy())
    assert [as_picture(deep).getpixel((x, 0))[0] for x in range(3)] == [0, 127, 255]
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright
    turned.save(tmp_path / "turned.jpg", exif=exif)
    assert as_picture(tmp_path / "turned.jpg").size == (2, 4)


def test_a_missing_drafter():
    table = sn.models.TableModel(torch.zeros(1, 3))
    with pytest.raises(ValueError, match="draft=None"):
        sn.speculative(sn.Pair(table), [0])


def test_a_seeing_model_without_a_template(seeing, monkeypatch):
    no_forward(monkeypatch)
    monkeypatch.setattr(seeing.processor, "chat_template", None)
    with pytest.raises(ValueError, match="chat_template.jinja"):
        sn.autoregressive(seeing, "Describe.", render(random_scene(1)))
