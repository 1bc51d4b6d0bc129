"""The bench on long texts: what it counts, what it computes, and its long prompts."""

import builders
import pytest
import torch

import specnb as sn
from specnb import lesson
from specnb.bench import long_context as bench
from specnb.notebook import LongContextConfig
from specnb.scenes import LONG_TASKS, is_right, long_examples
from specnb.views.attention import attention


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    base = tmp_path_factory.mktemp("long")
    folders = builders.llama(base / "target", layers=2), builders.llama(base / "draft", seed=3)
    return sn.load_pair(*folders, "cpu", "float32", runtime="lean", certify=False)


@pytest.mark.parametrize("name", bench.SELECTORS)
@pytest.mark.parametrize("budget", [20, 33, 500])
def test_what_is_counted_is_what_the_formula_says(pair, name, budget):
    items = [bench.SimpleNamespace(prompt=list(range(3, 90)), image=None)]
    row = bench.traffic(pair, items, name, bench._own(budget)[name])
    if budget < 100:  # a budget beyond the text chooses nothing, and reads all of it
        assert row["draft_counted"] == row["draft_formula"]
        assert row["draft_counted"] < row["verify_counted"]
    assert row["verify_counted"] == row["verify_formula"]
    shape, layers = pair.target.llama.shape, len(pair.target.llama.layers)
    slot = layers * 2 * shape.n_kv_heads * shape.head_dim * 4
    assert 87 * slot < row["plain_per_token"] < 125 * slot


def test_what_a_bench_sets_is_as_before(monkeypatch):
    from specnb.bench import running_as, stopping
    from specnb.models import settings

    def state():
        return settings.dtype(), torch.get_num_threads()

    seen, before = [], state()
    for module in (bench, stopping):
        monkeypatch.setattr(module, "_measured", lambda *given: seen.append(state()) or {})
        module.measure()
    assert seen == [("float32", 1), ("float32", before[1])] and state() == before
    with pytest.raises(RuntimeError), running_as("bfloat16", before[1] + 1):
        assert state() == ("bfloat16", before[1] + 1)
        raise RuntimeError
    assert state() == before


def test_sparq_looks_at_a_quarter_of_a_key():
    assert [bench._own(20, dim)[bench.SPARQ].select.rank for dim in (64, 8, 2)] == [16, 2, 1]


def test_a_wrong_count_is_caught(pair, monkeypatch):
    monkeypatch.setattr(sn.models.sparse.HeadsLayer, "count", lambda self, numbers: None)
    items = [bench.SimpleNamespace(prompt=list(range(3, 90)), image=None)]
    row = bench.traffic(pair, items, "SparQ", bench._own(20)[bench.SPARQ])
    assert row["draft_counted"] < row["draft_formula"]


def test_the_roofline_by_hand():
    """Llama-2-7B's cache is half a megabyte a token, and 124,928 of them 65.5 GB."""
    found = bench.computed()
    assert bench.LLAMA2_7B.slot_bytes == 524_288
    assert found["cache_gb"] == pytest.approx(65.5, abs=0.01)
    assert found["plain_ms"] == pytest.approx((65.499 + 13.476) / 2.039, abs=0.01)
    (row,) = (r for r in found["lines"] if (r["accepted"], r["inner"]) == (0.9, 0.0))
    block = found["plain_ms"] + 6 * found["middle_ms"]
    assert row["speed_up"] == pytest.approx((1 - 0.9**7) / 0.1 * found["plain_ms"] / block)
    text = bench.table({"n": 0, "cells": [], "traffic": [], "computed": found})
    before, after = text.split("Computed, not measured")
    assert "2.31" in after and "Times plain" in after and "plain" not in before


@pytest.mark.parametrize("task", LONG_TASKS)
def test_long_prompts(task):
    """As long as asked for, the same for the same seed, with a question that the scene answers."""

    def length(prompt, image):
        pictures = len(image) if isinstance(image, list) else 1
        return 9 * pictures + len(str(prompt)) // 4

    first, other = long_examples(task, 2, 3, 256, length)
    assert length(first.prompt, first.image) >= 256 and first.prompt != other.prompt
    assert long_examples(task, 1, 3, 256, length)[0].prompt == first.prompt
    assert long_examples(task, 1, 4, 256, length)[0].prompt != first.prompt
    assert is_right(first.last.answer, first.last) and not is_right(other.last.answer, first.last)
    assert first.last.prompt in str(first.prompt)
    with pytest.raises(ValueError, match="task='words': choose 'dialogue' or 'album'"):
        long_examples("words", 1, 0, 10, length)


def test_the_lesson_has_long_prompts_for_a_target_without_eyes(pair, tmp_path):
    prompts = tmp_path / "own.jsonl"
    prompts.write_text('{"prompt": "Once"}\n{"prompt": "' + "long " * 60 + '"}\n')
    cfg = LongContextConfig(prompts=str(prompts), positions=64)
    grown, given = lesson.long_items(cfg, pair)
    start = pair.target.encode("Once")[0]
    assert len(grown.prompt) >= 64 and grown.prompt[: len(start)] == start
    assert given.prompt.startswith("long long")
    with pytest.raises(ValueError, match="positions=2000: .* give at most 1984"):
        lesson.long_items(LongContextConfig(prompts=str(prompts), positions=2000), pair)


def test_the_lesson_needs_a_runtime_that_shows_heads(tmp_path):
    own = lesson.lending_pair(LongContextConfig(target=builders.llama(tmp_path / "a")))
    assert own.target.runtime == "lean runtime"
    with pytest.raises(ValueError, match="give a Llama-type or LLaVA-type target"):
        lesson.lending_pair(LongContextConfig(target=builders.gpt2(tmp_path / "b")))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("kind", "book", "choose one of dialogue, album"),
        ("select", "Chunk(4)", "did you mean Chunks"),
        ("select", "AdaEDL(0.4)", "give a selector"),
        ("budget", 8, "spends at least 12"),
        ("positions", 3, "positions=3"),
    ],
)
def test_parameters_of_the_lesson(name, value, said):
    with pytest.raises(ValueError, match=said):
        LongContextConfig(**{name: value})


def test_the_picture_of_the_attention():
    weights = torch.rand(2, 3, 5)
    figure = attention(weights, ["a", "b", "c", "d", "e"], [1, 2, 4])
    assert len(figure.data[0].z) == 6 and len(figure.layout.shapes) == 2
    assert figure.data[0].customdata[5][4][0] == "layer 1, head 2"
    with pytest.raises(ValueError, match="4 words, 5 slots"):
        attention(weights, ["a"] * 4)
