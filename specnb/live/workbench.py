"""The control panel of the notebooks: picture, prompt and method in, what decoding does out."""

from __future__ import annotations

import html
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import ipywidgets as w

from specnb import views
from specnb.decode import Decoding, Request
from specnb.live.drawing import Drawing
from specnb.live.growth import Progress, Work, progress, stepped
from specnb.live.lacks import lacks_of
from specnb.live.methods import METHODS, OWN, PLAIN, Method, MethodControls, methods_for
from specnb.live.page import (
    LABELLED,
    WIDE,
    WRAPPED,
    Page,
    framed,
    line,
    named,
    show,
)
from specnb.live.pictures import PictureChooser
from specnb.live.shown import BESIDE, BUTTONS, RUN, SHOWN, TOKEN, VIEWS, Shown, views_of
from specnb.live.steps import StepControls
from specnb.live.trail import Trail, in_short, move_of
from specnb.models import load_pair
from specnb.models.base import Pair
from specnb.record import Record, TokenRow
from specnb.sampling import Sampling
from specnb.session import Session, Stepper
from specnb.views.style import by_block

MODES = ("whole text", "step by step", "compare")
NAME_IT = "Which class? Write package:Class, or a method such as Chain(16, stop=AdaEDL(0.5))."
# What stands there still while the controls say something else already.
OLD = "<style>.snb-old{filter:grayscale(1) opacity(.6)}</style>"


class Workbench(w.VBox):
    """The control panel; see `workbench`."""

    def __init__(
        self,
        pair: Pair,
        items: Sequence[Any],
        method: Method,
        other: Method,
        sampling: Sampling,
        seed: int,
        shown: Sequence[str],
        mode: str,
    ):
        self._session, self.page = Session(pair), Page()
        self._n_moves = self._cursor = 0
        self._decoding: Decoding | None = None
        self._record: Record | None = None
        self.work = Work(self.page, self._words, self._failed)
        sees, offered = pair.target.sees_images, methods_for(pair)
        self.chooser = PictureChooser(items, self.page, self._refresh, sees)
        self.lacks = w.HTML(layout=WIDE)
        self.a = MethodControls(method, "method", offered)
        self.b = MethodControls(other, "against", offered)
        self.steps = StepControls(self.page, self._show_step)
        self._drawing = Drawing(sampling, seed)
        self.drawing = self._drawing.controls
        self.trail = Trail()
        auto = {"layout": {"width": "auto"}}
        self.mode = w.ToggleButtons(options=MODES, value=mode, style={"button_width": "auto"})
        self.toggles = {
            name: w.ToggleButton(value=name in shown, description=text, **auto)
            for name, text in BUTTONS.items()
        }
        self.arrows = {
            ("token", -1): w.Button(description="◀ token", **auto),
            ("token", 1): w.Button(description="token ▶", **auto),
            ("block", -1): w.Button(description="◀ block", **auto),
            ("block", 1): w.Button(description="block ▶", **auto),
        }
        path = {"continuous_update": False, "style": LABELLED, "layout": WIDE}
        draft = pair.draft.path if pair.draft else ""
        self.paths = {
            "target": w.Text(value=pair.target.path, description="target", **path),
            "draft": w.Text(value=draft, description="draft", **path),
        }
        self.load = w.Button(description="load models", **auto)
        self.reset = w.Button(description="reset", **auto)
        # No accordion: its header cannot be reached by keyboard, and is too pale.
        self.models = w.ToggleButton(description="models", **auto)
        fields = [*self.paths.values(), w.HBox([self.load])]
        self._model_rows = w.VBox(fields, layout={"display": "none"})
        self.short = w.HTML(layout=WIDE)  # the figures of what is shown, in a line
        self.views = {name: w.HTML(layout=WIDE) for name in ("step", "aligned", *VIEWS)}
        buttons = {"load": self.load, "models": self.models, "reset": self.reset}
        named(mode=self.mode, **buttons, **self.paths)
        self._toggle_row = w.HBox([w.Label("show"), *self.toggles.values()])
        self._arrow_row = w.HBox(list(self.arrows.values()))
        self._say_lacks()
        super().__init__(self._rows())
        self._first = {control: control.value for control in self._controls()}
        self.add_class("snb-workbench")
        self._observe()
        self._refresh()
        if self.page.error:  # the first state fails its cell, as any other line of code would
            raise self.page.error

    def _rows(self) -> list[w.DOMWidget]:
        """From top to bottom: what is asked, how it is drafted and drawn, what is seen."""
        first = w.VBox([self.a, self._drawing])
        mode = [self.mode, self._toggle_row, w.HBox([self.reset, self.trail.forget])]
        return [
            w.HTML(OLD, layout={"display": "none"}),
            w.HBox([self.chooser.picture, self.chooser], layout=WRAPPED),
            self.lacks,
            w.HBox([first, self.b, self.trail], layout=WRAPPED),
            w.HBox(mode, layout=WRAPPED | {"align_items": "center"}),
            self.steps,
            self.short,
            self.page.status,
            self.page.alert,
            *(self.views[name] for name in ("step", *views_of(RUN), "aligned", *views_of(BESIDE))),
            self._arrow_row,
            *(self.views[name] for name in views_of(TOKEN)),
            w.HBox([self.models]),
            self._model_rows,
        ]

    def _controls(self) -> list[Any]:
        """What a move may change, but the picture and its prompt."""
        methods = [*self.a.all(), *self.b.all()]
        return [*methods, *self.drawing.values(), self.mode, *self.toggles.values()]

    def _observe(self) -> None:
        for control in [*self.drawing.values(), self.mode, *self.a.all(), *self.b.all()]:
            control.observe(self.page.on(self._refresh), names="value")
        for toggle in self.toggles.values():
            toggle.observe(self.page.on(self._redraw), names="value")
        for (what, way), button in self.arrows.items():
            button.on_click(self.page.on(partial(self._point, what, way)))
        self.models.observe(lambda change: show(self._model_rows, change["new"]), names="value")
        self.load.on_click(self.page.on(self._load))
        self.reset.on_click(self.page.on(self._start_again))

    # ---- what is asked for

    @property
    def request(self) -> Request:
        """The prompt, its picture, and how tokens are drawn."""
        values = {name: control.value for name, control in self.drawing.items()}
        return Request(
            self.chooser.prompt.value,
            self.chooser.image,
            Sampling(values["temperature"], top_p=values["top_p"]),
            seed=values["seed"],
            max_new_tokens=values["new_tokens"],
        )

    @property
    def state(self) -> dict[str, Any]:
        """What the views were asked to show; every view carries it as `data-state`."""
        state: dict[str, Any] = {"move": self._n_moves, "mode": self.mode.value}
        state["method"] = str(self.a.value())
        if self.mode.value == "compare":
            state["against"] = str(self.b.value())
        state |= {name: round(control.value, 2) for name, control in self.drawing.items()}
        return state | {"picture": self.chooser.number}

    @property
    def _about_scene(self) -> str:
        """The prompt, where a model with eyes is asked about a scene of the picture world."""
        return self.chooser.about_scene if self._session.pair.target.sees_images else ""

    def _words(self) -> str:
        state = self.state
        words = [state["method"]]
        words += [f"against {state['against']}"] if "against" in state else []
        names = ("temperature", "top_p", "seed")
        return ", ".join([*words, *(f"{n.replace('_', '-')} {state[n]}" for n in names)])

    def _load(self) -> None:
        self.work.stop()
        self.page.say("loading …")
        pair = load_pair(*(text.value for text in self.paths.values()))
        self._session = Session(pair)
        with self.page.silent():
            for controls in (self.a, self.b):
                controls.offer(methods_for(pair))
        self.chooser.fit(pair.target.sees_images)
        self._say_lacks()
        self._refresh()

    def _say_lacks(self) -> None:
        self.lacks.value = "".join(map(line, lacks_of(self._session.pair)))
        show(self.lacks, bool(self.lacks.value))

    # ---- what is shown

    def _fit(self) -> None:
        """Shows the rows of the mode that is on, and hides the others."""
        whole, step, compare = (self.mode.value == mode for mode in MODES)
        on = {name: whole and toggle.value for name, toggle in self.toggles.items()}
        show(self.b, compare)
        show(self._toggle_row, whole)
        show(self.steps, step)
        show(self.short, not step)
        show(self.trail, not step)
        show(self.trail.forget, not step)
        show(self._arrow_row, any(on[name] for name in views_of(TOKEN)))
        show(self.views["step"], step)
        show(self.views["aligned"], compare)
        for name in VIEWS:
            show(self.views[name], on[name] or compare and SHOWN[name].needs == BESIDE)
        if not step:
            self.steps.pause()

    def _refresh(self) -> None:
        """Decodes what the controls say, and shows it."""
        asked = [self.a.value()] + [self.b.value()] * (self.mode.value == MODES[2])
        if any(method.open for method in asked):
            return self._wait()
        try:
            self.page.say("working …")
            self.work.start(self._timed(self._moved()))
        except Exception as error:  # whatever a drafter of the reader's own may raise
            self._failed(error)

    def _wait(self) -> None:
        """Nothing to decode yet: the reader has still to write which class."""
        self.work.stop()
        self._record = None
        self._fit()
        self.page.clear()
        self.page.say(NAME_IT)
        self._make_old()

    def _failed(self, error: Exception) -> None:
        self.page.fail(error)
        self._make_old()

    def _make_old(self) -> None:
        """What stands there belongs to the move before."""
        for view in (self.short, *self.views.values()):
            view.add_class("snb-old")

    def _start_again(self) -> None:
        """Every control as it was at first, and no moves."""
        with self.page.silent():
            for control, value in self._first.items():
                if value in getattr(control, "options", [value]):  # another pair may lack it
                    control.value = value
            self.chooser.reset()
        self.trail.moves = []
        self._refresh()

    def _redraw(self) -> None:
        """Shows the same run in the views that are on; one under way comes to them by itself."""
        self._fit()
        if self._record is not None:
            self.work.start(self._timed(self._views()))

    def _moved(self) -> Iterator[Progress]:
        self._fit()
        self._n_moves += 1
        self._record = None  # what fails now must not stand under the run before
        ways = (self._whole, self._stepwise, self._compared)
        yield from ways[MODES.index(self.mode.value)]()

    def _timed(self, steps: Iterator[Progress]) -> Iterator[Progress]:
        """The same steps; at their end the status line says what is shown."""
        start_s = time.perf_counter()
        yield from steps
        self.page.clear()
        self.page.say(f"{self._words()}, shown after {time.perf_counter() - start_s:.1f} s")

    def _show(self, name: str, shown: Any, **more: Any) -> None:
        text = shown if isinstance(shown, str) else shown._repr_html_()
        self.views[name].value = framed(text, self.state | more, name)
        self.views[name].remove_class("snb-old")

    def _show_short(self, records: Mapping[str, Record]) -> None:
        self.short.value = in_short(records)
        self.short.remove_class("snb-old")

    def _is_on(self, name: str) -> bool:
        return self.views[name].layout.display != "none"

    def _draw(self, needs: str, shown: Shown) -> None:
        """The views of a kind that are on."""
        more = {"so_far": True} if shown.so_far else {}
        for name in filter(self._is_on, views_of(needs)):
            self._show(name, SHOWN[name].draw(shown), **more)

    def _stepwise(self) -> Iterator[Progress]:
        request, drafter = self.request, self.a.value().drafter()
        stepper = Stepper(lambda: self._session.begin(request, drafter))
        self.steps.begin(stepper, self._session.pair.target)
        self._show_step()
        yield from ()

    def _whole(self) -> Iterator[Progress]:
        method = self.a.value()
        name, run = str(method), self._session.begin(self.request, method.drafter())

        def show_grown() -> None:
            for view in views_of(TOKEN):  # else those of the run before would stand there
                self.views[view].value = ""
            shown = Shown({name: run.record()}, so_far=True, prompt=self._about_scene)
            for needs in (RUN, BESIDE):
                self._draw(needs, shown)
            self._show_short(shown.records)

        yield from stepped([run], show_grown)
        self._decoding, self._record, self._cursor = run, run.record(), 0
        self._draw(RUN, Shown({name: self._record}))  # first: it is what one waits for
        self._note({name: self._record}, [method])
        yield from self._views(drawn=True)

    def _views(self, drawn: bool = False) -> Iterator[Progress]:
        """The run in the views that are on, those of the run alone unless they are `drawn`."""
        assert self._record is not None  # the run has just been made
        records = {str(self.a.value()): self._record}
        if not drawn:
            self._draw(RUN, Shown(records))
        self._show_pointed()
        if any(map(self._is_on, views_of(BESIDE))):
            yield from self._against_plain(records, self.request)

    def _note(self, records: Mapping[str, Record], methods: Sequence[Method]) -> None:
        """A move is done: its figures in a line, and among the moves so far."""
        self._show_short(records)
        request, pair = self.request, self._session.pair
        asked = (request.plain_key, request.seed, pair.target.path, pair.draft and pair.draft.path)
        runs = zip(methods, records.values(), strict=True)
        self.trail.note([move_of(one.name, one.short, asked, record) for one, record in runs])

    def _compared(self) -> Iterator[Progress]:
        request = self.request
        methods = [self.a.value(), self.b.value()]
        names = list(map(str, methods))
        if names[0] == names[1]:
            names[1] += ", again"
        runs = [self._session.begin(request, method.drafter()) for method in methods]
        title = f"one prompt, seed {request.seed}"

        def records() -> dict[str, Record]:
            return dict(zip(names, (run.record() for run in runs), strict=True))

        def show_grown() -> None:
            both = records()
            self._show("aligned", views.aligned(both, title=f"{title} (so far)"), so_far=True)
            self._show_short(both)
            self._draw(BESIDE, Shown(both, so_far=True, prompt=self._about_scene))

        yield from stepped(runs, show_grown)
        both = records()
        self._show("aligned", views.aligned(both, title=title))
        self._note(both, methods)
        yield from self._against_plain(both, request)

    def _against_plain(self, records: Mapping[str, Record], request: Request) -> Iterator[Progress]:
        """Figures and timeline beside those of the run without drafts."""
        has_draft_model = self._session.pair.draft is not None

        def shown(plain: Record, so_far: bool = False) -> None:
            prompt = self._about_scene
            self._draw(BESIDE, Shown(records, so_far, plain, has_draft_model, prompt=prompt))

        for run in self._session.plain_in_steps(request):
            show_grown = partial(self._show_plain_grown, shown, run)
            yield progress("plain decoding for comparison", [run], show_grown)
        shown(self._session.plain(request))

    @staticmethod
    def _show_plain_grown(shown: Callable[[Record, bool], None], plain: Decoding) -> None:
        shown(plain.record(), True)

    def _show_step(self) -> None:
        self._show("step", self.steps.shown())
        self.page.say(self.steps.place)

    # ---- one token among all

    def _show_pointed(self) -> None:
        """Tree and distributions at the token that the cursor stands on."""
        row = self._rows_in_order()[self._cursor]
        assert self._record is not None and self._decoding is not None  # it has rows
        place = f"token {self._cursor + 1} of {len(self._record.tokens)}"
        records = {str(self.a.value()): self._record}
        self._draw(TOKEN, Shown(records, decoding=self._decoding, row=row, place=place))

    def _rows_in_order(self) -> list[TokenRow]:
        assert self._record is not None  # what is pointed at was said
        return [row for _, rows in by_block(self._record) for row in rows]

    def _point(self, what: str, way: int) -> None:
        if self._record is None:
            return
        rows = self._rows_in_order()
        if what == "token":
            goal = self._cursor + way
        else:
            block = rows[self._cursor].block + way
            goal = next((i for i, row in enumerate(rows) if row.block == block), -1)
        if 0 <= goal < len(rows):
            self._cursor = goal
            self._show_pointed()
        self.page.say(f"token {self._cursor + 1} of {len(rows)}")

    # ---- copies

    def static(self) -> views.Html:
        """What the panel shows, without controls: for saved and exported copies.

        A run under way is finished first.
        """
        self.work.finish()
        shown = [view.value for view in self.views.values() if view.layout.display != "none"]
        old = "snb-old" in self.short._dom_classes  # then they are those of the move before
        seen = [] if self.page.error or old else shown
        if not old and self.mode.value != MODES[1]:
            seen.insert(0, self.short.value)
        asked = html.escape(self.chooser.prompt.value).replace("\n", "<br>")
        return views.Html(
            f'<div class="snb-static"><div><b>{html.escape(self._words())}</b></div>'
            f"<div><b>Prompt:</b> {asked}</div>{self.lacks.value}{self.chooser.picture.value}"
            f"{self.page.alert.value}{''.join(seen)}</div>"
        )


def workbench(
    pair: Pair,
    items: Sequence[Any],
    cfg: Any = None,
    *,
    method: str = "chain",
    against: str = PLAIN,
    views: Sequence[str] = ("tokens", "figures"),
    mode: str = MODES[0],
) -> Workbench:
    """The control panel on a pair, with the prompts of a notebook to choose from.

    `cfg` (a `RunConfig`) says where the controls stand at first, `method` which drafter drafts,
    `against` the one that it is compared with, by a name of the panel or by any text that
    `specnb.methods` reads; `views` which of VIEWS are on, by name or by the
    text of their button, `mode` one of MODES.
    A pair without a draft model starts with prompt lookup, and says so. Show the panel as a cell's
    last value; `static()` gives what it shows without the controls. Where a run takes long, it
    grows block by block while the kernel reads messages, and a new move stops it. ValueError where
    an argument is none of these, or where the first state cannot be decoded.
    """
    named_so = {text: name for name, text in BUTTONS.items()}
    views = [named_so.get(view, view) for view in views]
    for name in views:
        if name not in VIEWS:
            raise ValueError(f"views={name!r}: choose from {', '.join(BUTTONS.values())}")
    if mode not in MODES:
        raise ValueError(f"mode={mode!r}: choose one of {', '.join(MODES)}")
    if not items:
        raise ValueError("items=[]: give at least one item with prompt and image")
    names = [field for field in Method.__dataclass_fields__ if field not in ("name", "path")]
    given = {name: getattr(cfg, name) for name in names if hasattr(cfg, name)}
    own = getattr(cfg, "drafter", "")
    first = Method(OWN, path=own, **given) if own else _named(method, given)
    second = _named(against, given).fitted(pair)
    first = first.fitted(pair)
    if second == first and first.name != OWN:  # or both strips would be the same
        second = replace(second, name=PLAIN if first.name != PLAIN else methods_for(pair)[0])
    return Workbench(
        pair,
        items,
        first,
        second,
        cfg.sampling if cfg is not None else Sampling(),
        cfg.seed if cfg is not None else 0,
        views,
        mode,
    )


def _named(name: str, given: Mapping[str, Any]) -> Method:
    """A method of the panel by its name there; a text with brackets as one of the reader's own."""
    if "(" in name and name not in METHODS:
        return Method(OWN, path=name, **given)
    return Method(name, **given)
