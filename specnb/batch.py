"""Runs notebooks by papermill, one after the other, and says what came out of each.

`python -m specnb.batch run [--out DIR] [-p NAME VALUE]... [notebook ...]`
`python -m specnb.batch html DIR` makes offline pages of a run; `run` does it by itself
"""

import argparse
import ast
import json
import re
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

from specnb import pages

ROOT = Path(__file__).resolve().parents[1]
TIMEOUT_S = 600  # per cell: a cell that never ends must not hold up the night
COLOUR = re.compile(r"\x1b\[[0-9;]*m")  # tracebacks come in colour


def run(
    notebooks: Sequence[str | Path],
    out_dir: str | Path,
    parameters: Mapping[str, object] | None = None,
) -> list[dict]:
    """Executes the notebooks into `out_dir`; one row each, also written to `summary.json`.

    A row has notebook, seconds, status ("ok" or "failed"), error (its last line), headline (figures
    by name), result (the notebook's own JSON) and executed (its copy with outputs). A failing
    notebook does not stop the others. Raises ValueError before anything runs when a notebook is
    missing or lacks one of the parameters.
    """
    paths, parameters = [Path(notebook).resolve() for notebook in notebooks], parameters or {}
    if "out_dir" in parameters:
        raise ValueError("parameter 'out_dir' is set by the run itself: use out_dir= or --out")
    stems = [path.stem for path in paths]
    if len(set(stems)) < len(stems):
        raise ValueError(f"notebooks={stems}: two of one name would overwrite each other's results")
    for path in paths:
        _check_parameters(path, [*parameters, "out_dir"])
    folder, rows = Path(out_dir).resolve(), []
    folder.mkdir(parents=True, exist_ok=True)
    for path in paths:
        rows.append(_execute(path, folder, parameters))
        (folder / "summary.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    return rows


def _check_parameters(path: Path, names: Sequence[str]) -> None:
    """papermill only warns about an unknown name and runs on with the default; here it ends."""
    if not path.is_file():
        raise ValueError(f"notebook {path}: no such file")
    import papermill

    known = papermill.inspect_notebook(str(path))
    for name in sorted(set(names) - set(known)):
        there = ", ".join(known) or "none"
        raise ValueError(f"{path.name} has no parameter {name!r}; it has: {there}")


def _execute(path: Path, folder: Path, parameters: Mapping[str, object]) -> dict:
    import papermill

    executed, result = folder / path.name, folder / f"{path.stem}.json"
    result.unlink(missing_ok=True)  # or an earlier run's figures would pass for this one's
    row = {"notebook": path.stem, "seconds": 0.0, "status": "ok", "error": "", "headline": {}}
    row |= {"result": str(result), "executed": str(executed)}
    start_s = time.perf_counter()
    try:
        papermill.execute_notebook(
            str(path),
            str(executed),
            parameters={**parameters, "out_dir": str(folder)},
            cwd=str(ROOT),  # from anywhere, notebooks find specnb and data/
            execution_timeout=TIMEOUT_S,
            store_widget_state=False,  # megabytes, and Colab refuses such files
        )
        if not result.is_file():
            raise RuntimeError(f"ran to its end, but wrote no {result.name}")
        row["headline"] = json.loads(result.read_text(encoding="utf-8"))["headline"]
    except Exception as error:  # whatever goes wrong in one, the others still run
        text = "".join(traceback.format_exception_only(error)).strip()
        row |= {"status": "failed", "error": COLOUR.sub("", text).splitlines()[-1]}
    row["seconds"] = round(time.perf_counter() - start_s, 1)
    return row


def table(rows: Sequence[Mapping[str, object]]) -> str:
    """The rows as an aligned text table."""
    import pandas as pd

    def figure(value: object) -> str:
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    lines = [
        {
            "notebook": row["notebook"],
            "seconds": f"{row['seconds']:.1f}",
            "status": f"{row['status']} {row['error']}".strip(),
            "headline figures": ", ".join(f"{k} {figure(v)}" for k, v in row["headline"].items()),
        }
        for row in rows
    ]
    frame = pd.DataFrame(lines).apply(lambda column: column.str.ljust(column.str.len().max()))
    return frame.to_string(index=False, justify="left")


def _value(text: str) -> object:
    """A word from the command line as the scalar it looks like: number, true, false, None, text."""
    try:
        value = ast.literal_eval({"true": "True", "false": "False"}.get(text, text))
    except (ValueError, SyntaxError):
        return text
    return value if isinstance(value, int | float | None) else text


def main(argv: Sequence[str] | None = None) -> int:
    """0 when every notebook ran, 1 when one failed, 2 when nothing was started."""
    parser = argparse.ArgumentParser(prog="python -m specnb.batch")
    commands = parser.add_subparsers(required=True, dest="command")
    pages_command = commands.add_parser("html", help="make offline pages of a run")
    pages_command.add_argument("folder", metavar="DIR", help="results of a run")
    command = commands.add_parser("run", help="execute notebooks")
    command.add_argument("--out", metavar="DIR", help="results (runs/<timestamp>)")
    command.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"))
    command.add_argument("notebook", nargs="*", help="(all in notebooks/)")
    given = parser.parse_args(argv)
    if given.command == "html":
        try:
            print(*pages.write(given.folder), sep="\n")
        except ValueError as error:
            parser.error(str(error))
        return 0
    notebooks = given.notebook or sorted((ROOT / "notebooks").glob("*.ipynb"))
    out_dir = Path(given.out or ROOT / "runs" / f"{datetime.now():%Y%m%d-%H%M%S}")
    if not notebooks:
        parser.error("no notebooks in notebooks/")
    try:
        rows = run(notebooks, out_dir, {name: _value(text) for name, text in given.p})
    except ValueError as error:
        parser.error(str(error))
    print(table(rows), f"\nresults: {out_dir}", sep="\n")
    print(f"to read: {pages.write(out_dir)[-1]}")
    return int(any(row["status"] != "ok" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
