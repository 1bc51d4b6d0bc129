"""Drafters: frozen settings, and the drafting of one run that grows a `DraftTree` per block."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch

from specnb.models.base import Context, Model, PromptTooLong
from specnb.sampling import Draws, Sampling
from specnb.stopping import FixedLength, StoppingRule
from specnb.tree import DraftTree, empty_tree


@runtime_checkable
class Drafting(Protocol):
    """A drafter at work on one prompt; owns its contexts and all of its state."""

    state: Hashable  # with the committed text, all that later proposals depend on

    def propose(self, draws: Draws, max_depth: int) -> DraftTree:
        """A tree of at most `max_depth` levels; an empty one makes a plain target step."""

    def commit(self, token_ids: Sequence[int], n_accepted: int) -> None:
        """The text goes on with these tokens, the first `n_accepted` of them drafted."""


@runtime_checkable
class Drafter(Protocol):
    """Frozen settings of a drafter."""

    def start(self, draft: Model | None, prompt: Any, image: Any, sampling: Sampling) -> Drafting:
        """The drafting of one run. `sampling` is the law that drafts are drawn from."""


@dataclass(frozen=True)
class NoDraft:
    """Proposes nothing: with it, the speculative loop is plain autoregressive decoding."""

    def start(self, draft, prompt, image, sampling) -> "NoDraft":
        return self

    @property
    def state(self) -> tuple:
        return ()

    def propose(self, draws: Draws, max_depth: int) -> DraftTree:
        return empty_tree(0, "length")

    def commit(self, token_ids: Sequence[int], n_accepted: int) -> None:
        pass


@dataclass(frozen=True)
class Chain:
    """Speculative sampling's drafter: `draft_length` tokens, one after another (2211.17192)."""

    draft_length: int = 5
    stop: StoppingRule = field(default_factory=FixedLength)

    def __post_init__(self):
        if self.draft_length < 1 or self.draft_length != int(self.draft_length):
            raise ValueError(f"draft_length={self.draft_length}: give a whole number >= 1")

    def start(self, draft, prompt, image, sampling) -> "ChainDrafting":
        if draft is None:
            raise ValueError("draft=None: Chain needs a draft model, load the pair with draft=...")
        return ChainDrafting(self, draft, prompt, image, sampling)


class ChainDrafting:
    def __init__(self, settings: Chain, draft: Model, prompt, image, sampling: Sampling):
        self.settings, self.sampling, self.vocab_size = settings, sampling, draft.vocab_size
        # A drafter without eyes gets the text alone; left-in image tokens halve its efficiency.
        self.context: Context | None
        try:
            self.context = draft.open(prompt, image if draft.sees_images else None)
        except PromptTooLong:
            self.context = None  # drafting has ended before it began, decoding goes on
        self.rule = settings.stop.start()
        self.depth_drafted = self.max_depth = 0

    @property
    def state(self) -> Hashable:
        return self.rule.state

    def propose(self, draws: Draws, max_depth: int) -> DraftTree:
        room = self.context.room if self.context else 0  # positions that the draft model has left
        self.max_depth = max(0, min(self.settings.draft_length, max_depth, room))
        stopped_by = "length"
        if self.max_depth < self.settings.draft_length:
            stopped_by = "context" if room < max_depth else "budget"
        tokens, rows, forwards = [], [], 0
        threshold = self.rule.threshold
        while len(tokens) < self.max_depth:
            node = len(tokens) - 1
            scores = self.context.forward(tokens[-1:], [node - 1] if tokens else [])
            forwards += 1
            logits = scores.nodes[0] if tokens else scores.root
            probs = self.sampling.probs(logits)
            if self.rule.stop(logits, probs):
                stopped_by = "rule"
                break
            tokens.append(draws.categorical(probs))
            rows.append(probs)
        self.depth_drafted = len(tokens)
        return DraftTree(
            tokens=tuple(tokens),
            parents=tuple(range(-1, len(tokens) - 1)),
            probs=torch.stack(rows) if rows else torch.empty(0, self.vocab_size),
            forwards=forwards,
            stopped_by=stopped_by,
            threshold=threshold,
        )

    def commit(self, token_ids: Sequence[int], n_accepted: int) -> None:
        if self.context:
            self.context.commit(token_ids)
        self.rule.update(self.depth_drafted, n_accepted, self.max_depth)
