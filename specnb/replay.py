"""The distributions behind one token of a run, computed anew in fresh contexts."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from specnb.decode import Decoding
from specnb.record import TokenRow
from specnb.sampling import Sampling, residual


class Distributions(NamedTuple):
    """What was known at the place of a token; [vocab] each.

    `at_node` is the drafter's law there, `draft` the one that the token was drawn from, after its
    earlier siblings; `left` is the residual: what a correction is
    drawn from after this token, and all siblings before it, have been turned down. For a
    correction they are those of the last rejected token. None where nothing was drafted, or where
    the drafter cannot say (a model of its own, a part of the target's cache, or no model); `left`
    also where the verifier is not recursive.
    """

    target: Tensor
    draft: Tensor | None = None
    left: Tensor | None = None
    at_node: Tensor | None = None


@torch.inference_mode()
def distributions_at(decoding: Decoding, row: TokenRow) -> Distributions:
    """The distributions at the place of a row of `decoding.record()`: one forward of each model.

    Nothing is taken from the record but tokens, so that these numbers are a check of it: they
    equal `target_prob` and `draft_prob` but for rounding.
    """
    block, pair = decoding.blocks[row.block], decoding.pair
    tree = block.tree
    before = [token for done in decoding.blocks[: row.block] for token in done.token_ids]
    if row.parent >= 0:
        before += [tree.tokens[node] for node in tree.path(row.parent)]
    prompt, image = decoding.prompt, decoding.image
    target = _law(pair.target, prompt, image, before, decoding.sampling)

    siblings = tree.draws_of(row.parent)
    if row.node >= 0:
        siblings = siblings[: siblings.index(row.node) + 1]
    child_law = getattr(decoding.drafter, "child_law", None)
    if not siblings or child_law is None or pair.draft is None:
        return Distributions(target)
    seen = image if pair.draft.sees_images else None
    at_node = _law(pair.draft, prompt, seen, before, decoding.draft_sampling)
    tokens = [tree.tokens[node] for node in siblings]
    drawn_from = [child_law(at_node, tokens[:i], token) for i, token in enumerate(tokens)]
    left = None
    if tree.rule == "recursive":
        left = target
        for law in drawn_from:
            left = residual(left, law)
    return Distributions(target, drawn_from[-1], left, at_node)


def _law(model, prompt: Any, image: Any, before: list[int], sampling: Sampling) -> Tensor:
    context = model.open(prompt, image)
    context.commit(before)
    return sampling.probs(context.forward().root)
