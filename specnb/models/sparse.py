"""Chosen slots of a cache: who chooses them, and the context that drafts over no others.

A model can draft for itself with less to read: its own weights over a part of its keys and values.
Nothing is read a second time for that. A `SparseContext` looks into the cache of another context,
its target, and keeps only the keys and values of its own drafts.
"""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from specnb.arguments import shown
from specnb.knobs import knob, settle
from specnb.models.base import Context

if TYPE_CHECKING or "jaxtyping" in sys.modules:  # not on Colab; the tests have it
    from jaxtyping import Float, Int

OVER = ("all", "text", "images")  # the slots among which a budget may be spent


class Chosen(NamedTuple):
    """Slots of a target's cache, for each head of its keys, or one row for all of them.

    `share` is the part of the attention that is thought to lie on all that is read; what is missing
    to 1 goes to the mean of all values. None: there is nothing to be missed.
    """

    slots: Int[Tensor, "heads k"]
    share: Float[Tensor, "heads group"] | None = None


class CachedLayer:
    """One layer of a target's cache, as a selector sees it.

    `candidates` [n] are the slots to choose from, in the order of the text; of a table model they
    are all there is. Heads are those of the keys; `group` queries read each of them. Keys are
    turned by their positions already.
    """

    candidates: Int[Tensor, " n"]
    # Of the token that is drafted from; products with keys are scores once divided by sqrt(dim).
    queries: Float[Tensor, "heads group dim"]
    drafts: Float[Tensor, "heads drafts dim"]  # keys of the draft so far, read in any case

    @property
    def keys(self) -> Float[Tensor, "heads slots dim"]:
        """The target's own, of all its slots: a view of a cache's memory."""
        raise NotImplementedError

    @property
    def last_queries(self) -> Float[Tensor, "heads group dim"]:
        """Of the last token that the target kept in its last verification; where there was none
        yet, `queries`."""
        raise NotImplementedError

    def chunk_means(self, size: int) -> Float[Tensor, "heads chunks dim"]:
        """Mean keys of every `size` candidates; those behind the last whole chunk have none."""
        raise NotImplementedError

    def count(self, numbers: int) -> None:
        """Notes that so many numbers of keys or values were read in order to choose."""
        raise NotImplementedError


@runtime_checkable
class Selector(Protocol):
    """Frozen settings: which slots are read.

    `by_place` says that it looks at `candidates` alone, `every_token` that it chooses for each
    token anew; else the first token of a block chooses for the whole block.
    """

    @property
    def by_place(self) -> bool:
        """Whether no key is looked at, so that all layers and heads read the same slots."""

    @property
    def every_token(self) -> bool:
        """Whether each token chooses for itself."""

    @property
    def least(self) -> int:
        """The smallest budget that it can spend."""

    def choose(self, layer: CachedLayer, budget: int) -> Chosen:
        """At most `budget` of more than `budget` candidates."""


@dataclass(frozen=True)
class SinkRecent:
    """StreamingLLM's slots (2309.17453): the first `sink` and the latest, in all budget many."""

    sink: int = knob(4, least=0, upto=64, words="first slots, always read")

    by_place, every_token = True, False

    def __post_init__(self) -> None:
        settle(self)

    @property
    def least(self) -> int:
        return self.sink + 1

    def choose(self, layer: CachedLayer, budget: int) -> Chosen:
        slots = layer.candidates
        recent = slots[len(slots) - (budget - self.sink) :]
        return Chosen(torch.cat([slots[: self.sink], recent])[None])


@dataclass(frozen=True)
class Chunks:
    """TriForce's retrieval (2404.11912): the chunks whose mean key is nearest to the query.

    A chunk is `size` slots in a row; its score is the dot product of its mean key and the query, by
    layer and head, summed over the queries that share a head's keys. `always_first` keeps the first
    chunk. The last whole chunk and the slots behind it are always read, as TriForce always reads
    what was generated since it chose: a head that looks two words back finds them there.
    """

    size: int = knob(8, least=1, upto=64, words="slots per chunk")
    always_first: bool = knob(True, kw_only=True, words="whether the first chunk is always read")

    by_place, every_token = False, False

    def __post_init__(self) -> None:
        settle(self)

    @property
    def least(self) -> int:
        return self.size * (3 if self.always_first else 2)

    def choose(self, layer: CachedLayer, budget: int) -> Chosen:
        n, size = len(layer.candidates), self.size
        scores = torch.einsum("hgd,hcd->hc", layer.queries, layer.chunk_means(size))
        scores[:, -1] = math.inf
        if self.always_first:
            scores[:, 0] = math.inf
        tail = n % size
        best = scores.topk(budget // size - (tail > 0), dim=-1).indices
        numbers = (best[:, :, None] * size + torch.arange(size, device=best.device)).flatten(1)
        behind = torch.arange(n - tail, n, device=best.device).expand(len(numbers), -1)
        return Chosen(layer.candidates[torch.cat([numbers, behind], 1)])


@dataclass(frozen=True)
class SparQ:
    """SparQ attention (2312.04985): slots by an approximate softmax, for every token anew.

    The `rank` largest components of a head's queries give approximate scores, divided by
    sqrt(dim * |their part|_1 / |query|_1). The `local` latest slots are always read, and those of
    the largest approximate weight, in all budget many. What weight is missed goes to the mean of
    all values.
    """

    rank: int = knob(16, least=1, upto=128, words="components of the query that are looked at")
    local: int = knob(16, least=0, upto=64, words="latest slots, always read")

    by_place, every_token = False, True

    def __post_init__(self) -> None:
        settle(self)

    @property
    def least(self) -> int:
        return self.local + 1

    def choose(self, layer: CachedLayer, budget: int) -> Chosen:
        queries, dim = layer.queries, layer.queries.shape[-1]
        size = queries.abs()
        parts = size.sum(1).topk(min(self.rank, dim)).indices[:, None]  # [heads, 1, rank]
        keys = torch.cat([layer.keys, layer.drafts], 1)
        keys = keys.gather(-1, parts.expand(-1, keys.shape[1], -1))
        layer.count(keys.numel())
        parts = parts.expand(-1, queries.shape[1], -1)
        covered = size.gather(-1, parts).sum(-1, keepdim=True) / size.sum(-1, keepdim=True)
        scores = queries.gather(-1, parts) @ keys.transpose(-1, -2) / (dim * covered).sqrt()
        weights = scores.softmax(-1)  # [heads, group, slots and drafts]
        by_slot = weights.sum(1)[:, layer.candidates]
        by_slot[:, by_slot.shape[1] - self.local :] = math.inf
        slots = layer.candidates[by_slot.topk(budget).indices]
        weight = weights[:, :, layer.candidates].sum(-1)  # slots that are no candidates are read
        read = weights.gather(-1, slots[:, None].expand(-1, queries.shape[1], -1)).sum(-1)
        return Chosen(slots, 1.0 - (weight - read))


@dataclass(frozen=True)
class LastVerification:
    """The slots that the last verification attended to most, by layer and head.

    As SpecAttn (2602.07223) and SpecExtend choose: what the target's last kept token looked at is
    what the next ones will want. Its attention weights are computed once more, from its queries and
    all keys; a kernel that gives them away would save that. The `local` latest slots are always
    read: a head that looks two words back looks elsewhere for every next word.
    """

    local: int = knob(4, least=0, upto=64, words="latest slots, always read", kw_only=True)

    by_place, every_token = False, False

    def __post_init__(self) -> None:
        settle(self)

    @property
    def least(self) -> int:
        return self.local + 1

    def choose(self, layer: CachedLayer, budget: int) -> Chosen:
        keys = layer.keys
        layer.count(keys.numel())
        weights = attention_weights(layer.last_queries, keys)
        by_slot = weights.sum(1)[:, layer.candidates]
        by_slot[:, by_slot.shape[1] - self.local :] = math.inf
        return Chosen(layer.candidates[by_slot.topk(budget).indices])


def attention_weights(
    queries: Float[Tensor, "heads group dim"], keys: Float[Tensor, "heads slots dim"]
) -> Float[Tensor, "heads group slots"]:
    """What each query of a head's group attends to."""
    scores: Tensor = queries @ keys.transpose(-1, -2) * queries.shape[-1] ** -0.5
    return scores.softmax(-1)


def check_spending(select: Selector, budget: int, over: str) -> None:
    """ValueError where these say no slots."""
    if isinstance(select, type) or not isinstance(select, Selector):
        raise ValueError(f"select={shown(select)}: give a selector, as in SinkRecent(4)")
    if over not in OVER:
        raise ValueError(f"over={shown(over)}: choose {' or '.join(map(repr, OVER))}")
    if budget < select.least:
        raise ValueError(
            f"budget={budget}: {select!r} spends at least {select.least}; raise the budget"
        )


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


def need_places(select: Selector, what: str) -> None:
    """ValueError where a selector looks at keys that cannot be shown to it."""
    if not select.by_place:
        raise ValueError(
            f"select={select!r}: it looks at keys, by layer and head, and {what}; use SinkRecent"
        )
