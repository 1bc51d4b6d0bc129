"""Alignment: answers are the target's, predictions are exact, a killed run ends the same."""

from __future__ import annotations

import dataclasses
import itertools
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import builders
import numpy as np
import pytest
import torch
from places import ROOT
from safetensors.torch import load_file

import specnb as sn
from specnb.models.hf import HFModel
from specnb.models.load import EMBEDDED, load_model
from specnb.training import LOSSES, Answers, Recipe, align, grown, inherit, new_drafter
from specnb.training.align import calls_needed, draft_logits, held_out, said_most, train_on
from specnb.training.answers import Asked, Asking, scene_prompts, write_answers

pytestmark = pytest.mark.weights
SHORT = Asking(temperatures=(0.0, 1.0), max_new_tokens=12, batch=4)
QUICK = Recipe("kl", steps=4, then="tv", then_steps=2, batch=4)


def loaded(folder: str):
    return load_model(folder, dtype="float32", device="cpu", runtime="transformers", certify=False)


@pytest.fixture(scope="module")
def target():
    return loaded(str(EMBEDDED / "target"))


@pytest.fixture(scope="module")
def folder(target, tmp_path_factory):
    folder = tmp_path_factory.mktemp("answers")
    write_answers(target, scene_prompts(8, 2_900, 4), folder, SHORT)
    return folder


def test_greedy_answers_are_what_the_target_says(target, folder):
    answers = Answers(folder)
    for row, item in enumerate(scene_prompts(4, 2_900, 4)):
        run = sn.autoregressive(target, item.prompt, item.image, max_new_tokens=12)
        assert answers.answers[row] == list(run.token_ids)
        assert answers.prompts[row] == target.encode(item.prompt)[0]
    assert answers.temperatures == [0.0] * 4 + [1.0] * 4


def test_what_is_kept_gives_the_targets_distributions(target, folder):
    """No forward of the target: hidden states times the head."""
    answers = Answers(folder)
    item = scene_prompts(8, 2_900, 4)[6]
    context = target.open(item.prompt, item.image)
    context.commit(answers.answers[6][:-1])
    wanted = context.forward().root
    at = int(answers.first[7]) - 1
    found = answers.target_logits(answers.hidden[at : at + 1])[0]
    allowed = torch.isfinite(wanted)
    assert torch.equal(torch.isfinite(found), allowed)
    assert (found - wanted)[allowed].abs().max() < 0.05  # hidden states are kept in fp16


def test_answers_of_other_settings_are_refused(target, folder):
    for asked, asking, word in (
        (scene_prompts(8, 2_901, 4), SHORT, "prompts"),
        (scene_prompts(8, 2_900, 4), Asking((0.0,), 12, 4), "temperatures"),
    ):
        with pytest.raises(ValueError, match=word):
            write_answers(target, asked, folder, asking)
    with pytest.raises(ValueError, match="holds no answers"):
        Answers(folder / "nothing")


@pytest.mark.parametrize("kind", ["granite", "gemma2", "bias"])
def test_a_target_with_other_logits_is_refused(target, tmp_path, kind):
    """A scale, a soft cap or a bias behind the head: what is kept would be another distribution."""
    import transformers

    shape = {
        "vocab_size": target.own_vocab_size,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "initializer_range": 0.5,
    }
    torch.manual_seed(0)
    if kind == "granite":
        config = transformers.GraniteConfig(**shape, logits_scaling=8.0)
        module = transformers.GraniteForCausalLM(config)
    elif kind == "gemma2":
        config = transformers.Gemma2Config(**shape, head_dim=16, final_logit_softcapping=5.0)
        module = transformers.Gemma2ForCausalLM(config)
    else:
        module = new_drafter(target)
        module.lm_head.bias = torch.nn.Parameter(torch.randn(target.own_vocab_size))
    model = HFModel(module.eval(), target.tokenizer, kind, runtime="transformers")
    with pytest.raises(ValueError, match=f"target '{kind}': its logits are not the product"):
        write_answers(model, [Asked([5, 6, 7])], tmp_path / "answers", SHORT)
    assert not (tmp_path / "answers").exists()
    if kind == "bias":
        module.lm_head.bias.data.zero_()
        write_answers(model, [Asked([5, 6, 7])], tmp_path / "answers", SHORT)


def test_prompts_have_as_many_pictures(target, tmp_path):
    item = scene_prompts(1, 2_900, 1)[0]
    both = item._replace(image=[item.image, item.image])
    for rows, said in (
        ([item, Asked("a")], "some have 0 pictures and some have 1"),
        ([Asked("a"), both], "some have 0 pictures and some have 2"),
        ([item, both], "some have 1 pictures and some have 2"),
        ([], "there are none"),
        ([item._replace(image="none.png")], "there is no such file"),
    ):
        with pytest.raises(ValueError, match=said):
            write_answers(target, rows, tmp_path / "answers", SHORT)
    blind = loaded(builders.llama(tmp_path / "blind"))
    with pytest.raises(ValueError, match="sees no pictures; leave them out"):
        write_answers(blind, [item], tmp_path / "answers", SHORT)
    assert not (tmp_path / "answers").exists()


def test_a_picture_may_be_a_path(target, tmp_path):
    item = scene_prompts(1, 2_900, 1)[0]
    item.image.save(tmp_path / "a.png")
    write_answers(target, [item], tmp_path / "answers", SHORT)
    there = Answers(tmp_path / "answers")
    write_answers(target, [item._replace(image=tmp_path / "a.png")], tmp_path / "answers", SHORT)
    write_answers(target, [item._replace(image=str(tmp_path / "a.png"))], tmp_path / "b", SHORT)
    assert Answers(tmp_path / "b").digest == there.digest


def test_every_temperature_is_asked():
    for n, asking in itertools.product((1, 3, 4, 62, 300, 3_072), (Asking(), SHORT)):
        batch = asking.spread(n).batch
        assert 1 <= batch <= asking.batch
        assert -(-n // batch) >= min(n, len(asking.temperatures))
    assert Asking().spread(3_072) == Asking()


@pytest.mark.parametrize(
    "kind, given, said",
    [
        (Asking, {"batch": 0}, "batch=0"),
        (Asking, {"temperatures": ()}, r"temperatures=\(\)"),
        (Asking, {"temperatures": (0.0, -1.0)}, r"temperatures\[1\]=-1.0"),
        (Asking, {"max_new_tokens": 0}, "max_new_tokens=0"),
        (Recipe, {"lr": "x"}, "lr='x'"),
        (Recipe, {"then_lr": 0.0}, "then_lr=0.0"),
        (Recipe, {"blind": 5.0}, "blind=5.0"),
        (Recipe, {"steps": 1.5}, "steps=1.5"),
        (Recipe, {"seed": -1}, "seed=-1"),
    ],
)
def test_numbers_that_cannot_be_are_refused(kind, given, said, unchecked):
    with pytest.raises(ValueError, match=f"^{said}: give"):
        kind(**given)


def test_numbers_of_numpy_are_numbers(unchecked):
    recipe = Recipe(steps=np.int64(3), lr=np.float32(0.5), seed=np.int32(1))
    assert json.loads(json.dumps(dataclasses.asdict(recipe)))["steps"] == 3


def test_batches_hold_every_answer_once(folder):
    answers = Answers(folder)
    batch = answers.batch(0, 8)
    assert int(batch.mask.sum()) == len(batch.said) == len(batch.hidden) == len(answers.hidden)
    assert sorted(batch.said.tolist()) == sorted(itertools.chain(*answers.answers))
    row = batch.ids[0][batch.mask[0]]  # the last of the prompt, and all of the answer but its end
    assert row[1:].tolist() == batch.said[: len(row) - 1].tolist()
    again = Answers(folder).batch(0, 8)
    assert torch.equal(batch.ids, again.ids) and torch.equal(batch.features, again.features)
    assert not torch.equal(batch.ids, answers.batch(1, 8).ids)


def walked(shares, draft_length) -> float:
    """Expected calls by enumerating which tokens would be accepted, block by block."""
    n, expected = len(shares), 0.0
    for hits in itertools.product((0, 1), repeat=n):
        mass = np.prod([s if hit else 1 - s for s, hit in zip(shares, hits, strict=True)])
        at = calls = 0
        while at < n:
            run = 0
            while run < draft_length and at + run < n and hits[at + run]:
                run += 1
            at += run + 1
            calls += 1
        expected += mass * calls
    return expected


@pytest.mark.parametrize("draft_length", [1, 2, 5])
def test_predicted_calls_are_those_of_an_enumeration(draft_length):
    shares = [0.9, 0.2, 1.0, 0.5, 0.0, 0.7]
    assert calls_needed(shares, draft_length) == pytest.approx(walked(shares, draft_length))
    assert calls_needed([1.0] * 12, 5) == 2 and calls_needed([0.0] * 4, 5) == 4


def test_the_prediction_is_what_decoding_needs(target, folder):
    """Greedy, where nothing is random: predicted calls are counted calls, answer by answer."""
    answers, pair = Answers(folder), sn.load_pair(dtype="float32", device="cpu")
    for row, item in enumerate(scene_prompts(4, 2_900, 4)):
        batch = answers.rows([row])
        with torch.inference_mode():
            logits = draft_logits(loaded(str(EMBEDDED / "drafter")).module, batch)
        hits = (logits.masked_fill(answers.forbidden, -torch.inf).argmax(-1) == batch.said).double()
        run = sn.speculative(pair, item.prompt, item.image, max_new_tokens=12)
        assert calls_needed(hits.tolist(), 5) == len(run.blocks)


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_trains(target, folder, tmp_path, loss):
    module = new_drafter(target, seed=1)
    answers = Answers(folder)
    before = module.model.embed_tokens.weight.clone()
    figures = train_on(module, answers, tmp_path, Recipe(loss, 3, then_steps=0, batch=8), answers)
    assert not torch.equal(before, module.model.embed_tokens.weight)
    assert set(figures) == {"alpha", "tau", "by_position", "agree", "tau_greedy"}
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert 0 < rows[-1]["held_out_alpha"] < 1 and np.isfinite(rows[-1]["loss"])


def test_one_training_is_not_taken_for_another(target, folder, tmp_path):
    """The same folder again: the same weights with the same settings, else an error."""
    answers, quick = Answers(folder), Recipe("kl", 3, then_steps=0, batch=4)

    def weights(recipe=quick, seed=1, answers=answers):
        module = new_drafter(target, seed=seed)
        train_on(module, answers, tmp_path, recipe)
        return module.model.embed_tokens.weight

    assert torch.equal(weights(), weights())
    for name, other in (
        ("lr", {"recipe": dataclasses.replace(quick, lr=1e-2)}),
        ("seed", {"recipe": dataclasses.replace(quick, seed=7)}),
        ("blind", {"recipe": dataclasses.replace(quick, blind=0.5)}),
        ("start", {"seed": 2}),
        ("answers", {"answers": Answers(folder, 4)}),
    ):
        with pytest.raises(ValueError, match=rf"other settings \({name}\)"):
            weights(**other)


def test_held_out_figures_are_written_when_they_are_computed(target, folder, tmp_path):
    answers, recipe = Answers(folder), Recipe("kl", 45, then_steps=0, batch=2)
    with pytest.raises(ValueError, match="check_every=30: give a multiple of 20"):
        train_on(new_drafter(target), answers, tmp_path, recipe, answers, check_every=30)
    train_on(new_drafter(target), answers, tmp_path, recipe, answers, check_every=20)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "held_out_alpha" in row] == [20, 40, 45]


@pytest.mark.parametrize("change", [-64, 64])
def test_ids_that_the_target_never_says_may_be_missing(target, folder, tmp_path, change):
    """Tables of another height, as filled up to a round number: what both have is learned."""
    answers, module = Answers(folder), new_drafter(target, seed=3)
    n_own = target.own_vocab_size + change
    head = torch.nn.Linear(module.config.hidden_size, n_own, bias=False)
    rows = min(n_own, target.own_vocab_size)
    head.weight.data[:rows] = module.lm_head.weight.data[:rows]
    module.lm_head = head
    recipe = Recipe("kl", 2, then_steps=0, batch=4)
    if change < 0:
        with pytest.raises(ValueError, match=r"has \d+ ids, and lacks \d+ that the target may say"):
            train_on(module, answers, tmp_path, recipe, answers)
        answers.forbidden[n_own:] = True
    before = head.weight.detach().clone()
    train_on(module, answers, tmp_path, recipe, answers)
    assert torch.isfinite(head.weight).all() and not torch.equal(before, head.weight)


def test_a_drafter_over_fewer_ids_is_judged(target, folder):
    """Ids that its table lacks are never drafted; all else counts as it is."""
    module, answers = new_drafter(target, seed=3), Answers(folder)
    n_kept = target.vocab_size - 64
    head = torch.nn.Linear(module.config.hidden_size, n_kept, bias=False)
    head.weight.data.copy_(module.lm_head.weight.data[:n_kept])
    module.lm_head = head
    shares = []
    with torch.inference_mode():
        for i in (i for i, kind in enumerate(answers.temperatures) if kind == 1.0):
            batch = answers.rows([i])
            p = answers.target_logits(batch.hidden).softmax(-1)[:, :n_kept]
            logits = draft_logits(module, batch)
            q = logits.masked_fill(answers.forbidden[:n_kept], -torch.inf).softmax(-1)
            shares.append(torch.minimum(p, q).sum(-1))
    wanted = float(torch.cat(shares).double().mean())
    assert held_out(module, answers)["alpha"] == pytest.approx(wanted, rel=1e-5)


def test_kl_learns_what_it_is_shown(target, folder, tmp_path):
    """On eight answers, seen often: acceptance rises far above where it began."""
    module, answers = new_drafter(target, seed=2), Answers(folder)
    before = held_out(module, answers)["alpha"]
    after = train_on(
        module, answers, tmp_path, Recipe("kl", 80, then_steps=0, batch=8, lr=1e-2), answers
    )
    assert before < 0.1 and after["alpha"] > 0.6 and after["tau"] > 2


SCRIPT = """
import sys, torch
torch.set_num_threads(1)
from pathlib import Path
from specnb.training import Answers, Recipe, new_drafter
from specnb.training import loop
from specnb.training.align import train_on
from specnb.models.load import EMBEDDED, load_model
target = load_model(str(EMBEDDED / "target"), dtype="float32", device="cpu", runtime="transformers")
right = loop.save_checkpoint
if sys.argv[3] == "slow":
    import time
    def save(*given):
        right(*given)
        print("saved", flush=True)
        time.sleep(5)
    loop.save_checkpoint = save
module = new_drafter(target)
recipe = Recipe("kl", 3, then="tv", then_steps=3, batch=4)
train_on(module, Answers(Path(sys.argv[1])), Path(sys.argv[2]), recipe)
"""


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_weights(folder, tmp_path):
    """Killed behind the first stage, whose checkpoint is read again."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"

    def begin(work: Path, pace: str) -> subprocess.Popen:
        command = [sys.executable, "-c", SCRIPT, str(folder), str(work), pace]
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)

    assert begin(whole, "fast").wait() == 0
    run = begin(killed, "slow")
    assert run.stdout.readline().strip() == "saved"
    time.sleep(0.2)
    run.send_signal(signal.SIGKILL)
    assert run.wait() != 0
    assert begin(killed, "fast").wait() == 0
    for name in ("1-kl", "2-kl-tv"):
        a, b = (load_file(work / f"{name}.safetensors") for work in (whole, killed))
        assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_a_drafter_for_another_target_in_one_call(tmp_path):
    """A Llama that is not embedded, with prompts of one's own; the folder loads beside it."""
    name = builders.llama(tmp_path / "target", seed=3)
    prompts = [f"Say {word} {n}." for n in range(8) for word in ("a", "b", "c", "d", "e")]
    out = align(name, prompts=prompts, work=tmp_path / "work", recipe=QUICK, asking=SHORT)
    pair = sn.load_pair(name, str(out), dtype="float32", device="cpu", certify=False)
    plain = sn.autoregressive(pair.target, prompts[0], max_new_tokens=12)
    run = sn.speculative(pair, prompts[0], max_new_tokens=12)
    assert run.token_ids == plain.token_ids
    assert pair.draft.trimmed(20).vocab_size == pair.target.vocab_size
    figures = json.loads((out / "alignment.json").read_text())["held_out"]
    assert figures.keys() == {"alpha", "tau", "by_position", "agree", "tau_greedy", "head"}
    with pytest.raises(ValueError, match="too few"):
        align(name, prompts=prompts[:31], work=tmp_path / "other")
    with pytest.raises(ValueError, match="give texts"):
        align(name, work=tmp_path / "other")
    with pytest.raises(ValueError, match="have no pictures"):
        align(name, prompts=prompts, work=tmp_path / "work", asking=SHORT, sees=True)


TEXTS = [f"Say {n}." for n in range(40)]


@pytest.mark.parametrize(
    "given, said",
    [
        ({"prompts": [{"prompt": "hi"}] * 40}, r"prompts\[0\]=\{'prompt': 'hi'\}: give a text"),
        ({"prompts": [*TEXTS, " "]}, r"prompts\[40\]: prompt=' ': it is empty"),
        ({"prompts": TEXTS, "draft": "nowhere/x"}, "nowhere/x"),
        ({"prompts": TEXTS, "draft": 7}, "draft=7: give a folder, or a LlamaForCausalLM"),
        ({"prompts": TEXTS, "draft": EMBEDDED / "target"}, "no language model alone"),
        ({"prompts": TEXTS, "draft": EMBEDDED / "drafter-adapter"}, "it is an adapter"),
        ({"prompts": TEXTS, "sees": True}, "have no pictures"),
        ({"n": 0}, "n=0: give a whole number"),
    ],
)
def test_what_cannot_be_is_said_before_the_target_is_asked(tmp_path, given, said):
    with pytest.raises(ValueError, match=said):
        align(**given, work=tmp_path / "work", asking=SHORT)
    assert not (tmp_path / "work").exists()


def test_training_goes_on_from_an_adapter(target, monkeypatch):
    """With its projector, not with a new one."""
    from specnb.training.align import _start

    found = _start(EMBEDDED / "drafter-adapter", target, 0, sees=True)
    stored = load_file(EMBEDDED / "drafter-adapter" / "adapter.safetensors")
    assert torch.equal(found.projector.weight, stored["weight"].float())
    assert torch.equal(found.projector.bias, stored["bias"].float())


@pytest.mark.slow
def test_the_command_line_makes_an_adapter(tmp_path):
    work, out = tmp_path / "work", tmp_path / "drafter"
    command = [sys.executable, "-m", "specnb.training", "align", "--n", "64", "--steps", "2"]
    command += ["--then-steps", "0", "--loss", "lk", "--sees", "--threads", "1"]
    done = subprocess.run(
        [*command, "--work", str(work), "--out", str(out)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and done.stdout.strip() == str(out), done.stderr
    pair = sn.load_pair(draft=str(out), dtype="float32", device="cpu", certify=False)
    assert pair.draft.sees_images
    wrong = subprocess.run([*command[:4], "--loss", "x"], cwd=ROOT, capture_output=True, text=True)
    assert wrong.returncode == 2 and "choose one of ce" in wrong.stderr
    assert len(wrong.stderr.strip().splitlines()) == 1


def test_ids_said_most_come_first(folder):
    answers = Answers(folder)
    ids = said_most(answers)
    assert sorted(ids) == list(range(len(answers.head)))
    counts = [sum(answer.count(i) for answer in answers.answers) for i in ids[:30]]
    assert counts == sorted(counts, reverse=True) and counts[0] > 0


# ---- inherited drafters


def test_all_blocks_inherited_are_the_target(target):
    ids = torch.randint(4, 900, (2, 20), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        wanted = target.module(input_ids=ids).logits
        assert torch.equal(inherit(target, blocks=8)(ids).logits, wanted)
        whole = inherit(target, blocks=8)
        whole.model.norm.weight.mul_(1.01)  # planted: a final norm that was not inherited
        assert not torch.equal(whole(ids).logits, wanted)


@pytest.mark.parametrize("bias", ["attention_bias", "mlp_bias"])
def test_biases_are_inherited(target, bias):
    from transformers import LlamaForCausalLM

    config = new_drafter(target, layers=2).config
    setattr(config, bias, True)
    whole = LlamaForCausalLM(config)
    for name, parameter in whole.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    ids = torch.tensor([[1, 5, 9, 30]])
    with torch.inference_mode():
        assert torch.equal(inherit(whole, 2)(ids).logits, whole(ids).logits)
        narrow = inherit(whole, 1, width=64, heads=2, intermediate=100)
        assert torch.isfinite(narrow(ids).logits).all()


def test_untied_embeddings_are_inherited(tmp_path):
    """What the released code of Inheritune leaves at random."""
    target = loaded(builders.llama(tmp_path / "target", seed=4))
    drafter = inherit(target, blocks=1)
    table, head = drafter.model.embed_tokens.weight, drafter.lm_head.weight
    assert torch.equal(table, target.module.model.embed_tokens.weight)
    assert torch.equal(head, target.module.lm_head.weight) and not torch.equal(table, head)
    ids = torch.tensor([[1, 5, 9]])
    with torch.inference_mode():
        assert torch.equal(inherit(target, blocks=2)(ids).logits, target.module(ids).logits)


def test_narrower_drafters(target):
    drafter = inherit(target, blocks=2, width=128, heads=2, intermediate=352)
    config = drafter.config
    assert (config.hidden_size, config.num_attention_heads, config.head_dim) == (128, 2, 64)
    assert torch.isfinite(drafter(torch.tensor([[1, 5]])).logits).all()
    for wrong in ({"blocks": 9}, {"blocks": 0}, {"width": 999}, {"heads": 7}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            inherit(target, **wrong)


def test_growth_changes_no_logit(target):
    small = new_drafter(target)
    ids = torch.tensor([[1, 5, 9, 30]])
    with torch.inference_mode():
        large = grown(small, 3)
        assert torch.equal(large(ids).logits, small(ids).logits)
        large.model.layers[2].mlp.down_proj.weight.normal_()
        assert not torch.equal(large(ids).logits, small(ids).logits)
    assert len(large.model.layers) == 3
    with pytest.raises(ValueError, match="has 1 already"):
        grown(small, 1)


def test_prompts_are_items_or_texts():
    from specnb.training.align import _asked

    messages = [{"role": "user", "content": "a"}]
    for prompt in ("a", [3, 4], messages):
        assert _asked(0, prompt) == Asked(prompt)
    item = scene_prompts(1, 2_900, 1)[0]
    assert _asked(0, item) == item
