"""When should a drafter stop? Fixed lengths against rules, and against what a rule could know.

Texts of the target are followed once (`specnb.measure.follow`), and every rule is replayed on them:
its length and threshold are chosen together on one half of the prompts, by the very figure that is
then reported of the other half. A fixed length is a member of every rule's family, the threshold
that never stops. What a draft step and a row of a target call cost is given, not measured here;
with `--seconds` the chosen methods also decode, in turns, and are timed.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch

import specnb as sn
from specnb.bench import KEPT, running_as
from specnb.bench.trees import REAL, STORIES
from specnb.measure import (
    KnownAcceptance,
    Oracle,
    Row,
    RowCache,
    auc_of,
    costed,
    followed,
    geometric_ratio,
    guessed,
    in_turns,
    pooled,
    replay,
    replayed_row,
    whole_auc,
)
from specnb.measure import calibration as calibration_of
from specnb.measure.rollouts import Rule, Stored, Text, scores_of
from specnb.models import calibration
from specnb.scenes import TASKS, examples

TEMPERATURES = (0.0, 0.7, 1.0, 1.3)
DECODED = (0.0, 1.0)  # temperatures at which the chosen methods also decode
SEEDS = (0, 1000)  # of a prompt where tokens are drawn
LENGTHS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16)
NEVER = -math.inf
SHARES = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, NEVER)
NATS = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 7.0, math.inf)
COSTS = (0.02, 0.07, 0.1, 1 / 7, 0.3, 0.5)  # of a draft step, in target forwards
BASELINES = (3, 7, 16)
FIXED, SHOWN = "fixed", "AdaEDL"
RULES = ("AdaEDL", "SumEntropy", "PathScore", "SpecDecPP", "oracle")  # held against baselines
UNKNOWABLE = ("known per token", "known product", "oracle")


class Method(NamedTuple):
    """A chain of at most so many tokens, with this rule."""

    rule: Rule
    length: int

    def drafter(self) -> sn.Chain:
        """The drafter; a threshold that never stops is no rule at all."""
        rule: Any = self.rule
        never = math.isinf(getattr(rule, "threshold", None) or 0.0)
        return sn.Chain(self.length, stop=sn.FixedLength() if never else rule)

    def __str__(self) -> str:
        if isinstance(self.rule, sn.FixedLength | Oracle):
            return f"{self.length}"
        if math.isinf(self.rule.threshold):
            return f"{self.length}, never stops"
        return f"{self.length}, {self.rule.threshold:g}"


Cells = dict[tuple[str, float], list[Text]]  # by task and temperature
Rows = dict[tuple[str, float], dict[Method, list[Row]]]


def families(guessed: bool) -> dict[str, list[Method]]:
    """Every method that is tried, by its kind; `guessed`: the drafter has an acceptance head."""
    rules: dict[str, Iterable[Rule]] = {
        "MaxConfidence": map(sn.MaxConfidence, SHARES),
        "AdaEDL": map(sn.AdaEDL, SHARES),
        "SumEntropy": map(sn.SumEntropy, NATS),
        "PathScore": map(sn.PathScore, SHARES),
        "SpecDecPP": map(sn.SpecDecPP, SHARES if guessed else ()),
        "known per token": map(KnownAcceptance, SHARES),
        "known product": (KnownAcceptance(share, whole=True) for share in SHARES),
        "oracle": (Oracle(),),
    }
    found = {FIXED: [Method(sn.FixedLength(), length) for length in LENGTHS]}
    for name, some in rules.items():
        found[name] = [Method(rule, length) for rule in some for length in LENGTHS]
    return {name: some for name, some in found.items() if some}


def measure(target: str = "", draft: str = "", n: int = 0, seconds: bool = False) -> dict:
    """All figures, on `n` prompts per task and half (20)."""
    runs_as = calibration.choice(fresh=True) if seconds else SimpleNamespace(
        dtype="float32", threads=torch.get_num_threads()
    )  # fmt: skip
    with running_as(runs_as.dtype, runs_as.threads):
        found = _measured(target, draft, n or 20, seconds)
    return {"runs_as": f"{runs_as.dtype}, {runs_as.threads} thread(s)", **found}


def _measured(target: str, draft: str, n: int, seconds: bool) -> dict:
    figures: dict[str, Any] = {"n": n, "pairs": {}}
    items: dict[str, Sequence] = {task: examples(task, 2 * n, 3) for task in TASKS}
    pairs = [("embedded", sn.load_pair(target, draft), items)]
    if REAL.is_dir():
        real = sn.load_pair(str(REAL / "stories260K"), str(REAL / "llama2xs-500it"))
        some = [SimpleNamespace(prompt=text, image=None) for text in STORIES[: max(4, 5 * n)]]
        pairs.append(("stories", real, {"story": some}))
    else:
        figures["left_out"] = f"stories: {REAL.name} is missing, two small models trained elsewhere"
    for name, pair, group in pairs:
        figures["pairs"][name] = _pair(pair, group, name, seconds)
    found: dict = json.loads(json.dumps(figures))  # as they are stored, every key a text
    return found


def _pair(pair: sn.Pair, items: Mapping[str, Sequence], label: str, seconds: bool) -> dict:
    kept = RowCache(KEPT / "stopping_texts.jsonl", Stored)
    halves: list[Cells] = [{}, {}]
    for (task, group), temperature in itertools.product(items.items(), TEMPERATURES):
        for half, some in zip(halves, (group[::2], group[1::2]), strict=True):
            half[task, temperature] = followed(
                pair,
                some,
                sn.Sampling(temperature),
                seeds=SEEDS if temperature else SEEDS[:1],
                kept=kept,
                label=f"{label} {task} {temperature}",
            )
    tuning, other = (_replayed(half) for half in halves)
    c = pair.parameter_ratio
    assert c is not None  # there is a draft model
    figures: dict[str, Any] = {"c": c, "calibration": _calibration(halves), "costs": {}}
    figures["knobs"] = _knobs(halves[1])
    for name, cost in {"MBSU": (c, 0.0), "c 0.07, row 0.05": (0.07, 0.05)}.items():
        found: dict[Any, dict] = {t: _by_rule(tuning, other, cost, (t,)) for t in TEMPERATURES}
        found["all"] = _over_all(found, other, cost)
        figures["costs"][name] = found
    drawn = tuple(t for t in TEMPERATURES if t)
    figures["regime"] = {cost: _regime(tuning, other, cost, drawn) for cost in COSTS}
    figures["decoded"] = _decoded(pair, items, figures["costs"], seconds, label)
    for found in figures["costs"].values():  # figures are plain values
        for temperature in TEMPERATURES:
            for row in found[temperature].values():
                row["method"] = str(row["method"])
    return figures


def _replayed(cells: Cells) -> Rows:
    head = guessed([text for texts in cells.values() for text in texts])
    methods = [method for some in families(head).values() for method in some]
    return {
        place: {
            m: [replayed_row(text, replay(text, m.rule, m.length)) for text in texts]
            for m in methods
        }
        for place, texts in cells.items()
    }


# ------------------------------------------------------------------------------------- choice


def _chosen(
    rows: Rows, cost: tuple[float, float], temperatures: Sequence[float], length: int = 0
) -> dict[str, Method]:
    """The best of every kind, by the geometric mean over tasks and temperatures of its speed.

    With `length`, of all methods of this length.
    """
    places = [place for place in rows if place[1] in temperatures]
    tried = rows[places[0]]

    def speed(method: Method) -> float:
        return math.fsum(
            math.log(pooled(costed(rows[place][method], *cost), "tokens_per_second"))
            for place in places
        )

    best = {
        name: max((one for one in some if length in (0, one.length)), key=speed)
        for name, some in families(any(isinstance(m.rule, sn.SpecDecPP) for m in tried)).items()
    }
    return best | {f"fixed {n}": Method(sn.FixedLength(), n) for n in BASELINES}


def _ratio(rows: Rows, pairs: Sequence[tuple], cost: tuple[float, float]) -> dict:
    """Speed of one method over another's; `pairs` holds (place, one, other)."""
    cells = [
        (costed(rows[place][one], *cost), costed(rows[place][base], *cost))
        for place, one, base in pairs
    ]
    return geometric_ratio(cells, "tokens_per_second")


def _by_rule(tuning: Rows, other: Rows, cost, temperatures) -> dict[str, dict]:
    """Every kind at its best, on the other half: figures, and the ratio to the best fixed one."""
    chosen = _chosen(tuning, cost, temperatures)
    places = [place for place in other if place[1] in temperatures]
    found = {}
    for name, method in chosen.items():
        rows = [row for place in places for row in other[place][method]]
        calls = sum(row.calls for row in rows)
        speeds = [pooled(costed(other[p][method], *cost), "tokens_per_second") for p in places]
        found[name] = {
            "method": method,
            "speed": math.exp(float(np.mean(np.log(speeds)))),
            "block_efficiency": sum(row.tokens for row in rows) / calls,
            "wasted_per_call": sum(row.drafted - row.accepted for row in rows) / calls,
            "ratio": _ratio(other, [(p, method, chosen[FIXED]) for p in places], cost),
        }
    return found


def _over_all(found: dict, other: Rows, cost) -> dict[str, dict]:
    """Over tasks and temperatures, with what was chosen at each temperature."""
    pairs = {
        name: [
            (place, found[place[1]][name]["method"], found[place[1]][FIXED]["method"])
            for place in other
        ]
        for name in next(iter(found.values()))
    }
    return {name: {"ratio": _ratio(other, some, cost)} for name, some in pairs.items()}


def _regime(tuning: Rows, other: Rows, cost: float, temperatures) -> dict:
    """The paper's question: by how much is a rule faster than this or that fixed length?

    Over 3, 7 and 16 with the rule's longest draft the same, as the paper compares; over the best
    fixed length with the best length of the rule.
    """
    places = [place for place in other if place[1] in temperatures]
    best = _chosen(tuning, (cost, 0.0), temperatures)
    found: dict[str, Any] = {"chosen": {name: str(method) for name, method in best.items()}}
    for base, length in {**{f"fixed {n}": n for n in BASELINES}, FIXED: 0}.items():
        chosen = _chosen(tuning, (cost, 0.0), temperatures, length)
        for name in [one for one in RULES if one in chosen]:
            pairs = [(place, chosen[name], chosen[base]) for place in places]
            found[f"{name} / {base}"] = _ratio(other, pairs, (cost, 0.0))
    return found


# -------------------------------------------------------------------------------- calibration


def _calibration(halves: Sequence[Cells]) -> dict[str, dict]:
    """How well AdaEDL's score tells acceptance, by task, over all that was drawn at T = 1."""
    found = {}
    for task in dict.fromkeys(task for task, _ in halves[0]):
        texts = [text for half in halves for text in half[task, 1.0]]
        bins = calibration_of(texts, sn.AdaEDL())
        true = np.concatenate([text.overlap for text in texts])
        scores = np.concatenate([scores_of(sn.AdaEDL(), text)[:, 0] for text in texts])
        found[task] = {
            "n": len(true),
            "score": float(scores.mean()),
            "acceptance": float(true.mean()),
            "lower_bound": float((scores <= true).mean()),
            "auc": auc_of(texts, sn.AdaEDL()),
            "auc_head": auc_of(texts, sn.SpecDecPP()) if guessed(texts) else None,
            "bins": bins,
            "whole": whole_auc(texts),
        }
    return found


def _knobs(cells: Cells) -> dict[str, float]:
    """How far AdaEDL's threshold moves in an answer, and whether entropy factor and start are two
    knobs: 0.5 with factor 0.2 is the same cut in nats as another start with factor 0.4."""
    same = 1 - (1 - 0.5) * math.sqrt(0.4 / 0.2)
    moves, blocks = [], 0
    differ = {True: 0, False: 0}
    for (_, temperature), texts in cells.items():
        for text in texts if temperature else ():
            ours = replay(text, sn.AdaEDL(0.5), 16)
            moves.append((ours[-1].threshold or 0.0) - 0.5)
            blocks += len(ours)
            for adaptive in differ:
                one, two = (
                    replay(text, sn.AdaEDL(start, adaptive=adaptive, entropy_factor=factor), 16)
                    for start, factor in ((0.5, 0.2), (same, 0.4))
                )
                plain = [[b._replace(threshold=None) for b in some] for some in (one, two)]
                differ[adaptive] += sum(a != b for a, b in itertools.zip_longest(*plain))
    return {
        "mean_move": float(np.mean(moves)),
        "largest_move": float(np.abs(moves).max()),
        "blocks": blocks,
        "other_start": same,
        "differ_static": differ[False],
        "differ_adaptive": differ[True],
    }


# ------------------------------------------------------------------------------------ decoded


def _decoded(pair, items, costs, seconds: bool, label: str) -> dict:
    """The chosen methods decode, on the other half: does the replay hold, and what does it take?"""
    kept = RowCache(KEPT / "stopping.jsonl")
    cost = "c 0.07, row 0.05"
    found = {}
    for temperature in DECODED:
        told = costs[cost][temperature]
        names = [name for name in told if name not in UNKNOWABLE]
        methods = {name: told[name]["method"].drafter() for name in names}
        cells = [
            in_turns(
                pair,
                group[1::2],
                methods,
                sn.Sampling(temperature),
                seeds=SEEDS if temperature else SEEDS[:1],
                kept=kept,
                timed=seconds,
                label=f"decode {label} {task} {temperature}",
            )
            for task, group in items.items()
        ]
        found[temperature] = {
            name: {
                "block_efficiency": pooled([r for c in cells for r in c[name]], "block_efficiency"),
                "tokens_per_second": pooled(
                    [r for c in cells for r in c[name]], "tokens_per_second"
                ),
                "replayed": told[name]["block_efficiency"],
                "ratio_seconds": geometric_ratio(
                    [(c[name], c[FIXED]) for c in cells], "tokens_per_second"
                ),
            }
            for name in names
        }
    return {"seconds": seconds, "found": found}


# -------------------------------------------------------------------------------------- table


def _head(row: dict) -> str:
    return "" if row["auc_head"] is None else f" (of the acceptance head {row['auc_head']:.2f})"


def _between(ratio: dict, digits: int = 3) -> str:
    return "{:.{n}f} ({:.{n}f}-{:.{n}f})".format(
        ratio["ratio"], ratio["low"], ratio["high"], n=digits
    )


def table(figures: dict) -> str:
    """The figures as text."""
    n = figures["n"]
    lines = [f"{n} prompts per task and half, runs as {figures['runs_as']}; by replay"]
    for label, part in figures["pairs"].items():
        for name, row in part["calibration"].items():
            whole = ", ".join(f"{key} {value:.2f}" for key, value in row["whole"].items())
            lines.append(
                f"{label} {name}: {row['n']} places at T = 1, mean score {row['score']:.2f}, "
                f"acceptance {row['acceptance']:.2f}, a lower bound at {row['lower_bound']:.0%}, "
                f"AUC {row['auc']:.2f}{_head(row)}; of the whole draft: {whole}"
            )
            bins = " ".join(
                f"{b['score']:.2f}>{b['acceptance']:.2f}({b['n']})" for b in row["bins"]
            )
            lines.append(f"  score > acceptance (places): {bins}")
        knob = part["knobs"]
        lines.append(
            f"{label}: AdaEDL's threshold moves by {knob['mean_move']:.4f} in an answer (at most "
            f"{knob['largest_move']:.4f}); {knob['other_start']:.3f} with factor 0.4 for 0.5 with "
            f"0.2: {knob['differ_static']} of {knob['blocks']} blocks differ, "
            f"{knob['differ_adaptive']} where the threshold moves"
        )
        for cost, found in part["costs"].items():
            lines.append(f"{label}, {cost}: speed (over the best fixed), tokens per call, chosen")
            for name in found["all"]:
                for temperature in map(str, TEMPERATURES):
                    row = found[temperature][name]
                    lines.append(
                        f"  {name:16} T {temperature}  {row['speed']:.2f}  {_between(row['ratio'])}"
                        f"  tokens {row['block_efficiency']:.2f}  wasted "
                        f"{row['wasted_per_call']:.2f}  [{row['method']}]"
                    )
                lines.append(f"  {name:16} all    {_between(found['all'][name]['ratio'])}")
        for cost, found in part["regime"].items():
            lines.append(f"{label}, T > 0, a draft step costs {float(cost):.3f}: {found['chosen']}")
            for base in (*(f"fixed {k}" for k in BASELINES), FIXED):
                words = "  ".join(
                    f"{name} {_between(found[f'{name} / {base}'])}"
                    for name in RULES
                    if f"{name} / {base}" in found
                )
                lines.append(f"  over {base:8} {words}")
        for temperature, found in part["decoded"]["found"].items():
            for name, row in found.items():
                words = (
                    f"{label} decoded T {temperature} {name:14} tokens per call "
                    f"{row['block_efficiency']:.2f}, replayed {row['replayed']:.2f}"
                )
                if part["decoded"]["seconds"]:
                    words += (
                        f"; {row['tokens_per_second']:.0f} tokens/s, over the best fixed "
                        f"{_between(row['ratio_seconds'])}"
                    )
                lines.append(words)
    if "left_out" in figures:
        lines.append(f"left out: {figures['left_out']}")
    return "\n".join(lines)


# ----------------------------------------------------------------------------------- RESULTS.md

NAMES = {
    FIXED: "best fixed length",
    "known per token": "true acceptance known, per token",
    "known product": "the same, as a product over the draft",
}
PAIRS = {
    "embedded": "The embedded pair",
    "stories": "Two small models trained elsewhere, stories260K and llama2xs-500it, on stories",
}


def markdown(figures: dict) -> str:
    """The figures as the tables of RESULTS.md."""
    n = figures["n"]
    lines = [
        f"Runs as {figures['runs_as']}, {n} prompts per task and half, two seeds where tokens are "
        "drawn. Every rule is replayed on texts of the target; its length and threshold are chosen "
        "together on one half by the figure that is reported of the other (geometric mean over "
        "tasks, 95 % over prompts). *Never stops* is a threshold that every rule may choose: then "
        "it is a fixed length."
    ]
    for label, part in figures["pairs"].items():
        lines += ["", f"### {PAIRS[label]}"]
        for cost, found in reversed(part["costs"].items()):
            what = f"By MBSU (c = {part['c']:.4f}, rows free)"
            if cost != "MBSU":
                what = "A draft step costs 0.07 of a target call, a row of the block 0.05"
            lines += ["", f"{what}; speed over the best fixed length (length, threshold):", ""]
            lines += _by_temperature(found)
        lines += _regimes(part) + _knowledge(part)
        knob = part["knobs"]
        lines += [
            "",
            f"AdaEDL's threshold moves by {knob['mean_move']:.3f} in an answer, at most "
            f"{knob['largest_move']:.3f}. {knob['other_start']:.3f} with entropy factor 0.4 in "
            f"place of 0.5 with 0.2 changes {knob['differ_static']} of {knob['blocks']} blocks "
            f"({knob['differ_adaptive']} where the threshold moves): one knob.",
            "",
            *_decoding(part["decoded"]),
        ]
    return "\n".join(lines)


def _by_temperature(found: dict) -> list[str]:
    told = [f"T = {float(t):g}" for t in map(str, TEMPERATURES)]
    lines = [f"| method | {' | '.join(told)} | all |", "|---" * (len(told) + 2) + "|"]
    for name in found["all"]:
        cells = [NAMES.get(name, name)]
        for temperature in map(str, TEMPERATURES):
            row = found[temperature][name]
            cells.append(f"{row['ratio']['ratio']:.2f} ({row['method']})")
        lines.append(f"| {' | '.join(cells)} | {_between(found['all'][name]['ratio'])} |")
    return lines


def _regimes(part: dict) -> list[str]:
    """By cost and baseline."""
    first = next(iter(part["regime"].values()))
    rules = [name for name in RULES if f"{name} / {FIXED}" in first]
    lines = [
        "",
        "Cost and baseline decide what a rule seems to gain (T = 0.7, 1 and 1.3, a block's rows "
        "free). Over 3, 7 and 16 a rule drafts at most as many, as papers compare; over the best "
        "fixed length it has its own best:",
        "",
        f"| a draft step costs | over | {' | '.join(rules)} |",
        "|---" * (len(rules) + 2) + "|",
    ]
    for cost, found in part["regime"].items():
        for base in (*(f"fixed {k}" for k in BASELINES), FIXED):
            over = f"best fixed ({found['chosen'][FIXED]})" if base == FIXED else base
            cells = [_between(found[f"{name} / {base}"], 2) for name in rules]
            lines.append(f"| {float(cost):.2f} | {over} | {' | '.join(cells)} |")
    return lines


def _knowledge(part: dict) -> list[str]:
    """What scores tell of one token, and of the whole draft."""
    tasks = part["calibration"]
    heads = [name for name in ("AdaEDL", "SumEntropy", "PathScore", "SpecDecPP", "length alone")
             if name in next(iter(tasks.values()))["whole"]]  # fmt: skip
    lines = [
        "",
        "What a score knows (T = 1), as AUC: whether this token will be kept, and whether all of "
        "the draft up to here will; *length alone* counts the tokens of the draft.",
        "",
        "| task | places | mean AdaEDL score | true acceptance | a lower bound at | this token: "
        f"AdaEDL | acceptance head | all of the draft: {' | '.join(heads)} |",
        "|---" * (7 + len(heads)) + "|",
    ]
    for task, row in tasks.items():
        head = "" if row["auc_head"] is None else f"{row['auc_head']:.2f}"
        cells = [f"{row['whole'][name]:.2f}" for name in heads]
        lines.append(
            f"| {task} | {row['n']} | {row['score']:.2f} | {row['acceptance']:.2f} | "
            f"{row['lower_bound']:.0%} | {row['auc']:.2f} | {head} | {' | '.join(cells)} |"
        )
    return lines


def _decoding(decoded: dict) -> list[str]:
    """What the chosen methods of cost 0.07 made of the other prompts when they decoded."""
    lines = [
        "The methods chosen for a draft step at 0.07, decoding: tokens per call, and as replayed"
        + (", and seconds over the best fixed length." if decoded["seconds"] else "."),
        "",
    ]
    more = " | seconds" if decoded["seconds"] else ""
    lines += [f"| method | T | tokens per call | replayed{more} |", "|---" * (4 + bool(more)) + "|"]
    for temperature, found in decoded["found"].items():
        for name, row in found.items():
            cells = [NAMES.get(name, name), f"{float(temperature):g}"]
            cells += [f"{row['block_efficiency']:.2f}", f"{row['replayed']:.2f}"]
            cells += [_between(row["ratio_seconds"])] if more else []
            lines.append(f"| {' | '.join(cells)} |")
    return lines
