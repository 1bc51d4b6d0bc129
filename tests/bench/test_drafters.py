"""Shipped drafters: cards hold on a subsample, texts stay the target's, the table is computed."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from places import ROOT

import specnb as sn
from specnb.bench import cards, drafters
from specnb.scenes import examples

pytestmark = pytest.mark.weights
MODELS = ROOT / "data" / "models"
NAMES = [path.name for path in drafters.shipped()[1:]]
SUBSAMPLE = 10


@pytest.fixture(scope="module")
def stored() -> dict:
    return json.loads((ROOT / "data" / "results" / "drafters.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def target():
    return sn.load_model(str(MODELS / "target"), dtype="float32", device="cpu")


def loaded(target, name: str) -> sn.Pair:
    draft = sn.load_model(str(MODELS / name), dtype="float32", device="cpu")
    return sn.Pair(target, draft.beside(target))


def test_what_is_shipped():
    wanted = {"ce", "kl", "tv", "tvdpp", "lk", "inherited", "adapter"}
    assert {name.removeprefix("drafter-") for name in NAMES} == wanted
    for name in NAMES:
        size = sum(path.stat().st_size for path in (MODELS / name).iterdir())
        assert size < (1.5e6 if name == "drafter-adapter" else 1e6), name
    assert sum(path.stat().st_size for path in MODELS.rglob("*.safetensors")) < 45e6


@pytest.mark.parametrize("name", NAMES)
def test_each_loads_as_a_pair(name):
    pair = sn.load_pair(draft=str(MODELS / name))
    assert pair.draft.sees_images == (name == "drafter-adapter")
    assert pair.draft.certificate == "embedded"
    assert pair.draft.trimmed(64).kept


def overstated(claim: dict, emitted, calls) -> bool:
    """Whether a claimed block efficiency is above what the subsample gives by more than three
    standard errors of that subsample."""
    emitted, calls = np.asarray(emitted, float), np.asarray(calls, float)
    here = emitted.sum() / calls.sum()
    spread = np.std(emitted - here * calls, ddof=1) * math.sqrt(len(calls)) / calls.sum()
    return claim["value"] > here + 3 * max(spread, 0.02)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_cards_do_not_overstate(name, stored, target):
    pair = loaded(target, name)
    for cell in stored["figures"]["cells"]:
        if cell["drafter"] != name or cell["task"] == "science":
            continue
        sampling = sn.Sampling(drafters.TEMPERATURES[cell["sampling"]])
        emitted, calls = [], []
        for seed, item in enumerate(examples(cell["task"], SUBSAMPLE, 0)):
            run = sn.speculative(
                pair, item.prompt, item.image, sampling=sampling, seed=seed, max_new_tokens=110
            )
            emitted.append(len(run.token_ids))
            calls.append(len(run.blocks))
        assert not overstated(cell["tau"], emitted, calls), (cell, sum(emitted) / sum(calls))


def test_an_overstated_claim_is_caught():
    emitted, calls = [40, 44, 38, 42], [11, 12, 10, 11]
    assert not overstated({"value": 3.75}, emitted, calls)
    assert overstated({"value": 4.3}, emitted, calls)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["drafter-adapter", "drafter-tv"])
def test_greedy_texts_are_the_targets(name, target):
    """Sixty prompts."""
    pair = loaded(target, name)
    for task in ("caption", "conversation", "science"):
        for item in examples(task, 20, 0):
            plain = sn.autoregressive(target, item.prompt, item.image, max_new_tokens=40)
            run = sn.speculative(pair, item.prompt, item.image, max_new_tokens=40)
            assert run.token_ids == plain.token_ids


def test_cards_are_written_from_what_is_stored(stored):
    hashes = "\n".join(
        f"- {name}: `{value}`" for name, value in cards.sources(ROOT / "data").items()
    )
    for name in NAMES:
        card = (MODELS / name / "README.md").read_text(encoding="utf-8")
        assert card == cards.alignment_card(MODELS / name, stored, hashes)
        assert cards.sha256(MODELS / name / "model.safetensors") in card
        assert cards.alignment_table(stored["figures"], name) in card


def test_a_drafter_that_was_not_measured_has_no_card(stored, tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.json").write_text("{}")
    (tmp_path / "models" / "drafter-new").mkdir(parents=True)
    (tmp_path / "results" / "drafters.json").write_text(json.dumps(stored))
    with pytest.raises(ValueError, match="drafter-new: run"):
        cards.write_alignment_cards(tmp_path)


def row(prompt: str, tokens: int, calls: int, forwards: int = 0, **more) -> drafters.DraftRow:
    return drafters.DraftRow(
        prompt, 0, tokens, calls, forwards, tokens - calls, tokens, forwards, 1.0, **more
    )


def test_figures_are_those_of_the_rows():
    mine = [row("a", 12, 4, 20, seen=4, seen_right=1), row("b", 8, 4, 20, seen=0)]
    base = [row("a", 8, 4, 20), row("b", 8, 4, 20)]
    rows = {("caption", "greedy"): {"new": mine, "drafter": base}, ("caption", "T = 1"): {
        "new": mine, "drafter": base}}  # fmt: skip
    cells = drafters._cells(rows, {"new": 0.1, "drafter": 0.05})
    first = cells[0]
    assert first["tau"]["value"] == 20 / 8 and first["alpha"]["value"] == 12 / 20
    assert first["mbsu"]["value"] == pytest.approx(20 / (8 + 0.1 * 40))
    assert first["seen"]["value"] == 0.25 and first["seen"]["n"] == 4
    assert first["tau"]["low"] == 2 and first["tau"]["high"] == 3
    ratios = drafters._ratios(rows, {"new": 0.1, "drafter": 0.05}, "drafter", False)
    line = ratios["greedy"]["new"]
    assert line["tau"] == pytest.approx(20 / 16) and "speed" not in line
    assert line["mbsu"] == pytest.approx((20 / 12) / (16 / 10))
    assert ratios["greedy"]["drafter"]["tau"] == 1.0


@pytest.mark.slow
def test_the_bench_runs(monkeypatch, tmp_path):
    """On one prompt a task, timed: every column of the table is there."""
    monkeypatch.chdir(tmp_path)
    names = f"{MODELS / 'drafter'},{MODELS / 'drafter-adapter'}"
    figures = drafters.measure(draft=names, n=1, seconds=True)
    text = drafters.table(figures)
    assert "over plain decoding" in text and "drafter-adapter" in text
    assert len(figures["cells"]) == 12 and figures["c"]["drafter-adapter"] < 0.05
    assert all(cell["tau"]["value"] >= 1 for cell in figures["cells"])


@pytest.mark.slow
def test_the_whole_bench_runs_timed(monkeypatch, tmp_path):
    """The vocabulary and the lookup, too, on one prompt and one drafter."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(drafters, "shipped", lambda: [MODELS / "drafter"])
    monkeypatch.setattr(drafters, "VOCABULARIES", (64,))
    monkeypatch.setattr(drafters, "TASKS", ("science",))
    monkeypatch.setattr(drafters, "QUOTING", ("science",))
    figures = drafters.measure(n=1, seconds=True)
    for part in (figures, figures["vocabulary"], figures["lookup"]):
        assert all(line["over_plain"] > 0 for line in part["ratios"]["greedy"].values())
    assert list(figures["vocabulary"]["c"]) == ["all", "64"]
    assert drafters.table(figures).count("over plain decoding") == 3
    assert set(figures["vocabulary"]["tail"]["science"]) == {"64"}


def test_the_tail_is_what_a_cut_vocabulary_cannot_say(monkeypatch, target):
    monkeypatch.setattr(drafters, "TASKS", ("science",))
    item = examples("science", 1, 0)[0]
    said = sn.autoregressive(
        target, item.prompt, item.image, sampling=sn.Sampling(1.0), max_new_tokens=110, seed=0
    ).token_ids
    whole, part = sorted(set(said)), said[:3]
    shares = drafters.tails(target, {990: whole, 3: part}, 1)["science"]
    assert shares["990"] == 0.0
    assert shares["3"] == sum(token not in part for token in said) / len(said) > 0


def test_another_training_is_the_cards_command_with_another_seed(monkeypatch, tmp_path):
    from specnb.training import __main__ as training

    asked = []

    def main(words):
        work, out = (tmp_path / words[words.index(name) + 1] for name in ("--work", "--out"))
        asked.append((words, (work / "answers").is_dir()))
        for folder in (work / "answers", work / "held_out", out):
            folder.mkdir(parents=True, exist_ok=True)
        (out / "acceptance_head.safetensors").touch()

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(training, "main", main)
    monkeypatch.setattr(drafters, "shipped", lambda: [MODELS / n for n in ("drafter", *NAMES[:2])])
    assert drafters.trainings(1) == {}
    found = drafters.trainings(3)
    assert list(found) == NAMES[:2] and [len(places) for places in found.values()] == [2, 2]
    assert [there for _, there in asked] == [False, True, True, True]  # answers of the first
    command = json.loads((MODELS / NAMES[0] / "alignment.json").read_text())["command"]
    assert asked[1][0][: len(command.split()[3:]) + 2] == [*command.split()[3:], "--seed", "2"]
    assert drafters.trainings(3) == found and len(asked) == 4  # what is there is not made again
    with pytest.raises(ValueError, match="leave --draft out"):
        drafters.measure(draft="somewhere", seeds=3)


@pytest.mark.slow
def test_several_trainings_of_a_recipe_are_pooled_by_prompt(monkeypatch, tmp_path, target):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(drafters, "TASKS", ("science",))
    pair, other = loaded(target, "drafter"), loaded(target, "drafter-ce")
    chain = sn.Chain(drafters.DRAFT_LENGTH)
    runs = {"drafter": (pair, chain), "drafter-ce": (other, chain)}
    rows = drafters.rows_of(runs, ("science",), 2, None)
    more = {"drafter-ce": [MODELS / "drafter-tv"]}
    figures = drafters._by_recipe(pair, more, chain, 2, rows)
    line = figures["ratios"]["T = 1"]["drafter-ce"]
    low, high = sorted(line["trainings"])
    assert figures["seeds"] == len(line["trainings"]) == 2 and low < line["ratio"] < high
    assert "| drafter-ce | T = 1 |" in "\n".join(drafters._training_table(figures))
