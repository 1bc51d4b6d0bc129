"""Where data, notebooks and results lie: in a checkout of the repository, or in an installed wheel.

The wheel carries `data/` and `notebooks/` in a folder inside the package (see pyproject.toml), so
that under `ROOT` both look the same.
"""

from __future__ import annotations

import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
SHARE = PACKAGE / "_share"  # only a wheel has it
ROOT = SHARE if SHARE.is_dir() else PACKAGE.parent
DATA = ROOT / "data"
NOTEBOOKS = ROOT / "notebooks"


def is_checkout(root: Path = ROOT) -> bool:
    """Whether this is the repository, where things may be written, and not an installed wheel."""
    return (root / "pyproject.toml").is_file()


def need_checkout(what: str, root: Path = ROOT) -> None:
    """ValueError where there is no repository for `what` to change."""
    if not is_checkout(root):
        raise ValueError(f"{what}: this needs the repository; clone it and pip install -e .")


def need_share(root: Path = ROOT) -> None:
    """ValueError where the code is alone: neither a checkout nor an installed wheel."""
    missing = [name for name in ("data", "notebooks") if not (root / name).is_dir()]
    if missing:
        raise ValueError(
            f"specnb is here without its {' and '.join(missing)}, which should be in {root}: "
            "install its wheel, or clone the repository and pip install -e ."
        )


def need_folder(what: str, folder: str | Path) -> None:
    """ValueError where `folder` is no folder and cannot become one, as a file stands in its way."""
    whole = Path(folder).absolute()
    there = next(place for place in (whole, *whole.parents) if os.path.lexists(place))
    if not there.is_dir():
        where = "this" if there == whole else str(there)
        kind = "a file" if there.exists() else "a link to nowhere"
        raise ValueError(f"{what}={str(folder)!r}: {where} is {kind}; give a folder")


def to_install(extra: str, *packages: str, root: Path = ROOT) -> str:
    """How to get an extra's packages: specnb itself is on no index from where pip could take it."""
    words = f"-e '.[{extra}]'" if is_checkout(root) else " ".join(packages)
    return f"pip install {words}"


def runs() -> Path:
    """Where results go if nobody says so: runs/ of the repository, or of the working directory."""
    return (ROOT if is_checkout() else Path.cwd()) / "runs"


def resolved(name: str) -> str:
    """A relative path that is not here but under `ROOT`, as that path; else unchanged."""
    there = bool(name) and not Path(name).exists() and (ROOT / name).exists()
    return str(ROOT / name) if there else name
