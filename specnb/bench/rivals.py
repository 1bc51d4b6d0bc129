"""What are an inherited start, and eyes, worth to a drafter? Each beside a rival without them.

The rival has the same size and learns for the same steps, with the same recipe, from the same
answers: from random weights in place of the target's first block, or with the same two blocks and
no picture. Both sides are trained with the same seeds, so many as `--seeds` says; the ratio pools
all trainings by prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import specnb as sn
from specnb.bench import KEPT, runs_as
from specnb.bench.drafters import (
    DRAFT_LENGTH,
    TEMPERATURES,
    WORDS,
    DraftRow,
    plain_rows,
    ratio_of,
    rows_of,
    share,
    trained,
)
from specnb.measure import Row, RowCache, costed, geometric_ratio
from specnb.models.load import EMBEDDED
from specnb.scenes import TASKS

ABOUT = (
    "Both sides have the same size, recipe, steps, answers and seeds of training, and may draft "
    "equally far. Block efficiency over the rival's, and MBSU, geometric means over the tasks; "
    "95 % over prompts, with all trainings of a prompt pooled."
)


class Rival(NamedTuple):
    """What a shipped drafter is compared with: its own command without some of its options."""

    words: str
    without: Mapping[str, int]  # an option, and how many values follow it


RIVALS = {
    "drafter-inherited": Rival(
        "random weights, equal steps",
        {"--inherit": 1, "--width": 1, "--heads": 1, "--intermediate": 1},
    ),
    "drafter-adapter": Rival("blind, equal blocks and steps", {"--sees": 0}),
}


def measure(target: str = "", draft: str = "", n: int = 0, seeds: int = 1) -> dict[str, Any]:
    """All figures, on `n` evaluation prompts per task (20)."""
    if target or draft:
        raise ValueError("--target, --draft: the rivals are those of the shipped drafters")
    n = n or 20
    places = {
        (name, side): [_place(name, side, seed) for seed in range(seeds)]
        for name in RIVALS
        for side in ("shipped", "rival")
    }
    goal = sn.load_pair().target  # loaded once: all of them verify with the same weights
    runs = {
        (*key, seed): (sn.Pair(goal, sn.load_pair("", str(place)).draft), sn.Chain(DRAFT_LENGTH))
        for key, found in places.items()
        for seed, place in enumerate(found)
    }
    kept = RowCache(KEPT / "drafters.jsonl", DraftRow)
    rows = rows_of({"/".join(map(str, key)): run for key, run in runs.items()}, TASKS, n, kept)
    costs = {key[:2]: ratio_of(pair) for key, (pair, _) in runs.items()}
    cells = {label: [rows[task, label] for task in TASKS] for label in TEMPERATURES}
    found = [
        _compared(name, label, cells[label], costs, seeds)
        for name in RIVALS
        for label in TEMPERATURES
    ]
    return {"n": n, "seeds": seeds, "runs_as": runs_as(goal), "rows": found}


def _place(name: str, side: str, seed: int) -> Path:
    """The folder of a training; made where it is missing."""
    if side == "shipped":
        return trained(EMBEDDED / name, seed) if seed else EMBEDDED / name
    return trained(EMBEDDED / name, seed, RIVALS[name].without)


def _compared(
    name: str,
    label: str,
    cells: Sequence[Mapping[str, Sequence[DraftRow]]],
    costs: Mapping[tuple[str, str], float],
    seeds: int,
) -> dict[str, Any]:
    """A shipped drafter over its rival, and what both keep of each class of words."""

    def of(cell, side: str, which: Sequence[int]) -> list[DraftRow]:
        return [row for seed in which for row in cell[f"{name}/{side}/{seed}"]]

    def ratio(which: Sequence[int], at_cost: bool = False) -> dict[str, float]:
        def rows(cell, side: str) -> list[Row]:
            found = plain_rows(of(cell, side, which))
            return costed(found, costs[name, side]) if at_cost else found

        sides = [(rows(cell, "shipped"), rows(cell, "rival")) for cell in cells]
        return geometric_ratio(sides, "tokens_per_second" if at_cost else "block_efficiency")

    every = range(seeds)
    found: dict[str, Any] = {"drafter": name, "against": RIVALS[name].words, "sampling": label}
    found |= {"tau": ratio(every), "mbsu": ratio(every, at_cost=True)}
    found["trainings"] = [ratio([seed])["ratio"] for seed in every]
    for side in ("shipped", "rival"):
        all_rows = [row for cell in cells for row in of(cell, side, every)]
        found[side] = {
            "tau": share(all_rows, "tokens", "calls"),
            **{word: share(all_rows, f"{word}_right", word) for word in WORDS},
        }
    return found


def table(figures: dict) -> str:
    """The figures as Markdown."""

    def text(one: Mapping[str, float], key: str = "ratio", digits: int = 3) -> str:
        ends = f"{one['low']:.{digits}f}-{one['high']:.{digits}f}"
        return f"{one[key]:.{digits}f} ({ends})"

    lines = [
        f"{figures['n']} evaluation prompts per task, {figures['seeds']} trainings of either side, "
        f"draft length {DRAFT_LENGTH}.",
        "",
        "| drafter | rival | sampling | block efficiency: ratio | by training | MBSU: ratio |",
        "|---|---|---|---|---|---|",
    ]
    for row in figures["rows"]:
        alone = ", ".join(f"{value:.3f}" for value in row["trainings"])
        lines.append(
            f"| {row['drafter']} | {row['against']} | {row['sampling']} | {text(row['tau'])} "
            f"| {alone} | {text(row['mbsu'])} |"
        )
    lines += [
        "",
        "Block efficiency over all tasks, and the share accepted of what was examined, by the word "
        "that stood there in the end.",
        "",
        f"| drafter | sampling | block efficiency | {' | '.join(WORDS)} |",
        "|---|---|---|" + "---|" * len(WORDS),
    ]
    for row in figures["rows"]:
        for side, name in (("shipped", row["drafter"]), ("rival", row["against"])):
            values = " | ".join(text(row[side][word], "value") for word in WORDS)
            tau = text(row[side]["tau"], "value", 2)
            lines.append(f"| {name} | {row['sampling']} | {tau} | {values} |")
    return "\n".join(lines)
