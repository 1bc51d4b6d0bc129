"""The control panel in process: every control, every view, errors in words, walks, copies."""

from __future__ import annotations

import html
import io
import json
import re
from dataclasses import dataclass

import ipywidgets
import pytest
from PIL import Image

import specnb as sn
from specnb import live, studio
from specnb.live import MODES, VIEWS, Workbench, pictures, sliders
from specnb.live.methods import MethodControls
from specnb.models.base import Context
from specnb.studio import METHODS, OWN, Method, Question, Studio, Walk, shape_of

# ---- plain sliders


class Html:
    def __init__(self, text):
        self.text = text

    def _repr_html_(self):
        return self.text


def one(function, value=5, least=1, greatest=16, name="length"):
    box = sliders(function, {name: (value, least, greatest, "the length")})
    return box, box.controls[name]


def test_every_move_of_a_slider_computes_anew():
    calls = []

    def show(length):
        calls.append(length)
        return Html(f"<b>{length}</b>, call {len(calls)}")

    box, slider = one(show)
    assert "<b>5</b>, call 1" in box.view.value
    for value, shown in ((1, 1), (16, 16), (99, None), (5, 5), (1, 1), (-3, None)):
        slider.value = value  # beyond an end it stays at the end, and nothing moves
        assert shown is None or f"<b>{shown}</b>" in box.view.value
    assert calls == [5, 1, 16, 5, 1]
    assert "the length 1, computed in" in box.page.status.value and box.values == {"length": 1}
    assert slider.continuous_update is False
    assert box.view.value in box.static().html and "the length 1" in box.static().html


def test_an_error_of_a_slider_is_shown_and_the_next_move_recovers():
    def show(length):
        if length == 2:
            raise ValueError("no <b> here")
        return Html("fine") if length != 3 else 3

    box, slider = one(show, 1, greatest=4)
    slider.value = 2
    assert 'role="alert"' in box.page.alert.value and "no &lt;b&gt; here" in box.page.alert.value
    assert "stopped" in box.page.status.value and "no &lt;b&gt; here" in box.static().html
    slider.value = 4
    assert "fine" in box.view.value and not box.page.alert.value
    slider.value = 3
    assert "TypeError: int" in box.page.alert.value
    with pytest.raises(ValueError, match="no <b> here"):  # the first call fails its cell
        one(show, 2)
    with pytest.raises(ValueError, match="length=9: give a number from 1 to 4"):
        one(show, 9, greatest=4)


# ---- methods, questions, walks


@pytest.mark.parametrize("name", [name for name in METHODS if name != OWN])
def test_every_method_has_a_drafter_and_words(name):
    method = Method(name)
    assert isinstance(method.drafter(), sn.drafters.Drafter)
    assert str(method).startswith(name)
    for control in METHODS[name]:
        assert str(getattr(method, control)) in str(method)


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (Method("RSD-C", branching="3,x"), "branching='3,x': give whole numbers"),
        (Method("iid tree", branching=""), "branching='': give whole numbers"),
        (Method("RSD-C", branching="9,9,9"), "819 nodes per target call; give at most 128"),
        (Method(OWN), "class='': give package:Class"),
        (Method(OWN, path="nowhere:Thing"), "it cannot be imported"),
        (Method(OWN, path="specnb.drafters:Nothing"), "it cannot be imported"),
        (Method(OWN, path="specnb.tree:DraftTree"), "without arguments"),
        (Method(OWN, path="collections:Counter"), "Counter has not"),
    ],
)
def test_a_method_that_cannot_be(method, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        method.drafter()


def test_wrong_names_are_refused():
    with pytest.raises(ValueError, match="method='RSD': choose one of chain"):
        Method("RSD")
    assert shape_of(" 3, 2,1") == (3, 2, 1)


@pytest.fixture(scope="module")
def pair():
    return sn.load_pair(dtype="float32")


@pytest.fixture(scope="module")
def items():
    return sn.scenes.examples("caption", 3, 0)


def question(item, temperature=1.0, seed=0, n=24):
    return Question(item.prompt, item.image, sn.Sampling(temperature), seed, n)


@pytest.fixture
def forwards(monkeypatch):
    """Counts forwards of targets (which alone see pictures)."""
    count = {"target": 0, "draft": 0}
    plain = Context.forward

    def counted(self, *args, **kwargs):
        count["target" if self.model.sees_images else "draft"] += 1
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(Context, "forward", counted)
    return count


@pytest.mark.weights
def test_plain_runs_are_decoded_once(pair, items, forwards):
    at = Studio(pair)
    first = at.plain(question(items[0]))
    used = forwards["target"]
    assert used == len(first.blocks) and at.plain(question(items[0])) is first
    assert forwards["target"] == used
    assert at.plain(question(items[0], seed=1)) is not first
    assert at.plain(question(items[0], temperature=0.5)) is not first
    assert at.plain(question(items[1])) is not first
    greedy = at.plain(question(items[0], temperature=0.0))
    assert at.plain(question(items[0], temperature=0.0, seed=9)) is greedy
    alone = sn.autoregressive(
        pair.target,
        items[0].prompt,
        items[0].image,
        sampling=sn.Sampling(1.0),
        max_new_tokens=24,
    )
    assert first.token_ids == alone.token_ids


@pytest.mark.weights
def test_trees_branch_in_greedy_text(pair, items):
    run = Studio(pair).run(question(items[0], temperature=0.0), Method("RSD-C")).record()
    assert max(block.n_drafted for block in run.blocks) > 3
    alone = sn.autoregressive(pair.target, items[0].prompt, items[0].image, max_new_tokens=24)
    assert run.token_ids == alone.token_ids


@pytest.mark.weights
@pytest.mark.parametrize("name", ["chain", "RSD-S"])
def test_a_walk_is_the_run_in_slow_motion(pair, items, name):
    asked, method, at = question(items[0]), Method(name), Studio(pair)
    whole = at.run(asked, method).record()
    walk = Walk(lambda: at.begin(asked, method))
    seen = [(walk.shown, walk.phase)]
    while not walk.ended:
        walk.next()
        seen.append((walk.shown, walk.phase))
    assert walk.text.record().token_ids == whole.token_ids
    assert walk.text.record().tokens == whole.tokens
    assert len(seen) == 1 + 4 * len(whole.blocks)
    walk.next()  # at the end nothing moves
    for state in reversed(seen):
        assert (walk.shown, walk.phase) == state
        walk.back()
    assert (walk.shown, walk.phase) == (0, "commit")
    for _ in range(6):
        walk.next()
    assert walk.block.record().tokens == tuple(row for row in whole.tokens if row.block < 2)


@pytest.mark.weights
def test_a_forced_token_stands_in_the_text(pair, items):
    at = Studio(pair)
    walk = Walk(lambda: at.begin(question(items[0]), Method()))
    for _ in range(4):
        walk.next()
    before = walk.text.record()
    law = walk.next_token_law()
    unlikely = int(law.argmin())
    walk.next()  # a block is open: it is dropped
    walk.force(unlikely)
    record = walk.text.record()
    row = record.tokens[-1]
    assert record.token_ids == (*before.token_ids, unlikely)
    assert (row.verdict, row.block, row.depth) == ("forced", 1, 1)
    assert row.target_prob == pytest.approx(float(law[unlikely]), abs=1e-6)
    assert record.blocks[-1].stopped_by == "forced"
    walk.next(), walk.next(), walk.next(), walk.next()
    behind = walk.text
    again = pair.target.open(items[0].prompt, items[0].image)
    again.commit(record.token_ids)
    anew = behind.sampling.probs(again.forward().root)
    assert behind.blocks[2].target_probs[0].allclose(anew, atol=1e-5)  # it reads what was forced
    walk.back(), walk.back(), walk.back(), walk.back(), walk.back()
    assert walk.text.record().token_ids == before.token_ids and walk.phase == "commit"
    with pytest.raises(ValueError, match="token_id=-1"):
        walk.force(-1)
    while not walk.ended:
        walk.next()
    with pytest.raises(ValueError, match="the text has ended"):
        walk.force(5)


@pytest.mark.weights
@pytest.mark.parametrize(
    "drafter",
    [
        sn.Chain(5),
        sn.Chain(8, stop=sn.AdaEDL(0.4)),
        sn.GumbelTopK((3, 2)),
        sn.StochasticBeam(3, 3),
        sn.IIDTree((2, 2)),
        sn.IIDTree((3, 1), verify="kseq"),
        sn.TopKTree((2, 2)),
        sn.PromptLookup(),
    ],
    ids=lambda drafter: type(drafter).__name__,
)
def test_laws_computed_anew_equal_the_record(pair, items, drafter):
    asked = {"sampling": sn.Sampling(0.8, top_p=0.95), "seed": 3, "max_new_tokens": 20}
    run = sn.decode.Decoding(pair, items[0].prompt, items[0].image, drafter=drafter, **asked)
    while run.finish is None:
        run.step()
    for row in run.record().tokens:
        laws = sn.laws.laws_of(run, row)
        assert float(laws.target[row.token_id]) == pytest.approx(row.target_prob, abs=1e-5)
        if row.node >= 0 and not isinstance(drafter, sn.PromptLookup):
            assert float(laws.draft[row.token_id]) == pytest.approx(row.draft_prob, abs=1e-5)
        if laws.left is not None:
            assert float(laws.left.sum()) == pytest.approx(1, abs=1e-5)
        if row.verdict == "correction" and laws.left is not None:
            anew = run.blocks[row.block].outcome.final_probs
            assert laws.left.allclose(anew, atol=1e-4)


@pytest.mark.weights
def test_laws_computed_anew_catch_a_wrong_record(pair, items, monkeypatch):
    """Siblings without the earlier ones taken out of their law: the comparison must see it."""
    run = Studio(pair).run(question(items[0]), Method("RSD-C"))
    monkeypatch.setattr(sn.GumbelTopK, "child_law", lambda self, probs, earlier, token: probs)
    rows = [row for row in run.record().tokens if row.node >= 0]
    apart = [
        abs(float(sn.laws.laws_of(run, row).draft[row.token_id]) - row.draft_prob) for row in rows
    ]
    assert max(apart) > 0.01


# ---- the workbench


def bench(pair, items, **more) -> Workbench:
    cfg = sn.RunConfig(temperature=1.0, draft_length=3)
    return live.workbench(pair, items, cfg, **{"views": VIEWS, **more})


def states(panel) -> dict[str, dict]:
    """What every view that is shown says of itself."""
    found = {}
    for name, view in panel.views.items():
        if view.layout.display != "none":
            found[name] = json.loads(
                html.unescape(re.search(r'data-state="([^"]*)"', view.value)[1])
            )
    return found


def assert_followed(panel, **wanted) -> None:
    assert panel.page.alert.value == ""
    shown = states(panel)
    assert shown
    for name, state in shown.items():
        assert state == panel.state, name
        assert {key: state[key] for key in wanted} == wanted, name


def ends(control) -> list:
    """Both ends of a control and something between."""
    if isinstance(control, ipywidgets.Dropdown):
        return [option for option in control.options if option != OWN]
    if isinstance(control, ipywidgets.Text):
        return ["1", "2,2,1", "4,3,2,1"]
    middle = (control.min + control.max) / 2
    return [control.min, control.max, type(control.value)(middle)]


CONTROLS = [
    ("chain", "draft_length"),
    ("AdaEDL", "draft_length"),
    ("AdaEDL", "threshold"),
    ("MaxConfidence", "threshold"),
    ("RSD-C", "branching"),
    ("RSD-S", "width"),
    ("RSD-S", "draft_length"),
    ("iid tree", "branching"),
]


@pytest.fixture(scope="module")
def panel(pair, items):
    return bench(pair, items)


@pytest.mark.weights
@pytest.mark.parametrize(("method", "name"), CONTROLS)
def test_every_control_of_a_method_moves_every_view(panel, forwards, method, name):
    panel.a.method.value = method
    hidden = {n for n, c in panel.a.controls.items() if c.layout.display == "none"}
    assert hidden == set(panel.a.controls) - set(METHODS[method])
    control = panel.a.controls[name]
    for value in ends(control):
        if value == control.value:
            continue
        used = forwards["target"]
        control.value = value
        assert forwards["target"] > used, "nothing was decoded for this move"
        assert_followed(panel)
        assert str(value) in states(panel)["tokens"]["method"]


@pytest.mark.weights
def test_a_panel_that_shows_old_runs_is_caught(pair, items, forwards, monkeypatch):
    """The count of forwards is a test that can fail."""
    panel = bench(pair, items, views=("tokens",))
    kept = panel._studio.run(panel.question, panel.a.value())
    monkeypatch.setattr(panel._studio, "run", lambda *_: kept)
    used = forwards["target"]
    panel.a.controls["draft_length"].value = 9
    assert panel.page.alert.value == "" and forwards["target"] == used


@pytest.mark.weights
@pytest.mark.parametrize("name", ["temperature", "top_p", "new_tokens", "seed"])
def test_every_control_of_the_drawing_moves_every_view(panel, forwards, name):
    control = panel.drawing[name]
    before = control.value
    for value in (control.min, control.max, type(before)((control.min + control.max) / 2)):
        if value == control.value:
            continue
        used = forwards["target"]
        control.value = value
        assert forwards["target"] > used
        assert_followed(panel, **{name: pytest.approx(value, abs=0.011)})
    control.value = before


@pytest.mark.weights
def test_pictures_tasks_and_prompts(pair, items, forwards):
    panel = bench(pair, items, views=("tokens",))
    first = panel.chooser.thumbs.children
    panel.chooser.thumbs.children[2].click()
    assert_followed(panel, picture=3)
    assert panel.chooser.prompt.value == items[2].prompt and panel.chooser.thumbs.children == first
    assert [b.description for b in first] == ["1", "2", "▸3"]
    panel.chooser.task.value = "science"
    assert panel.chooser.prompt.value.startswith("Question:")
    asked, used = panel.chooser.prompt.value, forwards["target"]
    panel.chooser.task.value = pictures.OWN_WORDS
    assert panel.chooser.prompt.value == asked
    panel.chooser.prompt.value = "How many things are there?"
    assert forwards["target"] > used
    assert_followed(panel)
    for _ in range(8):
        panel.chooser.new.click()
    assert len(panel.chooser.thumbs.children) == pictures.MOST
    assert_followed(panel, picture=pictures.MOST)
    panel.chooser.prompt.value = "  "
    assert "prompt=" in panel.page.alert.value and "it is empty" in panel.page.alert.value
    panel.chooser.prompt.value = "Describe the picture."
    assert_followed(panel)


def uploaded(content: bytes, old: bool):
    """What a file arrives as: ipywidgets 7 (Colab) and 8."""
    file = {"name": "my.png", "type": "image/png", "size": len(content), "content": content}
    return {"my.png": {"metadata": {}, "content": content}} if old else (file,)


@pytest.mark.weights
@pytest.mark.parametrize("old", [False, True])
def test_a_picture_of_ones_own(pair, items, old, monkeypatch):
    panel = bench(pair, items, views=("tokens",))
    file = io.BytesIO()
    Image.new("RGB", (40, 30), "red").save(file, "PNG")

    class Upload:
        value = uploaded(file.getvalue(), old)

    monkeypatch.setattr(panel.chooser, "file", Upload)
    panel.page.on(panel.chooser._take_file)(None)
    assert_followed(panel, picture=4)
    assert panel.question.image.size == (40, 30)
    Upload.value = uploaded(b"no picture", old)
    panel.page.on(panel.chooser._take_file)(None)
    assert "no picture" in panel.page.alert.value and "PNG or JPEG" in panel.page.alert.value
    panel.chooser.thumbs.children[0].click()
    assert_followed(panel, picture=1)


@dataclass(frozen=True)
class Mine:
    """A drafter of the reader's own."""

    def start(self, pair, prompt, image, sampling):
        return sn.Chain(2).start(pair, prompt, image, sampling)


@dataclass(frozen=True)
class Breaks:
    def start(self, pair, prompt, image, sampling):
        raise ZeroDivisionError("my <own> bug")


@pytest.mark.weights
def test_a_drafter_of_ones_own(pair, items):
    panel = bench(pair, items)
    panel.a.method.value = OWN
    assert "give package:Class" in panel.page.alert.value
    panel.a.controls["path"].value = f"{__name__}:Mine"
    assert_followed(panel, method=f"{__name__}:Mine")
    assert "computed anew" in panel.views["laws"].value
    panel.a.controls["path"].value = f"{__name__}:Breaks"
    assert "ZeroDivisionError: my &lt;own&gt; bug" in panel.page.alert.value
    assert "stopped" in panel.page.status.value
    panel.a.method.value = "chain"
    assert_followed(panel)


@pytest.mark.weights
def test_the_cursor_goes_through_every_token(pair, items):
    panel = bench(pair, items, views=("tree", "laws"))
    panel.drawing["new_tokens"].value = 8
    rows = panel._rows_in_order()
    for place, row in enumerate(rows, 1):
        assert f"token {place} of {len(rows)}" in panel.views["laws"].value
        assert f"block {row.block + 1}:" in panel.views["tree"].value
        recorded, anew = re.search(
            r"target: recorded ([\d.]+), computed anew ([\d.]+)", panel.views["laws"].value
        ).groups()
        assert recorded == f"{row.target_prob:.4f}"
        assert abs(float(recorded) - float(anew)) <= 1e-4
        panel.arrows["token", 1].click()
    assert f"token {len(rows)} of {len(rows)}" in panel.page.status.value  # the end holds
    panel.arrows["block", -1].click()
    assert panel._rows_in_order()[panel._cursor].block == rows[-1].block - 1
    panel.arrows["token", -1].click()
    panel.arrows["block", 1].click()
    assert panel._rows_in_order()[panel._cursor].block == rows[-1].block - 1


@pytest.mark.weights
def test_views_can_be_switched(pair, items, forwards):
    panel = bench(pair, items, views=("tokens",))
    used = forwards["target"]
    panel.toggles["time"].value = True  # the same run, and a plain one
    plain = panel._studio.plain(panel.question)
    assert forwards["target"] == used + len(plain.blocks)
    assert set(states(panel)) == {"tokens", "time"}
    panel.toggles["tokens"].value = False
    assert set(states(panel)) == {"time"}


@pytest.mark.weights
def test_compare_shows_both_on_one_seed(pair, items):
    panel = bench(pair, items, against="RSD-S")
    panel.drawing["temperature"].value = 0.0
    panel.mode.value = "compare"
    assert set(states(panel)) == {"aligned", "figures", "time"}
    assert_followed(panel, against=str(Method("RSD-S", draft_length=3)))
    text = panel.views["aligned"].value
    assert "The texts are the same, token for token" in text
    assert text.count('class="snb-pairs"') == 1 + len(panel._studio.plain(panel.question).token_ids)
    panel.b.controls["width"].value = 5
    assert_followed(panel, against=str(Method("RSD-S", draft_length=3, width=5)))
    panel.drawing["temperature"].value = 1.0
    assert "The texts part at token" in panel.views["aligned"].value
    panel.b.method.value = panel.a.method.value
    panel.b.controls["draft_length"].value = panel.a.controls["draft_length"].value
    assert "token for token" in panel.views["aligned"].value  # one method, one seed: one text


@pytest.mark.weights
def test_step_by_step(pair, items):
    panel = bench(pair, items, mode="step by step")
    assert set(states(panel)) == {"step"}
    said = []
    for _ in range(4):
        said.append(re.sub("<[^>]*>", "", panel.views["step"].value))
        panel.steps.next.click()
    assert "Draft: the drafter has guessed 3 tokens" in said[0] and "accepted" not in said[0]
    assert "Verify: one call" in said[1] and "random number" in said[1]
    assert "Accept:" in said[2] and "the text after 1 target call" in said[3]
    panel.steps.back.click(), panel.steps.back.click()
    assert "Accept:" in panel.views["step"].value
    panel.steps.words.value = " red car"
    n = len(pair.target.tokenizer.encode(" red car", add_special_tokens=False))
    panel.steps.force.click()
    forced = [r.verdict for r in panel.steps.walk.text.record().tokens if r.verdict == "forced"]
    assert len(forced) == n and panel.steps.words.value == ""
    panel.steps.likely.value = panel.steps.likely.options[3][1]
    panel.steps.force.click()
    assert (
        panel.steps.walk.text.record().token_ids[-1]
        == panel.steps.walk.text.blocks[-1].token_ids[0]
    )
    for _ in range(4 * 70):
        if panel.steps.next.disabled:
            break
        panel.steps.next.click()
    assert panel.steps.force.disabled and "the text has ended" in panel.page.status.value
    panel.steps.back.click()
    assert not panel.steps.next.disabled
    panel.drawing["seed"].value = 5
    assert panel.steps.walk.shown == 0 and panel.steps.back.disabled is False
    assert panel.page.alert.value == ""


@pytest.mark.weights
def test_static_copies_show_the_same_state(pair, items):
    panel = bench(pair, items)
    panel.a.controls["draft_length"].value = 7
    copy = panel.static().html
    for name, view in panel.views.items():
        assert (view.value in copy and bool(view.value)) == (view.layout.display != "none"), name
    assert "draft length 7" in copy and items[0].prompt in copy and "<img" in copy
    assert not re.search("<script|<input|<button", copy)
    panel.mode.value = "compare"
    assert panel.views["aligned"].value in panel.static().html
    panel.chooser.prompt.value = ""
    assert "it is empty" in panel.static().html and "data-view" not in panel.static().html


BEYOND = [
    Method("chain", draft_length=40),
    Method("AdaEDL", threshold=-0.5),
    Method("MaxConfidence", threshold=1.5),
    Method("RSD-S", width=12),
]


@pytest.mark.parametrize("method", BEYOND, ids=str)
def test_sliders_reach_what_a_notebook_was_given(method):
    """A slider cuts off what lies beyond its ends, and says nothing."""
    assert MethodControls(method, "method").value() == method


@pytest.mark.weights
def test_an_old_run_is_not_shown_under_a_new_name(pair, items):
    panel = bench(pair, items, views=("tokens",))
    panel.a.method.value = "RSD-C"
    panel.a.controls["branching"].value = "3,x"
    assert "branching='3,x'" in html.unescape(panel.page.alert.value)
    before = panel.views["tokens"].value
    panel.toggles["figures"].value = True
    panel.arrows["token", 1].click()
    assert panel.views["tokens"].value == before and not panel.views["figures"].value
    panel.a.controls["branching"].value = "3,1"
    assert_followed(panel, method="RSD-C, branching 3,1")


@pytest.mark.weights
def test_words_that_do_not_fit_are_shown_as_far_as_they_went(pair, items):
    panel = bench(pair, items, mode="step by step")
    panel.drawing["new_tokens"].value = 8
    panel.steps.words.value = "a red house and a blue boat and a green tree"
    panel.steps.force.click()
    assert "the text has ended" in panel.page.alert.value
    assert panel.steps.walk.shown == 8 and panel.steps.force.disabled
    assert panel.views["step"].value.count("snb-t snb-forced") >= 8


@pytest.mark.weights
def test_models_can_be_changed(pair, items):
    panel = bench(pair, items, views=("tokens",))
    panel.paths["draft"].value = "/nowhere/at/all"
    panel.load.click()
    assert "there is no such folder" in panel.page.alert.value
    panel.paths["draft"].value = pair.draft.path
    panel.load.click()
    assert panel._studio.pair is not pair
    assert_followed(panel)


@pytest.mark.weights
def test_only_core_widgets_and_no_output_widget(pair, items):
    before = set(ipywidgets.Widget.get_manager_state()["state"])
    bench(pair, items)
    state = ipywidgets.Widget.get_manager_state()["state"]
    mine = [state[key] for key in set(state) - before]
    assert {model["model_module"] for model in mine} <= {
        "@jupyter-widgets/base",
        "@jupyter-widgets/controls",
    }
    names = {model["model_name"] for model in mine}
    assert "OutputModel" not in names and "IntSliderModel" in names
    for model in mine:
        if "continuous_update" in model["state"]:
            assert model["state"]["continuous_update"] is False
        if model["model_name"] in ("IntSliderModel", "FloatSliderModel", "DropdownModel"):
            assert model["state"]["description"], "a control without a name"


@pytest.mark.weights
def test_wrong_arguments_are_refused(pair, items):
    for more, words in (
        ({"views": ("strip",)}, "views='strip': choose from tokens"),
        ({"mode": "slow"}, "mode='slow': choose one of whole text"),
        ({"method": "beam"}, "method='beam'"),
    ):
        with pytest.raises(ValueError, match=words):
            bench(pair, items, **more)
    with pytest.raises(ValueError, match="items"):
        live.workbench(pair, [])
    cfg = sn.notebook.TreeConfig(branching="9,9,9")
    with pytest.raises(ValueError, match="819 nodes"):
        live.workbench(pair, items, cfg, method="RSD-C")


def test_modes_and_methods_are_the_words_of_the_lesson():
    assert MODES[0] == "whole text" and studio.PHASES == ("draft", "verify", "accept", "commit")
