"""The prompts of a run: a file of the reader's own, or examples of the built-in tasks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specnb import arguments
from specnb.files import json_rows
from specnb.lesson.config import RunConfig

PROMPT_KEYS = ("prompt", "image", "task")


@dataclass(frozen=True)
class Item:
    """A prompt of the reader's own; built-in ones are `scenes.Example`."""

    prompt: Any  # a text; token ids where a lesson has made it longer
    image: Any = None
    task: str = "prompts"
    scene: None = None
    asks: str = ""


def items(cfg: RunConfig) -> list:
    """The prompts of a run: the file `cfg.prompts` where given, else examples of `cfg.task`.

    A file has one JSON object per line with `prompt` and, if wanted, `image` (a path relative to
    the file) and `task` (any name). Every line is checked, the first `n_prompts` are used.
    """
    from specnb import scenes

    if not cfg.prompts:
        return scenes.examples(cfg.task, cfg.n_prompts, cfg.seed)
    path = Path(cfg.prompts)
    rows = json_rows(path)
    if not rows:
        raise ValueError(f"prompts={cfg.prompts!r}: the file is empty; give a JSON object per line")
    return [_item(path.parent, where, row) for where, row in rows][: cfg.n_prompts]


def by_task(cfg: RunConfig) -> dict[str, list]:
    """The prompts of a run by task: all built-in tasks, or those that the file names."""
    from dataclasses import replace

    from specnb import scenes

    if not cfg.prompts:
        return {task: items(replace(cfg, task=task)) for task in scenes.TASKS}
    found: dict[str, list] = {}
    for item in items(cfg):
        found.setdefault(item.task, []).append(item)
    return found


def _item(folder: Path, where: str, row: Mapping[str, Any]) -> Item:
    """The item of a row that stands at a place of a file in `folder`."""
    for key in row:
        if key not in PROMPT_KEYS:
            raise ValueError(f"{where}: unknown key {key!r}; known are {', '.join(PROMPT_KEYS)}")
    if not isinstance(row.get("prompt"), str) or not row["prompt"].strip():
        raise ValueError(f"{where}: 'prompt' is missing or empty; write what to answer")
    for key in PROMPT_KEYS:
        if row.get(key) is not None:
            arguments.text(f"{where}: {key}", row[key])
    image = None
    if row.get("image"):
        from specnb.models.pictures import as_picture

        try:
            image = as_picture(folder / row["image"])
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
    return Item(row["prompt"], image, row.get("task") or "prompts")
