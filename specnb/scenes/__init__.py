"""The picture world: scenes, pictures, texts, and reading texts back into facts."""

from specnb.scenes.grammar import attribute_of, parse, score, statements
from specnb.scenes.long import LONG_TASKS, LongExample, long_examples
from specnb.scenes.tasks import TASKS, Example, example, examples, is_right
from specnb.scenes.world import Scene, Thing, blank, random_scene, render

__all__ = [
    "LONG_TASKS",
    "TASKS",
    "Example",
    "LongExample",
    "Scene",
    "Thing",
    "attribute_of",
    "blank",
    "example",
    "examples",
    "is_right",
    "long_examples",
    "parse",
    "random_scene",
    "render",
    "score",
    "statements",
]
