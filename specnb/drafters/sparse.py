"""Drafts of the target itself, over a part of its own cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from specnb.drafters.trees import TreeDrafting, _Chain
from specnb.knobs import CHOICE, knob
from specnb.models.base import Context, Pair
from specnb.models.selectors import OVER, Selector, SinkRecent, check_spending
from specnb.models.sparse import SparseContext
from specnb.sampling import Sampling


@dataclass(frozen=True)
class SparseSelf(_Chain):
    """The target's own weights draft, and read `budget` slots of the target's cache.

    As TriForce's middle level (2404.11912) and MagicDec (2408.11049) do: what makes a target slow
    on a long text is its cache, so a model that reads little of it is a drafter, and one that
    agrees well. It needs no draft model and no second prefill, as it looks into the cache that the
    target has; keys and values of its drafts are its own. `select` says which slots are read: one
    of SinkRecent, Chunks, SparQ, LastVerification, or a selector of one's own
    (`specnb.models.selectors.Selector`). over: whether the budget is spent among "all" slots, those
    of the "text", or those of the "images" alone; slots that are not among them are all read.

    draft_length, stop: as of `Chain`. verify: "recursive", or a function of one's own.
    """

    select: Selector = field(default_factory=SinkRecent)
    budget: int = knob(
        64, least=1, upto=1024, words="slots read, and the draft's own", unit="slots"
    )
    draft_length: int = knob(4, least=1, upto=16, words="tokens drafted per block", unit="tokens")
    over: str = knob(
        "all", kind=CHOICE, choices=OVER, words="where the budget is spent", kw_only=True
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_spending(self.select, self.budget, self.over)

    def parameter_ratio(self, pair: Pair) -> float:
        """1: a draft reads all of the target's weights; what it saves is cache."""
        return 1.0

    def start(
        self,
        pair: Pair,
        prompt: Any,
        image: Any,
        sampling: Sampling,
        target: Context | None = None,
    ) -> SparseDrafting:
        return SparseDrafting(self, pair, sampling, given(self, target))


def given(drafter: Any, target: Context | None) -> Context:
    """The target's context; ValueError where a drafter that needs it was started without it."""
    if target is None:
        raise ValueError(
            f"target=None: {type(drafter).__name__} looks into the target's cache; start it with "
            "specnb.drafters.start, which hands it over"
        )
    return target


class SparseDrafting(TreeDrafting):
    """Grows chains in a `SparseContext`, which follows the target after every block."""

    context: SparseContext

    def __init__(self, settings: SparseSelf, pair: Pair, sampling: Sampling, target: Context):
        context = target.sparse(settings.select, settings.budget, settings.over)
        super().__init__(settings, pair.target, context, sampling, pair.target.eos_ids)

    def commit(self, token_ids: Sequence[int], n_accepted: int) -> None:
        self.context.follow()  # the target has its own keys and values of what it keeps
        self.rule.update(self.depth_drafted, n_accepted, self.max_depth)
