"""Hierarchies: what drafts for the target has drafts made for itself."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from specnb.arguments import shown
from specnb.drafters.base import Drafter, NoDraft, law_of, parts_of, start
from specnb.drafters.sparse import SparseSelf, given
from specnb.drafters.trees import Chain, TreeDrafting, _OfDraftModel
from specnb.models.base import Context, Pair
from specnb.sampling import Draws, Sampling
from specnb.stopping import FixedLength, is_rule
from specnb.tree import DraftTree
from specnb.verify import verify


@dataclass(frozen=True)
class Hierarchy:
    """TriForce's levels (2404.11912): `inner` drafts for `outer`'s model, that for the target.

    outer: a `SparseSelf`, whose model is the target over a part of its cache, or a `Chain`, whose
    model is the pair's draft model; its draft length is what the target is offered in a block.
    inner: any drafter for that model: behind a `SparseSelf` one of the pair's draft model, such as
    `Chain(2)`; or `PromptLookup`, which needs none. What is offered follows the outer law token by
    token, because the inner rejections are followed by a draw from the residual; so the outer law
    is what the target verifies against, and the text keeps the target's law. A stopping rule of
    `inner` learns from what the middle model keeps.
    """

    inner: Drafter = field(default_factory=lambda: Chain(2))
    outer: SparseSelf | Chain = field(default_factory=SparseSelf)

    def __post_init__(self) -> None:
        named = isinstance(self.inner, type) or is_rule(self.inner)
        if named or not isinstance(self.inner, Drafter):
            raise ValueError(f"inner={shown(self.inner)}: give a drafter, as in Chain(2)")
        if not isinstance(self.outer, SparseSelf | Chain):
            raise ValueError(
                f"outer={shown(self.outer)}: the middle level is a SparseSelf or a Chain"
            )
        parts = list(parts_of(self.inner))
        if isinstance(self.outer, Chain) and any(isinstance(p, _OfDraftModel) for p in parts):
            raise ValueError(
                f"inner={self.inner!r}: the pair's draft model is the middle level of an outer "
                "Chain, and a pair has no smaller one; give PromptLookup, or a SparseSelf as outer"
            )
        if isinstance(self.outer, SparseSelf) and any(isinstance(p, SparseSelf) for p in parts):
            raise ValueError(
                f"inner={self.inner!r}: it looks into a whole cache, and the middle level of an "
                "outer SparseSelf has none; give Chain or PromptLookup"
            )
        if not isinstance(self.outer.stop, FixedLength) or self.outer.verify != "recursive":
            raise ValueError(
                f"outer={self.outer!r}: the middle level offers its whole length to a recursive "
                "verification; leave stop and verify out"
            )

    @property
    def branches(self) -> bool:
        """Whether the middle model must score a tree; the target is offered a chain."""
        return bool(getattr(self.inner, "branches", False))

    draws_a_tree = False

    def parameter_ratio(self, pair: Pair) -> None:
        """None: the forwards of the middle and of the small model have no one ratio."""

    def start(
        self,
        pair: Pair,
        prompt: Any,
        image: Any,
        sampling: Sampling,
        target: Context | None = None,
    ) -> HierarchyDrafting:
        return HierarchyDrafting(self, pair, prompt, image, sampling, given(self, target))


class HierarchyDrafting:
    """Runs rounds of speculative decoding in the middle model, on copies, for every block."""

    def __init__(
        self,
        settings: Hierarchy,
        pair: Pair,
        prompt: Any,
        image: Any,
        sampling: Sampling,
        target: Context,
    ):
        self.settings, self.sampling, self.pair = settings, sampling, pair
        own = isinstance(settings.outer, SparseSelf)
        if not own and getattr(pair.draft, "kept", None) is not None:
            raise ValueError(
                "draft: its vocabulary is trimmed, and a middle level scores every id; give the "
                "whole draft model, or a SparseSelf as outer"
            )
        outer: Any = start(settings.outer, pair, prompt, image, sampling, target)
        self.outer: TreeDrafting = outer
        # What the middle model's own drafter may ask of a pair.
        middle = pair.target if own else pair.draft
        assert middle is not None  # else the outer drafter has refused
        below = Pair(middle, pair.draft if own else None)
        context = self.outer.context
        # Where the prompt is too long for the middle model, nothing is ever drafted.
        inner = settings.inner if context else NoDraft()
        self.inner = start(inner, below, prompt, image, sampling, context)
        self.target = target

    @property
    def state(self) -> Hashable:
        return self.inner.state

    def propose(self, draws: Draws, max_depth: int) -> DraftTree:
        wanted = self.settings.outer.draft_length
        room = self.outer.context.room if self.outer.context else 0
        depth = max(0, min(wanted, max_depth, room))
        stopped_by = "length"
        if depth < wanted:
            stopped_by = "context" if room < max_depth else "budget"
        # Models, the target's context and stopping rules are shared, all else is forgotten after
        # the block.
        shared = (self.pair.target, self.pair.draft, self.target, *_rules_in(self.inner))
        memo: dict[int, Any] = {id(thing): thing for thing in shared}
        tokens: list[int] = []
        laws: list[torch.Tensor] = []
        forwards = 0
        if depth:
            middle, inner = copy.deepcopy((self.outer.context, self.inner), memo)
        while len(tokens) < depth:
            tree = inner.propose(draws, depth - len(tokens) - 1)
            scores = middle.forward(tree.tokens, tree.parents)
            probs = law_of(middle, self.sampling, torch.cat([scores.root[None], scores.nodes]))
            outcome = verify(tree, probs[0], probs[1:], draws, self.outer.eos_ids)
            said = [tree.tokens[node] for node in outcome.path]
            if outcome.token is not None:
                said.append(outcome.token)
            behind = [-1, *outcome.path][: len(said)]  # the node that each of them follows
            tokens += said
            laws += [probs[node + 1] for node in behind]
            forwards += 1
            middle.commit(said)
            inner.commit(said, len(outcome.path))
            if tokens[-1] in self.outer.eos_ids:
                stopped_by = "eos"
                break
        return DraftTree(
            tokens=tuple(tokens),
            parents=tuple(range(-1, len(tokens) - 1)),
            probs=torch.stack(laws) if laws else torch.empty(0, self.outer.vocab_size),
            forwards=forwards,
            stopped_by=stopped_by,
        )

    def commit(self, token_ids: Sequence[int], n_accepted: int) -> None:
        self.outer.commit(token_ids, n_accepted)
        self.inner.commit(token_ids, 0)


def _rules_in(drafting: Any) -> Iterator[Any]:
    """The stopping rules at work in a drafting, and in those that it holds."""
    if isinstance(drafting, TreeDrafting):
        yield drafting.rule
    for name in ("inner", "otherwise"):
        if (held := getattr(drafting, name, None)) is not None:
            yield from _rules_in(held)
