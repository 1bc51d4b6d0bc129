"""What a model's config says about running it exactly, before any of its weights is read.

Exact decoding takes back what was drafted in vain. That works where a token leaves nothing behind
but its keys and values, and where what a token sees can be said by a mask. `judge` refuses all
else in one sentence, and says of the rest how it has to be run.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

FULL, SLIDING, CHUNKED = "full_attention", "sliding_attention", "chunked_attention"
SHARED = "dummy"  # a layer that reads another layer's keys and values
NO_LIMIT = 1 << 30  # positions of a model that has no end
LIMITS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length")
REMEDY = "choose a decoder-only model in which a token leaves nothing behind but keys and values"


@dataclass(frozen=True)
class Plan:
    """How a model has to be run so that chains and trees are exact.

    `kinds` are the kinds of its layers by what they may see; `window` and `chunk` are in tokens.
    `only_chains` says why trees would be wrong, empty where they are right. `switch` is the text
    length at which its rope changes. `position_of_first` is the position of the first token.
    `whole_prompt`: the prompt looks at itself in both directions, so it is read in one call.
    `takes` are the names of what its forward takes.
    """

    sees_images: bool
    kinds: frozenset[str]
    window: int | None
    chunk: int | None
    only_chains: str
    max_positions: int
    switch: int | None
    position_of_first: int
    whole_prompt: bool
    takes: frozenset[str]

    def positions_for(self, n_prompt: int, name: str) -> int:
        """How many positions a text with a prompt of this length may use.

        A text that begins below the switch ends there; one that begins beyond it goes on.
        """
        if self.switch is None or n_prompt <= self.switch:
            return min(self.max_positions, self.switch or self.max_positions)
        if n_prompt == self.switch + 1:  # all but its last token is read before the switch
            raise ValueError(
                f"prompt: its {n_prompt} tokens end where the rope of {name} changes; make it a "
                "token shorter or longer"
            )
        return self.max_positions


def judge(config: Any, name: str) -> Plan:
    """The plan for a transformers config; ValueError in one sentence where nothing is exact."""
    import transformers

    def refuse(why: str, remedy: str = REMEDY) -> NoReturn:
        raise ValueError(f"model {name!r}: {why}; {remedy}")

    kind = config.model_type
    if getattr(config, "is_encoder_decoder", False):
        refuse(f"{kind} is an encoder-decoder, its text is read in both directions")
    text = config.get_text_config()
    sees_images = hasattr(config, "vision_config")
    table = (
        transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
        if sees_images
        else transformers.MODEL_FOR_CAUSAL_LM_MAPPING
    )
    if type(config) not in table:
        refuse(f"transformers {transformers.__version__} has no language model of type {kind}")
    module: Any = table[type(config)]
    module = module[0] if isinstance(module, tuple) else module
    takes = frozenset(inspect.signature(module.forward).parameters)
    found = layer_kinds(text)
    strange = sorted(set(found) - {FULL, SLIDING, CHUNKED, SHARED})
    if getattr(module, "_is_stateful", False) or strange:
        what = f"{kind} has layers of kind {strange[0]}" if strange else kind
        refuse(f"{what}, whose state cannot be taken back after a rejected draft")
    cross = getattr(text, "cross_attention_layers", None) or getattr(
        text, "add_cross_attention", False
    )
    if cross:
        refuse(f"{kind} looks at its image by cross-attention, outside the cache of the text")
    if not takes & {"past_key_values", "cache"}:
        refuse(f"{kind} takes no cache of keys and values")
    masked = type(config) in transformers.MODEL_FOR_MASKED_LM_MAPPING
    prefix = kind == "paligemma"  # both ways in the prompt alone
    both_ways = getattr(text, "use_bidirectional_attention", None) in (True, "all")
    if (both_ways and not prefix) or (masked and not getattr(config, "is_decoder", False)):
        refuse(f"{kind} reads in both directions, so earlier tokens change with later ones")

    limits = (getattr(text, attribute, None) for attribute in LIMITS)
    max_positions = next((limit for limit in limits if isinstance(limit, int)), NO_LIMIT)
    window, switch = getattr(text, "sliding_window", None), None
    for rope in _ropes(text):
        original = rope.get("original_max_position_embeddings") or getattr(
            text, "original_max_position_embeddings", None
        )
        if rope.get("rope_type") == "dynamic":  # changes with every token from there on
            max_positions = min(max_positions, original or max_positions)
        elif rope.get("rope_type") == "longrope" and original and original < max_positions:
            switch = original
    if prefix and window:  # it takes one mask for all layers: none may be narrower than the text
        max_positions, window = min(max_positions, window), None
        found = [FULL]
    return Plan(
        sees_images=sees_images,
        kinds=frozenset(found) - {SHARED},
        window=window,
        chunk=getattr(text, "attention_chunk_size", None),
        only_chains=_only_chains(text, takes),
        max_positions=max_positions,
        switch=switch,
        position_of_first=int(prefix),
        whole_prompt=prefix,
        takes=takes,
    )


def layer_kinds(text: Any) -> list[str]:
    """The kind of each layer, or one for all; with the words of transformers' configs."""
    kinds = getattr(text, "layer_types", None)
    if kinds:
        shares = getattr(text, "kv_sharing_modes", None) or [None] * len(kinds)
        plain = [SHARED if kind in ("moe", "mlp") else kind for kind in kinds]
        return [
            SHARED if mode == "reuse" else kind for kind, mode in zip(plain, shares, strict=True)
        ]
    if getattr(text, "sliding_window", None) is not None:
        return [SLIDING]
    if getattr(text, "attention_chunk_size", None) is not None:
        return [CHUNKED]
    return [FULL]


def _ropes(text: Any) -> Iterator[dict[str, Any]]:
    """The rope settings: one for all layers, or one for each kind."""
    settings = getattr(text, "rope_parameters", None) or {}
    if "rope_type" in settings:
        yield settings
    else:
        yield from (each for each in settings.values() if isinstance(each, dict))


def _only_chains(text: Any, takes: frozenset[str]) -> str:
    """Why siblings of a tree, which stand behind one another in the cache, would go wrong."""
    if text.model_type in ("bloom", "mpt") or getattr(text, "alibi", False):
        return "ALiBi counts places in the cache"
    if "local" in (getattr(text, "attention_layers", None) or ()):
        return "its local attention counts places in the cache"
    if "position_ids" not in takes:
        return "its positions are places in the cache"
    return ""
