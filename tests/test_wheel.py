"""The wheel, used away from the checkout; and the command `specnb`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from specnb import cli, paths

ROOT = Path(__file__).parents[1]
LARGEST = 45e6  # bytes


def test_the_command_speaks(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["--help"])
    assert not ended.value.code and "doctor" in capsys.readouterr().out


def test_lab_copies_and_leaves_ones_own_work(tmp_path, capsys):
    assert not cli.main(["lab", str(tmp_path / "mine"), "--no-start"])
    books = sorted(path.name for path in (tmp_path / "mine").glob("*.ipynb"))
    assert books == sorted(path.name for path in paths.NOTEBOOKS.glob("*.ipynb"))
    own = tmp_path / "mine" / books[0]
    own.write_text("my work")
    assert not cli.main(["lab", str(tmp_path / "mine"), "--no-start"])
    assert own.read_text() == "my work" and f"kept {own}" in capsys.readouterr().out


def test_lab_refuses_a_file(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    try:
        code = cli.main(["lab", str(tmp_path / "file"), "--no-start"])
    except SystemExit as ended:
        code = ended.code
    assert code and "this is a file; give a folder" in capsys.readouterr().err


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """An interpreter with the wheel, and with this one's packages behind it."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "-w",
        str(folder),
        str(ROOT),
    ]
    subprocess.run(command, check=True)
    (wheel,) = folder.glob("specnb-*.whl")
    assert wheel.stat().st_size < LARGEST
    venv.create(folder / "env", with_pip=False)
    (site,) = (folder / "env").glob("lib/python*/site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    # A plain path: files of its own, such as that of an editable specnb, are not read there.
    (site / "behind.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "env" / "bin" / "python"


def run(python, folder, *command):
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    clean["JUPYTER_PATH"] = f"{sys.prefix}/share/jupyter"  # templates of the packages behind
    done = subprocess.run(
        [python, *command], cwd=folder, env=clean, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.notebook
@pytest.mark.skipif(os.name == "nt", reason="folders of an environment have other names there")
def test_the_wheel_works_from_anywhere(python, tmp_path):
    words = "import specnb as sn; print(sn.__file__); print(sn.load_pair().describe())"
    words += "; print(len(sn.scenes.examples('caption', 2, 0)))"
    said = run(python, tmp_path, "-c", words)
    assert str(python.parents[1]) in said.splitlines()[0] and said.splitlines()[-1] == "2"
    run(python, tmp_path, "-m", "specnb.cli", "doctor")
    out = tmp_path / "out"
    run(python, tmp_path, "-m", "specnb.cli", "run", "00_start_here", "--out", str(out))
    (row,) = (json.loads(path.read_text()) for path in out.glob("00_start_here*.json"))
    assert row["status"] == "ok"
