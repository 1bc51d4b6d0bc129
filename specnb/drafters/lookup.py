"""Drafts without a model: what the text itself has said before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from specnb.drafters.base import one_hot
from specnb.knobs import knob, settle
from specnb.models.base import Model, Pair
from specnb.sampling import Draws, Sampling
from specnb.tree import DraftTree


@dataclass(frozen=True)
class PromptLookup:
    """Drafts up to `length` tokens that followed the last `ngram` when they were last said.

    Shorter endings are tried where a longer one was never said before. Proposals are certain, so
    they are verified against one-hot laws. It needs no model. Summaries and answers that quote gain
    most.
    """

    ngram: int = knob(3, least=1, upto=8, words="tokens that are looked for")
    length: int = knob(5, least=1, upto=16, words="tokens drafted per block", unit="tokens")

    def __post_init__(self) -> None:
        settle(self)

    def start(
        self, pair: Pair, prompt: Any, image: Any, sampling: Sampling
    ) -> PromptLookupDrafting:
        return PromptLookupDrafting(self, pair.target, prompt)


class PromptLookupDrafting:
    state = ()

    def __init__(self, settings: PromptLookup, target: Model, prompt: Any):
        self.settings, self.target = settings, target
        self.text = list(target.encode(prompt)[0])

    def propose(self, draws: Draws, max_depth: int) -> DraftTree:
        return self.quoted(self.continuation(), max_depth)

    def quoted(self, tokens: list[int], max_depth: int) -> DraftTree:
        """What `continuation` has found, as a tree of at most `max_depth` levels."""
        wanted = self.settings.length
        tokens = tokens[: max(0, min(wanted, max_depth))]
        like = torch.empty(self.target.vocab_size)
        return DraftTree(
            tokens=tuple(tokens),
            parents=tuple(range(-1, len(tokens) - 1)),
            probs=torch.stack([one_hot(token, like) for token in tokens])
            if tokens
            else torch.empty(0, self.target.vocab_size),
            stopped_by="budget" if max_depth < wanted else "length",
        )

    def continuation(self, whole: bool = False) -> list[int]:
        """What stood after the last earlier occurrence of the text's ending; maybe nothing.

        whole: whether all of its `ngram` tokens must have been said before.
        """
        text, shortest = self.text, self.settings.ngram if whole else 1
        for size in range(min(self.settings.ngram, len(text) - 1), shortest - 1, -1):
            ending = text[-size:]
            for start in range(len(text) - size - 1, -1, -1):
                if text[start : start + size] == ending:
                    return text[start + size : start + size + self.settings.length]
        return []

    def commit(self, token_ids: Sequence[int], n_accepted: int) -> None:
        self.text += token_ids
