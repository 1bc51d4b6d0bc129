"""Long prompts about pictures: a dialogue that goes on for many turns, and an album of pictures."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from PIL import Image

from specnb.scenes.tasks import (
    ASSISTANT_TURN,
    USER_TURN,
    Example,
    _ask_open,
    _conversation,
    example,
)

LONG_TASKS = ("dialogue", "album")
Length = Callable[[Any, Any], int]  # of a prompt and its pictures, in positions of a model


@dataclass(frozen=True)
class LongExample:
    """A prompt of at least as many positions as were asked for.

    It ends with an open question about a picture; `last` is that question with its picture, scene
    and answer, for `is_right`.
    """

    task: str
    prompt: Any  # text, or messages
    image: Image.Image | list[Image.Image]
    last: Example


def dialogue(seed: int, positions: int, length: Length) -> LongExample:
    """One picture at the start, then question after question about it.

    What the last question asks for was seen, and partly said, long before: a model that reads only
    the latest words has lost the picture.
    """
    first = example("conversation", seed)
    rng = random.Random(f"dialogue {seed}")
    question, answer = _ask_open(first.scene, rng)
    turns, said = first.prompt, first.answer

    def prompt() -> str:
        return f"{turns}{ASSISTANT_TURN}{said}{USER_TURN}{question}"

    while length(prompt(), first.image) < positions:
        further, reply, _ = _conversation(first.scene, rng)
        turns, said = f"{turns}{ASSISTANT_TURN}{said}{USER_TURN}{further}", reply
    last = Example("conversation", first.image, question, answer, first.scene, "open")
    return LongExample("dialogue", prompt(), first.image, last)


def album(seed: int, positions: int, length: Length) -> LongExample:
    """Picture after picture, each with its own questions; the last question is about the last."""
    messages: list[dict[str, Any]] = []
    pictures: list[Image.Image] = []
    item = example("conversation", seed)
    question, answer = _ask_open(item.scene, random.Random(f"album {seed}"))
    last = Example("conversation", item.image, question, answer, item.scene, "open")
    asked = _said("user", f"{item.prompt}{ASSISTANT_TURN}{item.answer}{USER_TURN}{question}", True)
    number = 0
    while length([*messages, asked], [*pictures, item.image]) < positions:
        earlier = example("conversation", seed + 1000 * (number := number + 1))
        messages += [_said("user", earlier.prompt, True), _said("assistant", earlier.answer)]
        pictures.append(earlier.image)
    return LongExample("album", [*messages, asked], [*pictures, item.image], last)


def _said(role: str, words: str, picture: bool = False) -> dict[str, Any]:
    parts: list[dict[str, str]] = [{"type": "image"}] if picture else []
    return {"role": role, "content": [*parts, {"type": "text", "text": words}]}


def long_examples(
    task: str, n: int, seed: int, positions: int, length: Length
) -> list[LongExample]:
    """n prompts of a kind; the same seed gives the same, different seeds different pictures."""
    makers = {"dialogue": dialogue, "album": album}
    if task not in makers:
        raise ValueError(f"task={task!r}: choose {' or '.join(map(repr, makers))}")
    return [makers[task](seed * 1_000_000 + index, positions, length) for index in range(n)]
