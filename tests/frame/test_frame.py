"""The frame around the code: packaging, floors between modules, data sums."""

import ast
import hashlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version
from places import ROOT

from specnb import doctor

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
DEPENDENCIES = {r.name: r.specifier for r in map(Requirement, PROJECT["dependencies"])}
EXTRAS = PROJECT["optional-dependencies"]

# ---- packages


def locked() -> dict[str, Version]:
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", pin) for pin in pins), pins
    named = [pin.split("==") for pin in pins]
    return {canonicalize_name(name): Version(version) for name, version in named}


def conda(path: Path) -> dict[str, SpecifierSet]:
    """Ranges by package name as pip knows it; `=3.12` of conda means `==3.12.*`."""
    wanted = yaml.safe_load(path.read_text(encoding="utf-8"))["dependencies"]
    assert all(isinstance(line, str) for line in wanted), "no pip section"
    ranges = {}
    for line in wanted:
        name, spec = re.fullmatch(r"([a-z0-9_]+)(.*)", line).groups()
        spec = f"={spec}.*" if re.match(r"=[0-9]", spec) else spec
        name = "torch" if name == "pytorch" else canonicalize_name(name)
        ranges[name] = SpecifierSet(spec)
    return ranges


def floor_of(ranges: SpecifierSet) -> Version:
    return next(Version(spec.version) for spec in ranges if spec.operator == ">=")


def test_lock_fulfils_every_range():
    pins = locked()
    more = [*EXTRAS["dev"], *EXTRAS["site"]]
    dev = ((extra.name, extra.specifier) for extra in map(Requirement, more))
    ranges = [*DEPENDENCIES.items(), *dev]
    for name, needed in ranges:
        assert pins[canonicalize_name(name)] in needed, name
    assert pins["torch"] == Version("2.13.0")
    assert "accelerate" not in pins


def test_environment_yml_agrees_with_pyproject_and_lock():
    ranges, pins = conda(ROOT / "environment.yml"), locked()
    assert str(ranges.pop("python")) == "==3.12.*"
    assert "3.12.1" in SpecifierSet(PROJECT["requires-python"])
    ranges.pop("pip")
    assert ranges.keys() == DEPENDENCIES.keys()
    for name, needed in ranges.items():
        assert pins[name] in needed, name
        assert floor_of(needed) >= floor_of(DEPENDENCIES[name]), name


def test_colab_fulfils_the_floors():
    colab = {"torch": "2.11", "transformers": "5.15", "ipywidgets": "7.7.1", "plotly": "5.24.1"}
    for name, version in {**colab, "pandas": "2.2.2"}.items():
        assert version in DEPENDENCIES[name], name


def test_binder_has_the_same_environment():
    assert (ROOT / "binder/environment.yml").read_bytes() == (ROOT / "environment.yml").read_bytes()
    assert os.access(ROOT / "binder/postBuild", os.X_OK)
    assert os.access(ROOT / ".ci/run", os.X_OK)


def test_one_version_everywhere():
    import specnb

    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["version"] == specnb.__version__
    assert PROJECT["dynamic"] == ["version"]
    assert PYPROJECT["tool"]["hatch"]["version"]["path"] == "specnb/_version.py"
    # Code and models, texts and pictures, a font; the first is that of the software cited.
    assert PROJECT["license"] == "Apache-2.0 AND CC-BY-4.0 AND OFL-1.1"
    assert cited["license"] == PROJECT["license"].split(" AND ")[0]
    assert all((ROOT / name).is_file() for name in PROJECT["license-files"])
    assert "LICENSE-TEXTS.md" in PROJECT["license-files"]
    assert "APPENDIX: How to apply the Apache License" in (ROOT / "LICENSE").read_text()


def test_shapes_are_checked_under_pytest():
    """The hook of jaxtyping also reaches modules that `import specnb` loads lazily."""
    from specnb import verify
    from specnb.sampling import Draws
    from specnb.tree import DraftTree

    tree = DraftTree((), (), torch.zeros(0, 3))
    with pytest.raises(Exception, match="(?i)type-check"):
        verify.verify(tree, torch.ones(2, 2, 2), torch.zeros(0, 3), Draws(0))


# ---- make


TARGETS = {".venv", "run", "test", "test-colab", "lab", "bench", "doctor", "address", "clean"}
TARGETS |= {"help", "site", "smollm2", "test-newest", "test-wheel", "types", "check", "coverage"}


def test_makefile_has_every_target():
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert TARGETS <= set(re.findall(r"^([-.a-z0-9]+):", text, re.M))
    assert TARGETS == set(" ".join(re.findall(r"^\.PHONY: (.*)$", text, re.M)).split())
    assert "--ip=127.0.0.1" in text and "token=" not in text  # only here, and its token stays on


@pytest.mark.skipif(os.name == "nt" or not shutil.which("make"), reason="needs make")
def test_second_make_does_no_setup(tmp_path):
    """With stand-ins for Python that only note how they were called."""
    for name in ("Makefile", "pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / name, tmp_path)
    log, python = tmp_path / "log", tmp_path / "python"
    python.write_text(
        f'#!/bin/sh\necho "$@" >> {log}\n[ "$2" = venv ] || exit 0\n'
        "mkdir -p .venv/bin && cp python .venv/bin/python\n"
    )
    python.chmod(0o755)

    def make(target: str) -> list[str]:
        log.write_text("")
        command = ["make", "-C", str(tmp_path), target, "PYTHON=./python"]
        subprocess.run(command, check=True, capture_output=True)
        return log.read_text().splitlines()

    first = make("run")
    pip = [line for line in first if line.startswith("-m pip")]
    assert pip[0].endswith("torch==2.13.0") and "-r requirements.lock" in pip[1]
    assert pip[2].endswith("--no-deps -e .") and first[-1] == "-m specnb.batch run"
    assert make("run") == ["-m specnb.batch run"]
    (tmp_path / "tests" / "heart").mkdir(parents=True)
    (tmp_path / "tests" / "other").mkdir()
    covered, slow, rest = make("test")
    assert covered.startswith("-m pytest") and covered.endswith(
        "-m not slow tests/heart --ignore=tests/heart/test_planted_bugs.py"
    )
    assert slow.endswith("-m slow tests/heart")  # together they are the whole heart
    assert rest.endswith("--durations=25 tests/heart/test_planted_bugs.py tests/other/")
    extra = "-m pip install -qq -c requirements.lock -e .[gguf]"
    assert make("smollm2") == [extra, "-m specnb.smollm2"]
    assert make("smollm2") == ["-m specnb.smollm2"]
    assert make(".venv") == []
    later = (tmp_path / ".venv/.installed").stat().st_mtime + 5
    os.utime(tmp_path / "requirements.lock", (later, later))
    assert len(make("run")) == len(first)


def test_no_paths_of_one_machine():
    """Nobody else has the folders in which this was written."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    folders = ["root", "home", "Users", "work", "opt"]  # in pieces, or this file would be found
    foreign = re.compile(rf"(?<![\w.~)}}>-])/({'|'.join(folders)})/\w")
    assert foreign.search("see /" + "home/someone/file") and not foreign.search("a.org/" + "work/x")
    found = []
    for path in (ROOT / name for name in names.split("\0") if name):
        content = path.read_bytes() if path.is_file() else b"\0"
        if b"\0" not in content and foreign.search(content.decode("utf-8", "replace")):
            found.append(path.relative_to(ROOT).as_posix())
    assert not found


# ---- floors

# A module may import from its own floor and those below. A package's name stands for all of it.
FLOORS = {
    **dict.fromkeys(["_version", "arguments", "files", "knobs", "paths"], 0),
    **dict.fromkeys(["sampling", "tree", "record", "theory", "outcome"], 0),
    **dict.fromkeys(["drafters", "stopping", "verify", "joint", "lossy"], 1),
    **dict.fromkeys(["models", "scenes", "smollm2"], 1),
    "methods": 2,
    **dict.fromkeys(["decode", "recording", "exact", "training", "measure"], 3),
    **dict.fromkeys(["views", "tuning", "session", "replay"], 4),
    **dict.fromkeys(["live", "batch", "checks", "doctor", "cli", "__main__"], 5),
    **dict.fromkeys(["lesson", "notebook"], 5),  # `notebook` is the door to the other
    "bench": 6,
}


def floor(module: str) -> int:
    return FLOORS[module.split(".")[1]]


def imports(module: str, source: str, is_package: bool = False) -> list[tuple[str, bool]]:
    """(imported module, whether importing `module` runs it) for every import in the source.

    Names from our own packages are listed as modules, so `from specnb import x` is `specnb.x`.
    """
    found = []

    def visit(node: ast.AST, runs: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend((alias.name, runs) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = module.split(".")
            base = parts[: len(parts) - node.level + is_package] if node.level else []
            name = ".".join([*base, *([node.module] if node.module else [])])
            found.append((name, runs)) if name != "specnb" else found.extend(
                (f"specnb.{alias.name}", runs) for alias in node.names
            )
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        typing = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for child in ast.iter_child_nodes(node):
            visit(child, runs and not inside and not typing)

    visit(ast.parse(source), True)
    return found


def violations(module: str, source: str, is_package: bool = False) -> list[str]:
    """What a module imports against the rules, in words."""
    wrong = []
    for name, runs in imports(module, source, is_package):
        root = name.split(".")[0]
        if name == "specnb" and floor(module) < 5:
            wrong.append(f"{module} imports the facade, which hides the floor it means")
        elif root == "specnb" and name != "specnb" and floor(name) > floor(module):
            wrong.append(f"{module} (floor {floor(module)}) imports {name} (floor {floor(name)})")
        elif root == "plotly" and (floor(module) < 4 or module == "specnb.views.tokens"):
            wrong.append(f"{module} imports plotly")
        elif root in ("ipywidgets", "IPython") and floor(module) < 5:
            wrong.append(f"{module} imports {root}")
        elif root == "transformers" and runs:
            wrong.append(f"{module} imports transformers on import")
    return wrong


def modules() -> dict[str, tuple[str, bool]]:
    """Source and whether it is a package, by module name; the facade itself is left out."""
    found = {}
    for path in sorted((ROOT / "specnb").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        name = ".".join(parts[:-1] if is_package else parts)
        found[name] = (path.read_text(encoding="utf-8"), is_package)
    found.pop("specnb")
    return found


def cycles(graph: dict[str, set[str]]) -> list[str]:
    """The modules from which a chain of imports leads back to themselves."""

    def reached(start: str) -> set[str]:
        seen, queue = set(), [start]
        while queue:
            new = graph.get(queue.pop(), set()) - seen
            seen |= new
            queue += new
        return seen

    return [name for name in graph if name in reached(name)]


def test_every_module_keeps_its_floor():
    unknown = {name for name in modules() if name.split(".")[1] not in FLOORS}
    assert not unknown, "give these a floor"
    assert not set(FLOORS) - {name.split(".")[1] for name in modules()}, "these are no modules"
    wrong = [line for name, source in modules().items() for line in violations(name, *source)]
    assert not wrong, "\n".join(wrong)


def test_no_cycles_between_modules():
    """Packages count as one: what happens inside them is their own affair."""
    graph: dict[str, set[str]] = {}
    for name, (source, is_package) in modules().items():
        own = name.split(".")[1]
        used = {n.split(".")[1] for n, _ in imports(name, source, is_package) if n[:7] == "specnb."}
        graph.setdefault(own, set()).update(used - {own})
    assert cycles(graph) == []
    assert "notebook" in cycles({**graph, "lesson": graph["lesson"] | {"notebook"}})  # the door
    assert cycles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("module", "source", "caught"),
    [
        ("specnb.tree", "from specnb.decode import speculative", True),
        ("specnb.decode", "from specnb.tree import DraftTree", False),
        ("specnb.tree", "from specnb.sampling import Draws", False),
        ("specnb.tree", "def late():\n    from specnb import decode", True),
        ("specnb.verify", "from .decode import speculative", True),
        ("specnb.models.hf", "from ..tree import DraftTree", False),
        ("specnb.models.hf", "from .. import exact", True),
        ("specnb.verify", "import specnb as sn", True),
        ("specnb.doctor", "import specnb as sn", False),
        ("specnb.lesson.config", "from specnb.paths import resolved", False),
        ("specnb.lesson.setup", "import transformers", True),
        ("specnb.decode", "from specnb.lesson.config import RunConfig", True),
        ("specnb.decode", "import plotly.graph_objects as go", True),
        ("specnb.views.plots", "import plotly.graph_objects as go", False),
        ("specnb.views.tokens", "def draw():\n    import plotly", True),
        ("specnb.views.plots", "from ipywidgets import HTML", True),
        ("specnb.live", "from ipywidgets import HTML", False),
        ("specnb.live", "from transformers import AutoTokenizer", True),
        ("specnb.models.hf", "try:\n    import transformers\nexcept ImportError: pass", True),
        ("specnb.models.hf", "def load():\n    import transformers", False),
        ("specnb.models.hf", "if TYPE_CHECKING:\n    import transformers", False),
    ],
)
def test_a_planted_import_is_judged_rightly(module, source, caught):
    assert bool(violations(module, source)) is caught


def test_imports_only_what_is_declared():
    """Colab has no jaxtyping, and installs nothing: whatever is imported must be a dependency."""
    owners = importlib.metadata.packages_distributions()
    allowed = {canonicalize_name(name) for name in [*DEPENDENCIES, "packaging", "ipython"]}
    extras = {"specnb.bench.": EXTRAS["browser"], "specnb.batch.": EXTRAS["cluster"]}
    undeclared = []
    facade = (ROOT / "specnb/__init__.py").read_text(encoding="utf-8")
    for name, (source, is_package) in {**modules(), "specnb": (facade, True)}.items():
        for imported, runs in imports(name, source, is_package):
            root = imported.split(".")[0]
            if root in sys.stdlib_module_names or root in ("specnb", "google"):
                continue
            if root == "jaxtyping" and not runs:  # for type checkers, and for the hook of pytest
                continue
            distributions = {canonicalize_name(owner) for owner in owners.get(root, [root])}
            lines = next((more for start, more in extras.items() if name.startswith(start)), [])
            extra = {canonicalize_name(Requirement(line).name) for line in lines}
            if not distributions & (allowed | extra):
                undeclared.append(f"{name} imports {root}")
    assert not undeclared, "\n".join(undeclared)


def in_python(code: str) -> str:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout


def test_import_specnb_is_light():
    code = "import sys, os, specnb; print(*sys.modules); print(os.environ['OMP_WAIT_POLICY'])"
    loaded, policy = in_python(code).splitlines()
    heavy = {"torch", "transformers", "numpy", "pandas", "plotly", "ipywidgets", "PIL"}
    assert not heavy & set(loaded.split())
    assert policy.lower() == "passive"


STUB = ROOT / "specnb/__init__.pyi"  # the names of `specnb`, for Python and for type checkers


def stub_names(stub: str) -> dict[str, str]:
    """Where each name of the stub is from, "" for a module of the package itself."""
    found = [node for node in ast.parse(stub).body if isinstance(node, ast.ImportFrom)]
    return {alias.name: node.module or "" for node in found for alias in node.names}


def unnamed(stub: str) -> list[str]:
    """Public modules of the package that the stub does not name."""
    public = {name.split(".")[1] for name in modules()}
    own = {name for name, home in stub_names(stub).items() if not home}
    return sorted(name for name in public - own if not name.startswith("_"))


def test_every_public_module_is_in_the_stub():
    stub = STUB.read_text(encoding="utf-8")
    assert unnamed(stub) == []
    assert unnamed(stub.replace("from . import tuning as tuning\n", "")) == ["tuning"]


def test_every_name_of_the_stub_is_there_in_a_fresh_process():
    names = stub_names(STUB.read_text(encoding="utf-8"))
    code = "import specnb; print({n: getattr(specnb, n).__name__ for n in specnb.__all__})"
    found = ast.literal_eval(in_python(code))
    assert found == {name: name if home else f"specnb.{name}" for name, home in names.items()}
    assert {"Drafter", "Drafting", "StoppingRule", "Model", "Context", "Block"} <= set(names)


def test_decoding_works_without_jaxtyping():
    code = (
        "import sys, specnb.decode, specnb.exact, specnb.models; print('jaxtyping' in sys.modules)"
    )
    assert in_python(code).strip() == "False"


# ---- doctor


def test_sums_find_what_is_missing_or_changed(tmp_path):
    (tmp_path / "models").mkdir()
    for name in ("README.md", "models/README.md", "models/w.bin", ".hidden", "half.tmp"):
        (tmp_path / name).write_text(name)
    assert doctor.write_sums(tmp_path) == 2
    assert doctor.write_sums(tmp_path) == 2  # it does not count itself
    digest = hashlib.sha256(b"models/w.bin").hexdigest()
    assert f"{digest}  models/w.bin\n" in (tmp_path / "SHA256SUMS").read_text()
    assert list(doctor.hashes(tmp_path)) == ["data: 2 of 2 files as published"]
    (tmp_path / "models/w.bin").write_text("other")
    (tmp_path / "models/README.md").unlink()
    wrong = r"README.md is missing; data/models/w.bin differs"
    with pytest.raises(doctor.CheckFailed, match=wrong):
        list(doctor.hashes(tmp_path))
    with pytest.raises(doctor.CheckFailed, match="write-sums"):
        list(doctor.hashes(tmp_path / "nowhere"))


def test_doctor_names_an_old_package(monkeypatch):
    real = importlib.metadata.version
    old = {"plotly": "4.0"}
    monkeypatch.setattr(importlib.metadata, "version", lambda name: old.get(name) or real(name))
    with pytest.raises(doctor.CheckFailed, match=r"plotly 4.0 is not >=5.24: pip install"):
        list(doctor.versions())


def test_doctor_reports_every_reason(monkeypatch, capsys):
    def ill():
        yield "line"
        raise doctor.CheckFailed("first reason")

    def crash():
        yield 1 / 0

    for name, check in {"versions": ill, "hashes": crash}.items():
        monkeypatch.setattr(doctor, name, check)
    for name in ("machine", "decoding"):
        monkeypatch.setattr(doctor, name, lambda: iter(["fine"]))
    assert doctor.main([]) == 1
    printed = capsys.readouterr()
    assert "wrong: first reason" in printed.err and "ZeroDivisionError" in printed.err
    assert printed.out.splitlines() == ["line", "fine", "fine", "something is wrong"]


@pytest.mark.weights
def test_doctor_on_the_embedded_pair():
    lines = list(doctor.decoding())
    assert any(line.startswith("block efficiency") for line in lines)


def test_what_users_import_stays_where_it_is():
    """Notebooks and scripts of others name these; whatever moves inside, the doors stay."""
    import importlib

    import specnb as sn

    for module, name in (
        ("specnb.batch", "read_sweep"),
        ("specnb.batch", "plan_of"),
        ("specnb.models.hf", "as_picture"),
        ("specnb.models.hf", "HFModel"),
        ("specnb.models", "load_pair"),
        ("specnb.decode", "Block"),
        ("specnb.notebook", "items"),
    ):
        assert callable(getattr(importlib.import_module(module), name)), f"{module}.{name}"
    assert sn.checks.__name__ == "specnb.checks" and callable(sn.RunConfig.from_notebook)
    assert callable(sn.views.laws) and callable(sn.Decoding) and callable(sn.Request)
