"""A first real model, SmolLM2: exact against transformers, and what prompt lookup brings it.

On the prompts of `specnb.smollm2.PROMPTS`, greedy, without a draft model. Methods take turns on
every prompt, several times over; ratios are per prompt, of medians, then medians per kind of
prompt. Times are without prefill.
"""

from __future__ import annotations

import json
import statistics
import time
from typing import Any

import psutil
import torch
from tqdm.auto import tqdm

import specnb as sn
from specnb import smollm2
from specnb.models import calibration

TOKENS = 64
ROUNDS = 3
N_EQUAL = 10  # prompts that are held against `generate`
LOOKUP = sn.PromptLookup(ngram=3, length=5)
PLAIN, COARSE, HELPED = "plain float32", "plain bfloat16", "prompt lookup"


def measure(target: str = "", draft: str = "", n: int = 0) -> dict[str, Any]:
    """The figures; `n` prompts of each kind, 0 for all. ValueError with a draft model, or where the
    model is not made."""
    if draft:
        raise ValueError(f"draft={draft!r}: drafts are looked up in the prompt here; leave it out")
    folder = smollm2.named(target or smollm2.NAME)
    torch.set_num_threads(calibration.cores())
    start_s, load_start = time.perf_counter(), psutil.getloadavg()[0]
    model: Any = sn.load_model(folder, device="cpu", dtype="float32")
    loaded_s = time.perf_counter() - start_s
    prompts = _prompts(n)
    equal = [_is_equal(model, prompt) for _, prompt in tqdm(prompts[:N_EQUAL], desc="generate")]
    coarse = sn.load_model(folder, device="cpu", dtype="bfloat16")
    rows = [
        {"kind": kind, **_timed(model, coarse, prompt)}
        for kind, prompt in tqdm(prompts, desc="in turns")
    ]
    return {
        "model": folder,
        "runtime": model.runtime,
        "certificate": model.certificate,
        "loaded_s": loaded_s,
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "load_average": [load_start, psutil.getloadavg()[0]],
        "equal": sum(equal),
        "compared": len(equal),
        "rows": rows,
        "passed": all(equal) and all(row["same"] for row in rows),
    }


def _prompts(n: int) -> list[tuple[str, str]]:
    """(kind, prompt) in the file's order, `n` of each kind, or all."""
    lines = smollm2.PROMPTS.read_text(encoding="utf-8").splitlines()
    found: list[tuple[str, str]] = []
    taken: dict[str, int] = {}
    for row in map(json.loads, lines):
        taken[row["task"]] = taken.get(row["task"], 0) + 1
        if not n or taken[row["task"]] <= n:
            found.append((row["task"], row["prompt"]))
    return found


@torch.inference_mode()
def _is_equal(model: Any, prompt: str) -> bool:
    """Whether plain decoding gives the tokens of transformers' `generate`, templated by it, too."""
    ours = sn.autoregressive(model, prompt, max_new_tokens=TOKENS).token_ids
    messages = [{"role": "user", "content": prompt}]
    inputs = model.tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    output = model.module.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)
    return tuple(output[0, inputs["input_ids"].shape[1] :].tolist()) == ours


def _timed(model: Any, coarse: Any, prompt: str) -> dict[str, Any]:
    """Seconds per token of each method, medians of `ROUNDS` turns."""
    ways = {
        PLAIN: lambda: sn.autoregressive(model, prompt, max_new_tokens=TOKENS),
        COARSE: lambda: sn.autoregressive(coarse, prompt, max_new_tokens=TOKENS),
        HELPED: lambda: sn.speculative(
            sn.Pair(model), prompt, drafter=LOOKUP, max_new_tokens=TOKENS
        ),
    }
    names, runs = list(ways), {}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(ROUNDS):
        for name in names[turn:] + names[:turn]:  # nobody is always the first
            run = runs[name] = ways[name]()
            took = run.seconds
            seconds[name].append(took / len(run.token_ids))
    return {
        "tokens": len(runs[PLAIN].token_ids),
        "same": runs[PLAIN].token_ids == runs[HELPED].token_ids,
        "block_efficiency": runs[HELPED].metrics.block_efficiency,
        "ms": {name: 1e3 * statistics.median(seconds[name]) for name in ways},
    }


def table(figures: dict[str, Any]) -> str:
    """The figures in Markdown, with what they were measured on."""
    rows = figures["rows"]
    ms = {name: statistics.median(row["ms"][name] for row in rows) for name in rows[0]["ms"]}
    before, after = figures["load_average"]
    lines = [
        f"{figures['model']}: {figures['runtime']}, {figures['certificate']}; loaded in "
        f"{figures['loaded_s']:.1f} s.",
        f"Greedy text equal to transformers' `generate`: {figures['equal']} of "
        f"{figures['compared']} prompts, up to {TOKENS} tokens, float32.",
        f"Same text with {LOOKUP} as without: {sum(row['same'] for row in rows)} of {len(rows)}.",
        f"{figures['cpu']}, {figures['threads']} threads, load average {before:.1f} before and "
        f"{after:.1f} after; median ms per token: "
        + ", ".join(f"{name} {value:.1f}" for name, value in ms.items())
        + ".",
        "",
        f"| prompt | n | block efficiency | over {PLAIN} | from - to | over {COARSE} |",
        "|---|---|---|---|---|---|",
    ]
    for kind in dict.fromkeys(row["kind"] for row in rows):
        group = [row for row in rows if row["kind"] == kind]
        over, over_coarse = (
            sorted(row["ms"][base] / row["ms"][HELPED] for row in group) for base in (PLAIN, COARSE)
        )
        efficiency = statistics.median(row["block_efficiency"] for row in group)
        lines.append(
            f"| {kind} | {len(group)} | {efficiency:.2f} | {statistics.median(over):.2f} | "
            f"{over[0]:.2f} - {over[-1]:.2f} | {statistics.median(over_coarse):.2f} |"
        )
    return "\n".join(lines)
