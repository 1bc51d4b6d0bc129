"""Runs of a pair: whole, plain and remembered, or step by step, forwards and backwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from specnb.decode import Decoding, Request
from specnb.drafters import Drafter, NoDraft, draws_a_tree
from specnb.models.base import Pair
from specnb.record import Record


class Session:
    """Runs of a pair, and its plain runs, which are remembered."""

    def __init__(self, pair: Pair):
        self.pair = pair
        self._plain: dict[tuple, tuple[Request, Record]] = {}
        self._half_done: tuple[tuple, Decoding] | None = None

    def begin(self, request: Request, drafter: Drafter) -> Decoding:
        """A run before its first block; a target without eyes gets the prompt alone.

        Trees are drawn at temperature 1 where the text is greedy: at 0 a tree would be a chain.
        """
        if request.sampling.temperature == 0 and draws_a_tree(drafter):
            drawn = request.draft_sampling or replace(request.sampling, temperature=1.0)
            request = replace(request, draft_sampling=drawn)
        return self._begin(request, self.pair, drafter)

    def _begin(self, request: Request, pair: Pair, drafter: Drafter) -> Decoding:
        if not pair.target.sees_images:
            request = replace(request, image=None)
        return Decoding(pair, request, drafter)

    def run(self, request: Request, drafter: Drafter) -> Decoding:
        """A finished run; decoded anew at every call."""
        decoding = self.begin(request, drafter)
        while decoding.finish is None:
            decoding.step()
        return decoding

    def plain(self, request: Request) -> Record:
        """The run without drafts, decoded once per prompt, picture, sampling and seed."""
        for _ in self.plain_in_steps(request):
            pass
        return self._plain[request.plain_key][1]

    def plain_in_steps(self, request: Request) -> Iterator[Decoding]:
        """The same run before each of its blocks, unless it is known already.

        Given up half done, it goes on from there when it is asked for next.
        """
        if request.plain_key in self._plain:
            return
        if self._half_done is not None and self._half_done[0] == request.plain_key:
            run = self._half_done[1]
        else:
            run = self._begin(
                replace(request, draft_sampling=None), Pair(self.pair.target), NoDraft()
            )
        while run.finish is None:
            self._half_done = request.plain_key, run
            yield run
            self._half_done = None  # a block that fails leaves nothing to go on from
            run.step()
        # The request stays with its run: a picture that is alive cannot lend out its id.
        self._plain[request.plain_key] = request, run.record()


PHASES = ("draft", "verify", "accept", "commit")


class Stepper:
    """A run block by block, forwards and backwards; every block in four phases.

    `shown` blocks stand in the text. In the phases before "commit" the block after them is open
    for all to see, but not yet part of the text.
    """

    def __init__(self, begin: Callable[[], Decoding]):
        self._states = [begin()]  # before block 0, 1, ...
        self.shown, self.phase = 0, "commit"

    @property
    def text(self) -> Decoding:
        """The run up to the end of the text that is shown."""
        return self._states[self.shown]

    @property
    def block(self) -> Decoding | None:
        """The run with the open block; None where none is open."""
        return None if self.phase == "commit" else self._states[self.shown + 1]

    @property
    def ended(self) -> bool:
        """Whether the text shown cannot go on."""
        return self.phase == "commit" and self.text.finish is not None

    def next(self) -> None:
        """One phase on; at the end of the text nothing moves."""
        if self.ended:
            return
        if self.phase == "commit":
            if len(self._states) == self.shown + 1:
                ahead = self.text.fork()
                ahead.step()
                self._states.append(ahead)
            self.phase = "draft"
        else:
            self.phase = PHASES[PHASES.index(self.phase) + 1]
            self.shown += self.phase == "commit"

    def back(self) -> None:
        """One phase back; at the start nothing moves. A forced token goes back whole."""
        if self.phase == "commit":
            if self.shown == 0:
                return
            self.shown -= 1
            forced = self._states[self.shown + 1].blocks[-1].outcome.final == "forced"
            self.phase = "commit" if forced else "accept"
        elif self.phase == "draft":
            self.phase = "commit"
        else:
            self.phase = PHASES[PHASES.index(self.phase) - 1]

    def force(self, token_id: int) -> None:
        """The text that is shown goes on with this token; what had come after it is dropped."""
        ahead = self.text.fork()
        ahead.force(token_id)
        self._states = [*self._states[: self.shown + 1], ahead]
        self.shown, self.phase = self.shown + 1, "commit"

    def next_token_law(self):
        """The target's law of the token after the text that is shown, [vocab]."""
        ahead = self.text.fork()
        return ahead.sampling.probs(ahead.target.forward().root)
