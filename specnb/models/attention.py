"""transformers' attention, layer by layer: who looks at it, and who takes its place.

Models whose layers look their attention up in transformers' table of functions find one of this
package there while `through` is open. Without a listener it is transformers' own, `sdpa`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache as remembered
from typing import Any

import torch
from torch import Tensor

from specnb.models import gate

NAME, USUAL = "specnb", "sdpa"
# What an attention may be told that changes no score.
SILENT = frozenset(
    ("position_ids", "use_cache", "logits_to_keep", "output_attentions", "output_hidden_states")
)

# (layer, queries [1, heads, n, dim] scaled so that products with keys are scores once divided by
# sqrt(dim), keys and values [1, kv heads, slots, dim], mask [1, 1, n, slots] or None)
# -> [1, heads, n, dim], or None for the usual attention.
Listener = Callable[[int, Tensor, Tensor, Tensor, Tensor | None], Tensor | None]
_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


class NotPlain(ValueError):
    """An attention that is more than a softmax of products; `why` says what it is told."""

    def __init__(self, why: str):
        self.why = why
        super().__init__(f"drafter: the target's heads cannot choose slots ({why}); use SinkRecent")


@contextmanager
def through(module: Any, listener: Listener) -> Iterator[None]:
    """While it is open, the attention of a module's language model goes through `listener`."""
    _register()
    configs = _configs(module)
    before = [config._attn_implementation_internal for config in configs]
    token = _listener.set(listener)
    try:
        for config in configs:  # the property would also reach the configs of other towers
            config._attn_implementation_internal = NAME
        yield
    finally:
        for config, name in zip(configs, before, strict=True):
            config._attn_implementation_internal = name
        _listener.reset(token)


def obstacle(context: Any) -> str:
    """What keeps a listener from a transformers model; empty where nothing does.

    `context` is one of the model, on the prompt [0], which is fed with two siblings: each layer
    has to ask once, with all slots and with the mask that it was given.
    """
    module = context.model.module
    text = module.config.get_text_config()
    other = sorted(set(gate.layer_kinds(text)) - {gate.FULL})
    if other:
        return f"it has layers of kind {other[0]}"
    if (name := module.get_decoder().config._attn_implementation) != USUAL:
        return f"its attention is {name!r}, not {USUAL!r}"
    heard: list[int] = []
    strange: list[int] = []
    seen = torch.ones(3, 3, dtype=torch.bool).tril()
    seen[2, 1] = False

    def listen(number: int, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> None:
        heard.append(number)
        shapes = len(key) == len(value) == 1 and key.shape[2] == value.shape[2] == 3
        rows = query.shape[2]
        if mask is None or mask.shape != (1, 1, rows, 3) or not shapes:
            strange.append(number)
        elif not torch.equal(mask[0, 0].cpu() == 0, seen[3 - rows :]):
            strange.append(number)

    try:
        with through(module, listen):
            context.forward([0, 0], [-1, -1])
    except NotPlain as error:
        return error.why
    if heard != list(range(text.num_hidden_layers)):
        return "its attention is not transformers' table of functions"
    return "its layers do not attend to the slots that they are shown" if strange else ""


def _configs(module: Any) -> list[Any]:
    """The configs in which the layers of a module's language model look."""
    parts = module.get_decoder().modules()
    found = {id(part.config): part.config for part in parts if hasattr(part, "config")}
    return [c for c in found.values() if hasattr(c, "_attn_implementation_internal")]


@remembered
def _register() -> None:
    """Enters this attention, and masks as for the usual one."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS[USUAL])


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """An attention function of transformers; gives [1, n, heads, dim], and no weights."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    found = None
    if (listener := _listener.get()) is not None:
        told = [name for name, value in more.items() if value is not None and value is not False]
        if unknown := sorted(set(told) - SILENT):
            raise NotPlain(f"its attention takes {unknown[0]}")
        scale = 1.0 if scaling is None else scaling * query.shape[-1] ** 0.5
        found = listener(module.layer_idx, query * scale, key, value, attention_mask)
    if found is not None:
        return found.transpose(1, 2).contiguous(), None
    settings = {"scaling": scaling, "dropout": dropout, "is_causal": is_causal, **more}
    usual: Callable[..., tuple[Tensor, None]] = ALL_ATTENTION_FUNCTIONS[USUAL]
    return usual(module, query, key, value, attention_mask, **settings)
