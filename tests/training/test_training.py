"""Training: a killed run resumes to the same weights, growth changes no logit, data is pure."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from places import ROOT
from safetensors.torch import load_file

from specnb.training import target
from specnb.training.data import batches, pad, pixels, token_ids
from specnb.training.loop import Stage, train

STAGE = Stage("tiny", steps=60, batch=4, lr=1e-2, warmup=5)
SCRIPT = """
import sys, time, torch
from pathlib import Path
from specnb.training.loop import Stage, train
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Tanh(), torch.nn.Linear(7, 1))

def loss_of(step):
    x = torch.randn(4, 5, generator=torch.Generator().manual_seed(step))
    time.sleep(float(sys.argv[2]))
    return (model(x) - x.sum(1, keepdim=True)).square().mean(), {}

train(Stage("tiny", steps=60, batch=4, lr=1e-2, warmup=5), model, loss_of, Path(sys.argv[1]), 0.0)
"""


def start(folder: Path, pause: float) -> subprocess.Popen:
    command = [sys.executable, "-c", SCRIPT, str(folder), str(pause)]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_weights(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start(whole, 0.0).wait() == 0
    run = start(killed, 0.05)
    deadline = time.monotonic() + 60
    while not (killed / "tiny.safetensors").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.3)
    run.send_signal(signal.SIGKILL)
    assert run.wait() != 0
    assert start(killed, 0.0).wait() == 0
    a, b = load_file(whole / "tiny.safetensors"), load_file(killed / "tiny.safetensors")
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    model = torch.nn.Linear(2, 1)
    train(STAGE, model, lambda step: (model(torch.ones(1, 2)).square().sum(), {}), tmp_path)
    other = torch.nn.Sequential(torch.nn.Linear(2, 1))
    with pytest.raises(ValueError, match="belongs to another model"):
        train(STAGE, other, lambda step: (other(torch.ones(1, 2)).sum(), {}), tmp_path)


@pytest.mark.parametrize(
    "changed",
    [{"lr": 1.0}, {"steps": 2}, {"data": 77}, {"batch": 8}, {"origin": {"start": "b"}}],
    ids=lambda changed: next(iter(changed)),
)
def test_a_checkpoint_of_other_settings_is_refused(tmp_path, changed):
    """A finished stage is not done again, and never taken for another one."""
    taken = []

    def run(stage: Stage, origin: dict) -> torch.Tensor:
        model = torch.nn.Linear(2, 1)

        def loss_of(step):
            taken.append(step)
            return model(torch.ones(1, 2)).square().sum(), {}

        train(stage, model, loss_of, tmp_path, origin=origin)
        return model.weight.detach()

    stage = Stage("tiny", steps=4, batch=4, lr=1e-2)
    first = run(stage, {"start": "a"})
    assert torch.equal(run(stage, {"start": "a"}), first) and taken == [0, 1, 2, 3]
    origin = changed.pop("origin", {"start": "a"})
    name = next(iter(changed), "start")
    with pytest.raises(ValueError, match=rf"other settings \({name}\): delete it"):
        run(replace(stage, **changed), origin)


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(ROOT / "data" / "tokenizer")


def test_growth_changes_no_logit(tokenizer):
    shallow = target.build(tokenizer, 2).eval()
    items = target._scene_items(2, 0)
    ids = pad([token_ids(item, tokenizer, True)[0] for item in items], tokenizer.pad_token_id)
    with torch.inference_mode():
        before = shallow(input_ids=ids, pixel_values=pixels(items)).logits
        deep = target.grow(shallow, tokenizer, 5).eval()
        after = deep(input_ids=ids, pixel_values=pixels(items)).logits
        deep.model.language_model.layers[1].mlp.down_proj.weight.normal_()
        assert not torch.equal(before, deep(input_ids=ids, pixel_values=pixels(items)).logits)
    assert len(deep.model.language_model.layers) == 5 and torch.equal(before, after)


def test_batches_depend_on_the_step_alone(tokenizer):
    weights = {"caption": 0.5, "lookup": 0.5}
    stream = batches(tokenizer, weights, 4, 0, image=True)
    wanted = [next(stream) for _ in range(7)]
    for step in (2, 5):
        ids, labels, images = next(batches(tokenizer, weights, 4, step, image=True))
        assert torch.equal(ids, wanted[step][0]) and torch.equal(labels, wanted[step][1])
        assert torch.equal(images, wanted[step][2])


def test_only_answers_are_learnt(tokenizer):
    from specnb.scenes import example

    item = example("conversation", 12)
    ids, labels = token_ids(item, tokenizer, True)
    learnt = [label for label in labels if label >= 0]
    text = tokenizer.decode(learnt)
    assert item.answer in text and "USER" not in text and "?" not in text
    assert text.count("</s>") == item.prompt.count("ASSISTANT:") + 1
