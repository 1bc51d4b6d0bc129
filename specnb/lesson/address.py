"""What depends on the repository's address: notebooks' set-up cells, badges, README's lessons.

`make address` writes all of it from `pyproject.toml` and the notebooks themselves, and may be run
again at any time.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from specnb._version import __version__
from specnb.files import write_whole
from specnb.paths import ROOT, need_checkout

UNSET = "/OWNER/"
# The same in every notebook. On Colab a notebook comes alone, so it has to fetch the rest; nothing
# that Colab has is replaced (`--no-deps`).
SETUP = """\
# @title Set-up: run this cell first
# Finds specnb, in the repository around or installed; on Colab it is fetched.
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch is imported
REPO, TAG = "{repo}", "{tag}"  # written by `make address`
WHEEL = f"{{REPO}}/releases/download/{{TAG}}/specnb-{{TAG[1:]}}-py3-none-any.whl"
PIP = [sys.executable, "-m", "pip", "install", "-q", "--no-deps"]  # nothing there is replaced


def found():
    near = [Path.cwd(), *Path.cwd().parents, *sorted(Path("/content").glob("specnb*"))]
    roots = [p for p in near if (p / "specnb/__init__.py").exists() and (p / "data").exists()]
    sys.path[:0] = [str(p) for p in roots[:1] if str(p) not in sys.path]
    importlib.invalidate_caches()
    return getattr(importlib.util.find_spec("specnb"), "origin", None)  # not any folder


alone = "google.colab" in sys.modules and not found()
ways = [WHEEL, f"git+{{REPO}}@{{TAG}}", f"git+{{REPO}}"] if "/OWNER/" not in REPO else []
for way in ways if alone else []:
    if not subprocess.run([*PIP, way], capture_output=True).returncode:
        print("specnb from", way, "" if TAG in way else f"(no {{TAG}} there: this may be newer)")
        break
if alone and not found():
    from google.colab import files

    print("Choose a zip of the repository (on GitHub: Code, Download ZIP), or the wheel of specnb.")
    subprocess.run([*PIP, *files.upload()])
if not found():
    raise RuntimeError("specnb not found: start in the repository (papermill --cwd), or install it")

import specnb as sn

sn.setup()"""
COLAB_BADGE = "https://colab.research.google.com/assets/colab-badge.svg"
BINDER_BADGE = "https://mybinder.org/badge_logo.svg"
PAGES_BADGE = "https://img.shields.io/badge/read-the%20pages-blue"


FOLD = {"cellView": "form", "jupyter": {"source_hidden": True}}  # Colab, JupyterLab


def write_address(folder: Path = ROOT) -> int:
    """Writes set-up cells, Colab badges, and the marked parts of README; how many notebooks.

    The address is that of pyproject.toml, the tag that of the version. While the address is not set
    there are no badges, since their links would lead nowhere.
    """
    need_checkout("address", folder)
    repo = repository(folder)
    paths = sorted((folder / "notebooks").glob("*.ipynb"))
    for path in paths:
        book = json.loads(path.read_text(encoding="utf-8"))
        _write_setup(book, path.name, repo)
        _write_badge(book, path.name, repo)
        write_whole(path, json.dumps(book, indent=1, ensure_ascii=False) + "\n")
    readme = folder / "README.md"
    text = readme.read_text(encoding="utf-8")
    for mark, inside in (("badges", badges(repo)), ("lessons", table(folder / "notebooks"))):
        parts = re.split(rf"(?<=<!-- {mark} -->\n).*?(?=<!-- /{mark} -->)", text, flags=re.S)
        if len(parts) != 2:
            raise ValueError(f"README.md: there must be one pair of marks <!-- {mark} -->")
        text = f"{parts[0]}{inside}\n{parts[1]}"
    write_whole(readme, text)
    return len(paths)


def written(folder: Path = ROOT) -> str:
    """Calls `write_address`, and says in words what was written."""
    n = write_address(folder)
    if UNSET in repository(folder):
        return (
            f"set-up cells of {n} notebooks and README's lessons written, but no badges: the "
            "address in pyproject.toml is not set yet (OWNER); put yours there and call this again"
        )
    return (
        f"address and version written into {n} notebooks and README.md\n"
        "badges lead to the version's tag: push it, and attach the wheel to its release"
    )


def repository(folder: Path = ROOT) -> str:
    """The address in pyproject.toml; it holds UNSET until somebody has put theirs there."""
    import tomllib

    project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found: str = project["urls"]["Repository"]
    return found.rstrip("/").removesuffix(".git")


def _write_setup(book: dict[str, Any], name: str, repo: str) -> None:
    cells = [cell for cell in book["cells"] if "setup" in cell["metadata"].get("tags", [])]
    if len(cells) != 1:
        raise ValueError(f"{name}: {len(cells)} cells tagged setup; there must be one")
    cells[0]["metadata"] = {**FOLD, **cells[0]["metadata"]}  # one line of it is seen
    cells[0]["source"] = SETUP.format(repo=repo, tag=f"v{__version__}").splitlines(keepends=True)


def _write_badge(book: dict[str, Any], name: str, repo: str) -> None:
    """The line behind the title: a badge where the address is set; no words on REPO any more."""
    source = "".join(book["cells"][0]["source"])
    source = re.sub(r"\[!\[Open in Colab\]\([^)]*\)\]\([^)]*\)\n\n", "", source)
    source = re.sub(
        r"\s*On Colab: put\sthe\s+address\s.*?first code cell\.", "", source, flags=re.S
    )
    if UNSET not in repo:
        title, _, rest = source.partition("\n\n")
        source = f"{title}\n\n{colab(repo, name)}\n\n{rest}"
    book["cells"][0]["source"] = source.splitlines(keepends=True)


def colab(repo: str, name: str) -> str:
    """The badge of one notebook."""
    path = repo.removeprefix("https://github.com/")
    link = f"https://colab.research.google.com/github/{path}/blob/v{__version__}/notebooks/{name}"
    return f"[![Open in Colab]({COLAB_BADGE})]({link})"


def badges(repo: str) -> str:
    """README's badges: the pages, Colab, Binder."""
    if UNSET in repo:
        return (
            "*Links to pages, Colab and Binder appear here once `pyproject.toml` has an address "
            "and\n`make address` has been run.*"
        )
    owner, _, name = repo.removeprefix("https://github.com/").partition("/")
    pages = f"[![Read the pages]({PAGES_BADGE})](https://{owner.lower()}.github.io/{name}/)"
    first = "lab/tree/notebooks/00_start_here.ipynb"
    binder = f"[![Binder]({BINDER_BADGE})](https://mybinder.org/v2/gh/{owner}/{name}/HEAD?urlpath={first})"
    return "\n".join([pages, colab(repo, "00_start_here.ipynb"), binder])


# ------------------------------------------------------------------------------------ the lessons


def lessons(folder: Path) -> Iterator[dict[str, str]]:
    """Of every notebook: file, number, title, minutes ("" for a report), what readers will do."""
    for path in sorted(folder.glob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        words = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
        title = re.match(r"# (\d\d) (.+)", words[0])
        if title is None:
            raise ValueError(f"{path.name}: its first line must be `# NN Title`")
        minutes = re.search(r"(\d+) minutes", words[0])
        first = re.search(
            r"\*\*You will\*\*(?:\s*\n\s*-)?\s+(.*?)(?:;|\.?\s*\n\s*-|\.?\n\n|\Z)", words[1], re.S
        )
        yield {
            "file": path.name,
            "number": title[1],
            "title": title[2].strip(),
            "minutes": minutes[1] if minutes else "",
            "will": " ".join(first[1].split()).rstrip(".;") if first else "",
        }


def table(folder: Path) -> str:
    """README's table of lessons; reports on sweeps are no lessons."""
    lines = ["| lesson | minutes | you will |", "|---|---|---|"]
    for one in lessons(folder):
        if not one["minutes"]:  # a report, filled by a sweep
            continue
        link = f"[{one['number']} {one['title']}](notebooks/{one['file']})"
        lines.append(f"| {link} | {one['minutes']} | {one['will']} |")
    return "\n".join(lines)
