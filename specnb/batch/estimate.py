"""Figures with intervals from a table of measurements."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

DRAWS = 2000
SUMS = ["tokens", "target_calls", "seconds", "plain_seconds", "plain_tokens"]
PROMPT = ("param.prompts", "task", "seed", "prompt")  # what a prompt under a seed is known by


def estimates(table: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Block efficiency and speed-up per group, each with its 95 % interval; one line per group.

    Both are ratios of sums over the group's measurements: tokens / target calls, and plain
    decoding's time per token / the method's. Intervals come from 2,000 bootstrap draws of prompts
    (one under one seed, with all that was measured on it), `n` of them. ValueError where the table
    lacks a column.
    """
    import pandas as pd

    missing = [name for name in (*by, *SUMS) if name not in table]
    if missing:
        raise ValueError(f"by={list(by)}: the table has no column {missing[0]!r}")
    prompt = [name for name in PROMPT if name in table]
    lines = []
    for key, group in table.dropna(subset=["tokens"]).groupby(list(by), dropna=False):
        each = group.groupby(prompt, dropna=False)[SUMS].sum() if prompt else group[SUMS]
        sums, n = each.to_numpy(float), len(each)
        line = dict(zip(by, key, strict=True)) | {"n": n}
        often = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), DRAWS)
        for name, ratio in (("block_efficiency", _efficiency), ("speedup", _speedup)):
            low, high = np.percentile(ratio(often @ sums), [2.5, 97.5])
            value = float(ratio(sums.sum(0)[None])[0])
            line |= {name: value, f"{name}_low": float(low), f"{name}_high": float(high)}
        lines.append(line)
    return pd.DataFrame(lines)


def _efficiency(sums: np.ndarray) -> np.ndarray:
    return sums[:, 0] / sums[:, 1]


def _speedup(sums: np.ndarray) -> np.ndarray:
    return (sums[:, 3] / sums[:, 4]) / (sums[:, 2] / sums[:, 0])
