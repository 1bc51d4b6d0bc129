"""Training: the embedded models, and drafters for any Llama-type target.

`python -m specnb.training {tokenizer,sets,target,drafter,align,head}`; from Python the names below.
"""

from specnb.training.align import Answers, Recipe, align, as_draft, held_out, new_drafter, train_on
from specnb.training.answers import Asked, Asking, write_answers
from specnb.training.inherit import grown, inherit
from specnb.training.losses import LOSSES

__all__ = [
    "LOSSES",
    "Answers",
    "Asked",
    "Asking",
    "Recipe",
    "align",
    "as_draft",
    "grown",
    "held_out",
    "inherit",
    "new_drafter",
    "train_on",
    "write_answers",
]
