"""What every live cell needs: errors in words, a status line, copies without controls."""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import ipywidgets as w

NARROW, WIDE, WRAPPED = (
    {"width": "330px"},
    {"width": "98%"},
    {"flex_flow": "row wrap", "align_items": "flex-start"},
)
PLAIN = {"description_width": "initial"}
LABELLED = {"description_width": "95px"}  # one edge for all labels of a column


def named(**controls: w.DOMWidget) -> None:
    """Gives controls a class by their name, for style sheets and tests."""
    for name, control in controls.items():
        control.add_class(f"snb-set-{name.replace('_', '-')}")


def show(widget: w.DOMWidget, visible: bool) -> None:
    """Shows or hides."""
    widget.layout.display = None if visible else "none"


def framed(text: str, state: Mapping[str, Any], name: str = "") -> str:
    """A view's HTML that carries what it was asked to show."""
    said = html.escape(json.dumps(state), quote=True)
    return f'<div data-view="{name}" data-state="{said}">{text}</div>'


def line(words: str) -> str:
    """Words in a line of their own, as HTML."""
    return f'<div style="line-height:1.4">{html.escape(words)}</div>'


class Page:
    """Status line and error box of a live cell, and callbacks that use them."""

    def __init__(self):
        self.status, self.alert = w.HTML(), w.HTML(layout=WIDE)
        self.error: Exception | None = None
        self._quiet = False

    def say(self, text: str) -> None:
        """Replaces the status line."""
        self.status.value = (
            f'<span role="status" style="line-height:1.4">{html.escape(text)}</span>'
        )

    def fail(self, error: Exception) -> None:
        """Shows an error in words; the next move takes it away."""
        self.error = error
        words = html.escape(str(error) or type(error).__name__)
        if not isinstance(error, ValueError):  # of ours, with words for the reader
            words = f"{type(error).__name__}: {words}"
        self.alert.value = (
            '<div role="alert" style="border:2px solid #b84f00;border-radius:6px;line-height:1.4;'
            'padding:8px 12px;margin:6px 0;white-space:pre-wrap;max-width:1100px">'
            f"<b>That does not work.</b> {words}</div>"
        )
        self.say("stopped; change a control to go on")

    def clear(self) -> None:
        """Takes an error away."""
        self.error, self.alert.value = None, ""

    def on(self, action: Callable[[], None]) -> Callable[[Any], None]:
        """A callback that shows its exception in the page, where one would else see nothing."""

        def callback(_) -> None:
            if self._quiet:
                return
            try:
                action()
            except Exception as error:  # of a drafter of the reader's own, for one
                self.fail(error)

        return callback

    @contextmanager
    def silent(self) -> Iterator[None]:
        """Several controls change, and what follows from it is computed once, afterwards."""
        before, self._quiet = self._quiet, True
        try:
            yield
        finally:
            self._quiet = before
