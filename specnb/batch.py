"""Runs notebooks by papermill, one after the other, and says what came out of each.

    python -m specnb.batch run [--out DIR] [-p NAME VALUE]... [notebook ...]
"""

import argparse
import ast
import json
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TIMEOUT_S = 600  # per cell: a cell that never ends must not hold up the night


def run(
    notebooks: Sequence[str | Path],
    out_dir: str | Path,
    parameters: Mapping[str, object] | None = None,
) -> list[dict]:
    """Executes the notebooks into `out_dir`; one row each, also written to `summary.json`.

    A row has notebook, seconds, status ("ok" or "failed"), error (last line), headline (figures by
    name), result (the notebook's own JSON) and executed (its executed copy). A failing notebook
    does not stop the others. Raises ValueError before anything runs when a notebook is missing or
    lacks one of the parameters.
    """
    paths = [Path(notebook).resolve() for notebook in notebooks]
    parameters = dict(parameters or {})
    if "out_dir" in parameters:
        raise ValueError("parameter 'out_dir' is set by the run itself: use out_dir= or --out")
    stems = [path.stem for path in paths]
    if len(set(stems)) < len(stems):
        raise ValueError(f"notebooks={stems}: two of one name would overwrite each other's results")
    for path in paths:
        _check_parameters(path, [*parameters, "out_dir"])
    folder = Path(out_dir).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for path in paths:
        rows.append(_execute(path, folder, parameters))
        (folder / "summary.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    return rows


def _check_parameters(path: Path, names: Sequence[str]) -> None:
    """papermill only warns about an unknown name and runs on with the default; here it ends."""
    import papermill

    if not path.is_file():
        raise ValueError(f"notebook {path}: no such file")
    known = papermill.inspect_notebook(str(path))
    for name in names:
        if name not in known:
            there = ", ".join(known) or "none"
            raise ValueError(f"{path.name} has no parameter {name!r}; it has: {there}")


def _execute(path: Path, folder: Path, parameters: Mapping[str, object]) -> dict:
    import papermill

    executed, result = folder / path.name, folder / f"{path.stem}.json"
    result.unlink(missing_ok=True)  # or an earlier run's figures would pass for this one's
    row = {"notebook": path.stem, "seconds": 0.0, "status": "ok", "error": "", "headline": {}}
    row |= {"result": str(result), "executed": str(executed)}
    print(path.name, file=sys.stderr)
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
        row["headline"] = json.loads(result.read_text(encoding="utf-8"))["headline"]
    except FileNotFoundError as error:
        if error.filename != str(result):
            raise
        row |= {"status": "failed", "error": f"ran through, but wrote no {result.name}"}
    except Exception as error:  # whatever goes wrong in one, the others still run
        lines = str(error).strip().splitlines() or [type(error).__name__]
        row |= {"status": "failed", "error": lines[-1]}
    row["seconds"] = round(time.perf_counter() - start_s, 1)
    return row


def table(rows: Sequence[Mapping[str, object]]) -> str:
    """The rows as an aligned text table."""
    import pandas as pd

    def number(value: object) -> str:
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    lines = {
        "notebook": [row["notebook"] for row in rows],
        "seconds": [f"{row['seconds']:.1f}" for row in rows],
        "status": [f"{row['status']} {row['error']}".strip() for row in rows],
        "headline figures": [
            ", ".join(f"{name} {number(value)}" for name, value in row["headline"].items())
            for row in rows
        ],
    }
    for name in ("notebook", "status", "headline figures"):
        width = max(len(text) for text in [name, *lines[name]])
        lines[name] = [text.ljust(width) for text in lines[name]]
    return pd.DataFrame(lines).to_string(index=False, justify="left")


def _value(text: str) -> object:
    """A word from the command line as the scalar it looks like: number, true, false, none, text."""
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    return value if isinstance(value, int | float | str) else text


def main(argv: Sequence[str] | None = None) -> int:
    """0 when every notebook ran, 1 when one failed, 2 when nothing was started."""
    parser = argparse.ArgumentParser(prog="python -m specnb.batch")
    command = parser.add_subparsers(required=True).add_parser("run", help="execute notebooks")
    command.add_argument("--out", metavar="DIR", help="results folder (runs/<timestamp>)")
    command.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"))
    command.add_argument("notebook", nargs="*", help="all in notebooks/ unless given")
    given = parser.parse_args(argv)
    notebooks = given.notebook or sorted((ROOT / "notebooks").glob("*.ipynb"))
    out_dir = Path(given.out or ROOT / "runs" / datetime.now().strftime("%Y%m%d-%H%M%S"))
    if not notebooks:
        parser.error("no notebooks in notebooks/")
    try:
        rows = run(notebooks, out_dir, {name: _value(text) for name, text in given.p})
    except ValueError as error:
        parser.error(str(error))
    print(table(rows), f"\nresults: {out_dir}", sep="\n")
    return int(any(row["status"] != "ok" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
