"""Trimmed draft vocabularies: exact, drawn in the small vocabulary, and refused in words."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from places import ROOT
from toys import check_law, unchecked

import specnb as sn
from specnb import exact
from specnb.drafters import Chain, GumbelTopK, IIDTree, TopKTree
from specnb.drafters.trees import Numbered, TrimmedDrafting
from specnb.models import Pair, TableModel
from specnb.sampling import Draws, Sampling
from specnb.scenes import examples
from specnb.stopping import AdaEDL

TARGET, DRAFT = TableModel.random(4, seed=1), TableModel.random(4, seed=2)
SAMPLED = Sampling(1.0)


@pytest.mark.parametrize("ids", [(2, 0), (3, 1)], ids=repr)
@pytest.mark.parametrize(
    "drafter",
    [Chain(2), Chain(2, stop=AdaEDL(0.5)), GumbelTopK((2, 1)), IIDTree((2, 1)), TopKTree((2, 1))],
    ids=repr,
)
def test_laws(drafter, ids):
    check_law(TARGET, DRAFT.trimmed(len(ids), ids), drafter, SAMPLED)


@pytest.mark.parametrize("sampling", [Sampling(0.0), Sampling(0.7, top_k=2)], ids=repr)
def test_laws_of_other_samplings(sampling):
    check_law(TARGET, DRAFT.trimmed(3, (3, 1, 0)), Chain(3), sampling)


def test_an_end_among_the_kept_ids_ends_drafts():
    target = TableModel(TARGET.logits, eos_ids={2})
    check_law(target, DRAFT.trimmed(2, (2, 3)), Chain(3), SAMPLED)
    pair = Pair(target, TableModel(torch.eye(4)[[2] * 4] * 50).trimmed(2, (2, 3)))
    drafting = Chain(3).start(pair, [0], None, Sampling(0.0))
    tree = drafting.propose(Draws(0), 9)
    assert tree.tokens == (2,) and tree.stopped_by == "eos"


def numbered_wrongly(monkeypatch):
    """Planted: the draft model is fed with places instead of ids."""
    monkeypatch.setattr(
        Numbered,
        "forward",
        lambda self, tokens=(), parents=(): self.context.forward(tokens, parents),
    )


def unscattered(monkeypatch):
    """Planted: laws are put to the first ids, not to the kept ones."""
    right = TrimmedDrafting.__init__

    def init(self, *given):
        right(self, *given)
        self.columns = torch.arange(len(self.kept))

    monkeypatch.setattr(TrimmedDrafting, "__init__", init)


def test_a_law_at_the_wrong_ids_is_caught(monkeypatch):
    unscattered(monkeypatch)
    with pytest.raises((AssertionError, ValueError)):
        check_law(TARGET, DRAFT.trimmed(2, (3, 1)), Chain(2), SAMPLED)


def test_a_model_agrees_with_itself_where_all_it_says_is_kept():
    """Only this notices wrong feeding: the output stays right and merely gets slow."""
    rows = torch.full((4, 4), -torch.inf, dtype=torch.float64)
    rows[:, [1, 3]] = torch.randn(4, 2, generator=torch.Generator().manual_seed(3)).double()
    target = TableModel(rows)
    for drafter in (Chain(3), GumbelTopK((2, 1))):
        with unchecked():
            found = exact.law(target, target.trimmed(2, (1, 3)), drafter, SAMPLED, 3)
        assert not [event for event in found.outcomes if event[0] == "rejected"]


def test_wrong_feeding_is_noticed(monkeypatch):
    numbered_wrongly(monkeypatch)
    with pytest.raises(AssertionError):
        test_a_model_agrees_with_itself_where_all_it_says_is_kept()


class Widths(Draws):
    """Notes over how many ids is drawn."""

    def __init__(self, seed):
        super().__init__(seed)
        self.seen: list[int] = []

    def categorical(self, probs):
        self.seen.append(probs.shape[-1])
        return super().categorical(probs)


def test_draws_are_in_the_small_vocabulary():
    draws = Widths(0)
    pair = Pair(TARGET, DRAFT.trimmed(2, (3, 1)))
    tree = Chain(3).start(pair, [0], None, SAMPLED).propose(draws, 9)
    assert draws.seen == [2, 2, 2]
    assert set(tree.tokens) <= {1, 3} and tree.probs.shape == (3, 4)
    assert torch.allclose(tree.probs.sum(-1), torch.ones(3, dtype=torch.float64))


def test_a_fork_goes_on_by_itself():
    drafting = Chain(2).start(Pair(TARGET, DRAFT.trimmed(2, (3, 1))), [0], None, SAMPLED)
    other = copy.deepcopy(drafting)
    other.propose(Draws(0), 9)
    other.commit([3, 3], 0)
    assert drafting.inner.context.context.length == 1
    assert other.inner.context.context.length == 3


def test_a_trimmed_model_is_trimmed_again():
    """As if at once: what is kept of what was kept, and parameters of one head."""
    twice, once = DRAFT.trimmed(3, (3, 1, 0)).trimmed(2, (2, 1, 3)), DRAFT.trimmed(2, (1, 3))
    assert twice.kept == once.kept and twice.n_parameters == once.n_parameters
    check_law(TARGET, twice, Chain(2), SAMPLED)
    assert once.narrow.vocab_size == 2 and once.vocab_size == 4


def test_a_record_says_that_the_draft_model_was_trimmed():
    for draft, said in ((DRAFT, None), (DRAFT.trimmed(2, (1, 3)), 2)):
        run = sn.speculative(Pair(TARGET, draft), [0], max_new_tokens=2)
        assert run.settings.get("draft_ids") == said
        assert sn.Record.from_json(run.to_json()) == run


def test_what_cannot_be_kept_is_refused():
    for k, ids, words in (
        (0, (1, 2), "k=0"),
        (3, (1, 2), "k=3"),
        (1, (1, 1), "stands there twice"),
        (1, None, "give ids="),
        (1, (-1,), "ids=-1"),
        (1, (98, 99), r"ids=\(98, 99\): .* can say none of them"),
    ):
        with pytest.raises(ValueError, match=words):
            DRAFT.trimmed(k, ids)
    assert DRAFT.trimmed(1, (99, 2)).kept == (2,)  # ids that it has not are passed over


# ---- the embedded pair


@pytest.fixture(scope="module")
def pair():
    return sn.load_pair(dtype="float32", device="cpu")


@pytest.mark.weights
@pytest.mark.parametrize("runtime", ["auto", "lean", "transformers"])
def test_the_narrow_model_has_the_same_logits(pair, runtime):
    draft = sn.load_model(str(ROOT / "data/models/drafter"), runtime=runtime, device="cpu")
    draft = draft.beside(pair.target)
    small = draft.trimmed(100)
    kept = torch.tensor(small.kept)
    whole = draft.open("The star").forward([20, 30], [-1, 0]).nodes
    wide = small.open("The star").forward([20, 30], [-1, 0]).nodes
    narrow = small.narrow.open("The star").forward([20, 30], [-1, 0]).nodes
    assert narrow.shape == (2, 100) and wide.shape == whole.shape
    assert torch.equal(wide[:, kept], whole[:, kept])
    assert torch.allclose(narrow, whole[:, kept], atol=1e-4)
    assert int(torch.isfinite(wide).sum()) == 200
    assert small.n_parameters == draft.n_parameters - (draft.own_vocab_size - 100) * 128
    assert "100 ids of 990" in small.runtime
    again = small.trimmed(8)
    assert set(again.kept) < set(small.kept) and "990, 8" not in again.runtime
    assert again.n_parameters == draft.trimmed(8).n_parameters
    assert again.runtime == draft.trimmed(8).runtime
    with pytest.raises(ValueError, match="trim it in its pair"):
        small.beside(pair.target)


@pytest.mark.weights
@pytest.mark.slow
def test_greedy_texts_are_the_targets(pair):
    trimmed = sn.Pair(pair.target, pair.draft.trimmed(128))
    for task in ("caption", "conversation", "science"):
        for item in examples(task, 20, 0):
            plain = sn.autoregressive(pair.target, item.prompt, item.image, max_new_tokens=32)
            run = sn.speculative(trimmed, item.prompt, item.image, max_new_tokens=32)
            assert run.token_ids == plain.token_ids


@pytest.mark.weights
def test_the_shipped_order_is_whole():
    ids = json.loads((ROOT / "data/models/drafter/frequent_ids.json").read_text())
    assert sorted(ids) == list(range(990))
