"""What a reader makes of two drafts for one place, and its judge: every outcome, walked.

    one_of_two(target_probs, draft_probs, drafts, accept, draw) -> token id

target_probs, draft_probs [vocab]: both distributions at this place. drafts: two token ids, drawn
independently from draft_probs, so that they may be equal. accept(prob) is True with this
probability, draw(probs) a token id; they are the only randomness. The token must come with the
target's distribution, and be one of the drafts as often as possible.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from specnb import exact
from specnb.lesson.answers import Function, Unsound, called, examined, verdict
from specnb.sampling import residual

TOLERANCE = 1e-6  # float32 is right
LIMIT = 5_000  # outcomes of one pair of drafts
# (target, draft) of the places that an answer is judged on
PLACES: tuple[tuple[Sequence[float], Sequence[float]], ...] = (
    ((0.5, 0.3, 0.2), (0.2, 0.3, 0.5)),
    ((0.1, 0.2, 0.3, 0.4), (0.4, 0.3, 0.2, 0.1)),
    ((0.6, 0.25, 0.1, 0.05), (0.3, 0.1, 0.35, 0.25)),
    ((0.05, 0.75, 0.15, 0.05), (0.25, 0.35, 0.2, 0.2)),
)


class _Choices:
    """`accept` and `draw` for a reader, on one branch of an enumeration."""

    def __init__(self, branch: exact.Enumerator):
        self.branch = branch

    def accept(self, prob: Any) -> bool:
        chance = float(prob)
        if not chance >= 0.0:
            raise Unsound(f"accept({chance:.4g}): a probability is a number from 0 to 1.")
        try:
            return self.branch.accept(min(chance, 1.0))[0]
        except IndexError:
            raise Unsound(OTHER) from None

    def draw(self, probs: Any) -> int:
        row = torch.as_tensor(probs).detach().double()
        if row.ndim != 1 or not float(row.min()) >= -1e-9:
            raise Unsound("draw was given no distribution: give one row without negative numbers.")
        if not abs(float(row.sum()) - 1.0) < 1e-3:
            raise Unsound(
                f"draw was given numbers that sum to {float(row.sum()):.4g}; a distribution sums "
                "to 1."
            )
        try:
            return self.branch.categorical(row.clamp_min(0.0) / row.clamp_min(0.0).sum())
        except IndexError:
            raise Unsound(OTHER) from None


# The enumerator goes each way of every choice in turn, and must meet the choices again.
OTHER = (
    "the same drafts led to other questions the second time; accept and draw must be the only "
    "randomness."
)


def law_of_two(
    one_of_two: Callable[..., Any], target_probs: Tensor, draft_probs: Tensor
) -> tuple[Tensor, float]:
    """(law [vocab] of the token, how likely it is one of the two drafts), by enumeration.

    ValueError, in words, where the answer is no token id or random choices pass by `accept` and
    `draw`.
    """
    target, draft = target_probs.double(), draft_probs.double()
    law, kept = torch.zeros_like(target), 0.0
    support = draft.nonzero().flatten().tolist()
    for drafts in ([a, b] for a in support for b in support):
        mass = float(draft[drafts[0]] * draft[drafts[1]])
        scripts: list[list[int]] = [[]]
        walked = 0
        while scripts:
            branch = exact.Enumerator(scripts.pop())
            choices = _Choices(branch)
            asked = (target.clone(), draft.clone(), list(drafts), choices.accept, choices.draw)
            token = _token(one_of_two(*asked), len(target))
            scripts += branch.open
            law[token] += mass * branch.prob
            kept += mass * branch.prob * (token in drafts)
            walked += 1
            if walked > LIMIT:
                raise Unsound(f"drafts={drafts} have more than {LIMIT} outcomes; ask less often.")
    return law, kept


def _token(said: Any, vocab: int) -> int:
    if said is None:
        raise Unsound("it gives nothing back (None): is `return` missing?")
    try:
        token = int(said)
    except (TypeError, ValueError):
        raise Unsound("what it gives back is no token id: give one number.") from None
    if not 0 <= token < vocab:
        raise Unsound(f"it gives {token}, which is no token id from 0 to {vocab - 1}.")
    return token


# ------------------------------------------------------------------------------------- rules


def law_of_better(target_probs: Tensor, draft_probs: Tensor) -> Tensor:
    """The distribution of the better of two independent drafts, the one with the larger p / q."""
    order = (target_probs / draft_probs).nan_to_num(nan=0.0).argsort()  # the worst comes first
    upto = draft_probs[order].cumsum(0)
    law = torch.empty_like(draft_probs)
    law[order] = upto**2 - (upto - draft_probs[order]) ** 2
    return law


def reference(
    target_probs: Tensor, draft_probs: Tensor, drafts: Any, accept: Any, draw: Any
) -> int:
    """The better draft, tested against the distribution that the better one of two has."""
    ratio = (target_probs / draft_probs).nan_to_num(nan=0.0)
    rank = ratio.argsort().argsort()
    best = max(drafts, key=lambda token: int(rank[token]))
    law = law_of_better(target_probs, draft_probs)
    if accept(min(1.0, float(target_probs[best] / law[best]))):
        return int(best)
    return int(draw(residual(target_probs, law)))


def recursive(
    target_probs: Tensor, draft_probs: Tensor, drafts: Any, accept: Any, draw: Any
) -> int:
    """Recursive rejection of notebook 04, which an answer is to surpass."""
    left = target_probs
    for token in drafts:
        if accept(min(1.0, float(left[token] / draft_probs[token]))):
            return int(token)
        left = residual(left, draft_probs)
    return int(draw(left))


def _better(test: Callable[..., Tensor], rest: Callable[..., Tensor]) -> Function:
    """The reference, with another distribution in the test, and another behind it."""

    def rule(p: Tensor, q: Tensor, drafts: Any, accept: Any, draw: Any) -> int:
        best = max(drafts, key=lambda token: float(p[token] / q[token]))
        if accept(min(1.0, float(p[best] / test(p, q)[best]))):
            return int(best)
        return int(draw(residual(p, rest(p, q))))

    return rule


def _forgetful(p: Tensor, q: Tensor, drafts: Any, accept: Any, draw: Any) -> int:
    for token in drafts:
        if accept(min(1.0, float(p[token] / q[token]))):
            return int(token)
    return int(draw(residual(p, q)))


MISTAKES: tuple[tuple[Function, str], ...] = (
    (
        _better(lambda p, q: q, lambda p, q: q),
        "You have chosen the draft, so it has no longer the drafter's distribution: test it "
        "against the one that the chosen draft has.",
    ),
    (
        _better(law_of_better, lambda p, q: q),
        "The residual is what the target gives more than the *chosen* draft brings.",
    ),
    (
        _forgetful,
        "Once the first draft is turned down, the target's distribution has become the residual: "
        "the second one is judged against that.",
    ),
)

# ------------------------------------------------------------------------------------- judge


def judge_one_of_two(title: str, function: Any, strict: bool) -> Function:
    """Prints whether an answer is exact on every place, and how often it keeps a draft."""

    def find() -> tuple[str | None, str]:
        return examined("one_of_two", function, _examine)

    return verdict(title, function, reference, strict, find)


def _examine(function: Function) -> tuple[str | None, str]:
    watched = functools.partial(called, "it", function)
    kept, theirs, best, largest = 0.0, 0.0, 0.0, 0.0
    for target, draft in _places():
        law, mine = law_of_two(watched, target, draft)
        error = float((law - target).abs().max())
        largest = max(largest, error)
        if not error <= TOLERANCE or not math.isfinite(error):
            token = int((law - target).abs().argmax())
            said = (
                f"the target's distribution has changed: token {token} comes with probability "
                f"{float(law[token]):.4f} instead of {float(target[token]):.4f}."
            )
            return " ".join([said, _why(function)]).strip(), ""
        kept += mine / len(PLACES)
        theirs += law_of_two(recursive, target, draft)[1] / len(PLACES)
        best += exact.best_acceptance(target, draft, 2) / len(PLACES)
    counted = (
        f"one of the drafts stays with probability {kept:.3f} (recursive rejection {theirs:.3f}, "
        f"best possible {best:.3f})"
    )
    if kept <= theirs + TOLERANCE:
        return f"exact, but {counted}; surpass recursive rejection.", ""
    return None, f"exact on {len(PLACES)} of {len(PLACES)} places; {counted}"


def _places() -> list[tuple[Tensor, Tensor]]:
    one = torch.float64
    return [(torch.tensor(p, dtype=one), torch.tensor(q, dtype=one)) for p, q in PLACES]


def _why(function: Function) -> str:
    """The typical mistake with the same laws on every place; "" where there is none."""
    try:
        laws = [law_of_two(function, *place)[0] for place in _places()]
    except Exception:  # on another place: it has been told what is wrong on this one
        return ""
    for wrong, hint in MISTAKES:
        if all(
            torch.allclose(law, law_of_two(wrong, *place)[0], rtol=0, atol=TOLERANCE)
            for law, place in zip(laws, _places(), strict=True)
        ):
            return hint
    return ""
