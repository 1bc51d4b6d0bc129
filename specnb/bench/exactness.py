"""Is the output provably the target's? Exact laws, greedy equality, and a sampled law.

Greedy rows are kept in `runs/bench/`, so that a run that was stopped goes on; they are tied to
the weights and the code that they were measured on.
"""

from __future__ import annotations

import copy
from collections import Counter
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest import mock

import torch
from tqdm.auto import tqdm

import specnb as sn
from specnb import exact
from specnb.bench import KEPT, runs_as
from specnb.decode import next_block
from specnb.measure import RowCache
from specnb.measure.rows import Setting, method_key, models_of, prompt_key
from specnb.models import TableModel
from specnb.scenes import TASKS, examples

N_PROMPTS, N_SAMPLED, N_CONTROL, N_BEAM = 200, 20_000, 2_000, 200_000
MAX_NEW_TOKENS = 110


METHODS = (  # drafter, vocabulary size; all enumerated with two tokens and more
    (sn.Chain(2), 5),
    (sn.Chain(3), 3),
    (sn.Chain(3, stop=sn.AdaEDL(0.4, epsilon=0.5, beta2=0.0)), 3),
    (sn.Chain(3, stop=sn.MaxConfidence(0.5, epsilon=0.5, beta2=0.0)), 3),
    (sn.GumbelTopK((2, 1)), 4),
    (sn.GumbelTopK((2, 2)), 3),
    (sn.GumbelTopK((2, 2), stop=sn.AdaEDL(0.4, adaptive=False)), 3),
    (sn.IIDTree((2, 1)), 3),
    (sn.IIDTree((3,), verify="kseq"), 3),
    (sn.TopKTree((2, 2)), 4),
    (sn.Chain(2, verify="block"), 4),
    (sn.Chain(3, verify="block"), 3),
    (sn.Chain(4, verify="block"), 2),
    (sn.Chain(3, verify="block", stop=sn.AdaEDL(0.4, epsilon=0.5, beta2=0.0)), 3),
    (sn.GumbelTopK((2, 1), verify="traversal"), 3),
    (sn.GumbelTopK((2, 2), verify="traversal"), 3),
    (sn.GumbelTopK((2, 2, 1), verify="traversal"), 2),
    (sn.TopKTree((2, 2), verify="traversal"), 4),
    (sn.StaticTree((-1, -1, 0), verify="traversal"), 3),
    (sn.BestFirst(4, 0.05, 0.15, 3), 3),
    (sn.BestFirst(4, 0.05, 0.15, 3, verify="traversal"), 3),
    (sn.BranchWhereUnsure(2, 2, 0.8, 4), 3),
    (sn.PromptLookup(2, 3), 4),
    (sn.Either(sn.PromptLookup(2, 2), sn.Chain(2)), 3),
)
SPARSE = (  # drafters that read a part of the target's cache: on models of the last three tokens
    sn.SparseSelf(sn.SinkRecent(0), 1, 2),
    sn.SparseSelf(sn.SinkRecent(1), 2, 2),
    sn.Hierarchy(sn.Chain(1), sn.SparseSelf(sn.SinkRecent(0), 1, 2)),
    sn.Hierarchy(sn.PromptLookup(1, 2), sn.SparseSelf(sn.SinkRecent(0), 1, 2)),
)
OTHER_FORMATS = ("float16", "bfloat16")  # on a CPU: fp16 weights beside float32 activations
LAW_SAMPLINGS = (
    sn.Sampling(0.0),
    sn.Sampling(0.5, top_p=0.8),
    sn.Sampling(1.0),
    sn.Sampling(1.7, top_k=2),
)


def laws() -> dict:
    """Largest difference between `exact.law` and the target's law over a grid of table models."""
    worst, n, prompt = 0.0, 0, (0, 1, 0)
    tried = [(*one, 1) for one in METHODS] + [(drafter, 2, 3) for drafter in SPARSE]
    for drafter, vocab_size, order in tqdm(tried, desc="laws", leave=False):
        target = TableModel.random(vocab_size, order, seed=1)
        for draft in (TableModel.random(vocab_size, order, seed=2), target):
            for sampling in LAW_SAMPLINGS:
                law = exact.law(target, draft, drafter, sampling, 2, prompt)
                difference = law.probs - exact.target_law(target, sampling, 2, prompt)
                worst, n = max(worst, float(difference.abs().max())), n + 1
    return {"laws": n, "largest_difference": worst}


def beam(n: int, seed: int = 0) -> dict:
    """Stochastic beam search draws continuous noise, so its law is sampled: two tokens, V = 5.

    The bound is twice the mean distance of 200 multinomial samples of the same size.
    """
    target, draft = TableModel.random(5, seed=1), TableModel.random(5, seed=2)
    sampling, drafter = sn.Sampling(1.0), sn.StochasticBeam(2, 2)
    wanted = exact.target_law(target, sampling, 2)
    counts, draws = torch.zeros_like(wanted), sn.Draws(seed)
    for _ in tqdm(range(n), desc="stochastic beam", leave=False, mininterval=2):
        counts[exact.two_tokens(target, draft, drafter, sampling, draws)] += 1
    return {
        "rounds": n,
        "distance": exact.distance(counts / n, wanted),
        "bound": exact.noise_bound(wanted, n),
    }


class Greedy(NamedTuple):
    """One prompt, decoded greedily three times."""

    plain: bool  # equal to plain decoding
    generate: bool  # equal to transformers' generate
    tokens: int
    calls: int


def greedy(pair: sn.Pair, n: int) -> dict:
    """Speculative, plain, and transformers' `generate`, token for token, on n prompts per task."""
    kept = RowCache(KEPT / "exactness.jsonl", Greedy)
    setting = Setting(models_of(pair), sn.Sampling(), None, MAX_NEW_TOKENS)
    method = method_key(sn.Chain())
    peer = sn.load_model(pair.target.path, dtype="float32", runtime="transformers")
    rows = []
    for item in tqdm([item for task in TASKS for item in examples(task, n, 0)], desc="greedy"):
        image = item.image if pair.target.sees_images else None
        key = setting.key(*method, prompt_key(item.prompt, image), 0)
        row = kept.get(key)
        if row is None:
            run = sn.speculative(pair, item.prompt, image, max_new_tokens=MAX_NEW_TOKENS)
            plain = sn.autoregressive(
                pair.target, item.prompt, image, max_new_tokens=MAX_NEW_TOKENS
            )
            row = Greedy(
                run.token_ids == plain.token_ids,
                run.token_ids == generate(peer, item.prompt, image),
                len(run.token_ids),
                len(run.blocks),
            )
            kept.add(key, row)
        rows.append(row)
    return {
        "prompts": len(rows),
        "equal_to_plain": sum(row.plain for row in rows),
        "equal_to_generate": sum(row.generate for row in rows),
        "tokens": sum(row.tokens for row in rows),
        "target_calls": sum(row.calls for row in rows),
    }


class Alike(NamedTuple):
    """A greedy text in a number format: "equal" to plain decoding's, or the tie it parted at."""

    words: str
    tokens: int


def formats(target: str, draft: str, n: int) -> dict[str, dict]:
    """Greedy texts in every other number format against plain decoding in the same one, on n
    prompts per task, and the sampled second token there."""
    kept, found = RowCache(KEPT / "exactness_formats.jsonl", Alike), {}
    for kind in OTHER_FORMATS:
        pair = sn.load_pair(target, draft, dtype=kind)
        setting, method = Setting(models_of(pair), sn.Sampling(), None, MAX_NEW_TOKENS), sn.Chain()
        rows = []
        for item in tqdm([item for task in TASKS for item in examples(task, n, 0)], desc=kind):
            image = item.image if pair.target.sees_images else None
            key = setting.key(*method_key(method), prompt_key(item.prompt, image), 0)
            row = kept.get(key)
            if row is None:
                more: dict[str, Any] = {"max_new_tokens": MAX_NEW_TOKENS}
                plain = sn.autoregressive(pair.target, item.prompt, image, **more)
                run = sn.speculative(pair, item.prompt, image, drafter=method, **more)
                words = exact.same_greedy(pair.target, item.prompt, image, plain, run)
                kept.add(key, row := Alike(words, len(run.token_ids)))
            rows.append(row)
        found[kind] = {
            "prompts": len(rows),
            "equal": sum(row.words == "equal" for row in rows),
            "ties": [row.words for row in rows if row.words != "equal"],
            "second_token": second_token(pair, N_CONTROL if n >= N_PROMPTS else 100 * n),
        }
    return found


def generate(model, prompt: str, image, max_new_tokens: int = MAX_NEW_TOKENS) -> tuple[int, ...]:
    """Greedy output of transformers' own `generate`, end token included."""
    ids, extras = model.encode(prompt, image)
    extra = {name: model.placed(value) for name, value in (extras or {}).items()}
    room = model.max_positions - len(ids)
    output = model.module.generate(
        input_ids=torch.tensor([ids], device=model.device),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long, device=model.device),
        do_sample=False,
        eos_token_id=sorted(model.eos_ids) or None,
        max_new_tokens=min(max_new_tokens, room + 1),
        **extra,
    )
    return tuple(output[0, len(ids) :].tolist())


def second_token(pair: sn.Pair, n: int, temperature: float = 1.0, seed: int = 0) -> dict:
    """Chi-square of the second sampled token against the law from the target's own logits.

    The text is forced up to "In the", so that the two tokens counted from there say a place: the
    drafter must guess, and the residual matters. All runs are forks of one prefilled context.
    p-value by the chi-square law; cells with fewer than five expected counts are pooled.
    """
    item = max(examples("caption", 20, seed), key=lambda item: len(item.scene.things))
    image = item.image if pair.target.sees_images else None
    sampling = sn.Sampling(temperature)
    context = pair.target.open(item.prompt, image)
    drafting = sn.Chain(2).start(pair, item.prompt, image, sampling)
    forced = pair.target.tokenizer.encode(
        f" {item.answer.split('.')[0]}. In the", add_special_tokens=False
    )
    context.commit(forced)
    drafting.commit(forced, 0)
    context.forward()
    drafting.context.forward()
    expected = second_law(context, sampling)
    counts: Counter = Counter()
    draws = sn.Draws(seed)
    for _ in tqdm(range(n), desc="second token", leave=False, mininterval=2):
        fork, draft_fork = copy.deepcopy((context, drafting), {id(pair.draft): pair.draft})
        text: tuple[int, ...] = ()
        while len(text) < 2:
            text += next_block(fork, draft_fork, sampling, draws, 8).token_ids
        counts[text[1]] += 1
    statistic, cells = chi_square(counts, expected, n)
    return {"runs": n, "chi_square": statistic, "cells": cells, "p_value": tail(statistic, cells)}


def second_law(context, sampling) -> torch.Tensor:
    """P(second token), summed over every first token that has a probability at all."""
    first = sampling.probs(context.forward().root).double()
    total = torch.zeros_like(first)
    for token in (first > 1e-9).nonzero().flatten().tolist():
        fork = context.copy()
        fork.commit([token])
        total += first[token] * sampling.probs(fork.forward().root).double()
    return total / total.sum()


def chi_square(counts: Counter, law: torch.Tensor, n: int) -> tuple[float, int]:
    """Pearson's statistic and its number of cells; small cells are pooled into one."""
    expected = law * n
    large = [i for i in range(len(law)) if expected[i] >= 5]
    cells = [(counts[i], float(expected[i])) for i in large]
    rest = n - sum(seen for seen, _ in cells), n - sum(wanted for _, wanted in cells)
    if rest[1] >= 5:
        cells.append(rest)
    elif cells:  # too small for a cell of its own: joins the smallest one
        smallest = min(range(len(cells)), key=lambda i: cells[i][1])
        cells[smallest] = (cells[smallest][0] + rest[0], cells[smallest][1] + rest[1])
    return sum((seen - wanted) ** 2 / wanted for seen, wanted in cells), len(cells)


def tail(statistic: float, cells: int) -> float:
    """P(chi-square with cells - 1 degrees of freedom > statistic)."""
    half = torch.tensor([(cells - 1) / 2, statistic / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(half[0], half[1]))


@contextmanager
def planted_bug():
    """After a rejection the target's own law instead of the residual: the usual mistake."""
    with mock.patch("specnb.verify.residual", lambda target_probs, draft_probs: target_probs):
        yield


def measure(target: str = "", draft: str = "", n: int = 0) -> dict:
    """All figures; `n` prompts per task instead of 200 (and n x 100 sampled runs)."""
    pair = sn.load_pair(target, draft, dtype="float32")
    figures: dict[str, Any] = {"runs_as": f"{runs_as(pair.target)}; other formats where named"}
    figures |= {"laws": laws(), "beam": beam(n * 1000 if n else N_BEAM)}
    figures["greedy"] = greedy(pair, n or N_PROMPTS)
    figures["formats"] = formats(target, draft, n or N_PROMPTS)
    figures["second_token"] = second_token(pair, n * 100 if n else N_SAMPLED)
    with planted_bug():
        figures["planted_bug"] = second_token(pair, min(N_CONTROL, n * 100) if n else N_CONTROL)
    rows = figures["greedy"]
    figures["passed"] = bool(
        figures["laws"]["largest_difference"] < 1e-12
        and figures["beam"]["distance"] < figures["beam"]["bound"]
        and rows["equal_to_plain"] == rows["equal_to_generate"] == rows["prompts"]
        and figures["second_token"]["p_value"] > 1e-4
        and figures["planted_bug"]["p_value"] < 1e-4
        and all(row["second_token"]["p_value"] > 1e-4 for row in figures["formats"].values())
    )
    return figures


def table(figures: dict) -> str:
    """The figures as text."""
    law, rows = figures["laws"], figures["greedy"]
    lines = [
        f"exact laws: {law['laws']} methods x laws, largest difference "
        f"{law['largest_difference']:.1e} (bar 1e-12)",
        "stochastic beam: {rounds} rounds, distance to the target's law {distance:.4f} "
        "(bound {bound:.4f})".format(**figures["beam"]),
        f"greedy: {rows['equal_to_plain']}/{rows['prompts']} equal to plain decoding, "
        f"{rows['equal_to_generate']}/{rows['prompts']} equal to transformers' generate "
        f"({rows['tokens']} tokens in {rows['target_calls']} target calls)",
    ]
    for key, name in (("second_token", "second token"), ("planted_bug", "with a planted bug")):
        row = figures[key]
        lines.append(
            f"sampled, {name}: {row['runs']} runs, chi-square {row['chi_square']:.1f} over "
            f"{row['cells']} cells, p = {row['p_value']:.2g}"
        )
    lines += [": ".join(row) for row in _by_format(figures)]
    lines.append("passed" if figures["passed"] else "NOT passed")
    return "\n".join(lines)


def _by_format(figures: dict) -> list[tuple[str, str]]:
    """Claim and what was measured, for every format but float32."""
    lines = []
    for kind, row in figures.get("formats", {}).items():
        apart = len(row["ties"])
        said = f"{row['equal']} of {row['prompts']} prompts"
        said += f"; {apart} part at a tie within rounding" if apart else ""
        second = row["second_token"]
        lines.append((f"greedy output equal to plain decoding, both in {kind}", said))
        lines.append(
            (
                f"second sampled token in {kind}, {second['runs']:,} runs",
                f"p = {second['p_value']:.2f}",
            )
        )
    return lines


def markdown(figures: dict) -> str:
    """The figures for RESULTS.md."""
    law, beam_, rows = figures["laws"], figures["beam"], figures["greedy"]
    second, bug = figures["second_token"], figures["planted_bug"]
    n = rows["prompts"]
    lines = [
        ("claim", "measured"),
        ("---", "---"),
        (
            f"exact distribution of two tokens, {law['laws']} settings on table models: largest "
            "difference to the target's",
            f"{law['largest_difference']:.0e}",
        ),
        (
            f"stochastic beam search, {beam_['rounds']:,} rounds: distance to the target's "
            "distribution (bound: twice the sampling noise)",
            f"{beam_['distance']:.4f} ({beam_['bound']:.4f})",
        ),
        ("greedy output equal to plain decoding", f"{rows['equal_to_plain']} of {n} prompts"),
        (
            "greedy output equal to transformers' `generate`",
            f"{rows['equal_to_generate']} of {n} prompts",
        ),
        (
            "tokens and target calls on these prompts",
            f"{rows['tokens']:,} in {rows['target_calls']:,}",
        ),
        (
            f"distribution of the second sampled token, {second['runs']:,} runs, chi-square over "
            f"{second['cells']} cells",
            f"p = {second['p_value']:.2f}",
        ),
        (
            f"the same with a planted bug (no residual), {bug['runs']:,} runs",
            f"p = {bug['p_value']:.0e}",
        ),
        *_by_format(figures),
    ]
    return "\n".join(f"| {left} | {right} |" for left, right in lines)
