"""The lean runtime in numpy, for models so small that the calls cost more than the numbers.

The same folded weights, and a forward in as few of numpy's calls as do it, each a fraction of
torch's. The entries of queries and keys that are turned together lie side by side, as complex
numbers; what the first layer makes of a token is looked up. Prompts are read by `Llama`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from specnb.models.base import Context
from specnb.models.llama import LlamaContext, Weights

if TYPE_CHECKING:
    from specnb.models.hf import HFModel

MOST_PARAMETERS = 4_000_000  # in larger models the numbers cost more than the calls
MOST_LAYERS = 4
GROWTH = 256  # slots by which a cache grows
# OpenBLAS, which numpy's wheels carry, starts threads of its own for larger products, and on busy
# cores these take milliseconds to meet; so products are cut. ONE_ROW counts the numbers of a matrix
# that one row is multiplied by, of which numpy 1 takes fewer, STEPS all multiplications.
STEPS = 2**18 - 1
ONE_ROW = 9215 if np.__version__.startswith("1.") else STEPS
ROWS = 32  # in one forward

Array = NDArray[np.float32]


def fits(config, device: str, dtype: torch.dtype | None) -> bool:
    """Whether this runtime is the fastest one for a model that `Llama` knows."""
    text = config.get_text_config()
    if (device, dtype, text.model_type) != ("cpu", torch.float32, "llama"):
        return False
    rows = 2 * text.head_dim * (text.num_attention_heads + text.num_key_value_heads)
    layer = text.hidden_size * (rows + 3 * text.intermediate_size)
    tables = text.hidden_size * text.vocab_size * (1 if text.tie_word_embeddings else 2)
    size = text.num_hidden_layers * layer + tables
    return text.num_hidden_layers <= MOST_LAYERS and size <= MOST_PARAMETERS


class SmallLlama:
    """The forward pass over weights, which are kept in float32; shared by all contexts.

    A single row has no axis of its own on its way through the layers: that saves calls.
    """

    def __init__(self, weights: Weights):
        shape, embedding, layers, head, inv_freq, rope_scale, gain, _ = weights
        n_heads, n_kv, dim, eps = shape
        self.shape, self.floor = shape, embedding.shape[1] * eps
        self.inv_freq, self.rope_scale = inv_freq.float(), rope_scale
        self.turns = np.empty((0, 1, dim // 2), np.complex64)
        self.embedding: Array = embedding.detach().numpy()
        self.layers: list[list[Callable[[Array], Array]]] = []
        for qkv, out, gate_up, down in layers:
            qkv = qkv.detach().unflatten(0, (-1, dim))  # by heads
            turned = torch.stack(qkv[: n_heads + n_kv].chunk(2, 1), 2).flatten(1, 2)  # in pairs
            turned[:n_heads] *= dim**-0.5  # so that scores come scaled
            qkv = torch.cat([turned, qkv[n_heads + n_kv :]]).flatten(0, 1)
            gate, up = gate_up.detach().chunk(2)
            gate_up = torch.cat([gate / 2, up])  # silu(2 a) = a + a tanh(a), which never overflows
            if not self.layers:  # its input is a token's embedding, so it is looked up
                of_all = torch.from_numpy(self._norm(self.embedding))
                self.first: Array = (of_all @ qkv.T).numpy()
            self.layers.append([_product(weight) for weight in (qkv, out, gate_up, down)])
        self.head = _product(head if gain is None else head * gain)
        self.later = np.triu(np.full((ROWS, ROWS), -np.inf, np.float32), 1)

    def cache_of(self, cache: Tensor, length: int) -> Array:
        """[layers, keys and then values by heads, slots, head_dim], with the first `length` slots
        of a cache of `Llama`."""
        _, n_kv, dim, _ = self.shape
        keys, values = cache[:, :, :, :length].transpose(0, 1).numpy()
        found = np.empty((len(keys), 2 * n_kv, length + GROWTH, dim), np.float32)
        found[:, :n_kv, :length, 0::2] = keys[..., : dim // 2]
        found[:, :n_kv, :length, 1::2] = keys[..., dim // 2 :]
        found[:, n_kv:, :length] = values
        return found

    def forward(
        self,
        token_ids: Sequence[int],
        positions: Sequence[int],
        cache: Array,
        length: int,
        visible: NDArray[np.bool_] | None = None,
    ) -> Array:
        """Feeds up to `ROWS` tokens behind `length` slots of a cache, which is written in place.

        `visible` is [n, length + n], None means causal order. Gives the logits [n, vocab].
        """
        n_heads, n_kv, dim, _ = self.shape
        n, end = len(token_ids), length + len(token_ids)
        hidden = self.later[:n, :n] if n > 1 else None
        if visible is not None:
            hidden = np.where(visible, np.float32(0), np.float32(-np.inf))
        turns = self._turns(positions)
        which = token_ids[0] if n == 1 else list(token_ids)
        x, h = self.embedding[which], self.first[which]
        with np.errstate(all="ignore"):  # damaged weights are named where laws are made of logits
            for number, (qkv, out, gate_up, down) in enumerate(self.layers):
                slots = cache[number]
                h = (qkv(self._norm(x)) if number else h.copy()).reshape(n, -1, dim)
                pairs = h[:, : n_heads + n_kv].view(np.complex64)
                pairs *= turns
                slots[:, length:end] = h[:, n_heads:].transpose(1, 0, 2)
                queries = h[:, :n_heads].transpose(1, 0, 2).reshape(n_kv, -1, dim)
                h = _attention(queries, slots[:n_kv, :end], slots[n_kv:, :end], hidden)
                h = h.reshape(n_heads, n, dim).transpose(1, 0, 2)
                x = x + out(h.reshape(*x.shape[:-1], n_heads * dim))
                h = gate_up(self._norm(x))
                gate, up = h[..., : h.shape[-1] // 2], h[..., h.shape[-1] // 2 :]
                h = np.tanh(gate)
                h *= gate
                h += gate
                h *= up
                x += down(h)
            return self.head(self._norm(x)).reshape(n, -1)

    def _norm(self, x: Array) -> Array:
        """x / sqrt(mean(x^2) + eps) / sqrt(width): the rest is in the matrices."""
        if x.ndim == 1:
            return x / math.sqrt(x.dot(x) + self.floor)
        return x / np.sqrt(np.einsum("ij,ij->i", x, x) + self.floor)[:, None]

    def _turns(self, positions: Sequence[int]) -> NDArray[np.complex64]:
        """[n, 1, head_dim / 2], or [1, head_dim / 2] for a single position."""
        last = max(positions)
        if last >= len(self.turns):
            size = max(last + 1, 2 * len(self.turns), 512)
            angles = torch.arange(size)[:, None, None] * self.inv_freq
            turns = torch.polar(torch.full_like(angles, self.rope_scale), angles)
            self.turns = turns.numpy()
        return self.turns[last if len(positions) == 1 else list(positions)]


class SmallContext(Context):
    """One prompt in an array of keys and values that is written in place."""

    def __init__(self, model: HFModel, ids: list[int], extras: Mapping[str, Any] | None):
        read = LlamaContext(model, ids, extras)
        super().__init__(read.committed, read.max_positions, read.offset)
        assert model.small is not None  # else it is a LlamaContext
        self.model, self.small, self.used = model, model.small, read.used
        self.cache = self.small.cache_of(read.cache, read.used)

    def _run(self, tokens, positions, visible):
        token_ids, end = self.model.own_ids(tokens), self.used + len(tokens)
        missing = end - self.cache.shape[2]
        if missing > 0:
            self.cache = np.pad(self.cache, ((0, 0), (0, 0), (0, missing + GROWTH), (0, 0)))
        seen = None if visible is None else visible.numpy()
        found = []
        for first in range(0, len(tokens), ROWS):
            part = slice(first, first + ROWS)
            upto = min(self.used + ROWS, end)
            mask = None if seen is None else seen[part, :upto]
            found.append(
                self.small.forward(token_ids[part], positions[part], self.cache, self.used, mask)
            )
            self.used = upto
        logits = found[0] if len(found) == 1 else np.concatenate(found)
        return self.model.logits(torch.from_numpy(logits))

    def _keep(self, slots, n_before):
        self.used = n_before + len(slots)
        if slots != list(range(n_before, self.used)):
            self.cache[:, :, n_before : self.used] = self.cache[:, :, slots]  # from a copy

    def copy(self) -> SmallContext:
        other = SmallContext.__new__(SmallContext)
        other.model, other.small, other.used = self.model, self.small, self.used
        other.cache = self.cache.copy()  # it is written in place, so a fork needs its own
        return self._fork(other)


def _attention(queries: Array, keys: Array, values: Array, hidden: Array | None) -> Array:
    """What each of [kv heads, rows, head_dim] reads; a row is a token and one head of a key's.

    `hidden` [tokens, m] is added to the scores of the last m slots.
    """
    n_kv, rows, dim = queries.shape
    slots = keys.shape[1]
    size = _most(rows, dim)
    keys = keys.transpose(0, 2, 1)
    if slots <= size:
        scores = np.matmul(queries, keys)
    else:
        cuts = range(0, slots, size)
        scores = np.concatenate([queries @ keys[:, :, a : a + size] for a in cuts], -1)
    if hidden is not None:
        by_token = scores.reshape(n_kv, -1, len(hidden), slots)
        by_token[..., slots - hidden.shape[1] :] += hidden
    scores -= np.maximum.reduce(scores, -1, keepdims=True)
    np.exp(scores, scores)
    mixed: Array
    if slots <= size:
        mixed = np.matmul(scores, values)
    else:
        mixed = np.zeros_like(queries)
        for a in cuts:
            mixed += scores[..., a : a + size] @ values[:, a : a + size]
    mixed /= np.add.reduce(scores, -1, keepdims=True)
    return mixed


def _product(weight: Tensor) -> Callable[[Array], Array]:
    """x -> x W^T for one row [in] or several [n, in]."""
    n_out, n_in = weight.shape
    turned = weight.detach().T.contiguous().numpy()

    def product(x: Array) -> Array:
        size = _most(1 if x.ndim == 1 else len(x), n_in)
        if n_out <= size:
            return x.dot(turned)
        cuts = range(0, n_out, size)
        return np.concatenate([x.dot(turned[:, a : a + size]) for a in cuts], -1)

    return product


def _most(rows: int, n_in: int) -> int:
    """How many columns a product of so many rows may have without threads."""
    return max(1, ONE_ROW // n_in if rows == 1 else STEPS // (rows * n_in))
