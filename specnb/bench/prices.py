"""What a wrong or a lossy rule changes, and how far lossless ones are from the best possible.

(a) On random toys every rule is enumerated: the distance of its output from the target's, beside
the tokens that a call gives. Two of the rules are mistakes that engines have shipped. (b) At places
of real runs, cut to a few tokens: how likely one of k drafts is kept, by every way of drafting and
judging there, beside the bound that no lossless rule passes.

Nothing here depends on the machine.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Mapping, Set
from dataclasses import replace
from typing import Any
from unittest import mock

from torch import Tensor
from tqdm.auto import tqdm

import specnb as sn
from specnb import exact, joint, lossy
from specnb.drafters import Drafter
from specnb.measure import interval
from specnb.models import TableModel
from specnb.outcome import Outcome
from specnb.sampling import Draws, residual
from specnb.scenes import TASKS, examples
from specnb.tree import DraftTree

ABOUT = (
    "Distances are total variation of two tokens, enumerated; what is exact is 0 but for rounding. "
    "Gains of tokens per call are of the same pairs of random distributions. Places of real runs "
    "are cut to their most probable tokens, so that all can be enumerated: they say how the ways "
    "compare, not what a whole run keeps."
)
PAIRS, VOCABULARY, LENGTH = 200, 3, 2
PROMPTS = 8  # per task, of (b)
PLACES, TOKENS, DRAFTS = 3, 5, (1, 2, 3)  # per prompt; kept of a law; k
PLAIN = sn.Sampling(1.0)


def with_token_residual(
    tree: DraftTree,
    root_probs: Tensor,
    node_probs: Tensor,
    draws: Draws,
    eos_ids: Set[int] = frozenset(),
) -> Outcome:
    """The block rule, wrong: its correction is drawn from the token rule's residual."""
    found = joint.block_verification(tree, root_probs, node_probs, draws, eos_ids)
    if found.final != "correction":
        return found
    place = len(found.path)
    rest = residual((root_probs, *node_probs)[place], tree.probs[place])
    return replace(found, token=draws.categorical(rest), final_probs=rest)


def without_look_ahead(*judged: Any) -> Outcome:
    """The block rule, wrong: a prefix is tested with its weight, without what hangs on it."""
    with mock.patch.object(joint, "_tests", lambda tree, probs, weights: weights[1:]):
        return joint.block_verification(*judged)


LOSSLESS: dict[str, Drafter] = {
    "token rule": sn.Chain(LENGTH),
    "block rule": sn.Chain(LENGTH, verify="block"),
}
WRONG: dict[str, Drafter] = {
    "block rule with the token rule's residual": sn.Chain(LENGTH, verify=with_token_residual),
    "block rule without the look-ahead": sn.Chain(LENGTH, verify=without_look_ahead),
}
LOSSY: dict[str, Drafter] = {
    "typical acceptance": sn.Chain(LENGTH, verify=lossy.Typical(0.3, 0.3)),
    "30 % of the drafter mixed in": sn.Chain(LENGTH, verify=lossy.Ensemble(0.3)),
    "a drawn token below 0.3 is dropped": lossy.DropsUnsure(LENGTH, 0.3),
    "greedy drafts, declared as drawn": lossy.GreedyAsDrawn(LENGTH),
}


def measure(target: str = "", draft: str = "", n: int = 0) -> dict[str, Any]:
    """All figures, on `n` pairs of random distributions (200), and on n / 25 prompts per task."""
    pairs = n or PAIRS
    rules = _rules(pairs)
    pair = sn.load_pair(target, draft)
    ways = _ways(pair, max(1, PROMPTS * pairs // PAIRS))
    lossless = max(rules[name]["worst"] for name in LOSSLESS)
    others = min(rules[name]["worst"] for name in (*WRONG, *LOSSY))
    passed = lossless < 1e-12 and others > 1e-3 and rules["block rule"]["least_gain"] > -1e-12
    return {"pairs": pairs, "rules": rules, "ways": ways, "passed": passed}


# ------------------------------------------------------------------------------------- (a)


def _rules(pairs: int) -> dict[str, dict[str, float]]:
    """Distance and tokens per call of every rule, over random pairs of distributions."""
    every = {**LOSSLESS, **WRONG, **LOSSY}
    found: dict[str, list[exact.Distortion]] = {name: [] for name in every}
    for number in tqdm(range(pairs), desc="rules", leave=False):
        target, draft = (TableModel.random(VOCABULARY, seed=2 * number + i) for i in (0, 1))
        for name, drafter in every.items():
            found[name].append(exact.distortion(target, draft, drafter, PLAIN))
    base = [one.tokens_per_call for one in found["token rule"]]
    rows = {}
    for name, all_of in found.items():
        tokens = [one.tokens_per_call for one in all_of]
        rows[name] = {
            "distance": statistics.fmean(one.distance for one in all_of),
            "worst": max(one.distance for one in all_of),
            "tokens_per_call": statistics.fmean(tokens),
            "least_gain": min(mine - other for mine, other in zip(tokens, base, strict=True)),
        }
    return rows


# ------------------------------------------------------------------------------------- (b)


def _ways(pair: sn.Pair, n: int) -> dict[str, Any]:
    """The share of places, kept by every way, for each k, with an interval over prompts."""
    shares: dict[tuple[str, int], list[float]] = {}
    asked: list[tuple[str, int]] = []
    rng = random.Random(0)
    for task in TASKS:
        for number, item in enumerate(tqdm(examples(task, n, 8), desc=task, leave=False)):
            image = item.image if pair.target.sees_images else None
            request = sn.Request(item.prompt, image, PLAIN, seed=number)
            run = sn.Decoding(pair, request, sn.Chain(5))
            while run.finish is None:
                run.step()
            places = [
                (block.target_probs[i], block.tree.probs[i])
                for block in run.blocks
                for i in range(len(block.tree))
            ]
            for laws in rng.sample(places, min(PLACES, len(places))):
                target_cut, draft_cut, _ = exact.cut(*laws, TOKENS)
                asked.append((task, number))
                for k in DRAFTS:
                    for way, kept in exact.acceptance_by_way(target_cut, draft_cut, k).items():
                        shares.setdefault((way, k), []).append(kept)
    cells: dict[str, dict[str, dict[str, float]]] = {}
    for (way, k), kept in shares.items():
        low, high = interval(kept, [1.0] * len(kept), asked)
        cells.setdefault(way, {})[str(k)] = {
            "value": statistics.fmean(kept),
            "low": low,
            "high": high,
        }
    return {"places": len(asked), "prompts": len(set(asked)), "cells": cells}


# ----------------------------------------------------------------------------------- table


def table(figures: Mapping[str, Any]) -> str:
    """The figures as Markdown."""
    base = figures["rules"]["token rule"]["tokens_per_call"]
    lines = [
        f"**(a) Rules.** {figures['pairs']} pairs of random distributions over {VOCABULARY} "
        f"tokens, chains of {LENGTH}, T = 1.",
        "",
        "| rule | distance, mean | largest | tokens per call | over the token rule |",
        "|---|---|---|---|---|",
    ]
    for kind, names in (("", LOSSLESS), ("wrong: ", WRONG), ("lossy: ", LOSSY)):
        for name in names:
            row = figures["rules"][name]
            lines.append(
                f"| {kind}{name} | {_small(row['distance'])} | {_small(row['worst'])} "
                f"| {row['tokens_per_call']:.3f} | {row['tokens_per_call'] / base:.3f} |"
            )
    least = figures["rules"]["block rule"]["least_gain"]
    ways = figures["ways"]
    lines += [
        "",
        f"The block rule gives more tokens per call in every pair, {least:.4f} at the least."
        if least > 0
        else f"The block rule's least gain in any pair is {least:.1e} tokens per call.",
        "",
        f"**(b) The best possible.** {ways['places']} places of runs on {ways['prompts']} prompts, "
        f"cut to {TOKENS} tokens: how likely one of k drafts is kept there.",
        "",
        f"| way | {' | '.join(f'k = {k}' for k in DRAFTS)} |",
        "|---" * (1 + len(DRAFTS)) + "|",
    ]
    for way, cells in ways["cells"].items():
        said = (
            f"{one['value']:.3f} ({one['low']:.3f}-{one['high']:.3f})" for one in cells.values()
        )
        lines.append(f"| {way} | {' | '.join(said)} |")
    return "\n".join(lines)


def _small(distance: float) -> str:
    return f"{distance:.0e}" if distance < 1e-6 else f"{distance:.3f}"
