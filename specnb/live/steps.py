"""A run in slow motion: buttons back and next, a token by hand, and what each phase shows."""

from __future__ import annotations

import asyncio
import html
import unicodedata
from collections.abc import Callable, Sequence

import ipywidgets as w

from specnb import views
from specnb.live.page import NARROW, PLAIN, WRAPPED, Page, named
from specnb.models.base import Model
from specnb.record import TokenRow
from specnb.session import Stepper
from specnb.views.style import counted, number, visible

LIKELY = 10  # tokens offered to go on with
PACE_S = 1.5  # between two steps that are played
PLAY, PAUSE = "play ▶▶", "pause ❚❚"
SAID = {
    "draft": "Draft: the drafter has guessed {n} tokens; the target has not looked yet.",
    "verify": "Verify: one call of the target scored all {n} at once. Each is held against a "
    "uniform number, in the order in which it was drawn.",
    "accept": "Accept: {kept} of {n} are kept; {final}.",
}
FINALS = {
    "correction": "a rejection is followed by a correction from the residual",
    "bonus": "all on the path held, so the target adds a bonus token of its own",
    "plain": "nothing was drafted, so the target draws its own token",
}


class StepControls(w.VBox):
    """The buttons; `changed` hears of every move. `stepper` is set by whoever owns them."""

    def __init__(self, page: Page, changed: Callable[[], None]):
        # Nothing is pressed or shown before `begin`.
        self.stepper: Stepper = None  # type: ignore[assignment]  # see the line above
        self._model: Model = None  # type: ignore[assignment]  # see the line above
        self._page, self._changed = page, changed
        auto = {"layout": {"width": "auto"}}
        self.back = w.Button(description="◀ back", **auto)
        self.next = w.Button(description="next ▶", **auto)
        self.play = w.Button(description=PLAY, **auto)
        self._playing: object | None = None  # this turn at it
        self.force = w.Button(description="force it", **auto)
        look = {"style": PLAIN, "layout": NARROW}
        self.likely = w.Dropdown(description="or go on with", **look)
        self.words = w.Text(description="or in own words", continuous_update=False, **look)
        named(
            back=self.back,
            next=self.next,
            play=self.play,
            force=self.force,
            likely=self.likely,
            words=self.words,
        )
        self.back.on_click(page.on(lambda: self._move(self.stepper.back)))
        self.next.on_click(page.on(lambda: self._move(self.stepper.next)))
        self.play.on_click(page.on(self._play))
        self.force.on_click(page.on(lambda: self._move(self._force)))
        by_hand = w.HBox([self.likely, self.words, self.force], layout=WRAPPED)
        super().__init__([w.HBox([self.back, self.next, self.play]), by_hand])

    def begin(self, stepper: Stepper, model: Model) -> None:
        """A new run, its first block drafted."""
        self.pause()
        stepper.next()
        self.stepper, self._model = stepper, model

    def pause(self) -> None:
        """Nothing goes on by itself any more."""
        self._playing, self.play.description = None, PLAY

    def _play(self) -> None:
        if self._playing is not None:
            return self.pause()
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # plain Python: nobody could press pause
            while not self.stepper.ended:
                self._move(self.stepper.next)
            return
        self._playing = turn = object()
        self.play.description = PAUSE
        self._go_on(loop, turn)

    def _go_on(self, loop: asyncio.AbstractEventLoop, turn: object) -> None:
        if self._playing is not turn:
            return
        try:
            self._step(self.stepper.next)
        except Exception as error:  # of a drafter of the reader's own, for one
            self.pause()
            return self._page.fail(error)
        if self.stepper.ended:
            return self.pause()
        loop.call_later(PACE_S, self._go_on, loop, turn)

    def _move(self, action: Callable[[], None]) -> None:
        self.pause()
        self._step(action)

    def _step(self, action: Callable[[], None]) -> None:
        self._page.clear()
        try:
            action()
        finally:  # words may have been forced in part
            self._changed()

    def _force(self) -> None:
        ids = [self.likely.value]
        if self.words.value:
            words = self._apart() + self.words.value
            ids = self._model.tokenizer.encode(words, add_special_tokens=False)
        for token_id in ids:
            self.stepper.force(token_id)
        self.words.value = ""

    def _apart(self) -> str:
        """The space between the text and the words typed after it, where one is missing."""
        first, text = self.words.value[0], self.stepper.text
        wide = unicodedata.east_asian_width(first) in "WF"  # such scripts leave none
        if not first.isalnum() or wide:
            return ""
        if not text.blocks:  # then as the target itself would begin
            likeliest = int(self.stepper.next_token_law().argmax())
            return " " if self._model.piece(likeliest).startswith(" ") else ""
        return "" if text.record().text[-1:].isspace() else " "

    def shown(self) -> str:
        """The text so far and the open block in its phase, as HTML; fits the buttons to it."""
        stepper, parts = self.stepper, []
        if stepper.text.blocks:
            record = stepper.text.record()
            title = f"the text after {counted(len(record.calls), 'target call')}"
            parts.append(views.tokens(record, title=title)._repr_html_())
        if stepper.block is not None:
            record = stepper.block.record()
            rows = [row for row in record.tokens if row.block == stepper.shown]
            parts.append(_words(stepper.phase, rows))
            drafted = max((row.depth for row in rows if row.node >= 0), default=0)
            levels = drafted if stepper.phase in ("draft", "verify") else None
            parts.append(views.tree(record, stepper.shown, levels)._repr_html_())
            if stepper.phase != "draft":
                parts.append(_looks(rows))
        elif not stepper.text.blocks:
            parts.append('<p style="line-height:1.4">Nothing is said yet. Press “next”.</p>')
        with self._page.silent():
            self.likely.options = [("–", None)] if stepper.ended else self._offers()
            self.likely.value = self.likely.options[0][1]
        self.next.disabled = self.play.disabled = self.force.disabled = stepper.ended
        self.back.disabled = stepper.shown == 0 and stepper.phase == "commit"
        return "".join(parts)

    @property
    def place(self) -> str:
        """Where the run stands, in words."""
        stepper = self.stepper
        end = f", the text has ended ({stepper.text.finish})" if stepper.ended else ""
        return f"block {stepper.shown + (stepper.block is not None)}, {stepper.phase}{end}"

    def _offers(self) -> list[tuple[str, int]]:
        """The target's likeliest tokens after the text that is shown."""
        law = self.stepper.next_token_law()
        best = law.topk(min(LIKELY, len(law)))
        return [
            (f"{visible(self._model.piece(i))}  ({p:.3f})", i)
            for p, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]


def _words(phase: str, rows: Sequence[TokenRow]) -> str:
    kept = sum(row.verdict == "accepted" for row in rows)
    final = next((FINALS[row.verdict] for row in rows if row.verdict in FINALS), "the text ends")
    n = sum(row.node >= 0 for row in rows)
    said = SAID[phase].format(n=n, kept=kept, final=final)
    return f'<p style="line-height:1.4;font-size:15px">{html.escape(said)}</p>'


def _looks(rows: Sequence[TokenRow]) -> str:
    """Every look of a block as a line: the two probabilities, their ratio, what decided."""
    names = ("token", "target", "draft", "accept probability", "uniform number", "verdict")
    lines = [
        (
            visible(row.text),
            number(row.target_prob),
            number(row.draft_prob),
            number(row.accept_prob),
            number(row.uniform),
            row.verdict,
        )
        for row in rows
        if row.accept_prob is not None
    ]
    if not lines:
        return ""
    pad = 'style="text-align:right;padding:2px 12px"'
    head = "".join(f'<th scope="col" {pad}>{name}</th>' for name in names)
    body = "".join(
        "<tr>" + "".join(f"<td {pad}>{html.escape(cell)}</td>" for cell in line) + "</tr>"
        for line in lines
    )
    return (
        f'<table style="border-collapse:collapse;line-height:1.4;font-size:14px"><thead><tr>{head}'
        f"</tr></thead><tbody>{body}</tbody></table>"
    )
