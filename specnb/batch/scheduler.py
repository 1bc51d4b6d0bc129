"""Carrying a plan out: workers, retries, what is done already, progress."""

from __future__ import annotations

import json
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
from dataclasses import replace
from multiprocessing.context import SpawnContext, SpawnProcess
from pathlib import Path
from types import ModuleType
from typing import Any

from tqdm import tqdm

from specnb.batch.execute import (
    EXECUTED,
    WORK,
    described,
    execute,
    finished,
    keep,
    prepare,
    write_row,
)
from specnb.batch.plan import Plan, Run
from specnb.files import missing_words, write_whole
from specnb.paths import need_folder, to_install

DEATHS = 3  # of workers that a run may cost before it is given up
PLAN = "plan.json"  # the ids of the last call: what a table is made of


class _Worker(SpawnProcess):
    """A spawned process that does not run the caller's script again, as others do in their start.

    All that it works on lies in this package; so scripts that start a batch need no
    `if __name__ == "__main__"`.
    """

    @staticmethod
    def _Popen(process_obj):
        caller = sys.modules["__main__"]
        sys.modules["__main__"] = ModuleType("__main__")  # without a file, as in `python -c`
        try:
            return SpawnProcess._Popen(process_obj)
        finally:
            sys.modules["__main__"] = caller


class _Spawn(SpawnContext):
    Process = _Worker


def local(plan: Plan) -> Executor:
    """Worker processes on this machine, each with its own thread budget."""
    return ProcessPoolExecutor(
        plan.workers,
        mp_context=_Spawn(),
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
            "scheduler: the package distributed is missing; " + to_install("cluster", "distributed")
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
    one is at work in this folder, or it can be none.
    """
    from filelock import FileLock, Timeout

    need_folder("out", folder)
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".lock", timeout=0):
            return _carry_out(plan, folder, executor)
    except Timeout:
        raise ValueError(f"out={str(folder)!r}: another run is at work in this folder") from None


def _carry_out(
    plan: Plan, folder: Path, executor: Callable[[], Executor] | None
) -> list[dict[str, Any]]:
    _sweep_up(folder)
    ids = [run.id for run in plan.runs]
    write_whole(folder / PLAN, json.dumps(ids, indent=1) + "\n")
    rows = {run.id: finished(folder, run) for run in plan.runs}
    waiting = [run for run in plan.runs if rows[run.id] is None]
    attempts = dict.fromkeys((run.id for run in waiting), 0)
    deaths = dict.fromkeys(attempts, 0)
    progress = Progress(len(waiting), len(ids) - len(waiting))
    pending: dict[Future, Run] = {}
    # On this machine nothing waits inside the pool: what waits there cannot be called back.
    window = len(waiting) if executor else plan.workers
    make = executor or (lambda: local(plan))
    workers = make()

    def submit(run: Run, to: Executor) -> Future:
        number = attempts[run.id] + 1
        return to.submit(execute, run, folder, plan.timeout, number, plan.threads)

    def over(run: Run, row: dict[str, Any]) -> None:
        """A run has come back: once more, or that is it."""
        attempts[run.id] += 1
        if row["status"] != "ok" and attempts[run.id] <= plan.retries:
            waiting.append(run)
        else:
            rows[run.id] = row
            progress.step(run, row)

    def died(run: Run, error: Exception) -> None:
        """Its worker is gone: that is not the notebook's own failure, the first times."""
        deaths[run.id] += 1
        if deaths[run.id] < DEATHS:
            waiting.append(run)
        else:
            attempts[run.id] = plan.retries
            over(run, _given_up(run, folder, error))

    def alone(run: Run) -> None:
        """One that was at work when a worker died, in a pool of its own: was it the cause?"""
        with local(replace(plan, workers=1)) as solo:
            future = submit(run, solo)
            try:
                over(run, future.result())
            except BrokenExecutor as error:
                died(run, error)

    try:
        while waiting or pending:
            broken = False
            while waiting and len(pending) < window and not broken:
                try:
                    pending[submit(waiting[0], workers)] = waiting[0]
                    waiting.pop(0)
                except BrokenExecutor:  # just now, by one that is still at work
                    broken = True
            done = () if broken else wait(pending, return_when=FIRST_COMPLETED).done
            for future in done:
                run = pending.pop(future)
                try:
                    over(run, future.result())
                except BrokenExecutor:
                    broken, pending[future] = True, run
                except Exception as error:  # of a cluster: `execute` itself raises nothing
                    died(run, error)
            if broken:  # no pool survives the death of a worker, and all in it die with it
                lost = list(pending.values())
                pending.clear()
                workers.shutdown()
                workers = make()
                for run in lost:
                    row = finished(folder, run)  # it may have been written before
                    over(run, row) if row else alone(run)
    finally:
        for future in pending:
            future.cancel()
        workers.shutdown(wait=executor is None)
        progress.close()
    _sweep_up(folder)
    found = [rows[one] for one in ids]
    write_whole(folder / "summary.json", json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    return found  # type: ignore[return-value]  # every run has its row by now


def _given_up(run: Run, folder: Path, error: Exception) -> dict[str, Any]:
    """The row of a run that has killed every worker; its notebook is kept as far as it came."""
    row = described(run) | {"error": f"its worker died {DEATHS} times ({type(error).__name__})"}
    for work in sorted(folder.glob(f"{WORK}{run.id}-*")):
        keep(work / EXECUTED, folder / f"{run.id}.ipynb", row["error"])
    return write_row(folder, row)


def _sweep_up(folder: Path) -> None:
    """Removes what killed processes have left."""
    for path in [*folder.glob(f"{WORK}*"), *folder.glob(".*.tmp")]:
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


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
        missing = missing_words(row)
        words = " ".join(filter(None, [f"{run}: {row['status']}", row["error"], missing]))
        if not self._live:
            took = time.monotonic() - self._began
            meter = tqdm.format_meter(self._over, self._todo, took, unit="run", ncols=0)
            print(f"{meter.strip()} {words}", file=sys.stderr, flush=True)
        elif row["status"] != "ok" or missing:
            tqdm.write(words, file=sys.stderr)

    def close(self) -> None:
        self._bar.close()
