"""Long texts: what a target is worth that drafts for itself over a part of its cache.

Measured: acceptance and block efficiency by budget and selector, and how many keys and values a
draft and a verification read. Computed, apart from that: the memory traffic of Llama-2-7B at 128 K
tokens, whose inputs all stand in `HARDWARE` and `LLAMA2_7B`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import torch
import torch.nn.functional as F

import specnb as sn
from specnb import smollm2, theory
from specnb.bench import KEPT, running_as, runs_as
from specnb.drafters import Drafter, law_of, start
from specnb.measure import Row, RowCache, in_turns, interval, pooled
from specnb.models.selectors import Selector
from specnb.paths import ROOT
from specnb.scenes import is_right, long_examples

ABOUT = (
    "Acceptance and block efficiency say what carries over to long texts; on the small models here "
    "weights cost more than the cache, so no seconds are given. What is computed stands apart from "
    "what was measured, with its inputs."
)
BUDGETS = (12, 16, 32, 64, 128)
DRAFT_LENGTH = 4
LOOKUP = "prompt lookup"
LONGEST = 48  # tokens of an answer
SPARQ = "SparQ, rank dim/4"
SELECTORS: dict[str, Selector] = {  # for heads of 64 components; see `_own`
    "sink + recent": sn.SinkRecent(4),
    "chunks of 4": sn.Chunks(4),
    SPARQ: sn.SparQ(16, 4),
    "last verification": sn.LastVerification(),
}
CELLS = (("dialogue", 256), ("album", 256), ("album", 768))  # task and positions, at least
OF_IMAGES = (1, 9, 18, 36)  # budgets over image slots alone
SAMPLING = sn.Sampling(1.0)
REAL = ROOT.parent / "shared" / "real"
STORY = 320  # tokens of a story that is gone on with
OF_TEXT = (4, 16, 32, 64)  # over text slots alone, beside every image slot
# Tokens of a list of notes, slots read of it, and one of how many prompts is taken.
NOTES = ((2048, (64, 128, 256, 512), 2), (4096, (128, 512), 3))
PLACES = ("kitchen", "garden", "attic", "cellar", "hall", "barn", "library", "yard")
COLOURS = ("red", "blue", "green", "yellow", "white", "black", "brown", "grey")
THINGS = ("lamp", "chair", "ladder", "bottle", "clock", "basket", "hammer", "blanket", "kettle")


def measure(target: str = "", draft: str = "", n: int = 0) -> dict:
    """All figures, on `n` prompts per cell (10), in float32 on one thread; no seconds."""
    with running_as("float32", 1):
        return _measured(target, draft, n)


def _measured(target: str, draft: str, n: int) -> dict:
    pair = sn.load_pair(target, draft, runtime="lean" if target else "auto")
    kept, n = RowCache(KEPT / "long_context.jsonl"), n or 10
    figures: dict[str, Any] = {"n": n, "runs_as": runs_as(pair.target), "cells": []}
    figures |= {"traffic": [], "computed": computed()}
    for task, positions in CELLS if pair.target.sees_images else ():
        items = long_examples(task, n, 21, positions, _length(pair.target))
        label = f"{task}, {positions} positions"
        figures["cells"].append(_cell(kept, pair, items, label) | {"right": _right(pair, items)})
        if (task, positions) == CELLS[-1]:
            figures["traffic"] = [traffic(pair, items[:2], *one) for one in _own(32).items()]
    if REAL.is_dir():
        folders = str(REAL / "stories260K"), str(REAL / "llama2xs-500it")
        real = sn.load_pair(*folders, runtime="lean")
        figures["cells"].append(_cell(kept, real, _stories(real, n), f"stories, {STORY} positions"))
    if smollm2.ready():
        first = sn.load_pair(smollm2.NAME)
        for positions, budgets, of in NOTES:
            items = [
                _notes(seed, positions, _length(first.target)) for seed in range(math.ceil(n / of))
            ]
            label = f"SmolLM2, notes, {positions} positions, {len(items)} prompts"
            figures["cells"].append(_cell(kept, first, items, label, budgets))
            own, name = _own(256)[SPARQ], f"SmolLM2, SparQ, {positions} positions"
            figures["traffic"].append(traffic(first, items[:1], name, own))
    return figures


class Prefilled:
    """A model that reads a prompt once, and gives copies of that context while it is asked for."""

    def __init__(self, model: Any):
        self.model, self.asked = model, ""
        self.context: Any = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def open(self, prompt: Any, image: Any = None) -> Any:
        asked = f"{prompt!r} {id(image)}"
        if asked != self.asked or self.context is None:
            self.asked, self.context = asked, self.model.open(prompt, image)
        return self.context.copy()


def _notes(seed: int, positions: int, length: Any) -> Any:
    """Numbered notes, one of which is to be found and gone on from: find the sentence, continue the
    list. A text alone."""
    rng = random.Random(f"notes {seed}")
    lines: list[str] = []

    def prompt() -> str:
        asked = f"Write note {len(lines) // 3} and the three notes after it, word for word."
        return "\n".join(["Here are my notes.", *lines, asked])

    while length(prompt(), None) < positions:
        what = f"the {rng.choice(COLOURS)} {rng.choice(THINGS)}"
        lines.append(f"Note {len(lines) + 1}: {what} is in the {rng.choice(PLACES)}.")
    return SimpleNamespace(prompt=prompt(), image=None)


def _length(model) -> Any:
    return lambda prompt, image: len(model.encode(prompt, image)[0])


def _right(pair: sn.Pair, items: Sequence) -> float:
    """The share of plain greedy answers that are right: whether the target can read so far."""
    texts = [
        sn.autoregressive(pair.target, item.prompt, item.image, max_new_tokens=64).text
        for item in items
    ]
    return sum(map(is_right, texts, (item.last for item in items))) / len(items)


def _stories(pair: sn.Pair, n: int) -> list:
    """Beginnings that the target itself has written, as no long text comes with it."""
    found = []
    for seed in range(n):
        run = sn.autoregressive(
            pair.target, "Once upon a time", sampling=SAMPLING, max_new_tokens=STORY, seed=seed
        )
        ids = [*pair.target.encode("Once upon a time")[0], *run.token_ids][:STORY]
        found.append(SimpleNamespace(prompt=ids, image=None))
    return found


def _own(budget: int, dim: int = 64) -> dict[str, Drafter]:
    """The four selectors with one budget; SparQ looks at a quarter of a key of `dim` components."""
    selectors = SELECTORS | {SPARQ: sn.SparQ(max(1, dim // 4), 4)}
    return {name: sn.SparseSelf(select, budget, DRAFT_LENGTH) for name, select in selectors.items()}


def _cell(
    kept: RowCache,
    pair: sn.Pair,
    items: Sequence,
    label: str,
    budgets: Sequence[int] = BUDGETS,
) -> dict:
    """Every selector and budget on these prompts; beside them the draft model, a hierarchy, and a
    lookup alone and before either kind of draft."""
    dim = pair.target.llama.shape.head_dim  # type: ignore[attr-defined]  # the lean runtime
    methods: dict[Any, Drafter] = {
        (name, budget): drafter for budget in budgets for name, drafter in _own(budget, dim).items()
    }
    middle = sn.SparseSelf(SELECTORS["chunks of 4"], 32, DRAFT_LENGTH)
    lengths = [_length(pair.target)(item.prompt, item.image) for item in items]
    methods[LOOKUP, 0] = lookup = sn.PromptLookup(3, 8)
    if pair.draft and pair.draft.max_positions > max(lengths) + LONGEST:
        methods["draft model", 0] = chain = sn.Chain(DRAFT_LENGTH)
        methods[f"{LOOKUP}, else the draft model", 0] = sn.Either(lookup, chain)
        methods["hierarchy", 32] = sn.Hierarchy(sn.Chain(1), middle)
    most = max(budgets)
    own = sn.SparseSelf(SELECTORS["chunks of 4"], most, DRAFT_LENGTH)
    methods[f"{LOOKUP}, else chunks of 4", most] = sn.Either(lookup, own)
    if pair.target.sees_images:
        for over, spent in (("images", OF_IMAGES), ("text", OF_TEXT)):
            for budget in spent:
                own = sn.SparseSelf(sn.LastVerification(local=0), budget, DRAFT_LENGTH, over=over)
                methods[f"{over} alone", budget] = own
    read_once: Any = Prefilled(pair.target)
    rows = in_turns(
        sn.Pair(read_once, pair.draft),
        items,
        methods,
        SAMPLING,
        max_new_tokens=LONGEST,
        kept=kept,
        timed=False,
        label=label,
    )
    lines = [{"method": name, "budget": budget, **_figures(rows[name, budget])}
             for name, budget in methods]  # fmt: skip
    return {"label": label, "positions": sum(lengths) / len(lengths), "lines": lines}


def _figures(rows: Sequence[Row]) -> dict[str, Any]:
    """Block efficiency and acceptance rate, with intervals over prompts."""
    prompts = [row.prompt for row in rows]
    accepted, examined = [float(r.accepted) for r in rows], [float(r.examined) for r in rows]
    tokens, calls = [float(r.tokens) for r in rows], [float(r.calls) for r in rows]
    return {
        "block_efficiency": pooled(rows, "block_efficiency"),
        "block_efficiency_interval": interval(tokens, calls, prompts),
        "acceptance_rate": sum(accepted) / max(sum(examined), 1.0),
        "acceptance_interval": interval(accepted, examined, prompts),
    }


# --------------------------------------------------------------------------- what is read


class Traffic(NamedTuple):
    """Bytes of keys and values, per token; see `traffic`."""

    method: str
    budget: int
    draft_counted: float  # per drafted token
    draft_formula: float
    verify_counted: float  # per verification
    verify_formula: float
    per_token: float  # of both, per emitted token, counted
    plain_per_token: float  # of plain decoding at the same lengths, by formula


@contextmanager
def counted_attention() -> Iterator[list[int]]:
    """Counts the numbers of keys and values that the lean runtime's attention is handed."""
    read = [0]
    usual = F.scaled_dot_product_attention

    def counting(query, key, value, **more):
        read[0] += key.numel() + value.numel()
        return usual(query, key, value, **more)

    with mock.patch("specnb.models.llama.F.scaled_dot_product_attention", counting):
        yield read


def traffic(pair: sn.Pair, items: Sequence, name: str, drafter: Any) -> dict:
    """What drafts and verifications read on these prompts, counted, beside the formula."""
    drafted = verified = wanted_draft = wanted_verify = plain = 0.0
    n_drafts = n_calls = n_tokens = 0
    for seed, item in enumerate(items):
        target: Any = pair.target.open(item.prompt, item.image)
        drafting: Any = start(drafter, pair, item.prompt, item.image, SAMPLING, target)
        own, draws, text = drafting.context, sn.Draws(seed), 0
        per_slot, known = _numbers_per_slot(target), 0
        while text < 32:
            before = own.numbers_read
            tree = drafting.propose(draws, 100)
            drafted += own.numbers_read - before
            slots, forwards = own.base, tree.forwards
            wanted_draft += formula(drafter, target, slots, forwards, known)
            known = slots
            with counted_attention() as read:
                scores = target.forward(tree.tokens, tree.parents)
            verified += read[0]
            wanted_verify += per_slot * (slots + 1 + len(tree))
            probs = law_of(target, SAMPLING, torch.cat([scores.root[None], scores.nodes]))
            outcome = sn.verify.verify(tree, probs[0], probs[1:], draws, pair.target.eos_ids)
            said = [tree.tokens[node] for node in outcome.path]
            said += [] if outcome.token is None else [outcome.token]
            target.commit(said)
            drafting.commit(said, len(outcome.path))
            plain += sum(per_slot * (slots + 1 + i) for i in range(len(said)))
            n_drafts, n_calls, n_tokens = n_drafts + forwards, n_calls + 1, n_tokens + len(said)
            text += len(said)
            if said[-1] in pair.target.eos_ids:
                break
    size = target.cache.element_size()
    return Traffic(
        name,
        drafter.budget,
        size * drafted / n_drafts,
        size * wanted_draft / n_drafts,
        size * verified / n_calls,
        size * wanted_verify / n_calls,
        size * (drafted + verified) / n_tokens,
        size * plain / n_tokens,
    )._asdict()


def _numbers_per_slot(target: Any) -> int:
    """Numbers in the keys and values of one slot, over all layers."""
    layers, both, heads, _, dim = target.cache.shape
    return layers * both * heads * dim


def formula(drafter: Any, target: Any, slots: int, forwards: int, known: int) -> float:
    """Numbers that a block of drafts reads over `slots` slots of the target's cache.

    Each forward reads keys and values of the budget and of the drafts so far. On top of that,
    chunks: the mean keys once a block, and each key once for its mean. SparQ: `rank` of `dim`
    components of every key and the mean value in each forward, and each value once for the mean.
    Last verification: every key once a block. `known` slots were there in the block before.
    """
    layers, _, heads, _, dim = target.cache.shape
    budget, select = min(drafter.budget, slots), drafter.select
    if isinstance(select, sn.Chunks) and slots > budget:  # whole chunks, and what is behind them
        tail = slots % select.size
        budget = (budget // select.size - (tail > 0)) * select.size + tail
    read = sum(2.0 * (budget + i + 1) * dim for i in range(forwards))
    if isinstance(select, sn.Chunks):
        whole, before = slots // select.size, known // select.size
        read += (whole + (whole - before) * select.size) * dim
    if isinstance(select, sn.SparQ):
        rank = min(select.rank, dim)
        read += sum((slots + i + 1) * rank + dim for i in range(forwards)) + (slots - known) * dim
    if isinstance(select, sn.LastVerification):
        read += slots * dim
    return layers * heads * read


# ------------------------------------------------------------------------------- computed


class Machine(NamedTuple):
    name: str
    bytes_per_s: float


class Shape(NamedTuple):
    name: str
    parameters: float
    layers: int
    kv_heads: int
    head_dim: int
    bytes_per_number: int

    @property
    def slot_bytes(self) -> float:
        """Keys and values of one token."""
        return 2.0 * self.layers * self.kv_heads * self.head_dim * self.bytes_per_number

    @property
    def weight_bytes(self) -> float:
        return self.parameters * self.bytes_per_number


HARDWARE = Machine("A100 80 GB (SXM)", 2.039e12)
LLAMA2_7B = Shape("Llama-2-7B in fp16", 6.738e9, 32, 32, 128, 2)
SMALL = Shape("Llama-68M in fp16", 68e6, 2, 12, 64, 2)
TOKENS, KEPT_TOKENS, SMALL_TOKENS, OFFERED = 124_928, 4096, 256, 6  # TriForce's own settings
ACCEPTED = (0.8, 0.9, 0.95)  # of a token by the target; the paper says above 0.9
INNER = (0.0, 0.5, 0.8)  # of a token of the small model by the middle level
IN_PAPER = 2.31


def computed() -> dict:
    """By memory traffic alone: every byte once per forward, nothing else takes time."""

    def seconds(shape: Shape, tokens: float) -> float:
        return (shape.weight_bytes + tokens * shape.slot_bytes) / HARDWARE.bytes_per_s

    plain, middle = seconds(LLAMA2_7B, TOKENS), seconds(LLAMA2_7B, KEPT_TOKENS)
    small = seconds(SMALL, SMALL_TOKENS)
    lines = []
    for inner in INNER:
        # A round of the middle level is one forward; one small draft, where there is a small model.
        rounds = OFFERED / (1.0 + inner)
        block = plain + rounds * (middle + (small if inner else 0.0))
        for rate in ACCEPTED:
            said = theory.expected_tokens(rate, OFFERED)
            lines.append({"accepted": rate, "inner": inner, "speed_up": said * plain / block})
    per_slot, keys = LLAMA2_7B.slot_bytes, LLAMA2_7B.slot_bytes / 2
    select_gb = {
        "sink + recent": 0.0,
        "chunks of 8, once a block": TOKENS / 8 * keys / 1e9,
        "SparQ, rank 16, every token": TOKENS * keys * 16 / LLAMA2_7B.head_dim / 1e9,
        "last verification, once a block": TOKENS * keys / 1e9,
    }
    return {
        "inputs": {
            "machine": HARDWARE._asdict(),
            "target": LLAMA2_7B._asdict(),
            "small": SMALL._asdict(),
            "tokens": TOKENS,
            "budget": KEPT_TOKENS,
            "offered": OFFERED,
        },
        "weights_gb": LLAMA2_7B.weight_bytes / 1e9,
        "cache_gb": TOKENS * per_slot / 1e9,
        "budget_gb": KEPT_TOKENS * per_slot / 1e9,
        "select_gb": select_gb,
        "plain_ms": 1e3 * plain,
        "middle_ms": 1e3 * middle,
        "small_ms": 1e3 * small,
        "lines": lines,
        "in_paper": IN_PAPER,
    }


# ---------------------------------------------------------------------------------- text


def table(figures: Mapping[str, Any]) -> str:
    """The figures as Markdown; what is computed stands apart."""
    lines = [
        f"Measured at T = 1, draft length {DRAFT_LENGTH}, {figures['n']} prompts each, where no "
        "other number is named: block efficiency and acceptance rate (95 % over prompts). The "
        "budget is the number of slots that a draft reads; among *images alone* or *text alone* "
        "all others are read besides."
    ]
    for cell in figures["cells"]:
        right = ""
        if "right" in cell:
            right = f"; {cell['right']:.0%} of the target's own greedy answers are right"
        lines += ["", f"**{cell['label']}** (mean {cell['positions']:.0f}){right}", ""]
        lines += _by_budget([row for row in cell["lines"] if row["method"] in SELECTORS])
        if others := [row for row in cell["lines"] if row["method"] not in SELECTORS]:
            lines += [
                "",
                "| beside them | slots | block efficiency | acceptance |",
                "|---|---|---|---|",
            ]
            lines += [
                f"| {row['method']} | {row['budget'] or _unlimited(row['method'])} | "
                f"{_with_ends(row, 'block_efficiency')} | {_with_ends(row, 'acceptance')} |"
                for row in others
            ]
    if figures["traffic"]:
        lines += ["", "Keys and values read, in kB: counted, and by formula in brackets.", ""]
        lines += [
            "| method | budget | per draft | per verification | per token | plain, per token |"
        ]
        lines += ["|---|---|---|---|---|---|"]
    for row in figures["traffic"]:
        of_draft, of_call = (
            f"{row[f'{what}_counted'] / 1e3:.0f} ({row[f'{what}_formula'] / 1e3:.0f})"
            for what in ("draft", "verify")
        )
        lines.append(
            f"| {row['method']} | {row['budget']} | {of_draft} | {of_call} "
            f"| {row['per_token'] / 1e3:.0f} | {row['plain_per_token'] / 1e3:.0f} |"
        )
    return "\n".join([*lines, "", *_computed_lines(figures["computed"])])


def _unlimited(method: str) -> str:
    """The slots that a draft without a budget reads: all of its own model's, or of no model's."""
    return "none" if method == LOOKUP else "all"


def _by_budget(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each selector, a column for each budget."""

    def both(row: Mapping[str, Any]) -> str:
        return f"{_with_ends(row, 'block_efficiency')}; {_with_ends(row, 'acceptance')}"

    budgets = list(dict.fromkeys(row["budget"] for row in rows))
    head = [f"| selector | {' | '.join(map(str, budgets))} |", "|---" * (len(budgets) + 1) + "|"]
    found = {(row["method"], row["budget"]): row for row in rows}
    names = dict.fromkeys(row["method"] for row in rows)
    return head + [
        f"| {name} | {' | '.join(map(both, (found[name, budget] for budget in budgets)))} |"
        for name in names
    ]


def _with_ends(row: Mapping[str, Any], name: str) -> str:
    value = row["acceptance_rate" if name == "acceptance" else name]
    low, high = row[f"{name}_interval"]
    return f"{value:.2f} ({low:.2f}-{high:.2f})"


def _computed_lines(found: Mapping[str, Any]) -> list[str]:
    inputs = found["inputs"]
    machine = inputs["machine"]
    choosing = ", ".join(f"{name} {gb:.2f}" for name, gb in found["select_gb"].items())
    rates = list(dict.fromkeys(row["accepted"] for row in found["lines"]))
    lines = [
        f"**Computed, not measured**: {inputs['target']['name']} at {inputs['tokens']:,} tokens on "
        f"an {machine['name']}, {machine['bytes_per_s'] / 1e12:.3f} TB/s, by memory traffic alone. "
        f"Weights {found['weights_gb']:.1f} GB, cache {found['cache_gb']:.1f} GB, a budget of "
        f"{inputs['budget']} slots {found['budget_gb']:.2f} GB; plain {found['plain_ms']:.1f} ms a "
        f"token, middle {found['middle_ms']:.1f} ms, small {found['small_ms']:.2f} ms. Read in "
        f"order to choose, in GB: {choosing}.",
        "",
        f"Times plain, with {inputs['offered']} tokens offered, each of which the target keeps "
        "with the probability on top:",
        "",
        f"| small drafts kept by the middle | {' | '.join(f'{rate:.2f}' for rate in rates)} |",
        "|---" * (len(rates) + 1) + "|",
    ]
    for inner in dict.fromkeys(row["inner"] for row in found["lines"]):
        cells = [f"{row['speed_up']:.2f}" for row in found["lines"] if row["inner"] == inner]
        name = f"{inner:.0%}" if inner else "no small model"
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return [
        *lines,
        "",
        f"Measured by the paper (2404.11912), three levels: {found['in_paper']} times plain.",
    ]
