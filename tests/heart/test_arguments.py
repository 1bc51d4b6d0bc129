"""Kinds of arguments: the right value whatever kind of number it came as, or one sentence."""

from __future__ import annotations

import json
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image

import specnb as sn
from specnb import arguments
from specnb.models import Pair, TableModel
from specnb.sampling import Draws

pytestmark = pytest.mark.usefixtures("unchecked")  # our own words, not the type checker's

THREE = (3, np.int64(3), np.uint8(3), np.array(3), torch.tensor(3), torch.tensor(3).short())
NO_WHOLE = (True, np.True_, torch.tensor(True), "3", b"3", None, 3.0, np.float64(3), math.inf)
NO_WHOLE += (math.nan, [3], (3,), np.array([3]), torch.tensor([3]), 3 + 0j, Fraction(3), object)
HALF = (0.5, np.float32(0.5), np.float64(0.5), np.array(0.5), torch.tensor(0.5), Fraction(1, 2))
NO_NUMBER = (True, np.True_, torch.tensor(True), "0.5", None, [0.5], np.array([0.5]), 1j, math.nan)


@pytest.mark.parametrize("given", THREE, ids=repr)
def test_whole_numbers_of_every_kind(given):
    for found in (
        arguments.whole("n", given, 1),
        sn.Sampling(1.0, top_k=given).top_k,
        sn.Chain(given).draft_length,
        sn.GumbelTopK([given, given]).branching[1],
        sn.StochasticBeam(given, given).width,
        sn.StochasticBeam(given, given).depth,
        sn.PromptLookup(given, given).ngram,
        sn.PromptLookup(given, given).length,
        sn.RunConfig(draft_length=given).draft_length,
        sn.RunConfig(seed=given).seed,
    ):
        assert found == 3 and type(found) is int


@pytest.mark.parametrize("given", NO_WHOLE, ids=repr)
def test_what_is_no_whole_number(given):
    for name, call in {
        "n": lambda: arguments.whole("n", given, 1),
        "seed": lambda: Draws(given),
        "top_k": lambda: sn.Sampling(1.0, top_k=given),
        "draft_length": lambda: sn.Chain(given),
        "branching": lambda: sn.IIDTree((2, given)),
        "width": lambda: sn.StochasticBeam(given, 2),
        "depth": lambda: sn.StochasticBeam(2, given),
        "ngram": lambda: sn.PromptLookup(ngram=given),
        "length": lambda: sn.PromptLookup(length=given),
        "n_prompts": lambda: sn.RunConfig(n_prompts=given),
        "threads": lambda: sn.setup(threads=given),
    }.items():
        with pytest.raises(ValueError, match=rf"^{name}=.*: give a whole number >= [01]"):
            call()


@pytest.mark.parametrize("given", HALF, ids=repr)
def test_real_numbers_of_every_kind(given):
    for found in (
        arguments.number("x", given, 0, 1),
        sn.Sampling(given).temperature,
        sn.Sampling(1.0, top_p=given).top_p,
        sn.AdaEDL(given).threshold,
        sn.AdaEDL(entropy_factor=given).entropy_factor,
        sn.MaxConfidence(epsilon=given).epsilon,
        sn.MaxConfidence(alpha=given).alpha,
        sn.RunConfig(temperature=given).temperature,
    ):
        assert found == 0.5 and type(found) is float
    assert type(sn.Sampling(1).temperature) is float and sn.Sampling(1) == sn.Sampling(1.0)


@pytest.mark.parametrize("given", NO_NUMBER, ids=repr)
def test_what_is_no_number(given):
    for name, call in {
        "x": lambda: arguments.number("x", given),
        "temperature": lambda: sn.Sampling(given),
        "top_p": lambda: sn.Sampling(1.0, top_p=given),
        "threshold": lambda: sn.MaxConfidence(given),
        "entropy_factor": lambda: sn.AdaEDL(entropy_factor=given),
        "epsilon": lambda: sn.AdaEDL(epsilon=given),
        "beta1": lambda: sn.AdaEDL(beta1=given),
    }.items():
        with pytest.raises(ValueError, match=rf"^{name}=.*: give a .*number"):
            call()


def test_ranges_are_said():
    for call, said in (
        (lambda: arguments.whole("n", 9, 1, 8), "n=9: give a whole number >= 1 and <= 8"),
        (lambda: arguments.number("x", 2, 0, 1), r"x=2: give a number in \[0, 1\]"),
        (lambda: arguments.number("x", 0, 0, 1, above=True), r"x=0: give a number in \(0, 1\]"),
        (lambda: arguments.number("x", math.inf, 0), "x=inf: give a finite number >= 0"),
        (lambda: arguments.number("x", 10**400, 0), "give a finite number >= 0"),
        (lambda: arguments.flag("on", 1), "on=1: give True or False"),
        (lambda: arguments.flag("on", "no"), "on='no': give True or False"),
        (lambda: sn.setup(threads=10**9), "threads=1000000000: give a whole number >= 1 and <="),
        (lambda: sn.AdaEDL(adaptive="no"), "adaptive='no': give True or False"),
    ):
        with pytest.raises(ValueError, match=f"{said}"):
            call()
    assert arguments.flag("on", np.True_) is True
    assert arguments.number("x", -math.inf, finite=False) == -math.inf


def test_long_and_deep_values_are_cut_in_messages():
    deep: list = [1] * 20
    for _ in range(12):
        deep = [deep] * 10  # written out it would be a terabyte
    for value in (deep, "x" * 10_000, 10**4000, 10**9000, {"a": deep}, np.zeros((99, 99))):
        words = arguments.shown(value)
        assert len(words) <= arguments.LONGEST and "\n" not in words
    assert arguments.shown("2,2") == "'2,2'" and arguments.shown([1, 2.5]) == "[1, 2.5]"


@pytest.mark.parametrize("given", [3, "3,2,1", b"21", None, {2: 1}, {2, 1}, (), [], np.eye(2)])
def test_branching_is_a_list_of_numbers(given):
    with pytest.raises(ValueError, match=r"^branching=.*: give one number .* as in \(2, 2, 1\)"):
        sn.GumbelTopK(given)
    assert sn.GumbelTopK(np.array([2, 1])) == sn.GumbelTopK([2, 1]) == sn.GumbelTopK((2, 1))


# ---- seeds


@pytest.mark.parametrize("seed", [0, 2**53 + 1, 2**63 - 1, np.uint64(2**63 - 1)])
def test_seeds_are_exact(seed):
    assert arguments.seed("seed", seed) == int(seed)
    ours = Draws(seed).gumbel((3,)).tolist()
    generator = torch.Generator().manual_seed(int(seed))
    exponential = torch.empty(3, dtype=torch.float64).exponential_(generator=generator)
    assert ours == (-exponential.log()).tolist()
    assert ours != Draws(int(seed) ^ 1).gumbel((3,)).tolist()


@pytest.mark.parametrize("seed", [-1, 2**63, 10**30])
def test_seeds_have_a_range(seed):
    with pytest.raises(ValueError, match=f"^seed={seed}: give a whole number >= 0 and <= 9223"):
        Draws(seed)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("9007199254740993", 2**53 + 1),  # a float would make it even
        ("9223372036854775807", 2**63 - 1),
        (2**53 + 1, 2**53 + 1),
        (float(2**53 - 1), 2**53 - 1),
        (" 12 ", 12),
        ("3.0", 3),
        (np.int64(2**62 + 1), 2**62 + 1),
    ],
)
def test_whole_numbers_that_papermill_hands_over(given, wanted):
    found = arguments.read_whole("seed", given)
    assert found == wanted and type(found) is int


@pytest.mark.parametrize(
    "given", [float(2**53), "1e300", 2.5, "2.5", "", "x", "nan", math.nan, math.inf, True, None, []]
)
def test_whole_numbers_that_cannot_be_read(given):
    with pytest.raises(ValueError, match="^seed=.*: give a whole number$"):
        arguments.read_whole("seed", given)


def test_numbers_that_papermill_hands_over():
    assert arguments.read_number("t", "1e-3") == 0.001
    assert arguments.read_number("t", np.float32(0.5)) == 0.5
    for given in ("hot", "", None, True, [1.0], 1j):
        with pytest.raises(ValueError, match="^t=.*: give a number$"):
            arguments.read_number("t", given)


# ---- a run's arguments, before a prompt is read


class Reached(Exception):
    """The model was about to read the prompt."""


class Words(TableModel):
    """A model with words and eyes, as far as its arguments go: it notes what it is given."""

    tokenizer, sees_images = object(), True
    asked: tuple = ()

    def open(self, prompt, image=None):
        self.asked = prompt, image
        if self.raises:
            raise Reached
        return super().open([0])

    raises = True


@pytest.fixture
def words() -> Words:
    return Words(torch.randn(3, 3, dtype=torch.float64))


def ask(model, prompt="hi", image=None, **more):
    return sn.autoregressive(model, prompt, image, **more)


@pytest.mark.parametrize("name", ["seed", "max_new_tokens"])
@pytest.mark.parametrize("given", NO_WHOLE, ids=repr)
def test_run_settings_are_judged_before_the_prompt_is_read(words, name, given):
    with pytest.raises(ValueError, match=f"^{name}=.*: give a whole number >= [01]"):
        ask(words, **{name: given})
    assert words.asked == ()


def test_run_settings_of_numpy_are_numbers():
    model = TableModel.random(4)
    runs = [
        sn.autoregressive(model, [0], sampling=sn.Sampling(1.0), seed=seed, max_new_tokens=n)
        for seed, n in ((5, 9), (np.int64(5), np.int32(9)), (torch.tensor(5), np.array(9)))
    ]
    for run in runs:
        assert run.token_ids == runs[0].token_ids and len(run.token_ids) == 9
        assert run.settings == runs[0].settings
        assert json.loads(run.to_json())["settings"]["seed"] == 5


def user(content) -> dict:
    return {"role": "user", "content": content}


TALK = [
    {"role": "system", "content": "Be short."},
    user([{"type": "image"}, {"type": "text", "text": "What is this?"}]),
    {"role": "assistant", "content": "A cat."},
    user("And its colour?"),
]


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("Describe", "Describe"),
        (np.str_("Describe"), "Describe"),
        ("🙂 \u200d שלום\0", "🙂 \u200d שלום\0"),
        ([1, 2, 0], [1, 2, 0]),
        ((1, np.int64(2), torch.tensor(0)), [1, 2, 0]),
        (TALK, TALK),
        (tuple(TALK), TALK),
    ],
    ids=repr,
)
def test_kinds_of_prompts(words, given, wanted):
    with pytest.raises(Reached):
        ask(words, given)
    assert words.asked == (wanted, None)
    kinds = {type(part) for part in words.asked[0]}
    assert type(words.asked[0]) is type(wanted) and kinds <= {str, int, dict}
    words.raises = False
    record = ask(words, given, max_new_tokens=2)
    assert json.loads(record.to_json())["settings"]["prompt"] == wanted


def test_a_record_does_not_change_with_the_readers_messages(words):
    words.raises, talk = False, [user([{"type": "text", "text": "a"}])]
    record = ask(words, talk, max_new_tokens=2)
    talk[0]["content"][0]["text"] = "b"
    assert record.settings["prompt"] == [user([{"type": "text", "text": "a"}])]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (b"Describe", r"^prompt=b'Describe': give a text, a list of chat messages, or a list of"),
        ({"role": "user", "content": "a"}, "^prompt=.*: give a text, a list of chat messages"),
        (3, "^prompt=3: give a text"),
        (None, "^prompt=None: give a text"),
        (torch.tensor([1, 2]), "^prompt=tensor.*: give a text"),
        ({1, 2}, "^prompt=.*: give a text"),
        ("", "^prompt='': it is empty, write"),
        (" \n", "it is empty"),
        ([], r"^prompt=\[\]: it is empty"),
        ((), "it is empty"),
        ("half \ud83d", "^prompt='half .*': character 6 is half of a surrogate pair"),
        (["Describe"], r"^prompt\[0\]='Describe': give a whole number >= 0, the id of a token"),
        ([1, 2.0], r"^prompt\[1\]=2.0: give a whole number >= 0"),
        ([1, True], r"^prompt\[1\]=True: give a whole number"),
        ([-1], r"^prompt\[0\]=-1: give a whole number"),
        ([1, None], r"^prompt\[1\]=None: give a whole number"),
        ([[1, 2]], r"^prompt\[0\]=\[1, 2\]: give a whole number"),
        ([user("a"), "b", user("c")], r"^prompt\[1\]='b': give a message, as in \{'role'"),
        ([{"role": "user"}], r"^prompt\[0\]=.*: give a message"),
        ([{**user("a"), "name": "x"}], r"^prompt\[0\]=.*: give a message"),
        ([{"role": "tool", "content": "a"}], "role='tool': choose one of system, user, assistant"),
        (
            [user("a"), {"role": "assistant", "content": "b"}],
            "role='assistant' in the last message",
        ),
        ([{"role": "system", "content": "b"}], "end with one of the user's"),
        ([user("")], "content='': it is empty"),
        ([user(None)], "content=None: give a text, or a list of parts"),
        ([user([])], r"content=\[\]: give a text, or a list of parts"),
        ([user("\udc00")], r"^prompt\[0\]: content=.*half of a surrogate pair"),
        ([user(["a"])], "part 'a': give {'type': 'text'"),
        ([user([{"type": "text"}])], "part .*: give {'type': 'text'"),
        ([user([{"type": "text", "text": 3}])], "text=3: give a text"),
        ([user([{"type": "text", "text": "\ud83d"}])], "half of a surrogate pair"),
        ([user([{"type": "image", "url": "x"}])], "with the picture itself in image="),
        ([user([{"type": "video"}])], "part .*: give"),
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_other_prompts_are_refused_in_words(words, given, said):
    with pytest.raises(ValueError, match=said) as caught:
        ask(words, given)
    assert words.asked == () and "\n" not in str(caught.value)
    str(caught.value).encode()  # can be printed, whatever the prompt held


@pytest.mark.parametrize("given", ["hi", [user("hi")]])
def test_a_table_model_knows_no_words(given):
    with pytest.raises(ValueError, match="^prompt=.*: table knows no words; give token ids"):
        ask(TableModel.random(3), given)


def test_pictures_by_kind_of_prompt(words):
    picture = Image.new("RGB", (4, 4))
    for image, wanted in (
        (picture, picture),
        ([picture], [picture]),
        ((picture, "a.png"), [picture, "a.png"]),
    ):
        with pytest.raises(Reached):
            ask(words, "hi", image)
        assert words.asked == ("hi", wanted)
    words.asked = ()
    for prompt, image, said in (
        ("hi", [], r"^image=\[\]: give a picture, or a list of pictures"),
        ("hi", [picture, None], "give a picture, or a list of pictures"),
        ([1, 2], picture, "^image: .* token ids; give text or messages with a picture"),
        ([1, 2], [picture], "^image: .* token ids; give text or messages with a picture"),
    ):
        with pytest.raises(ValueError, match=said):
            ask(words, prompt, image)
    words.sees_images = False
    with pytest.raises(ValueError, match="^image=list: table is a text-only model"):
        ask(words, "hi", [picture])
    assert words.asked == ()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"drafter": "chain"}, r"^drafter='chain': give a drafter, as in Chain\(5\)"),
        ({"drafter": sn.Chain}, "^drafter=.*: give a drafter"),
        ({"drafter": 5}, "^drafter=5: give a drafter"),
        ({"drafter": 0}, "^drafter=0: give a drafter"),
        ({"sampling": 0.7}, r"^sampling=0.7: give a Sampling, as in Sampling\(0.7\)"),
        ({"sampling": 0}, "^sampling=0: give a Sampling"),
        ({"draft_sampling": 1.0}, "^draft_sampling=1.0: give a Sampling"),
    ],
)
def test_objects_of_another_kind_are_named(words, given, said):
    with pytest.raises(ValueError, match=said):
        sn.speculative(Pair(words), "hi", **given)
    assert words.asked == ()


def test_models_and_pairs_are_not_mixed_up(words):
    with pytest.raises(ValueError, match="^pair=Words: give a pair of models"):
        sn.speculative(words, "hi")
    with pytest.raises(ValueError, match="its target to `autoregressive`"):
        sn.autoregressive(Pair(words), "hi")


@pytest.mark.parametrize("given", [0.5, None, "AdaEDL", sn.AdaEDL])
def test_a_stopping_rule_is_one(given):
    for make in (sn.Chain, lambda stop: sn.IIDTree((2,), stop=stop)):
        with pytest.raises(ValueError, match="^stop=.*: give a stopping rule, as in AdaEDL"):
            make(stop=given)
