"""The loop: draft, score, verify, commit, record. Plain decoding is the loop without a drafter."""

from __future__ import annotations

import copy
import time
from collections.abc import Set
from dataclasses import dataclass, replace
from typing import Any

import torch

from specnb import arguments
from specnb.drafters import (
    Chain,
    Drafter,
    Drafting,
    NoDraft,
    SparseSelf,
    law_of,
    not_lossless,
    parameter_ratio,
    parts_of,
    start,
)
from specnb.methods import label_of
from specnb.models.base import Context, Model, Pair
from specnb.record import Record
from specnb.recording import record_of
from specnb.sampling import Draws, Sampling
from specnb.tree import empty_tree
from specnb.verify import Block, Outcome, verify


@dataclass(frozen=True, eq=False)
class Request:
    """What is decoded, whatever the method. ValueError in words where it cannot be.

    prompt: text, a list of chat messages with roles, or a list of token ids. image: a PIL picture,
    a path, or a list of those; None without one. sampling: the target's, greedy by default;
    draft_sampling: the drafter's, by default the same. max_new_tokens: the most that is said.
    """

    prompt: Any
    image: Any = None
    sampling: Sampling = Sampling()
    draft_sampling: Sampling | None = None
    max_new_tokens: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("sampling", "draft_sampling"):
            value = getattr(self, name)
            if not isinstance(value, Sampling) and (name == "sampling" or value is not None):
                raise ValueError(
                    f"{name}={arguments.shown(value)}: give a Sampling, as in Sampling(0.7)"
                )
        settled = {
            "max_new_tokens": arguments.whole("max_new_tokens", self.max_new_tokens, 1),
            "seed": arguments.seed("seed", self.seed),
            "prompt": arguments.prompt(self.prompt),
        }
        for name, value in settled.items():
            object.__setattr__(self, name, value)

    @property
    def plain_key(self) -> tuple[Any, ...]:
        """Requests with the same key have the same plain text; a greedy one has no seed."""
        seed = self.seed if self.sampling.temperature else None
        return repr(self.prompt), id(self.image), self.sampling, seed, self.max_new_tokens


def next_block(
    target: Context,
    drafting: Drafting,
    sampling: Sampling,
    draws: Draws,
    max_depth: int,
    eos_ids: Set[int] = frozenset(),
) -> Block:
    """One round of speculative decoding; both sides have committed the emitted tokens after it.

    `max_depth` = the most levels that may be drafted. Enumerated outcome by outcome in
    `specnb.exact`: every random choice is made through `draws`.
    """
    device = getattr(getattr(target, "model", None), "device", None)
    began = _now(device)
    tree = drafting.propose(draws, max_depth)
    drafted = _now(device)
    scores = target.forward(tree.tokens, tree.parents)
    target_probs = law_of(target, sampling, torch.cat([scores.root[None], scores.nodes]))
    outcome = verify(tree, target_probs[0], target_probs[1:], draws, eos_ids)
    emitted = [tree.tokens[node] for node in outcome.path]
    if outcome.token is not None:
        emitted.append(outcome.token)
    target.commit(emitted)
    verified = _now(device)
    drafting.commit(emitted, len(outcome.path))
    done = _now(device)
    draft_s = (drafted - began) + (done - verified)
    return Block(tree, target_probs, outcome, tuple(emitted), draft_s, verified - drafted)


def _now(device: torch.device | None) -> float:
    """The time in seconds, when a GPU has done all that it was asked for."""
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class Decoding:
    """A run under way; each `step` is one block. The drafter is `Chain(5)` where none is given.

    `finish` says why the text has ended: "eos", "length" or "context"; None while it goes on.
    """

    def __init__(self, pair: Pair, request: Request, drafter: Drafter | None = None):
        drafter = Chain() if drafter is None else drafter
        _check(pair, drafter)
        prompt, image = _asked(pair.target, request)
        sampling = request.sampling
        draft_sampling = request.draft_sampling or sampling
        max_new_tokens = request.max_new_tokens
        device = getattr(pair.target, "device", None)
        began = _now(device)
        self.target = pair.target.open(prompt, image)
        self.drafting = start(drafter, pair, prompt, image, draft_sampling, self.target)
        self.prefill_s = _now(device) - began
        self.pair, self.prompt, self.image = pair, prompt, image
        self.drafter, self.sampling = drafter, sampling
        self.draft_sampling = draft_sampling
        self.max_new_tokens = max_new_tokens
        # The last token a context can say needs no position of its own: nothing is fed after it.
        self.budget = min(max_new_tokens, self.target.room + 1)
        self.draws = Draws(request.seed)
        self.blocks: tuple[Block, ...] = ()
        self.n_emitted = 0
        self.finish: str | None = None
        self.settings = {
            "drafter": label_of(drafter),
            "sampling": repr(sampling),
            "draft_sampling": repr(draft_sampling),
            "max_new_tokens": max_new_tokens,
            "seed": request.seed,
            "prompt": prompt,
            "target": pair.target.path,
            "draft": pair.draft.path if pair.draft else None,
            "certificates": {
                role: model.certificate
                for role, model in (("target", pair.target), ("draft", pair.draft))
                if model is not None and hasattr(model, "certificate")
            },
        }
        if (kept := getattr(pair.draft, "kept", None)) is not None:
            self.settings["draft_ids"] = len(kept)  # that a trimmed draft model can say
        if why := not_lossless(drafter):
            self.settings["not lossless"] = why

    def step(self) -> Block:
        """Drafts and verifies one block. ValueError where the text has ended."""
        self._check_open()
        deepest = self.budget - self.n_emitted - 1
        return self._append(
            next_block(
                self.target,
                self.drafting,
                self.sampling,
                self.draws,
                deepest,
                self.pair.target.eos_ids,
            )
        )

    def force(self, token_id: int) -> Block:
        """One target call without a draft, after which the text goes on with `token_id`.

        Its row in the record is "forced" and has the probability that the target gave it.
        """
        self._check_open()
        if not 0 <= token_id < self.pair.target.vocab_size:
            raise ValueError(
                f"token_id={token_id}: give an id from 0 to {self.pair.target.vocab_size - 1}"
            )
        device = getattr(self.pair.target, "device", None)
        began = _now(device)
        target_probs = law_of(self.target, self.sampling, self.target.forward().root[None])
        self.target.commit([token_id])
        verified = _now(device)
        self.drafting.commit([token_id], 0)
        tree = empty_tree(0, "forced")
        outcome = Outcome((), token_id, "forced", target_probs[0], ())
        after_s = _now(device) - verified
        return self._append(
            Block(tree, target_probs, outcome, (token_id,), after_s, verified - began)
        )

    def _check_open(self) -> None:
        if self.finish is not None:
            raise ValueError(f"finish={self.finish!r}: the text has ended, nothing can follow")

    def _append(self, block: Block) -> Block:
        block = _kept(block)
        self.blocks += (block,)
        self.n_emitted += len(block.token_ids)
        if block.token_ids[-1] in self.pair.target.eos_ids:
            self.finish = "eos"
        elif self.n_emitted >= self.budget:
            self.finish = "length" if self.budget == self.max_new_tokens else "context"
        return block

    def fork(self) -> Decoding:
        """A copy that goes on by itself, with the same random numbers to come."""
        other = copy.copy(self)
        other.target = self.target.copy()
        # Models are shared: they are large, and nobody writes to them.
        models = {id(model): model for model in (self.pair.target, self.pair.draft)}
        memo: dict[int, Any] = {**models, id(self.target): other.target}  # drafters may read it
        other.drafting = copy.deepcopy(self.drafting, memo)
        other.draws = copy.deepcopy(self.draws)
        return other

    def record(self) -> Record:
        """All that has happened so far."""
        finish = self.finish or "open"
        record = record_of(self.pair, self.blocks, finish, self.prefill_s, self.settings)
        return replace(record, parameter_ratio=parameter_ratio(self.drafter, self.pair))


def speculative(
    pair: Pair,
    prompt: Any,
    image: Any = None,
    *,
    drafter: Drafter | None = None,
    sampling: Sampling | None = None,
    draft_sampling: Sampling | None = None,
    max_new_tokens: int = 64,
    seed: int = 0,
) -> Record:
    """Decodes with the target's law, helped by a drafter (default `Chain(5)`, greedy).

    Stops at an end token, after `max_new_tokens`, or at the end of the target's context. The
    drafter may be given a `Sampling` of its own; verification always uses the law that a token
    was really drawn from, so the output's law is the target's either way.
    """
    sampling = Sampling() if sampling is None else sampling
    request = Request(prompt, image, sampling, draft_sampling, max_new_tokens, seed)
    decoding = Decoding(pair, request, drafter)
    while decoding.finish is None:
        decoding.step()
    return decoding.record()


def autoregressive(
    model: Model,
    prompt: Any,
    image: Any = None,
    *,
    sampling: Sampling | None = None,
    max_new_tokens: int = 64,
    seed: int = 0,
) -> Record:
    """Plain decoding, one token per forward: the same loop with an empty tree in every block."""
    return speculative(
        Pair(model),
        prompt,
        image,
        drafter=NoDraft(),
        sampling=sampling,
        max_new_tokens=max_new_tokens,
        seed=seed,
    )


def _check(pair: Pair, drafter: Any) -> None:
    """Refuses objects of another kind in words, before any model runs."""
    if not isinstance(pair, Pair) or isinstance(pair.target, Pair):
        raise ValueError(
            f"pair={type(pair).__name__}: give a pair of models to `speculative`, as from "
            "load_pair(), and its target to `autoregressive`"
        )
    if isinstance(drafter, type) or not isinstance(drafter, Drafter):
        raise ValueError(f"drafter={arguments.shown(drafter)}: give a drafter, as in Chain(5)")
    check: Any = getattr(pair.target, "check_selector", None)
    for part in parts_of(drafter):
        if check is not None and isinstance(part, SparseSelf):
            check(part.select)
    if getattr(drafter, "branches", False):
        for role, model in (("target", pair.target), ("draft", pair.draft)):
            if model is not None and (why := getattr(model, "only_chains", "")):
                raise ValueError(
                    f"drafter={drafter!r}: it proposes trees, and {role} {model.path} is exact for "
                    f"chains only ({why}); use Chain"
                )


def _asked(target: Model, request: Request) -> tuple[Any, Any]:
    """Prompt and pictures as the target takes them; what it cannot read is refused in words."""
    prompt, image = request.prompt, request.image
    ids = isinstance(prompt, list) and isinstance(prompt[0], int)
    if target.tokenizer is None and not ids:
        raise ValueError(
            f"prompt={arguments.shown(prompt)}: {target.path} knows no words; give token ids"
        )
    if image is None:
        return prompt, None
    if not target.sees_images:
        raise ValueError(
            f"image={type(image).__name__}: {target.path} is a text-only model; leave the image "
            "out, or give a LLaVA-type target"
        )
    if ids:
        raise ValueError("image: it cannot go with token ids; give text or messages with a picture")
    if isinstance(image, list | tuple) and (not image or any(one is None for one in image)):
        raise ValueError(f"image={arguments.shown(image)}: give a picture, or a list of pictures")
    return prompt, list(image) if isinstance(image, list | tuple) else image


def _kept(block: Block) -> Block:
    """The block as it is kept for the record: its laws leave an accelerator's memory."""
    laws = (block.target_probs, block.tree.probs)
    if all(law.device.type == "cpu" for law in laws):
        return block
    tree = replace(block.tree, probs=block.tree.probs.cpu())
    final = block.outcome.final_probs
    outcome = replace(block.outcome, final_probs=None if final is None else final.cpu())
    return replace(block, tree=tree, target_probs=block.target_probs.cpu(), outcome=outcome)
