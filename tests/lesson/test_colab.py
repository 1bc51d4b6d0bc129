"""A notebook that was opened alone starts: with a stand-in for `google.colab`, real pip and git.

What is fetched is a small project called specnb, whose wheel takes no time to build; the wheel of
the real one is tested in tests/frame/test_wheel.py.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from places import ROOT

from specnb import __version__
from specnb.lesson import address

TAG = f"v{__version__}"
STUB = """
import sys, types
from pathlib import Path
colab = types.ModuleType("google.colab")
class files:
    def upload():
        print("asked for a file")
        chosen = Path({chosen!r})
        if not chosen.name:
            return {{}}
        Path(chosen.name).write_bytes(chosen.read_bytes())
        return {{chosen.name: chosen.read_bytes()}}
colab.files = files
sys.modules["google"] = types.ModuleType("google")
sys.modules["google.colab"] = colab
"""
BACKEND = f"""
import zipfile
def build_wheel(folder, config_settings=None, metadata_directory=None):
    name = "specnb-{__version__}-py3-none-any.whl"
    with zipfile.ZipFile(f"{{folder}}/{{name}}", "w") as wheel:
        wheel.write("specnb/__init__.py")
        info = "specnb-{__version__}.dist-info"
        known = ["Metadata-Version: 2.1", "Name: specnb", "Version: {__version__}", ""]
        wheel.writestr(f"{{info}}/METADATA", "\\n".join(known))
        tags = ["Wheel-Version: 1.0", "Tag: py3-none-any", "Root-Is-Purelib: true", ""]
        wheel.writestr(f"{{info}}/WHEEL", "\\n".join(tags))
        wheel.writestr(f"{{info}}/RECORD", "")
    return name
"""


def runs(python: str | None) -> bool:
    """Whether there is such a Python, with pip; a shim of a version that is not chosen does not."""
    command = [python or "", "-m", "pip", "--version"]
    return bool(python) and not subprocess.run(command, capture_output=True).returncode


NEWEST = shutil.which("python3.13")  # Colab's


@pytest.fixture
def project(tmp_path) -> Path:
    """A repository of a small specnb, without a tag."""
    folder = tmp_path / "repo"
    (folder / "specnb").mkdir(parents=True)
    (folder / "data").mkdir()
    (folder / "data" / "some").write_text("data")
    (folder / "specnb" / "__init__.py").write_text("def setup():\n    print('set up', __file__)\n")
    (folder / "backend.py").write_text(BACKEND)
    (folder / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
        f'[project]\nname = "specnb"\nversion = "{__version__}"\n'
    )
    git(folder, "init", "-q", "-b", "main")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "all")
    return folder


def git(folder: Path, *words: str) -> None:
    who = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
    subprocess.run(["git", *who, *words], cwd=folder, check=True)


def wheel_of(project: Path) -> Path:
    """In the place where a release of the project would have it."""
    goal = project / "releases" / "download" / TAG
    goal.mkdir(parents=True)
    code = f"import backend; backend.build_wheel({str(goal)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=project, check=True)
    return next(goal.glob("*.whl"))


def zip_of(project: Path, folder: Path) -> Path:
    """As GitHub names and packs it."""
    inside = folder / "pack" / "specnb-main"
    shutil.copytree(project, inside, ignore=shutil.ignore_patterns(".git"))
    return Path(shutil.make_archive(str(folder / "specnb-main"), "zip", inside.parent))


def start(
    tmp_path: Path,
    repo: str,
    chosen: str | Path = "",
    content: Path | None = None,
    python: str = sys.executable,
):
    """The set-up cell in a process that has no specnb but what the cell fetches."""
    alone, target = tmp_path / "alone", tmp_path / "target"
    alone.mkdir(exist_ok=True)
    target.mkdir(exist_ok=True)
    source = address.SETUP.format(repo=repo, tag=TAG)
    source = source.replace('"/content"', repr(str(content or tmp_path / "content")))
    paths = [str(target)]
    if python == sys.executable:  # its packages, but not what is installed to be edited
        paths.append(sysconfig.get_paths()["purelib"])
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    env |= {"PYTHONPATH": os.pathsep.join(paths), "PIP_TARGET": str(target)}
    env |= {"PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    code = STUB.format(chosen=str(chosen)) + f"exec({source!r})"
    command = [python, "-S", "-c", code]
    return subprocess.run(command, cwd=alone, env=env, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "python",
    [
        sys.executable,
        pytest.param(NEWEST, marks=pytest.mark.skipif(not runs(NEWEST), reason="no Python 3.13")),
    ],
)
def test_it_takes_the_wheel_of_the_release(tmp_path, project, python):
    wheel_of(project)
    done = start(tmp_path, project.as_uri(), python=python)
    assert done.returncode == 0, done.stderr
    assert "specnb from file://" in done.stdout and ".whl" in done.stdout
    assert f"set up {tmp_path / 'target'}" in done.stdout and "asked" not in done.stdout


@pytest.mark.slow
def test_else_the_tag_and_else_the_default_branch_with_a_word(tmp_path, project):
    done = start(tmp_path, project.as_uri())
    assert done.returncode == 0, done.stderr
    assert "this may be newer" in done.stdout and "set up" in done.stdout
    shutil.rmtree(tmp_path / "target")
    git(project, "tag", TAG)
    done = start(tmp_path, project.as_uri())
    assert done.returncode == 0, done.stderr
    assert f"@{TAG}" in done.stdout and "newer" not in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("repo", ["https://github.com/OWNER/specnb", "file:///nowhere/specnb"])
@pytest.mark.parametrize("kind", ["zip", "wheel"])
def test_else_it_asks_for_a_file(tmp_path, project, repo, kind):
    chosen = zip_of(project, tmp_path) if kind == "zip" else wheel_of(project)
    done = start(tmp_path, repo, chosen)
    assert done.returncode == 0, done.stderr
    assert "Choose a zip" in done.stdout and "asked for a file" in done.stdout
    assert f"set up {tmp_path / 'target'}" in done.stdout


@pytest.mark.slow
def test_no_file_is_said_in_words(tmp_path):
    done = start(tmp_path, "https://github.com/OWNER/specnb")
    assert done.returncode != 0
    assert "specnb not found" in done.stderr and "asked for a file" in done.stdout
    assert "CalledProcessError" not in done.stderr


def test_an_unpacked_zip_is_found_under_any_name(tmp_path, project):
    shutil.copytree(project, tmp_path / "content" / "specnb-main")
    done = start(tmp_path, "https://github.com/OWNER/specnb")
    assert done.returncode == 0, done.stderr
    assert "asked" not in done.stdout and "content/specnb-main" in done.stdout


def test_nothing_of_colab_is_replaced():
    assert '"--no-deps"' in address.SETUP and "-U" not in address.SETUP
    assert "upgrade" not in address.SETUP


# ------------------------------------------------------------------------------------ make address


@pytest.fixture
def copy(tmp_path) -> Path:
    for name in ("README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    return tmp_path


def test_every_notebook_has_the_same_set_up_cell(copy):
    before = {path.name: path.read_bytes() for path in (copy / "notebooks").glob("*.ipynb")}
    assert address.write_address(copy) == len(before)
    assert "no badges" in (said := address.written(copy)) and "not set yet (OWNER)" in said
    for path in (copy / "notebooks").glob("*.ipynb"):
        assert path.read_bytes() == before[path.name], f"{path.name}: run `make address`"


def test_an_address_writes_badges_and_can_be_taken_back(copy):
    plain = {path.name: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    project = (copy / "pyproject.toml").read_text()
    (copy / "pyproject.toml").write_text(project.replace("github.com/OWNER", "github.com/someone"))
    address.write_address(copy)
    assert "badges lead to the version's tag" in address.written(copy)  # the second time, too
    for path in (copy / "notebooks").glob("*.ipynb"):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        first = "".join(cells[0]["source"])
        assert first.count("colab-badge.svg") == 1 and f"notebooks/{path.name}" in first
        assert "github.com/someone/specnb" in "".join(cells[2]["source"])
        assert "OWNER" not in path.read_text(encoding="utf-8").replace('"/OWNER/"', "").replace(
            '\\"/OWNER/\\"', ""
        )
    assert "colab-badge.svg" in (copy / "README.md").read_text(encoding="utf-8")
    (copy / "pyproject.toml").write_text(project)
    address.write_address(copy)
    assert {path.name: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == plain
