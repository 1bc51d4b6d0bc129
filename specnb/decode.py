"""The loop: draft, score, verify, commit, record. Plain decoding is the loop without a drafter."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from specnb import arguments
from specnb.drafters import Chain, Drafter, Drafting, NoDraft, law_of
from specnb.methods import label_of
from specnb.models.base import Context, Model, Pair
from specnb.record import BlockRow, Record, TokenRow
from specnb.sampling import Draws, Sampling
from specnb.tree import DraftTree, empty_tree
from specnb.verify import Outcome, verify

N_TOP = 5  # candidates kept per law in a record


@dataclass(frozen=True)
class Block:
    """One target call: what was proposed, what the target says, what came of it."""

    tree: DraftTree
    target_probs: Tensor  # [1 + nodes, vocab]; row 0 belongs to the last committed token
    outcome: Outcome
    token_ids: tuple[int, ...]  # emitted
    draft_s: float
    verify_s: float


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
    """A run under way; each `step` is one block. See `speculative` for the arguments.

    `finish` says why the text has ended: "eos", "length" or "context"; None while it goes on.
    """

    def __init__(
        self,
        pair: Pair,
        prompt: Any,
        image: Any = None,
        *,
        drafter: Drafter | None = None,
        sampling: Sampling | None = None,
        draft_sampling: Sampling | None = None,
        max_new_tokens: int = 64,
        seed: int = 0,
    ):
        sampling = Sampling() if sampling is None else sampling
        drafter = Chain() if drafter is None else drafter
        _check(pair, drafter, sampling, draft_sampling)
        max_new_tokens = arguments.whole("max_new_tokens", max_new_tokens, 1)
        seed = arguments.seed("seed", seed)
        prompt, image = _asked(pair.target, prompt, image)
        device = getattr(pair.target, "device", None)
        began = _now(device)
        self.target = pair.target.open(prompt, image)
        self.drafting = drafter.start(pair, prompt, image, draft_sampling or sampling)
        self.prefill_s = _now(device) - began
        self.pair, self.prompt, self.image = pair, prompt, image
        self.drafter, self.sampling = drafter, sampling
        self.draft_sampling = draft_sampling or sampling
        self.max_new_tokens = max_new_tokens
        # The last token a context can say needs no position of its own: nothing is fed behind it.
        self.budget = min(max_new_tokens, self.target.room + 1)
        self.draws = Draws(seed)
        self.blocks: tuple[Block, ...] = ()
        self.n_emitted = 0
        self.finish: str | None = None
        self.settings = {
            "drafter": label_of(drafter),
            "sampling": repr(sampling),
            "draft_sampling": repr(self.draft_sampling),
            "max_new_tokens": max_new_tokens,
            "seed": seed,
            "prompt": prompt,
            "target": pair.target.path,
            "draft": pair.draft.path if pair.draft else None,
            "certificates": {
                role: model.certificate
                for role, model in (("target", pair.target), ("draft", pair.draft))
                if model is not None and hasattr(model, "certificate")
            },
        }

    def step(self) -> Block:
        """Drafts and verifies one block. ValueError where the text has ended."""
        self._check_open()
        deepest = self.budget - self.n_emitted - 1
        return self._goes_on(
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
        return self._goes_on(
            Block(tree, target_probs, outcome, (token_id,), after_s, verified - began)
        )

    def _check_open(self) -> None:
        if self.finish is not None:
            raise ValueError(f"finish={self.finish!r}: the text has ended, nothing can follow")

    def _goes_on(self, block: Block) -> Block:
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
        other.drafting = copy.deepcopy(self.drafting, models)
        other.draws = copy.deepcopy(self.draws)
        return other

    def record(self) -> Record:
        """All that has happened so far."""
        finish = self.finish or "open"
        return _record(self.pair, self.blocks, finish, self.prefill_s, self.settings)


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
    decoding = Decoding(
        pair,
        prompt,
        image,
        drafter=drafter,
        sampling=sampling,
        draft_sampling=draft_sampling,
        max_new_tokens=max_new_tokens,
        seed=seed,
    )
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


def _check(pair: Pair, drafter: Any, sampling: Any, draft_sampling: Any) -> None:
    """Refuses objects of another kind in words, before any model runs."""
    if not isinstance(pair, Pair) or isinstance(pair.target, Pair):
        raise ValueError(
            f"pair={type(pair).__name__}: give a pair of models to `speculative`, as from "
            "load_pair(), and its target to `autoregressive`"
        )
    if isinstance(drafter, type) or not isinstance(drafter, Drafter):
        raise ValueError(f"drafter={arguments.shown(drafter)}: give a drafter, as in Chain(5)")
    for name, value in (("sampling", sampling), ("draft_sampling", draft_sampling)):
        if not isinstance(value, Sampling | None):
            raise ValueError(
                f"{name}={arguments.shown(value)}: give a Sampling, as in Sampling(0.7)"
            )
    if getattr(drafter, "branches", False):
        for role, model in (("target", pair.target), ("draft", pair.draft)):
            if model is not None and (why := getattr(model, "only_chains", "")):
                raise ValueError(
                    f"drafter={drafter!r}: it proposes trees, and {role} {model.path} is exact for "
                    f"chains only ({why}); use Chain"
                )


def _asked(target: Model, prompt: Any, image: Any) -> tuple[Any, Any]:
    """Prompt and pictures as plain values; wrong ones are refused in words."""
    prompt = arguments.prompt(prompt)
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


def _record(
    pair: Pair,
    blocks: Sequence[Block],
    finish: str,
    prefill_s: float,
    settings: dict[str, Any],
) -> Record:
    token_ids = tuple(token for block in blocks for token in block.token_ids)
    rows = _token_rows(blocks)
    named = {token for row in rows for token, _ in (*row.draft_top, *row.target_top)}
    texts = {token: pair.target.piece(token) for token in named | {row.token_id for row in rows}}
    return Record(
        text=pair.target.decode(token_ids),
        token_ids=token_ids,
        tokens=tuple(row._replace(text=texts[row.token_id]) for row in rows),
        blocks=tuple(_block_row(block) for block in blocks),
        finish=finish,
        prefill_s=prefill_s,
        settings=settings,
        token_texts={token: texts[token] for token in sorted(named)},
        parameter_ratio=pair.parameter_ratio,
    )


def _block_row(block: Block) -> BlockRow:
    return BlockRow(
        n_drafted=len(block.tree),
        draft_forwards=block.tree.forwards,
        n_accepted=len(block.outcome.path),
        n_emitted=len(block.token_ids),
        draft_s=block.draft_s,
        verify_s=block.verify_s,
        stopped_by=block.tree.stopped_by,
        threshold=block.tree.threshold,
        clipped=block.tree.stopped_by in ("budget", "context"),
    )


def _token_rows(blocks: Sequence[Block]) -> list[TokenRow]:
    """Rows of all blocks: drafted tokens in draw order, then the target's own; texts are missing.

    The figures of all blocks are computed at once: a record must cost next to nothing.
    """
    target_laws = torch.cat([block.target_probs for block in blocks])
    target_tops = _tops(target_laws)
    trees = [block.tree for block in blocks if len(block.tree)]
    draft_probs: list[float] = []
    entropies: list[float] = []
    draft_tops: list[Top] = []
    if trees:
        draft_laws = torch.cat([tree.probs for tree in trees])
        drafted = torch.tensor([token for tree in trees for token in tree.tokens])
        drafted = drafted.to(draft_laws.device)[:, None]
        draft_probs = draft_laws.gather(1, drafted).flatten().tolist()
        entropies = torch.special.entr(draft_laws).sum(-1).tolist()
        draft_tops = _tops(draft_laws)

    rows: list[TokenRow] = []
    places: list[tuple[int, int]] = []  # where `target_laws` has the target's law of each row
    first_law = first_node = 0
    for index, block in enumerate(blocks):
        tree, outcome = block.tree, block.outcome
        looks, depth = dict(outcome.examined), tree.depth
        for node, token in enumerate(tree.tokens):
            look, which = looks.get(node), first_node + node
            verdict = "unexamined" if look is None else "accepted" if look.accepted else "rejected"
            law = first_law + tree.parents[node] + 1
            places.append((law, token))
            rows.append(
                TokenRow(
                    block=index,
                    depth=depth[node],
                    node=node,
                    parent=tree.parents[node],
                    token_id=token,
                    text="",
                    draft_prob=draft_probs[which],
                    target_prob=None,
                    draft_entropy=entropies[which],
                    accept_prob=look.accept_prob if look else None,
                    uniform=look.uniform if look else None,
                    verdict=verdict,
                    draft_top=draft_tops[which],
                    target_top=target_tops[law],
                )
            )
        if outcome.token is not None:
            assert outcome.final is not None  # it says how this token came about
            parent = outcome.path[-1] if outcome.path else -1
            law = first_law + parent + 1
            places.append((law, outcome.token))
            rows.append(
                TokenRow(
                    block=index,
                    depth=len(outcome.path) + 1,
                    node=-1,
                    parent=parent,
                    token_id=outcome.token,
                    text="",
                    draft_prob=None,
                    target_prob=None,
                    draft_entropy=None,
                    accept_prob=None,
                    uniform=None,
                    verdict=outcome.final,
                    target_top=target_tops[law],
                )
            )
        first_law += len(block.target_probs)
        first_node += len(tree)
    found = target_laws[tuple(torch.tensor(places).to(target_laws.device).T)].tolist()
    return [row._replace(target_prob=prob) for row, prob in zip(rows, found, strict=True)]


Top = tuple[tuple[int, float], ...]


def _tops(laws: Tensor) -> list[Top]:
    """The most probable ids of each row, with their probabilities."""
    values, ids = laws.topk(min(N_TOP, laws.shape[-1]))
    return [
        tuple(zip(*row, strict=True)) for row in zip(ids.tolist(), values.tolist(), strict=True)
    ]
