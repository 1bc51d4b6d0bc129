"""A drafter's acceptance head (SpecDec++, 2405.19715): how likely is its next token to be accepted?

A logistic regression on the drafter's last hidden states, over what the target says. It learns from
the acceptance probability itself, sum min(p, q), of which a verdict is one draw.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from specnb.models.adapter import is_adapter, read_adapter
from specnb.models.head import save_head
from specnb.training.align import Answers, distributions
from specnb.training.answers import ASKING, scene_prompts, write_answers

DECAY = 1e-4  # weight of the mean squared weight, so that data without an edge have an answer
ROWS = 64  # answers read at once


@torch.no_grad()
def places(module: Any, answers: Answers) -> tuple[Tensor, Tensor]:
    """(hidden [n, width], acceptance [n]), float64, at every answer token."""
    hidden, accepted = [], []
    for first in range(0, len(answers), ROWS):
        batch = answers.rows(range(first, min(first + ROWS, len(answers))))
        p, q, states = distributions(module, answers, batch)
        hidden.append(states.double())
        accepted.append(torch.minimum(p, q).sum(-1).double())
    return torch.cat(hidden), torch.cat(accepted).clamp(0.0, 1.0)


def fit_head(
    module: Any, answers: Answers, watched: Answers
) -> tuple[tuple[Tensor, float], dict[str, float]]:
    """((weight [width], bias), figures on the answers `watched`).

    Figures: `loss`, the cross-entropy to the true acceptance in nats, `constant`, that of a head
    that always guesses the mean, `known`, that of the truth itself: none is lower.
    """
    hidden, accepted = places(module, answers)
    mean, spread = hidden.mean(0), hidden.std(0).clamp_min(1e-6)
    scaled = (hidden - mean) / spread  # so that LBFGS walks on even ground
    weight = torch.zeros(hidden.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.logit(accepted.mean()).clone().requires_grad_()
    walk = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        walk.zero_grad()
        value = F.binary_cross_entropy_with_logits(scaled @ weight + bias, accepted)
        value = value + DECAY * weight.square().mean()
        value.backward()
        return value

    walk.step(loss)
    found = (weight / spread).detach()
    shift = float((bias - (mean / spread) @ weight).detach())
    hidden, true = places(module, watched)

    def against(guess: Tensor) -> float:
        return float(F.binary_cross_entropy(guess, true))

    figures = {
        "loss": against(torch.sigmoid(hidden @ found + shift)),
        "constant": against(accepted.mean().expand_as(true)),
        "known": against(true),
    }
    return (found.float(), shift), figures


def train_head(
    draft: str | Path, work: str | Path = "runs/head", n: int = 1_024
) -> dict[str, float]:
    """Writes the acceptance head of a drafter of the embedded target into its folder; its figures.

    The target answers `n` prompts of its world; `work` keeps the answers. For other targets `align`
    fits a head to the drafter that it trains. ValueError where `draft` is no folder of a drafter.
    """
    from specnb.models.load import EMBEDDED, load_model

    if not (Path(draft) / "config.json").is_file():
        raise ValueError(f"draft={str(draft)!r}: there is no drafter; give the folder of one")
    target = load_model(
        str(EMBEDDED / "target"),
        dtype="float32",
        device="cpu",
        runtime="transformers",
        certify=False,
    )
    folder = Path(work)
    asking = ASKING.spread(n)
    write_answers(target, scene_prompts(n, 2_000, asking.batch), folder / "answers", asking)
    kept, watching = max(128, n // 16), replace(asking, temperatures=(0.0, 1.0))
    write_answers(target, scene_prompts(kept, 2_500, asking.batch), folder / "held_out", watching)
    answers, watched = Answers(folder / "answers"), Answers(folder / "held_out")
    head, figures = fit_head(_module(Path(draft)), answers, watched)
    save_head(draft, *head)
    return figures


def _module(folder: Path) -> Any:
    """The drafter of a folder in float32, as it is trained."""
    from transformers import AutoModelForCausalLM

    language = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return read_adapter(language, folder) if is_adapter(folder) else language
