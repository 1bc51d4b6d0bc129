"""The acceptance head: read from logits it is the one on hidden states, in every runtime."""

from __future__ import annotations

import pytest
import torch

import specnb as sn
from specnb.models.head import FILE, AcceptanceHead, read_head, save_head
from specnb.models.load import EMBEDDED


@pytest.fixture(scope="module")
def pair():
    return sn.load_pair(dtype="float32")


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
