"""The control panel of the notebooks: picture, prompt and method in, what decoding does out."""

from __future__ import annotations

import html
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import ipywidgets as w

from specnb import views
from specnb.laws import laws_of
from specnb.live.methods import MethodControls
from specnb.live.page import (
    LABELLED,
    NARROW,
    WIDE,
    WRAPPED,
    Page,
    Static,
    framed,
    named,
    show,
)
from specnb.live.pictures import PictureChooser
from specnb.live.steps import StepControls
from specnb.models import load_pair
from specnb.models.base import Pair
from specnb.record import TokenRow
from specnb.sampling import Sampling
from specnb.studio import OWN, Method, Question, Studio, Walk
from specnb.views.look import by_block, visible

VIEWS = ("tokens", "figures", "time", "tree", "laws")
MODES = ("whole text", "step by step", "compare")


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
        self._studio, self.page = Studio(pair), Page()
        self._n_moves = self._cursor = 0
        self._decoding = self._record = None
        self.chooser = PictureChooser(items, self.page, self._refresh)
        self.a, self.b = MethodControls(method, "method"), MethodControls(other, "against")
        self.steps = StepControls(self.page, self._show_step)
        late = {"continuous_update": False, "style": LABELLED, "layout": NARROW}
        self.drawing = {
            "temperature": w.FloatSlider(
                value=sampling.temperature,
                min=0,
                max=max(2.0, sampling.temperature),
                step=0.1,
                description="temperature",
                **late,
            ),
            "top_p": w.FloatSlider(
                value=sampling.top_p,
                min=min(0.05, sampling.top_p),
                max=1,
                step=0.05,
                description="top-p",
                **late,
            ),
            "new_tokens": w.IntSlider(64, min=8, max=128, step=8, description="new tokens", **late),
            "seed": w.BoundedIntText(seed, min=0, max=10**9, description="seed", **late),
        }
        auto = {"layout": {"width": "auto"}}
        self.mode = w.ToggleButtons(options=MODES, value=mode, style={"button_width": "auto"})
        self.toggles = {
            name: w.ToggleButton(value=name in shown, description=name, **auto) for name in VIEWS
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
        # No accordion: its header cannot be reached by keyboard, and is too pale.
        self.models = w.ToggleButton(description="models", **auto)
        fields = [*self.paths.values(), w.HBox([self.load])]
        self._model_rows = w.VBox(fields, layout={"display": "none"})
        self.views = {name: w.HTML(layout=WIDE) for name in ("step", "aligned", *VIEWS)}
        named(mode=self.mode, load=self.load, models=self.models, **self.drawing, **self.paths)
        self._toggle_row = w.HBox([w.Label("show"), *self.toggles.values()])
        self._arrow_row = w.HBox(list(self.arrows.values()))
        super().__init__(self._rows())
        self.add_class("snb-workbench")
        self._observe()
        self._refresh()
        if self.page.error:  # the first state fails its cell, as any other line of code would
            raise self.page.error

    def _rows(self) -> list[w.DOMWidget]:
        """From top to bottom: what is asked, how it is drafted and drawn, what is seen."""
        drawing = w.VBox(list(self.drawing.values()))
        return [
            w.HBox([self.chooser.picture, self.chooser], layout=WRAPPED),
            w.HBox([self.a, self.b, drawing], layout=WRAPPED),
            w.HBox([self.mode, self._toggle_row], layout=WRAPPED | {"align_items": "center"}),
            self.steps,
            self.page.status,
            self.page.alert,
            *(self.views[name] for name in ("step", "tokens", "aligned", "figures", "time")),
            self._arrow_row,
            *(self.views[name] for name in ("tree", "laws")),
            w.HBox([self.models]),
            self._model_rows,
        ]

    def _observe(self) -> None:
        for control in [*self.drawing.values(), self.mode, *self.a.all(), *self.b.all()]:
            control.observe(self.page.on(self._refresh), names="value")
        for toggle in self.toggles.values():
            toggle.observe(self.page.on(self._redraw), names="value")
        for (what, way), button in self.arrows.items():
            button.on_click(self.page.on(lambda what=what, way=way: self._point(what, way)))
        self.models.observe(lambda change: show(self._model_rows, change["new"]), names="value")
        self.load.on_click(self.page.on(self._load))

    # ---- what is asked for

    @property
    def question(self) -> Question:
        """The prompt, its picture, and how tokens are drawn."""
        values = {name: control.value for name, control in self.drawing.items()}
        return Question(
            self.chooser.prompt.value,
            self.chooser.image,
            Sampling(values["temperature"], top_p=values["top_p"]),
            values["seed"],
            values["new_tokens"],
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

    def _words(self) -> str:
        state = self.state
        words = [state["method"]]
        words += [f"against {state['against']}"] if "against" in state else []
        names = ("temperature", "top_p", "seed")
        return ", ".join([*words, *(f"{n.replace('_', '-')} {state[n]}" for n in names)])

    def _load(self) -> None:
        self.page.say("loading …")
        pair = load_pair(*(text.value for text in self.paths.values()))
        self._studio = Studio(pair)
        self._refresh()

    # ---- what is shown

    def _fit(self) -> None:
        """Shows the rows of the mode that is on, and hides the others."""
        whole, step, compare = (self.mode.value == mode for mode in MODES)
        on = {name: toggle.value for name, toggle in self.toggles.items()}
        show(self.b, compare)
        show(self._toggle_row, whole)
        show(self.steps, step)
        show(self._arrow_row, whole and (on["tree"] or on["laws"]))
        show(self.views["step"], step)
        show(self.views["aligned"], compare)
        for name in VIEWS:
            show(self.views[name], whole and on[name] or compare and name in ("figures", "time"))

    def _refresh(self) -> None:
        """Decodes what the controls say, and shows it."""
        try:
            self._fit()
            self._n_moves += 1
            self.page.say("working …")
            start_s = time.perf_counter()
            if self.mode.value == "step by step":
                question, method = self.question, self.a.value()
                walk = Walk(lambda: self._studio.begin(question, method))
                self.steps.begin(walk, self._studio.pair.target)
                self._show_step()
            elif self.mode.value == "compare":
                self._show_compared()
            else:
                self._record = None  # what fails now must not stand under the run before
                self._decoding = self._studio.run(self.question, self.a.value())
                self._record, self._cursor = self._decoding.record(), 0
                self._show_whole()
            self.page.clear()
            self.page.say(f"{self._words()}, shown after {time.perf_counter() - start_s:.1f} s")
        except Exception as error:  # whatever a drafter of the reader's own may raise
            self.page.fail(error)

    def _redraw(self) -> None:
        """Shows the same run in the views that are on, if there is one."""
        self._fit()
        if self._record is not None:
            self._show_whole()

    def _show(self, name: str, shown: Any) -> None:
        text = shown if isinstance(shown, str) else shown._repr_html_()
        self.views[name].value = framed(text, self.state, name)

    def _show_whole(self) -> None:
        on = {name for name, toggle in self.toggles.items() if toggle.value}
        name, record = str(self.a.value()), self._record
        if "tokens" in on:  # first: this is what one waits for
            self._show("tokens", views.tokens(record, title=name))
        if "figures" in on:
            self._show("figures", views.figures({name: record}, self._studio.plain(self.question)))
        if "time" in on:
            plain = self._studio.plain(self.question)
            self._show("time", views.lanes({name: record, "plain decoding": plain}))
        self._show_pointed()

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
        self._show("time", views.lanes({**both, "plain decoding": plain}))

    def _show_step(self) -> None:
        self._show("step", self.steps.shown())
        self.page.say(self.steps.place)

    # ---- one token among all

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
        names = self._studio.pair.target.piece
        picture = views.laws(
            laws.target, laws.draft, names, left=laws.left, token=row.token_id, title=title
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

    def static(self) -> Static:
        """What the panel shows just now, without controls: for saved and exported copies."""
        shown = [view.value for view in self.views.values() if view.layout.display != "none"]
        seen = [] if self.page.error else shown  # else they would be those of the move before
        asked = html.escape(self.chooser.prompt.value).replace("\n", "<br>")
        return Static(
            f'<div class="snb-static"><div><b>{html.escape(self._words())}</b></div>'
            f"<div><b>Prompt:</b> {asked}</div>{self.chooser.picture.value}"
            f"{self.page.alert.value}{''.join(seen)}</div>"
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
        items,
        first,
        second,
        cfg.sampling if cfg is not None else Sampling(),
        cfg.seed if cfg is not None else 0,
        views,
        mode,
    )
