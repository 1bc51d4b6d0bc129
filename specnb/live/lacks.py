"""What a pair cannot do, in words, for those who look for it."""

from __future__ import annotations

from specnb.models.base import Pair

NO_EYES = "This target reads text only: no picture is shown to it."
NO_DRAFT = (
    "There is no draft model: drafts are looked up in the prompt. For the methods that draft with "
    "a model, load the pair with draft=..., or name one under “models”."
)
NO_RATIO = (
    "Memory-bound speed-up is a dash: it is computed from the draft model's size, and there is no "
    "draft model."
)


def lacks_of(pair: Pair) -> list[str]:
    """A line for each thing that the panel does not offer for this pair."""
    return [NO_EYES] * (not pair.target.sees_images) + [NO_DRAFT] * (pair.draft is None)
