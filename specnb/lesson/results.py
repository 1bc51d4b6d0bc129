"""What a notebook leaves for a batch: measurements, and the row with its figures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from specnb.files import finite, missing_words, write_whole
from specnb.lesson.config import RunConfig


def measure(
    pair: Any, items: Sequence[Any], methods: Mapping[Any, Any], cfg: RunConfig
) -> list[dict[str, Any]]:
    """Every drafter on every prompt, in turns with plain decoding: a dict for each, for `save_row`.

    `methods` maps a name, or (name, nodes per target call), to a drafter. Nothing is measured
    where `cfg.out_dir` is empty. Times are without prefill.
    """
    from specnb.drafters import NoDraft
    from specnb.measure import in_turns
    from specnb.sampling import Sampling

    if not cfg.out_dir:
        return []
    drafts = Sampling(getattr(cfg, "draft_temperature", cfg.temperature), top_p=cfg.top_p)
    plain = object()  # a name that no method has
    rows = in_turns(
        pair,
        items,
        {plain: NoDraft(), **methods},
        cfg.sampling,
        seeds=(cfg.seed,),
        draft_sampling=drafts,
    )
    found = []
    for number, item in enumerate(items):
        alone = rows[plain][number]
        for name in methods:
            method, budget = name if isinstance(name, tuple) else (name, None)
            row = rows[name][number]
            counted = {
                "task": getattr(item, "task", cfg.task),
                "method": method,
                "budget": budget,
                "prompt": number,
                "tokens": row.tokens,
                "target_calls": row.calls,
                "drafted": row.drafted,
                "accepted": row.accepted,
                "accepted_lengths": row.lengths,
                "kept_by_word": row.words,
                "seconds": row.seconds,
                "plain_seconds": alone.seconds,
                "plain_tokens": alone.tokens,
            }
            found.append(counted)
    return found


def save_row(
    cfg: RunConfig, notebook: str, headline: Mapping[str, Any], **more: Any
) -> Path | None:
    """Writes `<out_dir>/<notebook>.json` in one step and gives its path; None without `out_dir`.

    `headline` holds the figures by name, `more` whatever else a batch may want to collect. What is
    NaN or infinite is null in the file, and is named there and here.
    """
    if not cfg.out_dir:
        print("out_dir is empty: nothing is written")
        return None
    row = {"notebook": notebook, "config": asdict(cfg), "headline": dict(headline), **more}
    row = finite(row, "config")
    if words := missing_words(row):
        print(words)
    text = json.dumps(row, indent=2, ensure_ascii=False, allow_nan=False, default=_plain) + "\n"
    path = Path(cfg.out_dir) / f"{notebook}.json"
    write_whole(path, text)
    print(f"written: {path}")
    return path


def _plain(value: Any) -> Any:
    """numpy and torch scalars as Python numbers."""
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"{type(value).__name__} cannot stand in a JSON row: {value!r}")
