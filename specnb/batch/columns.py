"""What the columns of a collected sweep mean; RESULTS.md holds the table."""

from __future__ import annotations

import ast
import io
import json
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

from specnb.paths import NOTEBOOKS

FIXED = {
    "run": "id of the run: the notebook's name and a sum over everything that decides it",
    "notebook": "the lesson, without its ending",
    "status": "`ok`, `failed` or `timeout`; only `ok` has measurements",
    "seed": "first seed; prompt i draws with seed + i",
    "task": "caption, conversation, science, or the task of your own prompts",
    "method": "text of the method (`specnb.methods`), or the lesson's short name for it",
    "budget": "nodes the target scores per call, where a lesson compares at equal budget",
    "prompt": "number of the prompt, from 0",
    "tokens": "tokens emitted, summed over the seeds of the prompt",
    "target_calls": "forwards of the target after the prefill",
    "drafted": "tokens proposed by the drafter",
    "accepted": "proposed tokens that the target kept",
    "accepted_lengths": "how many calls with drafts kept 0, 1, 2 ... of them",
    "kept_by_word": "places with a kept draft / an examined one, by class of word; our scenes only",
    "seconds": "s, drafting and verifying, without prefill",
    "plain_seconds": "s, plain decoding of the same prompt in turns with it, without prefill",
    "plain_tokens": "tokens of that plain run",
    "block_efficiency": "tokens / target_calls",
    "speedup": "(plain_seconds / plain_tokens) / (seconds / tokens)",
    "machine": "system, processor and cores of the run",
    "threads": "threads of torch in the run",
    "finished": "when the run ended, UTC",
    "error": "what ended a run that is not `ok`",
    "version.*": "version of Python or of the package named",
}
UNDESCRIBED = "see its lesson"
UNSAID = {"n_prompts": "how many of the prompts"}  # whose names say it all in a notebook
FIGURES = {
    "block_efficiency": "tokens per target call of the shown run",
    "target_calls": "forwards of the target in the shown run",
    "tokens": "tokens of the shown run",
    "equal_prompts": "prompts on which greedy speculative text equals plain text",
    "fitted_acceptance_rate": "acceptance rate that fits block efficiency by draft length best",
    "toy_accept_prob": "sum of min(target, draft) of the toy distributions",
    "wrong_verifier_distance": "total variation between target and a verifier without residual",
    "predicted_speedup": "of the tuned method, from the costs of forwards and its acceptance",
    "measured_speedup": "of the tuned method, times per token of plain decoding over its own",
    "block_efficiency_*": "tokens per target call of one task",
    "mbsu_*": "memory-bound speed-up of one task",
    "function_words": "accepted share of examined drafts that are function words",
    "seen_words": "accepted share of examined drafts that tell something only the picture shows",
    "spearman": "rank correlation of draft entropy and acceptance probability",
    "bound_holds": "share of positions where the entropy bound is below the acceptance probability",
    "bias_of_dropping": "total variation caused by a rule that sees the token it drops",
    "oracle_over_fixed": "speed of the oracle over the best fixed length, replayed at c = 0.1",
    "wasted_rule": "rejected or unexamined drafts of the stopping rule",
    "wasted_fixed": "rejected or unexamined drafts of the fixed length",
    "bias_of_sorting": "total variation caused by trying siblings in order of probability",
    "target_calls_rsd_c": "forwards of the target in the shown RSD-C run",
    "two_siblings": "share of places where one of the first two siblings is kept",
    "toy_error": "largest error of a probability of the lesson's own drafter on a toy",
    "wrong_row_error": "the same for a drafter that declares a wrong row on purpose",
    "pairs": "tokens per target call of the lesson's own drafter, which counts pairs",
    "exercise_2": "the same of the drafter of exercise 2",
    "gain_of_tv_percent": "block efficiency of TV over KL at temperature 1, from stored results",
    "tokens_per_call_blind": "tokens per target call of the language-only drafter",
    "tokens_per_call_eyes": "the same of the drafter with eyes",
    "started_*": "acceptance on held-out answers after a quarter of the steps, by loss",
    "live_*": "acceptance and predicted block efficiency of the drafter trained in the lesson",
    "bias_of_short_cut": "total variation caused by a middle level that draws without the residual",
    "error_of_sparse": "largest error of a probability with drafts that read a part of the cache",
    "computed_speedup": "over plain decoding at 124,928 tokens, computed from bytes that are read",
    "block_efficiency_12": "tokens per target call with drafts that read 12 slots",
    "block_efficiency_64": "the same with 64 slots",
    "block_over_token": "tokens per call of the block rule over the token rule, on the same drafts",
    "toy_gain": "expected tokens per call of the block rule over the token rule on a toy",
    "without_look_ahead": "total variation of a prefix test without the look at what follows",
    "token_residual": "total variation caused by the token rule's residual in the block rule",
    "two_tokens": "what becomes of a token of 0.7 where a draft of the other one is dropped",
    "runs": "runs in the reported table",
    "failed": "runs in the reported table that did not end well",
    "lines": "lines of the reported table",
    "speedup_*_*": "mean speed-up of a task and method of the reported table",
    "*_*": "tokens per target call of a method at a budget of nodes",
}


def markdown(folder: Path = NOTEBOOKS) -> str:
    """All columns as a Markdown table; parameters are described as the notebooks describe them."""
    lines = ["## Columns of a collected sweep", ""]
    lines += [
        "`python -m specnb.batch collect FOLDER` writes one line per method and prompt. Empty "
        "cells: the lesson does not have that parameter or figure.",
        "",
    ]
    lines += ["| column | meaning |", "|---|---|"]
    lines += [f"| `{name}` | {words} |" for name, words in FIXED.items()]
    for name, words in parameters(folder).items():
        lines.append(f"| `param.{name}` | {words} |")
    for name, lessons in headlines(folder).items():
        words = FIGURES.get(name, UNDESCRIBED)
        lines.append(f"| `figure.{name}` | {words} ({', '.join(lessons)}) |")
    return "\n".join(lines)


def meaning(figure: str) -> str:
    """Words for one headline figure of a run; where none are known, its name."""
    if figure in FIGURES:
        return FIGURES[figure]
    for name, words in FIGURES.items():
        prefix, star, _ = name.partition("*")
        if prefix and star and figure.startswith(prefix):
            return f"{words}: {figure.removeprefix(prefix).replace('_', ' ')}"
    said = figure.replace("_", " ")
    return f"{FIGURES['*_*']}: {said}" if re.fullmatch(r".+_\d+", figure) else said


def describes(column: str, folder: Path = NOTEBOOKS) -> bool:
    """Whether the table has a row for this column."""
    kind, _, rest = column.partition(".")
    if kind in ("param", "figure") and rest:
        names = list(parameters(folder) if kind == "param" else headlines(folder))
        return any(re.fullmatch(name.replace("*", ".*"), rest) for name in names)
    return column in FIXED or f"{kind}.*" in FIXED


def parameters(folder: Path = NOTEBOOKS) -> dict[str, str]:
    """Every parameter of the notebooks with the words of its comment, the first notebook's."""
    found: dict[str, str] = {}
    for _, tags, source in _cells(folder):
        if "parameters" not in tags:
            continue
        comments = {
            token.start[0]: token.string.lstrip("# ")
            for token in tokenize.generate_tokens(io.StringIO(source).readline)
            if token.type == tokenize.COMMENT
        }
        for node in ast.parse(source).body:
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                words = comments.get(node.lineno) or UNSAID.get(node.target.id, UNDESCRIBED)
                found.setdefault(node.target.id, words.replace("|", "or"))
    found.pop("out_dir", None)  # says where, and is no part of a run
    found.pop("seed", None)  # has a column of its own
    return found


def headlines(folder: Path = NOTEBOOKS) -> dict[str, list[str]]:
    """Names of headline figures with their lessons; a part made at run time is a star."""
    found: dict[str, list[str]] = {}
    for lesson, _, source in _cells(folder):
        if "headline" not in source:
            continue
        for node in ast.walk(ast.parse(source)):
            target = getattr(node, "target", None) or next(iter(getattr(node, "targets", [])), None)
            if isinstance(target, ast.Name) and target.id == "headline":
                for name in _keys(node):
                    lessons = found.setdefault(name, [])
                    lessons += [lesson] if lesson not in lessons else []
    return found


def _keys(node: ast.AST) -> Iterator[str]:
    for one in ast.walk(node):
        keys = one.keys if isinstance(one, ast.Dict) else []
        keys = [one.key] if isinstance(one, ast.DictComp) else keys
        for key in keys:
            if isinstance(key, ast.Constant) and isinstance(key.value, str):
                yield key.value
            elif isinstance(key, ast.JoinedStr):
                parts = [str(p.value) if isinstance(p, ast.Constant) else "*" for p in key.values]
                yield "".join(parts)


def _cells(folder: Path) -> Iterator[tuple[str, list[str], str]]:
    """(number of the lesson, tags, source) of every code cell."""
    for path in sorted(folder.glob("*.ipynb")):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            if cell["cell_type"] == "code":
                tags = cell.get("metadata", {}).get("tags", [])
                yield path.stem.split("_")[0], tags, "".join(cell["source"])
