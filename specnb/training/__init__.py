"""Training: the embedded models, and drafters for any Llama-type target.

`python -m specnb.training {tokenizer,sets,target,drafter,align}`; from Python the names below.
"""

from specnb.training.align import Answers, Recipe, align, new_drafter
from specnb.training.inherit import grown, inherit
from specnb.training.losses import LOSSES

__all__ = ["LOSSES", "Answers", "Recipe", "align", "grown", "inherit", "new_drafter"]
