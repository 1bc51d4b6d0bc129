"""Every notebook in JupyterLab and Chromium: nothing leaves the machine, every control works, every
view follows, nothing is clipped.

Pictures of what was seen are left in runs/browser/.
"""

from __future__ import annotations

import re

import nbformat
import pytest
from axe import complaints
from places import ROOT

from specnb.bench import browser
from specnb.live import VIEWS
from specnb.live.methods import LOOKUP, METHODS, OWN
from specnb.live.shown import BUTTONS

PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))

pytestmark = [pytest.mark.slow, pytest.mark.notebook, pytest.mark.weights]

PANEL = """import time
from dataclasses import dataclass

import specnb as sn

sn.setup()
pair = sn.load_pair()
items = sn.scenes.examples("caption", 4, 0)


class Slow:
    def start(self, pair, prompt, image, sampling):
        time.sleep(2)
        return sn.Chain(2).start(pair, prompt, image, sampling)


class Broken:
    def start(self, pair, prompt, image, sampling):
        raise RuntimeError("an <own> bug")


@dataclass(frozen=True)
class Mine:
    length: int = sn.knob(4, least=1, upto=9, words="tokens that are guessed")
    share: float = sn.knob(0.5, least=0, most=1, step=0.25, words="of something")
    calm: bool = sn.knob(False, words="whether to wait")

    def start(self, pair, prompt, image, sampling):
        return sn.Chain(self.length).start(pair, prompt, image, sampling)


bench = sn.live.workbench(
    pair, items, sn.RunConfig(temperature=1.0), against="RSD-S", views=sn.live.VIEWS
)
bench"""
SLIDER = """def show(threshold):
    return sn.views.trace(["a", "b"], [0.2, 0.8], threshold / 100)


slider = sn.live.sliders(show, {"threshold": (50, 0, 100, "threshold, hundredths")})
slider"""
# Text only, 60 ms a token, and without a draft model.
SLOW = f"""import sys

import specnb as sn

sys.path.insert(0, {str(ROOT / "tests")!r})
import slow

cfg = sn.RunConfig(temperature=1.0, draft_length=3)
bench = sn.live.workbench(slow.pair(0.06, draft=False), slow.ITEMS, cfg)
bench"""
DARK = """() => window.jupyterapp.commands.execute(
  'apputils:change-theme', { theme: 'JupyterLab Dark' })"""
LIGHT = DARK.replace("Dark", "Light")

# Every view that is on the screen says what it was asked to show.
FOLLOWED = """([n, wanted]) => {
  const views = [...document.querySelectorAll('.snb-workbench [data-view]')]
    .filter(view => view.offsetParent !== null);
  const states = views.map(view => JSON.parse(view.dataset.state));
  const agrees = state => Object.entries(wanted).every(([key, value]) =>
    typeof value === 'number' ? Math.abs(state[key] - value) < 0.006
                              : String(state[key]).includes(value));
  return states.length === n && states.every(agrees)
    && new Set(states.map(state => state.move)).size === 1; }"""
# Rows of a panel below each other, nothing wider than its place, no word cut off.
UNTIDY = """root => {
  const wrong = [], box = element => element.getBoundingClientRect();
  for (const panel of document.querySelectorAll(root)) {
    if (panel.scrollWidth > panel.clientWidth + 1) wrong.push('the panel is wider than its place');
    const rows = [...panel.children].filter(row => box(row).height > 0);
    rows.slice(1).forEach((row, i) => {
      if (box(row).top < box(rows[i]).bottom - 1) wrong.push(`row ${i + 1} overlaps the one above`);
    });
    for (const part of panel.querySelectorAll('button, .widget-label, .snb-tokens, th, td'))
      if (box(part).height > 0 && part.scrollWidth > part.clientWidth + 1)
        wrong.push(`cut off: ${part.className} ${part.textContent.slice(0, 60)}`);
    for (const text of panel.querySelectorAll('svg text'))
      if (box(text).width > 0 && box(text).right > box(text.ownerSVGElement).right - 2)
        wrong.push(`cut off: ${text.textContent.slice(0, 60)}`);
  }
  return wrong; }"""

# Others than the defaults, nearly everywhere.
OTHER = {
    "temperature": 0.8,
    "draft_length": 3,
    "task": "science",
    "n_prompts": 1,
    "seed": 1,
    "steps": 4,
}


@pytest.fixture(scope="module")
def lab(chrome, tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser")
    for name, sources in (("panel", (PANEL, SLIDER)), ("slow", (SLOW,))):
        book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(s) for s in sources])
        book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3 (ipykernel)"}
        nbformat.write(book, folder / f"{name}.ipynb")
    for path in PATHS:  # that they run with their defaults is tested elsewhere
        book = nbformat.read(path, as_version=4)
        (cell,) = (c for c in book.cells if "parameters" in c.metadata.get("tags", []))
        for name, value in OTHER.items():
            cell.source, known = re.subn(
                rf"^({name}: \w+) = [^#\n]+", rf"\1 = {value!r}  ", cell.source, flags=re.M
            )
            assert known or name == "steps" or path.stem.startswith("9"), f"{path.stem}: {name}"
        nbformat.write(book, folder / path.name)
    own = [folder / f"{name}.ipynb" for name in ("panel", "slow")]
    server = browser.Lab([*(folder / path.name for path in PATHS), *own])
    yield server
    server.stop()


@pytest.fixture(scope="module")
def desk(lab, chrome):
    sheet = browser.Sheet(chrome, lab, "panel.ipynb", height=2400)
    sheet.run_all()
    sheet.page.wait_for_selector('.snb-workbench [data-view="laws"]')
    found = Desk(sheet, lab.kernel("panel.ipynb"))
    found.kernel.run("bench._drawing.fold.value = True")
    yield found
    found.kernel.close()
    sheet.close()
    assert sheet.foreign == [] and sheet.errors == []


class Desk:
    """The panel in the page, and its kernel."""

    def __init__(self, sheet, kernel):
        self.sheet, self.page, self.kernel = sheet, sheet.page, kernel

    def part(self, css: str):
        return self.page.locator(f".snb-workbench {css}").first

    def follows(self, n: int = 5, **wanted) -> None:
        """Waits until `n` views show this."""
        self.page.wait_for_function(FOLLOWED, arg=[n, wanted], timeout=20_000)

    def knows(self, expression: str, wanted) -> None:
        """Waits until the kernel has this value: the page may be ahead of it."""
        for _ in range(200):
            if self.kernel.value(expression) == wanted:
                return
            self.page.wait_for_timeout(50)
        assert self.kernel.value(expression) == wanted, expression

    def method(self, name: str) -> None:
        self.part(".snb-set-method select").select_option(name)

    def one_down(self, css: str) -> None:
        """The next option of a list, by keyboard alone."""
        self.part(css).focus()
        for key in ("Space", "ArrowDown", "Enter"):
            self.page.keyboard.press(key)

    def upload(self, file: dict) -> None:
        with self.page.expect_file_chooser() as chooser:
            self.part("button.snb-set-own-picture").click()
        chooser.value.set_files(file)

    def press(self, words: str) -> None:
        """By keyboard alone."""
        button = self.page.locator(".snb-workbench button", has_text=words).first
        button.focus()
        self.page.keyboard.press("Enter")


def untidy(page) -> list[str]:
    return page.evaluate(UNTIDY, ".snb-workbench")


# ---- notebooks


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_every_notebook_runs_with_other_parameters(lab, chrome, shots, path):
    sheet = browser.Sheet(chrome, lab, path.name, height=2400)
    sheet.run_all()
    page = sheet.page
    for mark in page.locator(".js-plotly-plot").all():
        assert mark.locator(".main-svg").count()
    assert page.locator('[data-mime-type="application/vnd.jupyter.error"]').count() == 0
    if ".live.workbench(" not in path.read_text(encoding="utf-8"):  # figures, other controls
        assert page.locator(".js-plotly-plot").count() and sheet.foreign == sheet.errors == []
        controls = page.locator('.jp-OutputArea [data-view="sliders"]').count()
        assert (controls == 0) is path.stem.startswith("9")  # a report has none
        return sheet.close()
    page.wait_for_selector(".snb-workbench [data-view]")
    page.wait_for_timeout(500)  # the last views are still on their way
    panel, copy = (
        page.locator(".snb-workbench [data-view]"),
        page.locator(".snb-static [data-view]"),
    )
    seen = [view.get_attribute("data-state") for view in panel.all() if view.is_visible()]
    assert seen and seen == [view.get_attribute("data-state") for view in copy.all()]
    sliders = page.locator('.jp-OutputArea [data-view="sliders"]')
    assert sliders.count() % 2 == 0  # each with its copy
    scope = ".jp-OutputArea-output:has(.snb-workbench)"
    for width, theme in ((1280, "light"), (1920, "light"), (1280, "dark")):
        page.set_viewport_size({"width": width, "height": 2400})
        page.evaluate(DARK if theme == "dark" else LIGHT)
        page.wait_for_timeout(700)
        for kind in (".snb-workbench", ".snb-static"):
            shot = shots / f"{path.stem}-{kind[5:]}-{width}-{theme}.png"
            page.locator(kind).first.scroll_into_view_if_needed()
            page.locator(kind).first.screenshot(path=shot)
        assert untidy(page) == []
        assert complaints(page, scope) == []
    page.evaluate(LIGHT)
    sheet.close()
    assert sheet.foreign == [] and sheet.errors == []


# ---- controls

# Where a fresh panel stands.
FIRST = """with bench.page.silent():
    bench.a.method.value, bench.mode.value = {method!r}, {mode!r}
    bench.a.controls["draft_length"].value, bench.a.controls["width"].value = {length}, 3
    bench.drawing["temperature"].value, bench.drawing["top_p"].value = 1.0, 1.0
    bench.drawing["new_tokens"].value, bench.drawing["seed"].value = 64, 0
    for name, toggle in bench.toggles.items():
        toggle.value = name in {views!r}
    bench.chooser._take(0)
bench._refresh()"""


def test_pictures_for_the_readme(desk, shots):
    """`pytest tests/live/test_browser.py -k readme` makes them anew."""
    views = ("tokens", "figures")
    desk.kernel.run("bench._drawing.fold.value = False; bench.trail.moves = []")
    for length in (1, 3, 8, 12):
        desk.kernel.run(f"bench.a.controls['draft_length'].value = {length}; bench.work.finish()")
    desk.kernel.run(FIRST.format(method="chain", mode="whole text", length=5, views=views))
    desk.kernel.run("bench.work.finish()")
    desk.follows(2, method="chain, draft length 5")
    desk.page.wait_for_selector('[data-view="figures"]:has-text("plain decoding")')
    desk.page.locator(".snb-workbench").screenshot(path=shots / "panel.png")
    desk.kernel.run(FIRST.format(method="RSD-S", mode="step by step", length=4, views=VIEWS))
    desk.follows(1, method="RSD-S")
    for _ in range(6):
        desk.kernel.run("bench.steps.next.click()")
    desk.page.wait_for_selector('[data-view="step"]:has-text("Accept:")')
    desk.page.locator(".snb-workbench").screenshot(path=shots / "tree.png")
    desk.kernel.run(FIRST.format(method="chain", mode="whole text", length=5, views=VIEWS))
    desk.kernel.run("bench._drawing.fold.value = True")
    desk.follows()


# The slider and what it changes, in a window of this height.
ON_ONE_SCREEN = """() => {
  const box = css => document.querySelector(`.snb-workbench ${css}`).getBoundingClientRect();
  const first = box('.snb-set-draft-length').top;
  return [box('.snb-line').bottom - first, box('.snb-trail').bottom - first,
          box('[data-view=tokens] .snb-strip').top - first]; }"""


def test_the_slider_and_the_figures_are_on_one_screen(desk):
    """The five figures, the curves and the begin of the strip; 900 px less JupyterLab's own 150."""
    desk.method("chain")
    desk.press("temperature")  # folds it
    desk.part(".snb-set-seed").wait_for(state="hidden")
    for part, below in zip(
        ("figures", "curves", "strip"), desk.page.evaluate(ON_ONE_SCREEN), strict=True
    ):
        assert 0 < below < 400, (part, below)
    desk.press("temperature")
    desk.part(".snb-set-seed").wait_for()
    assert desk.page.locator(".snb-trail svg").count() == 2 and untidy(desk.page) == []


SLIDERS = [
    ("chain", "draft_length"),
    (LOOKUP, "ngram"),
    ("AdaEDL", "threshold"),
    ("MaxConfidence", "threshold"),
    ("RSD-S", "width"),
    ("RSD-S", "draft_length"),
    ("", "temperature"),
    ("", "top_p"),
    ("", "new_tokens"),
]


@pytest.mark.parametrize(("method", "name"), SLIDERS, ids=[f"{m} {n}".strip() for m, n in SLIDERS])
def test_every_slider_to_both_ends_and_between(desk, method, name):
    desk.method(method or "chain")
    where = f"bench.a.controls['{name}']" if method else f"bench.drawing['{name}']"
    least, most = desk.kernel.value(f"({where}.min, {where}.max)")
    slider = desk.part(f".snb-set-{name.replace('_', '-')}")
    handle, base = slider.locator(".noUi-handle"), slider.locator(".noUi-base")
    handle.wait_for()  # a method brings its controls with it

    def shows(value) -> None:
        desk.knows(f"{where}.value", pytest.approx(value))
        value = desk.kernel.value(f"{where}.value")  # as Python writes it
        said = {"method": f"{name.replace('_', ' ')} {value}"} if method else {name: value}
        desk.follows(**said)

    for key, value in (("Home", least), ("End", most), ("Home", least)):
        handle.focus()
        desk.page.keyboard.press(key)
        shows(value)
    step = desk.kernel.value(f"{where}.step")
    for presses in (1, 2):
        desk.page.keyboard.press("ArrowRight")
        shows(least + presses * step)

    def drag(share: float) -> None:
        at, line = handle.bounding_box(), base.bounding_box()
        y = at["y"] + at["height"] / 2
        desk.page.mouse.move(at["x"] + at["width"] / 2, y)
        desk.page.mouse.down()
        desk.page.mouse.move(line["x"] + share * line["width"], y, steps=8)
        desk.page.mouse.up()

    drag(1.0)
    shows(most)
    drag(0.0)
    shows(least)
    drag(0.5)
    for _ in range(100):
        value = desk.kernel.value(f"{where}.value")
        if value != least:
            break
        desk.page.wait_for_timeout(50)
    assert least < value < most and abs(value - (least + most) / 2) <= (most - least) / 8
    shows(value)


def test_the_knobs_of_a_class_of_ones_own(desk):
    """Its sliders write the text, the text moves its sliders, and the views follow both."""
    desk.method(OWN)
    field = desk.part(".snb-set-path input")
    field.fill("__main__:Mine(length=2)")
    desk.page.keyboard.press("Enter")
    desk.follows(method="__main__:Mine(length=2)")
    assert "tokens that are guessed" in desk.part(".snb-set-length").inner_html()
    for name, key, text in (
        ("length", "End", "__main__:Mine(9)"),
        ("length", "Home", "__main__:Mine(1)"),
        ("share", "ArrowRight", "__main__:Mine(1, 0.75)"),
        ("share", "End", "__main__:Mine(1, 1.0)"),
    ):
        desk.part(f".snb-set-{name} .noUi-handle").focus()
        desk.page.keyboard.press(key)
        desk.knows("bench.a.controls['path'].value", text)
        desk.follows(method=text)
    desk.part(".snb-set-calm input").click()
    desk.follows(method="__main__:Mine(1, 1.0, True)")
    longest = desk.kernel.value("max(b.n_drafted for b in bench._record.blocks)")
    assert longest == 1
    field.fill("__main__:Mine(length=7)")
    desk.page.keyboard.press("Enter")
    desk.follows(method="__main__:Mine(length=7)")
    shown = desk.part(".snb-set-length .widget-readout").inner_text()
    assert shown == "7" and untidy(desk.page) == []
    desk.method("chain")
    desk.follows(method="chain")
    assert not desk.part(".snb-set-length").is_visible()
    desk.kernel.run("with bench.page.silent(): bench.a.controls['path'].value = ''")


def test_the_methods_by_keyboard(desk):
    desk.method("chain")
    for name in list(METHODS)[1:-1]:
        desk.one_down(".snb-set-method select")
        desk.knows("bench.a.method.value", name)
        desk.follows(method=name)
        for control in {
            control for method in METHODS if method != OWN for control in METHODS[method]
        }:
            css = f".snb-set-{control.replace('_', '-')}"
            assert desk.part(css).is_visible() is (control in METHODS[name]), (name, control)


@pytest.mark.parametrize(("method", "name"), [("RSD-C", "branching"), ("iid tree", "branching")])
def test_texts_by_keyboard(desk, method, name):
    desk.method(method)
    field = desk.part(f".snb-set-{name} input")
    for text in ("1", "4,3,2", "2,2,1,1"):
        field.fill(text)
        desk.page.keyboard.press("Enter")
        desk.knows("bench.a.controls['branching'].value", text)
        desk.follows(method=f"branching {text}")


def test_seed_prompt_task_and_picture(desk):
    desk.method("chain")
    seed = desk.part(".snb-set-seed input")
    for text, value in (("0", 0), ("1000000000", 10**9), ("77", 77), ("-5", 0)):
        seed.fill(text)
        desk.page.keyboard.press("Enter")
        desk.knows("bench.drawing['seed'].value", value)
        desk.follows(seed=value)
    for number in (4, 1, 2):
        desk.press(str(number))
        desk.follows(picture=number)
        assert desk.part(f".snb-sight >> text=▸{number}").is_visible()
    before = desk.kernel.value("bench.chooser.prompt.value")
    desk.one_down(".snb-set-task select")
    desk.knows(f"bench.chooser.prompt.value != {before!r}", True)
    desk.press("new picture")
    desk.follows(picture=5)
    prompt = desk.part(".snb-set-prompt textarea")
    prompt.fill("How many things are there?")
    prompt.blur()
    desk.knows("bench.chooser.prompt.value", "How many things are there?")
    file = {"name": "sky.png", "mimeType": "image/png"}
    desk.upload(file | {"buffer": (ROOT / "data/pictures/03.png").read_bytes()})
    desk.follows(picture=6)
    desk.upload(file | {"buffer": b"no picture"})
    desk.page.wait_for_selector('.snb-workbench [role="alert"]:has-text("no picture")')
    desk.press("1")
    desk.follows(picture=1)
    assert desk.page.locator('.snb-workbench [role="alert"]').count() == 0
    assert desk.part(".snb-set-task select").input_value() == "own words"
    desk.press("reset")
    desk.follows(picture=1, seed=0, method="chain, draft length 5")
    desk.knows("bench.chooser.prompt.value == items[0].prompt", True)


def test_views_can_be_switched_by_keyboard(desk):
    for name, text in BUTTONS.items():
        css = f'.snb-workbench [data-view="{name}"]'
        desk.press(text)
        desk.page.wait_for_selector(css, state="hidden")
        desk.press(text)
        desk.page.wait_for_selector(css, state="visible")
    desk.follows()


def test_tokens_one_by_one(desk):
    text = desk.part('[data-view="laws"]')
    assert "token 1 of" in text.locator("svg").get_attribute("aria-label")
    for words, place in (("token ▶", 2), ("token ▶", 3), ("◀ token", 2)):
        desk.press(words)
        desk.page.wait_for_selector(f'[data-view="laws"] svg[aria-label^="token {place} of"]')
        assert desk.kernel.value("bench._cursor") == place - 1
    desk.press("block ▶")
    desk.page.wait_for_selector('[data-view="laws"] svg[aria-label$="in block 2"]')
    desk.page.wait_for_selector('[data-view="tree"] svg[aria-label^="block 2:"]')
    token = desk.page.locator('.snb-workbench [data-view="tokens"] .snb-t[tabindex]').nth(3)
    token.focus()
    assert "target probability" in token.locator(".snb-tip").inner_text()


def test_errors_are_words_and_the_next_move_recovers(desk, shots):
    desk.method(OWN)
    alert = desk.page.locator('.snb-workbench [role="alert"]')
    desk.page.wait_for_selector('[role="status"]:has-text("Which class?")')
    assert alert.count() == 0 and desk.page.locator(".snb-workbench .snb-old").count()
    field = desk.part(".snb-set-path input")
    field.fill("__main__:Broken")
    field.press("Enter")
    desk.page.wait_for_selector('[role="alert"]:has-text("RuntimeError: an <own> bug")')
    desk.page.locator(".snb-workbench").screenshot(path=shots / "error.png")
    assert complaints(desk.page, ".jp-OutputArea-output:has(.snb-workbench)") == []
    field.fill("__main__:Slow")
    field.press("Enter")
    desk.page.wait_for_selector('[role="status"]:has-text("working")', timeout=1500)
    desk.follows(method="__main__:Slow")
    assert alert.count() == 0
    desk.method("RSD-C")
    branching = desk.part(".snb-set-branching input")
    branching.fill("9,9,9")
    branching.press("Enter")
    alert.wait_for()
    assert "at most 128" in alert.inner_text()
    desk.method("chain")
    desk.follows(method="chain")
    assert alert.count() == 0


def test_models_by_keyboard(desk, shots):
    desk.press("models")
    field = desk.part(".snb-set-target input")
    embedded = field.input_value()
    for path, error in (("no/such/folder", True), (embedded, False)):
        field.fill(path)
        desk.press("load models")
        alert = desk.page.locator('.snb-workbench [role="alert"]:has-text("no/such/folder")')
        alert.wait_for(state="visible" if error else "detached")
    desk.follows()
    assert untidy(desk.page) == []
    desk.page.locator(".snb-workbench").screenshot(path=shots / "models.png")
    assert complaints(desk.page, ".jp-OutputArea-output:has(.snb-workbench)") == []
    desk.press("models")
    field.wait_for(state="hidden")


def test_compare(desk, shots):
    desk.method("chain")
    desk.press("compare")
    desk.follows(3, mode="compare", against="RSD-S")
    other = desk.part(".snb-set-method >> nth=1")
    assert desk.page.locator(".snb-set-method:visible").count() == 2, other
    desk.page.locator(".snb-set-method:visible select").nth(1).select_option("AdaEDL")
    desk.follows(3, against="AdaEDL")
    handle = desk.page.locator(".snb-workbench .snb-set-threshold:visible .noUi-handle")
    handle.focus()
    desk.page.keyboard.press("End")
    desk.follows(3, against="threshold 1.0")
    assert untidy(desk.page) == []
    desk.page.locator(".snb-workbench").screenshot(path=shots / "compare.png")
    assert complaints(desk.page, ".jp-OutputArea-output:has(.snb-workbench)") == []
    desk.press("whole text")
    desk.follows(mode="whole text")


def test_step_by_step(desk, shots):
    from playwright.sync_api import expect

    desk.method("RSD-S")
    desk.press("step by step")
    desk.follows(1, mode="step by step", method="RSD-S")
    step = desk.part('[data-view="step"]')
    for words in ("Draft:", "Verify:", "Accept:", "the text after 1 target call", "Draft:"):
        desk.page.wait_for_selector(f'[data-view="step"]:has-text("{words}")')
        desk.press("next ▶")
    desk.page.wait_for_selector('[data-view="step"]:has-text("Verify:")')
    desk.press("◀ back")
    desk.page.wait_for_selector('[data-view="step"]:has-text("Draft:")')
    field = desk.part(".snb-set-words input")
    field.fill(" red")
    field.press("Enter")
    desk.press("force it")
    desk.page.wait_for_selector('[data-view="step"] .snb-forced')
    expect(field).to_have_value("")  # each widget has its news in its own time
    field.fill("elephant")
    field.press("Enter")
    desk.press("force it")
    frame = desk.page.locator('[data-view="step"] .snb-block:has(.snb-forced)')
    frame.locator("text=ele >> nth=0").or_(frame.locator("text=␣e >> nth=0")).first.wait_for()
    assert frame.count() == 1, "words by hand stand in one frame"
    desk.press("play ▶▶")
    desk.page.wait_for_selector('[data-view="step"]:has-text("Verify:")')
    desk.press("pause")
    desk.page.wait_for_selector('[data-view="step"] svg')
    assert step.is_visible() and untidy(desk.page) == []
    desk.page.locator(".snb-workbench").screenshot(path=shots / "step.png")
    assert complaints(desk.page, ".jp-OutputArea-output:has(.snb-workbench)") == []
    desk.press("whole text")
    desk.follows(mode="whole text")


PLANTED = """() => {
  const panel = document.querySelector('.snb-workbench'), add = html => {
    const part = document.createElement('div');
    part.className = 'planted'; part.innerHTML = html; panel.append(part); };
  add('<p style="height:40px;color:#bbb;background:#ccc">pale words</p>');
  add('<button></button>');
  add('<button style="width:20px;overflow:hidden;white-space:nowrap">words too long</button>');
  add('<svg width="30" height="20"><text y="15">wider than its frame</text></svg>');
  add('too far up');
  panel.lastChild.style.marginTop = '-12px';
  fetch('http://192.0.2.1/').catch(() => {});
  setTimeout(() => { throw new Error('planted'); }, 0); }"""


def test_planted_faults_are_seen(desk):
    """The checks of this file can fail: a nameless button, pale words, a cut, an overlap, a
    request to elsewhere, an exception in the page."""
    sheet = desk.sheet
    assert untidy(desk.page) == [] and sheet.foreign == sheet.errors == []
    try:
        desk.page.evaluate(PLANTED)
        desk.page.wait_for_timeout(300)
        said = " ".join(complaints(desk.page, ".jp-OutputArea-output:has(.snb-workbench)"))
        wrong = " ".join(untidy(desk.page))
        foreign, errors = list(sheet.foreign), list(sheet.errors)
    finally:
        desk.page.evaluate("() => document.querySelectorAll('.planted').forEach(x => x.remove())")
        sheet.foreign.clear(), sheet.errors.clear()
    assert "button-name" in said and "color-contrast" in said, said
    assert "words too long" in wrong and "overlaps" in wrong and "wider than its" in wrong, wrong
    assert foreign == ["http://192.0.2.1/"] and "planted" in errors[0]
    assert untidy(desk.page) == []


def test_plain_sliders(desk):
    box = desk.page.locator(
        ".jp-OutputArea-output:has(.snb-set-threshold):not(:has(.snb-workbench))"
    )
    handle = box.locator(".noUi-handle")
    for key, value in (("Home", 0), ("End", 100), ("ArrowLeft", 99)):
        handle.focus()
        desk.page.keyboard.press(key)
        desk.knows("slider.values['threshold']", value)
        said = f"below {value / 100:.2f} at"
        box.locator(f'svg[aria-label*="{said}"]').wait_for()
    assert complaints(desk.page, ".jp-OutputArea-output:has([data-view=sliders])") == []


# ---- a slow target that reads text only

# Every state of the strip: [seed, tokens, whether it grows still].
STRIPS = """() => {
  window.__strips = [];
  new MutationObserver(() => {
    const view = document.querySelector('.snb-workbench [data-view="tokens"]');
    if (!view) return;
    const state = JSON.parse(view.dataset.state);
    const n = parseInt(view.querySelector('.snb-title + span').textContent);
    const now = [state.seed, n, !!state.so_far], last = window.__strips.at(-1);
    if (JSON.stringify(now) !== JSON.stringify(last)) window.__strips.push(now);
  }).observe(document.body, { childList: true, subtree: true }); }"""
GROWS = """([seed, n]) => window.__strips.some(([s, k, open]) => s === seed && k >= n && open)"""
ENDED = (
    """seed => { const [s, _, open] = window.__strips.at(-1) || []; return s === seed && !open; }"""
)


def test_a_slow_target_grows_and_a_move_stops_it(lab, chrome, shots):
    sheet = browser.Sheet(chrome, lab, "slow.ipynb", height=2400)
    page = sheet.page
    page.evaluate(STRIPS)
    sheet.run_all()
    kernel = lab.kernel("slow.ipynb")
    panel, status = page.locator(".snb-workbench"), page.locator('.snb-workbench [role="status"]')
    scope = ".jp-OutputArea-output:has(.snb-workbench)"

    def seed(value: int) -> None:
        field = panel.locator(".snb-set-seed input")
        field.fill(str(value))
        page.keyboard.press("Enter")

    panel.locator("button.snb-set-drawing").click()
    for value, theme in ((1, LIGHT), (2, DARK)):
        page.evaluate(theme)
        seed(value)
        page.wait_for_function(GROWS, arg=[value, 20])
        assert re.search(r"about \d+ s to go", status.inner_text())
        panel.screenshot(path=shots / f"slow-growing-{'dark' if theme == DARK else 'light'}.png")
        assert untidy(page) == [] and complaints(page, scope) == []
    for value in (3, 4, 5):  # each stops the one before
        seed(value)
        page.wait_for_function(GROWS, arg=[value, 4])
    page.wait_for_function(ENDED, arg=5, timeout=60_000)
    page.wait_for_selector('[role="status"]:has-text("plain decoding for comparison, about")')
    panel.screenshot(path=shots / "slow-plain-dark.png")
    page.wait_for_selector('[role="status"]:has-text("shown after")', timeout=60_000)
    strips = page.evaluate("window.__strips")
    assert len([strip for strip in strips if strip[0] == 5 and strip[2]]) >= 8
    for value in (3, 4):
        assert all(n < 64 and open for at, n, open in strips if at == value)
    seeds = [strip[0] for strip in strips]
    assert seeds == sorted(seeds), "what was stopped was drawn again"
    assert kernel.value("bench.work.under_way, bench._record.finish") == (False, "length")
    panel.screenshot(path=shots / "slow-done-dark.png")
    page.evaluate(LIGHT)
    panel.screenshot(path=shots / "slow-done-light.png")
    assert untidy(page) == [] and complaints(page, scope) == []
    kernel.close()
    sheet.close()
    assert sheet.foreign == [] and sheet.errors == []
