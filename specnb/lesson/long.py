"""What the lesson on long texts needs: a pair that lends its cache, and long prompts for it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from specnb.lesson.config import LongContextConfig
from specnb.lesson.pair import items
from specnb.lesson.prompts import Item
from specnb.models.base import Model, Pair

ROOM = 64  # positions that are left for an answer


def lending_pair(cfg: LongContextConfig) -> Pair:
    """The pair of the parameters, on the runtime whose cache can be read in parts, head by head.

    ValueError where the target runs on transformers, whose contexts give no `attention`.
    """
    from specnb.models.load import load_pair

    pair = load_pair(cfg.target, cfg.draft)
    if getattr(pair.target, "small", None) is not None:  # numpy, for the smallest models
        pair = load_pair(cfg.target, cfg.draft, runtime="lean")
    if getattr(pair.target, "llama", None) is None:
        raise ValueError(
            f"target={cfg.target!r}: this lesson looks at attention weights, and the transformers "
            "runtime does not give them; give a Llama-type or LLaVA-type target"
        )
    return pair


def long_items(cfg: LongContextConfig, pair: Pair) -> list[Any]:
    """Prompts of at least `cfg.positions` positions: of `cfg.kind`; where the target reads text
    only, or a file is given, its own prompts, and texts without a picture are gone on with by the
    target itself at temperature 1."""
    target = pair.target
    most = target.max_positions - ROOM
    if cfg.positions > most:
        raise ValueError(
            f"positions={cfg.positions}: {target.path} reads {target.max_positions}, and an answer "
            f"needs {ROOM}; give at most {most}"
        )
    if target.sees_images and not cfg.prompts:
        from specnb.scenes import long_examples

        return list(
            long_examples(
                cfg.kind,
                cfg.n_prompts,
                cfg.seed,
                cfg.positions,
                lambda prompt, image: len(target.encode(prompt, image)[0]),
            )
        )
    return [_gone_on(target, item, cfg.positions, cfg.seed) for item in items(cfg, pair)]


def _gone_on(target: Model, item: Any, positions: int, seed: int) -> Any:
    from specnb.decode import autoregressive
    from specnb.sampling import Sampling

    ids = target.encode(item.prompt)[0]
    if item.image is not None or len(ids) >= positions:
        return item
    # An end token does not end a prompt: the text begins anew behind it.
    while len(ids) < positions:
        more = positions - len(ids)
        run = autoregressive(
            target, ids, sampling=Sampling(1.0), max_new_tokens=more, seed=seed + len(ids)
        )
        ids = [*ids, *run.token_ids]
    given = item if isinstance(item, Item) else Item("", task=item.task)
    return replace(given, prompt=ids)
