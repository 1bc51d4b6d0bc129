"""Who chooses the slots of a cache that a sparse drafter reads.

A selector is a value: it sees one layer of a cache and says which of its slots are read, for each
head or for all of them alike. Contexts that read no others are in `specnb.models.sparse`.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from specnb.arguments import shown
from specnb.knobs import knob, settle

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


def need_places(select: Selector, what: str) -> None:
    """ValueError where a selector looks at keys that cannot be shown to it."""
    if not select.by_place:
        raise ValueError(
            f"select={select!r}: it looks at keys, by layer and head, and {what}; use SinkRecent"
        )
