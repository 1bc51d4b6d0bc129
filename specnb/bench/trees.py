"""What does a tree buy? RSD-C, RSD-S and the best static tree against chains.

(a) At which siblings' ranks does the target find its token, by the kind of word? (b) Trees at equal
depth, and against trees of independent draws. (c) At most so many nodes for the target to score:
block efficiency, MBSU, drafter forwards and nodes side by side. All that is chosen (lengths,
widths, and the shapes that `sn.best_tree` makes of measured ranks) is chosen on other prompts.

Nothing of this depends on the machine; with `--seconds` the methods of (c) are also timed.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from tqdm.auto import tqdm

import specnb as sn
from specnb import theory
from specnb.bench import KEPT
from specnb.drafters import Drafter
from specnb.measure import (
    Row,
    RowCache,
    costed,
    followed,
    geometric_ratio,
    in_turns,
    places_of,
    pooled,
    replay_tree,
    replayed_row,
)
from specnb.measure.ranks import shares
from specnb.measure.rollouts import RANKS, Stored
from specnb.measure.runner import Name, decode
from specnb.paths import ROOT
from specnb.scenes import TASKS, examples
from specnb.scenes.words import classed

TAU, SPEED = "block_efficiency", "tokens_per_second"
WORDS = {
    "function": "function words",
    "named": "attributes named before",
    "seen": "attributes told for the first time",
    "all": "all",
}
KINDS = ("chain", "RSD-C", "RSD-S", "static tree")
GOALS = ("block efficiency", "MBSU")
DEPTHS = (3, 5)
BUDGETS = (6, 14, 30)  # nodes per target call
SEEDS = (0, 1000)  # a third one for the small real models, whose tokens cost little
ONE = sn.Sampling(1.0)
LEVEL_COSTS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)  # with which `best_tree` is asked
BEAMS = ((2, 3), (3, 2), (2, 5), (2, 7), (3, 4), (2, 10), (3, 7), (2, 15), (3, 10))
REAL = ROOT.parent / "shared" / "real"
WEAKER = (1.0, 1.3, 1.6, 2.0, 2.5, 3.0)  # temperatures of the drafter, tried in this order
STORIES = tuple(
    f"{start} {who}"
    for start in ("Once upon a time", "One day", "On Monday", "In the forest", "At night")
    for who in ("a little girl", "Tom and Lily", "a dog", "the old man", "a boy named Ben",
                "the little bird", "Mom and dad", "a big truck", "Anna", "his friend",
                "the red cat", "they", "a small house", "the king", "Sara had a box",
                "it was dark", "she wanted", "Max", "the children", "her brother")
)  # fmt: skip


def measure(target: str = "", draft: str = "", n: int = 0, seconds: bool = False) -> dict:
    """All figures, on `n` prompts per task and half (20) and two seeds of each."""
    pair = sn.load_pair(target, draft)
    kept, n = RowCache(KEPT / "trees.jsonl"), n or 20
    texts = RowCache(KEPT / "trees_texts.jsonl", Stored)
    halves = [
        [item for task in TASKS for item in part(examples(task, 2 * n, 4))]
        for part in (lambda items: items[:n], lambda items: items[n:])
    ]
    figures: dict[str, Any] = {"n": n, "ranks": _ranks_by_word(pair, halves[0]), "budget": {}}
    parts: list[tuple[str, sn.Pair, list[list], sn.Sampling | None]]
    parts = [("embedded", pair, halves, None)]
    if REAL.is_dir():
        real = sn.load_pair(str(REAL / "stories260K"), str(REAL / "llama2xs-500it"))
        stories = [SimpleNamespace(prompt=text, image=None) for text in STORIES]
        some = max(2, 5 * n // 2)
        parts.append(("stories", real, [stories[::2][:some], stories[1::2][:some]], None))
    else:
        figures["left_out"] = f"stories: {REAL.name} is missing, two small models trained elsewhere"
    weak, rate = _weaker(kept, pair, halves[0])
    label = f"embedded, drafter at T {weak} (accepts {rate:.2f})"
    parts.append((label, pair, halves, sn.Sampling(weak)))
    for name, one, parted, sampling in parts:
        figures["budget"][name] = _budget(kept, texts, one, parted, sampling, name, seconds)
    figures["depth"] = _depth(kept, pair, n)
    return figures


def _rows(
    kept: RowCache,
    pair: sn.Pair,
    prompts: Sequence,
    methods: Mapping[Name, Drafter],
    label: str,
    draft_sampling: sn.Sampling | None = None,
    seeds: Sequence[int] = (0,),
    timed: bool = False,
) -> dict[Name, list[Row]]:
    more: dict[str, Any] = {"draft_sampling": draft_sampling, "kept": kept, "label": label}
    return in_turns(pair, prompts, methods, ONE, seeds=seeds, timed=timed, **more)


# -------------------------------------------------------------------------------------- ranks


def _ranks_by_word(pair, prompts) -> dict[str, dict]:
    """By what the target said there: at which rank it was found among RANKS siblings."""
    found: dict[str, list[int]] = {}
    for number, item in enumerate(tqdm(prompts, desc="ranks by word", leave=False)):
        run = decode(pair, item, sn.GumbelTopK((RANKS,)), sampling=ONE, seed=number)
        rank = {place.block: place.rank for place in places_of(run)}
        for row, name in classed(run, item.prompt):
            found.setdefault(name, []).append(rank[row.block])
    found["all"] = [rank for name in list(found) for rank in found[name]]
    return {name: {"n": len(r), "shares": shares(r, RANKS)} for name, r in found.items()}


# -------------------------------------------------------------------------------------- depth


def _depth(kept, pair, n) -> list[dict]:
    items = {task: examples(task, n, 5) for task in TASKS}
    lines = []
    for depth in DEPTHS:
        ones = (1,) * (depth - 1)
        methods: dict[str, Drafter] = {"chain": sn.Chain(depth)}
        for branching in ((2, *ones), (3, *ones), (2, 2, *ones[1:])):
            methods[f"RSD-C {branching}"] = sn.GumbelTopK(branching)
            methods[f"iid {branching}"] = sn.IIDTree(branching)
        for width in (2, 3, 4):
            methods[f"RSD-S {width}x{depth}"] = sn.StochasticBeam(width, depth)
        cells = [
            _rows(kept, pair, group, methods, f"depth {depth} {task}", seeds=SEEDS[:1])
            for task, group in items.items()
        ]
        for name in methods:
            rows = [row for cell in cells for row in cell[name]]
            line: dict[str, Any] = {"depth": depth, "method": name, **_figures(rows, 0.0)}
            others = {"chain": "chain"}
            if name.startswith("RSD-C"):
                others["iid"] = name.replace("RSD-C", "iid")
            for key, other in others.items():
                line[f"against_{key}"] = geometric_ratio(
                    [(cell[name], cell[other]) for cell in cells], TAU
                )
            lines.append(line)
    return lines


# ------------------------------------------------------------------------------------- budget


def _weaker(kept, pair, prompts) -> tuple[float, float]:
    """The first draft temperature with an acceptance rate in 0.6-0.7 (chain of 5, T = 1)."""
    rates = {}
    for temperature in WEAKER:
        sampling = sn.Sampling(temperature)
        rows = _rows(kept, pair, prompts, {"chain": sn.Chain(5)}, f"T {temperature}", sampling)
        rates[temperature] = sum(row.accepted for row in rows["chain"]) / sum(
            row.examined for row in rows["chain"]
        )
        if rates[temperature] <= 0.7:
            break
    best = min(rates, key=lambda t: abs(rates[t] - 0.65))
    return best, rates[best]


def branchings(budget: int) -> list[tuple[int, ...]]:
    """Every branching of RSD-C, not growing from level to level, of at most so many nodes."""
    found: list[tuple[int, ...]] = []

    def grow(shape: tuple[int, ...], last: int, nodes: int) -> None:
        for children in range(1, (shape[-1] if shape else budget) + 1):
            if nodes + last * children <= budget:
                found.append((*shape, children))
                grow(found[-1], last * children, nodes + last * children)

    grow((), 1, 0)
    return found


def parents_of(branching: Sequence[int]) -> tuple[int, ...]:
    """The same tree as nodes and what each follows, level by level."""
    parents: list[int] = []
    level = [-1]
    for children in branching:
        first = len(parents)
        parents += [node for node in level for _ in range(children)]
        level = list(range(first, len(parents)))
    return tuple(parents)


def _shapes(ranks: Sequence[float]) -> dict[str, dict[Drafter, tuple[int, ...]]]:
    """Every static shape that is tried, by its kind: the drafter, and what each node follows."""
    lengths = range(1, max(BUDGETS) + 1)
    chains: dict[Drafter, tuple[int, ...]] = {sn.Chain(n): (*range(-1, n - 1),) for n in lengths}
    constant: dict[Drafter, tuple[int, ...]] = {
        sn.GumbelTopK(b): parents_of(b) for b in branchings(max(BUDGETS)) if max(b) <= RANKS
    }
    static: dict[Drafter, tuple[int, ...]] = {}
    for budget, cost in itertools.product(BUDGETS, LEVEL_COSTS):
        if parents := sn.best_tree(ranks, budget, cost):
            static[sn.StaticTree(parents)] = parents
    return {"chain": chains, "RSD-C": constant, "static tree": static}


def _choices(tuned: Mapping[str, Mapping[Drafter, Sequence[Row]]], c: float) -> dict:
    """By (budget, goal, kind): the drafter that the tuning prompts speak for."""
    found: dict[tuple[int, str, str], Drafter] = {}
    for budget, goal, kind in itertools.product(BUDGETS, GOALS, KINDS):
        cost = c if goal == "MBSU" else 0.0
        able = {d: costed(rows, cost) for d, rows in tuned[kind].items() if _size(d) <= budget}
        if kind == "chain" and goal == GOALS[0]:
            # Its block efficiency never falls with the length: there is nothing to choose.
            found[budget, goal, kind] = sn.Chain(budget)
            continue
        speeds = {drafter: pooled(rows, SPEED) for drafter, rows in able.items()}
        found[budget, goal, kind] = max(speeds, key=speeds.__getitem__)
    return found


def _size(drafter: Any) -> int:
    """The most nodes of a tree."""
    if isinstance(drafter, sn.Chain):
        return drafter.draft_length
    if isinstance(drafter, sn.StochasticBeam):
        return drafter.width * drafter.depth
    if isinstance(drafter, sn.GumbelTopK):
        return len(parents_of(drafter.branching))
    return len(drafter.parents)


def _figures(rows: Sequence[Row], c: float) -> dict[str, float]:
    calls = sum(row.calls for row in rows)
    return {
        "block_efficiency": pooled(rows, TAU),
        "mbsu": pooled(costed(rows, c), SPEED),
        "nodes": sum(row.drafted for row in rows) / calls,
        "forwards": sum(row.forwards for row in rows) / calls,
    }


def _budget(kept, texts, pair, prompts, draft_sampling, label, seconds) -> dict:
    """Chosen on one half of the prompts, measured on the other; ratios over the chain of a goal.

    Chains, RSD-C and static trees are replayed on texts of the target. RSD-S decodes, as its shape
    depends on what is drawn; some of the others decode, too, to hold the replay against them.
    """
    tuning, other = prompts
    seeds = SEEDS if pair.target.sees_images else (*SEEDS, 2000)
    halves = [
        followed(pair, half, ONE, draft_sampling=draft_sampling, seeds=seeds, kept=texts,
                 label=f"texts {label}")
        for half in (tuning, other)
    ]  # fmt: skip
    ranks = shares([int(rank) for text in halves[0] for rank in text.rank], RANKS)
    shapes = _shapes(ranks)
    tuned, found = (
        {
            kind: {d: [replayed_row(t, replay_tree(t, p)) for t in half] for d, p in some.items()}
            for kind, some in shapes.items()
        }
        for half in halves
    )
    beams: dict[Drafter, Drafter] = {d: d for d in (sn.StochasticBeam(*shape) for shape in BEAMS)}
    tuned["RSD-S"] = _rows(kept, pair, tuning, beams, f"tune {label}", draft_sampling)
    c = pair.parameter_ratio
    assert c is not None  # there is a draft model
    chosen = _choices(tuned, c)
    drafters = {
        drafter: drafter
        for (budget, _, kind), drafter in chosen.items()
        if seconds or kind == "RSD-S" or (budget == max(BUDGETS) and kind != "RSD-C")
    }
    decoded = _rows(kept, pair, other, drafters, label, draft_sampling, seeds, timed=seconds)
    found["RSD-S"] = decoded
    lines = []
    for (budget, goal, kind), drafter in chosen.items():
        mine, base = found[kind][drafter], chosen[budget, goal, "chain"]
        cost = c if goal == "MBSU" else 0.0
        ratio = [(costed(mine, cost), costed(found["chain"][base], cost))]
        line = {
            "budget": budget,
            "goal": goal,
            "kind": kind,
            "chosen": sn.name_of(drafter),
            **_figures(mine, c),
            "ratio": geometric_ratio(ratio, SPEED),
            "decoded": pooled(decoded[drafter], TAU) if drafter in decoded else None,
        }
        if isinstance(drafter, sn.StaticTree):
            line["predicted"] = theory.expected_tree_tokens(drafter.parents, ranks)
        if seconds:
            rows = decoded[drafter]
            line["ms_per_token"] = 1e3 / pooled(rows, SPEED)
            line["ratio_seconds"] = geometric_ratio([(rows, decoded[base])], SPEED)
        lines.append(line)
    return {
        "c": c,
        "ranks": ranks,
        "prompts": len(other),
        "seeds": len(seeds),
        "seconds": seconds,
        "lines": lines,
    }


# -------------------------------------------------------------------------------------- table


def _between(ratio: dict) -> str:
    return f"{ratio['ratio']:.3f} ({ratio['low']:.3f}-{ratio['high']:.3f})"


def _shape(text: str) -> str:
    """A method in a few letters: a static tree by its nodes and levels."""
    if not text.startswith("StaticTree"):
        return text
    drafter: Any = sn.method(text)
    parents = drafter.parents
    depths = sn.tree.depths(parents)
    widths = [depths.count(level) for level in range(1, max(depths) + 1)]
    return f"{len(parents)} nodes on levels of {','.join(map(str, widths))}"


def table(figures: dict) -> str:
    """The figures as text."""
    lines = [f"(a) {RANKS} siblings without replacement, T = 1: the accepted one's rank"]
    for name, row in figures["ranks"].items():
        found = row["shares"]
        second = found[1] / max(1 - found[0], 1e-9)
        words = " ".join(f"{share:.3f}" for share in found)
        lines.append(
            f"  {name:9} n {row['n']:5}  {words}  none {1 - sum(found):.3f}; of those whose first "
            f"is turned down, the second is kept in {second:.2f}"
        )
    lines.append(f"(b) equal depth, T = 1, {figures['n']} prompts per task")
    for row in figures["depth"]:
        words = f"  depth {row['depth']}  {row['method']:21} {row['block_efficiency']:5.2f}"
        words += f"  {row['nodes']:5.1f} nodes"
        for key in ("chain", "iid"):
            ratio = row.get(f"against_{key}")
            if ratio and row["method"] != "chain":
                words += f"  / {key} {_between(ratio)}"
        lines.append(words)
    for label, part in figures["budget"].items():
        lines.append(
            f"(c) at most so many nodes, T = 1: {label}; {part['prompts']} prompts, "
            f"{part['seeds']} seeds, c {part['c']:.4f}; ratios over the chain of the same goal"
        )
        for row in part["lines"]:
            words = (
                f"  {row['budget']:2} nodes, for {row['goal']:16} {row['kind']:11} "
                f"tokens {row['block_efficiency']:.2f}  MBSU {row['mbsu']:.2f}  "
                f"forwards {row['forwards']:4.1f}  nodes {row['nodes']:4.1f}  "
                f"ratio {_between(row['ratio'])}"
            )
            if row["decoded"] and row["kind"] != "RSD-S":
                words += f"  decoded {row['decoded']:.2f}"
            if part["seconds"]:
                words += f"  {row['ms_per_token']:.2f} ms a token {_between(row['ratio_seconds'])}"
            lines.append(f"{words}  {_shape(row['chosen'])}")
    if "left_out" in figures:
        lines.append(f"left out: {figures['left_out']}")
    return "\n".join(lines)


def _in_words(text: str) -> str:
    """A method for a table: "length 6", "2,1 x 6" for a 2 and six 1s, "14 nodes, 11 levels"."""
    drafter: Any = sn.method(text)
    if isinstance(drafter, sn.Chain):
        return f"length {drafter.draft_length}"
    if isinstance(drafter, sn.StochasticBeam):
        return f"{drafter.width} x {drafter.depth}"
    if isinstance(drafter, sn.GumbelTopK):
        first = [n for n in drafter.branching if n > 1]
        ones = len(drafter.branching) - len(first)
        tail = ["1" if ones == 1 else f"1 x {ones}"] if ones else []
        return ",".join([*map(str, first), *tail])
    nodes, levels = len(drafter.parents), max(sn.tree.depths(drafter.parents))
    return f"a chain of {levels}" if levels == nodes else f"{nodes} nodes, {levels} levels"


def markdown(figures: dict) -> str:
    """The figures for RESULTS.md."""
    lines = [
        f"{RANKS} siblings without replacement at the places where a block begins, T = 1, by what "
        "the target says there (the embedded pair):",
        "",
        "| word | places | first kept | second | third | none of them | second, where the first "
        "fails |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in figures["ranks"].items():
        found = row["shares"]
        second = found[1] / max(1 - found[0], 1e-9)
        shares_ = [*found[:3], max(0.0, 1 - sum(found)), second]
        cells = " | ".join(f"{share:.0%}" for share in shares_)
        lines.append(f"| {WORDS[name]} | {row['n']} | {cells} |")
    lines += [
        "",
        f"At equal depth, {figures['n']} prompts per task: tokens per call, nodes used, and ratios "
        "over the chain and over the tree of independent draws with the same branching.",
        "",
        "| depth | method | tokens per call | nodes used | over the chain | over the other tree |",
        "|---|---|---|---|---|---|",
    ]
    for row in figures["depth"]:
        chain, iid = (row.get(f"against_{key}") for key in ("chain", "iid"))
        chain = None if row["method"] == "chain" else chain
        lines.append(
            f"| {row['depth']} | {row['method']} | {row['block_efficiency']:.2f} | "
            f"{row['nodes']:.1f} | {_between(chain) if chain else ''} | "
            f"{_between(iid) if iid else ''} |"
        )
    for label, part in figures["budget"].items():
        timed = part["seconds"]
        lines += [
            "",
            f"**{label}.** At most so many nodes for all, T = 1, {part['prompts']} prompts and "
            f"{part['seeds']} seeds, all that is chosen chosen on as many others, for the figure "
            f"in the second column (c = {part['c']:.4f}). Ratios are over the chain of the same "
            "rows, by that figure. The static tree is the best that `sn.best_tree` makes of "
            "measured ranks. Chain, RSD-C and static tree are replayed on texts of the target, "
            "RSD-S decodes; in brackets, what was decoded as well.",
            "",
            "| nodes | chosen for | method | shape | tokens per call | MBSU | drafter forwards "
            f"| nodes used | over the chain |{' ms per token | in seconds |' * timed}",
            "|---|---|---|---|---|---|---|---|---|" + "---|---|" * timed,
        ]
        for row in part["lines"]:
            ratio = "" if row["kind"] == "chain" else _between(row["ratio"])
            told = f"{row['block_efficiency']:.2f}"
            if row["decoded"] and row["kind"] != "RSD-S":
                told += f" ({row['decoded']:.2f})"
            words = (
                f"| {row['budget']} | {row['goal']} | {row['kind']} | {_in_words(row['chosen'])} "
                f"| {told} | {row['mbsu']:.2f} | {row['forwards']:.1f} | {row['nodes']:.1f} "
                f"| {ratio} |"
            )
            if timed:
                words += f" {row['ms_per_token']:.2f} | {_between(row['ratio_seconds'])} |"
            lines.append(words)
    if "left_out" in figures:
        lines += ["", f"Left out: {figures['left_out']}."]
    return "\n".join(lines)
