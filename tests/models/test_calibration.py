"""Threads and number format: measured, remembered, never more than is allowed."""

from __future__ import annotations

import json

import builders
import pytest
import torch

import specnb as sn
from specnb import doctor
from specnb.models import calibration, llama, settings


@pytest.fixture(autouse=True)
def nothing_stays(tmp_path, monkeypatch):
    monkeypatch.setattr("platformdirs.user_cache_dir", lambda name: str(tmp_path / name))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    settings.set_dtype("float32")


def test_cores_are_what_the_environment_allows(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3,1")
    assert calibration.cores() == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "many")
    assert 1 <= calibration.cores() <= len(calibration.os.sched_getaffinity(0))


# One token and six, in milliseconds.
AVX2 = {
    (1, "float32"): [12.9, 17.2],
    (1, "bfloat16"): [6.4, 21.0],
    (1, "float16"): [7.4, 9.8],
    (2, "float32"): [7.5, 10.0],
    (2, "bfloat16"): [4.6, 12.0],
    (2, "float16"): [5.0, 7.0],
}
AVX512 = {
    (1, "float32"): [5.5, 6.2],
    (1, "bfloat16"): [3.0, 3.7],
    (1, "float16"): [2.6, 4.4],
}


@pytest.mark.parametrize(
    "ms, best",
    [
        ({(1, "float32"): [4, 6], (1, "bfloat16"): [4, 3]}, (1, "bfloat16")),
        ({(1, "float32"): [4, 6], (1, "bfloat16"): [1, 5.8]}, (1, "float32")),  # not clearly faster
        ({(1, "float32"): [4, 6], (2, "float32"): [3, 5.9]}, (1, "float32")),
        ({(1, "float32"): [4, 6], (2, "float32"): [9, 4]}, (2, "float32")),
        (AVX2, (2, "float16")),
        (AVX512, (1, "bfloat16")),
    ],
)
def test_the_fastest_block_wins_if_it_is_clearly_faster(ms, best):
    assert calibration.fastest(ms) == best


@pytest.mark.parametrize(
    "ms, speculative, plain",
    [
        (AVX2, (2, "float16"), (2, "bfloat16")),
        (AVX512, (1, "bfloat16"), (1, "float16")),
        ({(1, "float32"): [4, 6], (1, "float16"): [3.9, 5.9]}, (1, "float32"), (1, "float32")),
    ],
)
def test_plain_decoding_has_a_choice_of_its_own(ms, speculative, plain):
    named = {f"{threads} {dtype}": times for (threads, dtype), times in ms.items()}
    found = calibration.Choice(*calibration.fastest(ms), named)
    assert ((found.threads, found.dtype), found.plain) == (speculative, plain)
    assert calibration.Choice(*json.loads(json.dumps(found))).plain == plain  # as it is remembered


def test_who_names_a_format_gets_the_threads_that_are_best_for_it():
    ms = {"1 float32": [9.0, 9.0], "2 float32": [5.0, 5.0], "1 float16": [2.0, 2.0]}
    found = calibration.Choice(1, "float16", ms)
    assert [found.threads_for(kind) for kind in ("auto", "float32", "float16", "bfloat16")] == [
        1, 2, 1, 1,
    ]  # fmt: skip


def test_words_for_fp16_say_what_runs(monkeypatch):
    monkeypatch.setattr(llama, "has_halves", lambda: True)
    assert settings.words("float16") == "fp16 weights with float32 activations"
    monkeypatch.setattr(llama, "has_halves", lambda: False)
    assert settings.words("float16") == "float32 (no FBGEMM here for fp16 weights)"
    assert settings.words("bfloat16") == "bfloat16"


@pytest.mark.slow
def test_a_calibration_of_this_machine():
    torch.set_num_threads(2)
    found = calibration.calibrate(2)
    assert torch.get_num_threads() == 2  # as before
    assert f"{found.threads} {found.dtype}" in found.ms
    assert {key.split()[0] for key in found.ms} == {"1", "2"}
    assert all(value > 0 for pair in found.ms.values() for value in pair)
    assert {key.split()[0] for key in calibration.calibrate(1).ms} == {"1"}


def test_costs_of_a_forward_by_its_rows(monkeypatch):
    """Every format at every size, with the threads of now; a large block costs more than a row."""
    torch.set_num_threads(1)
    seen = set()
    kept = calibration._random_model

    def counted(name):
        run = kept(name)
        return lambda size: (seen.add((name, size, torch.get_num_threads())), run(size))

    monkeypatch.setattr(calibration, "_random_model", counted)
    found = calibration.row_costs((1, 64), seconds=1.0)
    assert seen == {(name, size, 1) for name in found for size in (1, 64)}
    assert set(found) >= {"float32", "bfloat16"}
    assert all(0 < one < block for one, block in found.values())
    for wrong in ((0,), (1, 65)):
        with pytest.raises(ValueError, match="rows"):
            calibration.row_costs(wrong)


@pytest.mark.parametrize("here", [True, False])
def test_formats_that_are_measured(here, monkeypatch):
    monkeypatch.setattr(calibration, "ROUNDS", 1)
    if not here or llama.has_halves():
        monkeypatch.setattr(llama, "has_halves", lambda: here)
        formats = {key.split()[1] for key in calibration.calibrate(1).ms}
        assert formats == {"float32", "bfloat16"} | ({"float16"} if here else set())


def test_what_an_older_version_has_measured_is_not_read(monkeypatch):
    """It knew two formats and did not try a single token in bfloat16 everywhere."""
    right = calibration.Choice(1, "float16", {"1 float16": [1.0, 2.0]})
    monkeypatch.setattr(calibration, "calibrate", lambda most: right)
    with monkeypatch.context() as older:
        older.setattr(calibration, "VERSION", calibration.VERSION - 1)
        older.setattr(calibration, "calibrate", lambda most: calibration.Choice(1, "float32", {}))
        assert calibration.choice().dtype == "float32"
    assert calibration.choice() == right


def test_a_choice_is_made_once_per_number_of_cores(monkeypatch):
    asked = []

    def calibrate(most):
        asked.append(most)
        return calibration.Choice(most, "float32", {"1 float32": [1.0, 2.0]})

    monkeypatch.setattr(calibration, "calibrate", calibrate)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    first = calibration.choice()
    assert calibration.choice() == first and asked == [1]
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert calibration.choice().threads == 2 and asked == [1, 2]
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert calibration.choice().threads == 1 and asked == [1, 2]
    assert calibration.choice(fresh=True) == first and asked == [1, 2, 1]


def test_a_damaged_cache_is_measured_again(tmp_path, monkeypatch):
    right = calibration.Choice(1, "float32", {"1 float32": [1.0, 2.0]})
    monkeypatch.setattr(calibration, "calibrate", lambda most: right)
    (tmp_path / "specnb").mkdir()
    for text in ("{", "[]", '{"x": 1}'):
        (tmp_path / "specnb" / "machine.json").write_text(text)
        assert calibration.choice() == right
    assert not list((tmp_path / "specnb").glob("machine.[0-9]*"))  # nothing half-written


def test_a_home_that_cannot_be_written_to(tmp_path, monkeypatch):
    right = calibration.Choice(1, "float32", {"1 float32": [1.0, 2.0]})
    monkeypatch.setattr(calibration, "calibrate", lambda most: right)
    (tmp_path / "specnb").write_text("a file where the folder should be")
    assert calibration.choice() == right


def test_models_follow_the_choice(tmp_path, monkeypatch, capsys):
    choice = calibration.Choice(1, "bfloat16", {"1 bfloat16": [1.0, 2.0]})
    monkeypatch.setattr(calibration, "calibrate", lambda most: choice)
    folder = builders.llama(tmp_path / "a")
    assert sn.load_model(folder, "cpu").dtype == torch.float32  # before set-up
    sn.setup(renderer="json")
    assert torch.get_num_threads() == 1 and "bfloat16" in capsys.readouterr().out
    pair = sn.load_pair(folder, folder, device="cpu")
    assert (pair.target.dtype, pair.draft.dtype) == (torch.bfloat16, torch.float32)  # it is small
    exact = sn.load_pair(folder, folder, device="cpu", dtype="float32")
    assert exact.target.dtype == torch.float32
    asked = sn.load_pair(folder, folder, device="cpu", dtype="bfloat16")
    assert asked.draft.dtype == torch.bfloat16
    sn.setup(renderer="json", dtype="float32", threads=1)
    assert sn.load_model(folder, "cpu").dtype == torch.float32


@pytest.mark.skipif(not llama.has_halves(), reason="no FBGEMM")
def test_setup_says_what_fp16_is(tmp_path, monkeypatch, capsys):
    choice = calibration.Choice(1, "float16", {"1 float16": [1.0, 2.0]})
    monkeypatch.setattr(calibration, "calibrate", lambda most: choice)
    sn.setup(renderer="json")
    said = capsys.readouterr().out
    assert "device cpu, fp16 weights with float32 activations · 1 thread" in said
    folder = builders.llama(tmp_path / "a")
    pair = sn.load_pair(folder, folder, device="cpu")
    assert (pair.target.dtype, pair.draft.dtype) == (torch.float16, torch.float32)  # it is small
    assert "fp16 weights with float32 activations" in pair.describe()


def test_the_doctor_measures_without_changing_what_is_remembered(tmp_path, monkeypatch):
    """A check on a busy machine must not decide how all later notebooks run."""
    monkeypatch.setattr("platformdirs.user_cache_dir", lambda *_: str(tmp_path))
    right = calibration.Choice(1, "float32", {"1 float32": [1.0, 2.0]})
    monkeypatch.setattr(calibration, "calibrate", lambda most: right)
    calibration.choice()
    remembered = (tmp_path / "machine.json").read_bytes()
    busy = calibration.Choice(2, "bfloat16", {"2 bfloat16": [8.0, 9.0], "1 float32": [9.0, 9.9]})
    monkeypatch.setattr(calibration, "calibrate", lambda most: busy)
    said = list(doctor.machine())
    assert any("fastest for speculative decoding: bfloat16, 2 threads" in line for line in said)
    assert (tmp_path / "machine.json").read_bytes() == remembered
    assert calibration.choice() == right
