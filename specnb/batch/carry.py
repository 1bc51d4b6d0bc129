"""Carrying a plan out: workers, retries, what is done already, progress."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Callable
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    Executor,
    Future,
    ProcessPoolExecutor,
    wait,
)
from pathlib import Path
from typing import Any

from tqdm import tqdm

from specnb.batch.execute import WORK, described, execute, prepare
from specnb.batch.plan import Plan, Run
from specnb.files import write_whole

DEATHS = 3  # of workers that a run may see before it is given up


def finished(folder: Path, run: Run) -> dict[str, Any] | None:
    """The row of a run that has ended well; None where there is none, or none that can be read."""
    row = read_row(folder / f"{run.id}.json")
    return row if isinstance(row, dict) and row["status"] == "ok" else None


def read_row(path: Path) -> dict[str, Any] | str:
    """A row, or why it is none."""
    try:
        row = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return "it is not there"
    except (OSError, ValueError) as error:
        return f"it cannot be read ({error})"
    if not isinstance(row, dict):
        return "it is no JSON object"
    kinds = {"id": str, "notebook": str, "status": str, "parameters": dict, "headline": dict}
    for key, kind in {**kinds, "measurements": list, "versions": dict}.items():
        if not isinstance(row.get(key), kind):
            return f"it has no {key}"
    if row["id"] != path.stem:  # a name from a file's content is never used as a path
        return f"it says that it is {row['id']!r}"
    return row


def local(plan: Plan) -> Executor:
    """Worker processes on this machine, each with its own thread budget."""
    return ProcessPoolExecutor(
        plan.workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=prepare,
        initargs=(plan.threads, os.getpid()),
    )


def cluster(address: str) -> Executor:
    """The workers of a Dask cluster; they need this environment and a file system in common.

    ValueError where there is no `distributed`, nobody answers, or a worker runs several tasks at
    once: papermill changes the working directory of its process.
    """
    try:
        from distributed import Client
    except ImportError:
        raise ValueError(
            "scheduler: the package distributed is missing; pip install specnb[cluster]"
        ) from None
    try:
        client = Client(address, timeout=10)
    except (OSError, ValueError) as error:
        raise ValueError(f"scheduler={address!r}: nobody answers there ({error})") from None
    for name, worker in client.scheduler_info()["workers"].items():
        if worker["nthreads"] != 1:
            client.close()
            raise ValueError(
                f"scheduler={address!r}: {name} runs {worker['nthreads']} tasks at once; start "
                "dask worker with --nthreads 1, and more of them with --nworkers"
            )
    return client.get_executor(pure=False)


def carry_out(
    plan: Plan, folder: Path, executor: Callable[[], Executor] | None = None
) -> list[dict[str, Any]]:
    """Executes what is not finished yet; a row per run, in the plan's order, all in summary.json.

    A second call goes on where the first one ended, however it ended. ValueError where another
    one is at work in this folder.
    """
    from filelock import FileLock, Timeout

    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".lock", timeout=0):
            return _carry_out(plan, folder, executor or (lambda: local(plan)))
    except Timeout:
        raise ValueError(f"out={str(folder)!r}: another run is at work in this folder") from None


def _carry_out(plan: Plan, folder: Path, executor: Callable[[], Executor]) -> list[dict[str, Any]]:
    _sweep_up(folder)
    rows = {run.id: finished(folder, run) for run in plan.runs}
    todo = [run for run in plan.runs if rows[run.id] is None]
    attempts = dict.fromkeys((run.id for run in todo), 0)
    deaths = dict.fromkeys(attempts, 0)
    progress = Progress(len(todo), len(plan.runs) - len(todo))
    pending: dict[Future, Run] = {}
    workers = executor()

    def submit(run: Run) -> None:
        number = attempts[run.id] + 1
        future = workers.submit(execute, run, folder, plan.timeout, number, plan.threads)
        pending[future] = run

    def over(run: Run, row: dict[str, Any]) -> None:
        """A run has come back: once more, or that is it."""
        attempts[run.id] += 1
        if row["status"] != "ok" and attempts[run.id] <= plan.retries:
            submit(run)
        else:
            rows[run.id] = row
            progress.step(run, row)

    def died(run: Run, why: str) -> None:
        """Its worker is gone; that is not the notebook's own failure, the first times."""
        row = finished(folder, run)  # it may have been written before
        deaths[run.id] += 1
        if row is None and deaths[run.id] < DEATHS:
            submit(run)
        else:
            over(run, row or described(run) | {"error": why})

    try:
        for run in todo:
            submit(run)
        while pending:
            done, _ = wait(pending, return_when=FIRST_COMPLETED)
            lost: list[Run] = []
            for future in done:
                run = pending.pop(future)
                try:
                    over(run, future.result())
                except BrokenExecutor:
                    lost.append(run)
                except Exception as error:  # of the executor: `execute` itself raises nothing
                    died(run, f"its worker died ({type(error).__name__})")
            if lost:  # no pool survives the death of a worker: a new one, with all that was waiting
                lost += pending.values()
                pending.clear()
                workers.shutdown()
                workers = executor()
                begun = _sweep_up(folder)
                for run in lost:
                    if any(name.startswith(f"{WORK}{run.id}-") for name in begun):
                        died(run, "its worker died")
                    else:
                        submit(run)
    finally:
        for future in pending:
            future.cancel()
        workers.shutdown(wait=False)
        progress.close()
    found = [rows[run.id] for run in plan.runs]
    write_whole(folder / "summary.json", json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    return found


def _sweep_up(folder: Path) -> list[str]:
    """Removes what killed processes have left, and gives the names of it."""
    left = [*folder.glob(f"{WORK}*"), *folder.glob(".*.tmp")]
    for path in left:
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()
    return [path.name for path in left]


class Progress:
    """A bar with the time that is left on a terminal; in a log file a line per run."""

    def __init__(self, todo: int, done: int):
        if done:
            print(f"{done} of {done + todo} runs are finished already", file=sys.stderr)
        self._live = sys.stderr.isatty()
        self._bar = tqdm(total=todo, unit="run", disable=not self._live)
        self._todo, self._over, self._began = todo, 0, time.monotonic()

    def step(self, run: Run, row: dict[str, Any]) -> None:
        """One run is over."""
        self._over += 1
        self._bar.update()
        words = f"{run}: {row['status']} {row['error']}".rstrip()
        if not self._live:
            took = time.monotonic() - self._began
            meter = tqdm.format_meter(self._over, self._todo, took, unit="run", ncols=0)
            print(f"{meter.strip()} {words}", file=sys.stderr, flush=True)
        elif row["status"] != "ok":
            tqdm.write(words, file=sys.stderr)

    def close(self) -> None:
        self._bar.close()
