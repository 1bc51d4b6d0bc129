"""How should a drafter be trained? Shipped drafters side by side: losses, start, eyes, vocabulary.

All of them decode the same prompts with the same seeds, in turns. c of the memory-bound speed-up
is parameters read per draft forward over those of a target forward, the eyes apart: the picture is
encoded once, for the target.
"""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import specnb as sn
from specnb.bench import KEPT, runs_as
from specnb.measure import Row, RowCache, costed, geometric_ratio, interval, row_of, turns
from specnb.measure.rows import Setting, method_key, models_of, prompt_key
from specnb.measure.runner import decode
from specnb.scenes import TASKS, examples
from specnb.scenes.words import WORDS, word_classes

ABOUT = (
    "Intervals are over prompts. Where a table has a line per recipe, every recipe was trained "
    "several times, with other orders of the answers and, where weights are new, other ones; a "
    "prompt is drawn with all of its trainings, and the least and the largest of them stand "
    "beside. All other tables are of the one training that is shipped. `drafter` is where the "
    "others of its size started from, `drafter-inherited` apart, which has had fewer steps; all "
    "learned from the same answers. Ratios are paired by prompt and seed, geometric means over the "
    "tasks."
)
SHIPPED = "drafter"
TEMPERATURES = {"greedy": 0.0, "T = 1": 1.0}
DRAFT_LENGTH = 5
MOST_NEW_TOKENS = 110
VOCABULARIES = (64, 96, 128, 192, 256)
QUOTING = ("conversation", "science")  # their prompts hold what answers repeat


class DraftRow(NamedTuple):
    """One run in figures, as in `Row`; of each word class what was examined and accepted."""

    prompt: str
    seed: int
    tokens: int
    calls: int
    drafted: int
    accepted: int
    examined: int
    forwards: int
    seconds: float
    lengths: str = ""
    function: int = 0
    function_right: int = 0
    named: int = 0
    named_right: int = 0
    seen: int = 0
    seen_right: int = 0


def measure(
    target: str = "", draft: str = "", n: int = 0, seconds: bool = False, seeds: int = 1
) -> dict:
    """All figures, on `n` evaluation prompts per task (60). `draft` names folders, with commas, in
    place of the shipped ones. With `seconds` every run is timed anew, beside all others. `seeds`:
    so many trainings of every recipe; those that are missing are made first, in minutes each."""
    if draft and seeds > 1:
        raise ValueError(f"--seeds {seeds}: recipes of the shipped drafters; leave --draft out")
    more = trainings(seeds)  # the longest comes first
    n = n or 60
    folders = [Path(name) for name in draft.split(",")] if draft else shipped()
    pairs: dict[str, sn.Pair] = {}
    goal = None
    for folder in folders:
        pair = sn.load_pair(target, str(folder))
        goal = goal or pair.target  # loaded once: all of them verify with the same weights
        pairs[Path(folder).name] = sn.Pair(goal, pair.draft)
    first = next(iter(pairs.values()))
    chain = sn.Chain(DRAFT_LENGTH)
    kept = None if seconds else RowCache(KEPT / "drafters.jsonl", DraftRow)
    runs = {name: (pair, chain) for name, pair in pairs.items()}
    figures: dict[str, Any] = {"n": n, "draft_length": DRAFT_LENGTH, "seconds": seconds}
    figures["runs_as"] = runs_as(first.target)
    figures["c"] = {name: ratio_of(pair) for name, pair in pairs.items()}
    rows = rows_of(runs, TASKS, n, kept, plain=seconds)
    figures["cells"] = _cells(rows, figures["c"])
    figures["ratios"] = _ratios(rows, figures["c"], next(iter(pairs)), seconds)
    if more:
        figures["trainings"] = _by_recipe(first, more, chain, n, rows)
    if not draft:
        figures["how"] = {name: _how(folder) for name, folder in zip(pairs, folders, strict=True)}
        model: Any = first.draft
        sizes = [k for k in VOCABULARIES if k < model.own_vocab_size]
        small = {k: model.trimmed(k) for k in sizes}
        trimmed = {k: sn.Pair(first.target, draft) for k, draft in small.items()}
        cut = {"all": (first, chain)} | {str(k): (pair, chain) for k, pair in trimmed.items()}
        costs = {name: ratio_of(pair) for name, (pair, _) in cut.items()}
        rows = rows_of(cut, TASKS, n, kept, plain=seconds)
        figures["vocabulary"] = {
            "c": costs,
            "cells": _cells(rows, costs),
            "ratios": _ratios(rows, costs, "all", seconds),
            "tail": tails(first.target, {k: draft.kept for k, draft in small.items()}, n),
        }
        sides = {
            "Chain(5)": sn.Chain(5),
            "PromptLookup(3, 8)": sn.PromptLookup(3, 8),
            "Either": sn.Either(sn.PromptLookup(3, 8), sn.Chain(5)),
        }
        looking = {name: (first, side) for name, side in sides.items()}
        rows = rows_of(looking, QUOTING, n, kept, plain=seconds)
        costs = dict.fromkeys(sides, ratio_of(first))
        figures["lookup"] = {
            "cells": _cells(rows, costs),
            "ratios": _ratios(rows, costs, "Chain(5)", seconds),
        }
    return figures


def ratio_of(pair: sn.Pair) -> float:
    ratio = pair.parameter_ratio
    assert ratio is not None  # each of them has a draft model
    return ratio


def shipped() -> list[Path]:
    """The folders of the embedded drafters, the one in use first."""
    from specnb.models.load import EMBEDDED

    return [EMBEDDED / SHIPPED, *sorted(EMBEDDED.glob(f"{SHIPPED}-*"))]


def _how(folder: Path) -> dict[str, Any]:
    about = folder / "alignment.json"
    return json.loads(about.read_text(encoding="utf-8")) if about.is_file() else {}


def trainings(seeds: int) -> dict[str, list[Path]]:
    """Each recipe of the shipped drafters trained with the seeds 1, 2 ...: folders by its name."""
    return {
        folder.name: [trained(folder, seed) for seed in range(1, seeds)]
        for folder in shipped()
        if seeds > 1 and _how(folder)
    }


def trained(folder: Path, seed: int, without: Mapping[str, int] = MappingProxyType({})) -> Path:
    """A drafter by the command on the card of `folder`, but with this seed; made where missing.

    `without` names options of that command that are left out, and how many values each has.
    """
    from specnb.training.__main__ import main

    kept, name = KEPT / "trainings", f"{folder.name}{'-rival' if without else ''}-{seed}"
    place, work = kept / name, kept / "work" / name
    if (place / "acceptance_head.safetensors").is_file():  # which is written last
        return place
    words = shlex.split(_how(folder)["command"])[3:]  # after python -m specnb.training
    for option, values in without.items():
        at = words.index(option)
        del words[at : at + 1 + values]
    for name in ("answers", "held_out"):  # the target is asked once for all of them
        if (kept / name).is_dir():
            shutil.copytree(kept / name, work / name, dirs_exist_ok=True)
    main([*words, "--seed", str(seed), "--work", str(work), "--out", str(place)])
    for name in ("answers", "held_out"):
        if not (kept / name).is_dir():
            (work / name).rename(kept / name)
    shutil.rmtree(work)
    return place


Rows = dict[tuple[str, str], dict[str, list[DraftRow]]]


def _by_recipe(
    first: sn.Pair, more: Mapping[str, Sequence[Path]], chain: sn.Chain, n: int, shipped_rows: Rows
) -> dict[str, Any]:
    """Every recipe's block efficiency over that of the drafter in use, all of its trainings pooled
    by prompt, and the least and the largest of the trainings alone."""
    runs = {
        (name, place.name): (sn.Pair(first.target, sn.load_pair("", str(place)).draft), chain)
        for name, places in more.items()
        for place in places
    }
    kept = RowCache(KEPT / "drafters.jsonl", DraftRow)
    rows = rows_of({place: run for (_, place), run in runs.items()}, TASKS, n, kept)
    found: dict[str, Any] = {"seeds": 1 + max(map(len, more.values())), "ratios": {}}
    for label in TEMPERATURES:
        found["ratios"][label] = {}
        for name in more:
            cells = [
                (
                    [cell[name], *(rows[key][place] for (of, place) in runs if of == name)],
                    cell[SHIPPED],
                )
                for key, cell in shipped_rows.items()
                if key[1] == label
            ]
            alone = [
                geometric_ratio(
                    [(plain_rows(ours[i]), plain_rows(base)) for ours, base in cells],
                    "block_efficiency",
                )["ratio"]
                for i in range(len(cells[0][0]))
            ]
            pooled = geometric_ratio(
                [
                    (
                        plain_rows([row for part in ours for row in part]),
                        plain_rows(base) * len(ours),
                    )
                    for ours, base in cells
                ],
                "block_efficiency",
            )
            found["ratios"][label][name] = {**pooled, "trainings": alone}
    return found


def rows_of(
    runs: Mapping[str, tuple[sn.Pair, Any]],
    tasks: Sequence[str],
    n: int,
    kept: RowCache | None,
    plain: bool = False,
) -> Rows:
    """(task, sampling) -> name -> rows, in the prompts' order."""
    found: Rows = {}
    runs = dict(runs)
    if plain:
        pair = next(iter(runs.values()))[0]
        runs["plain"] = (sn.Pair(pair.target, pair.draft), sn.drafters.NoDraft())
    known = {name: models_of(pair) for name, (pair, _) in runs.items()} if kept is not None else {}
    for task in tasks:
        items = examples(task, n, 0)
        for label, temperature in TEMPERATURES.items():
            sampling = sn.Sampling(temperature)
            cell: dict[str, list[DraftRow]] = {name: [] for name in runs}
            for number, name in turns(list(runs), n, f"{task} {label}"):
                pair, drafter = runs[name]
                item = items[number]
                asked = prompt_key(item.prompt, item.image)
                key, row = "", None
                if kept is not None:
                    setting = Setting(known[name], sampling, None, MOST_NEW_TOKENS)
                    key = setting.key(*method_key(drafter), asked, number)
                    row = kept.get(key)
                if row is None:
                    row = _row(pair, item, drafter, sampling, asked, number)
                    if kept is not None:
                        kept.add(key, row)
                cell[name].append(row)
            found[task, label] = cell
    return found


def _row(pair, item, drafter, sampling, asked: str, seed: int) -> DraftRow:
    run = decode(pair, item, drafter, sampling=sampling, max_new_tokens=MOST_NEW_TOKENS, seed=seed)
    classes = word_classes([run], [item.prompt])
    figures = row_of(run, asked, seed)._asdict()
    del figures["words"]  # here they are numbers
    for name in WORDS:
        hits = classes.get(name, [])
        figures |= {name: len(hits), f"{name}_right": sum(hits)}
    return DraftRow(**figures)


def tails(target: Any, kept: Mapping[int, Sequence[int]], n: int) -> dict[str, dict[str, float]]:
    """Of what the target says at temperature 1, on n prompts per task: the share of tokens that are
    not among the `kept` ids, by their number. A draft that lacks them ends there at the latest."""
    found: dict[str, dict[str, float]] = {}
    known = {k: frozenset(ids) for k, ids in kept.items()}
    for task in TASKS:
        said = [
            token
            for seed, item in enumerate(examples(task, n, 0))
            for token in sn.autoregressive(
                target,
                item.prompt,
                item.image,
                sampling=sn.Sampling(1.0),
                max_new_tokens=MOST_NEW_TOKENS,
                seed=seed,
            ).token_ids
        ]
        found[task] = {
            str(k): sum(token not in ids for token in said) / len(said) for k, ids in known.items()
        }
    return found


def share(rows: Sequence[Any], above: str, below: str) -> dict[str, float]:
    """Sum of one column over that of another, with its 95 % interval over prompts."""
    tops, bottoms = ([float(getattr(row, name)) for row in rows] for name in (above, below))
    low, high = interval(tops, bottoms, [row.prompt for row in rows])
    return {"value": sum(tops) / max(sum(bottoms), 1e-12), "low": low, "high": high}


def plain_rows(rows: Sequence[DraftRow]) -> list[Row]:
    """Without the word classes."""
    shared = set(Row._fields) & set(DraftRow._fields)
    return [Row(**{name: getattr(row, name) for name in shared}) for row in rows]


def _cells(rows: Rows, costs: Mapping[str, float]) -> list[dict[str, Any]]:
    lines = []
    for (task, label), cell in rows.items():
        for name, own in cell.items():
            if name == "plain":
                continue
            line: dict[str, Any] = {
                "task": task,
                "sampling": label,
                "drafter": name,
                "alpha": share(own, "accepted", "examined"),
                "tau": share(own, "tokens", "calls"),
                "mbsu": share(costed(plain_rows(own), costs[name]), "tokens", "seconds"),
            }
            for word in WORDS:
                n = sum(getattr(row, word) for row in own)
                line[word] = share(own, f"{word}_right", word) | {"n": n}
            lines.append(line)
    return lines


def _ratios(
    rows: Rows, costs: Mapping[str, float], base: str, seconds: bool
) -> dict[str, dict[str, dict[str, float]]]:
    """sampling -> drafter -> MBSU over that of `base`, tau over its tau, and measured speed over it
    and over plain decoding where runs were timed."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    names = [name for name in next(iter(rows.values())) if name != "plain"]
    for label in TEMPERATURES:
        cells = [cell for (_, one), cell in rows.items() if one == label]
        found[label] = {}
        for name in names:
            line = {}
            kinds = {"tau": (name, base), "mbsu": (name, base)}
            if seconds:
                kinds |= {"speed": (name, base), "over_plain": (name, "plain")}
            for kind, (mine, theirs) in kinds.items():
                for key, value in _ratio(cells, mine, theirs, kind, costs).items():
                    line[f"{kind}{key}"] = value
            found[label][name] = line
    return found


def _ratio(cells, mine: str, theirs: str, kind: str, costs) -> dict[str, float]:
    """Geometric mean over cells of pooled mine / theirs, prompts resampled in pairs. MBSU is the
    speed where a run takes calls + c * draft forwards, in target forwards."""

    def rows(cell: Mapping[str, Sequence[DraftRow]], name: str) -> list[Row]:
        found = plain_rows(cell[name])
        return costed(found, costs[name]) if kind == "mbsu" else found

    figure = "block_efficiency" if kind == "tau" else "tokens_per_second"
    found = geometric_ratio([(rows(cell, mine), rows(cell, theirs)) for cell in cells], figure)
    return {"": found["ratio"], "_low": found["low"], "_high": found["high"]}


# ------------------------------------------------------------------------------------- printing


def _with_ends(figure: Mapping[str, float], digits: int = 2) -> str:
    value, low, high = (figure[key] for key in ("value", "low", "high"))
    return f"{value:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


def _ratio_text(line: Mapping[str, float], kind: str) -> str:
    if kind not in line:
        return "-"
    return f"{line[kind]:.3f} ({line[f'{kind}_low']:.3f}-{line[f'{kind}_high']:.3f})"


def table(figures: dict) -> str:
    """The figures as Markdown."""
    n = figures["n"]
    lines = [
        f"{n} evaluation prompts per task, draft length {figures['draft_length']}, 95 % over "
        "prompts.",
        "",
        *_cell_table(figures["cells"], figures["c"]),
        "",
        f"Against `{next(iter(figures['c']))}`, geometric mean over the tasks:",
        "",
        *_ratio_table(figures["ratios"]),
        "",
        "Accepted of what was examined, by the word that stood there in the end: seen words tell "
        "what neither the prompt nor the text so far has named.",
        "",
        *_word_table(figures["cells"]),
    ]
    if "trainings" in figures:
        lines += ["", *_training_table(figures["trainings"])]
    if "vocabulary" in figures:
        cut = figures["vocabulary"]
        lines += ["", "The drafter with k ids of its vocabulary:", ""]
        lines += _cell_table(cut["cells"], cut["c"], "ids")
        lines += ["", *_ratio_table(cut["ratios"], "ids")]
        if "tail" in cut:
            lines += ["", *_tail_table(cut["tail"])]
        lines += ["", "Words, as above:", "", *_word_table(cut["cells"], "ids")]
    if "lookup" in figures:
        cut = figures["lookup"]
        lines += ["", "Prompt lookup, and the drafter where it finds nothing:", ""]
        lines += _cell_table(cut["cells"], None, "method")
        lines += ["", *_ratio_table(cut["ratios"], "method")]
    return "\n".join(lines)


def _cell_table(cells, costs: Mapping[str, float] | None, what: str = "drafter") -> list[str]:
    lines = [f"| task | sampling | {what} | c | alpha | block efficiency | MBSU |"]
    lines.append("|---|---|---|---|---|---|---|")
    for cell in cells:
        cost = f"{costs[cell['drafter']]:.4f}" if costs else "-"
        lines.append(
            f"| {cell['task']} | {cell['sampling']} | {cell['drafter']} | {cost} "
            f"| {_with_ends(cell['alpha'], 3)} | {_with_ends(cell['tau'])} "
            f"| {_with_ends(cell['mbsu'])} |"
        )
    return lines


def _ratio_table(ratios, what: str = "drafter") -> list[str]:
    timed = any("speed" in line for part in ratios.values() for line in part.values())
    head = f"| {what} | sampling | block efficiency | MBSU |"
    head += " speed | over plain decoding |" if timed else ""
    lines = [head, "|---|---|---|---|" + "---|---|" * timed]
    for label, part in ratios.items():
        for name, line in part.items():
            row = f"| {name} | {label} | {_ratio_text(line, 'tau')} | {_ratio_text(line, 'mbsu')} |"
            if timed:
                row += f" {_ratio_text(line, 'speed')} | {_ratio_text(line, 'over_plain')} |"
            lines.append(row)
    return lines


def _training_table(figures: Mapping[str, Any]) -> list[str]:
    lines = [
        f"{figures['seeds']} trainings of every recipe: block efficiency over that of `{SHIPPED}`, "
        "geometric mean over the tasks.",
        "",
        "| recipe | sampling | all trainings | least | largest |",
        "|---|---|---|---|---|",
    ]
    for label, part in figures["ratios"].items():
        for name, line in part.items():
            pooled = f"{line['ratio']:.3f} ({line['low']:.3f}-{line['high']:.3f})"
            alone = line["trainings"]
            lines.append(f"| {name} | {label} | {pooled} | {min(alone):.3f} | {max(alone):.3f} |")
    return lines


def _tail_table(tails: Mapping[str, Mapping[str, float]]) -> list[str]:
    sizes = list(next(iter(tails.values())))
    lines = ["Of what the target says at T = 1, the share of tokens outside of the k ids:", ""]
    lines += ["| task | " + " | ".join(sizes) + " |", "|---|" + "---|" * len(sizes)]
    for task, shares in tails.items():
        lines.append(f"| {task} | " + " | ".join(f"{shares[k]:.3%}" for k in sizes) + " |")
    return lines


def _word_table(cells, what: str = "drafter") -> list[str]:
    lines = [f"| task | sampling | {what} | function | named | seen |", "|---|---|---|---|---|---|"]
    for cell in cells:
        words = " | ".join(
            f"{cell[word]['value']:.3f} ({cell[word]['low']:.3f}-{cell[word]['high']:.3f})"
            if cell[word]["n"]
            else "-"
            for word in WORDS
        )
        lines.append(f"| {cell['task']} | {cell['sampling']} | {cell['drafter']} | {words} |")
    return lines
