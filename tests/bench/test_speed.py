"""The speed bench measures what it says: peers see what they should, ratios are per prompt."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

import specnb as sn
from specnb.bench import exactness, speed
from specnb.models import llama
from specnb.models.load import EMBEDDED
from specnb.scenes import examples

pytestmark = pytest.mark.weights


@pytest.fixture(scope="module")
def item():
    return examples("caption", 1, 5)[0]


@pytest.fixture(scope="module")
def slow():
    return sn.load_pair(dtype="float32", runtime="transformers")


def test_a_ratio_is_the_median_over_prompts():
    def runs(*seconds):
        return [speed.Run(s, (1, 2), 1, 2 * s + 1) for s in seconds]

    found = speed.ratio(runs(4.0, 6.0, 100.0), runs(2.0, 2.0, 1.0))
    assert found["ratio"] == 3.0 and found["low"] == 2.0 and found["high"] == 100.0
    assert speed.with_prefill(runs(4.0, 6.0, 100.0), runs(2.0, 2.0, 1.0))["ratio"] == 2.6
    assert runs(4.0)[0].ms_per_token == 2000.0
    assert speed.middle(runs(4.0, 6.0, 100.0)) == 3000.0


def test_the_hidden_image_is_not_there(slow, item):
    """With the image's columns hidden the drafter says what it says of the text alone."""
    hidden = speed.image_hidden(str(EMBEDDED / "drafter"), slow.target.image_token_id)
    ids, _ = slow.target.encode(item.prompt, item.image)
    raw = torch.tensor([ids])
    text = torch.tensor([[token for token in ids if token != slow.target.image_token_id]])
    assert raw.shape[1] > text.shape[1]
    with torch.inference_mode():
        wanted = slow.draft.module(text).logits[0, -1]
        first = hidden(raw[:, :-2], use_cache=True)  # and the rest from the cache
        found = hidden(raw[:, -2:], past_key_values=first.past_key_values).logits[0, -1]
        shown = slow.draft.module(raw).logits[0, -1]
    assert torch.allclose(found, wanted, rtol=0, atol=1e-5)
    assert not torch.allclose(shown, wanted, atol=0.1)


def test_assisted_decoding_of_transformers_says_the_same(slow, item):
    alone = speed.transformers(slow.target, 1)(item, 0.0, 0)
    hidden = speed.image_hidden(str(EMBEDDED / "drafter"), slow.target.image_token_id)
    for assistant in (hidden, slow.draft.module):
        helped = speed.transformers(slow.target, 1, assistant)(item, 0.0, 0)
        assert helped.token_ids == alone.token_ids and helped.seconds > 0
    assert alone.token_ids == exactness.generate(slow.target, item.prompt, item.image, speed.TOKENS)


@pytest.mark.parametrize("layout, near", [("transposed", 1e-4), ("int8", 2.0)])
def test_other_layouts_are_the_same_model(item, layout, near):
    usual = sn.load_model(str(EMBEDDED / "target"), dtype="float32")
    kernel, least = llama._kernel, llama.LEAST_PACKED
    with speed.weights_as(layout):
        other = sn.load_model(str(EMBEDDED / "target"), dtype="bfloat16" if near > 1 else "float32")
    assert (llama._kernel, llama.LEAST_PACKED) == (kernel, least)
    a, b = (model.open(item.prompt, item.image).forward().root for model in (usual, other))
    assert torch.allclose(a, b, rtol=0, atol=near) and int(a.argmax()) == int(b.argmax())
    assert not torch.equal(a, b)


def test_costs_leave_the_contexts_as_they_were(item):
    pair = sn.load_pair(dtype="float32")
    took = speed._costs(pair, item, 5, torch.get_num_threads(), rounds=3)
    assert 0 < took["draft"] < took["one"] and 0 < took["block"]


def test_where_the_time_of_a_block_is(unchecked):
    """Blocks of the draft length alone."""
    rows = [
        SimpleNamespace(n_drafted=4, draft_forwards=5, draft_s=1.0e-3, verify_s=3.0e-3),
        SimpleNamespace(n_drafted=4, draft_forwards=5, draft_s=1.0e-3, verify_s=5.0e-3),
        SimpleNamespace(n_drafted=2, draft_forwards=3, draft_s=9.0e-3, verify_s=9.0e-3),
    ]
    where = speed._where([SimpleNamespace(blocks=rows)], 4)
    assert where == {"draft_step_us": pytest.approx(200), "drafting": pytest.approx(0.2)}
    assert speed._where([SimpleNamespace(blocks=rows)], 3) == {}
    assert speed._step_of({"where": where}) == ("200", "20%")
    assert speed._step_of({}) == speed._step_of({"where": {}}) == ("-", "-")


def test_a_class_is_told_by_what_the_processor_multiplies_with(monkeypatch):
    """oneDNN takes bfloat16 wherever there is AVX-512, at the speed of float32 or below."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(llama, "packs", lambda dtype: True)
    for multiplies, name in ((True, speed.WIDE), (False, "AVX-512")):
        monkeypatch.setattr(
            torch.cpu, "_is_avx512_bf16_supported", lambda it=multiplies: it, raising=False
        )
        assert speed.machine_class() == name
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert speed.machine_class() == speed.NARROW


@pytest.mark.slow
def test_a_small_measurement(monkeypatch):
    """Every row, every bar and the table; its figures are of no use."""
    monkeypatch.setattr(speed, "TASKS", ("conversation",))
    monkeypatch.setattr(speed, "GAMMAS", range(1, 3))
    monkeypatch.setattr(speed, "THRESHOLDS", (0.3,))
    monkeypatch.setattr(speed, "TREES", {t: trees[:1] for t, trees in speed.TREES.items()})
    monkeypatch.setattr(speed, "TOKENS", 6)
    monkeypatch.setattr(speed, "examples", lambda task, n, seed: examples(task, 1, seed))
    monkeypatch.setattr(speed, "_growth", lambda *args: {"plain": {"64 ms/token": 1.0}})
    monkeypatch.setattr(
        speed, "_processes", lambda *args: dict.fromkeys(("import_s", "first_token_s"), 0.1)
        | {"peak_memory_gb": 1.0}
    )  # fmt: skip
    threads = torch.get_num_threads()
    figures = speed.measure(n=1)
    assert torch.get_num_threads() == threads
    said = speed.table(figures)
    for name in (*speed.BASES[:4], "AdaEDL", "tree", "plain, int8", "greedy texts", "sn.tune"):
        assert name in said, name
    assert "WRONG" not in said and "nan" not in said.replace("  nan", "")
    cell = figures["cells"][0]
    assert cell["rows"]["plain"]["over plain"]["ratio"] == 1.0
    assert cell["fastest"] in cell["rows"]
    assert set(figures["bars"]) == {*speed.BASES[:4], "measured / predicted"}
    assert figures["machine"] in said and figures["bars"]["plain"]["with prefill"] > 0
    formats = {"float32", "bfloat16"} | ({"float16"} if llama.has_halves() else set())
    assert set(cell["identity"]) == formats
