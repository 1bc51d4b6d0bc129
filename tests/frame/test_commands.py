"""Every module that can be started reads its command line before it does anything."""

import re
import runpy
import subprocess
import sys

import pytest
from places import ROOT

from specnb.bench import __main__ as bench
from specnb.bench import results
from specnb.training import __main__ as training

STARTED = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__")
    for path in (ROOT / "specnb").rglob("*.py")
    if re.search(r'^if __name__ == "__main__":', path.read_text(encoding="utf-8"), re.M)
)


def started(name, words, monkeypatch, capsys):
    """(exit code, stdout, stderr) of `python -m name words`, in this process."""
    monkeypatch.setattr(sys, "argv", [name, *words])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(name, run_name="__main__")
    return ended.value.code, *capsys.readouterr()


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize("name", STARTED)
def test_help_is_help_and_what_is_unknown_is_refused(name, monkeypatch, capsys):
    code, out, _ = started(name, ["--help"], monkeypatch, capsys)
    assert code == 0 and out.startswith("usage: ") and len(out.splitlines()) > 3
    code, out, said = started(name, ["--colour", "blue"], monkeypatch, capsys)
    assert code == 2 and not out and "error: " in said and len(said.splitlines()) == 1


def test_they_were_found():
    assert {"specnb", "specnb.notebook", "specnb.smollm2", "specnb.bench.play"} <= set(STARTED)


def test_specnb_is_a_module_too():
    done = subprocess.run(
        [sys.executable, "-m", "specnb", "--version"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stdout.startswith("specnb "), done.stderr


# ---- training


def refused(main, words, capsys):
    with pytest.raises(SystemExit) as ended:
        main(words)
    said = capsys.readouterr().err
    assert ended.value.code == 2 and len(said.splitlines()) == 1
    return said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("align --device cuda", "unrecognized arguments: --device cuda"),
        ("drafter --loss tv --steps 10", "unrecognized arguments: --loss tv --steps 10"),
        ("target --lr 1", "unrecognized arguments: --lr 1"),
        ("sets --out x", "unrecognized arguments: --out x"),
        ("head --target x", "unrecognized arguments: --target x"),
        ("align --width 64", "--width 64: it goes with --inherit"),
        ("align --grow 2", "--grow 2: there is no start"),
        ("align --inherit 1 --draft data/models/drafter", "--inherit: it starts from the target"),
        ("align --prompts nowhere.jsonl", "nowhere.jsonl"),
        ("lesson", "invalid choice"),
    ],
)
def test_training_drops_no_option(words, said, capsys):
    assert said in refused(training.main, words.split(), capsys)


def test_every_subject_of_training_says_what_it_is(capsys):
    with pytest.raises(SystemExit):
        training.main(["--help"])
    words = " ".join(capsys.readouterr().out.split())
    for name, about in training.SUBJECTS.items():
        assert f"{name} {about}" in words
        with pytest.raises(SystemExit):
            training.main([name, "--help"])
        assert about in " ".join(capsys.readouterr().out.split())


def documented():
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *ROOT.glob("data/models/*/*.md")]
    for path in pages:
        yield from re.findall(
            r"^    python -m specnb\.training (.+)$", path.read_text(encoding="utf-8"), re.M
        )


@pytest.mark.parametrize("words", sorted(set(documented())))
def test_documented_lines_are_read(words):
    options = training._parser().parse_args(words.split())
    training._check(options)
    assert options.what == words.split()[0]


# ---- bench


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("exactness --n -3", "--n=-3: give a whole number >= 1"),
        ("batch --n 0", "--n=0: give a whole number >= 1"),
        ("batch --target x", "the smoke sweep has its own pair"),
        ("architectures --only nothing", "only='nothing': no such family"),
        ("quality --only llama", "--only goes with architectures"),
        ("colour", "invalid choice"),
    ],
)
def test_bench_says_what_is_wrong_in_a_line(words, said, capsys):
    assert said in refused(bench.main, words.split(), capsys)


def test_bench_says_what_each_subject_answers(capsys):
    with pytest.raises(SystemExit):
        bench.main(["--help"])
    lines = capsys.readouterr().out.splitlines()
    for name in bench.SUBJECTS:
        assert any(name in line and line.endswith(results.ABOUT[name][0]) for line in lines)
