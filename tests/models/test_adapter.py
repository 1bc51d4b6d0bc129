"""A drafter that shares its target's eyes: one encoding, the text path unchanged, exact laws."""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from places import ROOT
from toys import check_law

import specnb as sn
from specnb.drafters import Chain, Either, GumbelTopK, Hierarchy, IIDTree, PromptLookup, SparseSelf
from specnb.methods import name_of
from specnb.models import TableModel
from specnb.models.adapter import Adapted, pooled, save_adapter
from specnb.models.hf import HFModel
from specnb.sampling import Sampling
from specnb.scenes import examples

MODELS = ROOT / "data" / "models"
pytestmark = pytest.mark.weights


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The shipped text-only drafter behind a random projector onto a grid of two by two."""
    from transformers import AutoModelForCausalLM

    out = tmp_path_factory.mktemp("models") / "seeing"
    shutil.copytree(MODELS / "drafter", out)
    language = AutoModelForCausalLM.from_pretrained(MODELS / "drafter", dtype=torch.float32)
    torch.manual_seed(0)
    module = Adapted(language, 384, 2).eval()
    for parameter in module.projector.parameters():  # as it will be read from the file
        parameter.data = parameter.data.bfloat16().float()
    save_adapter(module, str(MODELS / "target"), out)
    return out, module


@pytest.fixture(scope="module")
def pair(folder):
    return sn.load_pair(draft=str(folder[0]), dtype="float32", device="cpu", certify=False)


def picture_and_prompt():
    item = examples("caption", 1, 3)[0]
    return item.image, item.prompt


def logits_behind(model, prompt, image=None, **more) -> torch.Tensor:
    return model.open(prompt, image, **more).forward([5, 9], [-1, 0])[1]


def test_it_runs_as_it_was_trained(pair, folder):
    """The runtime's logits are those of the module that is trained, seeing and blind."""
    module = folder[1]
    image, prompt = picture_and_prompt()
    ids = torch.tensor([pair.draft.encode(prompt)[0] + [5, 9]])
    features = pair.target.open(prompt, image).features[None]
    with torch.inference_mode():
        for blind in (False, True):
            hidden = module.read(ids, features, torch.tensor([blind]))
            wanted = module.get_output_embeddings()(hidden)[0, -2:]
            found = logits_behind(pair.draft, prompt, None if blind else image)
            allowed = torch.isfinite(found)
            assert (found - wanted)[allowed].abs().max() < 2e-4, f"blind={blind}"


def test_without_a_picture_it_is_the_text_only_drafter(pair):
    plain = sn.load_pair(dtype="float32", device="cpu").draft
    _, prompt = picture_and_prompt()
    assert torch.equal(logits_behind(pair.draft, prompt), logits_behind(plain, prompt))
    a, b = (
        sn.speculative(sn.Pair(pair.target, draft), "What is a star?", max_new_tokens=20)
        for draft in (pair.draft, plain)
    )
    assert a.token_ids == b.token_ids and len(a.blocks) == len(b.blocks)


def test_a_picture_changes_what_it_says(pair):
    image, prompt = picture_and_prompt()
    other = examples("caption", 2, 3)[1].image
    seen = logits_behind(pair.draft, prompt, image)
    assert not torch.allclose(seen, logits_behind(pair.draft, prompt))
    assert not torch.allclose(seen, logits_behind(pair.draft, prompt, other))


def counted(pair, monkeypatch) -> list[int]:
    calls: list[int] = []
    right = HFModel.image_features

    def count(self, extras):
        calls.append(1)
        return right(self, extras)

    monkeypatch.setattr(HFModel, "image_features", count)
    return calls


ONCE = (
    Chain(3),
    GumbelTopK((2, 1)),
    Either(PromptLookup(2, 2), Chain(3)),
    Hierarchy(Chain(2), SparseSelf()),
    Hierarchy(PromptLookup(2, 2), Chain(2)),
    Hierarchy(Hierarchy(PromptLookup(2, 2), Chain(2)), SparseSelf()),
)


@pytest.mark.parametrize("drafter", ONCE, ids=name_of)
def test_a_picture_is_encoded_once(pair, monkeypatch, drafter):
    calls = counted(pair, monkeypatch)
    image, prompt = picture_and_prompt()
    sn.speculative(pair, prompt, image, drafter=drafter, max_new_tokens=8)
    assert len(calls) == 1
    # Alone it needs its target's eyes, and gives the same logits with them.
    features = pair.target.open(prompt, image).features
    shared = logits_behind(pair.draft, prompt, image, features=features)
    before = len(calls)
    assert torch.equal(shared, logits_behind(pair.draft, prompt, image))
    assert len(calls) == before + 1


def test_the_count_sees_a_drafter_that_is_not_handed_the_features(pair, monkeypatch):
    """Planted: the target's context keeps its features to itself."""
    calls = counted(pair, monkeypatch)
    right = type(pair.target.open("a")).__init__

    def forgetful(self, model, ids, extras):
        right(self, model, ids, extras)
        self.features = None

    monkeypatch.setattr(type(pair.target.open("a")), "__init__", forgetful)
    image, prompt = picture_and_prompt()
    sn.speculative(pair, prompt, image, drafter=Chain(3), max_new_tokens=8)
    assert len(calls) == 2


@pytest.mark.parametrize("n", [2, 4])
def test_several_pictures_are_refused_in_words(pair, n):
    """Two have no even grid; the grid of four would be averaged across their borders."""
    image, prompt = picture_and_prompt()
    with pytest.raises(ValueError, match=f"image: {n} pictures.*use a text-only drafter"):
        sn.speculative(pair, prompt, [image] * n, drafter=Chain(3), max_new_tokens=4)
    with pytest.raises(ValueError, match=f"image: {n} pictures"):
        pair.draft.open(prompt, [image] * n)
    one = [sn.speculative(pair, prompt, given, max_new_tokens=8) for given in (image, [image])]
    assert one[0].tokens == one[1].tokens


def test_greedy_texts_are_the_targets(pair):
    for item in examples("caption", 2, 4) + examples("conversation", 2, 4):
        plain = sn.autoregressive(pair.target, item.prompt, item.image, max_new_tokens=30)
        run = sn.speculative(pair, item.prompt, item.image, max_new_tokens=30)
        assert run.token_ids == plain.token_ids


def test_it_loads_alone(folder):
    model = sn.load_model(str(folder[0]), device="cpu", certify=False)
    assert model.sees_images and "adapter" in model.runtime
    image, prompt = picture_and_prompt()
    run = sn.autoregressive(model, prompt, image, max_new_tokens=5)
    assert len(run.token_ids) >= 1
    assert model.n_parameters < 0.4e6  # tower and projector are counted apart


def test_it_survives_the_transformers_runtime(folder):
    pair = sn.load_pair(
        draft=str(folder[0]), dtype="float32", device="cpu", runtime="transformers", certify=False
    )
    image, prompt = picture_and_prompt()
    plain = sn.autoregressive(pair.target, prompt, image, max_new_tokens=12)
    run = sn.speculative(pair, prompt, image, drafter=Chain(3), max_new_tokens=12)
    assert run.token_ids == plain.token_ids


def test_every_runtime_sees_the_picture(folder):
    """A greedy text is the target's also where the drafter is blind: its logits are compared."""
    image, prompt = picture_and_prompt()
    other = examples("caption", 3, 7)[2].image
    found = {}
    for runtime in ("lean", "transformers"):
        pair = sn.load_pair(
            draft=str(folder[0]), dtype="float32", device="cpu", runtime=runtime, certify=False
        )
        for name, one in (("one", image), ("other", other), ("none", None)):
            context = pair.draft.open(prompt, one)
            rows = context.forward([5, 9], [-1, 0])
            found[runtime, name] = torch.cat([rows.root[None], rows.nodes])
    for name in ("one", "other", "none"):
        mine, theirs = found["lean", name], found["transformers", name]
        assert torch.allclose(mine, theirs, rtol=0, atol=1e-4)
        for another in {"one", "other", "none"} - {name}:
            assert not torch.allclose(mine, found["transformers", another], rtol=0, atol=1e-2)


def test_wrong_folders_are_refused(folder, tmp_path):
    def broken(name, change):
        out = tmp_path / name
        shutil.copytree(folder[0], out)
        change(out)
        return str(out)

    def about(out, **changes):
        path = out / "adapter.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    for name, change, words in (
        ("torn", lambda out: (out / "adapter.json").write_text("{"), "missing or damaged"),
        ("halved", lambda out: (out / "adapter.safetensors").unlink(), "missing or damaged"),
        ("none", lambda out: about(out, side=0), "missing or damaged"),
    ):
        with pytest.raises(ValueError, match=words):
            sn.load_model(broken(name, change), device="cpu", certify=False)
    other = broken("other", lambda out: about(out, fingerprint="0" * 64))
    with pytest.raises(ValueError, match="with other eyes than those of target"):
        sn.load_pair(draft=other, dtype="float32", device="cpu", certify=False)


def test_pooling_averages_neighbours():
    grid = torch.arange(16.0).reshape(1, 16, 1)
    assert pooled(grid, 2).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert torch.equal(pooled(grid, 4), grid)
    with pytest.raises(ValueError, match="no even grid"):
        pooled(torch.zeros(7, 3), 2)


# ---- exactness, with the picture as a fixed context of table models


class Pictured(TableModel):
    """A table for each picture; the last one is for texts without any."""

    sees_images = True

    def __init__(self, tables: torch.Tensor):
        super().__init__(tables[-1])
        self.tables = tables

    def open(self, prompt, image: Any = None, features: Any = None):
        chosen = features if features is not None else image
        return TableModel(self.tables[-1 if chosen is None else chosen]).open(prompt)


@dataclass(frozen=True)
class Shown:
    """A drafter on a prompt with this picture."""

    drafter: Any
    picture: int | None

    def start(self, pair, prompt, image, sampling, target):
        target = copy.copy(target)
        target.features = self.picture
        return self.drafter.start(pair, prompt, self.picture, sampling, target)


def tables(seed: int, n: int = 3, vocab: int = 4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 1.5 * torch.randn(n, vocab, vocab, generator=generator, dtype=torch.float64)


@pytest.mark.slow
@pytest.mark.parametrize("picture", [0, 1, None])
@pytest.mark.parametrize("drafter", [Chain(2), GumbelTopK((2, 1)), IIDTree((2, 1))], ids=repr)
def test_laws_with_a_picture_as_fixed_context(drafter, picture):
    ours, theirs = tables(1, vocab=3), tables(2, vocab=3)
    target = TableModel(theirs[-1 if picture is None else picture])
    check_law(target, Pictured(ours), Shown(drafter, picture), Sampling(1.0))


def rejections(found) -> int:
    return sum(n for event, n in found.outcomes.items() if event[0] == "rejected")


def test_the_toy_drafter_sees_the_picture_that_the_target_saw():
    """With the target's own tables nothing is rejected; of another picture some is."""
    same = tables(3)
    target = TableModel(same[1])
    assert not rejections(check_law(target, Pictured(same), Shown(Chain(2), 1), Sampling(1.0)))
    assert rejections(check_law(target, Pictured(same), Shown(Chain(2), 0), Sampling(1.0)))
