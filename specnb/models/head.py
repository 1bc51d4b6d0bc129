"""A drafter's own guess that its next token will be accepted: a linear head on its hidden state.

The acceptance prediction head of SpecDec++ (2405.19715), trained on the target's own verdicts by
`specnb.training.head`: sigmoid(w . h + b), h the drafter's last hidden state after the last norm.
A model's logits are U h, and U has more rows than columns, so w . h = (U (U^T U)^-1 w) . logits:
the head is applied to logits, and works with every runtime, and with a smaller vocabulary.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

FILE = "acceptance_head.safetensors"


class AcceptanceHead:
    """The head of one drafter, as it applies to logits over its vocabulary.

    weight: [width], bias: as trained. unembedding: U, [columns, width]. columns: of the logits,
    those that U has rows for; None means all. ValueError where U has fewer rows than columns.
    """

    def __init__(
        self, weight: Tensor, bias: float, unembedding: Tensor, columns: Tensor | None = None
    ):
        rows, width = unembedding.shape
        if weight.shape != (width,):
            raise ValueError(
                f"{FILE}: it is for hidden states of {weight.numel()} numbers, the draft model's "
                f"have {width}; train one with `python -m specnb.training head`"
            )
        if rows < width:
            raise ValueError(
                f"k={rows}: an acceptance head is read from logits, of which there must be "
                f"{width} at least; keep as many ids, or choose another stopping rule"
            )
        whole = unembedding.detach().double().cpu()
        solved = torch.linalg.lstsq(whole.T @ whole, weight.double()[:, None]).solution
        self.on_logits, self.bias, self.columns = (whole @ solved)[:, 0], float(bias), columns

    def __call__(self, logits: Tensor) -> Tensor:
        """The guesses [...], from 0 to 1, for logits [..., vocab] at temperature 1; float64."""
        some = logits if self.columns is None else logits[..., self.columns.to(logits.device)]
        weight = self.on_logits.to(some.device)
        return torch.sigmoid(some.double() @ weight + self.bias)


def save_head(folder: str | Path, weight: Tensor, bias: float) -> None:
    """Writes the head beside a drafter's weights."""
    tensors = {"weight": weight.float().contiguous(), "bias": torch.tensor([bias])}
    save_file(tensors, Path(folder) / FILE)


def read_head(folder: str | Path) -> tuple[Tensor, float] | None:
    """(weight [width], bias) of a drafter's folder; None where it has no head."""
    path = Path(folder) / FILE
    if not path.is_file():
        return None
    found = load_file(path)
    if set(found) != {"weight", "bias"} or found["weight"].ndim != 1:
        raise ValueError(f"{path}: it holds no acceptance head; train one again, or delete it")
    return found["weight"], float(found["bias"])
