"""The views of the panel, each with what it is drawn from: the one list of them.

To add one: a function `Shown -> Html | Picture | str` here, and its line in `SHOWN`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from specnb import views
from specnb.decode import Decoding
from specnb.live.lacks import NO_RATIO
from specnb.live.methods import PLAIN
from specnb.live.page import line
from specnb.live.pointed import draw_distributions
from specnb.record import Record, TokenRow

# What a view waits for: the run alone; also the run without drafts; the token pointed at.
RUN, BESIDE, TOKEN = "run", "beside plain decoding", "token"


@dataclass(frozen=True)
class Shown:
    """What a view may draw from."""

    records: Mapping[str, Record]  # by name; one, or two in *compare*
    so_far: bool = False  # the run is under way
    plain: Record | None = None  # the run without drafts, as far as it is there
    has_draft_model: bool = True
    prompt: str = ""  # of an answer about the picture world, whose words have classes
    decoding: Decoding | None = None  # this and the next: of the token pointed at
    row: TokenRow | None = None
    place: str = ""  # of the token among all, in words

    @property
    def record(self) -> Record:
        """The first run's."""
        return next(iter(self.records.values()))


def _tokens(shown: Shown) -> Any:
    return views.tokens(shown.record, title=next(iter(shown.records)) + " (so far)" * shown.so_far)


def _figures(shown: Shown) -> str:
    table = views.figures(shown.records, shown.plain, prompt=shown.prompt)._repr_html_()
    return table + ("" if shown.has_draft_model else line(NO_RATIO))


def _time(shown: Shown) -> Any:
    beside = {} if shown.plain is None else {PLAIN: shown.plain}
    return views.timeline({**shown.records, **beside})


def _tree(shown: Shown) -> Any:
    assert shown.row is not None
    return views.tree(shown.record, shown.row.block)


def _laws(shown: Shown) -> str:
    assert shown.row is not None and shown.decoding is not None
    return draw_distributions(shown.decoding, shown.row, shown.place)


class View(NamedTuple):
    draw: Callable[[Shown], Any]
    needs: str  # RUN, BESIDE or TOKEN; views of a kind stand together
    button: str = ""  # the button's text, where it is not the view's name


SHOWN = {
    "tokens": View(_tokens, RUN),
    "figures": View(_figures, BESIDE),
    "time": View(_time, BESIDE),
    "tree": View(_tree, TOKEN),
    "laws": View(_laws, TOKEN, button="distributions"),
}
VIEWS = tuple(SHOWN)
BUTTONS = {name: view.button or name for name, view in SHOWN.items()}


def views_of(*needs: str) -> list[str]:
    """The views that need one of these."""
    return [name for name, view in SHOWN.items() if view.needs in needs]
