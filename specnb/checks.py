"""Checks of the exercises: they take the reader's function and never stop a notebook.

Each check prints one verdict and gives a function back to go on with: the reader's own where it
is right, the reference where it is not written yet or wrong. With `strict=True` it raises. What
is the same for all of them stands in `specnb.lesson.answers`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from specnb import sampling, stopping, theory
from specnb.lesson.answers import Exercise, Function, judge, problem, said_of, verdict
from specnb.lesson.judged_drafter import FromText, judge_bold_draw, judge_next_probs
from specnb.lesson.judged_rule import as_rule, judge_verify_step
from specnb.lesson.judged_slots import judge_choose_slots
from specnb.lesson.judged_two import judge_one_of_two, law_of_two

__all__ = [
    "FromText",
    "accept_prob",
    "as_rule",
    "bold_draw",
    "choose_slots",
    "end_test",
    "entropy_bound",
    "expected_calls",
    "expected_tokens",
    "gumbel_top_k",
    "keep_boat",
    "law_of_two",
    "lk_loss",
    "mbsu",
    "next_probs",
    "one_of_two",
    "path_weights",
    "predicted",
    "rejection_step",
    "residual",
    "second_sibling",
    "sink_recent_mask",
    "speculate",
    "third_token",
    "threshold_update",
    "tokens_of_a_call",
    "tvdpp_advantage",
    "verify_step",
]

# -------------------------------------------------------------------- numbers said beforehand


def tokens_of_a_call(guess: Any) -> None:
    """Notebook 00: what a call brings where two of five guesses are kept."""
    why = "Two guesses and the correction; the two guesses behind it are thrown away."
    print(said_of(guess, 3, "tokens of this call", why, close=0))


def keep_boat(guess: Any, target_probs: Tensor, draft_probs: Tensor, word: int = 0) -> None:
    """Notebook 01: how often a word may be kept that the drafter likes too much."""
    p, q = float(target_probs[word]), float(draft_probs[word])
    why = f"Proposed {q:.3f} of the time and kept so often, it comes {p:.3f} of the time."
    print(said_of(guess, min(1.0, p / q), "boat may be kept with probability", why, close=0.03))


def third_token(guess: Any) -> None:
    """Notebook 04: how often the third of 0.6, 0.3, 0.1 is among two distinct draws."""
    first, second, third = 0.6, 0.3, 0.1
    behind_first = first * third / (second + third)
    behind_second = second * third / (first + third)
    why = f"First with {third:g}, else second: {behind_first:g} + {behind_second:.3f}."
    found = third + behind_first + behind_second
    print(said_of(guess, found, "the third token gets in with probability", why))


def second_sibling(guess: Any) -> None:
    """Notebook 04: how often a second sibling is kept, where the first was the third token."""
    target, draft = _row([0.5, 0.3, 0.2]), _row([0.2, 0.3, 0.5])
    left = torch.tensor([0.2, 0.3, 0.0], dtype=torch.float64) / 0.5
    kept = float(torch.minimum(sampling.residual(target, draft), left).sum())
    why = "The target wants the first token alone, and the drafter draws it with 0.2 / 0.5."
    print(said_of(guess, kept, "the second sibling is kept with probability", why))


def predicted(guess: Any, answer: float | None, what: str, why: str = "") -> None:
    """A number that the reader wrote down beforehand, beside the measured one (None: there is
    none, as with models that know nothing of our picture world)."""
    if answer is not None:
        print(said_of(guess, answer, what, why).strip())


# ------------------------------------------------------------------------------------- 00


def speculate(function: Function, strict: bool = False) -> Function:
    """Exercise of notebook 00: speculative decoding with greedy models, (new tokens, calls)."""

    def variant(
        bonus: bool = True,
        correct: bool = True,
        cut: bool = True,
        whole: bool = False,
        forgetful: bool = False,
        calls_per_token: bool = False,
        go_on: bool = False,
    ) -> Function:
        def decode(target_next, draft_next, prompt, draft_length, n_tokens):
            text, calls = list(prompt), 0
            while len(text) < len(prompt) + n_tokens:
                guesses: list[int] = []
                for _ in range(draft_length):
                    guesses.append(draft_next((list(prompt) if forgetful else text) + guesses))
                calls += 1
                for guess in guesses:
                    token = target_next(text)
                    calls += calls_per_token
                    text.append(token if correct else guess)
                    if token != guess and not go_on:
                        break
                else:
                    if bonus:
                        text.append(target_next(text))
            if not cut:
                return text[len(prompt) :], calls
            new = text if whole else text[len(prompt) :]
            return new[: n_tokens + whole * len(prompt)], calls

        return decode

    def speculate(target_next, draft_next, prompt, draft_length, n_tokens):
        return variant()(target_next, draft_next, prompt, draft_length, n_tokens)

    likes, other = _next_token((2, 0, 3, 1, 4)), _next_token((2, 0, 3, 4, 1))
    never = _next_token((3, 1, 4, 2, 0))
    cases = [
        (likes, other, [0], 3, 8),
        (likes, likes, [0, 1], 3, 9),
        (likes, never, [1], 2, 4),
        (likes, other, [4, 2], 1, 7),
        (other, likes, [3], 5, 1),
        (likes, likes, [2], 4, 7),
    ]
    mistakes = [
        (variant(bonus=False), "Where all guesses were kept, the call has one more token to give."),
        (
            variant(bonus=False, forgetful=True),
            "The drafter goes on from the text as it stands now, not from the prompt; and a call "
            "that keeps all guesses brings one more token.",
        ),
        (variant(correct=False), "A guess that is turned down is replaced by the target's token."),
        (variant(cut=False), "The last call may bring more than was asked for: cut it off."),
        (variant(whole=True), "Give the new tokens alone, without the prompt."),
        (variant(forgetful=True), "The drafter goes on from the text as it stands now."),
        (
            variant(calls_per_token=True),
            "One call looks at all guesses at once: count once per block.",
        ),
        (variant(go_on=True), "Behind a guess that was turned down the others mean nothing: stop."),
    ]
    results = ("new tokens", "number of target calls")
    return judge(
        Exercise("exercise 1", "speculate", speculate, cases, mistakes, results=results),
        function,
        strict,
    )


def _next_token(shift: Sequence[int]) -> Function:
    """A toy model: from a text to its next token, which depends on the last two."""
    asked = 0

    def next_token(text: Sequence[int]) -> int:
        nonlocal asked
        asked += 1
        if asked > 20_000:
            raise RuntimeError("the model was asked 20,000 times: does the loop ever end")
        last, before = text[-1], text[-2] if len(text) > 1 else 0
        return (shift[last] + before * (before > 2)) % len(shift)

    return next_token


# ------------------------------------------------------------------------------------- 01


def accept_prob(function: Function, strict: bool = False) -> Function:
    """Exercise 1: the probability of keeping a drafted token, min(1, target / draft)."""

    def reference(target_prob, draft_prob):
        return min(1.0, target_prob / draft_prob)

    cases = [(0.2, 0.8), (0.8, 0.2), (0.5, 0.5), (0.0, 0.3), (1.0, 0.25), (0.3, 0.4), (0.06, 0.9)]
    turned = "You divide draft by target: what the target likes best would be turned down."
    mistakes = [
        (lambda target, draft: target / draft, "A probability is never above 1."),
        (lambda target, draft: draft / target, turned),
        (lambda target, draft: min(1.0, draft / target), turned),
        (lambda target, draft: min(1.0, draft / target) if target else 1.0, turned),
        (lambda target, draft: min(target, draft), "This is not yet divided by the draft's own."),
        (
            lambda target, draft: max(1.0, target / draft),
            "`max` gives the larger one: no probability is above 1, so take `min`.",
        ),
        (
            lambda target, draft: target,
            "The drafter has said the word already: what counts is how often, against the target.",
        ),
        (
            lambda target, draft: 1 - target / draft,
            "This is the probability of turning it down, where it is one.",
        ),
        (
            lambda target, draft: max(0.0, 1 - target / draft),
            "This is the probability of turning it down.",
        ),
        (
            lambda target, draft: float(target >= draft),
            "A word that comes too often is to be kept sometimes, not never.",
        ),
    ]
    return judge(
        Exercise("exercise 1", "accept_prob", reference, cases, mistakes), function, strict
    )


def residual(function: Function, strict: bool = False) -> Function:
    """Exercise 2: the distribution after a rejection, norm(max(0, target - draft))."""

    def reference(target_probs, draft_probs):
        return sampling.residual(target_probs, draft_probs)

    rows = [
        ([0.5, 0.3, 0.2], [0.2, 0.3, 0.5]),
        ([0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1]),
        ([1.0, 0.0], [0.5, 0.5]),
        ([0.0, 0.6, 0.4], [0.9, 0.05, 0.05]),
        ([0.25, 0.25, 0.5], [0.3, 0.3, 0.4]),
    ]
    cases = [(_row(target), _row(draft)) for target, draft in rows]
    clamp = "Where the drafter's bar is the higher one nothing is missing: no entry is below 0."
    mistakes = [
        (
            lambda target, draft: (target - draft).clamp_min(0),
            "The entries are right, but a distribution sums to 1: divide by their sum.",
        ),
        (lambda target, draft: target - draft, clamp),
        (
            lambda target, draft: (target - draft).abs() / (target - draft).abs().sum(),
            "Tokens that the drafter likes more than the target must get 0, not the difference.",
        ),
        (
            lambda target, draft: sampling.residual(draft, target),
            "Target and draft are exchanged: what is left is what the drafter gave too little.",
        ),
        (
            lambda target, draft: (draft - target).clamp_min(0),
            "Target and draft are exchanged, and a distribution sums to 1.",
        ),
        (
            lambda target, draft: target,
            "The target's own distribution counts the kept guesses twice.",
        ),
        (
            lambda target, draft: (target - draft).softmax(-1),
            "A softmax gives every word something; divide by the sum.",
        ),
        (
            lambda target, draft: (target - draft).clamp_min(0).softmax(-1),
            "A softmax gives every word something; divide by the sum.",
        ),
        (
            lambda target, draft: torch.minimum(target, draft) / torch.minimum(target, draft).sum(),
            "This is what is kept; a correction fills what is still missing.",
        ),
    ]
    signs = [
        (
            lambda got, target, draft: bool(((got < 0) | ~got.isfinite() | (got > 1.001)).any()),
            f"{clamp} Clamp before you divide: the plain differences sum to 0.",
        ),
        (
            lambda got, target, draft: abs(float(got.sum()) - 1) > 1e-3,
            "A distribution sums to 1.",
        ),
    ]
    return judge(
        Exercise("exercise 2", "residual", reference, cases, mistakes, signs), function, strict
    )


def expected_tokens(function: Function, strict: bool = False) -> Function:
    """Exercise 3: expected tokens per target call, 1 + a + a^2 + ... + a^draft_length."""

    def reference(acceptance_rate, draft_length):
        return theory.expected_tokens(acceptance_rate, draft_length)

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
        (
            lambda rate, length: rate * length,
            "A token counts only if all before it were kept, and the target adds one of its own.",
        ),
        (
            lambda rate, length: (1 - rate ** (length + 1)) / (1 - rate),
            "The closed fraction is right but at rate 1, where it divides by 0: sum the powers.",
        ),
        (
            lambda rate, length: (1 - rate**length) / (1 - rate),
            "One power is missing, and at rate 1 the closed fraction divides by 0.",
        ),
        (
            lambda rate, length: rate**length,
            "This is the probability that the whole draft is kept.",
        ),
        (
            lambda rate, length: sum(k * rate**k * (1 - rate) for k in range(length + 1)),
            "These are kept guesses alone, and a draft that is kept whole is left out.",
        ),
        (
            lambda rate, length: sum((k + 1) * rate**k * (1 - rate) for k in range(length + 1)),
            "A draft that is kept whole is not turned down anywhere: its factor is not 1 - a.",
        ),
    ]
    return judge(
        Exercise("exercise 3", "expected_tokens", reference, cases, mistakes), function, strict
    )


def verify_step(function: Function, strict: bool = False) -> Function:
    """Exercise 4: the verify step of a chain, judged by `exact.law` (see `judged_rule`)."""
    return judge_verify_step("exercise 4", function, strict)


# ------------------------------------------------------------------------------------- 02


def mbsu(function: Function, strict: bool = False) -> Function:
    """Exercise 1 of notebook 02: memory-bound speed-up, tau / (1 + c * draft forwards)."""

    def reference(block_efficiency, draft_forwards, parameter_ratio):
        return theory.mbsu(block_efficiency, draft_forwards, parameter_ratio)

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
        (
            lambda tokens, forwards, ratio: tokens / (1 + forwards),
            "A draft forward costs less than a target pass: the parameter ratio is its price.",
        ),
        (
            lambda tokens, forwards, ratio: tokens / (1 + forwards / ratio),
            "A draft forward costs ratio, not 1 / ratio.",
        ),
        (
            lambda tokens, forwards, ratio: (1 + ratio * forwards) / tokens,
            "This is the cost of one token; the speed-up is plain decoding's cost, 1, over it.",
        ),
        (
            lambda tokens, forwards, ratio: tokens / ((1 + ratio) * forwards),
            "The target runs once in a block, the drafter several times.",
        ),
        (
            lambda tokens, forwards, ratio: tokens * (1 + ratio * forwards),
            "Drafting costs: divide by what a block costs.",
        ),
        (lambda tokens, forwards, ratio: tokens, "What drafting costs is not in it yet."),
        (
            lambda tokens, forwards, ratio: tokens - ratio * forwards,
            "A cost is divided by, not taken away: how many tokens for how many passes?",
        ),
    ]
    return judge(Exercise("exercise 1", "mbsu", reference, cases, mistakes), function, strict)


def expected_calls(function: Function, strict: bool = False) -> Function:
    """Exercise 2 of notebook 02: how many target calls a text takes, from each token's chance."""

    def variant(
        own: int = 1, clip: bool = True, whole: bool = True, late: bool = False
    ) -> Function:
        def calls(accept, draft_length):
            n = len(accept)
            left = [0.0] * (n + draft_length + 2)  # calls that the text from here on takes
            for i in range(n - 1, -1, -1):
                kept, found = 1.0, 1.0
                longest = min(draft_length, n - i - 1)
                for k in range(longest):
                    chance = accept[min(i + k + late, n - 1)]
                    found += kept * (1 - chance) * left[i + k + 1]
                    kept *= chance
                left[i] = found + (kept * left[i + longest + 1] if whole else 0.0)
            return left[0]

        return calls

    def reference(accept, draft_length):
        return variant()(accept, draft_length)

    cases = [
        ([0.5], 5),
        ([0.9, 0.2], 1),
        ([1.0] * 6, 2),
        ([0.0] * 5, 3),
        ([0.9, 0.9, 0.1, 0.9, 0.5, 0.8, 0.0, 1.0], 3),
        ([0.7] * 12, 5),
        ([0.25, 0.75, 0.5, 1.0], 8),
    ]

    def at_the_mean(accept, draft_length):
        mean = sum(accept) / len(accept)
        return len(accept) / sum(mean**power for power in range(draft_length + 1))

    mistakes = [
        (
            variant(whole=False),
            "A draft that is kept whole goes on, too: that case is missing from the sum.",
        ),
        (
            variant(late=True),
            "The first guess of a block stands where the next token will: its chance is accept[i].",
        ),
        (
            at_the_mean,
            "With one mean for all tokens it does not matter where the hard ones stand; go through "
            "the text.",
        ),
        (lambda accept, length: sum(1 - a for a in accept), "This counts the rejections alone."),
        (lambda accept, length: 1 + sum(1 - a for a in accept),
         "A call also ends where its draft does, and not only where a guess is turned down."),
        (lambda accept, length: len(accept), "Without any drafts it is one call a token."),
        (
            lambda accept, length: len(accept) / (length + 1),
            "This would be so if every guess were kept.",
        ),
        (
            lambda accept, length: math.ceil(len(accept) / (length + 1)),
            "This would be so if every guess were kept.",
        ),
        (
            lambda accept, length: variant()(accept, length) - 1,
            "The first call counts, too.",
        ),
        (
            lambda accept, length: len(accept) / variant()(accept, length),
            "This is tokens per call; give the number of calls.",
        ),
    ]  # fmt: skip
    signs: list[tuple[Callable[..., bool], str]] = [
        (lambda got, accept, length: got < 1, "No text comes without a call."),
        (
            lambda got, accept, length: got > len(accept),
            "More calls than tokens: every call brings one at least.",
        ),
    ]
    return judge(
        Exercise("exercise 2", "expected_calls", reference, cases, mistakes, signs),
        function,
        strict,
    )


# ------------------------------------------------------------------------------------- 03


def entropy_bound(function: Function, strict: bool = False) -> Function:
    """Exercise 1 of notebook 03: AdaEDL's score, 1 - sqrt(entropy_factor * entropy)."""
    rows = [[0.5, 0.25, 0.25], [1.0, 0.0], [0.25] * 4, [0.9, 0.05, 0.05], [0.01] * 100]
    cases = [(_row(row), factor) for row in rows for factor in (0.2, 0.5)]

    def entropy(probs: Tensor) -> float:
        return float(torch.special.entr(probs).sum())

    def reference(probs, entropy_factor):
        return stopping.entropy_bound(entropy(probs), entropy_factor)

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
            "This estimates the distance of the distributions; acceptance is 1 minus it.",
        ),
        (
            lambda probs, factor: float(1 - (factor * -(probs * probs.log()).sum()).sqrt()),
            "Not a number where a token is certain: 0 * log 0 has no value, and a tiny number "
            "added inside the logarithm makes the entropy negative. Leave the zeros out.",
        ),
        (
            lambda probs, factor: max(0.0, 1 - math.sqrt(factor * entropy(probs))),
            "The score may fall below 0: it is held against a threshold, so do not clamp it.",
        ),
        (
            lambda probs, factor: 1 - factor * math.sqrt(entropy(probs)),
            "The factor stands under the root.",
        ),
        (
            lambda probs, factor: 1 + math.sqrt(factor * entropy(probs)),
            "Acceptance is 1 minus the distance.",
        ),
        (
            lambda probs, factor: (
                float("nan") if entropy(probs) > 0 else 1 - math.sqrt(factor * entropy(probs))
            ),
            "The entropy is minus the sum of p log p: without the minus the root has no value.",
        ),
        (lambda probs, factor: entropy(probs), "This is the entropy alone."),
        (
            lambda probs, factor: 1 - math.sqrt(entropy(probs)),
            "The entropy factor is missing under the root.",
        ),
    ]
    signs = [
        (
            lambda got, probs, factor: math.isnan(float(got)),
            "The root of a negative number, or 0 * log 0, is not a number.",
        )
    ]
    return judge(
        Exercise("exercise 1", "entropy_bound", reference, cases, mistakes, signs),
        function,
        strict,
    )


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
        return state.threshold, state.acceptance

    def variant(
        beta1: float = 0.5, beta2: float = 0.9, sign: float = 1.0, old: bool = False, full: int = 1,
        of_length: bool = False,
    ) -> Function:  # fmt: skip
        def update(threshold, acceptance, drafted, accepted, draft_length):
            rate = accepted / (draft_length if of_length else drafted)
            new = beta1 * acceptance + (1 - beta1) * rate
            held = acceptance if old else new
            down = accepted != draft_length if full else True
            step = 0.01 if held < 0.9 else -0.01 if down else 0.0
            moved = threshold + sign * step
            return beta2 * threshold + (1 - beta2) * moved, new

        return update

    mistakes = [
        (variant(sign=-1.0), "Too little accepted means stop earlier: the threshold goes up."),
        (variant(beta2=0.0), "The threshold moves by a tenth of the step only (beta2 = 0.9)."),
        (variant(beta1=0.0), "Acceptance is a running mean (beta1 = 0.5), not the last block's."),
        (variant(beta1=1.0), "The block's own acceptance is to enter the running mean."),
        (variant(old=True), "Compare the new running acceptance with alpha, not the old one."),
        (
            variant(full=0),
            "A draft that was as long as it may be and was kept whole leaves the threshold alone.",
        ),
        (
            variant(of_length=True),
            "The block's acceptance is accepted / drafted; it may have stopped before its length.",
        ),
        (variant(beta2=0.1), "The betas weigh the old value: nine tenths of the threshold stay."),
        (
            lambda threshold, acceptance, drafted, accepted, length: (
                threshold,
                0.5 * acceptance + 0.5 * accepted / drafted,
            ),
            "The acceptance is right; the threshold has not moved.",
        ),
    ]
    results = ("threshold", "acceptance")
    return judge(
        Exercise("exercise 2", "threshold_update", reference, cases, mistakes, results=results),
        function,
        strict,
    )


# ------------------------------------------------------------------------------------- 04


def gumbel_top_k(function: Function, strict: bool = False) -> Function:
    """Exercise 1 of notebook 04: k distinct tokens in draw order from given Gumbel numbers."""
    noise = sampling.Draws(0).gumbel((5, 6))
    rows = torch.rand(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) ** 3
    cases = [
        (row / row.sum(), gumbel, k)
        for row, gumbel, k in zip(rows, noise, (1, 2, 3, 6, 2), strict=True)
    ]

    def reference(probs, gumbel, k):
        return (probs.log() + gumbel).topk(k).indices

    order = "The right tokens, but their order counts: the verifier goes through them as drawn."
    mistakes = [
        (
            lambda probs, gumbel, k: (probs + gumbel).topk(k).indices,
            "The noise is added to the logarithms of the probabilities.",
        ),
        (
            lambda probs, gumbel, k: probs.topk(k).indices,
            "These are the k likeliest tokens; nothing is drawn.",
        ),
        (lambda probs, gumbel, k: (probs.log() + gumbel).topk(k).indices.sort().values, order),
        (lambda probs, gumbel, k: (probs.log() + gumbel).topk(k).indices.flip(0), order),
        (
            lambda probs, gumbel, k: (probs.log() - gumbel).topk(k).indices,
            "The noise is added, not taken away.",
        ),
        (
            lambda probs, gumbel, k: (probs.log() + gumbel).topk(k, largest=False).indices,
            "The largest sums win; `argsort` and `largest=False` begin with the smallest.",
        ),
        (
            lambda probs, gumbel, k: (probs.log() + gumbel).topk(k).values,
            "These are the sums; give the token ids.",
        ),
        (
            lambda probs, gumbel, k: gumbel.topk(k).indices,
            "The probabilities do not enter: every token would be as likely as any other.",
        ),
        (
            lambda probs, gumbel, k: (probs * gumbel).topk(k).indices,
            "The noise is added to the logarithms of the probabilities.",
        ),
        (
            lambda probs, gumbel, k: (probs.log() * gumbel).topk(k).indices,
            "The noise is added, not multiplied.",
        ),
    ]
    return judge(
        Exercise("exercise 1", "gumbel_top_k", reference, cases, mistakes), function, strict
    )


def rejection_step(function: Function, strict: bool = False) -> Function:
    """Exercise 2 of notebook 04: the target's and the drafter's distribution after a rejection."""
    rows = [
        ([0.5, 0.3, 0.2], [0.2, 0.3, 0.5], 2),
        ([0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1], 0),
        ([0.0, 0.6, 0.4], [0.9, 0.05, 0.05], 0),
        ([0.25, 0.25, 0.5], [0.3, 0.3, 0.4], 1),
    ]
    cases = [(_row(target), _row(draft), token) for target, draft, token in rows]

    def without(draft: Tensor, token: int) -> Tensor:
        left = draft.clone()
        left[token] = 0.0
        return left

    def scaled(row: Tensor) -> Tensor:
        return row / row.sum()

    def reference(target, draft, token):
        return sampling.residual(target, draft), scaled(without(draft, token))

    mistakes = [
        (
            lambda t, d, x: (sampling.residual(t, d), without(d, x)),
            "The drafter's distribution must sum to 1 again after the token is taken out.",
        ),
        (
            lambda t, d, x: (sampling.residual(t, d), d),
            "The rejected token cannot be drawn a second time: take it out of the drafter's row.",
        ),
        (
            lambda t, d, x: (sampling.residual(t, without(d, x)), reference(t, d, x)[1]),
            "The residual is taken against the distribution that the token was drawn from.",
        ),
        (
            lambda t, d, x: (sampling.residual(t, reference(t, d, x)[1]), reference(t, d, x)[1]),
            "The residual is taken against the distribution that the token was drawn from.",
        ),
        (
            lambda t, d, x: (t, reference(t, d, x)[1]),
            "The target's distribution must become the residual.",
        ),
        (
            lambda t, d, x: (scaled(without(t, x)), reference(t, d, x)[1]),
            "The target may still say the rejected token at another place; take the residual.",
        ),
        (
            lambda t, d, x: ((t - d).clamp_min(0), reference(t, d, x)[1]),
            "The residual must sum to 1.",
        ),
        (
            lambda t, d, x: ((t - d).clamp_min(0), without(d, x)),
            "Both results must sum to 1.",
        ),
        (
            lambda t, d, x: (sampling.residual(d, t), reference(t, d, x)[1]),
            "Target and draft are exchanged in the residual.",
        ),
        (
            lambda t, d, x: (t - d, reference(t, d, x)[1]),
            "No entry of the residual is below 0, and it sums to 1.",
        ),
    ]
    results = ("target's distribution", "drafter's distribution")
    return judge(
        Exercise("exercise 2", "rejection_step", reference, cases, mistakes, results=results),
        function,
        strict,
    )


# ------------------------------------------------------------------------------------- 05


def tvdpp_advantage(function: Function, strict: bool = False) -> Function:
    """Exercise 1 of notebook 05: TVD++'s advantage, (reward - mean) / deviation under the draft."""
    pairs = (
        ([0.5, 0.3, 0.2], [0.2, 0.3, 0.5]),
        ([0.7, 0.2, 0.1], [0.4, 0.35, 0.25]),
        ([0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1]),
        ([0.25, 0.25, 0.5, 0.0], [0.3, 0.3, 0.3, 0.1]),
    )
    cases = [(_row(target), _row(draft)) for target, draft in pairs]

    def advantage(reward, weights):
        mean = (weights * reward).sum()
        return (reward - mean) / (weights * (reward - mean) ** 2).sum().sqrt()

    def above(target, draft):
        return (target > draft).double()

    def reference(target_probs, draft_probs):
        return advantage(above(target_probs, draft_probs), draft_probs)

    def even(target, draft):
        return torch.full_like(draft, 1 / len(draft))

    mistakes = [
        (lambda t, d: above(t, d), "This is the reward alone: take its mean off, then divide."),
        (
            lambda t, d: above(t, d) - (d * above(t, d)).sum(),
            "Divide by the deviation, too.",
        ),
        (
            lambda t, d: advantage(above(t, d), even(t, d)),
            "Mean and deviation are those of a token that the drafter draws: weigh with its "
            "probabilities. All tokens alike is another loss.",
        ),
        (
            lambda t, d: advantage(above(t, d), t),
            "The drafter draws, so its probabilities weigh, not the target's.",
        ),
        (
            lambda t, d: advantage(above(d, t), d),
            "The reward is 1 where the target gives a token *more* than the drafter.",
        ),
        (
            lambda t, d: (above(t, d) - above(t, d).mean()) / above(t, d).std(),
            "Mean and deviation are those of a token that the drafter draws: weigh with its "
            "probabilities.",
        ),
        (
            lambda t, d: (
                (above(t, d) - (d * above(t, d)).sum())
                / ((d * above(t, d)).sum() * (1 - (d * above(t, d)).sum()))
            ),
            "This divides by the variance; the deviation is its root.",
        ),
        (
            lambda t, d: advantage((t >= d).double(), d),
            "Where both give a token the same there is nothing to gain: 1 only where it is more.",
        ),
        (
            lambda t, d: d * reference(t, d),
            "Give the advantage of each token; the weighing comes with the loss.",
        ),
        (
            lambda t, d: advantage(t - d, d),
            "The reward is 1 or 0, whatever the difference is.",
        ),
    ]
    return judge(
        Exercise("exercise 1", "tvdpp_advantage", reference, cases, mistakes), function, strict
    )


def lk_loss(function: Function, strict: bool = False) -> Function:
    """Exercise 2 of notebook 05: the LK hybrid at one position, its value and its gradient."""
    generator = torch.Generator().manual_seed(0)
    logits = 1.5 * torch.randn(4, 2, 5, generator=generator, dtype=torch.float64)
    cases = [(target, draft, eta) for target, draft in logits for eta in (3.0, 0.5)]

    def parts(target_logits, draft_logits):
        p, log_q = target_logits.softmax(-1), draft_logits.log_softmax(-1)
        return p, log_q, torch.minimum(p, log_q.exp()).sum()

    def mixed(share, kl, tv):
        return share * kl + (1 - share) * tv

    def reference(target_logits, draft_logits, eta):
        p, log_q, alpha = parts(target_logits, draft_logits)
        kl = (p * (p.log() - log_q)).sum()
        return mixed((-eta * alpha.detach()).exp(), kl, 1 - alpha)

    def moving(target, draft, eta):
        p, log_q, alpha = parts(target, draft)
        return mixed((-eta * alpha).exp(), (p * (p.log() - log_q)).sum(), 1 - alpha)

    def reverse(target, draft, eta):
        p, log_q, alpha = parts(target, draft)
        kl = (log_q.exp() * (log_q - p.log())).sum()
        return mixed((-eta * alpha.detach()).exp(), kl, 1 - alpha)

    def crossed(target, draft, eta):
        p, log_q, alpha = parts(target, draft)
        kl = (p * (p.log() - log_q)).sum()
        return mixed(1 - (-eta * alpha.detach()).exp(), kl, 1 - alpha)

    def doubled(target, draft, eta):
        p, log_q, alpha = parts(target, draft)
        kl = (p * (p.log() - log_q)).sum()
        return mixed((-eta * alpha.detach()).exp(), kl, 2 * (1 - alpha))

    def rewarded(target, draft, eta):
        p, log_q, alpha = parts(target, draft)
        kl = (p * (p.log() - log_q)).sum()
        return mixed((-eta * alpha.detach()).exp(), kl, alpha)

    def entropic(target, draft, eta):
        p, log_q, alpha = parts(target, draft)
        return mixed((-eta * alpha.detach()).exp(), -(p * log_q).sum(), 1 - alpha)

    def unscaled(target, draft, eta):
        p, log_q, alpha = parts(target, draft)
        return mixed((-alpha.detach()).exp(), (p * (p.log() - log_q)).sum(), 1 - alpha)

    def with_gradient(loss: Function) -> Function:
        @functools.wraps(loss)
        def value_and_gradient(target_logits, draft_logits, eta):
            moved = draft_logits.clone().requires_grad_()
            value = loss(target_logits, moved, eta)
            if not isinstance(value, Tensor) or value.ndim:
                return value
            if not value.requires_grad:
                return value.detach(), torch.zeros_like(moved)
            return value.detach(), torch.autograd.grad(value, moved)[0]

        return value_and_gradient

    mistakes = [
        (
            moving,
            "The value is right, the gradient is not: lambda is a constant, so take alpha "
            "without its gradient (`detach`).",
        ),
        (reverse, "KL runs from the target: the sum of p log(p / q)."),
        (crossed, "Lambda is the share of KL: near 1 where alpha is small."),
        (doubled, "TV is 1 - alpha, half of the sum of the differences."),
        (rewarded, "TV is 1 - alpha: acceptance is to rise, the loss to fall."),
        (entropic, "KL is the cross-entropy minus the target's own entropy: log(p / q)."),
        (unscaled, "Lambda is exp(-eta alpha): eta is missing."),
    ]
    exercise = Exercise(
        "exercise 2",
        "lk_loss",
        with_gradient(reference),
        cases,
        [(with_gradient(wrong), hint) for wrong, hint in mistakes],
        results=("value", "gradient"),
    )

    def find() -> tuple[str | None, str]:
        answer = with_gradient(function) if callable(function) else function
        return problem(exercise, answer), f"{len(cases)} of {len(cases)} cases right"

    return verdict(exercise.title, function, reference, strict, find)


# ------------------------------------------------------------------------------------- 06


def sink_recent_mask(function: Function, strict: bool = False) -> Function:
    """Exercise 1 of notebook 06: which slots StreamingLLM reads, one truth value per slot."""

    def variant(first: int = 0, last: int = 0, whole: bool = False) -> Function:
        def mask(n_slots, budget, sink):
            slots = torch.arange(n_slots)
            recent = budget if whole else budget - sink + last
            return (slots < sink + first) | (slots >= n_slots - recent)

        return mask

    right = variant()

    def reference(n_slots, budget, sink):
        return right(n_slots, budget, sink)

    cases = [(10, 6, 2), (8, 3, 0), (12, 5, 4), (5, 9, 2), (100, 20, 4), (6, 6, 1)]
    mistakes = [
        (
            variant(whole=True),
            "The sink is part of the budget: what is left of it goes to the latest slots.",
        ),
        (variant(first=-1), "One slot of the sink is missing: the first has number 0."),
        (variant(first=1), "One slot of the sink too many: they end at sink - 1."),
        (variant(last=1), "One of the latest too many: the last slot has number n_slots - 1."),
        (variant(last=-1), "One of the latest is missing: the last slot has number n_slots - 1."),
        (
            lambda n_slots, budget, sink: ~right(n_slots, budget, sink),
            "The mask is to be true where a slot is read.",
        ),
        (
            lambda n_slots, budget, sink: torch.arange(n_slots) < budget,
            "These are the first slots; most of the budget goes to the latest.",
        ),
        (
            lambda n_slots, budget, sink: torch.arange(n_slots) >= n_slots - budget,
            "These are the latest slots; the first `sink` are read as well.",
        ),
        (
            lambda n_slots, budget, sink: torch.arange(n_slots) >= n_slots - budget + sink,
            "The first `sink` slots are read as well.",
        ),
        (
            lambda n_slots, budget, sink: (
                (torch.arange(n_slots) < sink) & (torch.arange(n_slots) >= n_slots - budget + sink)
            ),
            "A slot is read if it is one of the first *or* one of the latest: take `|`.",
        ),
        (
            lambda n_slots, budget, sink: right(n_slots, budget, sink).nonzero().flatten(),
            "These are the numbers of the slots; give one truth value for each slot.",
        ),
    ]
    return judge(
        Exercise("exercise 1", "sink_recent_mask", reference, cases, mistakes), function, strict
    )


def choose_slots(function: Function, strict: bool = False) -> Function:
    """Exercise 3 of notebook 06: slots that hold most of the attention, for few keys looked at
    (see `judged_slots`)."""
    return judge_choose_slots("exercise 3", function, strict)


# ------------------------------------------------------------------------------------- 07


def bold_draw(function: Function, strict: bool = False) -> Function:
    """Exercise 1 of notebook 07: a token drawn from the squares, and what to declare for it."""
    return judge_bold_draw("exercise 1", function, strict)


def next_probs(function: Function, strict: bool = False) -> Function:
    """Exercise 2 of notebook 07: a distribution from the text that beats counts of pairs."""
    return judge_next_probs("exercise 2", function, strict)


# ------------------------------------------------------------------------------------- 08


def path_weights(function: Function, strict: bool = False) -> Function:
    """Exercise 1 of notebook 08: the share of every prefix that the target wants."""

    def reference(target_probs, draft_probs):
        weight, found = 1.0, []
        for p, q in zip(target_probs.tolist(), draft_probs.tolist(), strict=True):
            weight = min(1.0, weight * p / q)
            found.append(weight)
        return torch.tensor(found, dtype=target_probs.dtype)

    pairs = [
        ([0.2, 0.6], [0.4, 0.3]),
        ([0.5, 0.1, 0.8], [0.25, 0.4, 0.4]),
        ([0.9], [0.3]),
        ([0.0, 0.5], [0.2, 0.1]),
        ([0.3, 0.3, 0.3, 0.9], [0.6, 0.2, 0.5, 0.3]),
    ]
    cases = [tuple(map(_row, pair)) for pair in pairs]
    mistakes = [
        (
            lambda target, draft: (target / draft).clamp_max(1.0).cumprod(0),
            "This is the token rule: capped one by one, a surplus never makes up for a loss.",
        ),
        (
            lambda target, draft: (target / draft).cumprod(0).clamp_max(1.0),
            "A weight is capped at 1 before it goes on: nothing can be wanted more than once.",
        ),
        (
            lambda target, draft: (target / draft).cumprod(0),
            "A weight is a share, and never above 1.",
        ),
        (
            lambda target, draft: (target / draft).clamp_max(1.0),
            "The weight of a prefix carries that of the shorter one.",
        ),
    ]
    exercise = Exercise("exercise 1", "path_weights", reference, cases, mistakes)
    return judge(exercise, function, strict)


def end_test(function: Function, strict: bool = False) -> Function:
    """Exercise 2 of notebook 08: how likely a prefix passes, what hangs on it having failed."""

    def reference(weight, target_probs, draft_probs):
        rest = float((weight * target_probs - draft_probs).clamp_min(0.0).sum())
        return 1.0 if weight == 1.0 else rest / (rest + 1.0 - weight)

    rows = [
        (0.5, [0.1, 0.6, 0.2, 0.1], [0.25, 0.75, 0.0, 0.0]),
        (1.0, [0.3, 0.7], [0.3, 0.7]),
        (0.4, [0.2, 0.8], [0.5, 0.5]),
        (0.9, [0.5, 0.5, 0.0], [0.1, 0.2, 0.7]),
        (1.0, [0.6, 0.4], [0.2, 0.8]),
    ]
    cases = [(weight, _row(target), _row(draft)) for weight, target, draft in rows]

    def wanted(target, draft):
        return float((target - draft).clamp_min(0.0).sum())

    mistakes = [
        (
            lambda weight, target, draft: weight,
            "That much is wanted of the prefix, but a part was said already with what hung on it.",
        ),
        (
            lambda weight, target, draft: wanted(weight * target, draft),
            "Compare it with what is left: a share of rest + 1 - weight gets here at all.",
        ),
        (
            lambda weight, target, draft: (
                wanted(target, draft) / (wanted(target, draft) + 1 - weight)
            ),
            "The target wants only a share `weight` of what stands behind this prefix.",
        ),
        (
            lambda weight, target, draft: (
                wanted(weight * target, draft) / (wanted(weight * target, draft) + 1 - weight)
            ),
            "0 / 0: where both distributions are equal and the weight is 1, nothing is lost.",
        ),
    ]
    exercise = Exercise("exercise 2", "end_test", reference, cases, mistakes)
    return judge(exercise, function, strict)


def one_of_two(function: Function, strict: bool = False) -> Function:
    """Exercise 3 of notebook 08: one token from two drafts of a place, judged outcome by outcome
    (see `judged_two`)."""
    return judge_one_of_two("exercise 3", function, strict)


def _row(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)
