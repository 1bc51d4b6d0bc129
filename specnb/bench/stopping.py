"""When should a drafter stop? Fixed lengths against MaxConfidence and AdaEDL, in real time.

Thresholds and the best fixed length are chosen on one half of the prompts; every figure is of the
other half.
"""

from __future__ import annotations

from typing import Any

import torch

import specnb as sn
from specnb.bench import KEPT
from specnb.measure import RowCache, best_of, geometric_ratio, in_turns, pooled
from specnb.models import calibration, settings
from specnb.scenes import TASKS, examples

TEMPERATURES = (0.0, 0.7, 1.0, 1.3)
SEEDS = (0, 1000)  # of a prompt where tokens are drawn
LENGTHS = (3, 7, 16)
STATICS = range(1, 17)
GRID = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
RULES = {"MaxConfidence": sn.MaxConfidence, "AdaEDL": sn.AdaEDL}
COSTS = ("tokens_per_second", "tokens_per_step")  # measured; with dear drafts
BARS = {"static 16": 1.10, "static 7": 1.05, "best static": 1.0}


def measure(target: str = "", draft: str = "", n: int = 0) -> dict:
    """All figures, on `n` prompts per task and half (20)."""
    runs_as = calibration.choice(fresh=True)
    torch.set_num_threads(runs_as.threads)
    settings.set_dtype(runs_as.dtype)
    pair = sn.load_pair(target, draft)
    kept, n = RowCache(KEPT / "stopping.jsonl"), n or 20
    items = {task: examples(task, 2 * n, 3) for task in TASKS}
    tuning = {task: group[:n] for task, group in items.items()}
    other = {task: group[n:] for task, group in items.items()}
    chosen, cells = {}, []
    for temperature in TEMPERATURES:
        sampling = sn.Sampling(temperature)
        more: dict[str, Any] = {"seeds": SEEDS if temperature else SEEDS[:1], "kept": kept}
        statics = {f"static {length}": length for length in STATICS}
        ruled = {(rule, t): f"{rule} {t}" for rule in RULES for t in GRID}
        methods = {name: sn.Chain(length) for name, length in statics.items()}
        methods |= {name: sn.Chain(16, stop=RULES[rule](t)) for (rule, t), name in ruled.items()}
        found: dict[str, list] = {name: [] for name in methods}
        for task, group in tuning.items():
            label = f"tune {task} {temperature}"
            tried = in_turns(pair, group, methods, sampling, label=label, **more)
            for name, rows in tried.items():
                found[name] += rows

        methods = {f"static {length}": sn.Chain(length) for length in LENGTHS}
        for cost in COSTS:
            picked: dict = {"best static": statics[best_of(found, statics, cost)]}
            methods[_name("best static", cost)] = sn.Chain(picked["best static"])
            for name, rule in RULES.items():
                of_rule = {text: t for (one, t), text in ruled.items() if one == name}
                picked[name] = of_rule[best_of(found, of_rule, cost)]
                for length in LENGTHS:
                    stop = rule(picked[name])
                    methods[_name(f"{name} {length}", cost)] = sn.Chain(length, stop=stop)
            chosen[_name(str(temperature), cost)] = picked
        for task, group in other.items():
            label = f"{task} {temperature}"
            rows = in_turns(pair, group, methods, sampling, label=label, **more)
            cells.append({"task": task, "temperature": temperature, "rows": rows})
    how = f"{runs_as.dtype}, {runs_as.threads} thread{'s' if runs_as.threads > 1 else ''}"
    return {
        "n": n,
        "runs_as": how,
        "chosen": chosen,
        "cells": _figures(cells),
        "ratios": {cost: _ratios(cells, cost) for cost in COSTS},
    }


def _name(name: str, cost: str) -> str:
    """What was chosen by measured time has the plain name."""
    return name if cost == COSTS[0] else f"{name}, dear drafts"


def _figures(cells) -> list[dict]:
    lines = []
    for cell in cells:
        for name, rows in cell["rows"].items():
            calls = sum(row.calls for row in rows)
            lines.append(
                {
                    "task": cell["task"],
                    "temperature": cell["temperature"],
                    "method": name,
                    "block_efficiency": pooled(rows, "block_efficiency"),
                    "wasted_per_call": sum(row.drafted - row.accepted for row in rows) / calls,
                    **{cost: pooled(rows, cost) for cost in COSTS},
                }
            )
    return lines


def _ratios(cells, cost: str) -> dict:
    """AdaEDL at 16 (at 7 against static 7) over the others."""
    found = {}
    for other, mine in (
        ("static 16", "AdaEDL 16"),
        ("static 7", "AdaEDL 7"),
        ("best static", "AdaEDL 16"),
        ("MaxConfidence 16", "AdaEDL 16"),
        ("MaxConfidence 7", "AdaEDL 7"),
    ):
        names = [n if n.startswith("static") else _name(n, cost) for n in (mine, other)]
        pairs = [tuple(cell["rows"][name] for name in names) for cell in cells]
        found[other] = {"method": mine, **geometric_ratio(pairs, cost)}
    return found


def table(figures: dict) -> str:
    """The figures as text."""
    lines = [f"{figures['n']} prompts per task and half, target in {figures['runs_as']}; chosen:"]
    for temperature, row in figures["chosen"].items():
        lines.append(f"  T {temperature}: " + ", ".join(f"{k} {v}" for k, v in row.items()))
    lines.append("task          T    method            block efficiency  wasted/call  tokens/s")
    for row in figures["cells"]:
        if "dear" not in row["method"]:
            lines.append(
                f"{row['task']:13} {row['temperature']:<4} {row['method']:17} "
                f"{row['block_efficiency']:16.2f} {row['wasted_per_call']:12.2f} "
                f"{row['tokens_per_second']:9.0f}"
            )
    for cost, ratios in figures["ratios"].items():
        what = "measured time" if cost == COSTS[0] else "if a draft cost a seventh of a target call"
        lines.append(
            f"{what}: geometric mean over tasks and temperatures, paired by prompt; 95 % over "
            "prompts, given what was chosen above"
        )
        for other, row in ratios.items():
            bar = f"bar {BARS[other]:.2f}" if other in BARS else "bar: interval not below 1"
            lines.append(
                f"  {row['method']} / {other}: {row['ratio']:.3f} "
                f"[{row['low']:.3f}, {row['high']:.3f}]{bar:>30}"
            )
    return "\n".join(lines)
