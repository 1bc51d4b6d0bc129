"""The control panel in process: every control, every view, errors in words, walks, copies."""

from __future__ import annotations

import asyncio
import html
import importlib
import io
import json
import re
import time
from dataclasses import dataclass
from statistics import fmean
from types import SimpleNamespace

import ipywidgets
import nbclient
import nbformat
import pytest
import slow
from PIL import Image
from places import TESTS

import specnb as sn
from specnb import live, session
from specnb.knobs import knobs_of, shape_of
from specnb.live import MODES, VIEWS, Workbench, growth, pictures, sliders
from specnb.live.lacks import NO_DRAFT, NO_EYES, NO_RATIO
from specnb.live.methods import LOOKUP, METHODS, OWN, PLAIN, Method, MethodControls
from specnb.live.page import Page
from specnb.models.base import Context
from specnb.scenes.words import WORDS, word_classes
from specnb.session import Session, Stepper
from specnb.views.style import number

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
        (Method(OWN), "drafter='': give package:Class"),
        (Method(OWN, path="nowhere:Thing"), "nowhere:Thing cannot be imported"),
        (Method(OWN, path="specnb.drafters:Nothing"), "cannot be imported"),
        (Method(OWN, path="specnb.tree:DraftTree"), "cannot be made with these settings"),
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
    return sn.Request(item.prompt, item.image, sn.Sampling(temperature), None, n, seed)


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
    at = Session(pair)
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
    alone = sn.autoregressive(pair.target, items[0].prompt, items[0].image, max_new_tokens=24)
    drawn, chosen = (Method(OWN, path=f"{name}((3, 2, 1))") for name in ("GumbelTopK", "TopKTree"))
    for method in (Method("RSD-C"), drawn, chosen):
        run = Session(pair).run(question(items[0], temperature=0.0), method.drafter()).record()
        assert max(block.n_drafted for block in run.blocks) > 3
        assert run.token_ids == alone.token_ids


@pytest.mark.weights
@pytest.mark.parametrize("name", ["chain", "RSD-S"])
def test_stepping_is_the_run_in_slow_motion(pair, items, name):
    asked, drafter, at = question(items[0]), Method(name).drafter(), Session(pair)
    whole = at.run(asked, drafter).record()
    walk = Stepper(lambda: at.begin(asked, drafter))
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
    at = Session(pair)
    walk = Stepper(lambda: at.begin(question(items[0]), sn.Chain()))
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
        sn.SparseSelf(sn.SinkRecent(4), 16),
        sn.Hierarchy(sn.Chain(1), sn.SparseSelf(sn.SinkRecent(4), 16)),
    ],
    ids=lambda drafter: type(drafter).__name__,
)
def test_laws_computed_anew_equal_the_record(pair, items, drafter):
    """Those of the draft model; what another one has drafted has none."""
    by_another = isinstance(drafter, sn.PromptLookup | sn.SparseSelf | sn.Hierarchy)
    asked = {"sampling": sn.Sampling(0.8, top_p=0.95), "seed": 3, "max_new_tokens": 20}
    run = sn.Decoding(pair, sn.Request(items[0].prompt, items[0].image, **asked), drafter)
    while run.finish is None:
        run.step()
    for row in run.record().tokens:
        laws = sn.replay.distributions_at(run, row)
        assert float(laws.target[row.token_id]) == pytest.approx(row.target_prob, abs=1e-5)
        if by_another:
            assert laws.draft is None and laws.left is None
        elif row.node >= 0:
            assert float(laws.draft[row.token_id]) == pytest.approx(row.draft_prob, abs=1e-5)
        if laws.left is not None:
            assert float(laws.left.sum()) == pytest.approx(1, abs=1e-5)
        if row.verdict == "correction" and laws.left is not None:
            anew = run.blocks[row.block].outcome.final_probs
            assert laws.left.allclose(anew, atol=1e-4)


@pytest.mark.weights
def test_laws_computed_anew_catch_a_wrong_record(pair, items, monkeypatch):
    """Siblings without the earlier ones taken out of their law: the comparison must see it."""
    run = Session(pair).run(question(items[0]), Method("RSD-C").drafter())
    monkeypatch.setattr(sn.GumbelTopK, "child_law", lambda self, probs, earlier, token: probs)
    rows = [row for row in run.record().tokens if row.node >= 0]
    apart = [
        abs(float(sn.replay.distributions_at(run, row).draft[row.token_id]) - row.draft_prob)
        for row in rows
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


def old(panel) -> set[str]:
    """The views that are marked as those of a move before."""
    parts = panel.views | {"short": panel.short}
    return {name for name, view in parts.items() if "snb-old" in view._dom_classes}


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
    (LOOKUP, "ngram"),
    (LOOKUP, "draft_length"),
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
    kept = panel._session.run(panel.request, panel.a.value().drafter())
    monkeypatch.setattr(panel._session, "begin", lambda *_: kept)
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
    panel.chooser.task.value = "caption"
    panel.chooser.prompt.value = "How many things are there?"
    assert forwards["target"] > used
    assert_followed(panel)
    assert panel.chooser.task.value == pictures.OWN_WORDS
    for _ in range(8):
        panel.chooser.new.click()
    assert len(panel.chooser.thumbs.children) == pictures.MOST
    assert_followed(panel, picture=pictures.MOST)
    assert panel.chooser.prompt.value == "How many things are there?"  # asked of another picture
    panel.chooser.prompt.value = panel.chooser._choices[-1].prompts["science"]
    assert panel.chooser.task.value == "science"
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
    assert panel.request.image.size == (40, 30)
    Upload.value = uploaded(b"no picture", old)
    panel.page.on(panel.chooser._take_file)(None)
    assert "no picture" in panel.page.alert.value and "PNG or JPEG" in panel.page.alert.value
    Upload.value = uploaded(b"", old)  # what is left of a file that a server found too large
    panel.page.on(panel.chooser._take_file)(None)
    assert "nothing arrived" in panel.page.alert.value and "10 MB" in panel.page.alert.value
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
    before = panel.views["tokens"].value
    panel.a.method.value = OWN  # nobody can have written yet which: that is no fault
    assert panel.page.alert.value == "" and panel.page.error is None
    assert "Which class? Write package:Class" in panel.page.status.value
    assert panel.views["tokens"].value == before and old(panel) == {*panel.views, "short"}
    assert "data-view" not in panel.static().html
    panel.a.controls["path"].value = f"{__name__}:Mine"
    assert_followed(panel, method=f"{__name__}:Mine")
    assert not old(panel) & {*states(panel), "short"}
    assert "computed anew" in panel.views["laws"].value
    panel.a.controls["path"].value = f"{__name__}:Breaks"
    assert "ZeroDivisionError: my &lt;own&gt; bug" in panel.page.alert.value
    assert "stopped" in panel.page.status.value and "tokens" in old(panel)
    panel.a.method.value = "chain"
    assert_followed(panel)
    assert not old(panel) & {*states(panel), "short"}


@dataclass(frozen=True)
class Knobby(sn.Chain):
    draft_length: int = sn.knob(4, least=1, most=9, words="tokens")


@pytest.mark.weights
def test_knobs_of_a_class_of_ones_own(pair, items):
    panel = bench(pair, items)
    panel.a.method.value = OWN
    path = panel.a.controls["path"]
    path.value = f"{__name__}:Knobby"
    (slider,) = (one for one in panel.a.knobs.children if one.description == "draft length")
    assert (slider.value, slider.min, slider.max) == (4, 1, 9)
    slider.value = 2
    assert path.value == f"{__name__}:Knobby(2)"
    assert_followed(panel, method=f"{__name__}:Knobby(2)")
    assert max(row.depth for row in panel._record.tokens if row.node >= 0) <= 2
    assert slider in panel.a.knobs.children  # it stays where the hand is
    path.value = "Chain(7, stop=AdaEDL(0.3))"
    sliders = {one.description: one for one in panel.a.knobs.children}
    sliders["stop: threshold"].value = 0.6
    assert path.value == "Chain(7, stop=AdaEDL(0.6))"
    path.value = "Chain("
    assert not panel.a.knobs.children and "cannot be read" in panel.page.alert.value
    panel.a.method.value = "chain"
    assert panel.a.knobs.layout.display == "none"


@pytest.mark.weights
def test_the_cursor_goes_through_every_token(pair, items):
    panel = bench(pair, items, views=("tree", "distributions"))  # by its button's text
    assert panel.toggles["laws"].value and panel.toggles["laws"].description == "distributions"
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
def test_what_several_drafts_of_a_place_would_keep(pair, items):
    """The view of one node of a real run, cut to its most probable tokens, and it says so."""
    panel = bench(pair, items, views=("distributions",))
    panel.drawing["temperature"].value = 1.0
    panel.drawing["new_tokens"].value = 8
    seen = 0
    for _ in panel._rows_in_order():
        words = panel.views["laws"].value
        if found := re.search(r"cut to its 5 most probable tokens, .* 1 draft (.*?)\.<", words):
            one, *rest = map(float, re.findall(r"\d\.\d+", found[1]))
            two, two_at_best, three, three_at_best = rest
            assert one <= two <= two_at_best <= three_at_best <= 1 and two <= three <= three_at_best
            seen += 1
        panel.arrows["token", 1].click()
    assert seen


@pytest.mark.weights
def test_views_can_be_switched(pair, items, forwards):
    panel = bench(pair, items, views=("tokens",))
    used = forwards["target"]
    panel.toggles["time"].value = True  # the same run, and a plain one
    plain = panel._session.plain(panel.request)
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
    assert text.count('class="snb-pairs"') == 1 + len(panel._session.plain(panel.request).token_ids)
    panel.b.controls["width"].value = 5
    assert_followed(panel, against=str(Method("RSD-S", draft_length=3, width=5)))
    panel.drawing["temperature"].value = 1.0
    assert "The texts differ from token" in panel.views["aligned"].value
    panel.b.method.value = panel.a.method.value
    panel.b.controls["draft_length"].value = panel.a.controls["draft_length"].value
    assert "token for token" in panel.views["aligned"].value  # one method, one seed: one text


@pytest.mark.weights
def test_compare_begins_against_plain_decoding(pair, items):
    panel = bench(pair, items, mode="compare", views=("figures",))
    assert panel.b.method.value == PLAIN and panel.b.value().drafter() == sn.drafters.NoDraft()
    text = words(panel.views["aligned"].value)
    assert "B plain decoding:" in text and "nothing drafted, 0 wasted" in text
    # Plain decoding is a column once, not twice.
    heads = re.findall('<th scope="col">(.*?)</th>', panel.views["figures"].value)
    assert heads == ["measured on this prompt", str(panel.a.value()), PLAIN]
    assert bench(pair, items, method=PLAIN, against=PLAIN).b.method.value == "chain"


@pytest.mark.weights
def test_figures_by_kind_of_word_where_words_have_kinds(pair, items):
    """On a scene's own prompts, for a model with eyes; in own words nothing is claimed."""
    panel = bench(pair, items, views=("figures",))
    row = "words, % of examined</th><td>"
    share = re.search(f"{row}(.*?)</td><td>–</td>", panel.views["figures"].value)[1]
    classes = word_classes([panel._record], [items[0].prompt])
    shown = [str(round(100 * fmean(classes[w]))) if w in classes else "–" for w in WORDS]
    assert share.split() == shown and len(shown) == 3
    panel.chooser.prompt.value = "What is it?"
    assert panel.page.error is None and row not in panel.views["figures"].value


def test_a_slider_has_the_limits_of_its_knob():
    """They are declared once, on the drafter's field; a method is one line of text."""
    controls = MethodControls(Method(), "method").controls
    for made, knob, name in (
        (sn.Chain, "draft_length", "draft_length"),
        (sn.AdaEDL, "threshold", "threshold"),
        (sn.StochasticBeam, "width", "width"),
        (sn.PromptLookup, "ngram", "ngram"),
    ):
        low, high = knobs_of(made)[knob].range
        assert (controls[name].min, controls[name].max) == (low, high), name
        assert controls[name].tooltip == knobs_of(made)[knob].words
    assert set(controls) == {name for names in METHODS.values() for name in names}


def noted(panel) -> list[tuple]:
    return [(move.method, move.calls, move.wasted) for move in panel.trail.moves]


@pytest.mark.weights
def test_the_trail_remembers_the_moves(pair, items):
    panel = bench(pair, items, views=("tokens", "figures"))
    for length in (1, 8):
        panel.a.controls["draft_length"].value = length
    runs = [Session(pair).run(panel.request, sn.Chain(length)).record() for length in (3, 1, 8)]
    vain = [sum(b.n_drafted - b.n_accepted for b in run.blocks) for run in runs]
    wanted = [
        (f"chain {n}", len(run.blocks), lost)
        for n, run, lost in zip((3, 1, 8), runs, vain, strict=True)
    ]
    assert noted(panel) == wanted
    text = panel.trail.view.value
    rows = re.findall(r'<tr><th scope="row">(.*?)</th>(.*?)</tr>', text)
    cells = [re.findall("<td>(.*?)</td>", row) for _, row in rows]
    assert [(n, int(c[1]), int(c[2])) for (n, _), c in zip(rows, cells, strict=True)] == wanted
    assert text.count("<svg") == 2 and text.count('r="3"') == 6 and text.count('r="6"') == 2
    panel.toggles["time"].value = True  # the same run in another view is no move
    assert noted(panel) == wanted
    panel.drawing["seed"].value = 1  # in the table, but not to be compared with the others
    assert len(noted(panel)) == 4 and panel.trail.view.value.count('r="3"') == 2
    panel.a.method.value = "RSD-C"
    panel.a.controls["branching"].value = "0"
    assert len(noted(panel)) == 5  # what failed is none
    panel.trail.forget.click()
    assert [name for name, *_ in noted(panel)] == ["RSD-C 3,2,1"]


@pytest.mark.weights
def test_five_figures_in_a_line(pair, items):
    panel = bench(pair, items, views=("tokens",))
    m = panel._record.metrics
    said = words(panel.short.value)
    assert said.startswith(f"chain, draft length 3: {m.n_tokens} tokens · {m.n_target_calls} ")
    assert f"{m.block_efficiency:.2f} tokens per call" in said
    assert f"{1e3 / m.tokens_per_second:.1f} ms per token" in said
    assert panel.short.value in panel.static().html
    panel.mode.value = "compare"
    assert words(panel.short.value).count("ms per token") == 2
    panel.mode.value = "step by step"
    assert panel.short.layout.display == "none" and panel.short.value not in panel.static().html


@pytest.mark.weights
def test_reset_puts_everything_back(pair, items):
    panel = bench(pair, items, views=("tokens",))
    at_first = {**panel.state, "move": 0}, panel.chooser.prompt.value, panel.chooser.task.value
    panel.a.method.value = "AdaEDL"
    panel.a.controls["threshold"].value = 0.9
    panel.drawing["seed"].value = 9
    panel.chooser.thumbs.children[2].click()
    panel.chooser.prompt.value = "How many?"
    panel.toggles["time"].value = True
    panel.mode.value = "compare"
    panel.reset.click()
    assert_followed(panel)
    assert set(states(panel)) == {"tokens"} and len(panel.trail.moves) == 1
    now = {**panel.state, "move": 0}, panel.chooser.prompt.value, panel.chooser.task.value
    assert now == at_first and panel.a.controls["threshold"].value == 0.5


@pytest.mark.weights
@pytest.mark.parametrize(
    ("typed", "text"),
    [
        ("elephant", " elephant"),
        (" elephant", " elephant"),
        (", too", ", too"),
        ("?", "?"),
        ("\u8c61", "\u8c61"),
    ],
)
def test_words_stand_apart_from_the_text(pair, items, typed, text):
    panel = bench(pair, items, mode="step by step")
    for _ in range(4):
        panel.steps.next.click()
    before = panel.steps.stepper.text.record()
    panel.steps.words.value = typed
    panel.steps.force.click()
    record = panel.steps.stepper.text.record()
    assert record.text == before.text + text
    # They are no work of the method's, and stand in one frame.
    n = len(record.token_ids) - len(before.token_ids)
    assert record.n_forced == n and record.metrics.n_target_calls == 1
    assert record.metrics.block_efficiency == before.metrics.block_efficiency
    shown = panel.views["step"].value
    assert f"in 1 target call and {n} by hand" in shown and "after 1 target call<" in shown
    assert shown.count('class="snb-block"') == 2
    panel.steps.next.click()
    assert f"block {n + 2}" in panel.page.status.value


@pytest.mark.weights
def test_words_begin_a_text_as_the_target_would(pair, items):
    panel = bench(pair, items, mode="step by step")
    panel.steps.back.click()
    panel.steps.words.value = "Elephants"
    panel.steps.force.click()
    rows = panel.steps.stepper.text.record().tokens
    assert "".join(row.text for row in rows) == " Elephants"


@pytest.mark.weights
def test_play_goes_on_until_it_is_paused(pair, items, monkeypatch):
    monkeypatch.setattr("specnb.live.steps.PACE_S", 0.01)

    async def play():
        panel = bench(pair, items, mode="step by step")
        steps, seen = panel.steps, []
        steps.play.click()
        assert "pause" in steps.play.description
        while steps.stepper.shown < 2:
            seen.append((steps.stepper.shown, steps.stepper.phase))
            await asyncio.sleep(0.005)
        steps.play.click()
        at = steps.stepper.shown, steps.stepper.phase
        await asyncio.sleep(0.1)
        assert (steps.stepper.shown, steps.stepper.phase) == at and "play" in steps.play.description
        assert {phase for _, phase in seen} == set(session.PHASES)  # none was left out
        for stop in (steps.back.click, lambda: setattr(panel.mode, "value", "whole text")):
            steps.play.click()
            stop()
            shown = steps.stepper.shown, steps.stepper.phase
            await asyncio.sleep(0.1)
            assert (steps.stepper.shown, steps.stepper.phase) == shown
        panel.mode.value = "step by step"
        panel.drawing["new_tokens"].value = 8
        await until(lambda: not panel.work.under_way)
        panel.steps.play.click()
        await until(lambda: panel.steps.stepper.ended)
        assert panel.steps.play.disabled and "play" in panel.steps.play.description
        return panel

    assert asyncio.run(play()).page.alert.value == ""
    panel = bench(pair, items, mode="step by step")  # nobody could press pause: to the end
    panel.steps.play.click()
    assert panel.steps.stepper.ended


@pytest.mark.weights
def test_numbers_of_a_block_look_the_same_in_table_and_tree(pair, items):
    panel = bench(pair, items, mode="step by step", method="RSD-S")
    for _ in range(4 * 12):
        panel.steps.next.click()
        if panel.steps.stepper.phase not in ("verify", "accept"):
            continue
        record = panel.steps.stepper.block.record()
        shown = panel.views["step"].value
        table = shown[shown.rindex("<tbody>") :]
        looked = [row for row in record.tokens if row.block == panel.steps.stepper.shown]
        looked = [row for row in looked if row.accept_prob is not None]
        cells = [re.findall("<td[^>]*>(.*?)</td>", line) for line in table.split("<tr>")[1:]]
        assert [line[3] for line in cells] == [number(row.accept_prob) for row in looked]
        if panel.steps.stepper.phase == "accept":
            assert all(f">{number(row.accept_prob)}</text>" in shown for row in looked)
    assert number(2e-4) == "2e-04"


@pytest.mark.weights
def test_step_by_step(pair, items):
    panel = bench(pair, items, mode="step by step")
    assert set(states(panel)) == {"step"}
    said = []
    for _ in range(4):
        said.append(re.sub("<[^>]*>", "", panel.views["step"].value))
        panel.steps.next.click()
    assert "Draft: the drafter has guessed 3 tokens" in said[0] and "accepted" not in said[0]
    assert "Verify: one call" in said[1] and "uniform number" in said[1]
    assert "Accept:" in said[2] and "the text after 1 target call" in said[3]
    panel.steps.back.click(), panel.steps.back.click()
    assert "Accept:" in panel.views["step"].value
    panel.steps.words.value = " red car"
    n = len(pair.target.tokenizer.encode(" red car", add_special_tokens=False))
    panel.steps.force.click()
    forced = [r.verdict for r in panel.steps.stepper.text.record().tokens if r.verdict == "forced"]
    assert len(forced) == n and panel.steps.words.value == ""
    panel.steps.likely.value = panel.steps.likely.options[3][1]
    panel.steps.force.click()
    assert (
        panel.steps.stepper.text.record().token_ids[-1]
        == panel.steps.stepper.text.blocks[-1].token_ids[0]
    )
    for _ in range(4 * 70):
        if panel.steps.next.disabled:
            break
        panel.steps.next.click()
    assert panel.steps.force.disabled and "the text has ended" in panel.page.status.value
    panel.steps.back.click()
    assert not panel.steps.next.disabled
    panel.drawing["seed"].value = 5
    assert panel.steps.stepper.shown == 0 and panel.steps.back.disabled is False
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
    Method(LOOKUP, ngram=20),
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
    assert panel.steps.stepper.shown == 8 and panel.steps.force.disabled
    assert panel.views["step"].value.count("snb-t snb-forced") >= 8


@pytest.mark.weights
def test_models_can_be_changed(pair, items):
    panel = bench(pair, items, views=("tokens",))
    panel.paths["draft"].value = "/nowhere/at/all"
    panel.load.click()
    assert "there is no such folder" in panel.page.alert.value
    panel.paths["draft"].value = pair.draft.path
    panel.load.click()
    assert panel._session.pair is not pair
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
    assert MODES[0] == "whole text" and session.PHASES == ("draft", "verify", "accept", "commit")


# ---- targets that read text only, pairs without a draft model


def slow_bench(pair, views=("tokens",), draft_length=1, **more) -> Workbench:
    cfg = sn.RunConfig(temperature=1.0, draft_length=draft_length)
    return live.workbench(pair, slow.ITEMS, cfg, views=views, **more)


PANEL = importlib.import_module("specnb.live.workbench")  # the package has its function there


def words(text: str) -> str:
    return html.unescape(re.sub("<[^>]*>", "", text))


def shown_controls(widget) -> list:
    """The controls that a reader can see."""
    if widget.layout.display == "none":
        return []
    parts = getattr(widget, "children", ())
    return [widget, *(found for part in parts for found in shown_controls(part))]


@pytest.mark.weights
def test_a_pair_that_lacks_nothing_says_nothing(pair, items):
    panel = bench(pair, items)
    assert panel.lacks.layout.display == "none" and panel.lacks.value == ""
    assert list(panel.a.method.options) == list(METHODS)
    assert panel.chooser.new in shown_controls(panel) and panel.chooser.file in shown_controls(
        panel
    )


def test_a_target_without_eyes_has_no_picture_controls():
    panel = slow_bench(slow.pair(0))
    assert words(panel.lacks.value) == NO_EYES and NO_EYES in words(panel.static().html)
    seen = shown_controls(panel)
    assert panel.lacks in seen
    assert panel.chooser.new not in seen and panel.chooser.file not in seen
    assert panel.chooser.picture.value == "" and "<img" not in panel.static().html
    buttons = panel.chooser.thumbs.children
    assert [button.tooltip for button in buttons] == ["prompt 1, chosen", "prompt 2", "prompt 3"]
    assert not any("snb-sight" in button._dom_classes for button in buttons)
    buttons[2].click()
    assert panel.chooser.prompt.value == slow.ITEMS[2].prompt
    assert panel.page.alert.value == "" and states(panel)["tokens"]["picture"] == 3


@pytest.mark.weights
def test_pictures_of_a_notebook_are_not_shown_to_readers_of_text(items):
    panel = live.workbench(slow.pair(0), items, views=("tokens",))
    assert panel.page.alert.value == "" and panel.chooser.picture.value == ""
    assert "background-image" not in panel.chooser._rules.value


@pytest.mark.parametrize("mode", MODES[::2])
def test_a_pair_without_a_draft_model_looks_drafts_up(mode):
    panel = slow_bench(slow.pair(0, draft=False), VIEWS, method="RSD-S", against="chain", mode=mode)
    assert list(panel.a.method.options) == list(panel.b.method.options) == [LOOKUP, PLAIN, OWN]
    assert panel.a.value().drafter() == sn.PromptLookup(3, 1)
    assert words(panel.lacks.value) == NO_EYES + NO_DRAFT
    assert_followed(panel, method=str(Method(LOOKUP, draft_length=1)))
    assert NO_RATIO in words(panel.views["figures"].value)
    row = re.search("memory-bound speed-up(.*?)</tr>", panel.views["figures"].value)[1]
    assert set(words(row)) == {"–"}
    panel.a.controls["draft_length"].value = 6
    panel.a.controls["ngram"].value = 2
    assert panel.a.value().drafter() == sn.PromptLookup(2, 6)
    assert_followed(panel, method="prompt lookup, ngram 2, draft length 6")
    for arrow in panel.arrows.values():
        arrow.click()
    assert panel.page.alert.value == ""


def test_looked_up_drafts_are_drafts():
    panel = slow_bench(slow.pair(0, draft=False), draft_length=4)
    panel.drawing["temperature"].value = 0.0
    run = panel._record
    assert any(block.n_drafted for block in run.blocks) and run.parameter_ratio is None
    alone = sn.autoregressive(panel._session.pair.target, slow.ITEMS[0].prompt, max_new_tokens=64)
    assert run.token_ids == alone.token_ids


@pytest.mark.weights
def test_models_of_another_kind_can_be_loaded(pair, items, monkeypatch):
    panel = bench(pair, items, views=("tokens",), method="RSD-C")
    for found in (slow.pair(0, draft=False), pair):
        monkeypatch.setattr(PANEL, "load_pair", lambda *_, found=found: found)
        panel.load.click()
        assert_followed(panel)
        sees = found.target.sees_images
        assert (panel.chooser.new in shown_controls(panel)) is sees
        assert bool(panel.chooser.picture.value) is sees
        assert panel.chooser.thumbs.children[0].tooltip.startswith("picture" if sees else "prompt")
        assert list(panel.a.method.options) == (list(METHODS) if sees else [LOOKUP, PLAIN, OWN])
        assert words(panel.lacks.value) == ("" if sees else NO_EYES + NO_DRAFT)
    assert panel.a.method.value == LOOKUP  # no method changes where it need not


# ---- slow targets


def done_by(record) -> tuple:
    """All of a record but its times."""
    return record.token_ids, record.tokens, record.finish


def same_at_once(panel):
    """The run that the panel shows, decoded in one go."""
    quick = slow.pair(0, draft=panel._session.pair.draft is not None)
    return Session(quick).run(panel.request, panel.a.value().drafter()).record()


async def until(true, seconds=30.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        await asyncio.sleep(0.005)


@pytest.mark.slow
def test_a_slow_run_grows_on_the_screen():
    async def watch():
        # Slow enough for three pictures even where drawing one takes a fifth of a second.
        began, panel = time.perf_counter(), slow_bench(slow.pair(0.12), draft_length=1)
        assert panel.work.under_way and time.perf_counter() - began < 2, "the cell waits for it"
        seen = []
        while panel.work.under_way:
            await asyncio.sleep(0.01)
            now = panel.views["tokens"].value, words(panel.page.status.value)
            seen += [now] if not seen or seen[-1][0] != now[0] else []
        return panel, seen

    panel, seen = asyncio.run(watch())
    grown, last = seen[:-1], seen[-1]
    n_tokens = [int(re.search(r">(\d+) tokens? in", text)[1]) for text, _ in seen]
    assert len(grown) >= 3 and n_tokens == sorted(set(n_tokens)) and n_tokens[-1] == 64
    for text, said in grown:
        assert "(so far)" in text and "&quot;so_far&quot;: true" in text
        assert re.search(r": about \d+ s to go$", said)
    assert "(so far)" not in last[0] and "so_far" not in last[0]
    assert "shown after" in panel.page.status.value
    assert done_by(panel._record) == done_by(same_at_once(panel))
    assert_followed(panel)


@pytest.mark.slow
def test_it_is_not_drawn_more_often_than_can_be_followed(monkeypatch):
    assert growth.REDRAW_S >= 1 / 8
    monkeypatch.setattr(growth, "REDRAW_S", 60.0)

    async def watch():
        panel, seen = slow_bench(slow.pair(), draft_length=1), set()
        while panel.work.under_way:
            seen.add(panel.views["tokens"].value)
            await asyncio.sleep(0.01)
        return seen

    assert len(asyncio.run(watch())) == 1


def test_the_expected_seconds_are_those_of_the_tokens_left(unchecked):
    block = SimpleNamespace(draft_s=0.5, verify_s=1.5)

    def run(blocks, finish=None):
        return SimpleNamespace(blocks=blocks, n_emitted=3 * len(blocks), budget=30, finish=finish)

    half, done, new = run([block] * 4), run([block] * 7, "eos"), run([])
    assert growth.progress("", [half], print) == ("", 2 / 3 * 18, print)
    assert growth.progress("", [half, half, done], print).left_s == 2 * 2 / 3 * 18
    assert growth.progress("", [half, new], print) == ("", 2 / 3 * 18, None)  # nothing to show
    assert growth.about(0.2) == "about 1 s" and growth.about(12.3) == "about 12 s"
    assert growth.about(130) == "about 2 min"


def watched(panel) -> list:
    """Every run that the panel begins from now on."""
    begun, begin = [], panel._session._begin

    def noted(*args):
        begun.append(begin(*args))
        return begun[-1]

    panel._session._begin = noted
    return begun


@pytest.mark.slow
def test_a_move_stops_the_run_under_way():
    async def move():
        panel = slow_bench(slow.pair())
        begun = watched(panel)
        panel.drawing["seed"].value = 5
        await until(lambda: begun and len(begun[0].blocks) > 3)
        for _ in range(5):  # between two messages no more than a block is decoded
            before = len(begun[0].blocks)
            while len(begun[0].blocks) == before:
                await asyncio.sleep(0)
            assert len(begun[0].blocks) == before + 1
        before = len(begun[0].blocks)
        panel.drawing["seed"].value = 6
        await until(lambda: not panel.work.under_way)
        assert len(begun[0].blocks) == before and begun[0].finish is None
        assert len(begun) == 2
        return panel

    panel = asyncio.run(move())
    assert_followed(panel, seed=6)
    assert done_by(panel._record) == done_by(same_at_once(panel))


@pytest.mark.slow
def test_of_moves_in_a_row_the_last_one_is_decoded():
    async def move():
        panel = slow_bench(slow.pair())
        begun = watched(panel)
        for seed in (1, 2, 3):  # it is known to be slow by now
            panel.drawing["seed"].value = seed
        panel.chooser.thumbs.children[1].click()
        panel.a.method.value = "AdaEDL"
        assert begun == []
        await until(lambda: not panel.work.under_way)
        return panel, begun

    panel, begun = asyncio.run(move())
    assert len(begun) == 1
    assert_followed(panel, seed=3, picture=2, method=str(panel.a.value()))


@pytest.mark.slow
@pytest.mark.parametrize("stop", ["load", "switch"])
def test_every_other_move_stops_it_too(stop, monkeypatch):
    """Loading other models, and a view that is switched while the plain run is under way."""
    going_on = []

    async def move():
        panel = slow_bench(slow.pair(), views=("figures",))
        await until(lambda: "plain decoding" in panel.page.status.value)
        before = panel._session.pair.target.forwards
        if stop == "load":

            def load(*_):
                going_on.append(panel.work.under_way)
                return slow.pair(0)

            monkeypatch.setattr(PANEL, "load_pair", load)
            panel.load.click()
        else:
            panel.toggles["tokens"].value = True
        await until(lambda: not panel.work.under_way)
        return panel, before

    panel, before = asyncio.run(move())
    assert_followed(panel)
    if stop == "load":
        assert going_on == [False] and set(states(panel)) == {"figures"}
    else:
        assert panel._session.pair.target.forwards > before
        assert set(states(panel)) == {"figures", "tokens"}


@pytest.mark.slow
def test_the_plain_run_grows_and_goes_on_where_it_was_stopped():
    async def move():
        panel = slow_bench(slow.pair(), views=("figures", "time"))
        await until(lambda: panel._session._half_done)
        begun, seen = watched(panel), []
        plain = panel._session._half_done[1]
        await until(lambda: len(plain.blocks) > 5)
        panel.a.controls["draft_length"].value = 2
        assert plain.finish is None
        while panel.work.under_way:
            await asyncio.sleep(0.01)
            if "plain decoding for comparison, about" in panel.page.status.value:
                seen.append(panel.views["figures"].value)
        return panel, begun, plain, set(seen)

    panel, begun, plain, seen = asyncio.run(move())
    assert len(seen) >= 3 and all("plain decoding" in text and "so_far" in text for text in seen)
    assert len(begun) == 1  # the method's: the plain one was there
    assert panel._session.plain(panel.request).token_ids == plain.record().token_ids
    assert plain.finish == "length"
    assert_followed(panel)
    alone = sn.autoregressive(
        slow.pair(0).target,
        panel.request.prompt,
        sampling=panel.request.sampling,
        max_new_tokens=64,
        seed=0,
    )
    assert plain.record().token_ids == alone.token_ids


@pytest.mark.slow
def test_two_slow_runs_grow_side_by_side():
    async def watch():
        panel = slow_bench(slow.pair(), against="RSD-S", mode="compare", draft_length=2)
        seen = set()
        while panel.work.under_way:
            await asyncio.sleep(0.01)
            seen.add(panel.views["aligned"].value)
        return panel, seen

    panel, seen = asyncio.run(watch())
    assert sum("(so far)" in text for text in seen) >= 3
    assert "(so far)" not in panel.views["aligned"].value
    assert_followed(panel, mode="compare")
    for controls in (panel.a, panel.b):
        run = Session(slow.pair(0)).run(panel.request, controls.value().drafter()).record()
        tokens = html.escape(str(controls.value())) + f": {len(run.token_ids)} tokens in "
        assert f"{tokens}{len(run.blocks)} target calls" in panel.views["aligned"].value


@pytest.mark.slow
def test_a_copy_is_of_a_finished_run():
    async def copy():
        panel = slow_bench(slow.pair(), views=("tokens", "figures"))
        assert panel.work.under_way
        text = panel.static().html
        assert not panel.work.under_way
        assert "(so far)" not in text and "so_far" not in text and "plain decoding" in text
        assert panel.views["tokens"].value in text and panel.views["figures"].value in text
        used = panel._session.pair.target.forwards
        await asyncio.sleep(0.1)
        assert panel._session.pair.target.forwards == used, "something goes on"
        return panel

    panel = asyncio.run(copy())
    assert_followed(panel)
    assert done_by(panel._record) == done_by(same_at_once(panel))


@pytest.mark.slow
def test_without_a_loop_a_run_is_finished_at_once():
    panel = slow_bench(slow.pair())
    assert not panel.work.under_way and panel._record.finish == "length"
    assert_followed(panel)


def test_what_is_quick_is_finished_at_once():
    async def build():
        panel = slow_bench(slow.pair(0), views=VIEWS)
        assert not panel.work.under_way
        panel.drawing["seed"].value = 3
        assert not panel.work.under_way
        return panel

    assert_followed(asyncio.run(build()), seed=3)


@pytest.mark.slow
def test_what_was_slow_may_become_quick():
    async def move():
        panel = slow_bench(slow.pair())
        await until(lambda: not panel.work.under_way)
        panel._session.pair.target.seconds = 0.0
        panel.drawing["new_tokens"].value = 8
        assert panel.work.under_way
        await until(lambda: not panel.work.under_way)
        panel.drawing["seed"].value = 2
        assert not panel.work.under_way
        return panel

    assert_followed(asyncio.run(move()), seed=2)


class Clock:
    """Time that passes only where it is told to."""

    def __init__(self, monkeypatch):
        self.now_s, self.drawn_s = 0.0, []
        monkeypatch.setattr(growth, "time", SimpleNamespace(perf_counter=lambda: self.now_s))

    def steps(self, n: int, left_s: float, drawing_s: float = 0.0):
        """Steps of 0.1 s, after each of which `left_s` are said to be left."""

        def draw():
            self.drawn_s.append(self.now_s)
            self.now_s += drawing_s

        for _ in range(n):
            self.now_s += 0.1
            yield growth.Progress("", left_s, draw)


def test_a_slow_start_does_not_make_a_quick_pair_slow(monkeypatch):
    """What is done at once in its turn is so again after work that was not."""
    clock, left_open = Clock(monkeypatch), []

    async def start():
        work = growth.Work(Page(), lambda: "asked")
        quick, long = (10, 0.4), (12, 5.0)
        for n, left_s in (quick, long, quick, quick):
            clock.drawn_s.clear()
            work.start(clock.steps(n, left_s))
            left_open.append(work.under_way)
            await until(lambda: not work.under_way)

    asyncio.run(start())
    assert left_open == [False, True, True, False] and clock.drawn_s == []


def test_pictures_take_a_fifth_of_the_time(monkeypatch):
    clock = Clock(monkeypatch)

    async def start():
        work = growth.Work(Page(), lambda: "asked")
        work.start(clock.steps(200, 20.0, drawing_s=0.5))
        await until(lambda: not work.under_way)

    asyncio.run(start())
    drawing_s, all_s = 0.5 * len(clock.drawn_s), clock.now_s
    assert 0.15 * all_s < drawing_s <= 0.2 * all_s + 0.5


@dataclass(frozen=True)
class BreaksLater:
    """A drafter that fails in its fourth block."""

    def start(self, pair, prompt, image, sampling):
        drafting, n = sn.Chain(1).start(pair, prompt, image, sampling), iter(range(3))
        propose = drafting.propose

        def broken(draws, max_depth):
            if next(n, None) is None:
                raise ZeroDivisionError("my <late> bug")
            return propose(draws, max_depth)

        drafting.propose = broken
        return drafting


@pytest.mark.slow
def test_what_fails_half_way_is_said_in_words():
    async def move():
        panel = slow_bench(slow.pair())
        with panel.page.silent():
            panel.a.controls["path"].value = f"{__name__}:BreaksLater"
        panel.a.method.value = OWN
        assert panel.page.alert.value == ""
        await until(lambda: not panel.work.under_way)
        assert "ZeroDivisionError: my &lt;late&gt; bug" in panel.page.alert.value
        assert "stopped" in panel.page.status.value and panel._record is None
        panel.page.clear()
        panel.drawing["seed"].value = 4
        assert panel.page.alert.value == ""
        assert "my &lt;late&gt; bug" in panel.static().html, "a copy that was finished by force"
        assert "data-view" not in panel.static().html
        panel.a.method.value = "chain"
        await until(lambda: "to go" in panel.page.status.value)
        assert panel.page.alert.value == ""
        await until(lambda: not panel.work.under_way)
        return panel

    assert_followed(asyncio.run(move()), method=str(Method(draft_length=1)))


@pytest.mark.slow
def test_a_move_on_another_thread():
    """JupyterLab hands moves over on a thread of their own: no two runs at once, the last one
    stands."""

    async def move():
        panel = slow_bench(slow.pair())
        loop, seed = asyncio.get_running_loop(), panel.drawing["seed"]

        def move_within_a_block(value):
            while not panel._session.pair.target.at_work:
                time.sleep(0.001)
            seed.value = value

        for value in (7, 8):
            panel.drawing["top_p"].value = 1 - value / 100  # under way on this thread
            await until(lambda: "to go" in panel.page.status.value)
            await loop.run_in_executor(None, move_within_a_block, value)
            assert panel.page.error is None
            await until(lambda: not panel.work.under_way)
        return panel

    panel = asyncio.run(move())
    assert_followed(panel, seed=8)
    assert done_by(panel._record) == done_by(same_at_once(panel))


@pytest.mark.notebook
def test_a_notebook_without_a_reader_ends_with_a_finished_panel():
    """As nbclient and papermill run it: nobody waits between the cells."""
    cells = (
        f"import sys; sys.path.insert(0, {str(TESTS)!r})\nimport slow, threading\n"
        "import specnb as sn\nbench = sn.live.workbench(slow.pair(), slow.ITEMS, "
        "sn.RunConfig(temperature=1.0), views=sn.live.VIEWS)\nbench",
        "assert bench.work.under_way\nbench.static()",
        "assert not bench.work.under_way\nprint(len(bench._record.token_ids))",
    )
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    nbclient.NotebookClient(book, timeout=120).execute()
    copy = book.cells[1].outputs[0]["data"]["text/html"]
    assert "so_far" not in copy and copy.count("data-view") == len(VIEWS)
    assert book.cells[2].outputs[0]["text"] == "64\n"
    saved = book.metadata["widgets"]["application/vnd.jupyter.widget-state+json"]["state"]
    assert not any("so_far" in json.dumps(model["state"]) for model in saved.values())


def test_a_picture_comes_with_its_own_task_first():
    from specnb.live.pictures import choice_of

    for task in sn.scenes.TASKS:
        item = sn.scenes.examples(task, 1, 0)[0]
        prompts = choice_of(item).prompts
        assert next(iter(prompts.items())) == (task, item.prompt) and set(prompts) <= set(
            sn.scenes.TASKS
        )
