"""Threads and number format: measured, remembered, never more than is allowed."""

from __future__ import annotations

import builders
import pytest
import torch

import specnb as sn
from specnb.models import machine


@pytest.fixture(autouse=True)
def nothing_stays(tmp_path, monkeypatch):
    monkeypatch.setattr("platformdirs.user_cache_dir", lambda name: str(tmp_path / name))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    machine.set_dtype("float32")


def test_cores_are_what_the_environment_allows(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3,1")
    assert machine.cores() == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "many")
    assert 1 <= machine.cores() <= len(machine.os.sched_getaffinity(0))


@pytest.mark.parametrize(
    "ms, best",
    [
        ({(1, "float32"): [4, 6], (1, "bfloat16"): [4, 3]}, (1, "bfloat16")),
        ({(1, "float32"): [4, 6], (1, "bfloat16"): [1, 5.8]}, (1, "float32")),  # not clearly faster
        ({(1, "float32"): [4, 6], (2, "float32"): [3, 5.9]}, (1, "float32")),
        ({(1, "float32"): [4, 6], (2, "float32"): [9, 4]}, (2, "float32")),
    ],
)
def test_the_fastest_block_wins_if_it_is_clearly_faster(ms, best):
    assert machine.fastest(ms) == best


def test_a_calibration_of_this_machine():
    torch.set_num_threads(2)
    found = machine.calibrate(2)
    assert torch.get_num_threads() == 2  # as before
    assert f"{found.threads} {found.dtype}" in found.ms
    assert {key.split()[0] for key in found.ms} == {"1", "2"}
    assert all(value > 0 for pair in found.ms.values() for value in pair)
    assert {key.split()[0] for key in machine.calibrate(1).ms} == {"1"}


def test_a_choice_is_made_once_per_number_of_cores(monkeypatch):
    asked = []

    def calibrate(most):
        asked.append(most)
        return machine.Choice(most, "float32", {"1 float32": [1.0, 2.0]})

    monkeypatch.setattr(machine, "calibrate", calibrate)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    first = machine.choice()
    assert machine.choice() == first and asked == [1]
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert machine.choice().threads == 2 and asked == [1, 2]
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert machine.choice().threads == 1 and asked == [1, 2]
    assert machine.choice(fresh=True) == first and asked == [1, 2, 1]


def test_a_damaged_cache_is_measured_again(tmp_path, monkeypatch):
    right = machine.Choice(1, "float32", {"1 float32": [1.0, 2.0]})
    monkeypatch.setattr(machine, "calibrate", lambda most: right)
    (tmp_path / "specnb").mkdir()
    for text in ("{", "[]", '{"x": 1}'):
        (tmp_path / "specnb" / "machine.json").write_text(text)
        assert machine.choice() == right
    assert not list((tmp_path / "specnb").glob("machine.[0-9]*"))  # nothing half-written


def test_a_home_that_cannot_be_written_to(tmp_path, monkeypatch):
    right = machine.Choice(1, "float32", {"1 float32": [1.0, 2.0]})
    monkeypatch.setattr(machine, "calibrate", lambda most: right)
    (tmp_path / "specnb").write_text("a file where the folder should be")
    assert machine.choice() == right


def test_models_follow_the_choice(tmp_path, monkeypatch, capsys):
    choice = machine.Choice(1, "bfloat16", {"1 bfloat16": [1.0, 2.0]})
    monkeypatch.setattr(machine, "calibrate", lambda most: choice)
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
