"""What the control panel decodes: methods by name, whole runs, plain runs, a walk step by step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from specnb.decode import Decoding
from specnb.drafters import (
    Chain,
    Drafter,
    GumbelTopK,
    IIDTree,
    NoDraft,
    PromptLookup,
    StochasticBeam,
)
from specnb.methods import method
from specnb.models.base import Pair
from specnb.record import Record
from specnb.sampling import Sampling
from specnb.stopping import AdaEDL, MaxConfidence

MOST_NODES = 128  # of a tree that a slider may ask for: it is drawn, and drafted while one waits
OWN, LOOKUP = "own class", "prompt lookup"
# A method by its name in the panel, and the controls that it listens to.
METHODS = {
    "chain": ("draft_length",),
    "AdaEDL": ("draft_length", "threshold"),
    "MaxConfidence": ("draft_length", "threshold"),
    "RSD-C": ("branching",),
    "RSD-S": ("width", "draft_length"),
    "iid tree": ("branching",),
    LOOKUP: ("ngram", "draft_length"),
    OWN: ("path",),
}


def methods_for(pair: Pair) -> tuple[str, ...]:
    """The methods that can draft for a pair: without a draft model, those that need none."""
    return tuple(METHODS) if pair.draft else (LOOKUP, OWN)


def shape_of(branching: str) -> tuple[int, ...]:
    """The children per level of a text such as "3,2,1"."""
    parts = [part.strip() for part in branching.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ValueError(
            f"branching={branching!r}: give whole numbers >= 1 with commas, as in 3,2,1"
        )
    return tuple(map(int, parts))


@dataclass(frozen=True)
class Method:
    """A drafter as the panel's controls describe it."""

    name: str = "chain"
    draft_length: int = 5
    threshold: float = 0.5
    branching: str = "3,2,1"
    width: int = 3
    ngram: int = 3
    path: str = ""  # the text of a method, such as package:Class or Chain(5)

    def __post_init__(self):
        if self.name not in METHODS:
            raise ValueError(f"method={self.name!r}: choose one of {', '.join(METHODS)}")

    def __str__(self) -> str:
        if self.name == OWN:
            return self.path or OWN
        words = [f"{name.replace('_', ' ')} {getattr(self, name)}" for name in METHODS[self.name]]
        return ", ".join([self.name, *words])

    def fitted(self, pair: Pair) -> Method:
        """This method, or with the same settings the first one that can draft for the pair."""
        able = methods_for(pair)
        return self if self.name in able else replace(self, name=able[0])

    def drafter(self) -> Drafter:
        """The drafter; ValueError in words where the controls describe none."""
        if self.name == OWN:
            return method(self.path)
        if self.name in ("RSD-C", "iid tree"):
            shape = shape_of(self.branching)
            nodes = sum(math.prod(shape[:level]) for level in range(1, len(shape) + 1))
            if nodes > MOST_NODES:
                raise ValueError(
                    f"branching={self.branching!r}: that is {nodes} nodes per target call; "
                    f"give at most {MOST_NODES}"
                )
            return (GumbelTopK if self.name == "RSD-C" else IIDTree)(shape)
        if self.name == "RSD-S":
            return StochasticBeam(self.width, self.draft_length)
        if self.name == LOOKUP:
            return PromptLookup(self.ngram, self.draft_length)
        rules = {"AdaEDL": AdaEDL, "MaxConfidence": MaxConfidence}
        if self.name in rules:
            return Chain(self.draft_length, stop=rules[self.name](self.threshold))
        return Chain(self.draft_length)


@dataclass(frozen=True, eq=False)
class Question:
    """What is decoded, whatever the method."""

    prompt: str
    image: Any = None
    sampling: Sampling = Sampling()
    seed: int = 0
    max_new_tokens: int = 64

    @property
    def key(self) -> tuple:
        """Questions with the same key have the same plain text; a greedy one has no seed."""
        seed = self.seed if self.sampling.temperature else None
        return self.prompt, id(self.image), self.sampling, seed, self.max_new_tokens


class Studio:
    """Runs of a pair, and its plain runs, which are remembered."""

    def __init__(self, pair: Pair):
        self.pair = pair
        self._plain: dict[tuple, tuple[Question, Record]] = {}
        self._half_done: tuple[tuple, Decoding] | None = None

    def begin(self, question: Question, method: Method) -> Decoding:
        """A run before its first block.

        Trees are drawn at temperature 1 where the text is greedy: at 0 a tree would be a chain.
        """
        drafter = method.drafter()
        draft_sampling = question.sampling
        if question.sampling.temperature == 0 and getattr(drafter, "branches", False):
            draft_sampling = replace(question.sampling, temperature=1.0)
        return self._begin(question, self.pair, drafter, draft_sampling)

    def _begin(self, question: Question, pair: Pair, drafter, draft_sampling) -> Decoding:
        image = question.image if pair.target.sees_images else None
        return Decoding(
            pair,
            question.prompt,
            image,
            drafter=drafter,
            sampling=question.sampling,
            draft_sampling=draft_sampling,
            max_new_tokens=question.max_new_tokens,
            seed=question.seed,
        )

    def run(self, question: Question, method: Method) -> Decoding:
        """A finished run; decoded anew at every call."""
        decoding = self.begin(question, method)
        while decoding.finish is None:
            decoding.step()
        return decoding

    def plain(self, question: Question) -> Record:
        """The run without drafts, decoded once per prompt, picture, sampling and seed."""
        for _ in self.plain_in_steps(question):
            pass
        return self._plain[question.key][1]

    def plain_in_steps(self, question: Question) -> Iterator[Decoding]:
        """The same run before each of its blocks, unless it is known already.

        Given up half done, it goes on from there when it is asked for next.
        """
        if question.key in self._plain:
            return
        if self._half_done is not None and self._half_done[0] == question.key:
            run = self._half_done[1]
        else:
            run = self._begin(question, Pair(self.pair.target), NoDraft(), None)
        while run.finish is None:
            self._half_done = question.key, run
            yield run
            self._half_done = None  # a block that fails leaves nothing to go on from
            run.step()
        # The question stays with its run: a picture that is alive cannot lend out its id.
        self._plain[question.key] = question, run.record()


PHASES = ("draft", "verify", "accept", "commit")


class Walk:
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
        """The target's law of the token behind the text that is shown, [vocab]."""
        ahead = self.text.fork()
        return ahead.sampling.probs(ahead.target.forward().root)
