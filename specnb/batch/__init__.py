"""Notebooks in batches: runs and sweeps that resume, one table of all results, a report.

`python -m specnb.batch run [--out DIR] [-p NAME VALUE]... [notebook ...]`
`python -m specnb.batch sweep FILE [--out DIR] [--workers N] [--scheduler ADDRESS] [--dry-run]`
`python -m specnb.batch collect DIR`, `... report DIR`, `... html DIR`, `... slides FILE`
"""

from __future__ import annotations

import argparse
import ast
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from specnb import arguments, paths
from specnb.batch import export
from specnb.batch.collect import collect, report
from specnb.batch.estimate import by_word, estimates, positions
from specnb.batch.plan import Plan, plan_of, read_sweep
from specnb.batch.scheduler import carry_out, cluster, finished
from specnb.files import write_whole

__all__ = [
    "Plan",
    "by_word",
    "collect",
    "estimates",
    "main",
    "plan_of",
    "positions",
    "read_sweep",
    "report",
    "run",
    "sweep",
    "table",
]


def run(
    notebooks: Sequence[str | Path],
    out_dir: str | Path,
    parameters: Mapping[str, object] | None = None,
    workers: int = 1,
) -> list[dict[str, Any]]:
    """Executes the notebooks into `out_dir`, `workers` at a time; a row each (see `execute`).

    Several workers share the cores: a worker alone leaves the number of threads to torch. A failing
    notebook does not stop the others; what is finished there is not run again. Raises ValueError
    before anything runs when a notebook is missing or a parameter is wrong.
    """
    plan = plan_of(notebooks, [parameters or {}], workers=workers)
    if plan.workers > 1:
        plan = replace(plan, threads=max(1, (os.cpu_count() or 1) // plan.workers))
    return carry_out(plan, Path(out_dir))


def sweep(
    plan: Plan, out_dir: str | Path | None = None, scheduler: str = ""
) -> list[dict[str, Any]]:
    """Carries a plan out, on this machine or on the Dask cluster at `scheduler`; a row per run."""
    folder = Path(out_dir or paths.runs() / (plan.name or "sweep"))
    executor = (lambda: cluster(scheduler)) if scheduler else None
    return carry_out(plan, folder, executor)


FIGURES = 72  # characters of headline figures that are printed; the rows themselves keep all


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as an aligned text table."""
    import pandas as pd

    def figure(value: object) -> str:
        if value is None:
            return "missing"
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    def cut(figures: list[str]) -> str:
        whole = ", ".join(figures)
        if len(whole) <= FIGURES:
            return whole
        return whole[: whole.rfind(",", 0, FIGURES - 2)] + ", …"

    lines = [
        {
            "notebook": row["notebook"],
            "seconds": f"{row['seconds']:.1f}",
            "status": f"{row['status']} {row['error']}".strip(),
            "headline figures": cut([f"{k} {figure(v)}" for k, v in row["headline"].items()]),
        }
        for row in rows
    ]
    frame = pd.DataFrame(lines).apply(lambda column: column.str.ljust(column.str.len().max()))
    shown = frame.to_string(index=False, justify="left").splitlines()
    return "\n".join(line.rstrip() for line in shown)


def listed(plan: Plan, folder: Path) -> str:
    """What would be run, for `--dry-run`. ValueError where `folder` can be none."""
    paths.need_folder("out", folder)
    lines = []
    for one in plan.runs:
        state = "finished" if finished(folder, one) else "to run"
        lines.append(f"{state:8}  {one.id}  {one}")
    todo = sum(line.startswith("to run") for line in lines)
    return "\n".join([*lines, f"{todo} of {len(lines)} runs to do in {folder}"])


def _value(text: str) -> object:
    """A word from the command line as the scalar it looks like: number, true, false, None, text."""
    try:
        value = ast.literal_eval({"true": "True", "false": "False"}.get(text, text))
    except (ValueError, SyntaxError):
        return text
    return value if isinstance(value, int | float | None) else text


def _parser(prog: str) -> arguments.Parser:
    parser = arguments.Parser(prog=prog, description=__doc__.split("\n\n")[0])
    parser.set_defaults(prog=prog)
    commands = parser.add_subparsers(required=True, dest="command")
    words = "execute notebooks"
    one = commands.add_parser("run", help=words, description=words)
    one.add_argument("--out", metavar="DIR", help="results (runs/<timestamp>)")
    named = "a parameter of the notebooks; may be repeated"
    one.add_argument(
        "-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help=named
    )
    one.add_argument("--workers", type=int, default=1, help="notebooks at a time (1)")
    one.add_argument("notebook", nargs="*", help="names or paths; default: all lessons")
    words = "execute a sweep file, or go on with it"
    many = commands.add_parser("sweep", help=words, description=words)
    many.add_argument("file", metavar="FILE", help="YAML; data/sweeps/ has some")
    many.add_argument("--out", metavar="DIR", help="results (runs/<name of the sweep>)")
    many.add_argument("--workers", type=int, help="processes (as the file says)")
    many.add_argument("--threads", type=int, help="of each worker (as the file says)")
    many.add_argument("--scheduler", default="", metavar="ADDRESS", help="of a Dask cluster")
    many.add_argument(
        "--allow-code", action="store_true", help="drafters from anywhere, not only beside FILE"
    )
    many.add_argument("--dry-run", action="store_true", help="list what would run, and end")
    for name, words in (
        ("collect", "one table of all results, as Parquet and CSV"),
        ("report", "tables and plots of all results, as a page"),
        ("html", "offline pages of a run"),
    ):
        after = commands.add_parser(name, help=words, description=words)
        after.add_argument("folder", metavar="DIR", help="folder of a run or sweep")
    words = "five slides for the first minutes of a workshop"
    talk = commands.add_parser("slides", help=words, description=words)
    talk.add_argument("goal", metavar="FILE", help="the page to write")
    talk.add_argument("source", nargs="?", help="Markdown (notebooks/SLIDES.md)")
    return parser


def main(argv: Sequence[str] | None = None, prog: str = "python -m specnb.batch") -> int:
    """0 when every notebook ran, 1 when one failed, 2 when nothing was started."""
    parser = _parser(prog)
    given = parser.parse_args(argv)
    try:
        return {"run": _run, "sweep": _sweep}.get(given.command, _after)(given)
    except ValueError as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        print("stopped; the same call goes on from here", file=sys.stderr)
        return 130


def _run(given: argparse.Namespace) -> int:
    lessons = paths.NOTEBOOKS.glob("[0-8]*.ipynb")  # 9x are reports on other runs
    notebooks = given.notebook or sorted(lessons)
    if not notebooks:
        paths.need_share()
        raise ValueError("no notebooks in notebooks/")
    names = [name for name, _ in given.p]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"-p {twice}: it is given twice; leave one out")
    out_dir = Path(given.out or paths.runs() / f"{datetime.now():%Y%m%d-%H%M%S}")
    rows = run(notebooks, out_dir, {name: _value(text) for name, text in given.p}, given.workers)
    print(table(rows), f"\nresults: {out_dir}", sep="\n")
    print(f"to read: {export.write(out_dir)[-1]}")
    return _code(rows)


def _sweep(given: argparse.Namespace) -> int:
    plan = read_sweep(given.file, given.allow_code)
    asked = {"workers": given.workers, "threads": given.threads}
    changed = {name: value for name, value in asked.items() if value is not None}
    plan = replace(plan, **changed)
    folder = Path(given.out or paths.runs() / plan.name)
    if given.dry_run:
        print(listed(plan, folder))
        return 0
    rows = sweep(plan, folder, given.scheduler)
    print(table(rows), f"\nresults: {folder}", sep="\n")
    collect(folder)
    print(f"to read: {given.prog} report {folder}")
    return _code(rows)


def _code(rows: Sequence[Mapping[str, Any]]) -> int:
    """1 where a run has failed."""
    return int(any(row["status"] != "ok" for row in rows))


def _after(given: argparse.Namespace) -> int:
    if given.command == "collect":
        found = collect(given.folder)
        runs = found["run"].nunique()
        print(f"{len(found)} lines of {runs} runs in {Path(given.folder) / 'table.csv'}")
    elif given.command == "report":
        print(f"to read: {report(given.folder)}")
    elif given.command == "slides":
        source = Path(given.source or paths.NOTEBOOKS / "SLIDES.md")
        if not source.is_file():
            raise ValueError(f"source {source}: there is no such file; give one in Markdown")
        write_whole(Path(given.goal), export.slides(source))
        print(f"to read: {given.goal}")
    else:
        print(*export.write(given.folder), sep="\n")
    return 0
