"""Rivals differ in the one thing that is asked about, and ratios pair up by prompt and seed."""

from __future__ import annotations

import json
import shlex

import pytest

from specnb.bench import drafters, rivals
from specnb.models.load import EMBEDDED


@pytest.mark.parametrize(
    "name, missing", [("drafter-inherited", "--inherit"), ("drafter-adapter", "--sees")]
)
def test_a_rival_learns_by_the_same_command_without_one_thing(name, missing, monkeypatch, tmp_path):
    asked = []

    def trained(words):
        asked.append(list(words))
        work = words[words.index("--work") + 1]
        for part in ("answers", "held_out"):
            (drafters.Path(work) / part).mkdir(parents=True, exist_ok=True)

    monkeypatch.setattr("specnb.training.__main__.main", trained)
    monkeypatch.setattr(drafters, "KEPT", tmp_path)
    places = [rivals._place(name, side, 1) for side in ("shipped", "rival")]
    assert places[0] != places[1] and rivals._place(name, "shipped", 0) == EMBEDDED / name
    shipped, rival = ([w for w in words if str(tmp_path) not in w] for words in asked)
    card = json.loads((EMBEDDED / name / "alignment.json").read_text())["command"]
    assert shipped[: len(shlex.split(card)) - 3] == shlex.split(card)[3:]
    assert missing in shipped and missing not in rival
    left = {*shipped} - {*rival}
    assert left <= {*rivals.RIVALS[name].without, "1", "2", "128", "352"}
    kept = shipped.copy()
    for option, values in rivals.RIVALS[name].without.items():
        at = kept.index(option)
        del kept[at : at + 1 + values]
    assert kept == rival


def row(prompt: str, seed: int, tokens: int, calls: int, **more) -> drafters.DraftRow:
    return drafters.DraftRow(
        prompt, seed, tokens, calls, 5 * calls, tokens - calls, tokens, 5 * calls, 1.0, **more
    )


def test_all_trainings_of_a_prompt_are_pooled():
    name = "drafter-adapter"

    def side(tokens):
        return [row("a", 0, tokens, 10, seen=4, seen_right=2), row("b", 1, tokens, 10)]

    cells = [
        {f"{name}/shipped/0": side(40), f"{name}/shipped/1": side(44),
         f"{name}/rival/0": side(30), f"{name}/rival/1": side(40)}
    ]  # fmt: skip
    costs = {(name, "shipped"): 0.1, (name, "rival"): 0.05}
    found = rivals._compared(name, "greedy", cells, costs, 2)
    assert found["tau"]["ratio"] == pytest.approx(84 / 70)
    assert found["trainings"] == pytest.approx([40 / 30, 1.1])
    assert found["mbsu"]["ratio"] == pytest.approx(84 / 70 * (1 + 0.05 * 5) / (1 + 0.1 * 5))
    assert found["shipped"]["seen"]["value"] == 0.5
    text = rivals.table({"n": 1, "seeds": 2, "rows": [found]})
    assert "blind, equal blocks and steps | greedy | 1.200" in text
    assert "| blind, equal blocks and steps | greedy | 3.50" in text
    assert "1.200" in text and "1.333, 1.100" in text
