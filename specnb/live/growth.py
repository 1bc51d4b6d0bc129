"""Runs that take long: they grow on the screen block by block, and the next move stops them.

There is no thread: the event loop that brought a move calls the rest of its run back, in slices,
and reads messages in between. Where no loop runs, as in plain Python, nobody can move a control
meanwhile, and a run is finished at once.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from specnb.decode import Decoding
from specnb.live.page import Page

PATIENCE_S = 0.5  # after which a run is shown half done, if as much is still to come
REDRAW_S = 1 / 8  # between two pictures of a run under way, at least
DRAWING = 0.2  # share of the time that pictures may take
SLICE_S = 0.03  # of work between two looks at the kernel's messages; one block at least
LOOK_S = 0.005  # of such a look: a message takes the loop a few turns


class Progress(NamedTuple):
    """Where a run under way stands."""

    what: str  # that is decoded, in words; empty where the reader asked for it
    left_s: float  # expected until it ends, 0 while nothing is known
    show: Callable[[], None] | None  # draws what is there so far; None where that is nothing


def progress(what: str, runs: Sequence[Decoding], show: Callable[[], None]) -> Progress:
    """Where runs stand: the tokens that may still come, at the pace of those that are there."""
    left_s = 0.0
    for run in runs:
        spent_s = sum(block.draft_s + block.verify_s for block in run.blocks)
        if run.finish is None and run.blocks:
            left_s += spent_s / run.n_emitted * (run.budget - run.n_emitted)
    return Progress(what, left_s, show if all(run.blocks for run in runs) else None)


def stepped(runs: Sequence[Decoding], show: Callable[[], None]) -> Iterator[Progress]:
    """Finishes runs, a block of each in turn; tells before each block where they stand."""
    while under_way := [run for run in runs if run.finish is None]:
        for run in under_way:
            yield progress("", runs, show)
            run.step()


def about(seconds: float) -> str:
    """A duration in round words."""
    return f"about {max(1, round(seconds))} s" if seconds < 100 else f"about {seconds / 60:.0f} min"


class Work:
    """One piece of work at a time, given as an iterator that does a block of it per step.

    What is quick is done at once. What is slow goes on between the kernel's messages; a new
    `start` stops it, at the end of its block. `words` say what the reader asked for; `fail` shows
    an exception that comes after `start` has returned, by default in the page.
    """

    def __init__(
        self,
        page: Page,
        words: Callable[[], str],
        fail: Callable[[Exception], None] | None = None,
    ):
        self._page, self._words, self._fail = page, words, fail or page.fail
        self._steps: Iterator[Progress] | None = None  # under way
        self._lock = threading.RLock()  # JupyterLab may bring a move on another thread
        self._began_s = self._redraw_s = 0.0  # on the clock of `time.perf_counter`
        self._slow = self._long = False  # the work before; this one so far

    @property
    def under_way(self) -> bool:
        """Whether there is more to come."""
        return self._steps is not None

    def start(self, steps: Iterator[Progress]) -> None:
        """Works until it is done or known to be slow. What fails until then is raised here,
        what fails later is shown in the page."""
        self._steps, loop = steps, _loop()
        with self._lock:
            self._began_s, self._redraw_s, self._long = time.perf_counter(), 0.0, False
            # After slow work not even the prompt is read before the next message: of several
            # moves in a row, the last one alone is worked for.
            while not (self._slow and loop):
                at = self._next(steps)
                if at is None:
                    return
                if loop and self._long:
                    self._draw(at)
                    break
            self._slow = True
            loop.call_later(LOOK_S, self._go_on, loop, steps)

    def stop(self) -> None:
        """The work under way ends with its block."""
        self._steps = None

    def finish(self) -> None:
        """Does the rest at once, if there is any."""
        steps, self._steps = self._steps, None  # and whoever is at it leaves it to us
        with self._lock:
            try:
                for _ in steps or ():
                    pass
            except Exception as error:
                self._fail(error)

    def _next(self, steps: Iterator[Progress]) -> Progress | None:
        """One step; None where there is none left, or where other work has taken its place."""
        if self._steps is not steps:
            return None
        try:
            at = next(steps, None)
        except Exception:
            if self._steps is not steps:
                return None  # nobody asks for it any more
            self.stop()
            raise
        if at is not None:
            waited_s = time.perf_counter() - self._began_s
            self._long |= min(waited_s, at.left_s) > PATIENCE_S
        elif self._steps is steps:
            self.stop()
            self._slow = self._long
        return at

    def _go_on(self, loop: asyncio.AbstractEventLoop, steps: Iterator[Progress]) -> None:
        until_s = time.perf_counter() + SLICE_S
        with self._lock:
            try:
                while time.perf_counter() < until_s:
                    at = self._next(steps)
                    if at is None:
                        return
                    if time.perf_counter() > self._redraw_s:
                        self._draw(at)
            except Exception as error:  # of a drafter of the reader's own, for one
                self._fail(error)
                return
        loop.call_later(LOOK_S, self._go_on, loop, steps)

    def _draw(self, at: Progress) -> None:
        if at.show is None:
            return
        began_s = time.perf_counter()
        at.show()
        self._page.clear()
        what = f"{at.what}, " if at.what else ""
        self._page.say(f"{self._words()}: {what}{about(at.left_s)} to go")
        now_s = time.perf_counter()
        self._redraw_s = now_s + max(REDRAW_S, (now_s - began_s) * (1 / DRAWING - 1))


def _loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
