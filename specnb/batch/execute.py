"""One run, in a process of its own: papermill, then the notebook and its row, each in one step."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import platform
import re
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from specnb.batch.plan import SAFE, Run, identity, look_anew
from specnb.files import finite, write_whole
from specnb.paths import ROOT

COLOUR = re.compile(r"\x1b\[[0-9;]*m")  # tracebacks come in colour
FAILED = "**This run failed**"  # the first words of what is kept of one
WATCH_S = 1.0
EXECUTED = "executed.ipynb"
WORK = ".work-"  # how a run's own folder begins while it is under way
STARTS = 3  # of its kernel, before a run is given up
DIED_EARLY = "Kernel died before replying to kernel_info"  # jupyter_client's words, its only sign


def prepare(threads: int | None, parent: int | None = None) -> None:
    """Sets a worker process up: its thread budget, and that it does not outlive its parent."""
    if threads is not None:  # kernels inherit it, and torch in them reads it
        os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(threads)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(WATCH_S)
        try:
            for kernel in psutil.Process().children():  # in its start it would not notice, and stay
                kernel.kill()
        finally:
            os._exit(1)  # nobody is there to take the result

    if parent is not None:
        threading.Thread(target=watch, daemon=True).start()


def execute(
    run: Run, folder: Path, timeout: float, attempt: int = 1, threads: int | None = None
) -> dict[str, Any]:
    """Executes a run into `folder`: `<id>.ipynb` with outputs, then `<id>.json`, its row.

    The row is written last and tells that the run is over; it is also given back. It has status
    ("ok" or "failed"), error, headline (figures by name), measurements, parameters, versions and
    machine. Nothing is raised for what goes wrong inside the notebook.
    """
    prepare(threads)
    start_s = time.monotonic()
    row = described(run) | {"attempt": attempt, "threads": threads}
    try:
        row |= _executed(run, folder, start_s + timeout)
    except Exception as error:  # whatever goes wrong in one, the others still run
        row["error"] = _in_words(error)
        if before := finished(folder, run):
            return before  # another worker has done it: a failure never replaces a result
    row["seconds"] = round(time.monotonic() - start_s, 2)
    return write_row(folder, row)


def write_row(folder: Path, row: Mapping[str, Any]) -> dict[str, Any]:
    """Writes `<id>.json`, from when on the run is over; the row with its time.

    A figure that is no finite number is missing there, and `not_finite` tells which one.
    """
    row = finite({**row, "finished": datetime.now(UTC).isoformat(timespec="seconds")}, "parameters")
    text = json.dumps(row, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_whole(folder / f"{row['id']}.json", text)
    return row


def _executed(run: Run, folder: Path, deadline: float) -> dict[str, Any]:
    """Runs the notebook and keeps it, with its error where it fails; what its row gets to know."""
    look_anew()
    if identity(run.notebook, run.parameters) != run.id:
        raise RuntimeError("code, notebook, data or versions here are not those of the plan")
    with (
        _importable(run.notebook.parent),
        tempfile.TemporaryDirectory(prefix=f"{WORK}{run.id}-", dir=folder) as work,
    ):
        executed, result = Path(work) / EXECUTED, Path(work) / f"{run.notebook.stem}.json"
        try:
            execute_notebook(
                str(run.notebook),
                str(executed),
                parameters={**run.given, "out_dir": work},
                cwd=str(ROOT),  # from anywhere, notebooks find specnb and data/
                progress_bar=False,
                store_widget_state=False,  # megabytes, and Colab refuses such files
                # Of the kernel's own log errors only: it warns of unencrypted TCP, on 127.0.0.1.
                extra_arguments=["--log-level=ERROR"],
                shutdown_kernel="immediate",  # all is written; a polite end takes half a second
                timeout_func=lambda _: max(1, int(deadline - time.monotonic())),
            )
            if not result.is_file():
                raise RuntimeError(f"ran to its end, but wrote no {result.name}")
            written = json.loads(result.read_text(encoding="utf-8"))
            found = {"headline": written.pop("headline", None), "result": written, "status": "ok"}
            found["measurements"] = written.pop("measurements", [])
            if isinstance(before := written.pop("not_finite", None), dict):  # of `save_row`
                found["not_finite"] = before
            if not isinstance(found["headline"], dict) or not isinstance(
                found["measurements"], list
            ):
                raise RuntimeError(f"{result.name} has no headline by name, or no list measured")
        except Exception as error:
            if finished(folder, run) is None:
                keep(executed, folder / f"{run.id}.ipynb", _in_words(error))
            raise
        body = executed.read_text(encoding="utf-8")
        write_whole(folder / f"{run.id}.ipynb", body)
        return found | {"cell_seconds": round(_cell_seconds(body), 2)}


def execute_notebook(*notebooks: str, **how: Any) -> None:
    """papermill's `execute_notebook`; a kernel that dies in its start is started again.

    Its ports are chosen before it runs and bound when it does, seconds later; where several start
    side by side, one may find its port taken. No cell has run by then.
    """
    import papermill

    # It would warn of parameters that it cannot read line by line; they are judged already, by ast.
    logging.getLogger("papermill").setLevel(logging.ERROR)
    for start in range(1, STARTS + 1):
        try:
            papermill.execute_notebook(*notebooks, **how)
            return
        except RuntimeError as error:
            if str(error) != DIED_EARLY or start == STARTS:
                raise


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Kernels that start meanwhile find modules in the folder, as they do in Jupyter."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [before, str(folder)]))
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def keep(executed: Path, goal: Path, error: str) -> None:
    """Keeps the notebook of a failed run, as far as it came, with the error at its top."""
    if not executed.is_file():
        return
    import nbformat

    book = nbformat.read(executed, as_version=4)
    book.cells.insert(0, nbformat.v4.new_markdown_cell(f"{FAILED}: {error}"))
    write_whole(goal, nbformat.writes(book) + "\n")


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
    if why := unsound(row):
        return why
    if row["id"] != path.stem:
        return f"it says that it is {row['id']!r}"
    return row


KINDS: dict[str, Any] = {
    "id": str,
    "notebook": str,
    "status": str,
    "error": str,
    "seconds": int | float,
}
KINDS |= {"parameters": dict, "headline": dict, "measurements": list, "versions": dict}


def unsound(row: Any) -> str:
    """Why this is no row, whoever wrote it; empty where it is one."""
    if not isinstance(row, dict):
        return "it is no JSON object"
    for key, kind in KINDS.items():
        if not isinstance(row.get(key), kind):
            return f"it has no {key}"
    if not isinstance(row.get("not_finite", {}), dict):
        return "its not_finite is no dict"
    if not SAFE.fullmatch(row["id"]):  # it becomes a file's name
        return f"its id {row['id']!r} is no plain name"
    return ""


def _in_words(error: Exception) -> str:
    """The line that says what went wrong, out of everything that nbclient has to say."""
    from nbclient.exceptions import CellTimeoutError

    if isinstance(error, CellTimeoutError):
        return str(error).splitlines()[0]
    text = COLOUR.sub("", "".join(traceback.format_exception_only(error))).strip()
    return text.splitlines()[-1]


def described(run: Run) -> dict[str, Any]:
    """A row before its run."""
    parameters = dict(run.parameters)
    return {
        "id": run.id,
        "notebook": run.notebook.stem,
        "status": "failed",
        "error": "",
        "parameters": parameters | {k: v for k, v in run.given.items() if k in ("target", "draft")},
        "seed": parameters.get("seed"),
        "headline": {},
        "measurements": [],
        "seconds": 0.0,
        "cell_seconds": 0.0,
        "versions": _versions(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
    }


def _versions() -> dict[str, str]:
    names = ("torch", "transformers", "papermill")
    found = {name: importlib.metadata.version(name) for name in names}
    return {"python": platform.python_version(), **found}


def _cell_seconds(body: str) -> float:
    """Seconds that were spent inside cells, as papermill noted them."""
    cells: list[Mapping] = json.loads(body)["cells"]
    spent = (cell["metadata"].get("papermill", {}).get("duration") for cell in cells)
    return sum(seconds for seconds in spent if seconds)
