"""All rows of a folder as one tidy table, and the report on it."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specnb.batch.execute import execute_notebook, read_row
from specnb.batch.scheduler import PLAN
from specnb.files import finite, missing_words, write_whole
from specnb.paths import NOTEBOOKS, ROOT, need_share

if TYPE_CHECKING:
    import pandas as pd

APART = ("summary.json", PLAN)  # not a row
TEXTS = ("task", "method", "accepted_lengths", "kept_by_word")
NUMBERS = ("budget", "prompt", "tokens", "target_calls", "drafted", "accepted")
NUMBERS += ("seconds", "plain_seconds", "plain_tokens")


def collect(folder: str | Path) -> pd.DataFrame:
    """One line per measurement, and one for a run without any; also as table.parquet and .csv.

    Columns: run, notebook, status, seed; param.* as they held; task, method, budget, prompt and
    what was counted and timed there; block_efficiency and speedup (plain decoding's time per token
    over this one's, without prefill) where they are defined; figure.* of the whole run; version.*,
    machine, threads, finished. What is no row is named on stderr and left out. ValueError where
    the folder has no row at all.
    """
    import pandas as pd

    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"folder {folder}: there is no such folder")
    wanted = _planned(folder)
    lines: list[dict[str, Any]] = []
    for path in sorted(folder.glob("*.json")):
        if path.name in APART:
            continue
        row = read_row(path)
        if isinstance(row, dict) and wanted and row["id"] not in wanted:
            row = "it is not of the last sweep here"
        if isinstance(row, str):
            print(f"left out {path.name}: {row}", file=sys.stderr)
            continue
        before, row = row, finite(row, "parameters")  # rows of older versions, and of others
        if row.get("not_finite") != before.get("not_finite"):
            print(f"{path.name}: {missing_words(row)}", file=sys.stderr)
        lines += _lines(row)
    if not lines:
        raise ValueError(f"folder {folder}: it has no result of a run")
    table = pd.DataFrame(lines)
    seeds = [line["seed"] for line in lines]
    if {type(seed) for seed in seeds} == {int, type(None)}:
        table["seed"] = pd.array(seeds, dtype="Int64")  # floats, pandas' own choice, lose digits
    if "tokens" in table:
        missing = [name for name in NUMBERS if name not in table or table[name].isna().all()]
        table[missing] = float("nan")
        table["block_efficiency"] = table["tokens"] / table["target_calls"]
        plain = table["plain_seconds"] / table["plain_tokens"]
        table["speedup"] = plain / (table["seconds"] / table["tokens"])
    for name in table.columns:
        mixed = pd.api.types.is_object_dtype(table[name])
        if mixed and len({type(value) for value in table[name].dropna()}) > 1:  # not for Parquet
            table[name] = table[name].map(str, na_action="ignore")
    parquet = io.BytesIO()
    table.to_parquet(parquet, index=False)
    write_whole(folder / "table.parquet", parquet.getvalue())
    write_whole(folder / "table.csv", table.to_csv(index=False))
    return table


def _planned(folder: Path) -> set[str]:
    """The ids of the last call in this folder; empty where that is not known."""
    try:
        return set(json.loads((folder / PLAN).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return set()


def _lines(row: dict[str, Any]) -> list[dict[str, Any]]:
    common = {key: row[key] for key in ("notebook", "status")}
    common = {"run": row["id"], **common, "seed": row.get("seed")}
    common |= {f"param.{k}": v for k, v in row["parameters"].items() if k != "seed"}
    after = {f"figure.{k}": v for k, v in row["headline"].items() if not isinstance(v, dict | list)}
    after |= {f"version.{k}": v for k, v in row["versions"].items()}
    after |= {key: row.get(key) for key in ("machine", "threads", "finished", "error")}
    found = [one for one in row["measurements"] if _is_measured(one)]
    if len(found) < len(row["measurements"]):
        n = len(row["measurements"]) - len(found)
        print(f"left out of {row['id']}: {n} lines that are no measurement", file=sys.stderr)
    known = (*TEXTS, *NUMBERS)
    return [
        common | {key: one[key] for key in known if key in one} | after for one in found or [{}]
    ]


def _is_measured(one: Any) -> bool:
    if not isinstance(one, dict) or not all(one.get(k) for k in ("tokens", "target_calls")):
        return False
    return all(isinstance(one.get(name, 0) or 0, int | float) for name in NUMBERS)


def report(folder: str | Path) -> Path:
    """Collects a folder and writes report.ipynb and report.html into it; the page's path.

    RuntimeError where the report does not run to its end.
    """
    import papermill

    from specnb.batch import export

    need_share()
    folder = Path(folder).resolve()
    collect(folder)
    executed = folder / "report.ipynb"
    try:
        execute_notebook(
            str(NOTEBOOKS / "90_report.ipynb"),
            str(executed),
            parameters={"folder": str(folder)},
            cwd=str(ROOT),
            progress_bar=False,
            store_widget_state=False,
        )
    except papermill.PapermillExecutionError as error:
        raise RuntimeError(f"the report stopped: {error.ename}: {error.evalue}") from error
    body, _ = export.page(executed)
    write_whole(folder / "report.html", body)
    return folder / "report.html"
