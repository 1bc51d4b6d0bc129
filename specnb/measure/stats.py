"""Figures of rows, and intervals by resampling prompts.

A prompt is drawn with all that was measured on it, its seeds and temperatures included: runs on
one prompt are not independent. An interval speaks of other prompts of the same kind, and where a
method was chosen before (on other prompts), it is conditional on that choice.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from math import sqrt
from typing import Any

import numpy as np

from specnb.measure.rows import DRAFT_COST, Row

DRAWS = 2000
PERCENT = (2.5, 97.5)
COUNTED = ("tokens", "calls", "drafted", "accepted", "examined", "forwards", "seconds")


def _figure(sums: np.ndarray, figure: str) -> Any:
    """A figure of sums [..., len(COUNTED)]."""
    part = {name: sums[..., i] for i, name in enumerate(COUNTED)}
    if figure == "block_efficiency":  # tokens per target call
        return part["tokens"] / part["calls"]
    if figure == "tokens_per_second":
        return part["tokens"] / part["seconds"]
    if figure == "tokens_per_step":  # per target call's time, were a draft DRAFT_COST of one
        return part["tokens"] / (part["calls"] + DRAFT_COST * part["forwards"])
    known = "block_efficiency, tokens_per_second, tokens_per_step"
    raise ValueError(f"figure={figure!r}: choose one of {known}")


def _counts(rows: Sequence[Row]) -> np.ndarray:
    return np.array([[getattr(row, name) for name in COUNTED] for row in rows], float)


def pooled(rows: Sequence[Row], figure: str) -> float:
    """A figure over runs: sums over sums."""
    return float(_figure(_counts(rows).sum(0), figure))


def best_of(rows: Mapping[str, Sequence[Row]], names: Iterable[str], figure: str) -> str:
    """The method with the largest pooled figure."""
    return max(names, key=lambda name: pooled(rows[name], figure))


def how_often(n: int, rng: np.random.Generator | None = None) -> np.ndarray:
    """How often each of n prompts is drawn, [DRAWS, n]: every time the same without an `rng`."""
    rng = np.random.default_rng(0) if rng is None else rng
    return rng.multinomial(n, np.full(n, 1 / n), DRAWS).astype(float)


def ends(values: np.ndarray) -> tuple[float, float]:
    """The ends of the 95 % interval of resampled values."""
    low, high = np.percentile(values, PERCENT)
    return float(low), float(high)


def by_prompt(groups: Sequence[Hashable], values: np.ndarray) -> np.ndarray:
    """Sums of values [rows, ...] over the rows of each group, in the order of their first."""
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    found = np.zeros((len(numbers), *values.shape[1:]))
    np.add.at(found, [numbers[group] for group in groups], values)
    return found


def interval(
    values: Sequence[float],
    weights: Sequence[float] | None = None,
    groups: Sequence[Hashable] | None = None,
) -> tuple[float, float]:
    """95 % interval of sum(values) / sum(weights), or of the mean; `groups` are the prompts."""
    given = np.asarray(values, float)
    weighed = np.ones_like(given) if weights is None else np.asarray(weights, float)
    groups = range(len(given)) if groups is None else groups
    sums = by_prompt(groups, np.stack([given, weighed], 1))
    drawn = how_often(len(sums)) @ sums
    return ends(drawn[:, 0] / np.maximum(drawn[:, 1], 1e-12))


def median_ratio(base: Sequence[float], mine: Sequence[float]) -> dict[str, float]:
    """Median over prompts of base / mine, with its 95 % interval; one value a prompt."""
    values = np.asarray(base, float) / np.asarray(mine, float)
    drawn = np.random.default_rng(0).integers(0, len(values), (DRAWS, len(values)))
    low, high = ends(np.median(values[drawn], axis=1))
    return {"ratio": float(np.median(values)), "low": low, "high": high}


def geometric_ratio(
    cells: Sequence[tuple[Sequence[Row], Sequence[Row]]], figure: str
) -> dict[str, float]:
    """Geometric mean over cells of pooled a / pooled b, with its 95 % interval.

    `cells` holds one (a, b) per task and temperature; rows of a and b pair up by prompt and seed.
    Cells on the same prompts share their draws: a prompt is drawn with all of its temperatures.
    Cells on other prompts are drawn by themselves.
    ValueError where a and b are not of the same prompts and seeds.
    """
    logs, spread = [], np.zeros(DRAWS)
    rng = np.random.default_rng(0)
    draws: dict[tuple[str, ...], np.ndarray] = {}
    for ours, theirs in cells:
        pairs = [[(row.prompt, row.seed) for row in rows] for rows in (ours, theirs)]
        if pairs[0] != pairs[1]:
            raise ValueError("cells: both sides need rows of the same prompts and seeds, in order")
        # Sorted, so that the same prompts are the same columns of the draws in every cell.
        order = sorted(range(len(ours)), key=lambda i: ours[i].prompt)
        groups = [ours[i].prompt for i in order]
        sums = [by_prompt(groups, _counts([rows[i] for i in order])) for rows in (ours, theirs)]
        prompts = tuple(dict.fromkeys(groups))
        if prompts not in draws:
            draws[prompts] = how_often(len(prompts), rng)
        often = draws[prompts]
        drawn, whole = (
            np.log(_figure(part[0], figure) / _figure(part[1], figure))
            for part in ([often @ one for one in sums], [one.sum(0) for one in sums])
        )
        logs.append(float(whole))
        spread += drawn
    low, high = ends(np.exp(spread / len(cells)))
    return {"ratio": float(np.exp(np.mean(logs))), "low": low, "high": high}


def wilson(successes: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share."""
    z, share = 1.96, successes / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)
