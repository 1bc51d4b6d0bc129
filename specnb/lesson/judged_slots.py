"""What a reader writes to choose slots of a long text, and its judge: attention held, keys counted.

    choose_slots(query, means, look, budget) -> `budget` slot numbers

query [dim]: of the token that is drafted from. means [chunks, dim]: mean keys of chunks of `SIZE`
slots; chunk i has the slots SIZE * i to SIZE * i + SIZE - 1. look(slots) gives the keys of these
slots, [len(slots), dim], and may be asked for `TIMES` * budget keys in all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from specnb.lesson.answers import Function, Unsound, called, examined, verdict

SIZE, TIMES = 4, 3
GAIN = 1.25  # attention to hold, over what whole chunks do
HEADS, SLOTS, DIM, BUDGET = 8, 256, 16, 24


class _Look:
    """Keys of slots for a reader, counted."""

    def __init__(self, keys: Tensor, most: int):
        self.keys, self.most, self.seen = keys, most, 0

    def __call__(self, slots: Any) -> Tensor:
        numbers = _numbers(slots, len(self.keys), "look was asked for")
        self.seen += len(numbers)
        if self.seen > self.most:
            raise Unsound(
                f"it looks at {self.seen} keys; {self.most} are allowed, {TIMES} times the budget."
            )
        return self.keys[numbers]


def _numbers(slots: Any, n: int, what: str) -> list[int]:
    """Slot numbers as a list. Unsound, in words, where they are none."""
    if slots is None:
        raise Unsound("it gives nothing back (None): is `return` missing?")
    if isinstance(slots, Tensor):
        if slots.dtype == torch.bool:
            raise Unsound(f"{what} truth values; give numbers of slots, as `.nonzero()` does.")
        slots = slots.flatten().tolist()
    try:
        numbers = [int(slot) for slot in slots]
    except (TypeError, ValueError):
        raise Unsound(f"{what} {type(slots).__name__}; give numbers of slots.") from None
    if wrong := [slot for slot in numbers if not 0 <= slot < n]:
        raise Unsound(f"{what} slot {wrong[0]}; slots have the numbers 0 to {n - 1}.")
    return numbers


def reference(query: Tensor, means: Tensor, look: Callable[..., Tensor], budget: int) -> Tensor:
    """The chunks that look best, then the best slots in them."""
    chunks = (means @ query).topk(min(len(means), TIMES * budget // SIZE)).indices
    slots = (chunks[:, None] * SIZE + torch.arange(SIZE)).flatten()
    return slots[(look(slots) @ query).topk(min(budget, len(slots))).indices]


def whole_chunks(query: Tensor, means: Tensor, look: Callable[..., Tensor], budget: int) -> Tensor:
    """As `Chunks` goes, which an answer is to surpass: no key is looked at."""
    chunks = (means @ query).topk(min(len(means), budget // SIZE)).indices
    return (chunks[:, None] * SIZE + torch.arange(SIZE)).flatten()


def judge_choose_slots(title: str, function: Any, strict: bool) -> Function:
    """Prints which share of the attention an answer holds, and for how many keys."""

    def find() -> tuple[str | None, str]:
        return examined("choose_slots", function, _examine)

    return verdict(title, function, reference, strict, find)


def _examine(function: Function) -> tuple[str | None, str]:
    mine = theirs = whole = 0.0
    seen = 0
    for query, keys in _heads():
        weights = (keys @ query / DIM**0.5).softmax(-1)
        slots, asked = _chosen(function, query, keys)
        seen = max(seen, asked)
        mine += float(weights[slots].sum()) / HEADS
        theirs += float(weights[_chosen(whole_chunks, query, keys)[0]].sum()) / HEADS
        whole += float(weights.topk(BUDGET).values.sum()) / HEADS
    said = (
        f"{BUDGET} of {SLOTS} slots hold {mine:.0%} of the attention (whole chunks {theirs:.0%}, "
        f"the best slots {whole:.0%}), for {seen} keys looked at"
    )
    if mine < GAIN * theirs:
        return f"{said}; bring {GAIN - 1:.0%} more than whole chunks.", ""
    return None, f"{HEADS} of {HEADS} cases right; {said}"


def _chosen(function: Function, query: Tensor, keys: Tensor) -> tuple[list[int], int]:
    """The slots that a function gives for a head, and how many keys it has looked at."""
    look = _Look(keys, TIMES * BUDGET)
    means = keys.view(-1, SIZE, DIM).mean(1)
    said = called("it", function, query.clone(), means, look, BUDGET)
    slots = _numbers(said, len(keys), "it gives")
    if len(slots) != BUDGET:
        raise Unsound(f"it gives {len(slots)} slots; the budget is {BUDGET}, give so many.")
    if len(set(slots)) < len(slots):
        twice = next(slot for slot in slots if slots.count(slot) > 1)
        raise Unsound(f"it gives slot {twice} twice; each counts once.")
    return slots, look.seen


def _heads() -> Sequence[tuple[Tensor, Tensor]]:
    """(query, keys) of heads whose keys are alike within a chunk, but not equal."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    found = []
    for _ in range(HEADS):
        shared = normal(SLOTS // SIZE, DIM).repeat_interleave(SIZE, 0)
        found.append((2.0 * normal(DIM), 0.8 * shared + normal(SLOTS, DIM)))
    return found
