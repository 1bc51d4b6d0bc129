"""What a reader writes for a drafter of one's own, and its judges: `exact.law`, and calls counted.

bold_draw(probs, draw) -> (token, declared probs)
next_probs(text, vocab_size) -> probs [vocab], or None where nothing is proposed
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from specnb import exact
from specnb.decode import speculative
from specnb.lesson.answers import Function, Unsound, called, examined, verdict
from specnb.models.base import Model, Pair
from specnb.models.table import TableModel
from specnb.sampling import Draws, Sampling
from specnb.tree import DraftTree

TOLERANCE = 1e-6
GAIN = 1.1  # what `next_probs` is to bring over counts of pairs
LENGTH = 4  # of its drafts
PROMPT = (0, 1, 0, 2, 0, 1, 1, 0)  # of toys: 1 and 2 have followed 0 before


@dataclass(frozen=True)
class FromText:
    """Drafts from a function of the text alone: `next_probs(text, vocab_size)`.

    `draw(probs, draw)` gives a token and the distribution to declare; by default the token is
    drawn from `probs`, and `probs` declared.
    """

    next_probs: Callable[..., Any]
    length: int = LENGTH
    draw: Callable[..., Any] = lambda probs, draw: (draw(probs), probs)

    def start(self, pair: Pair, prompt: Any, image: Any, sampling: Sampling) -> FromTextAtWork:
        return FromTextAtWork(self, pair.target, prompt)


class FromTextAtWork:
    state = ()  # the text is all that proposals depend on

    def __init__(self, settings: FromText, target: Model, prompt: Any):
        self.settings, self.vocab_size = settings, target.vocab_size
        self.text = list(target.encode(prompt)[0])

    def propose(self, draws: Draws, max_depth: int) -> DraftTree:
        text: list[int] = list(self.text)
        rows: list[Tensor] = []
        while len(rows) < min(self.settings.length, max_depth):
            probs = self.settings.next_probs(list(text), self.vocab_size)
            if probs is None:
                break
            token, declared = self.settings.draw(probs, draws.categorical)
            text.append(int(token))
            rows.append(declared)
        none = torch.empty(0, self.vocab_size, dtype=torch.float64)
        tokens = tuple(text[len(self.text) :])
        return DraftTree(
            tokens, tuple(range(-1, len(rows) - 1)), torch.stack(rows) if rows else none
        )

    def commit(self, token_ids: Sequence[int], n_accepted: int) -> None:
        self.text += token_ids


def pairs(text: Sequence[int], vocab_size: int) -> Tensor | None:
    """What followed the last token so far, as often as it did; None where it is new."""
    return _counts(text, vocab_size, 1)


def longest(text: Sequence[int], vocab_size: int) -> Tensor | None:
    """The same for the last three tokens, or two, or one, whichever stood there before."""
    for size in (3, 2, 1):
        found = _counts(text, vocab_size, size)
        if found is not None:
            return found
    return None


def _counts(text: Sequence[int], vocab_size: int, size: int) -> Tensor | None:
    ending = list(text[-size:])
    counts = torch.zeros(vocab_size, dtype=torch.float64)
    for i in range(len(text) - size):
        if list(text[i : i + size]) == ending:
            counts[text[i + size]] += 1
    return counts / counts.sum() if counts.sum() else None


def bold(probs: Tensor, draw: Callable[[Tensor], int]) -> tuple[int, Tensor]:
    """The reference: drawn from the squares, which are declared."""
    squares = probs**2
    squares = squares / squares.sum()
    return draw(squares), squares


# ------------------------------------------------------------------------------------ judges


def judge_bold_draw(title: str, function: Any, strict: bool) -> Function:
    """Prints what the production loop says of a reader's `bold_draw`."""

    def find() -> tuple[str | None, str]:
        return examined("bold_draw", function, _examine_bold)

    return verdict(title, function, bold, strict, find)


class _Asked:
    """The `draw` that a reader's function is given, and what it was given itself."""

    def __init__(self, draw: Callable[[Tensor], int]):
        self.draw, self.rows = draw, list[Tensor]()

    def __call__(self, probs: Any) -> int:
        row = torch.as_tensor(probs).detach().double()
        _distribution(row, "draw was given")
        self.rows.append(row / row.sum())
        return self.draw(self.rows[-1])


def _distribution(row: Any, what: str, size: int = 0) -> None:
    if not isinstance(row, Tensor):
        raise Unsound(f"{what} {type(row).__name__}; give a tensor of probabilities.")
    if row.ndim != 1 or (size and len(row) != size):
        raise Unsound(f"{what} a tensor of shape {list(row.shape)}; give one row [vocab].")
    low, total = float(row.min()), float(row.sum())
    if not (low >= 0 and abs(total - 1) < 1e-3):
        lies = f"whose entries sum to {total:.4g}" if low >= 0 else f"with an entry {low:.4g}"
        raise Unsound(f"{what} a row {lies}; a distribution has no negative entry and sums to 1.")


def _examine_bold(function: Function) -> tuple[str | None, str]:
    seen: list[tuple[Tensor, Tensor, Tensor]] = []  # probs, drawn from, declared

    def told(probs: Tensor, draw: Any) -> Any:
        asked = _Asked(draw)
        answer = called("bold_draw", function, probs.clone(), asked)
        if answer is None:
            raise Unsound("it gives nothing back (None): is `return` missing?")
        if not isinstance(answer, (tuple, list)) or len(answer) != 2:
            raise Unsound(
                "give two results, the token and the distribution that is declared for it."
            )
        token, declared = answer
        if isinstance(token, Tensor) and token.ndim:
            raise Unsound("the two results are exchanged: give the token first.")
        if not asked.rows:
            raise Unsound("draw is never asked: the token must be drawn, by draw(...).")
        _distribution(declared, "declared is", len(probs))
        seen.append((probs, asked.rows[-1], declared.double()))
        return int(token), declared.double() / declared.double().sum()

    error = _error(FromText(pairs, 2, told))
    squares = [probs**2 / (probs**2).sum() for probs, _, _ in seen]
    drawn_right = all(
        torch.allclose(row, square, atol=1e-4)
        for (_, row, _), square in zip(seen, squares, strict=True)
    )
    if error > TOLERANCE:
        words = f"the text is no longer the target's: a probability is off by {error:.4f}."
        if drawn_right:
            return f"{words} Declare what the token was drawn from, not what it was made of.", ""
        return f"{words} Drawn from one distribution, declared another.", ""
    if not drawn_right:
        return "exact, but the token is not drawn from the squares, scaled to sum to 1.", ""
    return None, f"exact, largest difference of probabilities {error:.0e}"


def judge_next_probs(title: str, function: Any, strict: bool) -> Function:
    """Prints whether a reader's `next_probs` is exact, and how many tokens a call it brings."""

    def find() -> tuple[str | None, str]:
        return examined("next_probs", function, _examine_next_probs)

    return verdict(title, function, longest, strict, find)


def _examine_next_probs(function: Function) -> tuple[str | None, str]:
    proposed = 0

    def told(text: list[int], vocab_size: int) -> Any:
        nonlocal proposed
        before = list(text)
        row = called("next_probs", function, text, vocab_size)
        if text != before:
            raise Unsound("text is changed in place; work on a copy, as list(text) gives it.")
        if row is not None:
            _distribution(row, f"for the text {before[-5:]} it gives", vocab_size)
            proposed += 1
            row = row.double() / row.double().sum()
        return row

    error = _error(FromText(told, 2))
    mine, theirs = _per_call(told), _per_call(pairs)
    if not proposed:
        return "it proposes nothing, whatever the text (None): is `return` missing?", ""
    if error > TOLERANCE:
        return (
            f"the text is no longer the target's: a probability is off by {error:.4f}. The same "
            "text must always give the same distribution.",
            "",
        )
    counted = f"{mine:.2f} tokens a call on a toy text, counts of pairs {theirs:.2f}"
    if mine < GAIN * theirs:
        return f"exact, but {counted}; bring {GAIN - 1:.0%} more.", ""
    return None, f"exact; {counted}"


def _error(drafter: FromText) -> float:
    """The largest difference of a probability of three tokens to the target's."""
    target, sampling = TableModel.random(3, order=1, seed=4, spread=1.0), Sampling(1.0)
    try:
        law = exact.law(target, None, drafter, sampling, 3, PROMPT).probs
    except IndexError:  # the enumerator did not meet the same choices again
        raise Unsound("the same text leads to other choices the second time.") from None
    error = float((law - exact.target_law(target, sampling, 3, PROMPT)).abs().max())
    return error if math.isfinite(error) else math.inf


def _per_call(next_probs: Function) -> float:
    """Tokens per target call on a toy whose next token depends on the last two."""
    target = TableModel.random(6, order=2, seed=5, spread=4.0)
    run = speculative(
        Pair(target, None),
        [0, 1],
        drafter=FromText(next_probs),
        sampling=Sampling(1.0),
        max_new_tokens=250,
        seed=0,
    )
    return len(run.token_ids) / len(run.blocks)
