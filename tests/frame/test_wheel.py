"""Where things lie, the command `specnb`, and the wheel: built, installed apart, used elsewhere."""

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from email.message import Message
from pathlib import Path

import nbformat
import pytest
from places import ROOT

from specnb import batch, cli, doctor, paths, smollm2

LARGEST = 45_000_000  # bytes of a wheel

# ---- paths


def test_a_checkout_has_everything_at_its_root(tmp_path, monkeypatch):
    assert paths.ROOT == ROOT and paths.PACKAGE == ROOT / "specnb" and paths.is_checkout()
    paths.need_share()
    paths.need_checkout("this")
    monkeypatch.chdir(tmp_path)
    assert paths.runs() == ROOT / "runs"
    assert paths.resolved("data/eval") == str(ROOT / "data" / "eval")
    assert paths.resolved("nowhere") == "nowhere" and paths.resolved("") == ""
    (tmp_path / "data" / "eval").mkdir(parents=True)
    assert paths.resolved("data/eval") == "data/eval"  # what is here comes first


def test_a_wheel_has_everything_inside_the_package(tmp_path, monkeypatch):
    """With only the module in place: it looks at the folder beside it and nothing else."""
    package, elsewhere = tmp_path / "specnb", tmp_path / "elsewhere"
    (package / "_share" / "data").mkdir(parents=True)
    elsewhere.mkdir()
    (package / "__init__.py").touch()
    shutil.copy(ROOT / "specnb" / "paths.py", package)
    code = (
        "from specnb import paths; print(paths.ROOT, paths.runs(), sep='\\n')\n"
        "print(paths.to_install('gpu', 'accelerate', 'bitsandbytes'))\n"
        "for check in (lambda: paths.need_checkout('this'), paths.need_share):\n"
        "    try: check()\n"
        "    except ValueError as error: print(error)"
    )
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=elsewhere, env=env, capture_output=True, text=True)
    root, runs, install, refused, lacking = done.stdout.splitlines()
    assert root == str(package / "_share") and runs == str(elsewhere / "runs")
    assert install == "pip install accelerate bitsandbytes"
    assert refused == "this: this needs the repository; clone it and pip install -e ."
    assert lacking.startswith("specnb is here without its notebooks, which should be in")


def test_only_a_checkout_is_written_to(monkeypatch, capsys):
    from specnb.training import __main__ as training

    monkeypatch.setattr(paths, "is_checkout", lambda root=None: False)
    for argv, call in (
        (["doctor", "--write-sums"], lambda: doctor.main(["--write-sums"])),
        (["training", "sets"], training.main),
        (["training", "drafter"], training.main),
    ):
        monkeypatch.setattr(sys, "argv", argv)
        with pytest.raises(SystemExit) as ended:
            call()
        assert ended.value.code == 2
        assert "this needs the repository; clone it" in capsys.readouterr().err


def test_floors_are_those_of_the_metadata_without_a_pyproject(monkeypatch):
    python, needed = doctor.floors()
    assert python == ">=3.11" and "safetensors>=0.6" in needed
    metadata = Message()
    metadata["Requires-Python"] = ">=3.9"
    for line in ("torch>=2.6", "transformers<6,>=5.0", "gguf>=0.10; extra == 'gguf'"):
        metadata["Requires-Dist"] = line
    monkeypatch.setattr(importlib.metadata, "metadata", {"specnb": metadata}.get)
    monkeypatch.setattr(paths, "is_checkout", lambda: False)
    assert doctor.floors() == (">=3.9", ["torch>=2.6", "transformers<6,>=5.0"])


# ---- the command


def run_cli(argv: list[str], capsys) -> tuple[int, str, str]:
    """Exit code, stdout and stderr, however it ends."""
    try:
        code = cli.main(argv)
    except SystemExit as ended:
        code = ended.code
    return code, *capsys.readouterr()


def test_help_names_every_command(capsys):
    code, out, _ = run_cli(["--help"], capsys)
    assert code == 0
    for name in (*cli.ELSEWHERE, "lab", "smollm2"):
        assert f"\n    {name} " in out, name
    assert run_cli(["lab", "--help"], capsys)[0] == 0
    code, out, _ = run_cli(["run", "--help"], capsys)
    assert code == 0 and out.startswith("usage: specnb run")
    assert run_cli(["--version"], capsys)[1] == f"specnb {cli.__version__}\n"


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "COMMAND"),
        (["fly"], "invalid choice: 'fly'"),
        (["run", "nowhere"], "notebook 'nowhere': no such file"),
        (["run", "--fast"], "unrecognized arguments: --fast"),
        (["run", "00_start_here", "-p", "draft_lenght", "3"], "did you mean 'draft_length'?"),
        (["sweep", "nowhere.yml"], "sweep nowhere.yml: no such file"),
        (["report", "nowhere"], "there is no such folder"),
        (["doctor", "--all"], "unrecognized arguments: --all"),
        (["lab", "a", "b"], "unrecognized arguments: b"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(argv, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = run_cli(argv, capsys)
    assert code == 2 and out == ""
    assert err.startswith("specnb") and said in err and err.count("\n") == 1


def test_errors_from_below_have_no_traceback(capsys, monkeypatch):
    for error in (ValueError("a\nb"), OSError("a\nb"), RuntimeError("a\nb")):

        def fail(error=error):
            raise error

        monkeypatch.setattr(smollm2, "make", fail)
        assert run_cli(["smollm2"], capsys) == (2, "", "specnb: error: a b\n")


def test_lines_are_handed_over_whole(monkeypatch):
    seen = []
    for module in (batch, doctor):
        monkeypatch.setattr(module, "main", lambda argv, prog: seen.append((argv, prog)) or 3)
    line = ["run", "--out", "x", "-p", "draft_length", "7", "00_start_here"]
    assert cli.main(line) == cli.main(["doctor", "--help"]) == 3
    assert seen == [(line, "specnb"), (["--help"], "specnb doctor")]


# ---- lab


def test_lab_copies_and_never_overwrites(tmp_path, capsys):
    desk = tmp_path / "my desk"
    assert run_cli(["lab", str(desk), "--no-start"], capsys)[0] == 0
    for path in (*paths.NOTEBOOKS.glob("*.ipynb"), paths.NOTEBOOKS / "images" / "panel.png"):
        assert (desk / path.relative_to(paths.NOTEBOOKS)).read_bytes() == path.read_bytes()
    mine = desk / "00_start_here.ipynb"
    mine.write_text("my own work")
    (desk / "90_report.ipynb").unlink()
    code, out, _ = run_cli(["lab", str(desk), "--no-start"], capsys)
    assert code == 0 and mine.read_text() == "my own work"
    kept, copied, where = out.splitlines()
    assert kept.startswith(f"kept {mine}, which is not as shipped")
    assert copied == f"copied {desk / '90_report.ipynb'}" and where == f"notebooks: {desk}"


def test_lab_starts_on_this_machine_only(tmp_path, capsys, monkeypatch):
    calls, ends = [], [KeyboardInterrupt, 5]

    class Server:
        def __init__(self, command):
            calls.append(command)

        def wait(self):
            if (end := ends.pop(0)) is KeyboardInterrupt:
                raise end
            return end

    monkeypatch.setattr(subprocess, "Popen", Server)
    assert cli.main(["lab", str(tmp_path)]) == 5
    (command,) = calls
    assert command[1:] == ["-m", "jupyterlab", "--ip=127.0.0.1", f"--notebook-dir={tmp_path}"]


def test_lab_refuses_in_words(tmp_path, capsys, monkeypatch):
    taken = tmp_path / "taken"
    taken.touch()
    code, _, err = run_cli(["lab", str(taken), "--no-start"], capsys)
    assert code == 2 and err.endswith("this is a file; give a folder\n")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    code, _, err = run_cli(["lab", str(tmp_path / "new")], capsys)
    assert code == 2 and "jupyterlab is missing" in err and not (tmp_path / "new").exists()


# ---- the wheel itself


class Away:
    """An environment with the wheel and the packages of this one, but not this checkout.

    Its `.pth` file names the folder where the packages are: what lies there can be imported, while
    the `.pth` files in it, among them that of an editable install, are not read.
    """

    def __init__(self, folder: Path):
        self.dist, self.env, self.desk = (folder / name for name in ("dist", "env", "desk"))
        self.desk.mkdir()
        # nbconvert's templates are beside the packages, not among them.
        shared = str(Path(sys.prefix) / "share" / "jupyter")
        self.environ = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        self.environ |= {"PYTHONNOUSERSITE": "1", "JUPYTER_PATH": shared}
        pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
        self.call([*pip, "wheel", "--no-deps", "--wheel-dir", self.dist, ROOT])
        (self.wheel,) = self.dist.glob("*.whl")
        self.call([sys.executable, "-m", "venv", "--without-pip", self.env])
        bin_ = self.env / Path(sysconfig.get_path("scripts")).name
        self.python, self.specnb = bin_ / "python", bin_ / "specnb"
        ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
        self.packages = Path(self.call([self.python, "-c", ask]).strip())
        (self.packages / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
        install = ["install", "--no-deps", "--no-index", self.wheel]
        self.call([*pip, "--python", self.python, *install])

    def call(self, command: list) -> str:
        """What a command prints; its errors where it fails."""
        done = subprocess.run(
            [str(word) for word in command],
            cwd=self.desk,
            env=self.environ,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout


@pytest.fixture(scope="module")
def away(tmp_path_factory):
    return Away(tmp_path_factory.mktemp("wheel"))


@pytest.mark.slow
@pytest.mark.notebook
def test_the_wheel_has_what_it_needs_and_no_more(away):
    size = away.wheel.stat().st_size
    assert size < LARGEST
    said = re.search(r"a wheel of (\d+) MB", (ROOT / "docs" / "install.md").read_text("utf-8"))
    assert abs(size / 1e6 - int(said[1])) < 1.5
    names = zipfile.ZipFile(away.wheel).namelist()
    assert not [name for name in names if "/tests/" in name]
    for name in ("py.typed", "cli.py", "training/target.py"):
        assert f"specnb/{name}" in names
    sums = (ROOT / "data" / "SHA256SUMS").read_text().splitlines()
    for name in (*(f"data/{line.split('  ')[1]}" for line in sums), "notebooks/TEACHING.md"):
        assert f"specnb/_share/{name}" in names


@pytest.mark.slow
@pytest.mark.notebook
def test_the_wheel_has_what_notebooks_import(away):
    texts = [path.read_text("utf-8") for path in paths.NOTEBOOKS.glob("*.ipynb")]
    modules = {
        name for text in texts for name in re.findall(r"(?:from|import) (specnb[.\w]+)", text)
    }
    assert {"specnb.scenes.words", "specnb.bench.long_context"} <= modules  # of lessons 02 and 06
    away.call([away.python, "-c", "; ".join(f"import {name}" for name in sorted(modules))])


@pytest.mark.slow
@pytest.mark.notebook
@pytest.mark.weights
def test_the_wheel_works_away_from_the_checkout(away):
    code = (
        "import specnb as sn; print(sn.__file__); print(sn.load_pair().describe())\n"
        "print(len(sn.scenes.examples('caption', 2, 0)), sn.checks.__name__, sn.notebook.__name__)"
    )
    file, *described, last = away.call([away.python, "-c", code]).splitlines()
    assert Path(file) == away.packages / "specnb" / "__init__.py"
    assert all(str(away.packages) in line and "embedded" in line for line in described)
    assert last == "2 specnb.checks specnb.notebook"
    lines = away.call([away.specnb, "doctor"]).splitlines()
    assert lines[-1] == "all is well" and any(line.startswith("torch ") for line in lines)
    away.call([away.specnb, "lab", "--no-start", "lessons"])
    assert (away.desk / "lessons" / "00_start_here.ipynb").is_file()


@pytest.mark.slow
@pytest.mark.notebook
@pytest.mark.weights
def test_notebooks_run_from_the_wheel(away):
    """A shipped one, and one of the reader's own that says which specnb it got."""
    lesson = ROOT / "notebooks" / "00_start_here.ipynb"
    shipped = nbformat.read(lesson, as_version=4)
    setup = next(c for c in shipped.cells if c.metadata.get("tags") == ["setup"])
    shipped.cells = [
        nbformat.v4.new_code_cell('out_dir: str = ""', metadata={"tags": ["parameters"]}),
        setup,
        nbformat.v4.new_code_cell(
            "import json\nrow = json.dumps({'headline': {'file': sn.__file__}})\n"
            "Path(out_dir, 'where.json').write_text(row)"
        ),
    ]
    nbformat.write(shipped, away.desk / "where.ipynb")
    out = away.call([away.specnb, "run", "00_start_here", "where.ipynb", "--out", "out"])
    assert f"to read: {Path('out') / 'index.html'}" in out
    rows = [json.loads(path.read_text()) for path in (away.desk / "out").glob("*-*.json")]
    by_name = {row["notebook"]: row for row in rows}
    where, start = by_name["where"], by_name["00_start_here"]
    assert where["status"] == start["status"] == "ok"
    assert Path(where["headline"]["file"]) == away.packages / "specnb" / "__init__.py"
    # The same code and data: a sweep that was begun in a checkout goes on from a wheel.
    assert start["id"] == batch.plan_of([lesson]).runs[0].id
