"""Figures with intervals from a table of measurements."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from specnb.measure.stats import by_prompt, ends, how_often
from specnb.scenes.words import WORDS

if TYPE_CHECKING:
    import pandas as pd

SUMS = ["tokens", "target_calls", "seconds", "plain_seconds", "plain_tokens"]
LENGTHS = "accepted_lengths"
BY_WORD = "kept_by_word"
SAID = re.compile(r"(\w+) (\d+)/(\d+)")  # "function 9/10, seen 1/4"
FILE = "param.prompts"


def estimates(table: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Block efficiency and speed-up per group, each with its 95 % interval; one line per group.

    Both are ratios of sums over the group's measurements: tokens / target calls, and plain
    decoding's time per token / the method's. Intervals come from 2,000 bootstrap draws of prompts,
    `n` of them, each with all that was measured on it: every temperature, and every seed of a
    prompt from a file (the built-in tasks make other prompts of another seed). ValueError where the
    table lacks a column.
    """
    import pandas as pd

    missing = [name for name in (*by, *SUMS) if name not in table]
    if missing:
        raise ValueError(f"by={list(by)}: the table has no column {missing[0]!r}")
    lines = []
    for key, group in table.dropna(subset=["tokens"]).groupby(list(by), dropna=False):
        sums = by_prompt(_prompts(group), group[SUMS].to_numpy(float))
        line = dict(zip(by, key, strict=True)) | {"n": len(sums)}
        often = how_often(len(sums))
        for name, ratio in (("block_efficiency", _efficiency), ("speedup", _speedup)):
            low, high = ends(ratio(often @ sums))
            value = float(ratio(sums.sum(0)[None])[0])
            line |= {name: value, f"{name}_low": low, f"{name}_high": high}
        lines.append(line)
    return pd.DataFrame(lines)


def positions(table: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Acceptance by position in the draft per group; one line per group and position, from 1.

    `joint`: calls that keep at least that many drafts / calls with drafts; `conditional`: the same
    / those that keep one less. Each with its 95 % interval, as of `estimates`. Both fall where
    drafts end early, by a rule or at the text's end. Lines without `accepted_lengths` are left out;
    ValueError where no line has any.
    """
    import pandas as pd

    if LENGTHS not in table or table[LENGTHS].isna().all():
        raise ValueError(f"table: no line has {LENGTHS!r}; run the sweep again to have it counted")
    lines = []
    for key, group in table.dropna(subset=[LENGTHS]).groupby(list(by), dropna=False):
        counted = [[int(float(n)) for n in str(text).split()] for text in group[LENGTHS]]
        most = max(map(len, counted))
        kept = np.array([counts + [0] * (most - len(counts)) for counts in counted], float)
        at_least = kept[:, ::-1].cumsum(1)[:, ::-1]  # [lines, how many are kept]
        sums = by_prompt(_prompts(group), at_least)
        drawn, whole = how_often(len(sums)) @ sums, sums.sum(0)
        for place in range(1, most):
            line = dict(zip(by, key, strict=True)) | {"position": place, "n": len(sums)}
            for name, before in (("joint", 0), ("conditional", place - 1)):
                # A draw of prompts may hold none that came so far.
                low, high = ends(drawn[:, place] / np.maximum(drawn[:, before], 1e-12))
                value = float(whole[place] / whole[before])
                line |= {name: value, f"{name}_low": low, f"{name}_high": high}
            lines.append(line)
    return pd.DataFrame(lines)


def by_word(table: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Acceptance by class of word (`specnb.scenes.words`); one line per group and class.

    `share`: of the `examined` places where a draft was looked at and the text has a word of that
    class, those where one was kept, with its 95 % interval, as of `estimates`; a class that a group
    never met has no line. Lines of the table without `kept_by_word` are left out; ValueError where
    none has any.
    """
    import pandas as pd

    if BY_WORD not in table or not table[BY_WORD].fillna("").astype(bool).any():
        raise ValueError(f"table: no line has {BY_WORD!r}; run a sweep on the built-in tasks")
    known = table[table[BY_WORD].fillna("").astype(bool)]
    lines = []
    for key, group in known.groupby(list(by), dropna=False):
        counted = [
            {word: (int(kept), int(n)) for word, kept, n in SAID.findall(text)}
            for text in group[BY_WORD]
        ]
        for word in WORDS:
            pairs = np.array([found.get(word, (0, 0)) for found in counted], float)
            sums = by_prompt(_prompts(group), pairs)
            kept, examined = sums.sum(0)
            if not examined:
                continue
            drawn = how_often(len(sums)) @ sums
            low, high = ends(drawn[:, 0] / np.maximum(drawn[:, 1], 1e-12))
            line = dict(zip(by, key, strict=True)) | {"word": word, "n": len(sums)}
            line |= {"examined": int(examined), "share": kept / examined}
            lines.append(line | {"share_low": low, "share_high": high})
    return pd.DataFrame(lines)


def _prompts(group: pd.DataFrame) -> list[tuple]:
    """What the prompt of each line is known by.

    The built-in tasks make their prompts by the seed; a file has the same ones for every seed.
    """
    columns = ("task", "seed", "prompt")
    lines = group.reindex(columns=[FILE, *columns]).astype(object)
    lines = lines.where(lines.notna(), None)
    if not lines["prompt"].notna().any():
        return [(number,) for number in range(len(group))]
    return [
        (file, task, None if file else seed, prompt)
        for file, task, seed, prompt in lines.itertuples(index=False)
    ]


def _efficiency(sums: np.ndarray) -> np.ndarray:
    return sums[:, 0] / sums[:, 1]


def _speedup(sums: np.ndarray) -> np.ndarray:
    return (sums[:, 3] / sums[:, 4]) / (sums[:, 2] / sums[:, 0])
