"""A two-layer random model of a config: the same structure, small enough to be tried in a second.

Every kind of layer that the config has is there; widths, windows and the depth of a vision tower
are cut, head sizes and whatever else decides how a token sees others stay.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch

WINDOW = 8  # tokens, so that a short text fills it
WIDTH = 64  # of feed-forward layers
POSITIONS = 128  # at least, for models with a table of positions
TOWER = 3  # layers of a vision tower; LLaVA reads the last but one
VOCABULARY = 512  # ids; a larger one costs seconds and shows nothing more
SPECIAL = 64  # of them for what configs name: image, start and end tokens
HIDDEN = ("hidden_size", "n_embd", "d_model", "word_embed_proj_dim")
FEED_FORWARD = (
    "intermediate_size",
    "intermediate_size_mlp",
    "ffn_dim",
    "n_inner",
    "ffn_hidden_size",
    "ffn_config_size",
)


def miniatures(config: Any) -> Iterator[Any]:
    """Configs to be tried in turn: narrow and shallow, then shallow only."""
    for narrow in (True, False):
        small = copy.deepcopy(config)
        for part in (small, *_parts(small)):
            part._attn_implementation = config._attn_implementation
        try:
            _shallow(small.get_text_config())
            if hasattr(small, "vision_config"):
                _shallow_tower(small.vision_config)
            if narrow:
                _narrow(small)
            _speak_little(small)
        except Exception:
            continue  # a config with names of its own: the next one, at last as it is
        yield small
    yield copy.deepcopy(config)


@torch.no_grad()
def random_model(module_class: type, config: Any, seed: int = 0) -> torch.nn.Module:
    """A float32 model with wide weights, so that what a token sees changes what it says."""
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    try:
        module = module_class(config).float().eval()
        for parameter in module.parameters():
            if parameter.dim() > 1:
                reach = 1.5 * (3 / parameter.shape[-1]) ** 0.5
                parameter.uniform_(-reach, reach)
    finally:
        torch.random.set_rng_state(state)  # nobody's random numbers change by a check
    return module


def small_ids(token_ids: list[int], config: Any) -> list[int]:
    """Ids in the vocabulary of a config's miniature; those that the config names stay apart."""
    if config.get_text_config().vocab_size <= VOCABULARY:
        return token_ids
    names = named_ids(config)
    return [names.get(token, token % (VOCABULARY - SPECIAL)) for token in token_ids]


def named_ids(config: Any) -> dict[int, int]:
    """The ids that a config names, with their places in a miniature's vocabulary."""
    found = sorted({value for _, _, value in _named(config)})
    return {token: VOCABULARY - SPECIAL + i for i, token in enumerate(found[:SPECIAL])}


def _named(config: Any) -> Iterator[tuple[Any, str, int]]:
    for part in {id(part): part for part in (config, *_parts(config))}.values():
        for name in list(vars(part)):
            value = getattr(part, name, None)
            if name.endswith(("token_id", "token_index")) and isinstance(value, int) and value >= 0:
                yield part, name, value


def _speak_little(config: Any) -> None:
    names, large = named_ids(config), config.get_text_config().vocab_size
    if large <= VOCABULARY:
        return
    for part, name, value in list(_named(config)):
        setattr(part, name, names.get(value, 0))
    for part in {id(part): part for part in (config, *_parts(config))}.values():
        for name in ("vocab_size", "_vocab_size"):
            if getattr(part, name, None) == large:
                setattr(part, name, VOCABULARY)
        if isinstance(getattr(part, "eos_token_id", None), list):
            part.eos_token_id = None


def _parts(config: Any) -> list[Any]:
    names = [name for name in vars(config) if name.endswith("_config")]
    return [part for part in (getattr(config, name) for name in names) if hasattr(part, "to_dict")]


def _shallow(text: Any) -> None:
    """Two layers, or one of each kind; lists with an entry per layer are cut alike."""
    n = text.num_hidden_layers
    kinds = getattr(text, "layer_types", None) or [None] * n
    chosen = sorted({kinds.index(kind) for kind in kinds})
    chosen = chosen if len(chosen) > 1 else list(range(min(2, n)))
    lists = {name: value for name, value in vars(text).items() if isinstance(value, list)}
    for name, values in lists.items():
        if len(values) == n:
            setattr(text, name, [values[i] for i in chosen])
    if getattr(text, "attention_types", None):  # GPT-Neo writes its layers as kinds and counts
        text.attention_types = [[list(text.attention_layers), 1]]
    text.num_hidden_layers = len(chosen)
    for name, most in (("first_k_dense_replace", 1), ("sliding_window", WINDOW),
                       ("window_size", WINDOW), ("attention_chunk_size", WINDOW)):  # fmt: skip
        if isinstance(getattr(text, name, None), int):
            setattr(text, name, min(getattr(text, name), most))
    for name in ("max_position_embeddings", "n_positions"):
        if isinstance(getattr(text, name, None), int) and not hasattr(text, "rope_parameters"):
            setattr(text, name, max(getattr(text, name), POSITIONS))


def _shallow_tower(vision: Any) -> None:
    for name in ("num_hidden_layers", "depth"):
        if isinstance(getattr(vision, name, None), int):
            setattr(vision, name, min(getattr(vision, name), TOWER))
    for name, values in list(vars(vision).items()):
        if name.endswith("_indexes") and isinstance(values, list):
            setattr(vision, name, list(range(min(len(values), TOWER - 1))))


def _narrow(config: Any) -> None:
    text = config.get_text_config()
    vision: Any = getattr(config, "vision_config", None)
    if hasattr(vision, "num_attention_heads") and hasattr(vision, "hidden_size"):
        dim = vision.hidden_size // vision.num_attention_heads
        vision.num_attention_heads, vision.hidden_size = 2, 2 * dim
    hidden, heads = text.hidden_size, text.num_attention_heads
    own_dim = getattr(text, "head_dim", None)
    groups = getattr(text, "num_key_value_heads", None) or heads
    kept = min(groups, 2)
    text.num_attention_heads = kept * min(heads // groups, 2)
    if getattr(text, "num_key_value_heads", None):
        text.num_key_value_heads = kept
    width = text.num_attention_heads * (own_dim or hidden // heads)
    for part in (config, *_parts(config), *_parts(text)):
        tower = part is vision
        names = ("out_hidden_size", "projection_dim", "proj_dim") if tower else HIDDEN
        if tower and getattr(config, "model_type", "") == "qwen2_vl":
            names = HIDDEN  # there it is what the tower gives out
        for name in names if part is not config else (*HIDDEN, "projection_dim"):
            if getattr(part, name, None) == hidden:
                setattr(part, name, width)
    for name in HIDDEN:
        if getattr(text, name, None) == hidden:
            setattr(text, name, width)
    for part in {id(part): part for part in (config, text, *_parts(config))}.values():
        for name in list(vars(part)):
            value = getattr(part, name, None)
            if name.endswith(FEED_FORWARD) and isinstance(value, int):
                setattr(part, name, min(value, WIDTH))
