"""Decoding on a second device, which is simulated: nothing is mixed, nothing is left there."""

from __future__ import annotations

import pytest
import torch
from fake_device import CARD, FakeCard, is_on_card, on_card
from toys import EVERY

import specnb as sn
from specnb.models import Pair, TableModel


def test_the_card_is_told_apart():
    """The simulation itself: what a real machine refuses is refused."""
    there, here = on_card(torch.ones(3)), torch.ones(3)
    with FakeCard():
        assert there.device == CARD and here.device.type == "cpu"
        assert here.to(there.device).device == CARD and there.cpu().device.type == "cpu"
        assert (there * 2).device == CARD and there[1:].device == CARD
        assert torch.zeros(2, device=there.device).device == CARD
        for mixed in (
            lambda: there + here,
            lambda: torch.cat([there, here]),
            lambda: there.gather(0, torch.tensor([1])),
        ):
            with pytest.raises(RuntimeError, match="same device"):
                mixed()


def decoded(drafter, place, temperature):
    """A run with target and draft model at a place."""
    target, draft = TableModel.random(5, 2, seed=1), TableModel.random(5, 2, seed=1, spread=1.2)
    for model in (target, draft):
        model.logits = place(model.logits)
    prompt = [0, 1, 2, 0, 1, 2, 0, 1]
    setting = sn.Sampling(temperature)
    drawn = sn.Sampling(1.0)
    pair = Pair(target, draft)
    decoding = sn.decode.Decoding(
        pair, prompt, drafter=drafter, sampling=setting, draft_sampling=drawn, max_new_tokens=24
    )
    while decoding.finish is None:
        decoding.step()
    decoding.record()
    return decoding


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("method", EVERY)
def test_every_drafter_on_a_card(method, temperature, unchecked):
    wanted = decoded(EVERY[method], torch.clone, temperature)
    with FakeCard():
        found = decoded(EVERY[method], on_card, temperature)
        record = found.record()
    assert record.token_ids == wanted.record().token_ids
    assert record.tokens == wanted.record().tokens
    for block in found.blocks:  # a record must not fill the card's memory
        laws = (block.target_probs, block.tree.probs, block.outcome.final_probs)
        assert not any(is_on_card(law) for law in laws if law is not None)


def test_on_the_cpu_no_law_is_copied():
    decoding = decoded(sn.Chain(3), torch.clone, 1.0)
    block = decoding.blocks[0]
    assert sn.decode._kept(block) is block


def test_rows_of_prompt_lookup_are_moved_once_per_block(monkeypatch, unchecked):
    """Its rows are made on the CPU; without the move the card's laws would be mixed with them."""
    from specnb import decode
    from specnb import verify as module

    def unmoved(tree, *args):
        monkeypatch.setattr(module, "replace", lambda tree, **_: tree)
        return module.verify(tree, *args)

    monkeypatch.setattr(decode, "verify", unmoved)
    with FakeCard(), pytest.raises(RuntimeError, match="same device"):
        decoded(sn.PromptLookup(), on_card, 1.0)
