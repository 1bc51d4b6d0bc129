"""The verify step of a chain as a reader writes it, and `exact.law` as its judge.

    verify_step(tokens, draft_probs, target_probs, accept, draw) -> list of token ids

tokens: n guesses. draft_probs [n, vocab]: row i is the distribution that guess i was drawn from.
target_probs [n + 1, vocab]: row i is the target's where guess i stands, the last row after all of
them. accept(prob) is True with this probability, draw(probs) a token id; they are the only
randomness. Back come the guesses that are kept, and one token of the target's own.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Set
from typing import Any

import torch
from torch import Tensor

from specnb import exact
from specnb.decode import next_block
from specnb.drafters import Chain
from specnb.lesson.answers import Function, Unsound, called, examined, verdict
from specnb.models.base import Pair
from specnb.models.table import TableModel
from specnb.outcome import Examined, Outcome, Rule
from specnb.sampling import Draws, Sampling, residual
from specnb.tree import DraftTree

TOLERANCE = 1e-6  # of a law: float32 is right
Step = Callable[..., Any]
Setting = tuple[int, int, float, int, bool]


def as_rule(step: Step) -> Rule:
    """A verification rule of a reader's verify step, as in `sn.Chain(5, verify=as_rule(step))`.

    ValueError, in words, where the step gives what no step can give, and for trees that branch.
    """

    def rule(
        tree: DraftTree,
        root_probs: Tensor,
        node_probs: Tensor,
        draws: Draws,
        eos_ids: Set[int] = frozenset(),
    ) -> Outcome:
        n, tokens = len(tree), list(tree.tokens)
        if list(tree.parents) != list(range(-1, n - 1)):
            raise ValueError("verify: this step is for chains; give it to sn.Chain(...)")
        choices = _Choices(draws)
        target_probs = torch.cat([root_probs[None], node_probs.to(root_probs)])
        rows = tree.probs.clone(), target_probs.clone()
        said = step(list(tokens), *rows, choices.accept, choices.draw)
        kept, token = _read(said, tokens, [one for one, _ in choices.drawn])
        looks = choices.looks
        wanted = kept + (kept < n)  # guesses that were looked at
        if len(looks) != wanted:  # some were decided without asking
            chances = [
                min(1.0, float(target_probs[i, tokens[i]] / tree.probs[i, tokens[i]]))
                for i in range(wanted)
            ]
            looks = [Examined(one, math.nan, i < kept) for i, one in enumerate(chances)]
        path, examined = tuple(range(kept)), tuple(enumerate(looks))
        if kept and tokens[kept - 1] in eos_ids:  # nothing is ever said after the end
            return Outcome(path, None, None, None, examined)
        final = "plain" if not n else "bonus" if kept == n else "correction"
        return Outcome(path, token, final, choices.drawn[-1][1].to(root_probs), examined)

    return rule


class _Choices:
    """What a step may ask: `accept` and `draw`, kept in order."""

    def __init__(self, draws: Draws):
        self.draws = draws
        self.looks: list[Examined] = []
        self.drawn: list[tuple[int, Tensor]] = []

    def accept(self, prob: Any) -> bool:
        """True with this probability; above 1 it is certain."""
        chance = float(prob)
        if not chance >= 0.0:
            raise Unsound(f"accept({chance:.4g}): a probability is a number from 0 to 1.")
        chance = min(chance, 1.0)
        try:
            accepted, uniform = self.draws.accept(chance)
        except IndexError:
            raise Unsound(OTHER) from None
        self.looks.append(Examined(chance, uniform, accepted))
        return accepted

    def draw(self, probs: Any) -> int:
        """A token id from this distribution."""
        row = torch.as_tensor(probs).detach().double()
        if row.ndim != 1:
            what = f"a tensor of shape {list(row.shape)}"
        elif not float(row.min()) >= -1e-9:
            what = f"a negative number, {float(row.min()):.4g}"
        elif not abs(float(row.sum()) - 1.0) < 1e-3:
            what = f"numbers that sum to {float(row.sum()):.4g}"
        else:
            row = row.clamp_min(0.0) / row.clamp_min(0.0).sum()
            try:
                token = self.draws.categorical(row)
            except IndexError:
                raise Unsound(OTHER) from None
            self.drawn.append((token, row))
            return token
        raise Unsound(f"draw was given {what}; a distribution is one row that sums to 1.")


# The enumerator goes each way of every choice in turn, and must meet the choices again.
OTHER = (
    "the same guesses led to other questions the second time; accept and draw must be the only "
    "randomness."
)


def _read(said: Any, tokens: list[int], drawn: list[int]) -> tuple[int, int]:
    """How many guesses are kept, and the token after them. Unsound, in words, if it is no step."""
    if said is None:
        raise Unsound("it gives nothing back (None): is `return` missing?")
    if isinstance(said, Tensor):
        said = said.tolist()
    try:
        ids = [int(one) for one in said]
    except (TypeError, ValueError):
        raise Unsound(
            "what it gives back is no list of token ids: give the guesses that are kept, and one "
            "token more."
        ) from None
    if not drawn:
        raise Unsound(
            f"it gives {ids} for the guesses {tokens} and has drawn nothing: every call ends with "
            "a token of the target's own, in place of a guess or, as a bonus, after all of them."
        )
    if len(ids) > len(tokens) + 1:
        raise Unsound(f"it gives {ids} for the guesses {tokens}: that is more than one token more.")
    if not ids or ids[:-1] != tokens[: len(ids) - 1]:
        raise Unsound(
            f"it gives {ids} for the guesses {tokens}: all but the last must be guesses that are "
            "kept, in order. Behind a guess that is turned down, the others mean nothing."
        )
    if ids[-1] != drawn[-1]:
        raise Unsound(
            f"it gives {ids} and has last drawn {drawn[-1]}: the last token is the one from draw."
        )
    return len(ids) - 1, ids[-1]


# ------------------------------------------------------------------------------------- judge


def reference(
    tokens: Any, draft_probs: Any, target_probs: Any, accept: Any, draw: Any
) -> list[int]:
    """The verify step of 2211.17192, algorithm 1."""
    kept: list[int] = []
    for i, token in enumerate(tokens):
        if not accept(min(1.0, float(target_probs[i, token] / draft_probs[i, token]))):
            return [*kept, draw(residual(target_probs[i], draft_probs[i]))]
        kept.append(token)
    return [*kept, draw(target_probs[-1])]


def _wrong(
    ratio: Callable[[float, float], float] = lambda p, q: p / q,
    correction: Callable[..., Any] = lambda i, p, q: residual(p[i], q[i]),
    bonus: Callable[..., Any] = lambda p, q: p[-1],
) -> Step:
    """The verify step with one piece of it replaced."""

    def step(tokens: Any, q: Any, p: Any, accept: Any, draw: Any) -> list[int]:
        for i, token in enumerate(tokens):
            if not accept(min(1.0, ratio(float(p[i, token]), float(q[i, token])))):
                return [*tokens[:i], draw(correction(i, p, q))]
        return [*tokens, draw(bonus(p, q))]

    return step


def _keeps_all(tokens: Any, q: Any, p: Any, accept: Any, draw: Any) -> list[int]:
    return [*tokens, draw(p[-1])]


def _last_residual(p: Tensor, q: Tensor) -> Tensor:
    return residual(p[-1], q[-1]) if len(q) else p[-1]


MISTAKES: tuple[tuple[Step, str], ...] = (
    (
        _wrong(correction=lambda i, p, q: p[i]),
        "After a rejection you draw from the target's distribution; the kept guesses have filled a "
        "part of it already.",
    ),
    (
        _wrong(correction=lambda i, p, q: q[i]),
        "After a rejection you draw from the drafter's distribution, not from what is missing.",
    ),
    (
        _wrong(correction=lambda i, p, q: residual(q[i], p[i])),
        "In the residual, target and draft are exchanged.",
    ),
    (
        _wrong(correction=lambda i, p, q: residual(p[min(i + 1, len(p) - 1)], q[i])),
        "The correction stands where the guess stood: it needs row i of target_probs, not i + 1.",
    ),
    (
        _wrong(correction=lambda i, p, q: residual(p[-1], q[i])),
        "The correction stands where the guess stood: it needs row i of target_probs, not the"
        " last.",
    ),
    (
        _wrong(correction=lambda i, p, q: residual(p[0], q[0])),
        "The correction needs the rows of the guess that was turned down, not the first ones.",
    ),
    (
        _wrong(bonus=lambda p, q: p[0]),
        "The bonus stands after all guesses: it needs the last row of target_probs.",
    ),
    (
        _wrong(bonus=lambda p, q: p[max(0, len(p) - 2)]),
        "The bonus stands after all guesses: it needs the last row of target_probs.",
    ),
    (
        _wrong(bonus=_last_residual),
        "Behind a draft that was kept nothing is missing: the bonus comes from the target's row.",
    ),
    (
        _wrong(bonus=lambda p, q: q[-1] if len(q) else p[-1]),
        "The bonus is the target's own token, not the drafter's.",
    ),
    (
        _wrong(ratio=lambda p, q: q / p if p else 1.0),
        "You divide draft by target: what the target likes best is turned down.",
    ),
    (
        _wrong(ratio=lambda p, q: p),
        "You keep a guess as often as the target says it; the drafter has said it already.",
    ),
    (
        _wrong(ratio=lambda p, q: float(p >= q)),
        "A guess that comes too often is to be kept sometimes, not never.",
    ),
    (_keeps_all, "Every guess is kept: the text is the drafter's."),
)

# (order of the toy models, draft length, temperature, tokens of text, whether drafts are cut)
SETTINGS: tuple[Setting, ...] = (
    (1, 1, 1.0, 2, False),
    (1, 2, 1.0, 3, False),
    (2, 2, 1.0, 3, True),
    (1, 3, 1.0, 3, True),
    (1, 2, 0.0, 3, False),
)


def _models(order: int) -> tuple[TableModel, TableModel]:
    return TableModel.random(3, order, seed=4, spread=1), TableModel.random(
        3, order, seed=8, spread=1
    )


def _law(step: Step, setting: Setting) -> Tensor:
    order, length, temperature, n_tokens, clip = setting
    drafter = Chain(length, verify=as_rule(step))
    sampling = Sampling(temperature)
    return exact.law(*_models(order), drafter, sampling, n_tokens, clip=clip).probs


def _tokens_per_call(step: Step) -> float:
    """Of the first block, in expectation, at draft length 2."""
    target, draft = _models(1)
    drafter, sampling = Chain(2, verify=as_rule(step)), Sampling(1.0)
    scripts: list[list[int]] = [[]]
    found = 0.0
    while scripts:
        draws = exact.Enumerator(scripts.pop())
        drafting = drafter.start(Pair(target, draft), [0], None, sampling)
        block = next_block(target.open([0]), drafting, sampling, draws, 1 << 20)
        scripts += draws.open
        found += draws.prob * len(block.token_ids)
    return found


def judge_verify_step(title: str, step: Any, strict: bool) -> Function:
    """Prints what `exact.law` says of a verify step; gives it back where it is right."""

    def find() -> tuple[str | None, str]:
        return examined("verify_step", step, _examine)

    return verdict(title, step, reference, strict, find)


class _Watched:
    """A reader's step; says on which guesses it stopped, and whether it ever asked accept."""

    def __init__(self, step: Step):
        self.step, self.asked = step, False

    def __call__(self, tokens: Any, draft: Any, target: Any, accept: Any, draw: Any) -> Any:
        what = f"with tokens={tokens} it"
        said = called(what, self.step, tokens, draft, target, accept, draw)
        self.asked = self.asked or bool(accept.__self__.looks)
        return said


def _examine(step: Step) -> tuple[str | None, str]:
    watched = _Watched(step)
    laws, largest = [], 0.0
    for setting in SETTINGS:
        laws.append(_law(watched, setting))
        order, length, temperature, n_tokens, _ = setting
        wanted = exact.target_law(_models(order)[0], Sampling(temperature), n_tokens)
        error = float((laws[-1] - wanted).abs().max())
        largest = max(largest, error)
        if not error <= TOLERANCE:
            where = f"draft length {length}, temperature {temperature:g}"
            words = f"the text is no longer the target's ({where}). {_first(laws[-1], wanted)}"
            return f"{words} {_why(watched, laws)}".strip(), ""
    mean, best = _tokens_per_call(watched), _tokens_per_call(reference)
    if mean < best - TOLERANCE:
        return (
            f"exact, but it keeps fewer guesses than it may: {mean:.3f} tokens a call, and "
            f"{best:.3f} are possible. Ask accept once for each guess.",
            "",
        )
    return None, (
        f"exact in {len(SETTINGS)} of {len(SETTINGS)} settings, largest difference of "
        f"probabilities {largest:.0e}, {mean:.3f} tokens a call"
    )


def _first(found: Tensor, wanted: Tensor) -> str:
    """The first context in which two laws differ, in words, and the largest difference."""
    n = found.ndim
    for length in range(1, n + 1):
        rest = tuple(range(length, n))
        a, b = (law.sum(rest) if rest else law for law in (found, wanted))
        wrong = (a - b).abs()
        if not float(wrong.max()) > TOLERANCE:
            continue
        texts = wrong.flatten(0, -2).amax(-1) if length > 1 else wrong.amax()[None]
        row = int((texts > TOLERANCE).nonzero()[0])
        a, b = a.reshape(-1, a.shape[-1])[row], b.reshape(-1, b.shape[-1])[row]
        token = int((a - b).abs().argmax())
        total = float(b.sum())
        place = [row // found.shape[0] ** k % found.shape[0] for k in range(length - 1)][::-1]
        where = f"after {place}" if place else "at the very start"
        return (
            f"It shows first {where}: token {token} comes with probability "
            f"{float(a[token]) / total:.4f} instead of {float(b[token]) / total:.4f}. Largest "
            f"difference over all texts of {n} tokens: {float((found - wanted).abs().max()):.4f}."
        )
    return f"The probabilities of all texts sum to {float(found.sum()):.4f}."


def _why(step: _Watched, laws: list[Tensor]) -> str:
    """The typical mistake with the same laws in every setting, in words; "" where there is none."""
    if not step.asked:
        return "accept is never asked: every random decision goes through accept and draw."
    try:
        laws = laws + [_law(step, setting) for setting in SETTINGS[len(laws) :]]
    except Unsound:
        return ""
    for number, (_, hint) in enumerate(MISTAKES):
        if all(
            torch.allclose(law, _law_of_mistake(number, setting), rtol=0, atol=TOLERANCE)
            for law, setting in zip(laws, SETTINGS, strict=True)
        ):
            return hint
    return ""


@functools.cache
def _law_of_mistake(number: int, setting: Setting) -> Tensor:
    return _law(MISTAKES[number][0], setting)
