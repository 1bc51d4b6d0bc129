"""The solutions of the exercises as notebooks, made of what stands folded in the lessons.

`python -m specnb.lesson.solutions` writes `notebooks/solutions/`; a test holds the files against
the lessons and runs them.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from specnb import arguments
from specnb.files import write_whole
from specnb.paths import ROOT, need_checkout

SOLUTION = re.compile(
    r"<details><summary>Solution</summary>\s*```python\n(.*?)```\s*(.*?)\s*</details>", re.DOTALL
)


def solutions(lesson: Path) -> dict[str, Any] | None:
    """The notebook with a lesson's solutions, as JSON; None where it has no exercise."""
    book = json.loads(lesson.read_text(encoding="utf-8"))
    cells: list[dict[str, Any]] = []
    n = 0

    def add(kind: str, source: str) -> None:
        cell: dict[str, Any] = {"cell_type": kind, "id": f"s{lesson.stem[:2]}-{len(cells):02}"}
        cell |= {"metadata": {}, "source": source.splitlines(keepends=True)}
        if kind == "code":
            cell |= {"execution_count": None, "outputs": []}
        cells.append(dict(sorted(cell.items())))

    title = "".join(book["cells"][0]["source"]).splitlines()[0].removeprefix("# ")
    add("markdown", f"# Solutions of {title}\n\nMade from `{lesson.name}`; do not edit.")
    add("code", "import specnb as sn")
    for index, cell in enumerate(book["cells"]):
        if cell["metadata"].get("tags") != ["exercise"]:
            continue
        task, check, folded = (
            "".join(book["cells"][place]["source"]) for place in (index - 1, index + 1, index + 3)
        )
        found = SOLUTION.search(folded)
        if found is None:
            raise ValueError(f"{lesson.name}: no solution three cells behind cell {index}")
        add("markdown", task)
        add("code", found[1].rstrip("\n"))
        add("code", check)
        if found[2]:
            add("markdown", found[2])
        n += 1
    if not n:
        return None
    if any("torch." in "".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"):
        cells[1]["source"] = ["import torch\n", "\n", *cells[1]["source"]]
    kept = {key: book["metadata"][key] for key in ("kernelspec", "language_info")}
    return {"cells": cells, "metadata": kept, "nbformat": 4, "nbformat_minor": 5}


def write_solutions(folder: Path = ROOT) -> list[Path]:
    """Writes a notebook of solutions for every lesson of a checkout that has exercises."""
    need_checkout("solutions", folder)
    written = []
    for lesson in sorted((folder / "notebooks").glob("*.ipynb")):
        book = solutions(lesson)
        if book is not None:
            path = folder / "notebooks" / "solutions" / lesson.name
            write_whole(path, json.dumps(book, indent=1, ensure_ascii=False) + "\n")
            written.append(path)
    return written


if __name__ == "__main__":
    arguments.no_options("specnb.lesson.solutions", __doc__)
    print(*write_solutions(), sep="\n")
