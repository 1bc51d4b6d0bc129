"""Checks of the exercises: right answers in every idiom, wrong ones in the usual ways.

ANSWERS is what readers write: a function, and what the check must say of it ("" where it is right).
"""

import contextlib
import inspect
import io
import math
import random
import re

import numpy as np
import pytest
import torch

from specnb import checks, exact, theory, verify
from specnb.drafters import Chain
from specnb.lesson import answers, judged_rule, judged_two
from specnb.sampling import Draws, Sampling, residual

pytestmark = pytest.mark.usefixtures("unchecked")


def said(check, function, *more) -> tuple[object, str]:
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        result = check(function, *more)
    return result, printed.getvalue()


def entropy(p):
    return -(p * p.clamp_min(1e-12).log()).sum()


def in_place_clamp(t, d):
    t -= d
    t.clamp_(min=0)
    return t / t.sum()


def no_return(*arguments):
    sum(range(len(arguments)))


def loop_residual(target_probs, draft_probs):
    gaps = [max(0.0, float(p - q)) for p, q in zip(target_probs, draft_probs, strict=True)]
    return torch.tensor([gap / sum(gaps) for gap in gaps])


def scaled(reward, weights):
    mean = (weights * reward).sum()
    return (reward - mean) / (weights * (reward - mean) ** 2).sum().sqrt()


def of_mass(reward, mass):
    return (reward - mass) / (mass * (1 - mass)).sqrt()


def lk_right(target_logits, draft_logits, eta, detached=True, twice=1, swap=False):
    p, q = target_logits.softmax(-1), draft_logits.softmax(-1)
    alpha = torch.minimum(p, q).sum()
    share = torch.exp(-eta * (alpha.detach() if detached else alpha))
    share = 1 - share if swap else share
    return share * (p * torch.log(p / q)).sum() + (1 - share) * twice * (1 - alpha)


def two_stages(times=3, size=4, cut=True, numbers=False):
    """Slots in two looks: at mean keys, then at the keys of `times` budgets of slots."""

    def choose(query, means, look, budget):
        chunks = (means @ query).topk(min(len(means), times * budget // size)).indices
        slots = (size * chunks[:, None] + torch.arange(size)).flatten()
        best = slots[(look(slots) @ query).argsort(descending=True)]
        return chunks[:budget] if numbers else best[:budget] if cut else best

    return choose


def by_pieces(query, means, look, budget):
    """Chunk after chunk, one key at a time, in plain Python."""
    order = sorted(range(len(means)), key=lambda i: -float(means[i] @ query))
    slots = [4 * chunk + i for chunk in order[: budget // 2] for i in range(4)]
    score = {slot: float(look([slot])[0] @ query) for slot in slots}
    return sorted(score, key=lambda slot: -score[slot])[:budget]


def of_two(better=True, own=True, rest=True):
    """The better of two drafts, tested against its own distribution."""

    def choose(p, q, drafts, accept, draw):
        order = (p / q).argsort(descending=not better)
        upto = q[order].cumsum(0)
        law = torch.empty_like(q)
        law[order] = upto**2 - (upto - q[order]) ** 2
        best = max(drafts, key=order.tolist().index)
        if accept(min(1.0, float(p[best] / (law if own else q)[best]))):
            return best
        return draw(residual(p, law if rest else q))

    return choose


def k_seq(p, q, drafts, accept, draw):
    """Both drafts against p / rho, with the smallest rho that leaves a residual (SpecTr)."""

    def kept(rho):
        once = torch.minimum(q, p / rho)
        return once / once.sum() * (1 - (1 - once.sum()) ** 2)

    rho = next(r for r in torch.linspace(1, 2, 1001) if bool((kept(r) <= p + 1e-9).all()))
    for token in drafts:
        if accept(min(1.0, float(p[token] / (rho * q[token])))):
            return token
    rest = (p - kept(rho)).clamp_min(0)
    return draw(rest / rest.sum())


def step_of(rule):
    """A verify step in which `rule(i, token, p, q)` gives (chance, row of the correction)."""

    def step(tokens, draft_probs, target_probs, accept, draw):
        kept = []
        for i, token in enumerate(tokens):
            chance, row = rule(i, token, target_probs, draft_probs)
            if not accept(chance):
                return kept + [draw(row)]
            kept.append(token)
        return kept + [draw(target_probs[len(tokens)])]

    return step


def ratio(i, token, p, q):
    return p[i, token] / q[i, token]


RIGHT_STEP = step_of(lambda i, x, p, q: (min(1.0, ratio(i, x, p, q)), residual(p[i], q[i])))


def with_indices(tokens, draft_probs, target_probs, accept, draw):
    n = 0
    while n < len(tokens):
        p, q = target_probs[n, tokens[n]], draft_probs[n, tokens[n]]
        if p < q and not accept(p / q):
            break
        n += 1
    if n == len(tokens):
        return (*tokens, draw(target_probs[-1]))
    gap = (target_probs[n] - draft_probs[n]).clamp(min=0)
    return torch.tensor([*tokens[:n], draw(gap / gap.sum())])


def in_float32(tokens, draft_probs, target_probs, accept, draw):
    return RIGHT_STEP(tokens, draft_probs.float(), target_probs.float(), accept, draw)


def own_uniforms(tokens, draft_probs, target_probs, accept, draw):
    for i, token in enumerate(tokens):
        if random.random() > ratio(i, token, target_probs, draft_probs):
            return tokens[:i] + [draw(residual(target_probs[i], draft_probs[i]))]
    return tokens + [draw(target_probs[-1])]


def goes_on(tokens, draft_probs, target_probs, accept, draw):
    kept = []
    for i, token in enumerate(tokens):
        if accept(min(1.0, ratio(i, token, target_probs, draft_probs))):
            kept.append(token)
        else:
            kept.append(draw(residual(target_probs[i], draft_probs[i])))
    return kept + [draw(target_probs[-1])]


def no_bonus(tokens, draft_probs, target_probs, accept, draw):
    for i, token in enumerate(tokens):
        if not accept(min(1.0, ratio(i, token, target_probs, draft_probs))):
            return tokens[:i] + [draw(residual(target_probs[i], draft_probs[i]))]
    return tokens


def no_correction(tokens, draft_probs, target_probs, accept, draw):
    kept = []
    for i, token in enumerate(tokens):
        if not accept(min(1.0, ratio(i, token, target_probs, draft_probs))):
            return kept
        kept.append(token)
    return kept + [draw(target_probs[-1])]


def by_drawing(tokens, draft_probs, target_probs, accept, draw):
    for i, token in enumerate(tokens):
        own = draw(target_probs[i])
        if own != token:
            return tokens[:i] + [own]
    return tokens + [draw(target_probs[-1])]


def likeliest(tokens, draft_probs, target_probs, accept, draw):
    for i, token in enumerate(tokens):
        if not accept(min(1.0, ratio(i, token, target_probs, draft_probs))):
            return tokens[:i] + [draw(residual(target_probs[i], draft_probs[i]))]
    draw(target_probs[-1])
    return tokens + [int(target_probs[-1].argmax())]


def my_loop(target_next, draft_next, prompt, draft_length, n_tokens):
    new, calls = [], 0
    while len(new) < n_tokens:
        calls += 1
        guesses = []
        while len(guesses) < draft_length:
            guesses += [draft_next([*prompt, *new, *guesses])]
        told = [target_next([*prompt, *new, *guesses[:i]]) for i in range(draft_length + 1)]
        n = 0
        while n < draft_length and guesses[n] == told[n]:
            n += 1
        new += told[: n + 1]
    return new[:n_tokens], calls


def keeps_prompt(target_next, draft_next, prompt, draft_length, n_tokens):
    new, calls = my_loop(target_next, draft_next, prompt, draft_length, n_tokens)
    return prompt + new, calls


def changes_prompt(target_next, draft_next, prompt, draft_length, n_tokens):
    new, calls = my_loop(target_next, draft_next, list(prompt), draft_length, n_tokens)
    prompt += new
    return new, calls


def never_ends(target_next, draft_next, prompt, draft_length, n_tokens):
    while True:
        target_next(prompt)


def loop(**flaw):
    """`my_loop` with one piece of it left out."""

    def decode(target_next, draft_next, prompt, draft_length, n_tokens):
        new, calls = [], 0
        while len(new) < n_tokens:
            start = list(prompt) if flaw.get("start") else prompt + new
            guesses = []
            for _ in range(draft_length):
                guesses.append(draft_next(start + guesses))
            calls += 1
            for guess in guesses:
                token = target_next(prompt + new)
                calls += flaw.get("each", 0)
                new.append(guess if flaw.get("keep") else token)
                if guess != token and not flaw.get("on"):
                    break
            else:
                if not flaw.get("bonus"):
                    new.append(target_next(prompt + new))
        return (new if flaw.get("long") else new[:n_tokens]), calls

    return decode


def calls_from(i, accept, draft_length):
    """Right, by recursion."""
    if i >= len(accept):
        return 0.0
    found, kept = 1.0, 1.0
    longest = min(draft_length, len(accept) - i - 1)
    for k in range(longest):
        found += kept * (1 - accept[i + k]) * calls_from(i + k + 1, accept, draft_length)
        kept *= accept[i + k]
    return found + kept * calls_from(i + longest + 1, accept, draft_length)


def unclipped(accept, draft_length, i=0):
    if i >= len(accept):
        return 0.0
    found, kept = 1.0, 1.0
    for k in range(draft_length):
        chance = accept[min(i + k, len(accept) - 1)]
        found += kept * (1 - chance) * unclipped(accept, draft_length, i + k + 1)
        kept *= chance
    return found + kept * unclipped(accept, draft_length, i + draft_length + 1)


def update(t, a, n, k, longest, sign=1, beta2=0.9, old=False):
    new = 0.5 * a + 0.5 * k / n
    step = 0.0
    if (a if old else new) < 0.9:
        step = sign * 0.01
    elif k != longest:
        step = -sign * 0.01
    return beta2 * t + (1 - beta2) * (t + step), new


def own_removed(t, d, x):
    left = d.clone()
    left[x] = 0
    return left / left.sum()


def removed_in_place(t, d, x):
    gap = residual(t, d)
    d[x] = 0
    return gap, d / d.sum()


def squares(p):
    return p**2 / (p**2).sum()


def ending(*sizes):
    """A right `next_probs` for endings of these sizes."""

    def function(text, vocab_size):
        for size in sizes:
            found = [text[i + size] for i in range(len(text) - size)
                     if text[i : i + size] == text[-size:]]  # fmt: skip
            if found:
                return torch.bincount(torch.tensor(found), minlength=vocab_size).double() / len(
                    found
                )

    return function


def counted(text, vocab_size, size=2):
    """In float32, and smoothed."""
    counts = torch.full((vocab_size,), 0.01)
    for i in range(len(text) - size):
        if text[i : i + size] == text[-size:]:
            counts[text[i + size]] += 1
    return counts / counts.sum()


def last_time(text, vocab_size):
    """One-hot: what came the last time."""
    for i in range(len(text) - 3, -1, -1):
        if text[i : i + 2] == text[-2:]:
            return torch.nn.functional.one_hot(torch.tensor(text[i + 2]), vocab_size).double()


def mixed(text, vocab_size):
    rows = [row for row in (ending(2)(text, vocab_size), ending(1)(text, vocab_size))
            if row is not None]  # fmt: skip
    return sum(rows) / len(rows) if rows else None


def weights(t, d):
    found = t / d
    for place in range(1, len(found)):
        found[place] *= found[place - 1].clamp_max(1.0)
    return found.clamp_max(1.0)


def weights_by_loop(t, d):
    weight, found = 1.0, []
    for p, q in zip(t, d, strict=True):
        weight = min(1.0, float(weight * p / q))
        found.append(weight)
    return torch.tensor(found, dtype=t.dtype)


def wanted(t, d):
    return float((t - d).clamp_min(0.0).sum())


def ends(w, t, d):
    rest = wanted(w * t, d)
    return rest / (rest + 1 - w) if rest or w < 1 else 1.0


def masked(read):
    """A mask by what is read of slot i, given the number of slots, budget and sink."""
    return lambda n_slots, budget, sink: read(torch.arange(n_slots), n_slots, budget, sink)


def latest(n_slots, budget, sink):
    """Ones behind the sink, in the places of the latest slots."""
    return (torch.arange(sink, n_slots) >= n_slots - budget + sink)[: n_slots - sink].double()


ANSWERS = {
    "bold_draw": [
        (lambda p, draw: (draw(squares(p)), squares(p)), ""),
        (lambda p, draw: [draw(squares(p.float())), squares(p)], ""),
        (lambda p, draw: (torch.tensor(draw(squares(p))), squares(p)), ""),
        (lambda p, draw: (draw(p * p / p.dot(p)), p.pow(2) / p.pow(2).sum()), ""),
        (lambda p, draw: (draw((2 * p.log()).softmax(-1)), (2 * p.log()).softmax(-1)), ""),
        (lambda p, draw: (draw(squares(p)), p), "Declare what the token was drawn from"),
        (lambda p, draw: (draw(p), squares(p)), "Drawn from one distribution, declared another"),
        (lambda p, draw: (draw(p), p), "not drawn from the squares"),
        (lambda p, draw: (draw(p**2), p**2), "sum to"),
        (lambda p, draw: (draw(squares(p)), p**2), "declared is a row whose entries sum"),
        (lambda p, draw: (int(p.argmax()), squares(p)), "draw is never asked"),
        (lambda p, draw: (squares(p), draw(squares(p))), "exchanged"),
        (lambda p, draw: draw(squares(p)), "two results"),
        (lambda p, draw: (draw(squares(p)), squares(p).tolist()), "declared is list"),
        (lambda p, draw: (draw(squares(p)[None]), squares(p)), r"shape \[1, 3\]"),
        (lambda p, draw: (draw.sample(p), p), "stops with AttributeError"),
        (no_return, "return` missing"),
    ],
    "next_probs": [
        (ending(3, 2, 1), ""),
        (ending(2, 1), ""),
        (ending(2), ""),
        (counted, ""),
        (last_time, "bring 10% more"),
        (mixed, ""),
        (lambda text, n: ending(2, 1)(tuple(text), n), ""),
        (ending(1), "bring 10% more"),
        (lambda text, n: torch.full((n,), 1 / n), "exact, but"),
        (lambda text, n: torch.ones(n), "for the text .* whose entries sum to"),
        (lambda text, n: ending(2, 1)(text, n + 1), "shape"),
        (lambda text, n: [1 / n] * n, "gives list"),
        (lambda text, n: ending(2, 1)(text, n)[None], r"shape|TypeError"),
        (lambda text, n: text.append(0), "text is changed in place"),
        (lambda text, n: torch.rand(n).softmax(0), "same text|off by"),
        (lambda text, n: ending(2, 1)(text), "stops with TypeError"),
        (no_return, "return` missing"),
    ],
    "accept_prob": [
        (lambda t, d: min(1.0, t / d), ""),
        (lambda t, d: min(t / d, 1), ""),
        (lambda t, d: torch.tensor(t / d).clamp(max=1), ""),
        (lambda t, d: np.minimum(1, t / d), ""),
        (lambda t, d: np.float32(min(1, t / d)), ""),
        (lambda t, d: 1 if t > d else t / d, ""),
        (lambda t, d: torch.tensor(min(1.0, t / d), dtype=torch.float16).float(), ""),
        (lambda t, d: t / d, r"target_prob=0.8, draft_prob=0.2\): expected 1, got 4. .*above 1"),
        (lambda t, d: d / t, "divide draft by target|ZeroDivisionError"),
        (lambda t, d: min(1.0, d / t if t else 9), "divide draft by target"),
        (lambda t, d: max(1.0, t / d), "`max` gives the larger one"),
        (lambda t, d: min(t, d), "not yet divided"),
        (lambda t, d: 1 - t / d, "turning it down"),
        (lambda t, d: t, "has said the word already"),
        (lambda t, d: t >= d, "got False. A word that comes too often is to be kept sometimes"),
        (lambda t, d: random.random() < t / d, "got (True|False). It decides"),
        (lambda t, d: torch.tensor([t / d]).clamp(max=1), r"shape \[1\].*`.item\(\)`"),
        (lambda t, d: print(end=""), "return` missing"),
        (lambda t: t, "TypeError.*arguments must be those"),
        (lambda t, d: f"{t / d}", "got a text"),
        (lambda t, d: min(1.0, t / d) * random.random(), "another the next time"),
        (lambda t, d: min, "gives a function back"),
        (lambda t, d: min(1, target / d), "NameError.*misspelt"),  # noqa: F821
    ],
    "residual": [
        (lambda t, d: (t - d).clamp_min(0) / (t - d).clamp_min(0).sum(), ""),
        (lambda t, d: (t - d).relu() / (t - d).relu().sum(), ""),
        (lambda t, d: torch.nn.functional.normalize((t - d).clamp(min=0), p=1, dim=0), ""),
        (lambda t, d: torch.where(t > d, t - d, 0) / torch.where(t > d, t - d, 0).sum(), ""),
        (lambda t, d: residual(t.float(), d.float()), ""),
        (loop_residual, ""),
        (lambda t, d: torch.maximum(t - d, torch.zeros(len(t))) / (t - d).clamp_min(0).sum(), ""),
        (lambda t, d: t - d, "no entry is below 0"),
        (lambda t, d: (t - d) / (t - d).sum(), "Clamp before you divide"),
        (lambda t, d: (t - d).clamp_min(0), "divide by their sum"),
        (lambda t, d: (t - d).abs() / (t - d).abs().sum(), "must get 0"),
        (lambda t, d: residual(d, t), "exchanged"),
        (lambda t, d: t, "counts the kept guesses twice"),
        (lambda t, d: (t - d).clamp_min(0).softmax(0), "softmax gives every word something"),
        (lambda t, d: torch.minimum(t, d) / torch.minimum(t, d).sum(), "what is kept"),
        (lambda t, d: max(0, t - d), "Boolean value of Tensor.*`clamp_min`"),
        (lambda t, d: residual(t, d)[None], r"shape \[1, 3\]. There is an axis too many"),
        (lambda t, d: (t - d).clamp_min(0)[None], "an axis too many"),
        (lambda t, d: residual(t, d).tolist(), "got a list of 3 things. `torch.tensor"),
        (in_place_clamp, "the result is right, but target_probs is changed in place"),
        (no_return, "return` missing"),
        (lambda t, d: residual(t, d)[:-1], "shapes differ"),
        (lambda t, d: (t - d).clamp_min(0) / (t - d).clamp_min(0).max(), "sums to 1"),
    ],
    "expected_tokens": [
        (lambda a, g: sum(a**k for k in range(g + 1)), ""),
        (lambda a, g: g + 1 if a == 1 else (1 - a ** (g + 1)) / (1 - a), ""),
        (lambda a, g: float((torch.tensor(a) ** torch.arange(g + 1)).sum()), ""),
        (lambda a, g: (np.float32(a) ** np.arange(g + 1)).sum(), ""),
        (lambda a, g: 1 + sum(math.prod([a] * k) for k in range(1, g + 1)), ""),
        (lambda a, g: torch.full((g,), a).cumprod(0).sum() + 1, ""),
        (lambda a, g: (1 - a ** (g + 1)) / (1 - a), "ZeroDivisionError.*right but at rate 1"),
        (lambda a, g: sum(a**k for k in range(g)), "bonus"),
        (lambda a, g: sum(a**k for k in range(1, g + 1)), "own token is missing"),
        (lambda a, g: 1 + a * g, "powers, not multiples"),
        (lambda a, g: a * g, "adds one of its own"),
        (lambda a, g: a**g, "whole draft is kept"),
        (lambda a, g: sum((k + 1) * a**k * (1 - a) for k in range(g + 1)), "not 1 - a"),
        (lambda a, g: [a**k for k in range(g + 1)], "got a list of 6 things"),
        (no_return, "return` missing"),
        (
            lambda a, g: round(theory.expected_tokens(a, g), 2),
            "acceptance_rate=0.8, draft_length=5.*: expected 3.689, got 3.69",
        ),
    ],
    "mbsu": [
        (lambda tau, n, c: tau / (1 + c * n), ""),
        (lambda tau, n, c: tau * 1 / (n * c + 1), ""),
        (lambda tau, n, c: torch.tensor(tau) / (1 + torch.tensor(c) * n), ""),
        (lambda tau, n, c: np.float32(tau) / np.float32(1 + c * n), ""),
        (lambda tau, n, c: tau / sum([1, *[c] * n]), ""),
        (lambda tau, n, c: tau / (c * n), "target's own pass"),
        (lambda tau, n, c: tau / (c * n) if n else 9, "target's own pass|expected"),
        (lambda tau, n, c: tau / (1 + c), "several times"),
        (lambda tau, n, c: c * tau / (1 + c * n), "below the fraction bar only"),
        (lambda tau, n, c: tau / (1 + n), "costs less than a target pass"),
        (lambda tau, n, c: (1 + c * n) / tau, "cost of one token"),
        (lambda tau, n, c: tau * (1 + c * n), "divide by what a block costs"),
        (lambda tau, n, c: tau, "not in it yet"),
        (lambda tau, n, c: tau - c * n, "not taken away"),
        (lambda tau, n, c: tau / 1 + c * n, "expected 2.366, got 2.642"),
        (lambda tau, n: tau, "TypeError"),
        (no_return, "return` missing"),
    ],
    "entropy_bound": [
        (lambda p, f: 1 - (f * float(torch.special.entr(p).sum())) ** 0.5, ""),
        (lambda p, f: 1 - (f * entropy(p)).sqrt(), ""),
        (lambda p, f: 1 - (f * torch.distributions.Categorical(probs=p).entropy()).sqrt(), ""),
        (lambda p, f: 1 - math.sqrt(f * -sum(x * math.log(x) for x in p.tolist() if x)), ""),
        (lambda p, f: 1 - (f * -(p * p.log()).nan_to_num(0).sum()).sqrt().float(), ""),
        (lambda p, f: 1 - (f * -torch.xlogy(p, p).sum()).sqrt().item(), ""),
        (lambda p, f: 1 - (f * entropy(p) / math.log(2)).sqrt(), "in bits"),
        (lambda p, f: float(1 - (f * -(p * p.log()).sum()).sqrt()), "0 \\* log 0 has no value"),
        (lambda p, f: 1 - (f * -(p * (p + 1e-9).log()).sum()).sqrt(), "tiny number"),
        (
            lambda p, f: 1 - (f * float(-(p * (p + 1e-9).log()).sum())) ** 0.5,
            "a number below 0: is a sum negative by rounding",
        ),
        (lambda p, f: 1 - f * entropy(p), "by a root"),
        (lambda p, f: (f * entropy(p)).sqrt(), "acceptance is 1 minus it"),
        (lambda p, f: max(0.0, float(1 - (f * entropy(p)).sqrt())), "do not clamp it"),
        (lambda p, f: 1 - f * entropy(p).sqrt(), "stands under the root"),
        (lambda p, f: 1 - entropy(p).abs().sqrt(), "factor is missing"),
        (lambda p, f: 1 - (f * (p * p.clamp_min(1e-12).log()).sum()).sqrt(), "without the minus"),
        (lambda p, f: entropy(p), "entropy alone"),
        (lambda p, f: 1 - math.sqrt(f * -(p * p.log())), "one number|Python scalars"),
        (lambda p, f: 1 - (f * -(p * (p + 1e-9).log())).sqrt(), "Give one number"),
        (no_return, "return` missing"),
    ],
    "threshold_update": [
        (update, ""),
        (lambda *a: list(update(*a)), ""),
        (lambda *a: torch.tensor(update(*a)), ""),
        (lambda *a: tuple(map(np.float32, update(*a))), ""),
        (lambda *a: tuple(torch.tensor(x) for x in update(*a)), ""),
        (lambda *a: update(*a, sign=-1), "threshold goes up"),
        (lambda *a: update(*a, beta2=0.0), "a tenth of the step"),
        (lambda *a: update(*a, beta2=0.1), "nine tenths"),
        (lambda *a: update(*a, old=True), "the new running acceptance"),
        (lambda *a: update(*a)[::-1], "exchanged: give threshold first, then acceptance"),
        (lambda *a: update(*a)[0], "Give 2 results, threshold and acceptance"),
        (lambda t, a, n, k, m: (t, a), "the threshold: expected 0.401, got 0.4"),
        (lambda t, a, n, k, m: (t, 0.5 * a + 0.5 * k / n), "threshold has not moved"),
        (lambda t, a, n, k, m: (update(t, a, n, k, m)[0], k / n), "expected"),
        (lambda t, a, n, k, m: update(t, a, m, k, m), "expected"),
        (no_return, "return` missing"),
        (lambda *a: (*update(*a), 0), "Give 2 results"),
    ],
    "gumbel_top_k": [
        (lambda p, g, k: (p.log() + g).topk(k).indices, ""),
        (lambda p, g, k: (g + torch.log(p)).topk(k)[1], ""),
        (lambda p, g, k: (p.log() + g).argsort(descending=True)[:k], ""),
        (lambda p, g, k: (p.float().log() + g.float()).sort(descending=True).indices[:k], ""),
        (lambda p, g, k: (-(p.log() + g)).argsort()[:k], ""),
        (lambda p, g, k: torch.tensor(sorted(range(6), key=lambda i: -p[i].log() - g[i])[:k]), ""),
        (lambda p, g, k: (p.log() + g).topk(k), "topk` gives values and indices"),
        (lambda p, g, k: (p.log() + g).topk(k).values, "give the token ids"),
        (lambda p, g, k: (p + g).topk(k).indices, "logarithms"),
        (lambda p, g, k: p.topk(k).indices, "nothing is drawn"),
        (lambda p, g, k: g.topk(k).indices, "probabilities do not enter"),
        (lambda p, g, k: (p.log() - g).topk(k).indices, "added, not taken away"),
        (lambda p, g, k: (p.log() + g).topk(k).indices.sort().values, "their order counts"),
        (lambda p, g, k: (p.log() + g).argsort()[:k], "begin with the smallest"),
        (lambda p, g, k: (p.log() + g).topk(k).indices.tolist(), "`torch.tensor"),
        (lambda p, g, k: (p.log() + g).topk(k).indices[None], "axis too many"),
        (lambda p, g, k: torch.multinomial(p, k), "another the next time|expected"),
        (lambda p, g, k: (p.log_() + g).topk(k).indices, "probs is changed in place"),
        (lambda p, g, k: (p.log() + g).argmax(), "shapes differ"),
        (no_return, "return` missing"),
    ],
    "rejection_step": [
        (lambda t, d, x: (residual(t, d), own_removed(t, d, x)), ""),
        (lambda t, d, x: torch.stack([residual(t, d), own_removed(t, d, x)]), ""),
        (lambda t, d, x: [residual(t.float(), d.float()), own_removed(t, d, x)], ""),
        (
            lambda t, d, x: (
                residual(t, d),
                d * (torch.arange(len(d)) != x) / (1 - d[x]),
            ),
            "",
        ),
        (lambda t, d, x: (residual(t, d), own_removed(t, d, x).float()), ""),
        (lambda t, d, x: (own_removed(t, d, x), residual(t, d)), "exchanged: give target's"),
        (lambda t, d, x: (residual(t, d), d), "second time"),
        (lambda t, d, x: (residual(t, d), d * (torch.arange(len(d)) != x)), "sum to 1 again"),
        (lambda t, d, x: (t, own_removed(t, d, x)), "must become the residual"),
        (
            lambda t, d, x: (residual(t, own_removed(t, d, x)), own_removed(t, d, x)),
            "drawn from",
        ),
        (lambda t, d, x: (residual(d, t), own_removed(t, d, x)), "exchanged in the residual"),
        (lambda t, d, x: ((t - d).clamp_min(0), own_removed(t, d, x)), "residual must sum to 1"),
        (lambda t, d, x: (t - d, own_removed(t, d, x)), "No entry of the residual is below 0"),
        (removed_in_place, "right, but draft is changed in place"),
        (lambda t, d, x: own_removed(t, d, x), "Give 2 results"),
        (lambda t, d, x: (residual(t, d)[None], own_removed(t, d, x)), "an axis too many"),
        (no_return, "return` missing"),
    ],
    "path_weights": [
        (weights, ""),
        (lambda t, d: weights(t, d).float(), ""),
        (lambda t, d: torch.stack([*weights(t, d)]), ""),
        (weights_by_loop, ""),
        (lambda t, d: torch.tensor(weights_by_loop(t, d).tolist()), ""),
        (lambda t, d: (t / d).clamp_max(1.0).cumprod(0), "This is the token rule"),
        (lambda t, d: (t / d).cumprod(0).clamp_max(1.0), "capped at 1 before it goes on"),
        (lambda t, d: (t / d).cumprod(0), "never above 1"),
        (lambda t, d: (t / d).clamp_max(1.0), "carries that of the shorter one"),
        (lambda t, d: weights(d, t), "expected"),
        (lambda t, d: weights(t, d)[-1], "shapes differ|expected"),
        (no_return, "return` missing"),
    ],
    "end_test": [
        (ends, ""),
        (lambda w, t, d: torch.tensor(ends(w, t, d)), ""),
        (lambda w, t, d: np.float32(ends(w, t, d)), ""),
        (lambda w, t, d: ends(w, t.float(), d.float()), ""),
        (lambda w, t, d: 1.0 if w == 1 else 1 - (1 - w) / (1 - w + wanted(w * t, d)), ""),
        (lambda w, t, d: w, "said already with what hung on it"),
        (lambda w, t, d: wanted(w * t, d), "a share of rest \\+ 1 - weight gets here"),
        (lambda w, t, d: wanted(t, d) / (wanted(t, d) + 1 - w), "wants only a share `weight`"),
        (lambda w, t, d: wanted(w * t, d) / (wanted(w * t, d) + 1 - w), "0 / 0"),
        (lambda w, t, d: 1 - ends(w, t, d), "expected"),
        (no_return, "return` missing"),
    ],
    "choose_slots": [
        (two_stages(), ""),
        (two_stages(2), ""),
        (by_pieces, ""),
        (lambda *a: two_stages()(*a).tolist(), ""),
        (lambda q, m, look, b: set(map(int, two_stages()(q.float(), m.float(),
                                                         lambda s: look(s).float(), b))), ""),
        (two_stages(1), "25% more than whole chunks"),
        (two_stages(4), "96 keys; 72 are allowed"),
        (two_stages(cut=False), "the budget is 24"),
        (two_stages(numbers=True), "the budget is 24"),
        (lambda q, m, look, b: torch.arange(256 - b, 256), "25% more than whole chunks"),
        (lambda q, m, look, b: (look(range(256)) @ q).topk(b).indices, "are allowed"),
        (lambda q, m, look, b: torch.zeros(b), "slot 0 twice"),
        (lambda q, m, look, b: torch.arange(256) < b, "truth values"),
        (lambda q, m, look, b: range(240, 240 + b), "slots have the numbers 0 to 255"),
        (lambda q, m, look, b: m @ q.topk(b), "stops with"),
        (lambda q, m, look, b: 3, "give numbers of slots"),
        (no_return, "return` missing"),
    ],
    "one_of_two": [
        (of_two(), ""),
        (k_seq, ""),
        (lambda *a: torch.tensor(of_two()(*a)), ""),
        (lambda p, q, *more: of_two()(p.float(), q.float(), *more), ""),
        (judged_two.recursive, "surpass recursive rejection"),
        (of_two(better=False), "surpass recursive rejection"),
        (of_two(own=False, rest=False), "You have chosen the draft"),
        (of_two(rest=False), r"more than the \*chosen\* draft"),
        (judged_two._forgetful, "has become the residual"),
        (lambda p, q, drafts, accept, draw: draw(p), "surpass recursive rejection"),
        (lambda p, q, drafts, accept, draw: drafts[0], "instead of"),
        (lambda p, q, drafts, accept, draw: draw(p - q), "without negative numbers"),
        (lambda p, q, drafts, accept, draw: draw(p / 2), "sum to 0.5"),
        (lambda p, q, drafts, accept, draw: accept(p[0] - q[0] - 1), "from 0 to 1"),
        (lambda p, q, drafts, accept, draw: drafts, "no token id"),
        (lambda p, q, drafts, accept, draw: 7, "no token id from 0 to"),
        (lambda p, q, drafts, accept, draw: drafts[2], "IndexError"),
        (no_return, "return` missing"),
    ],
    "sink_recent_mask": [
        (masked(lambda i, n, b, s: (i < s) | (i >= n - (b - s))), ""),
        (masked(lambda i, n, b, s: ~((i >= s) & (i < n - b + s))), ""),
        (lambda n, b, s: torch.tensor([i < s or i >= n - b + s for i in range(n)]), ""),
        (masked(lambda i, n, b, s: torch.where(i < s, True, i >= n - b + s)), ""),
        (lambda n, b, s: torch.cat([torch.ones(n)[:s], latest(n, b, s)]).bool(), ""),
        (  # as an index these would be slots 0 and 1
            lambda n, b, s: ((torch.arange(n) < s) | (torch.arange(n) >= n - b + s)).int(),
            r"`\.bool\(\)`",
        ),
        (masked(lambda i, n, b, s: (i < s) | (i >= n - b)), "part of the budget"),
        (masked(lambda i, n, b, s: (i < s) & (i >= n - (b - s))), r"first \*or\* one"),
        (masked(lambda i, n, b, s: (i <= s) | (i >= n - (b - s))), "sink too many"),
        (masked(lambda i, n, b, s: (i < s) | (i > n - (b - s))), "latest is missing"),
        (masked(lambda i, n, b, s: (i > s) & (i < n - (b - s))), "expected"),
        (masked(lambda i, n, b, s: i < b), "the first slots"),
        (masked(lambda i, n, b, s: i >= n - b), "the latest slots"),
        (masked(lambda i, n, b, s: ~((i < s) | (i >= n - (b - s)))), "true where a slot is read"),
        (
            lambda n, b, s: torch.tensor([i for i in range(n) if i < s or i >= n - b + s]),
            "shapes differ|numbers of the slots",
        ),
        (lambda n, b, s: (torch.arange(n) < s) or (torch.arange(n) >= n - b), "single numbers"),
        (no_return, "return` missing"),
    ],
    "speculate": [
        (my_loop, ""),
        (loop(), ""),
        (lambda *a: [torch.tensor(my_loop(*a)[0]), my_loop(*a)[1]], ""),
        (lambda *a: (tuple(my_loop(*a)[0]), np.int64(my_loop(*a)[1])), ""),
        (lambda t, d, p, g, n: my_loop(t, d, tuple(p), g, n), ""),
        (loop(bonus=True), "one more token to give"),
        (loop(keep=True), "replaced by the target's token"),
        (loop(long=True), "cut it off"),
        (loop(start=True), "from the text as it stands now"),
        (loop(bonus=True, start=True), "as it stands now, not from the prompt"),
        (loop(each=1), "count once per block"),
        (loop(on=True), "the others mean nothing"),
        (keeps_prompt, "without the prompt"),
        (changes_prompt, "prompt is changed in place"),
        (lambda *a: my_loop(*a)[::-1], "are exchanged"),
        (lambda *a: my_loop(*a)[0], "Give 2 results|results"),
        (never_ends, "does the loop ever end"),
        (no_return, "return` missing"),
    ],
    "expected_calls": [
        (lambda accept, length: calls_from(0, accept, length), ""),
        (lambda a, length: np.float32(calls_from(0, a, length)), ""),
        (lambda a, length: torch.tensor(calls_from(0, a, length)), ""),
        (lambda a, length: calls_from(0, list(a), length), ""),
        (lambda a, length: calls_from(0, tuple(a), min(length, len(a))), ""),
        (lambda a, length: unclipped(a, length), ""),
        (lambda a, length: sum(1 - x for x in a), "rejections alone"),
        (lambda a, length: 1 + sum(1 - x for x in a), "where its draft does"),
        (lambda a, length: len(a), "one call a token"),
        (lambda a, length: len(a) / (length + 1), "if every guess were kept"),
        (
            lambda a, length: len(a) / theory.expected_tokens(sum(a) / len(a), length),
            "go through the text",
        ),
        (lambda a, length: calls_from(0, a, length) - 1, "The first call counts"),
        (lambda a, length: len(a) / calls_from(0, a, length), "give the number of calls"),
        (lambda a, length: len(a) + 1.0, "every call brings one at least"),
        (lambda a, length: calls_from(0, [a.pop(0), *a], length), "changed in place|IndexError"),
        (lambda a, length: a[1] * length, "IndexError"),
        (no_return, "return` missing"),
    ],
    "tvdpp_advantage": [
        (lambda t, d: scaled((t > d).double(), d), ""),
        (lambda t, d: scaled((t > d).float(), d), ""),
        (lambda t, d: scaled(torch.where(t > d, 1.0, 0.0), d), ""),
        (lambda t, d: scaled((t - d).sign().clamp_min(0), d), ""),
        (lambda t, d: of_mass((t > d).double(), d[t > d].sum()), ""),
        (lambda t, d: (t > d).double(), "reward alone"),
        (lambda t, d: (t > d).double() - d[t > d].sum(), "Divide by the deviation"),
        (lambda t, d: scaled((t > d).double(), torch.ones(len(d)) / len(d)), "weigh with its"),
        (lambda t, d: scaled((t > d).double(), t), "not the target's"),
        (lambda t, d: scaled((t < d).double(), d), "the target gives a token"),
        (lambda t, d: scaled((t >= d).double(), d), "nothing to gain"),
        (lambda t, d: d * scaled((t > d).double(), d), "the weighing comes with the loss"),
        (lambda t, d: scaled(t - d, d), "1 or 0"),
        (no_return, "return"),
    ],
    "lk_loss": [
        (lk_right, ""),
        (lambda t, d, eta: lk_right(t.float(), d, eta), ""),
        (lambda t, d, eta: lk_right(t.log_softmax(-1), d.log_softmax(-1), eta), ""),
        (lambda t, d, eta: lk_right(t, d, eta, detached=False), "the gradient is not"),
        (lambda t, d, eta: lk_right(d, t, eta), "value"),
        (lambda t, d, eta: lk_right(t, d, 1.0), "eta is missing"),
        (lambda t, d, eta: lk_right(t, d, eta, twice=2), "half of the sum"),
        (lambda t, d, eta: lk_right(t, d, eta, swap=True), "near 1 where alpha is small"),
        (lambda t, d, eta: float(lk_right(t, d, eta)), "2 results|two results"),
        (lambda t, d, eta: lk_right(t, d.detach(), eta), "gradient"),
        (lambda t, d, eta: torch.stack([lk_right(t, d, eta)] * 3), "2 results"),
        (no_return, "return"),
    ],
    "verify_step": [
        (RIGHT_STEP, ""),
        (with_indices, ""),
        (in_float32, ""),
        (step_of(lambda i, x, p, q: (ratio(i, x, p, q), residual(p[i], q[i]))), ""),  # without min
        (lambda *a: tuple(np.array(RIGHT_STEP(*a))), ""),
        (judged_rule.reference, ""),
        (step_of(lambda i, x, p, q: (min(1.0, ratio(i, x, p, q)), p[i])), "filled a part"),
        (step_of(lambda i, x, p, q: (min(1.0, ratio(i, x, p, q)), q[i])), "drafter's distribution"),
        (
            step_of(lambda i, x, p, q: (min(1.0, ratio(i, x, p, q)), residual(p[i + 1], q[i]))),
            "row i of target_probs, not i \\+ 1",
        ),
        (
            step_of(lambda i, x, p, q: (min(1.0, ratio(i, x, p, q)), residual(p[-1], q[i]))),
            "row i of target_probs",
        ),
        (
            step_of(lambda i, x, p, q: (min(1.0, q[i, x] / p[i, x]), residual(p[i], q[i]))),
            "divide draft by target|probability is a number",
        ),
        (
            step_of(lambda i, x, p, q: (p[i, x], residual(p[i], q[i]))),
            "the drafter has said it already",
        ),
        (
            step_of(
                lambda i, x, p, q: (min(1.0, ratio(i, x, p, q)), (p[i] - q[i]).clamp_min(0))
            ),
            "numbers that sum to 0.*sums to 1",
        ),
        (
            step_of(lambda i, x, p, q: (min(1.0, ratio(i, x, p, q)), p[i] - q[i])),
            "given a negative number",
        ),
        (own_uniforms, "only randomness|accept is never asked"),
        (goes_on, "the others mean nothing"),
        (no_bonus, "as a bonus, after all"),
        (no_correction, "in place of a guess"),
        (by_drawing, "keeps fewer guesses than it may: 1"),
        (likeliest, "the last token is the one from draw"),
        (no_return, "return` missing"),
        (lambda tokens, q, p, accept, draw: 3, "no list of token ids"),
        (lambda tokens, q, p, accept, draw: tokens + q, "with tokens=.* stops with TypeError"),
        (lambda tokens, q, p, accept, draw: [*tokens, draw(q[-1] if len(q) else p[0])],
         "never asked"),
        (lambda tokens, q, p, accept, draw: [*tokens, draw(p[:1])], r"shape \[1, 3\]"),
    ],
}  # fmt: skip

ENUMERATED = ("verify_step", "bold_draw", "next_probs")  # outcome by outcome, which takes longer
CASES = [
    pytest.param(
        name,
        function,
        message,
        id=f"{name}-{number}",
        marks=[pytest.mark.slow] if name in ENUMERATED else [],
    )
    for name, group in ANSWERS.items()
    for number, (function, message) in enumerate(group)
]


def test_ten_answers_for_every_exercise():
    for name, group in ANSWERS.items():
        assert len(group) >= 10 and sum(not message for _, message in group) >= 3, name


@pytest.mark.parametrize("name, function, message", CASES)
def test_answer(name, function, message):
    check = getattr(checks, name)
    result, words = said(check, function)
    if not message:
        assert result is function and ("cases right" in words or "exact" in words), words
        assert check(function, strict=True) is function
        return
    assert re.search(message, words, re.S), words
    assert result is not function and "goes on with the reference" in words
    told = re.search(r"expected (.*?), got (.*?)\.( |\n)", words)
    assert not told or told[1] != told[2], "what looks equal is shown as different"
    with pytest.raises(AssertionError):
        check(function, strict=True)
    again, words = said(check, result)  # as a check cell that is run a second time
    assert again is result and "this is the reference" in words and "right" not in words
    with pytest.raises(AssertionError, match="not your answer"):
        check(result, strict=True)


@pytest.mark.parametrize("name", ANSWERS)
def test_not_written_yet(name):
    def stub(*arguments):
        raise NotImplementedError("Exercise 1: ...")

    result, words = said(getattr(checks, name), stub)
    assert "not written yet" in words and result is not stub


@pytest.mark.parametrize("name", ANSWERS)
@pytest.mark.parametrize("answer", [None, "text", torch.ones(7), {}, [1, 2], float("nan"), True])
def test_checks_survive_any_answer(name, answer):
    result, words = said(getattr(checks, name), lambda *arguments: answer)
    assert callable(result) and "goes on with the reference" in words


@pytest.mark.parametrize("name", ANSWERS)
def test_what_is_no_function(name):
    result, words = said(getattr(checks, name), 0.25)
    assert callable(result) and "give the function itself" in words


def test_a_hint_explains_every_case():
    """In the first case this answer is that of draft / target, clamped; in others it is not."""
    _, words = said(checks.accept_prob, lambda t, d: max(1.0, t / d))
    assert "divide draft by target" not in words
    _, words = said(checks.threshold_update, lambda *a: update(*a, old=True))
    assert "goes up" not in words


def test_digits_until_the_difference_shows():
    _, words = said(checks.accept_prob, lambda t, d: min(1.0, t / d) + 1.2e-4 * (t == 0.06))
    assert "expected 0.06667, got 0.06679" in words
    assert answers._apart(1 / 3, 1 / 3 + 1e-8, ()) == "expected 0.3333333333, got 0.3333333433."


def test_a_long_row_names_its_entry():
    wide = torch.full((100,), 0.01, dtype=torch.float64)
    other = wide.clone()
    other[7] = 0.5
    assert answers._apart(wide, other, ()) == "entry 7: expected 0.01, got 0.5."


# ---- numbers that are said beforehand


@pytest.mark.parametrize("guess, words", [
    (..., "write your own number down first"),
    (None, "write your own number down first"),
    ("3", "your guess is a text"),
    (float("nan"), "write a number"),
    (3, "tokens of this call: 3; you said 3, close"),
    (2, "tokens of this call: 3; you said 2. Two guesses"),
])  # fmt: skip
def test_a_number_said_beforehand(guess, words):
    assert words in said(checks.tokens_of_a_call, guess)[1]


def test_the_boat():
    target, draft = torch.tensor([0.2, 0.8]), torch.tensor([0.4, 0.6])
    assert "0.5; you said 0.51, close" in said(checks.keep_boat, 0.51, target, draft)[1]
    assert "0.5; you said 0.2. Proposed 0.400" in said(checks.keep_boat, 0.2, target, draft)[1]
    assert "1; you said 1" in said(checks.keep_boat, 1, draft, target)[1]


def test_siblings_said_beforehand():
    words = said(checks.third_token, 0.3)[1]
    assert "0.2929; you said 0.3, close. First with 0.1, else second: 0.15 + 0.043" in words
    words = said(checks.second_sibling, 0.5)[1]
    assert "0.4; you said 0.5. The target wants the first token alone" in words


def test_a_measured_number():
    assert said(checks.predicted, 0.3, 0.31, "seen words kept")[1] == (
        "seen words kept: 0.31; you said 0.3, close.\n"
    )
    assert said(checks.predicted, 0.3, None, "seen words kept")[1] == ""


# ---- the verify step


def test_the_step_decodes():
    """As a rule of a chain it gives the law, and the record of its looks, of the built-in one."""
    models = judged_rule._models(2)
    for step in (RIGHT_STEP, with_indices, in_float32):
        drafter = Chain(2, verify=checks.as_rule(step))
        law = exact.law(*models, drafter, Sampling(1.0), 3)
        wanted = exact.target_law(models[0], Sampling(1.0), 3)
        assert float((law.probs - wanted).abs().max()) < 1e-6
        assert law.outcomes == exact.law(*models, Chain(2), Sampling(1.0), 3).outcomes


def test_the_step_ends_at_an_end_token():
    tree = _tree([1, 2])
    rows = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    rule = checks.as_rule(RIGHT_STEP)
    found = rule(tree, rows[0], rows[[1, 0]], Draws(0), {2})
    assert found.path == (0, 1) and found.token is None and found.final is None
    assert rule(tree, rows[0], rows[[1, 0]], Draws(0), set()).final == "bonus"


def test_the_step_is_for_chains():
    with pytest.raises(ValueError, match="for chains"):
        checks.as_rule(RIGHT_STEP)(_tree([1, 2], (-1, -1)), *[None] * 4)


def _tree(tokens, parents=None):
    probs = torch.nn.functional.one_hot(torch.tensor(tokens), 3).double()
    return verify.DraftTree(tuple(tokens), parents or tuple(range(-1, len(tokens) - 1)), probs)


def test_the_judge_notices_a_planted_bug(monkeypatch):
    """The largest difference and the first context come from the law, and not from a table."""
    monkeypatch.setattr(judged_rule, "residual", lambda target, draft: target)
    _, words = said(checks.verify_step, judged_rule.reference)
    error = float(re.search(r"texts of 2 tokens: ([\d.]+\d)", words)[1])
    law = judged_rule._law(judged_rule.reference, judged_rule.SETTINGS[0])
    wanted = exact.target_law(judged_rule._models(1)[0], Sampling(1.0), 2)
    assert error == pytest.approx(float((law - wanted).abs().max()), abs=1e-4) and error > 0.01
    assert "It shows first at the very start: token" in words


@pytest.mark.slow
def test_every_hint_of_the_step_can_be_given():
    for wrong, hint in judged_rule.MISTAKES:
        _, words = said(checks.verify_step, wrong)
        assert hint in words or "never asked" in words, hint


def test_arguments_are_named_as_in_the_notebook():
    for name in ANSWERS:
        assert inspect.signature(getattr(checks, name)).parameters["strict"].default is False
