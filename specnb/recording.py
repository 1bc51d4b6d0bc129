"""Blocks into a record: a row for every drafted or emitted token, a row for every target call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from specnb.models.base import Pair
from specnb.record import BlockRow, Record, TokenRow
from specnb.verify import Block

N_TOP = 5  # candidates kept per law in a record


def record_of(
    pair: Pair,
    blocks: Sequence[Block],
    finish: str,
    prefill_s: float,
    settings: dict[str, Any],
) -> Record:
    token_ids = tuple(token for block in blocks for token in block.token_ids)
    rows = token_rows(blocks)
    named = {token for row in rows for token, _ in (*row.draft_top, *row.target_top)}
    texts = {token: pair.target.piece(token) for token in named | {row.token_id for row in rows}}
    return Record(
        text=pair.target.decode(token_ids),
        token_ids=token_ids,
        tokens=tuple(row._replace(text=texts[row.token_id]) for row in rows),
        blocks=tuple(block_row(block) for block in blocks),
        finish=finish,
        prefill_s=prefill_s,
        settings=settings,
        token_texts={token: texts[token] for token in sorted(named)},
        parameter_ratio=pair.parameter_ratio,
    )


def block_row(block: Block) -> BlockRow:
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


def token_rows(blocks: Sequence[Block]) -> list[TokenRow]:
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
            verdict = "accepted" if node in outcome.path else "unexamined"
            if look is not None and not look.accepted and _reached(block, node):
                verdict = "rejected"
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


def _reached(block: Block, node: int) -> bool:
    """Whether the accepted path leads to this node's parent: below another lost one, a look of a
    rule that tests whole paths says nothing about the node itself."""
    parent = block.tree.parents[node]
    return parent < 0 or parent in block.outcome.path


Top = tuple[tuple[int, float], ...]


def _tops(laws: Tensor) -> list[Top]:
    """The most probable ids of each row, with their probabilities."""
    values, ids = laws.topk(min(N_TOP, laws.shape[-1]))
    return [
        tuple(zip(*row, strict=True)) for row in zip(ids.tolist(), values.tolist(), strict=True)
    ]
