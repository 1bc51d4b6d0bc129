"""What a lesson takes for the pair at hand, so that its cells hold for every pair.

The embedded pair looks at pictures and drafts with a model. A target that reads text only is asked
for texts, and a target without a draft model has its drafts looked up in the prompt.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from specnb import smollm2
from specnb.drafters import Chain, Drafter, PromptLookup, draws_a_tree, parts_of
from specnb.lesson import prompts
from specnb.lesson.config import RunConfig
from specnb.methods import method, name_of
from specnb.models.base import Pair

CALM = 0.5  # the highest temperature at which SmolLM2 keeps to its subject


def items(cfg: RunConfig, pair: Pair) -> list:
    """The prompts of a run: those of `prompts.items`, and for a target that reads text only, where
    no file is given, the first of `smollm2.PROMPTS`: texts to rewrite, copy, shorten and mend."""
    return prompts.items(_readable(cfg, pair))


def by_task(cfg: RunConfig, pair: Pair) -> dict[str, list]:
    """The same for every task: those of `prompts.by_task`, or the kinds of `smollm2.PROMPTS`."""
    return prompts.by_task(_readable(cfg, pair))


def _readable(cfg: RunConfig, pair: Pair) -> RunConfig:
    """Parameters whose prompts the target can read."""
    if cfg.prompts or pair.target.sees_images:
        return cfg
    return replace(cfg, prompts=str(smollm2.PROMPTS))


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
        if cfg.temperature == 0 and any(map(draws_a_tree, parts_of(chosen(cfg, pair)))):
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
