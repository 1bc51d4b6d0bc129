"""What does a tree buy? RSD-C and RSD-S against chains and independent draws.

(a) at equal depth, (b) against trees of independent draws, (c) at an equal number of nodes that
the target must score. Shapes for (c) are chosen on other prompts than they are measured on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import specnb as sn
from specnb.bench import KEPT
from specnb.drafters import Drafter
from specnb.measure import Row, RowCache, best_of, geometric_ratio, in_turns, pooled
from specnb.paths import ROOT
from specnb.scenes import TASKS, examples

TAU = "block_efficiency"
DEPTHS = (2, 3, 4, 5)
BUDGETS = {  # nodes per target call: RSD-C branchings, RSD-S (width, depth)
    6: ([(2, 1, 1), (2, 2), (3, 1)], [(2, 3), (3, 2)]),
    10: ([(2, 1, 1, 1, 1), (2, 2, 1), (5, 1)], [(2, 5), (5, 2)]),
    14: ([(2, 1, 1, 1, 1, 1, 1), (2, 2, 2), (7, 1)], [(2, 7), (7, 2)]),
    21: ([(3, 1, 1, 1, 1, 1, 1), (3, 2, 2), (7, 1, 1)], [(3, 7), (7, 3)]),
    30: ([(2, 2, 2, 2), (5, 1, 1, 1, 1, 1), (6, 1, 1, 1, 1)], [(5, 6), (6, 5)]),
}
TEMPERATURES = (0.3, 1.0)
CHAINS = range(1, 31)
REAL = ROOT.parent / "shared" / "real"
WEAKER = (1.0, 1.3, 1.6, 2.0, 2.5, 3.0)  # temperatures of the drafter, tried in this order
STORIES = (
    "Once upon a time", "One day, a little girl", "Tom and Lily", "There was a dog",
    "The sun was", "A boy named Ben", "In the forest", "Mom and dad", "It was a rainy day",
    "The little bird", "Sara had a red", "The big truck", "On Monday", "Anna saw a cat",
    "The old man", "They went to the park", "His friend", "Under the bed", "At night", "She wanted",
)  # fmt: skip


def measure(target: str = "", draft: str = "", n: int = 0) -> dict:
    """All figures, on `n` prompts per task and half (20), at equal depth on 3 n."""
    pair = sn.load_pair(target, draft)
    kept, n = RowCache(KEPT / "trees.jsonl"), n or 20
    items = {task: examples(task, 2 * n, 4) for task in TASKS}
    many = {task: examples(task, 3 * n, 4) for task in TASKS}  # differences are small there
    figures: dict[str, Any] = {"n": n, "depth": _depth(kept, pair, many, 3 * n), "budget": {}}
    mixed = [item for group in items.values() for item in group]
    halves = mixed[::2], mixed[1::2]
    figures["budget"]["embedded"] = _budget(kept, pair, *halves, None, "embedded")
    weak, rate = _weaker(kept, pair, halves[0][:n])
    figures["budget"][f"embedded, drafter at T {weak}"] = _budget(
        kept, pair, *halves, sn.Sampling(weak), f"weak {weak}"
    ) | {"acceptance_rate": rate, "draft_temperature": weak}
    if REAL.is_dir():
        real = sn.load_pair(str(REAL / "stories260K"), str(REAL / "llama2xs-500it"))
        stories = [SimpleNamespace(prompt=text, image=None) for text in STORIES]
        figures["budget"]["stories"] = _budget(
            kept, real, stories[::2], stories[1::2], None, "stories"
        )
    return figures


def _counted(
    kept: RowCache,
    pair: sn.Pair,
    prompts: Sequence,
    methods: Mapping[str, Drafter],
    sampling: sn.Sampling,
    label: str,
    draft_sampling: sn.Sampling | None = None,
) -> dict[str, list[Row]]:
    """Rows of every method whose seconds nobody looks at."""
    more: dict[str, Any] = {"draft_sampling": draft_sampling, "kept": kept, "label": label}
    return in_turns(pair, prompts, methods, sampling, timed=False, **more)


def _shapes(depth: int) -> dict:
    ones = (1,) * (depth - 1)
    branchings = {(2, *ones), (2, 2, *ones[1:]), (3, *ones), (2,) * depth}
    shapes: dict = {f"chain {depth}": sn.Chain(depth)}
    for branching in sorted(branchings):
        name = ",".join(map(str, branching))
        shapes[f"RSD-C {name}"] = sn.GumbelTopK(branching)
        shapes[f"iid {name}"] = sn.IIDTree(branching)
    for width in (2, 3, 4):
        shapes[f"RSD-S {width}x{depth}"] = sn.StochasticBeam(width, depth)
        shapes[f"k-SEQ {width}x{depth}"] = sn.IIDTree((width, *ones), verify="kseq")
    return shapes


def _depth(kept, pair, items, n) -> list[dict]:
    lines = []
    for depth in DEPTHS:
        methods = _shapes(depth)
        cells = [
            _counted(kept, pair, group[:n], methods, sn.Sampling(1.0), f"depth {depth} {task}")
            for task, group in items.items()
        ]
        for name in methods:
            rows = [row for cell in cells for row in cell[name]]
            line = {
                "depth": depth,
                "method": name,
                "block_efficiency": pooled(rows, "block_efficiency"),
                "nodes": sum(row.drafted for row in rows) / sum(row.calls for row in rows),
            }
            others = {"chain": f"chain {depth}"}
            if name.startswith("RSD-C"):
                others["iid"] = name.replace("RSD-C", "iid")
            for key, other in others.items():
                pairs = [(cell[name], cell[other]) for cell in cells]
                line[f"against_{key}"] = geometric_ratio(pairs, "block_efficiency")
            lines.append(line)
    return lines


def _weaker(kept, pair, prompts) -> tuple[float, float]:
    """The first draft temperature with an acceptance rate in 0.6-0.7 (chain of 5, T = 1)."""
    rates = {}
    for temperature in WEAKER:
        found = _counted(
            kept,
            pair,
            prompts,
            {"chain": sn.Chain(5)},
            sn.Sampling(1.0),
            f"weaker {temperature}",
            draft_sampling=sn.Sampling(temperature),
        )["chain"]
        # A block with a rejection has one more examined token than accepted ones.
        examined = sum(
            row.accepted + (row.calls if row.accepted < row.drafted else 0) for row in found
        )
        rates[temperature] = sum(row.accepted for row in found) / examined
        if rates[temperature] <= 0.7:
            break
    best = min(rates, key=lambda t: abs(rates[t] - 0.65))
    return best, rates[best]


def _budget(kept, pair, tuning, other, draft_sampling, label) -> dict:
    """Best chain, RSD-C and RSD-S shape of each budget, chosen on `tuning`, measured on `other`."""
    lines = []
    for temperature in TEMPERATURES:
        sampling = sn.Sampling(temperature)
        methods: dict = {f"chain {length}": sn.Chain(length) for length in CHAINS}
        for branchings, beams in BUDGETS.values():
            methods |= {f"RSD-C {b}": sn.GumbelTopK(b) for b in branchings}
            methods |= {f"RSD-S {w}x{d}": sn.StochasticBeam(w, d) for w, d in beams}
        where = f"{label} {temperature}"
        tuned = _counted(kept, pair, tuning, methods, sampling, f"tune {where}", draft_sampling)
        for budget, (branchings, beams) in BUDGETS.items():
            chosen = {
                "chain": best_of(
                    tuned, (f"chain {length}" for length in CHAINS if length <= budget), TAU
                ),
                "RSD-C": best_of(tuned, (f"RSD-C {b}" for b in branchings), TAU),
                "RSD-S": best_of(tuned, (f"RSD-S {w}x{d}" for w, d in beams), TAU),
            }
            rows = _counted(
                kept,
                pair,
                other,
                {name: methods[name] for name in chosen.values()},
                sampling,
                where,
                draft_sampling,
            )
            line = {"temperature": temperature, "budget": budget, "chosen": chosen}
            for kind, name in chosen.items():
                line[kind] = pooled(rows[name], "block_efficiency")
                line[f"{kind} / chain"] = geometric_ratio(
                    [(rows[name], rows[chosen["chain"]])], "block_efficiency"
                )
            lines.append(line)
    return {"lines": lines}


def table(figures: dict) -> str:
    """The figures as text."""
    lines = [f"(a), (b): equal depth, T = 1, {3 * figures['n']} prompts per task, block efficiency"]
    for row in figures["depth"]:
        words = f"  depth {row['depth']}  {row['method']:16} {row['block_efficiency']:5.2f}"
        words += f"  {row['nodes']:5.1f} nodes"
        for key in ("chain", "iid"):
            ratio = row.get(f"against_{key}")
            if ratio and not row["method"].startswith("chain"):
                words += f"  / {key} {ratio['ratio']:.3f} [{ratio['low']:.3f}, {ratio['high']:.3f}]"
        lines.append(words)
    for label, part in figures["budget"].items():
        rate = part.get("acceptance_rate")
        more = f", acceptance rate {rate:.2f}" if rate else ""
        lines.append(f"(c): equal budget, {label}{more}")
        for row in part["lines"]:
            words = f"  T {row['temperature']}  {row['budget']:2} nodes"
            for kind in ("chain", "RSD-C", "RSD-S"):
                words += f"  {row['chosen'][kind]} {row[kind]:.2f}"
                if kind != "chain":
                    ratio = row[f"{kind} / chain"]
                    words += f" ({ratio['ratio']:.3f} [{ratio['low']:.3f}, {ratio['high']:.3f}])"
            lines.append(words)
    return "\n".join(lines)
