"""Real time: speculative decoding against the best plain decoding and against transformers.

Number formats, threads, draft length, threshold and tree shape are chosen on other prompts than the
figures are of. Methods take turns on every prompt; ratios are per prompt, then medians. Prefill is
left out everywhere: a call that generates one token is taken from one that generates all.
"""

from __future__ import annotations

import copy
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest import mock

import torch

import specnb as sn
from specnb.exact import same_greedy
from specnb.measure import median_ratio, turns
from specnb.methods import name_of
from specnb.models import llama
from specnb.models.hf import HFModel
from specnb.models.load import EMBEDDED
from specnb.paths import ROOT
from specnb.scenes import TASKS, examples

TOKENS = 64
TEMPERATURES = (0.0, 1.0)
GAMMAS = (2, 3, 4, 5, 6, 7, 8, 10, 12)
FORMATS = ("float32", "bfloat16")  # of transformers; ours may have fp16 weights, too
THRESHOLDS = (0.2, 0.3, 0.4, 0.5, 0.6)
TREES = {
    0.0: (sn.TopKTree((2, 1, 1, 1)), sn.TopKTree((2, 1, 1, 1, 1)), sn.TopKTree((2, 2, 1, 1))),
    1.0: (
        sn.GumbelTopK((2, 1, 1, 1)),
        sn.GumbelTopK((2, 2, 1, 1)),
        sn.StochasticBeam(2, 4),
        sn.StochasticBeam(2, 5),
        sn.StochasticBeam(3, 4),
    ),
}
WIDE, NARROW = "AVX-512 with bfloat16", "AVX2"
BASES = (
    "plain",
    "assisted, as shipped",
    "assisted, at its best",
    "generate",
    "own plain, same format",
)
BARS = {  # of the first four, by class of machine
    WIDE: dict(zip(BASES, (2.8, 5.0, 3.2, 6.0), strict=False)),
    NARROW: dict(zip(BASES, (2.0, 3.3, 3.2, 4.0), strict=False)),
}
AS_PREDICTED = 0.95
TIMES = ("draft_s", "verify_s")


class Run(NamedTuple):
    """One answer: how long its tokens took after the prefill, and what they were."""

    seconds: float
    token_ids: tuple[int, ...]
    calls: int  # target calls; 0 where they were not counted
    whole_s: float  # with prompt and picture
    record: sn.Record | None = None

    @property
    def ms_per_token(self) -> float:
        return 1e3 * self.seconds / len(self.token_ids)


class Method(NamedTuple):
    """A way to decode: run(item, temperature, seed), with its own number of threads."""

    run: Callable[[Any, float, int], Run]
    threads: int

    def __call__(self, item, temperature: float, seed: int) -> Run:
        torch.set_num_threads(self.threads)
        return self.run(item, temperature, seed)


# ------------------------------------------------------------------------------------------ methods


def plain(model, threads: int) -> Method:
    """Our loop without a drafter."""

    def run(item, temperature, seed):
        sampling = sn.Sampling(temperature)
        return _timed(
            sn.autoregressive(
                model,
                item.prompt,
                item.image,
                sampling=sampling,
                max_new_tokens=TOKENS,
                seed=seed,
            )
        )

    return Method(run, threads)


def speculative(pair, threads: int, drafter) -> Method:
    """Our loop with a drafter."""

    def run(item, temperature, seed):
        sampling = sn.Sampling(temperature)
        return _timed(
            sn.speculative(
                pair,
                item.prompt,
                item.image,
                drafter=drafter,
                sampling=sampling,
                max_new_tokens=TOKENS,
                seed=seed,
            )
        )

    return Method(run, threads)


def _timed(record: sn.Record) -> Run:
    whole = record.prefill_s + record.seconds
    return Run(record.seconds, record.token_ids, len(record.blocks), whole, record)


def transformers(model: HFModel, threads: int, assistant=None, **more) -> Method:
    """`generate` of transformers, assisted where there is an assistant; `more` are its settings."""

    @torch.inference_mode()
    def run(item, temperature, seed):
        ids, extras = model.encode(item.prompt, item.image)
        settings: dict[str, Any] = {"do_sample": temperature > 0, **more}
        if temperature > 0:
            settings |= {"temperature": temperature, "top_k": 0, "top_p": 1.0}
        if assistant is not None:
            settings["assistant_model"] = assistant

        def generate(n):
            torch.manual_seed(seed)
            began = time.perf_counter()
            output = model.module.generate(
                input_ids=torch.tensor([ids]),
                attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                **{name: model.placed(value) for name, value in (extras or {}).items()},
                eos_token_id=sorted(model.eos_ids),
                max_new_tokens=n,
                **settings,
            )
            return time.perf_counter() - began, tuple(output[0, len(ids) :].tolist())

        first, _ = generate(1)
        whole, token_ids = generate(TOKENS)
        # The call for one token contains one step of decoding, which belongs to the answer.
        n = len(token_ids)
        return Run((whole - first) * n / max(n - 1, 1), token_ids, 0, whole)

    return Method(run, threads)


def image_hidden(folder: str, image_token_id: int):
    """A drafter module for transformers' assisted decoding that does not look at image tokens.

    As shipped, it gets the raw placeholders into its prompt and is not told to skip them.
    """
    from transformers import LlamaForCausalLM

    class ImageHidden(LlamaForCausalLM):
        def forward(self, input_ids, attention_mask=None, position_ids=None, **rest):
            cache = rest.get("cache", rest.get("past_key_values"))  # its name from 5.24 on
            past = cache.get_seq_length() if cache is not None else 0
            total = past + input_ids.shape[1]
            if past == 0:
                self.image = input_ids[0] == image_token_id
            hidden = torch.zeros(total, dtype=torch.bool)
            hidden[: len(self.image)] = self.image[:total]
            later = torch.ones(total - past, total, dtype=torch.bool).triu(past + 1)
            mask = torch.zeros(1, 1, total - past, total, dtype=self.dtype)
            mask.masked_fill_(later | hidden, torch.finfo(self.dtype).min)
            positions = ((~hidden).cumsum(0) - 1).clamp_min(0)[None, past:]
            rest.pop("cache_position", None)
            return super().forward(input_ids, attention_mask=mask, position_ids=positions, **rest)

    return ImageHidden.from_pretrained(folder, dtype=torch.float32, use_safetensors=True).eval()


@contextmanager
def weights_as(layout: str):
    """Models that are loaded inside have their matrices in another layout than usual."""
    if layout == "transposed":
        with mock.patch.object(llama, "LEAST_PACKED", 2**40):
            yield
    else:
        with mock.patch.object(llama, "_kernel", _int8):
            yield


def _int8(weight: torch.Tensor, packed: bool):
    """x -> x W^T with W in eight bits, one scale per row."""
    scales = weight.detach().abs().amax(1).float() / 127
    small = (weight.detach().float() / scales[:, None]).round().to(torch.int8).contiguous()
    scales = scales.to(weight.dtype)
    return lambda x: torch._weight_int8pack_mm(x.contiguous(), small, scales)


# -------------------------------------------------------------------------------------- measurement


def side_by_side(
    methods: Mapping[Any, Method], items: Sequence, temperature: float, label: str
) -> dict[Any, list[Run]]:
    """Every method on every item, in turns; the order goes round."""
    found: dict[Any, list[Run]] = {name: [] for name in methods}
    for number, name in turns(list(methods), len(items), label):
        found[name].append(methods[name](items[number], temperature, number))
    return found


def middle(runs: Sequence[Run]) -> float:
    """Median milliseconds per token."""
    return statistics.median(run.ms_per_token for run in runs)


def ratio(base: Sequence[Run], runs: Sequence[Run]) -> dict[str, float]:
    """How many times as fast as `base`: median over prompts, 95 % interval by resampling them."""
    return median_ratio(*([run.ms_per_token for run in group] for group in (base, runs)))


def with_prefill(base: Sequence[Run], runs: Sequence[Run]) -> dict[str, float]:
    """`ratio` of whole answers, prompt and picture read."""
    each = ([run.whole_s / len(run.token_ids) for run in group] for group in (base, runs))
    return median_ratio(*each)


def machine_class() -> str:
    """AVX-512 with bfloat16, AVX2, or what torch calls the rest.

    oneDNN takes bfloat16 on every processor with AVX-512; only some of them multiply with it.
    """
    capability = torch.backends.cpu.get_cpu_capability()
    multiplies = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    if capability.startswith("AVX512") and llama.packs(torch.bfloat16) and multiplies():
        return WIDE
    return {"AVX2": NARROW, "AVX512": "AVX-512"}.get(capability, capability)


def stored_as() -> str:
    """The subject under which figures of this class of machine are kept, beside other classes."""
    return {WIDE: "speed", NARROW: "speed_avx2"}.get(machine_class(), "speed_other")


def choose(
    candidates: Mapping[Any, Method], items: Sequence, temperature: float, label: str
) -> tuple[Any, dict[str, float]]:
    """The fastest candidate on these items, and what each took (ms per token)."""
    runs = side_by_side(candidates, items, temperature, label)
    took = {name: middle(values) for name, values in runs.items()}
    return min(took, key=took.__getitem__), {str(name): value for name, value in took.items()}


def measure(target: str = "", draft: str = "", n: int = 0) -> dict:
    """All figures, on `n` prompts per task (30)."""
    n = n or 30
    threads = tuple(sorted({1, min(2, os.cpu_count() or 1)}))
    before = torch.get_num_threads()
    try:
        return _measure(target, draft, n, threads)
    finally:
        torch.set_num_threads(before)


def _measure(target: str, draft: str, n: int, threads: tuple[int, ...]) -> dict:
    folder = draft or str(EMBEDDED / "drafter")
    helper: Any = sn.load_model(folder, dtype="float32")
    ours = (*FORMATS, "float16") if llama.has_halves() else FORMATS
    loaded = {kind: sn.load_pair(target, draft, dtype=kind) for kind in ours}
    pairs = {
        kind: sn.Pair(pair.target, helper.beside(pair.target)) for kind, pair in loaded.items()
    }
    with weights_as("transposed"):
        transposed = sn.load_pair(target, draft, dtype="float32").target
    with weights_as("int8"):
        eight = sn.load_pair(target, draft, dtype="bfloat16").target
    slow: dict[str, Any] = {
        kind: sn.load_pair(target, draft, dtype=kind, runtime="transformers").target
        for kind in FORMATS
    }
    loaded_raw: Any = sn.load_model(folder, dtype="float32", runtime="transformers")
    raw = loaded_raw.module
    # What loading by transformers gives without a word about formats: the one they are saved in.
    saved = type(raw).from_pretrained(folder, use_safetensors=True).eval()
    saved_target = slow[str(saved.dtype).removeprefix("torch.")]
    hidden = image_hidden(folder, saved_target.image_token_id)

    tuning = [item for task in TASKS for item in examples(task, 4, 21)]
    took: dict[str, dict] = {}

    def best(name, candidates, temperature=0.0):
        chosen, took[name] = choose(candidates, tuning, temperature, f"choose {name}")
        return chosen

    plains = {"float32": pairs["float32"].target, "float32 transposed": transposed}
    plains |= {kind: pair.target for kind, pair in pairs.items()}
    kinds = {(kind, t): plain(model, t) for kind, model in plains.items() for t in threads}
    plain_kind, plain_threads = best("plain", kinds)
    chains = {
        (kind, t): speculative(pair, t, sn.Chain(5))
        for kind, pair in pairs.items()
        for t in threads
    }
    kind, n_threads = best("speculative", chains)
    generates = {(k, t): transformers(model, t) for k, model in slow.items() for t in threads}
    five = {"num_assistant_tokens": 5, "assistant_confidence_threshold": 0.0}
    assisted = {
        (k, t, image, length): transformers(model, t, assistant, **settings)
        for k, model in slow.items()
        for t in threads
        for image, assistant in (("raw", raw), ("hidden", hidden))
        for length, settings in (("its own length", {}), ("5 tokens", five))
    }
    peers = {
        "generate": generates[best("generate", generates)],
        "assisted, as shipped": transformers(saved_target, threads[-1], saved),
        "assisted, at its best": assisted[best("assisted", assisted)],
    }
    pair, int8_pair = pairs[kind], sn.Pair(eight, helper.beside(eight))
    same = plain(pairs[kind].target, n_threads)

    cells = []
    for temperature in TEMPERATURES:
        gammas = {g: speculative(pair, n_threads, sn.Chain(g)) for g in GAMMAS}
        gamma = best(f"draft length, T {temperature}", gammas, temperature)
        rules = {t: sn.Chain(12, stop=sn.AdaEDL(t)) for t in THRESHOLDS}
        rules_run = {t: speculative(pair, n_threads, rule) for t, rule in rules.items()}
        threshold = best(f"threshold, T {temperature}", rules_run, temperature)
        trees = {name_of(tree): speculative(pair, n_threads, tree) for tree in TREES[temperature]}
        tree = best(f"tree, T {temperature}", trees, temperature)
        own = {gamma: f"speculative {gamma}", threshold: "AdaEDL", tree: "tree"}
        fastest = min(
            (took[f"{what}, T {temperature}"][str(key)], own[key])
            for what, key in (
                ("draft length", gamma),
                ("threshold", threshold),
                ("tree", tree),
            )
        )[1]
        by_format = {
            name: method
            for k, other in pairs.items()
            for name, method in (
                (f"plain, {k}", plain(other.target, n_threads)),
                (f"speculative {gamma}, {k}", speculative(other, n_threads, sn.Chain(gamma))),
            )
        }
        methods = {
            "plain": kinds[plain_kind, plain_threads],
            "own plain, same format": same,
            **peers,
            **{f"speculative {g}": gammas[g] for g in GAMMAS},
            "AdaEDL": rules_run[threshold],
            "tree": trees[tree],
            **by_format,
            "plain, int8": plain(eight, n_threads),
            f"speculative {gamma}, int8": speculative(int8_pair, n_threads, sn.Chain(gamma)),
        }
        for task in TASKS:
            items = examples(task, n, 31)
            runs = side_by_side(methods, items, temperature, f"{task} T {temperature}")
            costs = [_costs(pair, item, gamma, n_threads) for item in items]
            cells.append(
                _cell(task, temperature, runs, costs, gamma)
                | {"threshold": threshold, "tree": tree, "fastest": fastest}
            )
            if temperature == 0:
                cells[-1] |= _identity(pairs, items, runs, gamma)
    return {
        "n": n,
        "machine": machine_class(),
        "chosen": {
            "plain": f"{plain_kind}, {_threads(plain_threads)}",
            "speculative": f"{kind}, {_threads(n_threads)}",
        },
        "tuning_ms": took,
        "cells": cells,
        "bars": _bars(cells),
        "growth": _growth(pair, n_threads, cells[0]["gamma"]),
        "tune": {str(t): _tune(pair, n_threads, tuning, n, t) for t in TEMPERATURES},
        "recording": _recording(pair, n_threads),
        "process": _processes(target, draft),
    }


def _threads(n: int) -> str:
    return f"{n} thread{'s' if n > 1 else ''}"


def _cell(task, temperature, runs, costs, gamma) -> dict:
    rows = {}
    for name, found in runs.items():
        calls = sum(run.calls for run in found)
        tokens = sum(len(run.token_ids) for run in found)
        rows[name] = {
            "ms_per_token": middle(found),
            "block_efficiency": tokens / calls if calls else None,
            **{f"over {base}": ratio(runs[base], found) for base in BASES},
            **{f"with prefill over {base}": with_prefill(runs[base], found) for base in BASES},
        }
    main = f"speculative {gamma}"
    ratios = [(cost["draft"] / cost["one"], cost["block"] / cost["one"]) for cost in costs]
    c, v = (statistics.median(column) for column in zip(*ratios, strict=True))
    predicted = [
        run.record.metrics.block_efficiency / (v_ + c_ * gamma)
        for run, (c_, v_) in zip(runs[main], ratios, strict=True)
    ]
    measured = [
        base.ms_per_token / run.ms_per_token
        for base, run in zip(runs["own plain, same format"], runs[main], strict=True)
    ]
    shares = [m / p for m, p in zip(measured, predicted, strict=True)]
    return {
        "task": task,
        "temperature": temperature,
        "gamma": gamma,
        "rows": rows,
        "c": c,
        "v": v,
        "predicted": statistics.median(predicted),
        "measured": statistics.median(measured),
        "measured / predicted": statistics.median(shares),
        "where": _where([run.record for run in runs[main]], gamma),
    }


def _where(records: Sequence[sn.Record], gamma: int) -> dict[str, float]:
    """Where a block's time is: medians over the runs, of blocks in which gamma tokens are drafted.

    A draft step is all that drafting takes, per forward of the drafter: the forward itself, the
    distribution, the draw, bookkeeping and what follows the verdict.
    """
    found = []
    for record in records:
        blocks = [block for block in record.blocks if block.n_drafted == gamma]
        if not blocks:
            continue  # an answer that ends in its first block
        drafting, verifying = (sum(getattr(b, key) for b in blocks) for key in TIMES)
        forwards = sum(b.draft_forwards for b in blocks)
        found.append((1e6 * drafting / forwards, drafting / (drafting + verifying)))
    if not found:
        return {}
    steps, shares = zip(*found, strict=True)
    return {"draft_step_us": statistics.median(steps), "drafting": statistics.median(shares)}


def _costs(pair, item, gamma: int, threads: int, rounds: int = 9) -> dict[str, float]:
    """Seconds of a draft forward, of gamma + 1 target tokens and of one; all on the same cache."""
    torch.set_num_threads(threads)
    text = pair.target.tokenizer.encode(item.answer, add_special_tokens=False)
    contexts = {"target": pair.target.open(item.prompt, item.image)}
    contexts["draft"] = pair.draft.open(item.prompt)
    for context in contexts.values():
        context.commit(text[: len(text) // 2])  # the middle of an answer
        context.forward()
    work = {
        "one": (contexts["target"], 1),
        "block": (contexts["target"], gamma + 1),
        "draft": (contexts["draft"], 1),
    }
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds):
        for name, (context, size) in work.items():
            began = time.perf_counter()
            context.forward(text[:1] * size, range(-1, size - 1))
            seconds[name].append(time.perf_counter() - began)
            context.commit([])  # forgets what was fed
    return {name: statistics.median(values) for name, values in seconds.items()}


def _identity(pairs, items, runs, gamma) -> dict:
    """Greedy texts of speculative and plain decoding: equal in float32, equal or a tie else."""
    comparisons = {kind: (f"plain, {kind}", f"speculative {gamma}, {kind}") for kind in pairs}
    found = {}
    for name, (alone, helped) in comparisons.items():
        model = pairs[name].target
        words = []
        for item, a, b in zip(items, runs[alone], runs[helped], strict=True):
            try:
                words.append(same_greedy(model, item.prompt, item.image, a.record, b.record))
            except AssertionError as error:
                words.append(f"WRONG: {error}")
        found[name] = {
            "equal": words.count("equal"),
            "others": [text for text in words if text != "equal"],
        }
    return {"identity": found}


def _bars(cells) -> dict:
    """Mean over the cells of the medians, per temperature and over all.

    Speculative is whatever was the fastest of ours on other prompts.
    """
    found = {}

    def mean_of(over: str, temperature: float) -> float:
        return statistics.fmean(
            cell["rows"][cell["fastest"]][over]["ratio"]
            for cell in cells
            if cell["temperature"] == temperature
        )

    for base, bar in BARS.get(machine_class(), BARS[NARROW]).items():
        by_temperature = {str(t): mean_of(f"over {base}", t) for t in TEMPERATURES}
        whole = statistics.fmean(mean_of(f"with prefill over {base}", t) for t in TEMPERATURES)
        mean = statistics.fmean(by_temperature.values())
        found[base] = {"bar": bar, "mean": mean, "with prefill": whole, **by_temperature}
    found["measured / predicted"] = {
        "bar": AS_PREDICTED,
        "mean": statistics.fmean(cell["measured / predicted"] for cell in cells),
    }
    return found


def _growth(pair, threads: int, gamma: int) -> dict:
    """Milliseconds per token for answers of 64, 128 and 256 tokens, end tokens forbidden."""
    torch.set_num_threads(threads)
    endless = copy.copy(pair.target)
    endless.eos_ids = frozenset()
    ends = torch.zeros_like(endless.allowed).index_fill_(0, torch.tensor([*pair.target.eos_ids]), 1)
    endless._allow(endless.allowed & ~ends)  # another sentence instead
    pairs = sn.Pair(endless, pair.draft)
    found: dict[str, dict[str, float]] = {"plain": {}, "speculative": {}}
    items = examples("caption", 8, 41)
    for n in (64, 128, 256):
        runs: dict[str, list[Run]] = {"plain": [], "speculative": []}
        for item in items:
            settings: dict[str, Any] = {"max_new_tokens": n, "sampling": sn.Sampling(1.0)}
            alone = sn.autoregressive(endless, item.prompt, item.image, **settings)
            drafter = sn.Chain(gamma)
            helped = sn.speculative(pairs, item.prompt, item.image, drafter=drafter, **settings)
            runs["plain"].append(_timed(alone))
            runs["speculative"].append(_timed(helped))
        for name, group in runs.items():
            seconds = sum(run.seconds for run in group)
            found[name][f"{n} ms/token"] = middle(group)
            found[name][f"{n} ms/call"] = 1e3 * seconds / sum(run.calls for run in group)
    return found


def _tune(pair, threads: int, tuning, n: int, temperature: float) -> dict:
    """The choice of `sn.tune` against the best of all its candidates, on other prompts."""
    torch.set_num_threads(threads)
    tuned = sn.tune(pair, tuning, sampling=sn.Sampling(temperature))
    drafters = {name_of(c.drafter): c.drafter for c in tuned.candidates}
    methods = {name: speculative(pair, threads, drafter) for name, drafter in drafters.items()}
    items = [item for task in TASKS for item in examples(task, n, 61)]
    runs = side_by_side(methods, items, temperature, f"every candidate, T {temperature}")
    took = {
        name: 1e3 * sum(run.seconds for run in group) / sum(len(run.token_ids) for run in group)
        for name, group in runs.items()
    }
    best = min(took, key=took.__getitem__)
    chosen = name_of(tuned.drafter)
    return {
        "chosen": chosen,
        "predicted": tuned.predicted,
        "measured": tuned.measured,
        "chosen_ms": took[chosen],
        "best": best,
        "best_ms": took[best],
        "behind": took[chosen] / took[best] - 1,
        "candidates": [
            {
                "drafter": name_of(c.drafter),
                "predicted_ms": c.ms_per_token,
                "ms": took[name_of(c.drafter)],
            }
            for c in tuned.candidates
        ],
    }


def _recording(pair, threads: int, rounds: int = 12) -> dict:
    """What the record of a run costs: whole calls with token rows over calls without them."""
    torch.set_num_threads(threads)
    items = examples("caption", rounds, 51)
    took: dict[str, list[float]] = {"on": [], "off": []}
    for item in items:
        for name in took:
            with (
                mock.patch("specnb.recording.token_rows", lambda blocks: [])
                if name == "off"
                else (mock.MagicMock())
            ):
                best = math.inf
                for _ in range(5):
                    began = time.perf_counter()
                    sn.speculative(pair, item.prompt, item.image, max_new_tokens=TOKENS)
                    best = min(best, time.perf_counter() - began)
            took[name].append(best)
    shares = [on / off for on, off in zip(took["on"], took["off"], strict=True)]
    return {"on / off": statistics.median(shares)}


FIRST_TOKEN = """
import sys
from pathlib import Path
import specnb as sn
from specnb.scenes import examples
item = examples("caption", 1, 0)[0]
pair = sn.load_pair(sys.argv[1], sys.argv[2])
sn.speculative(pair, item.prompt, item.image, max_new_tokens=int(sys.argv[3]))
status = Path("/proc/self/status")  # getrusage would report the parent's peak
lines = status.read_text().splitlines() if status.is_file() else []
print(next((line.split()[1] for line in lines if line.startswith("VmHWM")), 0))
"""


def _processes(target: str, draft: str) -> dict:
    """Import time, a cold process up to its first token (seconds), peak memory (GB)."""

    def call(code, *arguments):
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        return time.perf_counter() - began, done.stdout

    empty = statistics.median(call("pass")[0] for _ in range(5))
    imported = statistics.median(call("import specnb")[0] for _ in range(5))
    first = [call(FIRST_TOKEN, target, draft, "1")[0] for _ in range(3)]
    peak = int(call(FIRST_TOKEN, target, draft, str(TOKENS))[1].split()[-1])
    return {
        "import_s": imported - empty,
        "first_token_s": statistics.median(first),
        "peak_memory_gb": peak / 1e6,
    }


def table(figures: dict) -> str:
    """The figures as text."""
    chosen = figures["chosen"]
    lines = [
        f"{figures['machine']}; {figures['n']} prompts per task and temperature; medians per "
        "prompt, without prefill",
        f"best plain: {chosen['plain']}; speculative: {chosen['speculative']}",
    ]
    for cell in figures["cells"]:
        lines.append("")
        lines.append(
            f"{cell['task']}, T {cell['temperature']}: draft length {cell['gamma']}, AdaEDL "
            f"{cell['threshold']}, {cell['tree']}; fastest on other prompts: {cell['fastest']}"
        )
        lines.append(
            f"  c {cell['c']:.3f}  v {cell['v']:.2f}  predicted {cell['predicted']:.2f}  "
            f"measured {cell['measured']:.2f}  measured / predicted "
            f"{cell['measured / predicted']:.2f}"
        )
        step, share = _step_of(cell)
        lines.append(f"  draft step, as recorded: {step} us, drafting is {share} of a block")
        heads = "  ".join(f"/ {base[:20]:20}" for base in BASES)
        lines.append(f"  {'method':26} ms/token  tokens/call  {heads}")
        for name, row in cell["rows"].items():
            tau = row["block_efficiency"]
            words = f"  {name:26} {row['ms_per_token']:8.2f}  {tau or math.nan:11.2f}"
            for base in BASES:
                found = row[f"over {base}"]
                words += f"  {found['ratio']:5.2f} [{found['low']:5.2f}, {found['high']:5.2f}] "
            lines.append(words)
        for name, found in cell.get("identity", {}).items():
            more = "; ".join(found["others"])
            lines.append(f"  greedy texts in {name}: {found['equal']} equal {more}".rstrip())
    lines.append("")
    for base, row in figures["bars"].items():
        parts = ", ".join(f"T {t} {row[str(t)]:.2f}" for t in TEMPERATURES if str(t) in row)
        name = base if "/" in base else f"speculative / {base}"
        parts += f", with prefill {row['with prefill']:.2f}" if "with prefill" in row else ""
        lines.append(f"{name}: {row['mean']:.2f} (bar {row['bar']}) {parts}".rstrip())
    for name, row in figures["growth"].items():
        lines.append(f"{name}, by length: " + ", ".join(f"{k} {v:.2f}" for k, v in row.items()))
    for temperature, row in figures["tune"].items():
        lines.append(
            f"sn.tune, T {temperature}: {row['chosen']}, predicted {row['predicted']:.2f}, "
            f"measured {row['measured']:.2f} times plain; {row['behind']:.1%} behind the best of "
            f"all candidates on other prompts, {row['best']}"
        )
    lines.append(f"recording on / off: {figures['recording']['on / off']:.3f}")
    process = figures["process"]
    lines.append(
        f"import {process['import_s']:.2f} s, cold process to first token "
        f"{process['first_token_s']:.1f} s, peak memory {process['peak_memory_gb']:.2f} GB"
    )
    return "\n".join(lines)


def _step_of(cell: Mapping[str, Any]) -> tuple[str, str]:
    """A draft step in microseconds, and the share of drafting; older files have none."""
    where = cell.get("where", {})
    step, share = where.get("draft_step_us"), where.get("drafting")
    return ("-" if step is None else f"{step:.0f}"), ("-" if share is None else f"{share:.0%}")


def markdown(figures: dict) -> str:
    """The figures for RESULTS.md: bars, cells, number formats, and what was measured besides."""
    chosen, cells = figures["chosen"], figures["cells"]
    lines = [
        f"{figures['n']} prompts per task and temperature, methods in turns on every prompt, "
        f"medians of per-prompt ratios, prefill left out. {figures['machine']}. "
        f"Chosen on other prompts: plain {chosen['plain']}; speculative {chosen['speculative']}.",
        "",
        "| speculative decoding over | mean of the cells | greedy | T = 1 | bar | with prefill |",
        "|---|---|---|---|---|---|",
    ]
    for base, row in figures["bars"].items():
        parts = [f"{row[str(t)]:.2f}" if str(t) in row else "" for t in TEMPERATURES]
        bar = f"{row['bar']}{'' if row['mean'] >= row['bar'] else ': missed'}"
        whole = f"{row['with prefill']:.2f}" if "with prefill" in row else ""
        cellwise = " | ".join([f"**{row['mean']:.2f}**", *parts, bar, whole])
        lines.append(f"| {base} | {cellwise} |")
    lines += [
        "",
        "c and v are the times of a draft forward and of a target forward over draft length + 1 "
        "tokens, over that of one token; predicted = block efficiency / (v + c draft length) and "
        "measured are over plain decoding in the same format. A draft step is all that drafting "
        "takes per forward, as records show it; drafting is its share of a block's time.",
        "",
        "| task | T | draft length | block efficiency | c | v | predicted | measured | ms per token"
        ": speculative | plain | `generate` | assisted, at its best | draft step, us | drafting |",
        "|" + "---|" * 14,
    ]
    for cell in cells:
        rows = cell["rows"]
        mine = rows[f"speculative {cell['gamma']}"]
        ms = [rows[name]["ms_per_token"] for name in ("plain", "generate", "assisted, at its best")]
        lines.append(
            f"| {cell['task']} | {cell['temperature']:g} | {cell['gamma']} | "
            f"{mine['block_efficiency']:.2f} | {cell['c']:.3f} | {cell['v']:.2f} | "
            f"{cell['predicted']:.2f} | {cell['measured']:.2f} | {mine['ms_per_token']:.2f} | "
            + " | ".join([*(f"{value:.2f}" for value in ms), *_step_of(cell)])
            + " |"
        )
    heads = [f"{cell['task']}, T = {cell['temperature']:g}" for cell in cells]
    lines += ["", "| ms per token, plain / speculative | " + " | ".join(heads) + " |"]
    lines += ["|---|" + "---|" * len(cells)]
    names = [name for name in cells[0]["rows"] if name.startswith("plain, ")]
    for kind in (name.removeprefix("plain, ") for name in names):
        pairs = []
        for cell in cells:
            both = (f"plain, {kind}", f"speculative {cell['gamma']}, {kind}")
            pairs.append(" / ".join(f"{cell['rows'][name]['ms_per_token']:.2f}" for name in both))
        lines.append(f"| {kind} | " + " | ".join(pairs) + " |")
    lines += ["", "| also measured | value |", "|---|---|"]
    for cell in cells:
        for name, found in cell.get("identity", {}).items():
            others = f"; {'; '.join(found['others'])}" if found["others"] else ""
            lines.append(
                f"| greedy texts, {cell['task']}, {name} | {found['equal']} equal{others} |"
            )
    for name, row in figures["growth"].items():
        values = ", ".join(f"{key}: {value:.2f}" for key, value in row.items())
        lines.append(f"| {name}, by length, end forbidden | {values} |")
    for temperature, row in figures["tune"].items():
        lines.append(
            f"| `sn.tune`, T = {temperature}: {row['chosen']}, behind the best of its "
            f"{len(row['candidates'])} candidates | {row['behind']:.1%} |"
        )
    process = figures["process"]
    lines += [
        f"| recording on / off | {figures['recording']['on / off']:.3f} |",
        f"| `import specnb`; cold process to its first token; peak memory | "
        f"{process['import_s']:.2f} s; {process['first_token_s']:.1f} s; "
        f"{process['peak_memory_gb']:.2f} GB |",
    ]
    return "\n".join(lines)
