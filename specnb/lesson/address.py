"""What every notebook's first code cell has to know and to look like: the address, and its fold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from specnb._version import __version__
from specnb.paths import ROOT, need_checkout


# The line of the cell that is seen; Colab takes it for the title of a form.
TITLE = "# @title Set-up: run this cell first\n"
FOLD = {"cellView": "form", "jupyter": {"source_hidden": True}}


def folded(book: dict[str, Any]) -> dict[str, Any]:
    """The notebook, as JSON, with a set-up cell of which JupyterLab and Colab show one line."""
    for cell in book["cells"]:
        if "setup" in cell["metadata"].get("tags", []):
            cell["metadata"] = {**FOLD, **cell["metadata"]}
            if cell["source"][:1] != [TITLE]:
                cell["source"] = [TITLE, *cell["source"]]
    return book


def write_address(folder: Path = ROOT) -> int:
    """Writes pyproject.toml's address and the version into the notebooks' first cells; how many.

    On Colab a notebook comes alone, so each has to know where the rest of the project is. Their
    set-up cells are folded, too. Written twice, nothing changes.
    """
    import re
    import tomllib

    need_checkout("address", folder)
    project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    line = f'REPO, TAG = \\"{project["urls"]["Repository"]}\\", \\"v{__version__}\\"'
    paths = sorted((folder / "notebooks").glob("*.ipynb"))
    for path in paths:
        text = path.read_text(encoding="utf-8")
        text, n = re.subn(r'REPO, TAG = \\"[^"]*\\", \\"[^"]*\\"', lambda _: line, text)
        if n != 1:
            raise ValueError(f"{path.name}: {n} lines with REPO, TAG = ...; there must be one")
        text = json.dumps(folded(json.loads(text)), indent=1, ensure_ascii=False) + "\n"
        path.write_text(text, encoding="utf-8")
    return len(paths)
