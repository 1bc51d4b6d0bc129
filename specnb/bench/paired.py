"""Methods side by side: interleaved per prompt, resumable, paired ratios with intervals."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm.auto import tqdm

import specnb as sn
from specnb.drafters import Drafter
from specnb.models import machine

KEPT = Path("runs/bench")


DEAR = 1 / 7  # of a target call: what a draft costs a 7B target whose drafter has 1B


class Row(NamedTuple):
    """One run in figures."""

    tokens: int
    calls: int
    drafted: int
    accepted: int
    examined: int
    forwards: int  # of the drafter
    seconds: float  # without prefill

    @property
    def block_efficiency(self) -> float:
        return self.tokens / self.calls

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds

    @property
    def tokens_per_step(self) -> float:
        """Tokens in the time of one target call, if a draft forward cost `DEAR` of it."""
        return self.tokens / (self.calls + DEAR * self.forwards)


def row_of(record: sn.Record) -> Row:
    """The figures of a run."""
    blocks = record.blocks
    return Row(
        tokens=len(record.token_ids),
        calls=len(blocks),
        drafted=sum(block.n_drafted for block in blocks),
        accepted=sum(block.n_accepted for block in blocks),
        examined=sum(row.verdict in ("accepted", "rejected") for row in record.tokens),
        forwards=sum(block.draft_forwards for block in blocks),
        seconds=sum(block.draft_s + block.verify_s for block in blocks),
    )


def fastest_pair(target: str, draft: str) -> tuple[sn.Pair, machine.Choice]:
    """The pair as it is fastest on this machine, and this process set to it."""
    choice = machine.choice(fresh=True)
    torch.set_num_threads(choice.threads)
    machine.set_dtype(choice.dtype)
    return sn.load_pair(target, draft), choice


def fingerprint(pair: sn.Pair) -> str:
    """Of the weights of a pair and of the code that runs them."""
    digest = hashlib.sha256()
    for model in (pair.target, pair.draft):
        for file in sorted(Path(model.path).glob("*.safetensors")):
            digest.update(file.read_bytes())
    package = Path(sn.__file__).parent
    for file in sorted([*package.glob("*.py"), *package.glob("models/*.py")]):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


class Kept:
    """Rows of runs in a file, so that a measurement that was stopped goes on.

    The file belongs to the weights of a pair and to the source of the package: after a change of
    either it is another one.
    """

    def __init__(self, subject: str, pair: sn.Pair):
        self.path = KEPT / f"{subject}-{fingerprint(pair)}.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.rows: dict[str, Row] = {}
        if self.path.exists():
            for line in self.path.read_text().splitlines():
                data = json.loads(line)
                self.rows[data["key"]] = Row(*data["row"])

    def add(self, key: str, row: Row) -> None:
        self.rows[key] = row
        with self.path.open("a") as file:
            file.write(json.dumps({"key": key, "row": row}) + "\n")


def side_by_side(
    kept: Kept,
    pair: sn.Pair,
    prompts: Sequence,
    methods: Mapping[str, Drafter],
    sampling: sn.Sampling,
    label: str,
    draft_sampling: sn.Sampling | None = None,
    max_new_tokens: int = 64,
) -> dict[str, list[Row]]:
    """Every method on every prompt, one after another per prompt; the order goes round.

    `prompts` are items with `prompt` and `image`. Gives rows by method, in the prompts' order.
    """
    found: dict[str, list[Row]] = {name: [] for name in methods}
    names = list(methods)
    for index, item in enumerate(tqdm(prompts, desc=label, leave=False, mininterval=5)):
        for name in names[index % len(names) :] + names[: index % len(names)]:
            key = f"{label} {name} {index}"
            if key not in kept.rows:
                run = sn.speculative(
                    pair,
                    item.prompt,
                    item.image if pair.target.sees_images else None,
                    drafter=methods[name],
                    sampling=sampling,
                    draft_sampling=draft_sampling,
                    max_new_tokens=max_new_tokens,
                    seed=index,
                )
                kept.add(key, row_of(run))
            found[name].append(kept.rows[key])
    return found


def pooled(rows: Sequence[Row], figure: str) -> float:
    """A figure over runs: sums over sums."""
    total = Row(*(sum(column) for column in zip(*rows, strict=True)))
    return getattr(total, figure)


def best_of(rows: Mapping[str, Sequence[Row]], names: Iterable[str], figure: str) -> str:
    """The method with the largest pooled figure."""
    return max(names, key=lambda name: pooled(rows[name], figure))


def geometric_ratio(
    pairs: Sequence[tuple[Sequence[Row], Sequence[Row]]], figure: str, draws: int = 2000
) -> dict[str, float]:
    """Geometric mean over cells of pooled a / pooled b, bootstrapped over prompts in pairs.

    `pairs` holds one (a, b) per task and temperature, prompt by prompt. `low` and `high` are the
    ends of the 95 % interval.
    """
    rng = np.random.default_rng(0)
    logs, spread = [], np.zeros(draws)
    for a, b in pairs:
        a, b = np.asarray(a, float), np.asarray(b, float)
        chosen = rng.integers(0, len(a), (draws, len(a)))

        def log_ratio(index, a=a, b=b):
            sums = (Row(*np.moveaxis(rows[index].sum(-2), -1, 0)) for rows in (a, b))
            ours, theirs = (getattr(row, figure) for row in sums)
            return np.log(ours / theirs)

        logs.append(float(log_ratio(np.arange(len(a)))))
        spread += log_ratio(chosen)
    low, high = np.exp(np.percentile(spread / len(pairs), [2.5, 97.5]))
    return {"ratio": float(np.exp(np.mean(logs))), "low": float(low), "high": float(high)}
