"""Methods by their texts: both ways, everything wrong in words, nothing evaluated."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st
from places import ROOT
from toys import check_law, models

import specnb as sn
from specnb import batch, knobs, methods
from specnb.knobs import knob
from specnb.methods import label_of, method, name_of

pytestmark = pytest.mark.usefixtures("unchecked")  # our own words, not the type checker's

MINE = '''
from __future__ import annotations
from dataclasses import dataclass
import helper
import specnb as sn
from specnb.knobs import knob

@dataclass(frozen=True)
class Half(sn.Chain):
    share: float = knob(0.5, least=0, most=1, step=0.1, words="of something", kw_only=True)

@dataclass(frozen=True)
class Bare:
    length: int = 4
    def start(self, pair, prompt, image, sampling): raise NotImplementedError

@dataclass(frozen=True)
class Rule:
    level: float = 0.25
    def start(self): return sn.FixedLength()

def made(length: int = 3): return sn.Chain(length, stop=sn.AdaEDL(0.2))

def drawn(tree, root_probs, node_probs, draws, eos_ids=frozenset()):
    """A verification rule: the target draws, and a draft stays where it says the same."""
    path, node, probs = [], -1, root_probs
    while True:
        token = draws.categorical(probs)
        same = [child for child in tree.draws_of(node) if tree.tokens[child] == token]
        if not same:
            return sn.verify.Outcome(tuple(path), token, "correction", probs, ())
        path.append(node := same[0])
        probs = node_probs[node]
        if token in eos_ids:
            return sn.verify.Outcome(tuple(path), None, None, None, ())
'''


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "helper.py").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "helper", raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("text", "drafter", "name"),
    [
        ("Chain", sn.Chain(), "Chain(5)"),
        (" Chain( 7 ) ", sn.Chain(7), "Chain(7)"),
        ("Chain(draft_length=7)", sn.Chain(7), "Chain(7)"),
        ("Chain(16, stop=AdaEDL)", sn.Chain(16, stop=sn.AdaEDL()), "Chain(16, stop=AdaEDL(0.4))"),
        (
            "Chain(16, stop=AdaEDL(0.5, adaptive=False))",
            sn.Chain(16, stop=sn.AdaEDL(0.5, adaptive=False)),
            "Chain(16, stop=AdaEDL(0.5, adaptive=False))",
        ),
        ("Chain(stop=FixedLength())", sn.Chain(), "Chain(5)"),
        ("GumbelTopK([2, 2, 1])", sn.GumbelTopK((2, 2, 1)), "GumbelTopK((2, 2, 1))"),
        ("StochasticBeam(width=2)", sn.StochasticBeam(2), "StochasticBeam(2, 4)"),
        ("IIDTree((3,), verify='kseq')", sn.IIDTree((3,), verify="kseq"), None),
        ("TopKTree((2, 1))", sn.TopKTree((2, 1)), None),
        ("PromptLookup(2, length=9)", sn.PromptLookup(2, 9), "PromptLookup(2, 9)"),
        ("NoDraft", methods.drafters.NoDraft(), "NoDraft()"),
        ("specnb.drafters:Chain(3)", sn.Chain(3), "Chain(3)"),
    ],
)
def test_both_ways(text, drafter, name):
    assert method(text) == drafter
    assert name_of(drafter) == (name or text)
    assert method(name_of(drafter)) == drafter


def test_a_verification_rule_of_ones_own(folder):
    """By its address in a text, as a function from Python; the law stays the target's."""
    text = "GumbelTopK((2, 1), verify=mine.py:drawn)"
    tree = method(text)
    assert name_of(tree) == text and methods.addresses(text) == ("mine.py:drawn",)
    assert sn.Chain(2, verify=tree.verify) == method("Chain(2, verify=mine.py:drawn)")
    assert set(methods.knobs_in(text)) == {"branching"}
    assert methods.with_knobs("Chain(2, verify=mine.py:drawn)", {"draft_length": 4}) == (
        "Chain(4, verify=mine.py:drawn)"
    )
    check_law(*models(3, seed=2), tree, sn.Sampling(1.0), n_tokens=2)
    assert label_of(sn.Chain(3, verify=lambda *args: None)).startswith("Chain(stop=")
    for wrong, said in (
        (
            "Chain(2, verify='kseq')",
            "verify='kseq': Chain cannot have it, .* 'recursive' or 'block', or give a function",
        ),
        ("Chain(2, verify=mine.py:Rule)", "verify=<class .*: choose 'recursive'"),
        ("Chain(2, verify=mine.py:drawn())", "cannot be made with these settings"),
        ("Chain(2, verify=kseq)", "kseq is no method that is known"),
    ):
        with pytest.raises(ValueError, match=said):
            method(wrong)


@given(
    st.integers(1, 40),
    st.floats(-2, 2),
    st.booleans(),
    st.floats(0, 1),
    st.sampled_from(("raw", "adjusted")),
)
def test_a_name_holds_every_knob(length, threshold, adaptive, alpha, signal):
    rule = sn.AdaEDL(threshold, adaptive=adaptive, alpha=alpha, signal=signal)
    drafter = sn.Chain(length, stop=rule)
    assert method(name_of(drafter)) == drafter


def test_a_class_of_ones_own(folder):
    half = method("mine.py:Half(7, share=0.25)")
    assert (half.draft_length, half.share) == (7, 0.25)
    assert name_of(half) == "mine.py:Half(7, share=0.25)"
    assert method(str(folder / "mine.py") + ":Half(7, share=0.25)") == half
    assert method("mine.py:Half(7, share=0.25)", beside=folder) == half
    assert name_of(method("mine.py:Half")) == "mine.py:Half(5)"
    assert method("mine.py:made(4)") == sn.Chain(4, stop=sn.AdaEDL(0.2))
    inside = method("Chain(8, stop=mine.py:Rule(0.5))")
    assert inside.stop.level == 0.5 and name_of(inside) == "Chain(8, stop=mine.py:Rule(0.5))"
    with pytest.raises(ValueError, match=r"share=2: give a number in \[0, 1\]"):
        method("mine.py:Half(7, share=2)")


def test_a_changed_file_is_read_anew(folder):
    before = method("mine.py:Bare")
    (folder / "mine.py").write_text(MINE.replace("length: int = 4", "length: int = 6"))
    assert (before.length, method("mine.py:Bare").length) == (4, 6)


def test_blanks_in_a_path(folder):
    (folder / "my files").mkdir()
    (folder / "my files" / "own.py").write_text(MINE.replace("import helper", ""))
    assert method("my files/own.py:Bare(2)").length == 2
    assert name_of(method("my files/own.py:Bare(2)")) == "my files/own.py:Bare(2)"


def test_entry_points_have_names(monkeypatch):
    class Point:
        name, value = "mine", "specnb.drafters:Chain"

        def load(self):
            return sn.Chain

    monkeypatch.setattr(methods, "_points", lambda: {"mine": Point(), "broken": None})
    assert method("mine(3)") == sn.Chain(3)
    assert "mine" in methods.known()
    with pytest.raises(ValueError, match="broken, which another package registers, cannot"):
        method("broken")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "give package:Class, or a text such as"),
        (None, "give package:Class, or a text such as"),
        ("Chain(", "this cannot be read"),
        ("(" * 500, "this cannot be read"),
        ("Chain" * 1000, "longer than 2000"),
        ("chian(5)", "did you mean Chain?"),
        ("Chain(draft_lenght=3)", "no knob 'draft_lenght'; did you mean draft_length?"),
        ("Chain(5, 6)", "takes without a name: draft_length; 2 are given"),
        ("Chain(5, draft_length=3)", "given twice"),
        ("Chain(draft_length=5, draft_length=3)", "given twice"),
        ("Chain(*[3])", "takes without a name"),
        ("Chain(**{})", r"\*\* is not read"),
        ("Chain(0)", "draft_length=0: give a whole number >= 1"),
        ("Chain(True)", "draft_length=True"),
        ("Chain(1e400)", "draft_length=inf"),
        ("Chain('5')", "draft_length='5'"),
        ("Chain(1+2j)", "give a number, a text"),
        ("Chain(b'x')", "give a number, a text"),
        ("Chain([[1]])", "give a number, a text"),
        ("Chain(5, stop=3)", "stop=3: give a stopping rule"),
        ("Chain(5, stop=GumbelTopK)", "give a stopping rule"),
        ("AdaEDL(0.5)", "AdaEDL is a stopping rule; give it to a drafter"),
        ("GumbelTopK(())", "branching=()"),
        ("IIDTree((2,), verify='kesq')", "choose 'recursive' or 'kseq'"),
        ("1", "1 is no method"),
        ("Chain(5).expand", "is no method"),
        ("GumbelTopK((2,))(3)", "no method that is known"),
        ("nope:Name", "cannot be imported"),
        ("nope.py:Name", "nope.py: there is no such file"),
        ("mine.py:Nope", "cannot be imported .*has no attribute 'Nope'"),
        ("mine.py:sn", "no class and no function"),
        ("json:loads('1')", r"a drafter has start\(pair"),
        ("broken.py:Name", "cannot be imported .ZeroDivisionError"),
    ],
)
def test_what_is_wrong_is_said(folder, text, said):
    (folder / "broken.py").write_text("1 / 0")
    with pytest.raises(ValueError, match=said) as refused:
        method(text)
    assert str(refused.value).startswith("drafter=") and "\n" not in str(refused.value)


def test_nothing_else_is_evaluated(folder):
    for text in (
        "__import__('os').mkdir('x')",
        "Chain(open('x', 'w'))",
        "[Chain(5)][0]",
        "Chain or 1",
    ):
        with pytest.raises(ValueError):
            method(text)
    assert not (folder / "x").exists()


def test_what_has_no_text():
    @dataclass(frozen=True)
    class Inside(sn.Chain):
        pass

    carried = sn.Chain(3, stop=sn.AdaEDL().start())
    for drafter in (Inside(), carried, object()):
        with pytest.raises(ValueError, match="^drafter"):
            name_of(drafter)
        assert label_of(drafter) == repr(drafter)


def test_addresses_are_found_without_an_import():
    assert methods.addresses("Chain(8, stop=mine.py:Rule(0.3))") == ("mine.py:Rule",)
    assert methods.addresses("my folder/mine.py:R(stop=a.b:C)") == ("my folder/mine.py:R", "a.b:C")
    assert methods.addresses(r"C:\x\mine.py:Name(2)") == (r"C:\x\mine.py:Name",)
    assert methods.addresses("Chain('a:b')") == () == methods.addresses("Chain(5)")


def test_knobs_of_a_text(folder):
    found = methods.knobs_in("Chain(8, stop=AdaEDL(0.3))")
    assert found["draft_length"][1] == 8 and found["stop.threshold"][1] == 0.3
    assert found["draft_length"][0].range == (1, 16)
    text = methods.with_knobs("Chain(8, stop=AdaEDL(0.3))", {"stop.threshold": 0.6})
    assert text == "Chain(8, stop=AdaEDL(0.6))"
    assert methods.with_knobs("mine.py:Half", {"share": 0.1}) == "mine.py:Half(share=0.1)"
    bare = methods.knobs_in("mine.py:Bare(length=2)")["length"]
    assert bare[0].kind == knobs.WHOLE and bare[1] == 2 and bare[0].range == (0, 16)
    assert set(methods.knobs_in("mine.py:made")) == {"length"}


def test_a_knob_checks():
    @dataclass(frozen=True)
    class Settings:
        share: float = knob(0.5, least=0, most=1, above=True)
        on: bool = knob(True)
        sizes: tuple[int, ...] = knob((1, 2), least=1)

        def __post_init__(self):
            knobs.settle(self)

    assert Settings(1, False, [3]) == Settings(1.0, False, (3,))
    for wrong in ((0,), (2,), (0.5, 1), (0.5, True, (0,))):
        with pytest.raises(ValueError, match="give"):
            Settings(*wrong)


# ---- in sweeps


SWEEP = "notebooks: [00_start_here]\nparameters: {n_prompts: 1}\ngrid: {drafter: [%s]}\n"


def plan_of_drafters(folder, *texts, **more):
    (folder / "sweep.yml").write_text(SWEEP % ", ".join(map(repr, texts)))
    return batch.read_sweep(folder / "sweep.yml", **more)


def test_a_sweep_takes_methods(folder):
    plan = plan_of_drafters(folder, "Chain(2)", "mine.py:Half(3)", "")
    given = [run.given["drafter"] for run in plan.runs]
    assert given == ["Chain(2)", f"{folder.resolve().as_posix()}/mine.py:Half(3)", ""]
    first = [run.id for run in plan.runs]
    assert [run.id for run in plan_of_drafters(folder, "Chain(2)", "mine.py:Half(3)", "").runs] == (
        first
    )
    (folder / "mine.py").write_text(MINE + "\n# another content is another run\n")
    again = [run.id for run in plan_of_drafters(folder, "Chain(2)", "mine.py:Half(3)", "").runs]
    assert [a == b for a, b in zip(first, again, strict=True)] == [True, False, True]


@pytest.mark.parametrize(
    "text",
    ["json:loads('1')", "../away.py:Half(3)", "Chain(3, stop=os:getcwd())", "{away}:Half(3)"],
)
def test_a_sweep_runs_only_code_beside_it(folder, text):
    (folder / "beside").mkdir()
    (folder / "away.py").write_text(MINE.replace("import helper", "open('ran', 'w')"))
    text = text.format(away=folder / "away.py")
    with pytest.raises(ValueError, match="--allow-code"):
        plan_of_drafters(folder / "beside", text)
    assert not (folder / "ran").exists()
    if "away" in text:
        assert plan_of_drafters(folder / "beside", text, allow_code=True).runs
        assert (folder / "ran").exists()


def test_every_parameter_that_names_a_method_is_one(folder):
    """`select` of the lesson on long texts: code beside the sweep alone, and known by its file."""
    text = "notebooks: [06_long_context]\nparameters: {select: %r}\n"

    def plan(select, **more):
        (folder / "sweep.yml").write_text(text % select)
        return batch.read_sweep(folder / "sweep.yml", **more)

    mark = (folder / "ran").as_posix()
    with pytest.raises(ValueError, match="select=.*--allow-code"):
        plan(f"subprocess:getoutput('touch {mark}')")
    assert not (folder / "ran").exists()
    own = """
from dataclasses import dataclass
import specnb as sn

@dataclass(frozen=True)
class Latest(sn.SinkRecent):
    pass
"""
    (folder / "own.py").write_text(own)
    (one,) = plan("own.py:Latest(2)").runs
    assert one.given["select"] == f"{folder.resolve().as_posix()}/own.py:Latest(2)"
    (folder / "own.py").write_text(own + "# other content\n")
    assert plan("own.py:Latest(2)").runs[0].id != one.id


@pytest.mark.parametrize("place", ["away.py", "~/away.py"])
def test_a_file_that_is_not_beside_the_sweep_is_not_looked_for_elsewhere(
    folder, monkeypatch, place
):
    """Neither in the working directory nor at home, where the same words lead to a file."""
    (folder / "beside").mkdir()
    (folder / "away.py").write_text(MINE.replace("import helper", "open('ran', 'w')"))
    monkeypatch.setenv("HOME", str(folder))
    with pytest.raises(ValueError, match="--allow-code"):
        plan_of_drafters(folder / "beside", f"{place}:Half(3)")
    assert not (folder / "ran").exists()


def test_files_beside_a_sweep_become_whole_paths(folder):
    (folder / "sub").mkdir()
    for place in ("a.py", "sub/a.py"):
        (folder / place).write_text("")
    here = folder.resolve().as_posix()
    said = methods.absolute(
        "Chain(3, stop=sub/a.py:Rule(a.py:Name), x=b.py:Name, y=m:Name)", folder
    )
    assert said == (f"Chain(3, stop={here}/sub/a.py:Rule({here}/a.py:Name), x=b.py:Name, y=m:Name)")
    assert methods.absolute("a.py:Name('a.py:Name')", folder) == f"{here}/a.py:Name('a.py:Name')"


def test_a_sweep_with_a_drafter_and_what_it_overrides_is_refused(folder):
    (folder / "sweep.yml").write_text(
        SWEEP % "Chain(2)" + "sets: [{draft_length: 5, drafter: Chain}]"
    )
    with pytest.raises(ValueError, match="drafter='Chain' and draft_length=5: the drafter says"):
        batch.read_sweep(folder / "sweep.yml")
    with pytest.raises(ValueError, match="did you mean Chain?"):
        plan_of_drafters(folder, "Chian(2)")


def test_a_name_that_another_package_registers(tmp_path):
    """An installed distribution with an entry point, in a process of its own."""
    (tmp_path / "guesses.py").write_text(MINE.replace("import helper\n", ""))
    info = tmp_path / "guesses-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: guesses\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[specnb.methods]\nHalf = guesses:Half\nGone = guesses:Nothing\n"
    )
    code = """
import specnb as sn
from specnb import methods
half = sn.method("Half(7, share=0.25)")
print(type(half).__module__, half.share, sn.name_of(half), "Half" in methods.known())
print(set(methods.knobs_in("Half(3)")))
for text in ("Gone(1)", "Hafl(1)"):
    try: sn.method(text)
    except ValueError as error: print(error)
"""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    found, named, gone, near = done.stdout.splitlines()
    assert found == "guesses 0.25 Half(7, share=0.25) True"
    assert "share" in named and "draft_length" in named
    assert "Gone, which another package registers, cannot be imported" in gone
    assert "did you mean Half?" in near


@pytest.mark.parametrize("cls", methods.NAMED, ids=lambda cls: cls.__name__)
def test_every_setting_is_in_the_docstring(cls):
    """The API reference shows the docstring of a class and not that of its private base."""
    names = [field.name for field in dataclasses.fields(cls) if field.init]
    assert not [name for name in names if not re.search(rf"\b{name}\b", vars(cls)["__doc__"])]


@pytest.mark.weights
def test_an_id_knows_a_checkpoint_and_all_of_the_data(tmp_path, monkeypatch):
    """A drafter trained on, or a stored result that a lesson reads, gives another run."""
    from specnb.batch import plan

    def ids():
        given = {"drafter_checkpoint": "mine"}
        (run,) = batch.plan_of(["05_training_a_drafter"], [given], base=tmp_path).runs
        return run.id

    shutil.copytree(plan.paths.DATA / "models" / "drafter", tmp_path / "mine")
    data = tmp_path / "data"
    (data / "results").mkdir(parents=True)
    monkeypatch.setattr(plan.paths, "DATA", data)
    seen = [ids()]
    with (tmp_path / "mine" / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"1")
    seen.append(ids())
    (data / "results" / "drafters.json").write_text("{}")
    seen.append(ids())
    assert len(set(seen)) == 3
    (data / "results" / "README.md").write_text("what is said about it")
    assert ids() == seen[-1]
