"""Prompt lookup, and a model where it finds nothing: quotes are looked up, the rest is drafted."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from specnb.arguments import shown
from specnb.drafters.base import Drafter, Drafting, draws_a_tree, parameter_ratio, start
from specnb.drafters.lookup import PromptLookup, PromptLookupDrafting
from specnb.drafters.trees import Chain
from specnb.models.base import Context, Pair
from specnb.sampling import Draws, Sampling
from specnb.stopping import is_rule
from specnb.tree import DraftTree


@dataclass(frozen=True)
class Either:
    """Drafts by `lookup` where the text's last `lookup.ngram` tokens were said before, all of them,
    and else by `otherwise`.

    A long match is what makes a quote likely; shorter ones, which `PromptLookup` alone goes on to
    try, are left to the model. Which of the two drafts is decided by the text alone, before
    anything is drawn, so that the target's distribution is kept.
    """

    lookup: PromptLookup = field(default_factory=lambda: PromptLookup(3, 8))
    otherwise: Drafter = field(default_factory=Chain)

    def __post_init__(self) -> None:
        if not isinstance(self.lookup, PromptLookup):
            raise ValueError(f"lookup={shown(self.lookup)}: give one, as in PromptLookup(3, 8)")
        other = self.otherwise
        if isinstance(other, type) or is_rule(other) or not isinstance(other, Drafter):
            raise ValueError(f"otherwise={shown(self.otherwise)}: give a drafter, as in Chain(5)")

    @property
    def branches(self) -> bool:
        """Whether a node may get two children: not every model can score that."""
        return bool(getattr(self.otherwise, "branches", False))

    @property
    def draws_a_tree(self) -> bool:
        """Whether several children of a node are draws: at temperature 0 they would be one."""
        return draws_a_tree(self.otherwise)

    def parameter_ratio(self, pair: Pair) -> float | None:
        """That of the drafter behind: a lookup reads no parameters."""
        return parameter_ratio(self.otherwise, pair)

    def start(
        self,
        pair: Pair,
        prompt: Any,
        image: Any,
        sampling: Sampling,
        target: Context | None = None,
    ) -> EitherDrafting:
        # One that asks for the target's context is given it, as if it drafted alone.
        behind = start(self.otherwise, pair, prompt, image, sampling, target)
        return EitherDrafting(self.lookup.start(pair, prompt, image, sampling), behind)


class EitherDrafting:
    """Both draftings follow the text; the one that does not draft is asked for no token."""

    def __init__(self, lookup: PromptLookupDrafting, otherwise: Drafting):
        self.lookup, self.otherwise = lookup, otherwise
        self.looked_up = False

    @property
    def state(self) -> Hashable:
        return self.otherwise.state

    def propose(self, draws: Draws, max_depth: int) -> DraftTree:
        quote = self.lookup.continuation(whole=True)
        self.looked_up = bool(quote)
        # A rule that learns from its drafts must know of a block that it did not draft.
        tree = self.otherwise.propose(draws, 0 if self.looked_up else max_depth)
        return self.lookup.quoted(quote, max_depth) if self.looked_up else tree

    def commit(self, token_ids: Sequence[int], n_accepted: int) -> None:
        self.lookup.commit(token_ids, n_accepted)
        self.otherwise.commit(token_ids, 0 if self.looked_up else n_accepted)
