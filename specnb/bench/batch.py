"""How well sweeps scale, what they cost beside their cells, and whether kill -9 costs a run.

On the shipped smoke sweep: two workers of one thread against one of one thread, in turns; wall time
minus time inside cells; then a sweep that is killed at ten moments drawn uniformly over it and
once in the middle of a write, each time resumed, and its table held against an undisturbed one.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from specnb.batch import collect
from specnb.paths import DATA, ROOT

SWEEP = DATA / "sweeps" / "smoke.yml"
ROUNDS, KILLS, SEED = 3, 10, 0
BARS = {"scaling": 1.6, "overhead_s": 3.0}
CLOCKS = ("seconds", "plain_seconds", "speedup", "finished")  # may differ between two sweeps
# Put in front of every process of a sweep: the first write of a row is cut in half, then SIGKILL.
CUT = """import os, pathlib, re, signal, time
plain, flag = os.replace, pathlib.Path({flag!r})


def replace(source, goal):
    if re.fullmatch(r".+-[0-9a-f]{{16}}\\.json", os.path.basename(goal)):
        try:
            flag.open("x").close()
        except FileExistsError:
            time.sleep(60)  # the other worker, in its own write: the same signal ends it
        whole = pathlib.Path(source).read_bytes()
        pathlib.Path(source).write_bytes(whole[: len(whole) // 2])
        os.killpg(0, signal.SIGKILL)
    return plain(source, goal)


os.replace = replace
"""


def measure(target: str = "", draft: str = "", n: int = 0) -> dict[str, Any]:
    """The three figures; `n` = kills at random moments. Takes about a quarter of an hour."""
    if target or draft:
        raise ValueError(f"target={target!r}, draft={draft!r}: the smoke sweep has its own pair")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        walls: dict[int, list[float]] = {1: [], 2: []}
        for turn in range(ROUNDS):
            for workers in (1, 2):
                walls[workers].append(_sweep(folder / f"{workers}-{turn}", workers))
        whole = collect(folder / "1-0")
        ratios = [one / two for one, two in zip(walls[1], walls[2], strict=True)]
        overheads = [
            (wall - _in_cells(folder / f"1-{turn}")) / whole["run"].nunique()
            for turn, wall in enumerate(walls[1])
        ]
        rng = random.Random(SEED)
        middle = statistics.median(walls[2])
        kills = [
            _killed(folder / f"kill-{k}", rng.uniform(0, middle), whole) for k in range(n or KILLS)
        ]
        kills.append(_killed(folder / "kill-write", None, whole))
    figures = {
        "runs": int(whole["run"].nunique()),
        "wall_s": {str(workers): statistics.median(w) for workers, w in walls.items()},
        "scaling": statistics.median(ratios),
        "overhead_s": statistics.median(overheads),
        "kills": kills,
    }
    return figures | {"passed": passed(figures)}


def _command(out: Path, workers: int) -> list[str]:
    return [
        *(sys.executable, "-m", "specnb.batch", "sweep", str(SWEEP)),
        *("--out", str(out), "--workers", str(workers), "--threads", "1"),
    ]


def _sweep(out: Path, workers: int) -> float:
    """Wall seconds of a sweep, from the start of its process to its end."""
    start_s = time.monotonic()
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run(_command(out, workers), cwd=ROOT, check=True, **quiet)
    return time.monotonic() - start_s


def _in_cells(out: Path) -> float:
    import json

    rows = [json.loads(path.read_text()) for path in out.glob("*-*.json")]
    return sum(row["cell_seconds"] for row in rows)


def _killed(out: Path, after_s: float | None, whole: pd.DataFrame) -> dict[str, Any]:
    """A sweep that is killed after so many seconds (None: in its first write of a row), resumed."""
    env, site = dict(os.environ), out.with_suffix(".site")
    if after_s is None:
        site.mkdir()
        code = CUT.format(flag=str(site / "done"))
        (site / "sitecustomize.py").write_text(code)
        env["PYTHONPATH"] = os.pathsep.join([str(site), env.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        _command(out, 2),
        cwd=ROOT,
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    if after_s is None:
        cut = process.wait() == -signal.SIGKILL and list(out.glob(".*.json.*.tmp"))
        if not cut or list(out.glob("*-*.json")):
            raise RuntimeError("the sweep was not killed in the middle of its first write")
    else:
        time.sleep(after_s)
        process.send_signal(signal.SIGKILL)  # alone: its workers have to notice by themselves
        process.wait()
    # While no row is written there may be no folder yet.
    finished = len(list(out.glob("*-*.json"))) if out.is_dir() else 0
    _sweep(out, 2)
    table = collect(out)
    shutil.rmtree(out)
    return {
        "after_s": after_s,
        "finished": finished,
        "identical": bool(lasting(table).equals(lasting(whole))),
        "twice": int(table.duplicated(["run", "prompt"]).sum()),
    }


def lasting(table: pd.DataFrame) -> pd.DataFrame:
    """A table without what a clock has written, in one order."""
    kept = table.drop(columns=[name for name in CLOCKS if name in table])
    return kept.sort_values(["run", "prompt"], ignore_index=True)


def passed(figures: Mapping[str, Any]) -> bool:
    """Whether the bars hold."""
    safe = all(kill["identical"] and not kill["twice"] for kill in figures["kills"])
    fast = figures["scaling"] >= BARS["scaling"] and figures["overhead_s"] < BARS["overhead_s"]
    return safe and fast


def table(figures: Mapping[str, Any]) -> str:
    """A Markdown table."""
    kills = figures["kills"]
    same = sum(kill["identical"] and not kill["twice"] for kill in kills)
    had = ", ".join(str(kill["finished"]) for kill in kills)
    walls = figures["wall_s"]
    lines = [
        "| measured on the smoke sweep | value | bar |",
        "|---|---|---|",
        f"| one worker / two workers, wall time ({walls['1']:.0f} s / {walls['2']:.0f} s) | "
        f"{figures['scaling']:.2f} | {BARS['scaling']} |",
        f"| wall minus time inside cells, per run, one worker | {figures['overhead_s']:.1f} s | "
        f"{BARS['overhead_s']:.0f} s |",
        f"| killed and resumed: table identical, no run twice | {same} of {len(kills)} | "
        f"{len(kills)} of {len(kills)} |",
        "",
        f"Runs that were finished at the kills, of {figures['runs']}: {had} (the last one in the "
        "middle of a write).",
    ]
    return "\n".join(lines)
