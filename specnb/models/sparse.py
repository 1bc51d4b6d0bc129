"""Contexts that draft over chosen slots of another context's cache, and over no others.

A model can draft for itself with less to read: its own weights over a part of its keys and values.
Nothing is read a second time for that. A `SparseContext` looks into the cache of another context,
its target, and keeps only the keys and values of its own drafts. Which slots it reads is chosen by
one of `specnb.models.selectors`.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from specnb.models.base import Context
from specnb.models.selectors import CachedLayer, Chosen, Selector, check_spending

if TYPE_CHECKING or "jaxtyping" in sys.modules:  # not on Colab; the tests have it
    from jaxtyping import Float

Sparse = TypeVar("Sparse", bound="SparseContext")
Heads = TypeVar("Heads", bound="ByHead")
KeysValues = Sequence[Tensor]  # both of them, [kv heads, slots, dim]


class SparseContext(Context):
    """Drafts of a target's model over chosen slots of the target's cache.

    `target` is read and never fed. Slots 0 .. `base` are the target's, those behind them are this
    context's own: the last committed token, and what is drafted or was committed here since the
    target was followed. A budget beyond the candidates means all of them.
    """

    def __init__(self, target: Context, select: Selector, budget: int, over: str = "all"):
        check_spending(select, budget, over)
        Context.__init__(self, target.committed, target.max_positions, target.offset)
        self.target: Any = target
        self.model: Any = getattr(target, "model", None)
        self.features = getattr(target, "features", None)  # of the pictures
        self.select, self.budget, self.over = select, budget, over
        self.numbers_read = 0  # of keys and values, summaries of them included
        self.follow()

    def follow(self) -> None:
        """Goes on from the target's text as it is now; nothing of its own drafts is left."""
        target = self.target
        self.committed = list(target.committed)
        self.fed = min(target.fed, target.length - 1)  # one token is fed here: it gives the root
        self.base = self.offset + self.fed
        self.pending_tokens, self.pending_parents, self._nodes = [], [], []
        self._root = None  # type: ignore[assignment]  # the next forward feeds a token
        self._forget()

    def _forget(self) -> None:
        """Drops its own slots, and what was chosen for them."""
        raise NotImplementedError

    def candidates(self) -> list[int]:
        """The target's slots among which the budget is spent."""
        if self.over == "all":
            return list(range(self.base))
        pictures = set(self.target.image_slots)
        return [slot for slot in range(self.base) if (slot in pictures) == (self.over == "images")]

    def copy(self: Sparse) -> Sparse:
        return self._fork(copy.copy(self))  # with the same target; see `__deepcopy__`

    def __deepcopy__(self: Sparse, memo: dict[int, object]) -> Sparse:
        other = self.copy()
        other.target = copy.deepcopy(self.target, memo)  # a fork's own, where it was forked
        return other


class Watched(Context):
    """A context that keeps the queries of its last forward where it is asked to."""

    watched = False
    queries: Sequence[Tensor] = ()  # of each layer, [..., n, dim]; made anew by each forward
    last = 0  # the row of the last token kept

    def watch(self) -> None:
        """From now on the queries of each forward are kept."""
        self.watched = True

    def last_queries(self, layer: int) -> Float[Tensor, "heads group dim"] | None:
        """Of the last token kept; None where none was watched yet."""
        raise NotImplementedError

    def _follow_last(self, slots: list[int], n_before: int, used: int) -> None:
        """Finds that row again when of `used` slots the first `n_before` and `slots` are kept."""
        if self.queries:
            first = used - self.queries[0].shape[-2]  # the slot of the last forward's first row
            self.last = (slots[-1] if slots else n_before - 1) - first


class ByHead(SparseContext):
    """Drafts over slots that the heads of each layer choose for themselves.

    A runtime brings the keys and values of a layer, those of the target's slots and those of the
    drafts, and its queries; what is chosen, and what is read of it, is the same for all of them.
    """

    target: Any  # a `Watched`

    def __init__(self, target: Watched, select: Selector, budget: int, over: str = "all"):
        self.sums: dict[int, tuple[int, Tensor]] = {}  # by layer: of the values of so many slots
        self.means: dict[tuple[int, int], Tensor] = {}  # of whole chunks, by layer and size
        super().__init__(target, select, budget, over)

    def _forget(self) -> None:
        self.picked: dict[int, Chosen] = {}  # what was chosen for this block, by layer
        slots = self.candidates()
        others = sorted(set(range(self.base)) - set(slots))
        self.slots, self.others = (
            torch.tensor(each, dtype=torch.long, device=self.model.device)
            for each in (slots, others)
        )

    def _attend(
        self, number: int, queries: Tensor, cached: KeysValues, own: KeysValues, mask: Tensor
    ) -> Tensor:
        """Attention of one layer over what its heads have chosen, and over its own slots.

        `queries` [1, heads, n, dim]; `cached` and `own` are [kv heads, slots, dim] each; `mask`
        [n, own slots] is 0 where a row sees a slot. Gives [1, heads, n, dim of values].
        """
        if len(self.slots) <= self.budget or not self.select.every_token:
            chosen = self._chosen(number, queries[:, :, :1], cached[0], own[0], mask[0])
            return self._read(number, chosen, queries, cached, own, mask)
        rows = []
        for row in range(len(mask)):
            query, seen = queries[:, :, row : row + 1], mask[row : row + 1]
            chosen = self._chosen(number, query, cached[0], own[0], seen[0])
            rows.append(self._read(number, chosen, query, cached, own, seen))
        return torch.cat(rows, 2)

    def _chosen(
        self, number: int, query: Tensor, keys: Tensor, own: Tensor, mask: Tensor
    ) -> Chosen | None:
        """The slots that a row of queries [1, heads, 1, dim] chooses; None means all of them."""
        if len(self.slots) <= self.budget:
            return None
        if number in self.picked and not self.select.every_token:
            return self.picked[number]
        layer = HeadsLayer(self, number, query, keys, own[:, mask == 0])
        chosen = self.select.choose(layer, self.budget)
        others = self.others.to(chosen.slots.device).expand(len(chosen.slots), -1)
        chosen = chosen._replace(slots=torch.cat([others, chosen.slots], 1))
        self.picked[number] = chosen
        return chosen

    def _read(
        self,
        number: int,
        chosen: Chosen | None,
        queries: Tensor,
        cached: KeysValues,
        own: KeysValues,
        mask: Tensor,
    ) -> Tensor:
        """What rows of queries [1, heads, n, dim] read of chosen slots and of its own."""
        there = cached
        if chosen is not None and len(chosen.slots) == 1:
            there = [each[:, chosen.slots[0]] for each in cached]
        elif chosen is not None:
            heads = torch.arange(len(chosen.slots), device=chosen.slots.device)[:, None]
            there = [each[heads, chosen.slots] for each in cached]
        keys, values = (torch.cat([a, b], 1) for a, b in zip(there, own, strict=True))
        self.numbers_read += keys.numel() + values.numel()
        found: Tensor = F.scaled_dot_product_attention(
            queries,
            keys[None],
            values[None],
            attn_mask=F.pad(mask, (keys.shape[1] - mask.shape[1], 0)),
            enable_gqa=len(keys) != queries.shape[1],
        )
        if chosen is None or chosen.share is None:
            return found
        drafted = own[1][:, mask[0] == 0]
        total = self._summed(number, cached[1]) + drafted.sum(1)
        mean = total / (self.base + drafted.shape[1])
        self.numbers_read += mean.numel()
        mean = mean.repeat_interleave(queries.shape[1] // len(mean), 0)[None, :, None]
        share: Tensor = chosen.share.reshape(1, -1, 1, 1)
        return share * found + (1.0 - share) * mean

    def _summed(self, number: int, values: Tensor) -> Tensor:
        """The sum of a layer's values over all of the target's slots, [kv heads, dim]."""
        done, total = self.sums.get(number, (0, values.new_zeros(())))
        if done < self.base:
            new = values[:, done:]
            self.numbers_read += new.numel()
            total = total + new.sum(1)
            self.sums = self.sums | {number: (self.base, total)}  # a fork may share the old ones
        return total

    def chunk_means(self, number: int, keys: Tensor, size: int) -> Tensor:
        """Mean keys of a layer's whole chunks of candidates, [kv heads, chunks, dim]."""
        n = len(self.slots) // size
        found = self.means.get((number, size), keys[:, :0])
        if found.shape[1] < n:
            new = keys[:, self.slots[found.shape[1] * size : n * size].to(keys.device)]
            self.numbers_read += new.numel()
            chunks = new.reshape(len(new), -1, size, new.shape[-1])
            found = torch.cat([found, chunks.mean(2)], 1)
            self.means = self.means | {(number, size): found}
        return found

    def copy(self: Heads) -> Heads:
        other = super().copy()
        other.picked = dict(self.picked)
        return other


class HeadsLayer(CachedLayer):
    """One layer of a `ByHead`'s target."""

    def __init__(self, context: ByHead, number: int, query: Tensor, keys: Tensor, drafts: Tensor):
        self.context, self.number, self.drafts = context, number, drafts
        self.candidates = context.slots.to(keys.device)
        self.queries = query.reshape(len(keys), -1, query.shape[-1])
        self._keys = keys

    @property
    def keys(self) -> Tensor:
        return self._keys

    @property
    def last_queries(self) -> Tensor:
        found = self.context.target.last_queries(self.number)
        return self.queries if found is None else found

    def chunk_means(self, size: int) -> Tensor:
        means = self.context.chunk_means(self.number, self.keys, size)
        self.count(means.numel())
        return means

    def count(self, numbers: int) -> None:
        self.context.numbers_read += numbers


class Places(CachedLayer):
    """A layer of a cache of which only places are known."""

    def __init__(self, slots: Sequence[int]):
        self.candidates = torch.tensor(slots, dtype=torch.long)


def chosen_by_place(context: SparseContext) -> list[int]:
    """The slots of the target that are read by all layers and heads, in order."""
    slots = context.candidates()
    if len(slots) <= context.budget:
        return list(range(context.base))
    chosen = set(context.select.choose(Places(slots), context.budget).slots[0].tolist())
    others = set(range(context.base)) - set(slots)
    return sorted(chosen | others)
