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
    decoding = sn.Decoding(pair, sn.Request(prompt, None, setting, drawn, 24), drafter)
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


FETCHES = ("item", "tolist", "cpu", "numpy", "__float__", "__int__", "__bool__", "__index__")


class Fetched(FakeCard):
    """A card that notes what it is waited for."""

    def __init__(self):
        super().__init__()
        self.names: list[str] = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = getattr(function, "__name__", "")
        tensor = next((x for x in args if isinstance(x, torch.Tensor)), None)
        if name in FETCHES and tensor is not None and is_on_card(tensor):
            self.names.append(name)
        return super().__torch_function__(function, types, args, kwargs)


def waits_of_a_verification(drafter) -> list[list[str]]:
    """What the card is waited for in each block, from the draft to the emitted tokens."""
    target, draft = TableModel.random(5, 2, seed=1), TableModel.random(5, 2, seed=1, spread=1.2)
    for model in (target, draft):
        model.logits = on_card(model.logits)
    found = []
    with Fetched() as card:
        request = sn.Request([0, 1, 2, 0, 1], None, sn.Sampling(1.0), None, 24)
        decoding = sn.Decoding(Pair(target, draft), request, drafter)
        propose, commit = decoding.drafting.propose, decoding.drafting.commit

        def proposed(*given):
            tree = propose(*given)
            card.names.clear()
            return tree

        def committed(*given):
            found.append(list(card.names))
            return commit(*given)

        decoding.drafting.propose, decoding.drafting.commit = proposed, committed
        while decoding.finish is None:
            decoding.step()
    return found


@pytest.mark.parametrize("method", EVERY)
def test_a_verification_waits_for_a_card_twice(method, unchecked):
    """Once for the judgement of the logits, once for their laws; no node asks for more."""
    waits = waits_of_a_verification(EVERY[method])
    assert waits and max(map(len, waits)) <= 2 and max(waits, key=len)[-1] == "cpu"


def test_laws_that_stay_on_a_card_would_be_seen(monkeypatch, unchecked):
    from specnb import decode

    monkeypatch.setattr(decode, "law_of", lambda context, sampling, logits: sampling.probs(logits))
    assert max(map(len, waits_of_a_verification(sn.Chain(5)))) > 4


def test_on_the_cpu_no_law_is_copied():
    decoding = decoded(sn.Chain(3), torch.clone, 1.0)
    block = decoding.blocks[0]
    assert sn.decode._kept(block) is block


# ----------------------------------------------------------- what needs a GPU, by stand-ins for it


def test_times_wait_for_the_card(monkeypatch):
    """Otherwise a prefill would end in the seconds of the first block."""
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    card = torch.device("cuda", 0)
    assert sn.decode._now(torch.device("cpu")) <= sn.decode._now(None) and not waited
    sn.decode._now(card)
    assert waited == [card]


def test_every_time_of_a_run_is_taken_on_the_targets_device(monkeypatch):
    asked = []
    now = sn.decode._now
    monkeypatch.setattr(sn.decode, "_now", lambda device: asked.append(device) or now(device))
    pair = sn.load_pair()
    decoding = sn.Decoding(pair, sn.Request("Describe the picture."), sn.Chain(2))
    decoding.step()
    decoding.force(5)
    assert asked == [torch.device("cpu")] * (2 + 4 + 3)


def test_setup_holds_on_a_card(monkeypatch, capsys):
    from specnb.models import settings

    monkeypatch.setattr(settings, "_dtype", dict(settings._dtype))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    sn.setup(threads=1, dtype="float16")
    assert settings.dtype("cuda") == "float16" and "device cuda, float16" in capsys.readouterr().out
    sn.setup(threads=1)
    assert settings.dtype("cuda") == "auto" and "device cuda, as saved" in capsys.readouterr().out


@pytest.mark.parametrize(("has", "wanted"), [(True, "auto"), (False, "float16")])
def test_a_card_without_bfloat16(tmp_path, monkeypatch, has, wanted):
    """A T4 would emulate the format that the weights were saved in."""
    import builders

    from specnb.models import load

    class Stop(Exception):
        pass

    def weights(transformers, folder, plan, settings):
        raise Stop(settings["dtype"], settings.get("device_map"))

    folder = builders.llama(tmp_path / "m")
    path = tmp_path / "m" / "config.json"
    path.write_text(path.read_text().replace('"float32"', '"bfloat16"'))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has)
    monkeypatch.setattr(load, "_weights", weights)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: True)
    with pytest.raises(Stop) as stopped:
        sn.load_model(folder, certify=False)
    assert stopped.value.args == (wanted, {"": "cuda"})  # straight there, not through the CPU


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_what_transformers_is_asked_for_quantised_weights(monkeypatch, bits):
    import transformers

    from specnb.models import load

    monkeypatch.setattr("importlib.util.find_spec", lambda name: True)
    placed = load._placement(transformers, "cuda", "", bits)
    assert placed["device_map"] == {"": "cuda"}
    asked = placed["quantization_config"]
    assert (asked.load_in_4bit, asked.load_in_8bit) == (bits == "4bit", bits == "8bit")
    assert load._placement(transformers, "cuda", "auto", "")["device_map"] == "auto"
    assert load._placement(transformers, "cpu", "", "") == {}


def test_packed_numbers_are_counted_as_they_were():
    from specnb.models import hf

    packed = torch.nn.Parameter(torch.zeros(32, 1, dtype=torch.uint8), requires_grad=False)
    packed.quant_state = type("State", (), {"shape": (8, 8)})
    assert hf._numbers(packed) == 64 and hf._numbers(torch.zeros(3, 4)) == 12


def test_what_stays_off_the_lean_runtime(tmp_path):
    import builders

    from specnb.models.llama import why_not

    module = sn.load_model(builders.llama(tmp_path / "m"), "cpu").module
    assert why_not(module) == ""
    module.is_quantized = True
    assert why_not(module) == "quantised weights"
    module.is_quantized, module.hf_device_map = False, {"a": 0, "b": 1}
    assert why_not(module) == "weights on several devices"
    del module.hf_device_map
    assert why_not(module.half()) == "dtype float16"


def test_a_replay_on_a_card_is_that_on_the_processor(unchecked):
    """Laws are moved off the card before they are compared, row by row."""
    found = []
    for place in (lambda tensor: tensor, on_card):
        target, draft = TableModel.random(5, 2, seed=1), TableModel.random(5, 2, seed=2)
        for model in (target, draft):
            model.logits = place(model.logits)
        with FakeCard():
            pair, one = Pair(target, draft), sn.Sampling(1.0)
            found.append(sn.measure.follow(pair, [0, 1], one, max_new_tokens=12))
    for name in ("kept", "overlap", "rank", "entropy", "top"):
        here, there = (getattr(text, name) for text in found)
        assert (here == there).all()
