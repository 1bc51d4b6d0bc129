"""The control panel of the notebooks, and plain sliders: what is moved, and what is then shown.

Widgets are ipywidgets' own, and views are HTML: that works in JupyterLab and on Colab alike. No
Output widget: nbclient answers one on the socket on which it awaits the end of the cell, and now
and then that wake-up is lost, so that a run by papermill never ends.
"""

from __future__ import annotations

import base64
import html
import io
import itertools
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import ipywidgets as w

from specnb import scenes, views
from specnb.laws import laws_of
from specnb.models import load_pair
from specnb.models.base import Pair
from specnb.models.hf import as_picture
from specnb.record import TokenRow
from specnb.sampling import Sampling
from specnb.studio import METHODS, OWN, Method, Question, Studio, Walk
from specnb.views.look import by_block, visible

VIEWS = ("tokens", "figures", "time", "tree", "laws")
MODES = ("whole text", "step by step", "compare")
OWN_WORDS = "own words"
MOST_PICTURES = 8
FRESH = 500_000_000  # scene seeds of no notebook and no training
NARROW, WIDE = {"width": "330px"}, {"width": "98%"}
PLAIN = {"description_width": "initial"}
LABELLED = {"description_width": "95px"}  # one edge for all labels of a column


@dataclass(frozen=True)
class Static:
    """What a live cell shows, without controls: it stays in saved, printed and exported copies."""

    html: str

    def _repr_html_(self) -> str:
        return self.html


def _alert(error: Exception) -> str:
    words = html.escape(str(error) or type(error).__name__)
    if not isinstance(error, ValueError):  # of ours, with words for the reader
        words = f"{type(error).__name__}: {words}"
    return (
        '<div role="alert" class="snb-alert" style="border:2px solid #b84f00;border-radius:6px;'
        'padding:8px 12px;margin:6px 0;white-space:pre-wrap;line-height:1.4;max-width:1100px">'
        f"<b>That does not work.</b> {words}</div>"
    )


def _status(text: str) -> str:
    return f'<span role="status" style="line-height:1.4">{html.escape(text)}</span>'


# ------------------------------------------------------------------------------- plain sliders


class Sliders(w.VBox):
    """Sliders over one view; see `sliders`."""

    def __init__(self, function: Callable[..., Any], controls: Mapping[str, tuple]):
        self._function = function
        self._names = {name: description for name, (_, _, _, description) in controls.items()}
        self.controls: dict[str, w.IntSlider] = {}
        for name, (value, least, greatest, description) in controls.items():
            if not least <= value <= greatest:
                raise ValueError(f"{name}={value}: give a number from {least} to {greatest}")
            self.controls[name] = w.IntSlider(
                value=value,
                min=least,
                max=greatest,
                description=description,
                continuous_update=False,
                style=PLAIN,
                layout={"width": "420px"},
            )
            self.controls[name].add_class(f"snb-{name.replace('_', '-')}")
        self.hint, self.view = w.HTML(), w.HTML(layout=WIDE)
        self._compute()
        for control in self.controls.values():
            control.observe(self._moved, names="value")
        super().__init__([*self.controls.values(), self.hint, self.view])

    @property
    def values(self) -> dict[str, int]:
        """Where the sliders stand."""
        return {name: control.value for name, control in self.controls.items()}

    def static(self) -> Static:
        """What the sliders show just now, for copies without a kernel."""
        words = html.escape(self._words())
        return Static(f"<div><div><b>{words}</b></div>{self.view.value}</div>")

    def _words(self) -> str:
        return ", ".join(f"{self._names[name]} {value}" for name, value in self.values.items())

    def _compute(self) -> None:
        self.hint.value = _status("working …")
        start_s = time.perf_counter()
        shown = self._function(**self.values)
        if not hasattr(shown, "_repr_html_"):
            kind = type(shown).__name__
            raise TypeError(f"{kind}: the function must give back something in HTML")
        state = html.escape(json.dumps(self.values))
        self.view.value = f'<div data-state="{state}">{shown._repr_html_()}</div>'
        took = f"computed in {time.perf_counter() - start_s:.1f} s"
        self.hint.value = _status(f"{self._words()}, {took}")

    def _moved(self, _) -> None:
        try:
            self._compute()
        except Exception as error:  # an exception in a callback would be invisible in the page
            self.view.value = _alert(error)
            self.hint.value = _status(f"stopped at {self._words()}")


def sliders(function: Callable[..., Any], controls: Mapping[str, tuple[int, int, int, str]]):
    """Sliders; every move calls `function` with all values by name and shows its HTML.

    `controls` maps a name to (value, least, greatest, description). Nothing is cached: what is on
    the screen was computed for it. The first call may raise; an exception of a later one is shown
    in words, and the next move recovers from it. `static()` gives what stands there now.
    """
    return Sliders(function, controls)


# -------------------------------------------------------------------------------- the workbench


class MethodControls(w.VBox):
    """A method and its controls; those that it does not listen to are hidden."""

    def __init__(self, method: Method, label: str):
        longest = max(16, method.draft_length)

        def shown(kind, **more):
            return kind(continuous_update=False, style=LABELLED, layout=NARROW, **more)

        self.method = w.Dropdown(
            options=list(METHODS),
            value=method.name,
            description=label,
            style=LABELLED,
            layout=NARROW,
        )
        self.controls: dict[str, Any] = {
            "draft_length": shown(
                w.IntSlider,
                value=method.draft_length,
                min=1,
                max=longest,
                description="draft length",
            ),
            "threshold": shown(
                w.FloatSlider,
                value=method.threshold,
                min=0.0,
                max=1.0,
                step=0.05,
                description="threshold",
            ),
            "branching": shown(w.Text, value=method.branching, description="branching"),
            "width": shown(w.IntSlider, value=method.width, min=1, max=8, description="width"),
            "path": shown(
                w.Text,
                value=method.path,
                description="class",
                placeholder="package:Class",
            ),
        }
        for name, control in {"method": self.method, **self.controls}.items():
            control.add_class(f"snb-{name.replace('_', '-')}")
        self._fit(None)
        self.method.observe(self._fit, names="value")
        super().__init__([self.method, *self.controls.values()])

    def _fit(self, _) -> None:
        for name, control in self.controls.items():
            control.layout.display = None if name in METHODS[self.method.value] else "none"

    def all(self) -> list:
        """Every control."""
        return [self.method, *self.controls.values()]

    def value(self) -> Method:
        """The method that the controls describe."""
        return Method(self.method.value, **{name: c.value for name, c in self.controls.items()})


@dataclass(frozen=True, eq=False)
class Sight:
    """A picture to choose (None: text only), and its prompt for every task that has one."""

    image: Any
    prompts: Mapping[str, str]
    large: Any = None  # the same, drawn larger for the reader


def _sight_of(item: Any) -> Sight:
    """An item of a notebook, with its prompt and those of the other tasks on its scene."""
    scene = getattr(item, "scene", None)
    if scene is None:  # a prompt of the reader's own
        return Sight(item.image, {item.task: item.prompt}, item.image)
    prompts = {task: scenes.on_scene(task, scene).prompt for task in scenes.tasks_of(scene)}
    return Sight(item.image, {**prompts, item.task: item.prompt}, scenes.render(scene, 384))


def _new_sight(seed: int) -> Sight:
    """A scene that all tasks can use."""
    return _sight_of(scenes.example("conversation", seed))


def _png(image: Any, size: int) -> str:
    small = image.copy()
    small.thumbnail((size, size))
    file = io.BytesIO()
    small.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"


class Workbench(w.VBox):
    """The control panel; see `workbench`."""

    _count = itertools.count()

    def __init__(
        self,
        pair: Pair,
        sights: Sequence[Sight],
        method: Method,
        other: Method,
        sampling: Sampling,
        seed: int,
        shown: Sequence[str],
        mode: str,
    ):
        self._studio, self._sights, self._chosen = Studio(pair), list(sights), 0
        self._number, self._moves, self._quiet = next(self._count), 0, False
        self._fresh = itertools.count(FRESH)
        self._decoding = self._walk = None
        self._cursor = 0
        self._states: dict[str, str] = {}
        self._build(method, other, sampling, seed, shown, mode)
        super().__init__(self._rows)
        self.add_class("snb-workbench")
        self._refresh()
        if self.alert.value:  # the first state fails its cell, as any other line of code would
            raise self._error

    # ---- building

    def _build(self, method, other, sampling, seed, shown, mode) -> None:
        self.thumbs = w.HBox(layout={"flex_flow": "row wrap"})
        self.thumb_style = w.HTML(layout={"display": "none"})
        self.new_picture = w.Button(description="new picture", icon="refresh")
        self.own_picture = w.FileUpload(accept="image/*", description="own picture")
        self.task = w.Dropdown(description="task", style=LABELLED, layout=NARROW)
        self.prompt = w.Textarea(
            description="prompt",
            rows=2,
            continuous_update=False,
            style=LABELLED,
            layout={"width": "670px", "max_width": "98%"},
        )
        self.a, self.b = MethodControls(method, "method"), MethodControls(other, "against")
        self.b.add_class("snb-other")

        def slider(kind, **more):
            return kind(continuous_update=False, style=LABELLED, layout=NARROW, **more)

        self.temperature = slider(
            w.FloatSlider,
            value=sampling.temperature,
            min=0.0,
            max=max(2.0, sampling.temperature),
            step=0.1,
            description="temperature",
        )
        self.top_p = slider(
            w.FloatSlider,
            value=sampling.top_p,
            min=min(0.05, sampling.top_p),
            max=1.0,
            step=0.05,
            description="top-p",
        )
        self.tokens = slider(
            w.IntSlider, value=64, min=8, max=128, step=8, description="new tokens"
        )
        self.seed = w.BoundedIntText(
            value=seed, min=0, max=10**9, description="seed", style=LABELLED, layout=NARROW
        )
        self.mode = w.ToggleButtons(options=MODES, value=mode, style={"button_width": "auto"})
        self.toggles = {
            name: w.ToggleButton(value=name in shown, description=name, layout={"width": "auto"})
            for name in VIEWS
        }
        move = {"layout": {"width": "auto"}}
        self.moves = {
            "token before": w.Button(description="◀ token", **move),
            "token after": w.Button(description="token ▶", **move),
            "block before": w.Button(description="◀ block", **move),
            "block after": w.Button(description="block ▶", **move),
        }
        self.back, self.next = (w.Button(description=name, **move) for name in ("◀ back", "next ▶"))
        self.candidates = w.Dropdown(description="or go on with", style=PLAIN, layout=NARROW)
        self.own_token = w.Text(
            description="or in own words", continuous_update=False, style=PLAIN, layout=NARROW
        )
        self.force = w.Button(description="force it", **move)
        self.target_path = w.Text(value=self._studio.pair.target.path, **self._path("target"))
        draft = self._studio.pair.draft
        self.draft_path = w.Text(value=draft.path if draft else "", **self._path("draft"))
        self.load = w.Button(description="load models", **move)
        models = w.Accordion(
            [w.VBox([self.target_path, self.draft_path, self.load])], selected_index=None
        )
        models.set_title(0, "models")

        self.picture = w.HTML()
        self.status, self.alert = w.HTML(_status("")), w.HTML(layout=WIDE)
        self.views = {name: w.HTML(layout=WIDE) for name in (*VIEWS, "step", "aligned")}
        self._named(
            new_picture=self.new_picture,
            own_picture=self.own_picture,
            task=self.task,
            prompt=self.prompt,
            temperature=self.temperature,
            top_p=self.top_p,
            tokens=self.tokens,
            seed=self.seed,
            mode=self.mode,
            back=self.back,
            next=self.next,
            candidates=self.candidates,
            own_token=self.own_token,
            force=self.force,
            load=self.load,
        )
        self._cursor_row = w.HBox([*self.moves.values()])
        self._toggle_row = w.HBox([w.Label("show"), *self.toggles.values()])
        self._step_row = w.VBox(
            [
                w.HBox([self.back, self.next]),
                w.HBox([self.candidates, self.own_token, self.force], layout=self._wrap()),
            ]
        )
        chooser = w.VBox(
            [
                w.HBox(
                    [self.thumbs, w.VBox([self.new_picture, self.own_picture])],
                    layout=self._wrap(),
                ),
                self.task,
                self.prompt,
            ]
        )
        drawing = w.VBox([self.temperature, self.top_p, self.tokens, self.seed])
        self._rows = [
            self.thumb_style,
            w.HBox([self.picture, chooser], layout=self._wrap()),
            w.HBox([self.a, self.b, drawing], layout=self._wrap()),
            w.HBox([self.mode, self._toggle_row], layout=self._wrap()),
            self._step_row,
            self.status,
            self.alert,
            self.views["step"],
            self.views["tokens"],
            self.views["aligned"],
            self.views["figures"],
            self.views["time"],
            self._cursor_row,
            self.views["tree"],
            self.views["laws"],
            models,
        ]
        self._draw_thumbs()
        self._offer_tasks()
        self._fit()
        self._observe()

    @staticmethod
    def _path(name: str) -> dict:
        more = {"style": PLAIN, "layout": {"width": "98%"}, "continuous_update": False}
        return {"description": name, **more}

    @staticmethod
    def _wrap() -> dict:
        return {"flex_flow": "row wrap"}

    @staticmethod
    def _named(**controls) -> None:
        for name, control in controls.items():
            control.add_class(f"snb-{name.replace('_', '-')}")

    def _observe(self) -> None:
        self.task.observe(self._on(self._take_task), names="value")
        again = [self.prompt, self.temperature, self.top_p, self.tokens, self.seed, self.mode]
        for control in [*again, *self.a.all(), *self.b.all()]:
            control.observe(self._on(self._refresh), names="value")
        for toggle in self.toggles.values():
            toggle.observe(self._on(self._redraw), names="value")
        self.own_picture.observe(self._on(self._take_upload), names="value")
        self.new_picture.on_click(self._on(self._take_new))
        self.back.on_click(self._on(lambda: self._step(Walk.back)))
        self.next.on_click(self._on(lambda: self._step(Walk.next)))
        self.force.on_click(self._on(self._force))
        self.load.on_click(self._on(self._load))
        for name, button in self.moves.items():
            what, way = name.split()
            button.on_click(
                self._on(lambda what=what, way=way: self._point(what, -1 if way == "before" else 1))
            )

    def _on(self, action: Callable[[], None]) -> Callable[[Any], None]:
        """A callback that shows its exception in the page, where one would else see nothing."""

        def callback(_) -> None:
            if self._quiet:
                return
            try:
                action()
            except Exception as error:
                self._fail(error)

        return callback

    @contextmanager
    def _silent(self) -> Iterator[None]:
        """Several controls change, and what follows from it is computed once, afterwards."""
        before, self._quiet = self._quiet, True
        try:
            yield
        finally:
            self._quiet = before

    # ---- what is asked for

    @property
    def question(self) -> Question:
        """The prompt, its picture, and how tokens are drawn."""
        return Question(
            self.prompt.value,
            self._sights[self._chosen].image,
            Sampling(self.temperature.value, top_p=self.top_p.value),
            self.seed.value,
            self.tokens.value,
        )

    @property
    def state(self) -> dict[str, Any]:
        """What the views were asked to show; every view carries it as `data-state`."""
        q = self.question
        state = {
            "move": self._moves,
            "mode": self.mode.value,
            "method": str(self.a.value()),
            "temperature": round(q.sampling.temperature, 2),
            "top_p": round(q.sampling.top_p, 2),
            "seed": q.seed,
            "new_tokens": q.max_new_tokens,
            "picture": self._chosen + 1,
        }
        return state | ({"against": str(self.b.value())} if self.mode.value == "compare" else {})

    def _draw_thumbs(self) -> None:
        """One button per picture; those there stay, or the keyboard would lose its place."""
        rules = [
            ".snb-sight{background-size:64px 64px!important;background-repeat:no-repeat!important;"
            "background-position:center 2px!important;padding:66px 0 0!important;"
            "line-height:20px!important}"
        ]
        buttons = list(self.thumbs.children)
        for index, sight in enumerate(self._sights):
            name = f"snb-sight-{self._number}-{index}"
            if index == len(buttons):
                buttons.append(w.Button(layout={"width": "68px", "height": "88px"}))
                buttons[index].add_class(name)
                buttons[index].add_class("snb-sight")
                buttons[index].on_click(self._on(lambda index=index: self._take_sight(index)))
            chosen = index == self._chosen
            buttons[index].description = f"▸{index + 1}" if chosen else f"{index + 1}"
            buttons[index].tooltip = f"picture {index + 1}{', chosen' if chosen else ''}"
            if sight.image is not None:
                rules.append(f".{name}{{background-image:url({_png(sight.large, 128)})!important}}")
        self.thumb_style.value = f"<style>{''.join(rules)}</style>"
        self.thumbs.children = buttons
        large = self._sights[self._chosen].large
        self.picture.value = ""
        if large is not None and self._studio.pair.target.sees_images:
            self.picture.value = (
                '<img alt="the picture that the prompt is about" width="176" '
                f'style="border:1px solid #8a8a8a;border-radius:6px;margin:2px 12px 2px 2px" '
                f'src="{_png(large, 384)}">'
            )

    def _offer_tasks(self) -> None:
        with self._silent():
            prompts = self._sights[self._chosen].prompts
            wanted = self.task.value
            self.task.options = [*prompts, OWN_WORDS]
            self.task.value = wanted if wanted in prompts else next(iter(prompts), OWN_WORDS)
            if self.task.value in prompts:
                self.prompt.value = prompts[self.task.value]

    def _take_sight(self, index: int) -> None:
        self._chosen = index
        self._draw_thumbs()
        self._offer_tasks()
        self._refresh()

    def _take_task(self) -> None:
        prompt = self._sights[self._chosen].prompts.get(self.task.value)
        if prompt is not None:
            with self._silent():
                self.prompt.value = prompt
            self._refresh()

    def _add_sight(self, sight: Sight) -> None:
        if len(self._sights) >= MOST_PICTURES:
            self._sights.pop()
        self._sights.append(sight)
        self._take_sight(len(self._sights) - 1)

    def _take_new(self) -> None:
        self._add_sight(_new_sight(next(self._fresh)))

    def _take_upload(self) -> None:
        given = self.own_picture.value
        if not given:
            return
        # ipywidgets 8 gives a tuple of files, 7 (Colab) a mapping by name.
        file = next(iter(given.values())) if isinstance(given, Mapping) else given[0]
        image = as_picture(io.BytesIO(bytes(file["content"])))
        self._add_sight(Sight(image, {"caption": "Describe the picture."}, image))

    def _load(self) -> None:
        self._say("loading …")
        pair = load_pair(self.target_path.value, self.draft_path.value)
        self._studio = Studio(pair)
        self._draw_thumbs()
        self._refresh()

    # ---- what is shown

    def _say(self, text: str) -> None:
        self.status.value = _status(text)

    def _fail(self, error: Exception) -> None:
        self._error = error
        self.alert.value = _alert(error)
        self._say("stopped; change a control to go on")

    def _fit(self) -> None:
        """Rows of the mode that is on; a row of another mode is hidden."""
        whole, step, compare = (self.mode.value == mode for mode in MODES)

        def show(widget, visible: bool) -> None:
            widget.layout.display = None if visible else "none"

        show(self.b, compare)
        show(self._toggle_row, whole)
        show(self._step_row, step)
        show(self._cursor_row, whole and (self.toggles["tree"].value or self.toggles["laws"].value))
        show(self.views["step"], step)
        show(self.views["aligned"], compare)
        for name, toggle in self.toggles.items():
            on = toggle.value if whole else name in ("figures", "time") if compare else False
            show(self.views[name], on)

    def _refresh(self) -> None:
        """Decodes what the controls say, and shows it."""
        try:
            self._fit()
            self._moves += 1
            self._say("working …")
            start_s = time.perf_counter()
            if self.mode.value == MODES[1]:
                question, method = self.question, self.a.value()
                self._walk = Walk(lambda: self._studio.begin(question, method))
                self._walk.next()
                self._show_step()
            elif self.mode.value == MODES[2]:
                self._show_compared()
            else:
                self._decoding = self._studio.run(self.question, self.a.value())
                self._cursor = 0
                self._show_whole()
            self.alert.value = ""
            self._say(f"{self._words()}, shown after {time.perf_counter() - start_s:.1f} s")
        except Exception as error:  # whatever a drafter of the reader's own may raise
            self._fail(error)

    def _redraw(self) -> None:
        """Shows the same run in the views that are on."""
        self._fit()
        self._show_whole()

    def _words(self) -> str:
        state = self.state
        words = [state["method"]]
        words += [f"against {state['against']}"] if "against" in state else []
        names = ("temperature", "top_p", "seed")
        return ", ".join([*words, *(f"{n.replace('_', '-')} {state[n]}" for n in names)])

    def _show(self, name: str, shown: Any) -> None:
        state = html.escape(json.dumps(self.state), quote=True)
        text = shown if isinstance(shown, str) else shown._repr_html_()
        self.views[name].value = f'<div data-view="{name}" data-state="{state}">{text}</div>'

    def _show_whole(self) -> None:
        record = self._record = self._decoding.record()
        on = {name for name, toggle in self.toggles.items() if toggle.value}
        if "tokens" in on:  # first: this is what one waits for
            self._show("tokens", views.tokens(record, title=str(self.a.value())))
        if "figures" in on:
            plain = self._studio.plain(self.question)
            self._show("figures", views.figures({str(self.a.value()): record}, plain))
        if "time" in on:
            plain = self._studio.plain(self.question)
            self._show("time", views.lanes({str(self.a.value()): record, "plain": plain}))
        self._show_pointed()

    def _show_pointed(self) -> None:
        """Tree and laws at the token that the cursor stands on."""
        row = self._rows_in_order()[self._cursor]
        if self.toggles["tree"].value:
            self._show("tree", views.tree(self._record, row.block))
        if self.toggles["laws"].value:
            self._show("laws", self._laws(row))

    def _rows_in_order(self) -> list[TokenRow]:
        return [row for _, rows in by_block(self._record) for row in rows]

    def _laws(self, row: TokenRow) -> str:
        laws = laws_of(self._decoding, row)
        title = f"token {self._cursor + 1} of {len(self._record.tokens)}: “{visible(row.text)}”, "
        title += f"{row.verdict} in block {row.block + 1}"
        picture = views.laws(
            laws.target,
            laws.draft,
            self._studio.pair.target.piece,
            left=laws.left,
            token=row.token_id,
            title=title,
        )
        pairs = [("target", row.target_prob, laws.target)]
        if row.draft_prob is not None and laws.draft is not None:
            pairs.append(("draft", row.draft_prob, laws.draft))
        words = "; ".join(
            f"{name}: recorded {recorded:.4f}, computed anew {float(law[row.token_id]):.4f}"
            for name, recorded, law in pairs
        )
        return f'{picture._repr_html_()}<div style="line-height:1.4">{html.escape(words)}</div>'

    def _point(self, what: str, way: int) -> None:
        rows = self._rows_in_order()
        if what == "token":
            goal = self._cursor + way
        else:
            block = rows[self._cursor].block + way
            goal = next((i for i, row in enumerate(rows) if row.block == block), -1)
        if 0 <= goal < len(rows):
            self._cursor = goal
            self._moves += 1
            self._show_pointed()
        self._say(f"token {self._cursor + 1} of {len(rows)}")

    def _show_compared(self) -> None:
        question = self.question
        names = [str(self.a.value()), str(self.b.value())]
        if names[0] == names[1]:
            names[1] += ", again"
        runs = [self._studio.run(question, m.value()).record() for m in (self.a, self.b)]
        both = dict(zip(names, runs, strict=True))
        self._show("aligned", views.aligned(both, title=f"one prompt, seed {question.seed}"))
        plain = self._studio.plain(question)
        self._show("figures", views.figures(both, plain))
        self._show("time", views.lanes({**both, "plain": plain}))

    # ---- step by step

    def _step(self, move: Callable[[Walk], None]) -> None:
        move(self._walk)
        self._moves += 1
        self.alert.value = ""
        self._show_step()

    def _force(self) -> None:
        words = self.own_token.value
        tokenizer = self._studio.pair.target.tokenizer
        ids = [self.candidates.value]
        if words:
            ids = tokenizer.encode(words, add_special_tokens=False)
        for token_id in ids:
            self._walk.force(token_id)
        self.own_token.value = ""
        self._step(lambda walk: None)

    def _show_step(self) -> None:
        walk = self._walk
        parts = []
        if walk.text.blocks:
            title = f"the text after {walk.shown} target calls"
            parts.append(views.tokens(walk.text.record(), title=title)._repr_html_())
        if walk.block is not None:
            record = walk.block.record()
            rows = [row for row in record.tokens if row.block == walk.shown]
            parts.append(_phase_words(walk, rows))
            drafted = max((row.depth for row in rows if row.node >= 0), default=0)
            levels = drafted if walk.phase in ("draft", "verify") else None
            parts.append(views.tree(record, walk.shown, levels)._repr_html_())
            if walk.phase != "draft":
                parts.append(_examined(rows))
        elif not walk.text.blocks:
            parts.append('<p style="line-height:1.4">Nothing is said yet. Press “next”.</p>')
        self._show("step", "".join(parts))
        with self._silent():
            self.candidates.options = [("–", None)] if walk.ended else self._likely()
            self.candidates.value = self.candidates.options[0][1]
        self.next.disabled = self.force.disabled = walk.ended
        self.back.disabled = walk.shown == 0 and walk.phase == "commit"
        end = f", the text has ended ({walk.text.finish})" if walk.ended else ""
        self._say(f"block {walk.shown + (walk.block is not None)}, {walk.phase}{end}")

    def _likely(self) -> list[tuple[str, int]]:
        """The target's ten likeliest tokens behind the text that is shown."""
        law = self._walk.next_token_law()
        best = law.topk(min(10, len(law)))
        piece = self._studio.pair.target.piece
        return [
            (f"{visible(piece(i))}  ({p:.3f})", i)
            for p, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]

    # ---- copies

    def static(self) -> Static:
        """What the panel shows just now, without controls: for saved and exported copies."""
        seen = [view.value for view in self.views.values() if view.layout.display != "none"]
        asked = html.escape(self.prompt.value).replace("\n", "<br>")
        return Static(
            f'<div class="snb-static"><div><b>{html.escape(self._words())}</b></div>'
            f"<div><b>Prompt:</b> {asked}</div>{self.picture.value}{self.alert.value}"
            f"{''.join(seen)}</div>"
        )


PHASE_WORDS = {
    "draft": "Draft: the drafter has guessed {n} tokens; the target has not looked yet.",
    "verify": "Verify: one call of the target scored all {n} at once. Each is held against a "
    "random number, in the order in which it was drawn.",
    "accept": "Accept: {kept} of {n} are kept; {final}.",
}


def _phase_words(walk: Walk, rows: Sequence[TokenRow]) -> str:
    kept = sum(row.verdict == "accepted" for row in rows)
    finals = {
        "correction": "a rejection is followed by a correction from the residual",
        "bonus": "all on the path held, so the target adds a bonus token of its own",
        "plain": "nothing was drafted, so the target draws its own token",
    }
    final = next((finals[row.verdict] for row in rows if row.verdict in finals), "the text ends")
    n = sum(row.node >= 0 for row in rows)
    said = PHASE_WORDS[walk.phase].format(n=n, kept=kept, final=final)
    return f'<p style="line-height:1.4;font-size:15px">{html.escape(said)}</p>'


def _examined(rows: Sequence[TokenRow]) -> str:
    """Every look of a block as a line: the two probabilities, their ratio, what decided."""
    looks = [row for row in rows if row.accept_prob is not None]
    if not looks:
        return ""
    head = "".join(
        f'<th scope="col" style="text-align:right;padding:2px 12px">{name}</th>'
        for name in ("token", "target", "draft", "accept probability", "random number", "verdict")
    )
    body = "".join(
        "<tr>"
        + "".join(
            f'<td style="text-align:right;padding:2px 12px">{html.escape(cell)}</td>'
            for cell in (
                visible(row.text),
                f"{row.target_prob:.3f}",
                f"{row.draft_prob:.3f}",
                f"{row.accept_prob:.3f}",
                f"{row.uniform:.3f}",
                row.verdict,
            )
        )
        + "</tr>"
        for row in looks
    )
    return (
        f'<table style="border-collapse:collapse;line-height:1.4;font-size:14px"><thead><tr>{head}'
        f"</tr></thead><tbody>{body}</tbody></table>"
    )


def workbench(
    pair: Pair,
    items: Sequence[Any],
    cfg: Any = None,
    *,
    method: str = "chain",
    against: str = "chain",
    views: Sequence[str] = ("tokens", "figures"),
    mode: str = MODES[0],
) -> Workbench:
    """The control panel on a pair, with the prompts of a notebook to choose from.

    `cfg` (a `RunConfig`) says where the controls stand at first, `method` which drafter drafts,
    `against` the one that it is compared with, `views` which of VIEWS are on, `mode` one of MODES.
    Show it as a cell's last value; `static()` gives what it shows without the controls. ValueError
    where an argument is none of these, or where the first state cannot be decoded.
    """
    for name in views:
        if name not in VIEWS:
            raise ValueError(f"views={name!r}: choose from {', '.join(VIEWS)}")
    if mode not in MODES:
        raise ValueError(f"mode={mode!r}: choose one of {', '.join(MODES)}")
    if not items:
        raise ValueError("items=[]: give at least one item with prompt and image")
    names = [field for field in Method.__dataclass_fields__ if field not in ("name", "path")]
    given = {name: getattr(cfg, name) for name in names if hasattr(cfg, name)}
    first = Method(method, **given)
    second = replace(first, name=against)
    if second == first and first.name != OWN:  # or both strips would be the same
        second = replace(second, draft_length=1)
    return Workbench(
        pair,
        [_sight_of(item) for item in items[:MOST_PICTURES]],
        first,
        second,
        cfg.sampling if cfg is not None else Sampling(),
        cfg.seed if cfg is not None else 0,
        views,
        mode,
    )
