"""Where the rest of the project is, as each notebook has to know on Colab."""

from __future__ import annotations

from pathlib import Path

from specnb._version import __version__
from specnb.paths import ROOT, need_checkout


def write_address(folder: Path = ROOT) -> int:
    """Writes pyproject.toml's address and the version into the notebooks' first cells; how many.

    On Colab a notebook comes alone, so each has to know where the rest of the project is.
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
        path.write_text(text, encoding="utf-8")
    return len(paths)
