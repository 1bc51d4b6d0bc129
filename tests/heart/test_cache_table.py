"""The bookkeeping that every model shares, on table models whose logits are known for any text."""

import random

import pytest
import torch
from mutate import replaced
from toys import models

from specnb.models import TableModel
from specnb.models.base import Context
from specnb.models.table import TableContext

VOCAB = 3


@pytest.fixture(autouse=True)
def positions_are_right(monkeypatch):
    """Table models ignore positions; here each must be the number of slots that a token sees."""
    run = TableContext._run

    def checked(self, tokens, positions, visible):
        first, n = len(self.slots), len(tokens)
        seen = list(range(first + 1, first + n + 1)) if visible is None else visible.sum(1).tolist()
        assert positions == [count - 1 for count in seen]
        assert visible is None or visible.shape == (n, first + n)
        return run(self, tokens, positions, visible)

    monkeypatch.setattr(TableContext, "_run", checked)


def grow(context: Context, model: TableModel, text: list[int], chance: random.Random, levels=3):
    """A random tree, level by level; checks the logits of root and nodes; tokens and parents."""
    tokens, parents = [], []
    alone = chance.random() < 0.5  # otherwise text not yet fed goes with the first level
    if alone:
        scores = context.forward()
        assert torch.equal(scores.root, model.next_logits(text))
        assert scores.nodes.shape == (0, VOCAB)
    for _ in range(chance.randrange(levels + 1)):
        first = len(tokens)
        new_parents = [chance.randrange(-1, first) for _ in range(chance.randrange(1, 4))]
        new = [chance.randrange(VOCAB) for _ in new_parents]
        tokens, parents = tokens + new, parents + new_parents
        scores = context.forward(new, new_parents)
        assert torch.equal(scores.root, model.next_logits(text))
        for node in range(first, len(tokens)):
            path, walker = [], node
            while walker >= 0:
                path.insert(0, tokens[walker])
                walker = parents[walker]
            wanted = model.next_logits(text + path)
            assert torch.equal(scores.nodes[node - first], wanted), (text, path)
    return tokens, parents


def random_path(tokens, parents, chance) -> list[int]:
    """The tokens down to some node."""
    path, walker = [], chance.randrange(-1, len(tokens))
    while walker >= 0:
        path.insert(0, tokens[walker])
        walker = parents[walker]
    return path


def rounds(seed: int, order: int, n: int = 20) -> None:
    chance = random.Random(seed)
    model = TableModel.random(VOCAB, order, seed)
    text = [chance.randrange(VOCAB) for _ in range(chance.randrange(1, 5))]
    context = model.open(text)
    for _ in range(n):
        assert context.length == len(text) and context.committed == text
        assert context.room == model.max_positions - len(text)
        tokens, parents = grow(context, model, text, chance)
        whole = random_path(tokens, parents, chance)
        kept = whole[: chance.choice((0, len(whole) - 1, len(whole), len(whole)))]
        forced = [chance.randrange(VOCAB) for _ in range(chance.choice((0, 1, 1, 2, 4)))]
        context.commit(kept + forced)
        text = text + kept + forced
        # The cache holds a beginning of the text, in order, and nothing else.
        assert context.slots == text[: context.fed] and not context.pending_tokens
    fresh = model.open(text)
    assert torch.equal(context.forward().root, fresh.forward().root)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("seed", range(8))
def test_random_rounds(seed, order):
    rounds(seed, order)


@pytest.mark.parametrize(
    "owner, name, old, new",
    [
        (TableContext, "_keep", "self.slots[:n_before]", "self.slots[: n_before - 1]"),
        (Context, "commit", "for node in path]", "for node in range(len(path))]"),
        (Context, "commit", "if path and len(path) == len(token_ids):", "if path:"),
        (Context, "commit", "if path and len(path) == len(token_ids):", "if False:"),
        (Context, "commit", "self.fed += len(path)", "self.fed = self.length - 1"),
        (Context, "forward", "last + depth", "last + 1 + depth"),
        (Context, "forward", "self.offset + self.fed + i", "self.offset + i"),
        (Context, "_visible", "mask[n_unfed:, :n_prefix] = True", "pass"),
        (Context, "_visible", "ancestor_mask(parents)[first:]", "True"),
        (Context, "_visible", "self.offset + self.fed + i + 1", "self.offset + self.fed + i"),
    ],
)
def test_planted_cache_bugs_are_caught(owner, name, old, new, monkeypatch):
    """The control: the same rounds, one line of the bookkeeping changed."""
    monkeypatch.setattr(owner, name, replaced(getattr(owner, name), old, new))
    if new == "if path:":  # a wrong root is overwritten: tokens not yet fed come with one
        rounds(0, 2)
        return
    with pytest.raises((AssertionError, IndexError)):
        for seed in range(8):
            rounds(seed, 2)


def test_one_forward_per_block_gives_root_and_tree():
    model, _ = models(VOCAB, order=2)
    context = model.open([0, 1, 2])
    scores = context.forward([1, 2, 0], [-1, 0, -1])
    assert context.forwards == 1 and scores.nodes.shape == (3, VOCAB)
    context.commit([1, 2, 2])  # two stay in the cache, the third was never fed
    assert context.fed == 5 and context.length == 6
    scores = context.forward([0], [-1])
    assert context.forwards == 2
    assert torch.equal(scores.root, model.next_logits([2, 2]))
    assert torch.equal(scores.nodes[0], model.next_logits([2, 0]))


def test_full_acceptance_without_a_bonus_needs_no_forward_for_the_root():
    model, _ = models(VOCAB, order=2)
    context = model.open([0])
    context.forward([1, 2], [-1, 0])
    context.commit([1, 2])
    before = context.forwards
    assert torch.equal(context.forward().root, model.next_logits([1, 2]))
    assert context.forwards == before


def test_of_equal_siblings_either_may_stay():
    model, _ = models(VOCAB, order=2)
    context = model.open([0])
    context.forward([1, 1, 2], [-1, -1, 1])
    context.commit([1, 2])
    assert torch.equal(context.forward().root, model.next_logits([1, 2]))
    assert context.slots == [0, 1, 2][: len(context.slots)]


def test_forks_are_independent():
    model, _ = models(VOCAB, order=2)
    context = model.open([0, 1])
    context.forward([1, 2], [-1, 0])  # a fork may be taken with nodes pending
    fork, second = context.copy(), context.copy()
    fork.commit([1, 2, 0])
    second.forward([0], [1])
    assert context.committed == [0, 1] and context.pending_tokens == [1, 2]
    assert second.pending_tokens == [1, 2, 0]
    context.commit([2])
    assert torch.equal(fork.forward().root, model.next_logits([2, 0]))
    assert torch.equal(context.forward().root, model.next_logits([1, 2]))
    second.commit([1, 2, 0])
    assert torch.equal(second.forward().root, model.next_logits([2, 0]))
    assert (context.length, fork.length, second.length) == (3, 5, 5)


def test_forks_of_random_rounds_agree_with_their_own_text():
    chance = random.Random(4)
    model = TableModel.random(VOCAB, 2, seed=4)
    alive = [(model.open([0]), [0])]
    for _ in range(30):
        context, text = chance.choice(alive)
        alive.append((context.copy(), list(text)))
        tokens, parents = grow(context, model, text, chance)
        more = random_path(tokens, parents, chance) + [chance.randrange(VOCAB)]
        context.commit(more)
        text += more
    for context, text in alive:
        assert context.committed == text
        assert torch.equal(context.forward().root, model.next_logits(text))


def test_errors():
    model, _ = models(VOCAB)
    context = model.open([0])
    with pytest.raises(ValueError, match="2 tokens with 1 parents"):
        context.forward([1, 2], [-1])
    with pytest.raises(ValueError, match="parent 0 of node 0"):
        context.forward([1], [0])
    with pytest.raises(ValueError, match="parent -2 of node 0"):
        context.forward([1], [-2])
    assert context.pending_tokens == []  # nothing was taken in
    with pytest.raises(ValueError, match="prompt=.*give ids in 0..2"):
        model.open([3])
    with pytest.raises(ValueError, match="prompt"):
        model.open([])
    with pytest.raises(ValueError, match="image: a table model"):
        model.open([0], image=object())
    with pytest.raises(ValueError, match="prompt: it has 3 tokens.* at most 2; shorten"):
        TableModel(model.logits, max_positions=2).open([0, 0, 0])
    with pytest.raises(ValueError, match="power of the last"):
        TableModel(torch.zeros(5, 3))


def test_table_model_reads_the_last_tokens():
    logits = torch.arange(27.0).reshape(9, 3)
    model = TableModel(logits)
    assert model.order == 2 and model.logits.dtype == torch.float64
    assert model.next_logits([1, 2]).tolist() == logits[5].tolist()
    assert model.next_logits([0, 1, 2]).tolist() == logits[5].tolist()
    assert model.next_logits([2]).tolist() == logits[2].tolist()  # as if zeros stood before it
    assert TableModel(torch.zeros(1, 3)).order == 0
    assert torch.equal(TableModel.random(3, 2, 5).logits, TableModel.random(3, 2, 5).logits)
