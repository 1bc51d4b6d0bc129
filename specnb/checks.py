"""Checks of the exercises: they take the reader's function and never stop a notebook.

Each check prints one verdict and gives a function back to go on with: the reader's own where it
is right, the reference where it is not written yet or wrong. With `strict=True` it raises.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from specnb import sampling, stopping, theory

Function = Callable[..., Any]
Mistake = tuple[Function, str]  # a typical wrong answer, and what to tell its author


def accept_prob(function: Function, strict: bool = False) -> Function:
    """Exercise 1: the probability of keeping a drafted token, min(1, target / draft)."""
    cases = [(0.2, 0.8), (0.8, 0.2), (0.5, 0.5), (0.0, 0.3), (1.0, 0.25), (0.3, 0.4), (0.06, 0.9)]
    mistakes = [
        (lambda target, draft: target / draft, "A probability is never above 1."),
        (
            lambda target, draft: min(1.0, draft / target) if target else 1.0,
            "You divide draft by target: a token that the target likes more than the drafter "
            "would then be turned down.",
        ),
        (lambda target, draft: min(target, draft), "This is not yet divided by the draft's own."),
    ]
    return _check("exercise 1", function, _accept_prob, cases, mistakes, strict)


def residual(function: Function, strict: bool = False) -> Function:
    """Exercise 2: the law of the token after a rejection, norm(max(0, target - draft))."""
    rows = [
        ([0.5, 0.3, 0.2], [0.2, 0.3, 0.5]),
        ([0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1]),
        ([1.0, 0.0], [0.5, 0.5]),
        ([0.0, 0.6, 0.4], [0.9, 0.05, 0.05]),
        ([0.25, 0.25, 0.5], [0.3, 0.3, 0.4]),
    ]
    cases = [tuple(torch.tensor(row, dtype=torch.float64) for row in case) for case in rows]
    mistakes = [
        (
            lambda target, draft: (target - draft).clamp_min(0),
            "The entries are right, but a law sums to 1: divide by their sum.",
        ),
        (
            lambda target, draft: (target - draft).abs() / (target - draft).abs().sum(),
            "Tokens that the drafter likes more than the target must get 0, not the difference.",
        ),
        (
            lambda target, draft: sampling.residual(draft, target),
            "Target and draft are exchanged: what is left is what the drafter gave too little.",
        ),
        (lambda target, draft: target, "The target's own law counts the accepted part twice."),
    ]
    return _check("exercise 2", function, sampling.residual, cases, mistakes, strict)


def expected_tokens(function: Function, strict: bool = False) -> Function:
    """Exercise 3: expected tokens per target call, 1 + a + a^2 + ... + a^draft_length."""
    cases = [(0.8, 5), (0.5, 1), (0.0, 4), (0.9, 10), (0.3, 3), (1.0, 5)]
    mistakes = [
        (
            lambda rate, length: sum(rate**power for power in range(1, length + 1)),
            "The target's own token is missing: every call emits one, even after a rejection.",
        ),
        (
            lambda rate, length: sum(rate**power for power in range(length)),
            "One power is missing: a fully accepted draft brings a bonus token.",
        ),
        (
            lambda rate, length: 1 + rate * length,
            "A token counts only if all those before it were accepted, too: powers, not multiples.",
        ),
    ]
    return _check("exercise 3", function, theory.expected_tokens, cases, mistakes, strict)


def mbsu(function: Function, strict: bool = False) -> Function:
    """Exercise of notebook 02: memory-bound speed-up, tau / (1 + c * draft forwards)."""
    cases = [(2.56, 5, 0.0164), (1.0, 5, 0.05), (3.0, 0, 0.1), (4.0, 3, 1.0), (2.2, 4, 0.01)]
    mistakes = [
        (
            lambda tokens, forwards, ratio: tokens / (ratio * forwards),
            "The target's own pass is missing from the cost: it is the 1 below the fraction bar.",
        ),
        (
            lambda tokens, forwards, ratio: tokens / (1 + ratio),
            "The drafter runs several times in a block: multiply its cost by the draft forwards.",
        ),
        (
            lambda tokens, forwards, ratio: ratio * tokens / (1 + ratio * forwards),
            "The ratio belongs to the cost below the fraction bar only.",
        ),
    ]
    return _check("exercise 1", function, theory.mbsu, cases, mistakes, strict)


def entropy_bound(function: Function, strict: bool = False) -> Function:
    """Exercise 1 of notebook 03: AdaEDL's score, 1 - sqrt(entropy_factor * entropy)."""
    rows = [[0.5, 0.25, 0.25], [1.0, 0.0], [0.25] * 4, [0.9, 0.05, 0.05], [0.01] * 100]
    cases = [
        (torch.tensor(row, dtype=torch.float64), factor) for row in rows for factor in (0.2, 0.5)
    ]

    def entropy(probs: Tensor) -> float:
        return float(torch.special.entr(probs).sum())

    mistakes = [
        (
            lambda probs, factor: 1 - math.sqrt(factor * entropy(probs) / math.log(2)),
            "Your entropy is in bits; the bound wants nats, the natural logarithm.",
        ),
        (
            lambda probs, factor: 1 - factor * entropy(probs),
            "Pinsker's inequality bounds the distance by a root.",
        ),
        (
            lambda probs, factor: math.sqrt(factor * entropy(probs)),
            "This estimates the distance of the laws; acceptance is 1 minus it.",
        ),
        (
            lambda probs, factor: float(1 - (factor * -(probs * probs.log()).sum()).sqrt()),
            "A token of probability 0 adds nothing to the entropy, but 0 * log 0 is not a number.",
        ),
    ]

    def reference(probs: Tensor, factor: float) -> float:
        return stopping.entropy_bound(entropy(probs), factor)

    return _check("exercise 1", function, reference, cases, mistakes, strict)


def threshold_update(function: Function, strict: bool = False) -> Function:
    """Exercise 2 of notebook 03: (threshold, acceptance) after a block, by AdaEDL's algorithm 1.

    The function takes threshold, running acceptance, drafted, accepted and draft length; the
    settings are the paper's: alpha 0.9, beta1 0.5, beta2 0.9, epsilon 0.01.
    """
    cases = [(0.4, 0.0, 5, 3, 7), (0.4, 0.9, 5, 5, 7), (0.4, 0.9, 7, 7, 7), (0.6, 0.8, 4, 0, 7),
             (0.3, 0.95, 6, 5, 7)]  # fmt: skip

    def reference(threshold, acceptance, drafted, accepted, draft_length):
        state = stopping.AdaEDL(threshold).start()
        state.acceptance = acceptance
        state.update(drafted, accepted, draft_length)
        return torch.tensor(state.state, dtype=torch.float64)

    def variant(beta1=0.5, beta2=0.9, sign=1.0):
        def update(threshold, acceptance, drafted, accepted, draft_length):
            acceptance = beta1 * acceptance + (1 - beta1) * accepted / drafted
            step = 0.01 if acceptance < 0.9 else -0.01 if accepted != draft_length else 0.0
            moved = threshold + sign * step
            threshold = beta2 * threshold + (1 - beta2) * moved
            return torch.tensor([threshold, acceptance], dtype=torch.float64)

        return update

    mistakes = [
        (variant(sign=-1.0), "Too little accepted means stop earlier: the threshold goes up."),
        (variant(beta2=0.0), "The threshold moves by a tenth of the step only (beta2 = 0.9)."),
        (variant(beta1=0.0), "Acceptance is a running mean (beta1 = 0.5), not the last block's."),
    ]
    return _check("exercise 2", function, reference, cases, mistakes, strict)


def gumbel_top_k(function: Function, strict: bool = False) -> Function:
    """Exercise 1 of notebook 04: k distinct tokens in draw order from given Gumbel numbers."""
    noise = sampling.Draws(0).gumbel((5, 6))
    laws = torch.rand(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) ** 3
    cases = [
        (law / law.sum(), row, k) for law, row, k in zip(laws, noise, (1, 2, 3, 6, 2), strict=True)
    ]

    def reference(probs, gumbel, k):
        return (probs.log() + gumbel).topk(k).indices

    mistakes = [
        (
            lambda probs, gumbel, k: (probs + gumbel).topk(k).indices,
            "The noise is added to the logarithms of the probabilities.",
        ),
        (
            lambda probs, gumbel, k: probs.topk(k).indices,
            "These are the k likeliest tokens; nothing is drawn.",
        ),
        (
            lambda probs, gumbel, k: (probs.log() + gumbel).topk(k).indices.sort().values,
            "The right tokens, but their order counts: the verifier goes through them as drawn.",
        ),
        (
            lambda probs, gumbel, k: (probs.log() - gumbel).topk(k).indices,
            "The noise is added, not taken away.",
        ),
    ]
    return _check("exercise 1", function, reference, cases, mistakes, strict)


def rejection_step(function: Function, strict: bool = False) -> Function:
    """Exercise 2 of notebook 04: what is left of target and draft law after a rejection."""
    rows = [
        ([0.5, 0.3, 0.2], [0.2, 0.3, 0.5], 2),
        ([0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1], 0),
        ([0.0, 0.6, 0.4], [0.9, 0.05, 0.05], 0),
        ([0.25, 0.25, 0.5], [0.3, 0.3, 0.4], 1),
    ]
    cases = [
        (torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64), token)
        for a, b, token in rows
    ]

    def without(draft, token):
        left = draft.clone()
        left[token] = 0.0
        return left

    def reference(target, draft, token):
        left = without(draft, token)
        return torch.stack([sampling.residual(target, draft), left / left.sum()])

    mistakes = [
        (
            lambda t, d, x: torch.stack([sampling.residual(t, d), without(d, x)]),
            "The draft law must sum to 1 again after the token is taken out.",
        ),
        (
            lambda t, d, x: torch.stack([sampling.residual(t, d), d]),
            "The rejected token cannot be drawn a second time: take it out of the draft law.",
        ),
        (
            lambda t, d, x: torch.stack(
                [sampling.residual(t, without(d, x)), reference(t, d, x)[1]]
            ),
            "The residual is taken against the law that the token was drawn from.",
        ),
        (
            lambda t, d, x: torch.stack([t, reference(t, d, x)[1]]),
            "The target's law must become the residual.",
        ),
    ]
    return _check("exercise 2", function, reference, cases, mistakes, strict)


def _accept_prob(target_prob: float, draft_prob: float) -> float:
    return min(1.0, target_prob / draft_prob)


def _check(
    name: str,
    function: Function,
    reference: Function,
    cases: Sequence[tuple],
    mistakes: Sequence[Mistake],
    strict: bool,
) -> Function:
    problem = _first_problem(function, reference, cases, mistakes)
    if problem is None:
        print(f"{name}: {len(cases)} of {len(cases)} cases right")
        return function
    if strict:
        raise AssertionError(f"{name}: {problem}")
    print(f"{name}: {problem}\nThe notebook goes on with the reference.")
    return reference


def _first_problem(function, reference, cases, mistakes) -> str | None:
    for case in cases:
        expected = reference(*case)
        try:
            got = function(*case)
        except NotImplementedError:
            return "not written yet."
        except Exception as error:  # whatever a beginner's code raises is an answer to explain
            return f"for {_words(case)} it stops with {type(error).__name__}: {error}"
        if not _equal(got, expected):
            said = f"for {_words(case)} expected {_word(expected)}, got {_word(got)}."
            why = [text for wrong, text in mistakes if _same_mistake(wrong, case, got)]
            return " ".join([said, *why[:1]])
    return None


def _same_mistake(wrong: Function, case: tuple, got: Any) -> bool:
    try:
        return _equal(got, wrong(*case))
    except ZeroDivisionError:
        return False


def _equal(got: Any, expected: Any) -> bool:
    try:
        if isinstance(expected, Tensor):
            if isinstance(got, (tuple, list)) and got and isinstance(got[0], Tensor):
                got = torch.stack([torch.as_tensor(part) for part in got])
            got = torch.as_tensor(got, dtype=expected.dtype)
            return got.shape == expected.shape and torch.allclose(got, expected, atol=1e-9)
        got, expected = float(got), float(expected)
        if math.isnan(expected):  # the same wrong answer; no right one is not a number
            return math.isnan(got)
        return math.isclose(got, expected, rel_tol=1e-9, abs_tol=1e-12)
    except (TypeError, ValueError, RuntimeError):
        return False


def _words(case: tuple) -> str:
    return " and ".join(_word(value) for value in case)


def _word(value: Any) -> str:
    if isinstance(value, Tensor):
        numbers = ", ".join(f"{number:.3g}" for number in value.flatten().tolist())
        return f"[{numbers}] (shape {tuple(value.shape)})"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
