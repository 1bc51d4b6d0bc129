"""What a lesson takes for the pair at hand, so that its cells hold for every pair.

The embedded pair looks at pictures and drafts with a model. A target that reads text only is asked
for texts, and a target without a draft model has its drafts looked up in the prompt.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from specnb import smollm2, tuning
from specnb.decode import autoregressive, speculative
from specnb.drafters import Chain, Drafter, PromptLookup, TopKTree
from specnb.lesson import prompts
from specnb.lesson.config import RunConfig
from specnb.methods import method, name_of
from specnb.models.base import Pair
from specnb.record import Record
from specnb.sampling import Sampling

CALM = 0.5  # the highest temperature at which SmolLM2 keeps to its subject
LENGTHS = (2, 5, 10)  # of a lookup, for `tune`


def items(cfg: RunConfig, pair: Pair) -> list:
    """The prompts of a run: those of `prompts.items`, and for a target that reads text only, where
    no file is given, the first of `smollm2.PROMPTS`: texts to rewrite, copy, shorten and mend."""
    if not cfg.prompts and not pair.target.sees_images:
        cfg = replace(cfg, prompts=str(smollm2.PROMPTS))
    return prompts.items(cfg)


def drafter(pair: Pair, draft_length: int) -> Drafter:
    """A chain of the draft model's; without one, `PromptLookup` of the same length."""
    return Chain(draft_length) if pair.draft else PromptLookup(length=draft_length)


def chosen(cfg: RunConfig, pair: Pair) -> Drafter:
    """The drafter that the parameters ask for: `drafter`, or else that of `draft_length`."""
    return method(cfg.drafter) if cfg.drafter else drafter(pair, cfg.draft_length)


def own(cfg: RunConfig) -> dict[str, Drafter]:
    """The drafter of the parameter `drafter` by its text, for a table of methods; else nothing."""
    return {name_of(found): found for found in [method(cfg.drafter)]} if cfg.drafter else {}


def methods(cfg: RunConfig, pair: Pair) -> dict[str, Drafter]:
    """The drafter that the parameters ask for, by its name in tables."""
    name = "chain" if pair.draft else "prompt lookup"
    return own(cfg) or {name: drafter(pair, cfg.draft_length)}


def remarks(cfg: RunConfig, pair: Pair) -> str:
    """What is not as with the embedded pair, a line each; the embedded pair has one line, too."""
    lines = ["drafts: by the draft model, one token after another"]
    if cfg.drafter:
        lines = [f"drafts: by {cfg.drafter}"]
        found = chosen(cfg, pair)
        draws_a_tree = getattr(found, "branches", False) and not isinstance(found, TopKTree)
        if cfg.temperature == 0 and draws_a_tree:
            lines.append(
                "temperature 0: a tree that is drawn has one child per node there, so it is a "
                "chain; take TopKTree, or a temperature above 0"
            )
    elif pair.draft is None:
        lines = ["drafts: no draft model, so they are looked up in the prompt (PromptLookup)"]
    if not pair.target.sees_images and not cfg.prompts:
        lines.append(
            "prompts: texts to rewrite, copy, shorten and mend, as this target sees nothing"
        )
    if Path(pair.target.path) == smollm2.folder() and cfg.temperature > CALM:
        lines.append(
            f"temperature {cfg.temperature:g}: this model rambles there, and may say offensive "
            f"things; take {CALM:g} or less"
        )
    return "\n".join(lines)


def tune(pair: Pair, items: Sequence[Any], *, sampling: Sampling) -> tuning.Tuning:
    """`specnb.tune`; without a draft model, the fastest of three lengths of `PromptLookup`.

    The lengths take turns with plain decoding on every prompt, which gives the prediction; the best
    one is then timed anew, which is the measured speed-up. Times are without prefill.
    """
    if pair.draft is not None:
        return tuning.tune(pair, items, sampling=sampling)

    def decode(drafter: Drafter | None, number: int) -> Record:
        prompt = items[number].prompt
        image = items[number].image if pair.target.sees_images else None
        more: dict[str, Any] = {"sampling": sampling, "max_new_tokens": 64, "seed": number}
        if drafter is None:
            return autoregressive(pair.target, prompt, image, **more)
        return speculative(pair, prompt, image, drafter=drafter, **more)

    drafters = [None, *(PromptLookup(length=length) for length in LENGTHS)]
    runs: dict[Any, list[Record]] = {one: [] for one in drafters}
    for number in range(len(items)):
        turn = number % len(drafters)  # nobody is always the first
        for one in drafters[turn:] + drafters[:turn]:
            runs[one].append(decode(one, number))
    plain_ms = _ms_per_token(runs.pop(None))
    found = [
        tuning.Candidate(
            one,
            sum(len(run.token_ids) for run in group) / sum(len(run.blocks) for run in group),
            _ms_per_token(group),
            plain_ms / _ms_per_token(group),
        )
        for one, group in runs.items()
    ]
    found.sort(key=lambda candidate: candidate.ms_per_token)
    best = found[0]
    ratios = [
        _ms_per_token([decode(None, number)]) / _ms_per_token([decode(best.drafter, number)])
        for number in range(len(items))
    ]
    measured = statistics.median(ratios)
    return tuning.Tuning(best.drafter, best.speedup, measured, plain_ms, tuple(found))


def _ms_per_token(runs: Sequence[Record]) -> float:
    seconds = sum(run.seconds for run in runs)
    return 1e3 * seconds / sum(len(run.token_ids) for run in runs)
