"""Which words of an answer needed eyes: the classes that acceptance is held apart by."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from specnb.scenes.grammar import attribute_of

if TYPE_CHECKING:
    from specnb.record import Record, TokenRow

WORDS = ("function", "named", "seen")


def word_classes(runs: Iterable[Record], prompts: Iterable[str]) -> dict[str, list[bool]]:
    """Examined drafts by what stood there in the end: did the drafter get that word?

    "seen" words tell an attribute that neither prompt nor earlier text has named, "named" ones
    repeat it, all others are "function" words. A place where a draft was rejected belongs to the
    class of the word that the target put there. `prompts` has that of each run.
    """
    classes: dict[str, list[bool]] = {name: [] for name in WORDS}
    for run, prompt in zip(runs, prompts, strict=True):
        for row, name in classed(run, prompt):
            classes[name].append(row.verdict == "accepted")
    return {name: values for name, values in classes.items() if values}


def classed(run: Record, prompt: str) -> list[tuple[TokenRow, str]]:
    """The emitted tokens where a draft was examined, each with the class of its word."""
    examined = {(r.block, r.depth) for r in run.tokens if r.verdict in ("accepted", "rejected")}
    rows = zip(run.emitted, classes_along(run, prompt), strict=True)
    return [(row, name) for row, name in rows if (row.block, row.depth) in examined]


def classes_along(run: Record, prompt: str) -> list[str]:
    """The class of the word at every token of a text, also where no draft was examined."""
    earlier = set(prompt.lower().replace("?", " ").replace(".", " ").split())
    found = []
    for row in run.emitted:
        word = row.text.strip().lower()
        found.append("function")
        if attribute_of(word):
            found[-1] = "named" if word in earlier else "seen"
        earlier.add(word)
    return found
