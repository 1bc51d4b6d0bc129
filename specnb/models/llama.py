"""A lean runtime for Llama-family weights, and for the language model inside a LLaVA.

The same function as transformers' modules with less around it: fused projections, norms folded
into the weights behind them, rotary tables, a preallocated cache whose path is kept in place.
On a CPU keys, values and scores are float32 whatever the weights are: six times as fast there.
Weights may be kept in fp16 beside float32 activations, which on CPUs without bfloat16 instructions
is the fastest: a forward pass reads half as much, and nothing is rounded but the weights.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cache as remembered
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

from specnb.models.selectors import Selector, attention_weights
from specnb.models.sparse import ByHead, Watched

if TYPE_CHECKING:
    from specnb.models.hf import HFModel

ROPE_TYPES = ("default", "linear", "llama3", "yarn")  # the others change with the text's length
MOST_PACKED = 2**28  # parameters; packed weights are a second copy
LEAST_PACKED = 2**17  # numbers in a matrix; for small ones the call costs more than it saves
LEAST_SPLIT = 2**22  # numbers in an fp16 matrix; for smaller ones two threads cost what they save
GROWTH = 256  # slots by which a cache grows
PIECE = 1024  # positions of a prompt that are read at once: one piece is all of most prompts
DRAFTS = 32  # slots by which a buffer of drafts grows
MOST_HALF = 65504.0  # the largest number in fp16

# (layer, queries [1, heads, n, dim], keys and values written so far, mask) -> [1, heads, n, dim]
Attend = Callable[[int, Tensor, Tensor, Tensor, Tensor | None], Tensor]


def why_not(module) -> str:
    """What keeps a transformers module off this runtime; empty where nothing does."""
    if module.config.model_type not in ("llama", "llava"):
        return f"model type {module.config.model_type}"
    text = module.config.get_text_config()
    if text.model_type != "llama":
        return f"language model of type {text.model_type}"
    if text.attention_bias or text.mlp_bias:
        return "biases"
    if text.hidden_act != "silu":
        return f"activation {text.hidden_act}"
    rope = (text.rope_parameters or {}).get("rope_type", "default")
    if rope not in ROPE_TYPES:
        return f"rope type {rope}"
    if module.dtype not in (torch.float32, torch.bfloat16):
        return f"dtype {str(module.dtype).removeprefix('torch.')}"
    if getattr(module, "is_quantized", False):
        return "quantised weights"
    if len(set(getattr(module, "hf_device_map", {}).values())) > 1:
        return "weights on several devices"
    if text.head_dim != 2 * module.get_decoder().rotary_emb.inv_freq.numel():
        return "partly rotary heads"
    return ""


def no_halves(module) -> str:
    """What keeps a module's weights from fp16 beside float32 activations; empty where nothing does.

    The module may be on torch's meta device; `largest` needs its weights.
    """
    if reason := why_not(module):
        return reason
    if not has_halves():
        return "no FBGEMM here for fp16 weights"
    size = sum(parameter.numel() for parameter in module.get_decoder().parameters())
    if size > 2 * MOST_PACKED:  # in fp16 they take as much memory as MOST_PACKED in float32
        return f"more than {2 * MOST_PACKED / 1e6:.0f} M parameters"
    return ""


@torch.no_grad()
def largest(module) -> float:
    """The largest number that `Llama.of` with `halves` would have to write in fp16."""

    def reach(linears, gain: Tensor | float = 1.0) -> float:
        """Over the matrices of linears, with the gain of the norm before them folded in."""
        columns = [torch.linalg.vector_norm(x.weight, torch.inf, dim=0).float() for x in linears]
        return max(float((column * gain).max()) for column in columns)

    text = module.get_decoder()
    found = [reach((text.embed_tokens, module.lm_head))]
    for block in text.layers:
        a, m = block.self_attn, block.mlp
        found += [reach((a.o_proj,)), reach((m.down_proj,))]
        found.append(
            reach((a.q_proj, a.k_proj, a.v_proj), _whole_gain(block.input_layernorm.weight).abs())
        )
        found.append(
            reach(
                (m.gate_proj, m.up_proj), _whole_gain(block.post_attention_layernorm.weight).abs()
            )
        )
    return max(found)


class Shape(NamedTuple):
    """What the weights' shapes do not say."""

    n_heads: int
    n_kv_heads: int
    head_dim: int
    eps: float


class Layer(NamedTuple):
    """One block: each entry takes [n, in] to [n, out]."""

    qkv: Callable[[Tensor], Tensor]
    out: Callable[[Tensor], Tensor]
    gate_up: Callable[[Tensor], Tensor]
    down: Callable[[Tensor], Tensor]


class Weights(NamedTuple):
    """The weights of a Llama, fused and folded once.

    `layers` holds (qkv, out, gate and up, down) matrices, [out, in] each; `inv_freq` are the
    rotary frequencies. The gains of the norms, times the root of the width, are in the matrices;
    `gain` is that of the last norm where it is not in the head. `halves` says that the matrices,
    which are float32, hold numbers of fp16.
    """

    shape: Shape
    embedding: Tensor
    layers: Sequence[tuple[Tensor, ...]]
    head: Tensor
    inv_freq: Tensor
    rope_scale: float = 1.0
    gain: Tensor | None = None
    halves: bool = False


class Llama:
    """The forward pass over weights; shared by all contexts.

    With `weights.halves` the matrices are kept in fp16, and all else is float32.
    """

    def __init__(self, weights: Weights):
        shape, embedding, layers, head, inv_freq, rope_scale, gain, halves = weights
        self.shape, self.embedding, self.gain = shape, embedding, gain
        self.inv_freq, self.rope_scale = inv_freq.float(), rope_scale
        size = sum(weight.numel() for layer in layers for weight in layer) + head.numel()
        kernel: Callable[[Tensor], Callable[[Tensor], Tensor]] = _half_kernel
        if not halves:
            kernel = partial(_kernel, packed=size <= MOST_PACKED)
        self.layers = [Layer(*map(kernel, layer)) for layer in layers]
        self.head = kernel(head)
        kind, device = embedding.dtype, embedding.device
        self.attention_dtype = torch.float32 if device.type == "cpu" else kind
        self.tables = torch.empty(2, 0, shape.head_dim, dtype=kind, device=device)
        # Gains with the root of the width make x / hypot(|x|, this) the norm's output.
        self.floor = torch.tensor((embedding.shape[1] * shape.eps) ** 0.5, device=device)

    @classmethod
    def of(cls, module, halves: bool = False) -> Llama:
        """The language model of a transformers module, which goes on with the same memory."""
        return cls(parts(module, halves))

    def embed(self, token_ids: Sequence[int]) -> Tensor:
        """[n, width]"""
        return F.embedding(torch.tensor(token_ids, device=self.embedding.device), self.embedding)

    def empty_cache(self, slots: int) -> Tensor:
        """[layers, keys and values, kv heads, slots, head_dim]"""
        _, n_kv, dim, _ = self.shape
        size = (len(self.layers), 2, n_kv, slots, dim)
        return self.embedding.new_empty(size, dtype=self.attention_dtype)

    def rotations(self, positions: Sequence[int]) -> Tensor:
        """[2, n, 1, head_dim]: cosines, and sines with the sign of the swap already in them."""
        last = max(positions)
        if self.tables.shape[1] <= last:
            size = max(last + 1, 2 * self.tables.shape[1], 512)
            angles = torch.arange(size, device=self.inv_freq.device)[:, None] * self.inv_freq
            cos, sin = angles.cos(), angles.sin()
            tables = torch.stack([torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)])
            self.tables = (tables * self.rope_scale).to(self.embedding.dtype)
        first = positions[0]
        if last - first == len(positions) - 1 and list(positions) == [*range(first, last + 1)]:
            return self.tables[:, first : last + 1, None]
        return self.tables[:, torch.tensor(positions, device=self.tables.device), None]

    @torch.inference_mode()
    def forward(
        self,
        x: Tensor,
        positions: Sequence[int],
        cache: Tensor,
        length: int,
        mask: Tensor | None = None,
        n_logits: int | None = None,
        attend: Attend | None = None,
        queries: list[Tensor] | None = None,
    ) -> Tensor:
        """Feeds embeddings [n, width] behind `length` slots of a cache, which is written in place.

        `mask` [n, length + n] is added to the attention scores, None means causal order. Gives the
        logits [n_logits, vocab] of the last tokens, by default of all. `attend`, where given, reads
        keys and values in place of the usual attention; to `queries` each layer adds its own.
        """
        n_heads, n_kv, dim, _ = self.shape
        n, end = len(x), length + len(x)
        cos, sin = self.rotations(positions)
        causal = mask is None and length == 0 and n > 1
        if mask is None and length > 0 and n > 1:
            mask = torch.full((n, end), -torch.inf, dtype=cache.dtype, device=x.device)
            mask.triu_(length + 1)
        # Views of all layers at once: for a few rows indexing costs as much as arithmetic.
        new_keys, new_values = (slots.unbind() for slots in cache[:, :, :, length:end].unbind(1))
        keys, values = (slots[:, None].unbind() for slots in cache[:, :, :, :end].unbind(1))
        for i, (qkv, out, gate_up, down) in enumerate(self.layers):
            h = qkv(self.norm(x)).view(n, n_heads + 2 * n_kv, dim)
            turned, value = h.split_with_sizes((n_heads + n_kv, n_kv), 1)
            turned = torch.addcmul(turned * cos, turned.roll(dim // 2, -1), sin).transpose(0, 1)
            new_keys[i].copy_(turned[n_heads:])
            new_values[i].copy_(value.transpose(0, 1))
            asked = turned[None, :n_heads].to(cache.dtype)
            if queries is not None:
                queries.append(asked[0])
            if attend is not None:
                h = attend(i, asked, keys[i], values[i], mask)
            else:
                h = F.scaled_dot_product_attention(
                    asked,
                    keys[i],
                    values[i],
                    attn_mask=mask,
                    is_causal=causal,
                    enable_gqa=n_kv != n_heads,
                )
            # What a matrix gives is nobody else's, so it may be written to.
            x = out(h[0].transpose(0, 1).reshape(n, n_heads * dim).to(x.dtype)).add_(x)
            gate, up = gate_up(self.norm(x)).chunk(2, -1)
            x = down(F.silu(gate).mul_(up)).add_(x)
        n_logits = n if n_logits is None else n_logits
        if not n_logits:
            return x[:0]
        x = self.norm(x[n - n_logits :])
        return self.head(x if self.gain is None else x * self.gain)

    def norm(self, x: Tensor) -> Tensor:
        """x / sqrt(mean(x^2) + eps) / sqrt(width), in half the kernels of `F.rms_norm`."""
        size = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        return (x / torch.hypot(size, self.floor)).to(x.dtype)


@torch.no_grad()
def parts(module, halves: bool = False) -> Weights:
    """The weights of the language model of a transformers module.

    The module goes on with the same memory. With `halves` its matrices are rounded to fp16, too: it
    stays the same function, in float32 throughout. None may reach beyond fp16 (see `largest`).
    """
    text = getattr(module.model, "language_model", module.model)
    config, rotary = text.config, text.rotary_emb
    layers = [
        (
            _fold((a.q_proj, a.k_proj, a.v_proj), block.input_layernorm.weight, halves),
            _rounded(a.o_proj.weight, halves),
            _fold((m.gate_proj, m.up_proj), block.post_attention_layernorm.weight, halves),
            _rounded(m.down_proj.weight, halves),
        )
        for block in text.layers
        for a, m in ((block.self_attn, block.mlp),)
    ]
    shape = Shape(
        config.num_attention_heads,
        config.num_key_value_heads,
        config.head_dim,
        config.rms_norm_eps,
    )
    table, gain = _rounded(text.embed_tokens.weight, halves), _whole_gain(text.norm.weight)
    # The head may be the embedding table, so it is folded in a copy; a rounded copy would be
    # another function than the module's, so in fp16 it is not folded.
    head = module.lm_head.weight
    head = _rounded(head, halves) if halves else _scaled(head, gain)
    rope = rotary.inv_freq, rotary.attention_scaling
    return Weights(shape, table, layers, head, *rope, gain if halves else None, halves)


class LlamaContext(Watched):
    """One prompt in a preallocated cache. Image positions count in `offset`, not in `length`."""

    def __init__(self, model: HFModel, ids: list[int], extras: Mapping[str, Any] | None):
        image_id = model.image_token_id if extras is not None else None
        text = [token for token in ids if token != image_id]
        super().__init__(text, model.max_positions, offset=len(ids) - len(text))
        assert model.llama is not None  # else it is an HFContext
        self.model, self.llama = model, model.llama
        self.images = [slot for slot, token in enumerate(ids) if token == image_id]
        self.used = 0  # slots that hold something
        self.features: Tensor | None = None  # of the pictures, for a drafter that shares them
        self.cache = self.llama.empty_cache(len(ids) + GROWTH)
        if len(ids) > 1:
            x = self.llama.embed(model.own_ids(ids[:-1]))
            if extras is not None:  # the only place where images are encoded
                places = torch.tensor([token == image_id for token in ids[:-1]], device=x.device)
                self.features = model.image_features(extras)
                x = x.index_put((places,), self.features.to(x.dtype))
            self._read(x)

    def _read(self, x: Tensor) -> None:
        """Feeds a prompt [n, width], in pieces and with a progress bar where it is long."""
        firsts = range(0, len(x), PIECE)
        if len(firsts) > 1:
            size = self.cache.nbytes / 1e6
            what = f"reading the prompt into a cache of {size:,.1f} MB"
            firsts = tqdm(firsts, desc=what, unit="piece", leave=False)
        for first in firsts:
            piece = x[first : first + PIECE]
            self._feed(piece, range(first, first + len(piece)), None, 0)

    def _feed(self, x, positions, mask, n_logits) -> Tensor:
        end = self.used + len(x)
        if end > self.cache.shape[3]:
            larger = self.llama.empty_cache(end + GROWTH)
            larger[:, :, :, : self.used] = self.cache[:, :, :, : self.used]
            self.cache = larger
        kept: list[Tensor] | None = None
        if self.watched:
            self.queries, self.last = [], len(x) - 1
            kept = self.queries
        logits = self.llama.forward(
            x, positions, self.cache, self.used, mask, n_logits, queries=kept
        )
        self.used = end
        return logits

    def _run(self, tokens, positions, visible):
        mask = None if visible is None else added(visible, self.cache)
        x = self.llama.embed(self.model.own_ids(tokens))
        return self.model.logits(self._feed(x, positions, mask, None))

    def _keep(self, slots, n_before):
        self._follow_last(slots, n_before, self.used)
        self.used = n_before + len(slots)
        if slots != list(range(n_before, self.used)):
            kept = self.cache[:, :, :, slots]  # a copy, so that nothing is overwritten too early
            self.cache[:, :, :, n_before : self.used] = kept

    @property
    def image_slots(self) -> Sequence[int]:
        return self.images

    def last_queries(self, layer: int) -> Tensor | None:
        if not self.queries:
            return None
        row = self.queries[layer][:, self.last]
        return row.view(self.llama.shape.n_kv_heads, -1, row.shape[-1])

    def attention(self) -> Tensor:
        """What the last token kept attended to, [layers, heads, slots]; rows sum to 1.

        ValueError where no forward was watched.
        """
        rows = []
        for number in range(len(self.llama.layers)):
            queries = self.last_queries(number)
            if queries is None:
                raise ValueError("attention: nothing was watched; call watch() before a forward")
            weights = attention_weights(queries, self.cache[number, 0, :, : self.used])
            rows.append(weights.flatten(0, 1))
        return torch.stack(rows)

    def sparse(self, select: Selector, budget: int, over: str = "all") -> LlamaSparse:
        return LlamaSparse(self, select, budget, over)

    def copy(self) -> LlamaContext:
        other = self._fork(copy.copy(self))
        other.cache = self.cache.clone()  # it is written in place, so a fork needs its own
        return other


class LlamaSparse(ByHead):
    """Own drafts in a buffer, and everything before them in the cache of a `LlamaContext`."""

    target: LlamaContext

    def __init__(self, target: LlamaContext, select: Selector, budget: int, over: str = "all"):
        self.llama, self.used = target.llama, 0
        self.buffer = self.llama.empty_cache(DRAFTS)
        target.watch()
        super().__init__(target, select, budget, over)

    def _forget(self) -> None:
        self.used = 0
        super()._forget()

    def _run(self, tokens, positions, visible):
        n, end = len(tokens), self.used + len(tokens)
        if end > self.buffer.shape[3]:
            larger = self.llama.empty_cache(end + DRAFTS)
            larger[:, :, :, : self.used] = self.buffer[:, :, :, : self.used]
            self.buffer = larger
        if visible is None:
            own = torch.ones(n, end, dtype=torch.bool).tril_(self.used)
        else:
            own = visible[:, self.base :]
        x = self.llama.embed(self.model.own_ids(tokens))
        raw = self.llama.forward(
            x, positions, self.buffer, self.used, added(own, self.buffer), None, self._layer
        )
        self.used = end
        return self.model.logits(raw)

    def _layer(self, number: int, queries: Tensor, keys: Tensor, values: Tensor, mask) -> Tensor:
        cached = self.target.cache[number, :, :, : self.base]
        return self._attend(number, queries, cached.unbind(), (keys[0], values[0]), mask)

    def _keep(self, slots, n_before):
        before = n_before - self.base
        self.used = before + len(slots)
        own = [slot - self.base for slot in slots]
        if own != list(range(before, self.used)):
            kept = self.buffer[:, :, :, own]
            self.buffer[:, :, :, before : self.used] = kept

    def copy(self) -> LlamaSparse:
        other = super().copy()
        other.buffer = self.buffer.clone()
        return other


def added(visible: Tensor, like: Tensor) -> Tensor:
    """What is added to attention scores: nothing where a slot is seen, else minus infinity."""
    mask = torch.zeros(visible.shape, dtype=like.dtype)
    return mask.masked_fill_(~visible, -torch.inf).to(like.device)


def _scaled(weight: Tensor, gain: Tensor) -> Tensor:
    return (weight.float() * gain).to(weight.dtype)


def _whole_gain(gain: Tensor) -> Tensor:
    return gain.float() * len(gain) ** 0.5


def _rounded(weight: Tensor, halves: bool) -> Tensor:
    """The same memory, with numbers that fp16 has."""
    return weight.copy_(weight.half()) if halves else weight


def _fold(linears, gain: Tensor, halves: bool) -> Tensor:
    """The linears' weights in one matrix, with the gain of the norm before them multiplied in.

    The module keeps working: its weights become views of this matrix, its gain cancels the root.
    """
    weight = _scaled(torch.cat([linear.weight for linear in linears]), _whole_gain(gain))
    weight = _rounded(weight, halves)
    parts = weight.split([linear.out_features for linear in linears])
    for linear, part in zip(linears, parts, strict=True):
        linear.weight.data = part
    gain.data = torch.full_like(gain, len(gain) ** -0.5)
    return weight


def packs(dtype: torch.dtype) -> bool:
    """Whether oneDNN is here, and fast with these numbers."""
    if not torch.backends.mkldnn.is_available() or not hasattr(
        torch.ops.mkldnn, "_linear_pointwise"
    ):
        return False
    return dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported()


@remembered
def has_halves() -> bool:
    """Whether torch's FBGEMM is here and right: fp16 weights times float32 activations, on x86."""
    weight, x = torch.eye(4, 8), torch.arange(16.0).view(2, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # `HalfLinear`'s functions say once that they are old
        try:
            return all(torch.equal(kind(weight)(x), x[:, :4]) for kind in (HalfLinear, SplitHalf))
        except (AttributeError, RuntimeError):  # another processor, or a torch without them
            return False


def _half_kernel(weight: Tensor) -> Callable[[Tensor], Tensor]:
    """x -> x W^T, x in float32 [n, in], W [out, in] kept in fp16; sums are in float32."""
    if not has_halves():  # which also hears the warnings, so that nobody else does
        raise RuntimeError("torch has no FBGEMM here for fp16 weights: load float32")
    return (HalfLinear if weight.numel() < LEAST_SPLIT else SplitHalf)(weight)


class SplitHalf:
    """By FBGEMM on all of torch's threads, each of which has some of x's rows.

    2048 x 2048 takes 540 microseconds for 6 rows with one thread and 320 with two.
    """

    def __init__(self, weight: Tensor):
        self.packed = torch.ops.quantized.linear_prepack_fp16(weight.detach(), None)

    def __call__(self, x: Tensor) -> Tensor:
        product: Tensor = torch.ops.quantized.linear_dynamic_fp16(x, self.packed)
        return product


class HalfLinear:
    """By FBGEMM on one thread, in functions that torch calls deprecated.

    What it has in their place, as in `SplitHalf`, takes 10-15 microseconds more, and most matrices
    here take 10 to 80. Two threads of Python's with half of W each take 35 more than one with all.
    """

    def __init__(self, weight: Tensor):
        self.packed = torch.fbgemm_pack_gemm_matrix_fp16(weight.detach())
        self.bias = torch.zeros(len(weight))  # there is no leaving it out

    def __call__(self, x: Tensor) -> Tensor:
        return torch.fbgemm_linear_fp16_weight_fp32_activation(x, self.packed, self.bias)

    def __deepcopy__(self, memo: dict[int, Any]) -> HalfLinear:
        return self  # nobody writes to it, and a copy of `packed` would be a handle to nothing

    def __reduce__(self):
        raise TypeError("packed fp16 weights cannot be pickled: load the model again instead")


def _kernel(weight: Tensor, packed: bool) -> Callable[[Tensor], Tensor]:
    """x -> x W^T, in the layout that is fastest for a few rows."""
    if weight.device.type == "cpu" and packed:
        if weight.numel() < LEAST_PACKED:
            return partial(_matmul, weight.detach().t().contiguous())
        if packs(weight.dtype):
            # For 6 rows 2.4 times as fast as F.linear on AVX-512, in fp32 and in bf16.
            blocked = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), 16)
            return partial(_packed_linear, blocked)
    return partial(_linear, weight.detach())


def _matmul(transposed: Tensor, x: Tensor) -> Tensor:
    return x @ transposed


def _packed_linear(blocked: Tensor, x: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, blocked, None, "none", [], "")


def _linear(weight: Tensor, x: Tensor) -> Tensor:
    return F.linear(x, weight)
