"""The draft tree: what a drafter hands to the verifier. A chain is a tree with single children."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING or "jaxtyping" in sys.modules:  # not on Colab; the tests have it
    from jaxtyping import Bool, Float


def depths(parents: Sequence[int]) -> list[int]:
    """Depth of every node, 1 for children of the root; parents come before their children."""
    found: list[int] = []
    for parent in parents:
        found.append(1 if parent < 0 else found[parent] + 1)
    return found


def path_to(node: int, parents: Sequence[int]) -> list[int]:
    """The nodes from the root's child down to `node`, both included; empty for node -1."""
    nodes = []
    while node >= 0:
        nodes.append(node)
        node = parents[node]
    return nodes[::-1]


def ancestor_mask(parents: Sequence[int]) -> Bool[Tensor, "nodes nodes"]:
    """Row i is True at i and at i's ancestors: tree attention without the prefix."""
    mask = np.eye(len(parents), dtype=bool)  # whose rows cost a tenth of a tensor's
    for node, parent in enumerate(parents):
        if parent >= 0:
            mask[node] |= mask[parent]
    return torch.from_numpy(mask)


@dataclass(frozen=True)
class DraftTree:
    """Drafted tokens, their parents (-1 = the last committed token) and the laws of their draws.

    `probs[i]` is the exact law that token i was drawn from, given its path and its earlier
    siblings; `verify` never alters it. `drawn` lists nodes in draw order, a node twice if its
    token was drawn twice; None means every node once, in order. The last three fields are what
    drafting cost and why it ended, for the record.
    """

    tokens: tuple[int, ...]
    parents: tuple[int, ...]
    probs: Float[Tensor, "nodes vocab"]
    drawn: tuple[int, ...] | None = None
    rule: str | Callable[..., Any] = "recursive"  # how it is verified; see `specnb.verify.RULES`
    forwards: int = 0
    stopped_by: str = "length"  # length | budget | context | rule | eos | forced
    threshold: float | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def depth(self) -> list[int]:
        """Depth of every node; the children of the last committed token have depth 1."""
        return depths(self.parents)

    def draws_of(self, parent: int) -> list[int]:
        """The children of a node in the order in which they were drawn."""
        order = range(len(self)) if self.drawn is None else self.drawn
        return [node for node in order if self.parents[node] == parent]

    def path(self, node: int) -> list[int]:
        """The nodes from depth 1 down to `node`."""
        return path_to(node, self.parents)

    def attention_mask(self, prefix_len: int) -> Bool[Tensor, "nodes context"]:
        """True where a node may look: the whole prefix, its ancestors and itself."""
        prefix = torch.ones(len(self), prefix_len, dtype=torch.bool)
        return torch.cat([prefix, ancestor_mask(self.parents)], dim=1)


def empty_tree(vocab_size: int, stopped_by: str) -> DraftTree:
    """Nothing drafted: the block becomes a plain target step."""
    return DraftTree((), (), torch.empty(0, vocab_size), stopped_by=stopped_by)
