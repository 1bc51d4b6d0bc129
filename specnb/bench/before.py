"""This code and that of an earlier commit, on one machine, in turns.

Each has a process of its own that keeps its pair loaded and answers one prompt at a time, so that
what slows the machine slows both. Format, threads and draft length are chosen by each side for
itself, on other prompts than the figures are of. Where the processor has AVX-512, the same is done
once more with all libraries kept to AVX2, which is what most laptops have.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from specnb.bench import AVX2
from specnb.measure import median_ratio, turns
from specnb.paths import ROOT
from specnb.scenes import TASKS

BASE = "406b9c4bfc21"  # float32 and bfloat16 alone, every draft step in torch
FORMATS = {"here": ("float32", "bfloat16", "float16"), "before": ("float32", "bfloat16")}
THREADS = (1, 2)
GAMMAS = (3, 4, 5, 6, 8, 10)
TEMPERATURES = (0.0, 1.0)
TUNING, REPORTED = 21, 31  # seeds of the prompts

# Runs on either side; calls nothing that the earlier commit did not have.
WORKER = """
import json, sys, torch
import specnb as sn
from specnb.scenes import examples
pairs, items = {}, {}
print(json.dumps(torch.backends.cpu.get_cpu_capability()), flush=True)
for line in sys.stdin:
    kind, threads, gamma, task, n, seed, number, temperature = json.loads(line)
    if kind not in pairs:
        pairs[kind] = sn.load_pair(dtype=kind)
    if (task, n, seed) not in items:
        items[task, n, seed] = examples(task, n, seed)
    torch.set_num_threads(threads)
    item, pair = items[task, n, seed][number], pairs[kind]
    settings = dict(sampling=sn.Sampling(temperature), max_new_tokens=64, seed=number)
    if gamma:
        run = sn.speculative(pair, item.prompt, item.image, drafter=sn.Chain(gamma), **settings)
    else:
        run = sn.autoregressive(pair.target, item.prompt, item.image, **settings)
    seconds = sum(block.draft_s + block.verify_s for block in run.blocks)
    print(json.dumps([1e3 * seconds / len(run.token_ids), len(run.token_ids)]), flush=True)
"""


class Side:
    """One code tree in a process of its own; `ask` gives milliseconds per token."""

    def __init__(self, tree: Path, environment: Mapping[str, str]):
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER],
            cwd=tree,
            env={**os.environ, "PYTHONPATH": str(tree), **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.capability: str = self._answer()

    def __enter__(self) -> Side:
        return self

    def __exit__(self, *problem: object) -> None:
        self.process.kill()
        self.process.wait()

    def ask(
        self, method: Sequence[Any], task: str, n: int, seed: int, number: int, temperature: float
    ) -> float:
        """`method` is (format, threads, draft length); length 0 decodes plainly."""
        assert self.process.stdin is not None
        asked = [*method, task, n, seed, number, temperature]
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        return float(self._answer()[0])

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("the other process has ended; what it said stands above")
        return json.loads(line)


def measure(target: str = "", draft: str = "", n: int = 0, base: str = BASE) -> dict:
    """Figures by class of machine, on `n` prompts per task (10) of the embedded pair."""
    if target or draft:
        raise ValueError("target, draft: this bench runs the embedded pair, leave them out")
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "before"
        _git("worktree", "add", "--detach", str(tree), base)
        try:
            for environment in ({}, AVX2):
                with ExitStack() as both:
                    trees = {"here": ROOT, "before": tree}
                    sides = {
                        name: both.enter_context(Side(place, environment))
                        for name, place in trees.items()
                    }
                    capability = sides["here"].capability
                    if capability not in found:  # a processor with AVX2 alone is measured once
                        found[capability] = _compare(sides, n or 10, capability)
        finally:
            _git("worktree", "remove", "--force", str(tree))
    return {"base": base, "machines": found}


def _git(*arguments: str) -> None:
    done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True)
    if done.returncode:
        raise ValueError(
            f"git {' '.join(arguments[:2])}: {done.stderr.strip()}; this bench needs a clone with "
            "the whole history, as by `git fetch --unshallow`"
        )


def _compare(sides: Mapping[str, Side], n: int, label: str) -> dict:
    def all_of(methods: Mapping[Any, tuple[str, tuple]], temperature: float, n: int, seed: int):
        """Milliseconds per token by method, over all prompts of all tasks."""
        took: dict[Any, list[float]] = {name: [] for name in methods}
        places = [(task, number) for task in TASKS for number in range(n)]
        words = f"{label}, T {temperature}, seed {seed}"
        for place, name in turns(list(methods), len(places), words):
            side, method = methods[name]
            task, number = places[place]
            took[name].append(sides[side].ask(method, task, n, seed, number, temperature))
        return took

    def best(methods: Mapping[Any, tuple[str, tuple]], temperature: float) -> tuple[str, tuple]:
        took = all_of(methods, temperature, 3, TUNING)
        return methods[min(took, key=lambda name: statistics.median(took[name]))]

    found: dict[str, Any] = {}
    for temperature in TEMPERATURES:
        methods: dict[str, tuple[str, tuple]] = {}
        for side in sides:
            kinds = [(kind, t) for kind in FORMATS[side] for t in THREADS]
            plain = {kind: (side, (*kind, 0)) for kind in kinds}
            methods[f"plain, {side}"] = best(plain, temperature)
            by_kind = {kind: (side, (*kind, 5)) for kind in kinds}
            own = best(by_kind, temperature)[1][:2]
            by_length = {g: (side, (*own, g)) for g in GAMMAS}
            methods[f"speculative, {side}"] = best(by_length, temperature)
        took = all_of(methods, temperature, n, REPORTED)
        pairs = {
            "speculative over plain, here": ("plain, here", "speculative, here"),
            "speculative over plain, before": ("plain, before", "speculative, before"),
            "speculative over what it was": ("speculative, before", "speculative, here"),
            "plain over what it was": ("plain, before", "plain, here"),
            "speculative here over plain before": ("plain, before", "speculative, here"),
        }
        found[str(temperature)] = {
            "methods": {
                name: {"runs_as": method, "ms_per_token": statistics.median(took[name])}
                for name, (_, method) in methods.items()
            },
            "ratios": {
                name: median_ratio(took[base], took[other]) for name, (base, other) in pairs.items()
            },
        }
    return found


def table(figures: dict) -> str:
    """The figures as text."""
    lines = [f"this code and {figures['base']}, in turns; medians per prompt, without prefill"]
    for capability, by_temperature in figures["machines"].items():
        for temperature, found in by_temperature.items():
            lines += ["", f"{capability}, T {temperature}"]
            for name, row in found["methods"].items():
                kind, threads, gamma = row["runs_as"]
                how = f"{kind}, threads {threads}" + (f", draft length {gamma}" if gamma else "")
                lines.append(f"  {name:22} {row['ms_per_token']:6.2f} ms/token   {how}")
            for name, row in found["ratios"].items():
                lines.append(
                    f"  {name:36} {row['ratio']:5.2f} [{row['low']:5.2f}, {row['high']:5.2f}]"
                )
    return "\n".join(lines)
