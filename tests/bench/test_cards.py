"""The cards say what is true: figures are recomputed on a subsample, hashes on the files."""

import copy
import json
import math

import pytest
from places import ROOT

import specnb as sn
from specnb.bench import cards, quality
from specnb.scenes import examples, is_right, score

pytestmark = pytest.mark.weights
DATA = ROOT / "data"
N = 40


@pytest.fixture(scope="module")
def figures() -> dict:
    return cards.load_figures(DATA / "models" / "quality.json")


@pytest.fixture(scope="module")
def pair():
    return sn.load_pair(dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def measured(pair) -> dict:
    """The subsample: (right, stated) per caption attribute, and per answered task."""
    captions = examples("caption", N, quality.UNSEEN_SEED)
    texts = quality.answers(pair.target, captions)
    table: dict = {}
    for text, item in zip(texts, captions, strict=True):
        for name, row in score(text, item.scene).items():
            right, stated = table.get(name, (0, 0))
            table[name] = right + row["right"], stated + row["stated"]
    for task in ("conversation", "science"):
        items = examples(task, N, quality.UNSEEN_SEED)
        answers = quality.answers(pair.target, items)
        right = sum(is_right(text, item) for text, item in zip(answers, items, strict=True))
        table[task] = right, N
    return table


def overstated(claimed: float, right: int, n: int) -> bool:
    """Whether a claim is above what was measured by more than three standard errors."""
    spread = math.sqrt(max(claimed * (1 - claimed), 0.25 / n) / n)
    return claimed > right / n + 3 * spread


def claims(figures: dict) -> dict[str, float]:
    seen = figures["target"]
    return {**seen["caption"], **{t: seen[t]["right"] for t in ("conversation", "science")}}


@pytest.mark.slow
def test_the_target_card_does_not_overstate(figures, measured):
    for name, claimed in claims(figures).items():
        right, n = measured[name]
        assert not overstated(claimed, right, n), f"{name}: card {claimed:.3f}, here {right}/{n}"


def test_an_overstated_claim_is_caught(measured):
    right, n = measured["place"]
    assert overstated(1.0, round(0.8 * n), n)
    assert not overstated(right / n, right, n)


@pytest.mark.slow
def test_the_drafter_card_does_not_overstate(figures, pair):
    for task in ("caption", "conversation"):
        emitted, calls = [], []
        for item in examples(task, 20, 0):
            run = sn.speculative(pair, item.prompt, item.image, max_new_tokens=110)
            emitted.append(len(run.token_ids))
            calls.append(len(run.blocks))
        here = sum(emitted) / sum(calls)
        low, high = quality.interval(emitted, calls)
        claimed = figures["drafter"][task]["greedy"]["block_efficiency"]
        assert claimed <= here + 1.5 * (high - low), (task, claimed, here)


def test_cards_are_written_from_the_figures(figures, tmp_path):
    target, drafter = (
        (DATA / "models" / name / "README.md").read_text() for name in ("target", "drafter")
    )
    assert cards.target_table(figures) in target and cards.control_table(figures) in target
    assert cards.drafter_table(figures) in drafter
    better = copy.deepcopy(figures)
    better["target"]["caption"]["place"] = 0.123
    assert cards.target_table(better) not in target


def test_hashes_on_the_cards_are_those_of_the_files():
    for name in ("target", "drafter"):
        card = (DATA / "models" / name / "README.md").read_text()
        assert cards.sha256(DATA / "models" / name / "model.safetensors") in card
        for value in cards.sources(DATA).values():
            assert value in card, "scenes or tokenizer changed since the training"


def test_the_evaluation_sets_are_what_the_seeds_give():
    for task in ("caption", "conversation", "science"):
        lines = (DATA / "eval" / f"{task}.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        items = examples(task, 200, 0)
        assert [(row["prompt"], row["answer"]) for row in rows] == [
            (item.prompt, item.answer) for item in items
        ]


def test_sizes():
    assert (DATA / "models" / "target" / "model.safetensors").stat().st_size < 40e6
    assert (DATA / "models" / "drafter" / "model.safetensors").stat().st_size < 2e6
    assert sum(path.stat().st_size for path in DATA.rglob("*") if path.is_file()) < 60e6
