"""One resumable training loop: AdamW, warm-up and cosine, progress bar, JSONL metrics."""

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm.auto import tqdm

ROW_EVERY = 20  # steps between two rows of metrics.jsonl


@dataclass(frozen=True)
class Stage:
    """A part of a recipe: `steps` of `batch` rows, learning rate up to `lr`, then down to `final`
    of it."""

    name: str
    steps: int
    batch: int
    lr: float
    warmup: int = 50
    final: float = 0.1  # last learning rate / highest
    data: int = 0  # first step of the data stream, so that stages do not see the same scenes


def rate(stage: Stage, step: int) -> float:
    """The learning rate at a step."""
    if step < stage.warmup:
        return stage.lr * (step + 1) / stage.warmup
    done = (step - stage.warmup) / max(1, stage.steps - stage.warmup)
    return stage.lr * (stage.final + (1 - stage.final) * 0.5 * (1 + math.cos(math.pi * done)))


def train(
    stage: Stage,
    modules: nn.Module,
    loss_of: Callable[[int], tuple[Tensor, dict[str, float]]],
    folder: Path,
    checkpoint_s: float = 120.0,
    origin: Mapping[str, Any] | None = None,
) -> None:
    """Runs a stage on the trainable parameters of `modules`, from its last checkpoint if any.

    `loss_of(step)` gives the loss and figures to log, and must depend on the step alone. After
    the last step the checkpoint stays, so that a second call returns at once. `origin` names what
    else the weights depend on (their start, the data), in values that JSON holds. ValueError where
    the checkpoint is of another stage, origin or model.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{stage.name}.safetensors"
    parameters = {name: p for name, p in modules.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(
        parameters.values(), lr=stage.lr, betas=(0.9, 0.98), weight_decay=0.01, fused=True
    )
    settings = {**asdict(stage), **(origin or {})}
    step = load_checkpoint(path, settings, parameters, optimizer) if path.exists() else 0
    saved_at = time.monotonic()
    bar = tqdm(total=stage.steps, initial=step, desc=stage.name, mininterval=5.0)
    with open(folder / "metrics.jsonl", "a") as log:
        while step < stage.steps:
            began = time.perf_counter()
            for group in optimizer.param_groups:
                group["lr"] = rate(stage, step)
            loss, figures = loss_of(step)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            norm = nn.utils.clip_grad_norm_(list(parameters.values()), 1.0)
            optimizer.step()
            step += 1
            bar.update()
            if step % ROW_EVERY == 0 or step == stage.steps:
                row = {
                    "stage": stage.name,
                    "step": step,
                    "loss": loss.item(),
                    "lr": rate(stage, step - 1),
                    "grad_norm": norm.item(),
                    "step_s": time.perf_counter() - began,
                    **figures,
                }
                log.write(json.dumps(row) + "\n")
                log.flush()
                bar.set_postfix(
                    loss=f"{loss.item():.3f}",
                    **{k: f"{v:.3f}" for k, v in figures.items() if isinstance(v, float)},
                )
            if time.monotonic() - saved_at > checkpoint_s or step == stage.steps:
                save_checkpoint(path, settings, step, parameters, optimizer)
                saved_at = time.monotonic()
    bar.close()


def save_checkpoint(path, settings, step, parameters, optimizer) -> None:
    """Parameters, AdamW moments and what they depend on in one file, written aside and renamed."""
    tensors = {}
    for name, parameter in parameters.items():
        tensors[name] = parameter.detach().clone().contiguous()
        for moment in ("exp_avg", "exp_avg_sq"):
            if optimizer.state[parameter]:  # a parameter that gets no gradient has none
                tensors[f"{moment}/{name}"] = optimizer.state[parameter][moment].contiguous()
    temporary = path.with_suffix(".tmp")
    save_file(tensors, temporary, {"step": str(step), "stage": json.dumps(settings)})
    temporary.rename(path)


def load_checkpoint(path, settings, parameters, optimizer) -> int:
    """The step to go on from; parameters and moments are set in place."""
    with safe_open(path, "pt") as file:
        if set(k for k in file.keys() if not k.startswith("exp_avg")) != set(parameters):
            raise ValueError(f"{path} belongs to another model: delete it to start this stage anew")
        found = json.loads(file.metadata()["stage"])
        names = sorted({*found, *settings})
        differ = [name for name in names if found.get(name) != settings.get(name)]
        if differ:
            raise ValueError(
                f"{path} was made with other settings ({', '.join(differ)}): delete it to start "
                "this stage anew, or give another folder"
            )
        step = int(file.metadata()["step"])
        for name, parameter in parameters.items():
            parameter.data.copy_(file.get_tensor(name))
            if f"exp_avg/{name}" in file.keys():
                optimizer.state[parameter] = {
                    "step": torch.tensor(float(step)),
                    "exp_avg": file.get_tensor(f"exp_avg/{name}").to(parameter.device),
                    "exp_avg_sq": file.get_tensor(f"exp_avg_sq/{name}").to(parameter.device),
                }
    return step
