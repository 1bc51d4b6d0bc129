"""More from every target call: rules over whole paths, and trees that grow where it pays.

(a) block against token rule, and traversal against recursive rejection, on the embedded pair;
(b) uneven trees against chains, RSD-C, RSD-S and stopped chains, at equal nodes and in seconds, all
chosen on other prompts; (c) acceptance by position, task and word class; (d) what the verify step
costs of a block's time.

Nothing of (a) to (c) depends on the machine; with `--seconds` their methods are also timed.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch

import specnb as sn
from specnb import decode, theory, tuning
from specnb.bench import KEPT, running_as
from specnb.bench.trees import BEAMS, RANKS, REAL, STORIES, branchings, parents_of
from specnb.drafters import Drafter
from specnb.measure import (
    RowCache,
    best_of,
    geometric_ratio,
    in_turns,
    interval,
    places_of,
    pooled,
)
from specnb.measure.ranks import shares as rank_shares
from specnb.measure.runner import decode as run_of
from specnb.models import calibration
from specnb.models.load import EMBEDDED
from specnb.record import accepted_lengths, joint_acceptance
from specnb.scenes import TASKS, examples
from specnb.scenes.words import classed

ABOUT = (
    "Ratios are paired by prompt. Expectations on the same drafts are over the uniform numbers "
    "alone, so their interval is the narrower one. What was chosen, was chosen on other prompts."
)
TAU, SECONDS = "block_efficiency", "tokens_per_second"
LENGTH = 8
CHEAP = 0.2  # of a target call: a draft step below it costs less than what is done around it
SEEDS = (0, 1000, 2000, 3000)
PLAIN = sn.Sampling(1.0)
RULES: dict[str, tuple[Drafter, Drafter]] = {
    f"block / token rule, chain of {LENGTH}": (
        sn.Chain(LENGTH, verify="block"),
        sn.Chain(LENGTH),
    ),
    "traversal / recursive rule, RSD-C 2,2,1,1": (
        sn.GumbelTopK((2, 2, 1, 1), verify="traversal"),
        sn.GumbelTopK((2, 2, 1, 1)),
    ),
}
CHAINS = (*range(1, 13), 14, 16)
NODES = (6, 10, 14)
WEAK = sn.Sampling(1.6)  # of a drafter made worse on purpose
FACTORS = (0.05, 0.1, 0.2)
PRICES = (0.01, 0.02, 0.03, 0.05, 0.08, 0.12, 0.2)
CAPS = (8, 16, 32)
GOALS = {"embedded": 1.0, "stories": 1.05}  # BestFirst over the best chain, in seconds
EMBEDDED_WEAK = f"embedded, drafter at T {WEAK.temperature}"
GOALS[EMBEDDED_WEAK] = 1.05
SHARES = {1_000: 0.08, 49_152: 0.15}  # of a block's time
SMALL, LARGE = (192, 2), (576, 30)  # width and layers; the large one is SmolLM2-135M's shape


def measure(target: str = "", draft: str = "", n: int = 0, seconds: bool = False) -> dict:
    """All figures, on `n` prompts per task (100); a fifth of them to choose by in (b), as many to
    report. `seconds`: (a) and (b) are timed, too; (d) always is."""
    n = n or 100
    runs_as = SimpleNamespace(dtype="float32", threads=torch.get_num_threads())
    if seconds:
        runs_as = calibration.choice(fresh=True)
    with running_as(runs_as.dtype, runs_as.threads):
        found = _measured(target, draft, n, seconds)
    return {"runs_as": f"{runs_as.dtype}, {runs_as.threads} thread(s)", **found}


def _measured(target: str, draft: str, n: int, seconds: bool) -> dict:
    pair = sn.load_pair(target, draft)
    kept = RowCache(KEPT / "verification.jsonl")
    figures: dict[str, Any] = {"n": n, "seconds": seconds, "rules": rules(pair, n, kept, seconds)}
    some = max(1, n // 5)
    items = {task: examples(task, 2 * some, 4) for task in TASKS}
    halves = (
        [item for group in items.values() for item in group[:some]],
        [item for group in items.values() for item in group[some:]],
    )
    figures["trees"] = {
        "embedded": trees(pair, *halves, None, kept, seconds),
        EMBEDDED_WEAK: trees(pair, *halves, WEAK, kept, seconds),
    }
    if REAL.is_dir():
        real = sn.load_pair(str(REAL / "stories260K"), str(REAL / "llama2xs-500it"))
        stories = [SimpleNamespace(prompt=text, image=None) for text in STORIES]
        parts = stories[::2][: 5 * some], stories[1::2][: 5 * some]
        figures["trees"]["stories"] = trees(real, *parts, None, kept, seconds)
    else:
        figures["left_out"] = f"stories: {REAL.name} is missing, two small models trained elsewhere"
    figures["positions"] = positions(pair, max(1, n // 2))
    figures["shares"] = shares(pair)
    return figures


# ------------------------------------------------------------------------------------- (a)


def rules(pair: sn.Pair, n: int, kept: RowCache | None = None, seconds: bool = False) -> list[dict]:
    """Both rules on the same prompts; and what either is expected to keep of the same drafts."""
    lines = []
    for name, (mine, other) in RULES.items():
        cells = []
        for task in TASKS:
            label = f"{name} {task}"
            more: dict[str, Any] = {"seeds": SEEDS, "kept": kept, "label": label, "timed": seconds}
            found = in_turns(
                pair, examples(task, n, 6), {"mine": mine, "other": other}, PLAIN, **more
            )
            cells.append((found["mine"], found["other"]))
        ours, theirs = ([row for cell in cells for row in cell[side]] for side in (0, 1))
        line: dict[str, Any] = {"name": name, TAU: (pooled(ours, TAU), pooled(theirs, TAU))}
        line |= {
            f"{figure} ratio": geometric_ratio(cells, figure)
            for figure in (TAU, SECONDS)[: 1 + seconds]
        }
        if isinstance(mine, sn.Chain):
            line["same drafts"] = same_drafts(pair, n, other)
        lines.append(line)
    return lines


def same_drafts(pair: sn.Pair, n: int, other: Drafter) -> dict:
    """Tokens per call that either rule is expected to give from the same texts and drafts.

    Texts are cut into blocks by the token rule. Given the drafts nothing is random here but the
    uniform numbers, over which the expectation is exact, so that far fewer prompts show a gain.
    """
    ours, theirs, groups = [], [], []
    for task in TASKS:
        for number, item in enumerate(examples(task, n, 6)):
            image = item.image if pair.target.sees_images else None
            request = sn.Request(item.prompt, image, PLAIN, None, 64, number)
            run = sn.Decoding(pair, request, other)
            with torch.inference_mode():
                while run.finish is None:
                    run.step()
            for block in run.blocks:
                if len(block.tree):
                    eos_ids = pair.target.eos_ids
                    ours.append(_expected_tokens(block, _kept_by_block(block), eos_ids))
                    theirs.append(_expected_tokens(block, _kept_by_token(block), eos_ids))
                    groups.append((task, number))
    low, high = interval(ours, theirs, groups)
    return {
        "block": statistics.fmean(ours),
        "token": statistics.fmean(theirs),
        "ratio": sum(ours) / sum(theirs),
        "low": low,
        "high": high,
    }


def _expected_tokens(block: sn.Block, kept: Sequence[float], eos_ids: Set[int]) -> float:
    """What a call is expected to give: the drafted tokens that are kept, and one of the target's,
    but none behind a kept end of the text. `kept`: how likely each token of the chain is kept."""
    ends = block.tree.tokens[-1] in eos_ids  # nothing is drafted behind an end
    return 1.0 + sum(kept) - (kept[-1] if ends else 0.0)


def _kept_by_token(block: sn.Block) -> list[float]:
    """How likely each drafted token of a chain is to be kept, token by token."""
    kept = [1.0]
    for node, token in enumerate(block.tree.tokens):
        ratio = float(block.target_probs[node, token]) / float(block.tree.probs[node, token])
        kept.append(kept[-1] * min(1.0, ratio))
    return kept[1:]


def _kept_by_block(block: sn.Block) -> list[float]:
    """The same by the block rule: some test from this token on must pass."""
    laws = block.target_probs
    outcome = sn.joint.block_verification(block.tree, laws[0], laws[1:], sn.Draws(0))
    lost, kept = 1.0, []
    for _, look in reversed(outcome.examined):
        lost *= 1.0 - look.accept_prob
        kept.append(1.0 - lost)
    return kept[::-1]


# ------------------------------------------------------------------------------------- (b)


def candidates(costs: tuning.Costs, ranks: Sequence[float]) -> dict[str, dict[str, Drafter]]:
    """Every kind of method with its settings, by text.

    Static trees and the branchings of RSD-C are those that measured ranks promise most of, for each
    budget and at each of some costs.
    """
    asked = [
        (budget, cost)
        for budget in (*NODES, 20)
        for cost in ((0.0, 0.0), (0.05, 0.0), (0.1, 0.0), costs)
    ]
    shapes = {sn.best_tree(ranks, budget, *cost) for budget, cost in asked}
    constant = {_best_branching(ranks, budget, *cost) for budget, cost in asked}
    kinds: dict[str, Sequence[Drafter]] = {
        "chain": [sn.Chain(length) for length in CHAINS],
        "RSD-C": [sn.GumbelTopK(branching) for branching in sorted(constant)],
        "RSD-S": [sn.StochasticBeam(w, d) for w, d in BEAMS if w * d <= max(NODES)],
        "static tree": [sn.StaticTree(shape) for shape in sorted(shapes) if shape],
        "SumEntropy": [
            sn.Chain(16, stop=sn.SumEntropy(t)) for t in (1.0, 2.0, 3.0, 4.0, 6.0, 9.0, 13.0, 18.0)
        ],
        "PathScore": [
            sn.Chain(16, stop=sn.PathScore(t)) for t in (0.002, 0.01, 0.05, 0.1, 0.2, 0.3)
        ],
        "unsure": [
            sn.BranchWhereUnsure(depth, 2, entropy, 64)
            for depth in (4, 6, 8)
            for entropy in (0.7, 1.2, 1.8)
        ],
        # At a price per node, whatever it buys; then at what was measured.
        "BestFirst": [
            *(sn.BestFirst(64, 0.0, v, 16, entropy_factor=g) for v in PRICES for g in FACTORS[:2]),
            *(sn.BestFirst(cap, *costs, 16, entropy_factor=g) for cap in CAPS for g in FACTORS),
        ],
    }
    return {kind: {sn.name_of(d): d for d in made} for kind, made in kinds.items()}


def _best_branching(
    ranks: Sequence[float], budget: int, draft_cost: float, node_cost: float
) -> tuple[int, ...]:
    """RSD-C's counterpart of `sn.best_tree`: as many children for every node of a level."""

    def rate(branching: tuple[int, ...]) -> float:
        parents = parents_of(branching)
        time = 1.0 + draft_cost * len(branching) + node_cost * len(parents)
        return theory.expected_tree_tokens(parents, ranks) / time

    able = [branching for branching in branchings(budget) if 1 < max(branching) <= len(ranks)]
    return max(able, key=rate)


def trees(
    pair: sn.Pair,
    tuning_items: Sequence,
    other_items: Sequence,
    draft_sampling: sn.Sampling | None = None,
    kept: RowCache | None = None,
    seconds: bool = False,
) -> dict:
    """Each kind's best setting by `tuning_items`, on `other_items`: at equal nodes, and in seconds.

    At equal nodes a setting may be chosen whose mean number of nodes per call is within the budget;
    of chains it is the longest, whose block efficiency never falls with the length.
    """
    costs = tuning.costs(pair, tuning_items[:6], sampling=PLAIN)
    # Rounded, so that another run of this command finds what it has kept.
    costs = tuning.Costs(*(round(value, 2) for value in costs))
    wide = sn.GumbelTopK((RANKS,))
    runs = [run_of(pair, item, wide, sampling=PLAIN, draft_sampling=draft_sampling, seed=seed)
            for seed, item in enumerate(tuning_items)]  # fmt: skip
    ranks = rank_shares([place.rank for run in runs for place in places_of(run)], RANKS)
    kinds = candidates(costs, ranks)
    every = {text: drafter for made in kinds.values() for text, drafter in made.items()}
    more: dict[str, Any] = {"draft_sampling": draft_sampling, "kept": kept}
    tuned = in_turns(pair, tuning_items, every, PLAIN, timed=seconds, label="choose", **more)
    nodes = {text: _nodes(rows) for text, rows in tuned.items()}

    def chosen(allowed: Callable[[str], bool], figure: str) -> dict[str, str]:
        able = {kind: [text for text in made if allowed(text)] for kind, made in kinds.items()}
        if figure == TAU:
            able["chain"] = able["chain"][-1:]
        return {kind: best_of(tuned, texts, figure) for kind, texts in able.items() if texts}

    def measured(best: dict[str, str], figure: str, timed: bool) -> dict[str, Any]:
        methods = {text: every[text] for text in best.values()}
        found = in_turns(
            pair, other_items, methods, PLAIN, seeds=SEEDS[:2], timed=timed, label=figure, **more
        )
        return _against_chain(found, best, figure)

    figures: dict[str, Any] = {"costs": costs._asdict(), "tuned on": len(tuning_items)}
    figures["nodes"] = [
        {"budget": most, **measured(chosen(lambda text: nodes[text] <= most, TAU), TAU, False)}  # noqa: B023 - called at once
        for most in NODES
    ]
    if seconds:
        figures["seconds"] = measured(chosen(lambda text: True, SECONDS), SECONDS, True)
    return figures


def _nodes(rows: Sequence) -> float:
    return sum(row.drafted for row in rows) / sum(row.calls for row in rows)


def _against_chain(found: Mapping[str, Sequence], best: Mapping[str, str], figure: str) -> dict:
    """Every kind's figure, and its ratio to the best chain's with a paired interval."""
    chain = found[best["chain"]]
    return {
        kind: {
            "chosen": text,
            "value": pooled(found[text], figure),
            "nodes": _nodes(found[text]),
            **geometric_ratio([(found[text], chain)], figure),
        }
        for kind, text in best.items()
    }


# ------------------------------------------------------------------------------------- (c)


def positions(pair: sn.Pair, n: int, draft_length: int = 5) -> dict:
    """Acceptance by position in the draft, conditional and joint; by task, and by word class."""
    figures: dict[str, Any] = {}
    classes: dict[str, dict[int, list[bool]]] = {}
    for task in TASKS:
        items = examples(task, n, 0)
        runs = []
        for seed, item in enumerate(items):
            image = item.image if pair.target.sees_images else None
            given: dict[str, Any] = {"sampling": PLAIN, "max_new_tokens": 110, "seed": seed}
            runs.append(
                sn.speculative(pair, item.prompt, image, drafter=sn.Chain(draft_length), **given)
            )
        figures[task] = by_position(runs, draft_length)
        for run, item in zip(runs, items, strict=True):
            for row, name in classed(run, item.prompt):
                at = classes.setdefault(name, {}).setdefault(row.depth, [])
                at.append(row.verdict == "accepted")
    figures["classes"] = {
        name: [(statistics.fmean(at[d]), len(at[d])) for d in sorted(at) if d <= draft_length]
        for name, at in classes.items()
    }
    return figures


def by_position(runs: Sequence[sn.Record], draft_length: int) -> dict:
    """Shares over all blocks of these runs that drafted anything, and how many kept how much."""
    blocks = [block for run in runs for block in run.blocks if block.n_drafted]
    depths = range(1, draft_length + 1)
    reached = [sum(b.n_accepted >= d - 1 and b.n_drafted >= d for b in blocks) for d in depths]
    kept = [sum(b.n_accepted >= d for b in blocks) for d in depths]
    joint = joint_acceptance(*runs)
    lengths = [0] * (draft_length + 1)
    for run in runs:
        for length, count in enumerate(accepted_lengths(run)):
            lengths[length] += count
    return {
        "conditional": [k / max(r, 1) for k, r in zip(kept, reached, strict=True)],
        "joint": [*joint, *(0.0 for _ in depths[len(joint) :])],  # nothing was drafted so deep
        "lengths": lengths,
    }


# ------------------------------------------------------------------------------------- (d)


def shares(pair: sn.Pair, rounds: int = 6) -> dict[int, dict]:
    """What the verify step takes of a block's time, by vocabulary: chains of 5 at T = 1.

    The embedded pair, and one of SmolLM2-135M's shape with random weights: numbers of another
    model, but as many of them.
    """
    items = examples("caption", rounds, 5)
    found = {pair.target.vocab_size: _share(pair, [(i.prompt, i.image) for i in items])}
    with tempfile.TemporaryDirectory() as folder:
        wide = sn.load_pair(_random(folder, "target", LARGE), _random(folder, "draft", SMALL))
        found[wide.target.vocab_size] = _share(wide, [(item.prompt, None) for item in items])
    return found


def _share(pair: sn.Pair, asked: Sequence[tuple[Any, Any]]) -> dict:
    """Seconds of laws, verification and record over seconds of all that a run does."""
    parts = dict.fromkeys(("law_of", "verify", "record_of"), 0.0)

    def timed(name: str) -> Any:
        function = getattr(decode, name)

        def call(*args: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*args)
            finally:
                parts[name] += time.perf_counter() - began

        return mock.patch.object(decode, name, call)

    whole = 0.0
    for number, (prompt, image) in enumerate([asked[0], *asked]):
        with ExitStack() as patches:
            for name in parts if number else ():  # the first run also sets up
                patches.enter_context(timed(name))
            began = time.perf_counter()
            run = sn.speculative(
                pair, prompt, image if pair.target.sees_images else None, sampling=PLAIN
            )
            took = time.perf_counter() - began - run.prefill_s
        whole += took if number else 0.0
    return {"share": sum(parts.values()) / whole} | {k: v / whole for k, v in parts.items()}


def _random(folder: str, role: str, shape: tuple[int, int]) -> str:
    """A folder with a Llama of this shape, 49,152 ids, random weights and our tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    place = Path(folder) / role
    torch.manual_seed(0)
    hidden, layers = shape
    config = LlamaConfig(
        vocab_size=49_152,
        hidden_size=hidden,
        num_hidden_layers=layers,
        intermediate_size=8 * hidden // 3,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 192,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=49_151,
    )
    LlamaForCausalLM(config).save_pretrained(place)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(EMBEDDED / "drafter" / name, place)
    return str(place)


# ----------------------------------------------------------------------------------- table


def _ratio(row: Mapping[str, Any]) -> str:
    return f"{row['ratio']:.3f} ({row['low']:.3f}-{row['high']:.3f})"


def table(figures: dict) -> str:
    """The figures as Markdown."""
    timed = figures["seconds"]
    lines = [
        f"**(a) Rules.** T = 1, {figures['n']} prompts per task, {len(SEEDS)} seeds of each.",
        "",
        "| rules | block efficiency | ratio | expected, same drafts: ratio | tokens/s: ratio |",
        "|---|---|---|---|---|",
    ]
    for row in figures["rules"]:
        mine, other = row[TAU]
        same = _ratio(row["same drafts"]) if "same drafts" in row else ""
        seconds = _ratio(row[f"{SECONDS} ratio"]) if f"{SECONDS} ratio" in row else "not timed"
        lines.append(
            f"| {row['name']} | {mine:.3f} / {other:.3f} | {_ratio(row[f'{TAU} ratio'])} | {same} "
            f"| {seconds} |"
        )
    for name, part in figures["trees"].items():
        costs = part["costs"]
        lines += [
            "",
            f"**(b) Trees: {name}.** T = 1, chosen on {part['tuned on']} prompts; a forward of the "
            f"drafter is {costs['draft_cost']:.2f} target calls, a node {costs['node_cost']:.2f}.",
            "",
            "| at most | kind | block efficiency, or tokens/s | nodes | over the chain | chosen |",
            "|---|---|---|---|---|---|",
        ]
        rows = [(f"{row['budget']} nodes", row) for row in part["nodes"]]
        rows += [("in seconds", part["seconds"])] if timed else []
        for label, row in rows:
            for kind, one in row.items():
                if isinstance(one, dict):
                    lines.append(
                        f"| {label} | {kind} | {one['value']:.2f} | {one['nodes']:.1f} "
                        f"| {_ratio(one)} | {one['chosen']} |"
                    )
        if timed:
            got, goal = part["seconds"]["BestFirst"]["ratio"], GOALS[name]
            word = "reached" if got >= goal else f"not reached: {_why(part)}"
            lines += [
                "",
                f"BestFirst in seconds: {got:.3f} of the best chain, goal {goal}: {word}.",
            ]
    if "left_out" in figures:
        lines += ["", f"(b) left out, {figures['left_out']}"]
    return "\n".join([*lines, *_by_position(figures["positions"]), *_shares(figures["shares"])])


def _why(part: Mapping[str, Any]) -> str:
    """What a missed goal is due to, from the same figures."""
    gains = [row["BestFirst"]["ratio"] for row in part["nodes"]]
    cost = part["costs"]["draft_cost"]
    bought = f"at equal nodes it has {min(gains):.2f} to {max(gains):.2f} of the chain's tokens"
    if cost < CHEAP:
        return (
            f"{bought} per call, but a forward of the drafter is {cost:.2f} of a target call, so "
            "that longer chains cost little, and growing a tree, in Python, does not"
        )
    return (
        f"{bought} per call, but a forward of the drafter is {cost:.2f} of a target call, so that "
        "the best method drafts little and has little to choose from"
    )


def _by_position(figures: Mapping[str, Any]) -> list[str]:
    depths = range(1, 1 + max(len(figures[task]["joint"]) for task in TASKS))
    lines = [
        "",
        f"**(c) Acceptance by position.** Chain of {len(depths)}, T = 1; of words, acceptance "
        "and how many there were.",
        "",
        f"| acceptance | {' | '.join(map(str, depths))} |",
        "|---" * (1 + len(depths)) + "|",
    ]
    for task in TASKS:
        for key in ("conditional", "joint"):
            cells = " | ".join(f"{x:.2f}" for x in figures[task][key])
            lines.append(f"| {task}, {key} | {cells} |")
    for name, found in figures["classes"].items():
        cells = [f"{x:.2f} ({count})" for x, count in found]
        cells += [""] * (len(depths) - len(cells))
        lines.append(f"| words: {name} | {' | '.join(cells)} |")
    lengths = "; ".join(f"{task} {figures[task]['lengths']}" for task in TASKS)
    return [*lines, "", f"Blocks that kept 0, 1, ... drafted tokens: {lengths}."]


def _shares(figures: Mapping[Any, Any]) -> list[str]:
    lines = [
        "",
        "**(d) The verify step**, as shares of a block's time.",
        "",
        "| vocabulary | in all | bar | laws | rule | record |",
        "|---|---|---|---|---|---|",
    ]
    for vocab, row in figures.items():
        bar = SHARES[min(SHARES, key=lambda size: abs(size - int(vocab)))]  # noqa: B023 - at once
        missed = "" if row["share"] <= bar else ": missed"
        parts = " | ".join(f"{row[name]:.1%}" for name in ("law_of", "verify", "record_of"))
        lines.append(f"| {int(vocab):,} | {row['share']:.1%} | {bar:.0%}{missed} | {parts} |")
    return lines
