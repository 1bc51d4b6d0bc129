"""A drafter out of the target's own weights: its first blocks, narrowed where asked for.

Inheritune (2404.08634) takes the first blocks of a large model and trains on. Its released code
copies blocks and head, but neither the token embeddings (where they are not tied to the head) nor
the final norm; here all of them are inherited. Where the drafter is narrower than the target, rows
and columns are sub-cloned: whole heads and the strongest dimensions stay.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from specnb.arguments import whole


@torch.no_grad()
def inherit(
    target: Any,
    blocks: int = 1,
    width: int | None = None,
    heads: int | None = None,
    intermediate: int | None = None,
) -> Any:
    """A `LlamaForCausalLM` of the first `blocks` blocks of a Llama-type target (or LLaVA's).

    width, intermediate: how many dimensions of the residual stream and of the MLP are kept, the
    strongest ones: those of the largest norm in the embedding table, and in each block the rows of
    the largest product of norms (gate, up and down). heads: how many key/value heads are kept, the
    first ones with the largest output norm, each with its group of query heads. None keeps all.

    With all of them kept and as many blocks as the target has, it is the target's language model,
    to the last bit. ValueError where the target is of another type, or has less than is asked for.
    """
    module = getattr(target, "module", target)
    text = module.get_decoder()
    config = module.config.get_text_config()
    if config.model_type != "llama":
        raise ValueError(
            f"target: its language model is of type {config.model_type}; `inherit` knows llama"
        )
    most = {
        "blocks": config.num_hidden_layers,
        "width": config.hidden_size,
        "heads": config.num_key_value_heads,
        "intermediate": config.intermediate_size,
    }
    asked = {"blocks": blocks, "width": width, "heads": heads, "intermediate": intermediate}
    n = {
        name: size if asked[name] is None else whole(name, asked[name], 1, size)
        for name, size in most.items()
    }
    from transformers import LlamaForCausalLM

    small = copy.deepcopy(config)
    small.num_hidden_layers, small.hidden_size = n["blocks"], n["width"]
    small.intermediate_size, small.num_key_value_heads = n["intermediate"], n["heads"]
    group = config.num_attention_heads // config.num_key_value_heads
    small.num_attention_heads = n["heads"] * group
    small.head_dim = config.head_dim
    head = module.get_output_embeddings().weight
    table = text.embed_tokens.weight
    small.tie_word_embeddings = table.data_ptr() == head.data_ptr()
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(small, name, getattr(config, name, None))
    drafter = LlamaForCausalLM(small).float()

    dims = strongest(table.float().norm(dim=0), n["width"])
    # A norm over fewer dimensions divides by another root mean square: gains make up for it.
    whole_size, kept_size = (x.float().square().mean().sqrt() for x in (table, table[:, dims]))
    gain = kept_size / whole_size if n["width"] < config.hidden_size else 1.0
    drafter.model.embed_tokens.weight.copy_(table[:, dims])
    if not small.tie_word_embeddings:
        drafter.lm_head.weight.copy_(head[:, dims])
    drafter.model.norm.weight.copy_(text.norm.weight[dims] * gain)
    for ours, theirs in zip(drafter.model.layers, text.layers, strict=False):
        a, m = theirs.self_attn, theirs.mlp
        out = a.o_proj.weight.float().view(config.hidden_size, config.num_key_value_heads, -1)
        kv = strongest(out.norm(dim=(0, 2)), n["heads"])
        queries = (kv[:, None] * group + torch.arange(group)).flatten()
        sizes = m.gate_proj.weight.float().norm(dim=1) * m.up_proj.weight.float().norm(dim=1)
        cells = strongest(sizes * m.down_proj.weight.float().norm(dim=0), n["intermediate"])
        of_kv, of_q = (_rows(which, config.head_dim) for which in (kv, queries))
        for part, name, rows, columns in (
            ("self_attn", "q_proj", of_q, dims),
            ("self_attn", "k_proj", of_kv, dims),
            ("self_attn", "v_proj", of_kv, dims),
            ("self_attn", "o_proj", dims, of_q),
            ("mlp", "gate_proj", cells, dims),
            ("mlp", "up_proj", cells, dims),
            ("mlp", "down_proj", dims, cells),
        ):
            new, old = (getattr(getattr(block, part), name) for block in (ours, theirs))
            new.weight.copy_(old.weight[rows][:, columns])
            if old.bias is not None:
                new.bias.copy_(old.bias[rows])
        ours.input_layernorm.weight.copy_(theirs.input_layernorm.weight[dims] * gain)
        ours.post_attention_layernorm.weight.copy_(
            theirs.post_attention_layernorm.weight[dims] * gain
        )
    return drafter


def strongest(sizes: Tensor, n: int) -> Tensor:
    """The places of the `n` largest sizes, in ascending order."""
    return sizes.topk(n).indices.sort().values


def _rows(heads: Tensor, head_dim: int) -> Tensor:
    return (heads[:, None] * head_dim + torch.arange(head_dim)).flatten()


@torch.no_grad()
def grown(module: Any, blocks: int, seed: int = 0) -> Any:
    """A `LlamaForCausalLM` with more blocks after its own, which change no logit yet.

    New blocks write nothing (their output matrices are zero), so that a drafter that has learned
    goes on from where it was. ValueError where it has as many blocks already.
    """
    from transformers import LlamaForCausalLM

    before = module.config.num_hidden_layers
    if whole("blocks", blocks, 1) <= before:
        raise ValueError(f"blocks={blocks}: the drafter has {before} already; give more")
    config = copy.deepcopy(module.config)
    config.num_hidden_layers = blocks
    config.layer_types = None  # of blocks, where transformers lists them
    torch.manual_seed(seed)
    larger = LlamaForCausalLM(config).to(module.dtype)
    missing = larger.load_state_dict(module.state_dict(), strict=False).unexpected_keys
    assert not missing
    for block in larger.model.layers[before:]:
        block.self_attn.o_proj.weight.zero_()
        block.mlp.down_proj.weight.zero_()
    return larger
