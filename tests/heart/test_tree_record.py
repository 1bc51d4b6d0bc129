"""Draft trees, and the record of a run: what a row means and what is computed from it."""

import json
import math
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toys import Repeated, Siblings, models

from specnb import theory
from specnb.decode import autoregressive, speculative
from specnb.drafters import Chain, NoDraft
from specnb.models import Pair, TableModel
from specnb.record import (
    EMITTED,
    VERDICTS,
    BlockRow,
    Record,
    TokenRow,
    acceptance_by_depth,
    acceptance_rate,
    block_efficiency,
    mbsu,
)
from specnb.sampling import Sampling
from specnb.tree import DraftTree, ancestor_mask, depths, empty_tree, path_to

# ---- trees

#      -1
#     /  \
#    0    1
#   / \    \
#  2   3    4
#  |
#  5
PARENTS = (-1, -1, 0, 0, 1, 2)


def tree(parents=PARENTS, drawn=None) -> DraftTree:
    n = len(parents)
    return DraftTree(tuple(range(n)), tuple(parents), torch.full((n, 9), 1 / 9), drawn=drawn)


def test_tree_by_hand():
    drafted = tree()
    assert len(drafted) == 6
    assert drafted.depth == [1, 1, 2, 2, 2, 3]
    assert drafted.path(5) == [0, 2, 5] and drafted.path(1) == [1] and drafted.path(-1) == []
    assert [drafted.draws_of(node) for node in range(-1, 3)] == [[0, 1], [2, 3], [4], [5]]
    assert drafted.draws_of(5) == []
    assert drafted.attention_mask(2).int().tolist() == [
        [1, 1, 1, 0, 0, 0, 0, 0],
        [1, 1, 0, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 1, 0, 0, 0],
        [1, 1, 1, 0, 0, 1, 0, 0],
        [1, 1, 0, 1, 0, 0, 1, 0],
        [1, 1, 1, 0, 1, 0, 0, 1],
    ]
    assert drafted.attention_mask(0).shape == (6, 6)


def test_draws_in_draw_order_and_drawn_twice():
    drafted = tree(drawn=(1, 0, 1, 3, 2, 3, 4, 5))
    assert drafted.draws_of(-1) == [1, 0, 1]
    assert drafted.draws_of(0) == [3, 2, 3]
    assert drafted.draws_of(1) == [4]


def test_empty_tree():
    drafted = empty_tree(7, "budget")
    assert len(drafted) == 0 and drafted.depth == [] and drafted.draws_of(-1) == []
    assert drafted.attention_mask(3).shape == (0, 3)
    assert drafted.probs.shape == (0, 7) and drafted.stopped_by == "budget"


@given(st.integers(0, 2**31), st.integers(0, 14), st.integers(0, 4))
def test_mask_depth_and_path_against_brute_force(seed, n_nodes, prefix_len):
    """A node sees the prefix and what one meets walking up from it; nothing else."""
    chance = random.Random(seed)
    parents = [chance.randrange(-1, node) for node in range(n_nodes)]
    drafted = tree(parents)
    mask = drafted.attention_mask(prefix_len)
    assert mask.shape == (n_nodes, prefix_len + n_nodes) and mask.dtype == torch.bool
    for node in range(n_nodes):
        ancestors, walker = [], node
        while walker != -1:
            ancestors.append(walker)
            walker = parents[walker]
        wanted = {*range(prefix_len), *(prefix_len + a for a in ancestors)}
        assert set(mask[node].nonzero().flatten().tolist()) == wanted
        assert drafted.path(node) == path_to(node, parents) == sorted(ancestors)
        assert drafted.depth[node] == depths(parents)[node] == len(ancestors)
    assert torch.equal(mask[:, prefix_len:], ancestor_mask(parents))
    children = [drafted.draws_of(node) for node in range(-1, n_nodes)]
    assert sorted(sum(children, [])) == list(range(n_nodes))


# ---- a record by hand


def row(block, depth, node, token_id, verdict, parent=None, **more) -> TokenRow:
    values = dict(draft_prob=0.5, target_prob=0.25, draft_entropy=0.7, accept_prob=0.5, uniform=0.1)
    if node < 0:
        values = dict.fromkeys(values, None) | {"target_prob": 0.25}
    parent = depth - 2 if parent is None else parent
    return TokenRow(block, depth, node, parent, token_id, f"{token_id} ", verdict=verdict,
                    **(values | more))  # fmt: skip


def by_hand() -> Record:
    """Three blocks of up to three drafts: 2 accepted then 1 rejected; all accepted; a plain one."""
    return Record(
        text="1 2 9 4 5 6 7 8",
        token_ids=(1, 2, 9, 4, 5, 6, 7, 8),
        tokens=(
            row(0, 1, 0, 1, "accepted", draft_top=((1, 0.5), (2, 0.25)), target_top=((1, 1.0),)),
            row(0, 2, 1, 2, "accepted"),
            row(0, 3, 2, 3, "rejected"),
            row(0, 3, -1, 9, "correction"),
            row(1, 1, 0, 4, "accepted"),
            row(1, 2, 1, 5, "accepted"),
            row(1, 3, 2, 6, "accepted"),
            row(1, 4, -1, 7, "bonus"),
            row(2, 1, -1, 8, "plain"),
        ),
        blocks=(
            BlockRow(3, 3, 2, 3, 0.5, 1.0, "length", None, False),
            BlockRow(3, 4, 3, 4, 0.5, 1.5, "rule", 0.25, False),
            BlockRow(0, 0, 0, 1, 0.0, 0.5, "budget", None, True),
        ),
        finish="length",
        prefill_s=2.0,
        settings={"drafter": "Chain(3)", "seed": 0, "prompt": [0, 1], "draft": None},
        token_texts={1: "1 ", 2: "<é\u2028"},
        parameter_ratio=0.1,
    )


def test_metrics_by_hand():
    record = by_hand()
    found = record.metrics
    assert found.n_tokens == 8 and found.n_target_calls == 3
    assert found.block_efficiency == block_efficiency(record) == 8 / 3
    assert found.acceptance_rate == acceptance_rate(record) == 5 / 6
    assert found.acceptance_by_depth == acceptance_by_depth(record) == (1.0, 1.0, 0.5)
    assert found.draft_forwards == 7 / 3  # the forward that led to a stop counts
    assert found.mbsu == mbsu(record) == pytest.approx((8 / 3) / (1 + 0.1 * 7 / 3))
    assert found.target_budget == 2.0  # nodes per call, root not counted
    assert found.tokens_per_second == 8 / 4.0  # without prefill
    assert found.prefill_s == 2.0
    assert record.seconds == 4.0
    assert [row.token_id for row in record.emitted] == list(record.token_ids)


def changed(**values) -> Record:
    return Record(**({name: getattr(by_hand(), name) for name in Record.__dataclass_fields__}
                     | values))  # fmt: skip


def test_unexamined_drafts_count_in_no_rate():
    more = (*by_hand().tokens, row(0, 4, 3, 8, "unexamined"), row(0, 5, 4, 8, "unexamined"))
    assert changed(tokens=more).metrics.acceptance_rate == 5 / 6
    assert changed(tokens=more).metrics.acceptance_by_depth == (1.0, 1.0, 0.5)
    looked_at = (*by_hand().tokens, row(0, 4, 3, 8, "rejected"))  # the control: this one counts
    assert changed(tokens=looked_at).metrics.acceptance_rate == 5 / 7


def test_siblings_count_once_per_block_in_acceptance_by_depth():
    """Rate per candidate and chance per depth are different things in a tree."""
    rows = (
        row(0, 1, 0, 1, "rejected", parent=-1),
        row(0, 1, 1, 2, "accepted", parent=-1),
        row(1, 1, 0, 1, "rejected", parent=-1),
        row(1, 1, 1, 2, "rejected", parent=-1),
    )
    assert acceptance_rate(changed(tokens=rows)) == 1 / 4
    assert acceptance_by_depth(changed(tokens=rows)) == (1 / 2,)


def test_metrics_that_a_run_does_not_define():
    none = changed(tokens=(), blocks=(), token_ids=()).metrics
    assert none.block_efficiency is none.acceptance_rate is none.mbsu is None
    assert none.draft_forwards is none.target_budget is none.tokens_per_second is None
    assert none.acceptance_by_depth == () and none.n_tokens == 0
    assert changed(parameter_ratio=None).metrics.mbsu is None
    instant = tuple(block._replace(draft_s=0.0, verify_s=0.0) for block in by_hand().blocks)
    assert changed(blocks=instant).metrics.tokens_per_second is None


@pytest.mark.parametrize(
    "record",
    [by_hand(), changed(parameter_ratio=None, tokens=(), blocks=())],
)
def test_json_round_trip(record):
    text = record.to_json()
    again = Record.from_json(text)
    assert again == record and again.to_json() == text
    assert again.metrics == record.metrics
    assert all(isinstance(row, TokenRow) for row in again.tokens)
    assert all(isinstance(block, BlockRow) for block in again.blocks)
    assert all(isinstance(key, int) for key in again.token_texts)
    assert "NaN" not in text and json.loads(text)["finish"] == "length"


def test_a_changed_record_is_not_equal():
    """The control of the round trip: equality looks at every field."""
    for name, value in (("text", ""), ("finish", "eos"), ("parameter_ratio", 0.2)):
        assert changed(**{name: value}) != by_hand()
    altered = by_hand().tokens[0]._replace(draft_top=((1, 0.5), (2, 0.24)))
    assert changed(tokens=(altered, *by_hand().tokens[1:])) != by_hand()


def test_to_pandas():
    frame = by_hand().to_pandas()
    assert list(frame.columns) == list(TokenRow._fields) and len(frame) == 9
    assert frame.verdict.value_counts()["accepted"] == 5


# ---- records of random runs

DRAFTERS = (Chain(1), Chain(3), Chain(6), Siblings(2, 2), Siblings(3, 1), Repeated(3), NoDraft())


def random_run(seed: int) -> tuple[Record, Pair]:
    chance = random.Random(seed)
    vocab_size = chance.randrange(2, 7)
    target, draft = models(vocab_size, order=chance.choice((1, 2)), seed=seed)
    eos = chance.sample(range(vocab_size), chance.choice((0, 0, 1)))
    pair = Pair(TableModel(target.logits, eos_ids=eos), draft)
    record = speculative(
        pair,
        (0,),
        drafter=chance.choice(DRAFTERS),
        sampling=Sampling(chance.choice((0.0, 0.8, 1.0)), top_p=chance.choice((0.8, 1.0))),
        draft_sampling=chance.choice((None, Sampling(0.5))),
        max_new_tokens=chance.randrange(1, 25),
        seed=seed,
    )
    return record, pair


def check_block(rows: list[TokenRow], block: BlockRow, eos_ids) -> None:
    """What one block may look like."""
    drafted = [row for row in rows if row.node >= 0]
    own = [row for row in rows if row.node < 0]
    emitted = [row for row in rows if row.verdict in EMITTED]
    accepted = [row for row in drafted if row.verdict == "accepted"]
    assert [row.node for row in drafted] == list(range(block.n_drafted))
    assert len(emitted) == block.n_emitted and len(accepted) == block.n_accepted
    assert [row.depth for row in emitted] == list(range(1, len(emitted) + 1))
    assert len(own) <= 1 and rows[len(drafted) :] == own
    assert all(row.verdict in ("accepted", "rejected", "unexamined") for row in drafted)
    # Accepted nodes are one path; rejected ones are siblings along it; nobody else was looked at.
    path = [-1, *(row.node for row in accepted)]
    assert [row.parent for row in accepted] == path[:-1]
    rejected = [row for row in drafted if row.verdict == "rejected"]
    assert all(row.parent in path for row in rejected)
    for row in drafted:
        looked_at = row.verdict != "unexamined"
        assert looked_at == (row.accept_prob is not None) == (row.uniform is not None)
        if looked_at:
            assert 0 <= row.uniform < 1 and 0 <= row.accept_prob <= 1
            assert (row.uniform < row.accept_prob) == (row.verdict == "accepted")
        assert row.draft_prob > 0 and row.draft_entropy >= 0 and 0 <= row.target_prob <= 1
    if not own:  # only an accepted end token leaves the target without a word
        assert accepted[-1].token_id in eos_ids
        return
    (final,) = own
    assert final.parent == path[-1] and final.target_prob > 0
    at_end = [row for row in rejected if row.parent == path[-1]]
    wanted = "correction" if at_end else "bonus" if drafted else "plain"
    assert final.verdict == wanted
    if final.verdict == "bonus":
        assert not [row for row in drafted if row.parent == path[-1]]


@pytest.mark.slow
@given(st.integers(0, 10**6))
def test_rows_of_random_runs(seed):
    record, pair = random_run(seed)
    assert [row.token_id for row in record.emitted] == list(record.token_ids)
    assert sum(block.n_emitted for block in record.blocks) == len(record.token_ids)
    assert sum(block.n_drafted for block in record.blocks) == sum(
        row.node >= 0 for row in record.tokens
    )
    assert [row.block for row in record.tokens] == sorted(row.block for row in record.tokens)
    for index, block in enumerate(record.blocks):
        rows = [row for row in record.tokens if row.block == index]
        check_block(rows, block, pair.target.eos_ids)
    assert all(row.verdict in VERDICTS for row in record.tokens)
    for row in record.tokens:
        for top in (row.draft_top, row.target_top):
            assert [prob for _, prob in top] == sorted((p for _, p in top), reverse=True)
            assert all(record.token_texts[token] == f"{token} " for token, _ in top)
            assert math.fsum(p for _, p in top) <= 1 + 1e-9
    assert Record.from_json(record.to_json()) == record
    found = record.metrics
    assert 1 <= found.block_efficiency <= 1 + found.target_budget + 1e-9 or record.finish == "eos"
    assert found.mbsu == pytest.approx(
        theory.mbsu(found.block_efficiency, found.draft_forwards, pair.parameter_ratio)
    )


@pytest.mark.parametrize(
    "spoil",
    [
        lambda rows: rows[:-1],
        lambda rows: [rows[0]._replace(verdict="rejected"), *rows[1:]],
        lambda rows: [rows[0]._replace(uniform=0.9999), *rows[1:]],
        lambda rows: [*rows[:-1], rows[-1]._replace(verdict="correction")],
        lambda rows: [*rows, rows[-1]],
    ],
)
def test_check_block_finds_what_is_spoiled(spoil):
    """The control: a bonus block of a chain, right as it is, wrong in five ways."""
    record = speculative(
        Pair(model := models(4, seed=1)[0], model),
        [0],
        drafter=Chain(2),
        sampling=Sampling(1.0),
        max_new_tokens=3,
    )
    rows = [row._replace(accept_prob=0.5 if row.node == 0 else row.accept_prob,
                         uniform=0.25 if row.node == 0 else row.uniform)
            for row in record.tokens]  # fmt: skip
    check_block(rows, record.blocks[0], ())
    with pytest.raises((AssertionError, IndexError)):
        check_block(spoil(rows), record.blocks[0], ())


def test_target_and_draft_columns_are_the_laws_really_used():
    target, draft = models(4, order=2, seed=8)
    sampling, drawn_from = Sampling(0.9, top_p=0.9), Sampling(0.6)
    record = speculative(
        Pair(target, draft),
        [1],
        drafter=Chain(3),
        sampling=sampling,
        draft_sampling=drawn_from,
        max_new_tokens=40,
    )
    text = [1]
    for index, block in enumerate(record.blocks):
        path = list(text)
        for row in [row for row in record.tokens if row.block == index and row.node >= 0]:
            law = drawn_from.probs(draft.next_logits(path))
            wanted = sampling.probs(target.next_logits(path))
            assert row.draft_prob == pytest.approx(float(law[row.token_id]))
            assert row.target_prob == pytest.approx(float(wanted[row.token_id]))
            assert row.draft_entropy == pytest.approx(
                -sum(p * math.log(p) for p in law.tolist() if p > 0)
            )
            if row.accept_prob is not None:
                assert row.accept_prob == pytest.approx(min(1.0, row.target_prob / row.draft_prob))
            assert dict(row.target_top) == pytest.approx(dict(enumerate(wanted.tolist())))
            path.append(row.token_id)
        text += [row.token_id for row in record.emitted if row.block == index]
        assert block.draft_s >= 0 and block.verify_s > 0


def test_prefill_is_no_target_call_and_clipped_blocks_are_flagged():
    target, _ = models(4, seed=9)
    long_prompt = [0, 1, 2, 3] * 5
    plain = autoregressive(target, long_prompt, max_new_tokens=7)
    assert plain.metrics.n_target_calls == 7 and plain.metrics.block_efficiency == 1.0
    assert plain.metrics.acceptance_rate is None and plain.metrics.target_budget == 0
    assert not any(block.clipped for block in plain.blocks)
    # The target drafts for itself: blocks of 4, 4, then two tokens are left and one is drafted.
    run = speculative(Pair(target, target), long_prompt, drafter=Chain(3), max_new_tokens=10)
    assert [block.n_emitted for block in run.blocks] == [4, 4, 2]
    assert [block.clipped for block in run.blocks] == [False, False, True]
    assert [block.stopped_by for block in run.blocks] == ["length", "length", "budget"]
    assert run.metrics.block_efficiency == 10 / 3
