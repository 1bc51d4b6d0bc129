"""The acceptance head: read from logits it is the one on hidden states, and a rule that asks for
it keeps the target's distribution."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from toys import PLAIN, check_law, models

import specnb as sn
from specnb.models.head import FILE, AcceptanceHead, read_head, save_head
from specnb.models.load import EMBEDDED
from specnb.sampling import Draws


@pytest.fixture(scope="module")
def pair():
    return sn.load_pair(dtype="float32")


def with_head(draft):
    """A table model whose head is sure of some of its laws and not of others."""
    weight = torch.linspace(-1.5, 1.5, draft.vocab_size, dtype=torch.float64)
    draft = copy.copy(draft)
    draft.acceptance_head = lambda: lambda logits: torch.sigmoid(logits @ weight)
    return draft


def guess(draft, text) -> float:
    return float(draft.acceptance_head()(draft.next_logits(text)))


@pytest.mark.parametrize("drafter", [sn.Chain, lambda n, **kw: sn.GumbelTopK((2,) * n, **kw)])
@pytest.mark.parametrize("order", [1, 2])
def test_the_rule_keeps_the_law(order, drafter):
    target, draft = models(3, order, seed=3)
    draft = with_head(draft)
    guesses = sorted(guess(draft, [token] * order) for token in range(3))
    rule = sn.SpecDecPP(guesses[1] * guesses[2] * 0.999)
    law = check_law(target, draft, drafter(2, stop=rule), PLAIN)
    lengths = {event[1:] for event in law.outcomes if event[0] == "drafted"}
    assert len(lengths) > 1, "the rule never stopped, or always"


def test_a_rule_that_sees_the_drawn_token_would_be_found():
    """The planted bug: one that guesses for the token, and not before it is drawn."""
    target, draft = models(3, 1, seed=3)

    class Peeking(sn.Chain):
        def expand(self, level, draws):
            for child in super().expand(level, draws):
                if child.token != 0:  # a token dropped because of itself
                    yield child

    with pytest.raises(AssertionError):
        check_law(target, draft, Peeking(2), PLAIN)


def test_a_node_is_told_its_own_guess_and_its_ancestors_as_path():
    target, draft = models(3, order=2, seed=4)
    draft, told = with_head(draft), []

    class Watched(sn.SpecDecPP):
        def stop(self, logits, probs, *, acceptance, path=()):
            told.append((acceptance, tuple(path)))
            return False

    drafting = sn.GumbelTopK((2, 2, 1), stop=Watched()).start(
        sn.Pair(target, draft), [0, 1], None, PLAIN
    )
    tree = drafting.propose(Draws(0), 8)
    asked = [-1, *(i for i, depth in enumerate(tree.depth) if depth <= 2)]
    assert len(told) == len(asked) == 1 + 2 + 4
    for node, (own, path) in zip(asked, told, strict=True):
        tokens = [tree.tokens[i] for i in tree.path(node)] if node >= 0 else []
        texts = [[0, 1, *tokens[:n]] for n in range(len(tokens) + 1)]
        assert [*path, own] == pytest.approx([guess(draft, text) for text in texts])


def test_the_rule_stops_where_the_product_falls_below_the_threshold():
    rule, row = sn.SpecDecPP(0.3), torch.zeros(4)
    for path, own, stops in (
        ([], 0.31, False),
        ([], 0.29, True),
        ([0.5, 0.8], 0.76, False),
        ([0.5, 0.8], 0.74, True),
    ):
        assert rule.stop(row, row, acceptance=own, path=path) is stops
    assert rule.score(row, row, acceptance=0.4) == 0.4 and rule.state == ()


def test_without_a_head_it_is_refused_before_a_token_is_drawn():
    target, draft = models(3, 1, seed=3)
    with pytest.raises(ValueError, match=r"stop=SpecDecPP.*no acceptance head; train one with"):
        sn.speculative(sn.Pair(target, draft), [0], drafter=sn.Chain(3, stop=sn.SpecDecPP()))


def test_read_from_logits_it_is_the_head_on_hidden_states():
    torch.manual_seed(0)
    table, weight, hidden = torch.randn(50, 8), torch.randn(8), torch.randn(5, 8)
    wanted = torch.sigmoid((hidden @ weight).double() + 0.25)
    assert torch.allclose(AcceptanceHead(weight, 0.25, table)(hidden @ table.T), wanted, atol=1e-5)
    some = torch.tensor(sorted({*range(0, 50, 3), 49}))
    logits = torch.full((5, 50), -torch.inf)
    logits[:, some] = (hidden @ table.T)[:, some]  # the others it never says
    head = AcceptanceHead(weight, 0.25, table[some], some)
    assert torch.allclose(head(logits), wanted, atol=1e-5)
    with pytest.raises(ValueError, match=r"k=7: .* 8 at least"):
        AcceptanceHead(weight, 0.25, table[:7])
    with pytest.raises(ValueError, match="hidden states of 9 numbers, the draft model's have 8"):
        AcceptanceHead(torch.randn(9), 0.25, table)


def test_a_file_that_is_no_head_is_named(tmp_path):
    assert read_head(tmp_path) is None
    save_head(tmp_path, torch.ones(3), 0.5)
    weight, bias = read_head(tmp_path)
    assert weight.tolist() == [1, 1, 1] and bias == 0.5
    save_head(tmp_path, torch.ones(3, 1), 0.5)
    with pytest.raises(ValueError, match=f"{FILE}: it holds no acceptance head"):
        read_head(tmp_path)


@pytest.mark.weights
@pytest.mark.parametrize("runtime", ["auto", "lean", "transformers"])
@pytest.mark.parametrize("name", ["drafter", "drafter-adapter"])
def test_every_runtime_guesses_what_the_hidden_state_says(name, runtime):
    """Against transformers' own hidden states, whole vocabulary and trimmed."""
    draft = sn.load_model(str(EMBEDDED / name), dtype="float32", runtime=runtime)
    weight, bias = read_head(draft.path)
    context = draft.open("What is in the picture?")
    tokens = [5, 7, 9]
    scores = context.forward(tokens, range(-1, 2))
    ids = torch.tensor([[*context.committed, *tokens]])
    with torch.no_grad():
        hidden = draft.module.model(input_ids=ids).last_hidden_state[0, -4:]
    wanted = torch.sigmoid((hidden.double() @ weight.double()) + bias)
    logits = torch.cat([scores.root[None], scores.nodes])
    assert torch.allclose(draft.acceptance_head()(logits), wanted, atol=1e-4)
    assert wanted.std() > 1e-3
    if name == "drafter":
        trimmed = draft.trimmed(300)
        scores = trimmed.narrow.open("What is in the picture?").forward(tokens, range(-1, 2))
        logits = torch.cat([scores.root[None], scores.nodes])
        assert logits.shape[-1] == 300
        assert torch.allclose(trimmed.narrow.acceptance_head()(logits), wanted, atol=1e-3)


@pytest.mark.weights
@pytest.mark.parametrize("k", [0, 300])
def test_greedy_texts_stay_the_targets(pair, k):
    if k:
        pair = sn.Pair(pair.target, pair.draft.trimmed(k))
    lengths = set()
    for item in sn.scenes.examples("caption", 3, 11):
        plain = sn.autoregressive(pair.target, item.prompt, item.image, max_new_tokens=32)
        run = sn.speculative(
            pair,
            item.prompt,
            item.image,
            drafter=sn.Chain(8, stop=sn.SpecDecPP(0.3)),
            max_new_tokens=32,
        )
        assert run.token_ids == plain.token_ids
        lengths |= {block.n_drafted for block in run.blocks}
    assert len(lengths) > 2


@pytest.mark.weights
def test_a_trimmed_vocabulary_too_small_for_the_head_is_refused(pair):
    small = sn.Pair(pair.target, pair.draft.trimmed(100))
    with pytest.raises(ValueError, match=r"k=100: .*128 at least"):
        sn.speculative(small, "Hello", drafter=sn.Chain(3, stop=sn.SpecDecPP()))


def test_thresholds_are_checked():
    with pytest.raises(ValueError, match="threshold=nan"):
        sn.SpecDecPP(math.nan)
    assert sn.name_of(sn.Chain(8, stop=sn.SpecDecPP(0.3))) == "Chain(8, stop=SpecDecPP(0.3))"
    assert sn.method("Chain(8, stop=SpecDecPP(0.3))") == sn.Chain(8, stop=sn.SpecDecPP(0.3))
