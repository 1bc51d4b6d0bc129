"""A slow pair that reads text only, for the control panel: every forward of the target sleeps."""

from __future__ import annotations

import time
from types import SimpleNamespace

from specnb.models import Pair, TableModel
from specnb.models.table import TableContext

N_TOKENS = 12
ITEMS = [
    SimpleNamespace(prompt=f"Say it again, please: {what}", image=None, task="rewrite")
    for what in ("hello", "a fish", "the tree")
]


class SlowModel(TableModel):
    """A letter of the prompt is a token; `seconds` are slept in every forward."""

    tokenizer = "letters"  # it knows words, unlike a bare table

    def __init__(self, logits, seconds: float):
        super().__init__(logits)
        self.seconds, self.forwards, self.at_work = seconds, 0, 0

    def encode(self, prompt, image=None):
        return [ord(letter) % self.vocab_size for letter in prompt], None

    def piece(self, token_id: int) -> str:
        return " " + "abcdefghijklmnopqrstuvwxyz"[token_id] * 3

    def decode(self, token_ids) -> str:
        return "".join(map(self.piece, token_ids))

    def open(self, prompt, image=None):
        assert image is None
        return SlowContext(self, self.encode(prompt)[0])


class SlowContext(TableContext):
    def forward(self, tokens=(), parents=()):
        self.model.at_work += 1
        assert self.model.at_work == 1, "two runs at once"
        self.model.forwards += 1
        time.sleep(self.model.seconds)
        try:
            return super().forward(tokens, parents)
        finally:
            self.model.at_work -= 1


def pair(seconds: float = 0.04, draft: bool = True) -> Pair:
    """A slow target, with a quick draft model or without one."""
    laws = [TableModel.random(N_TOKENS, seed=seed).logits for seed in (0, 1)]
    target = SlowModel(laws[0], seconds)
    return Pair(target, SlowModel(laws[0] + laws[1] / 2, 0.0) if draft else None)
