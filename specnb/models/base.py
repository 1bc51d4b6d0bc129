"""What a model is to this package, and `Context`: one model on one prompt, owner of its cache."""

from __future__ import annotations

import sys
from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from specnb.tree import ancestor_mask, depths

if TYPE_CHECKING:
    from specnb.models.selectors import Selector
    from specnb.models.sparse import SparseContext

if TYPE_CHECKING or "jaxtyping" in sys.modules:  # not on Colab; the tests have it
    from jaxtyping import Bool, Float


class PromptTooLong(ValueError):
    """The prompt does not fit into a model's positions. Fatal for a target, not for a drafter."""


class Scores(NamedTuple):
    """Raw logits after the last committed token, and after each node of one forward call."""

    root: Float[Tensor, " vocab"]
    nodes: Float[Tensor, "nodes vocab"]


@runtime_checkable
class Model(Protocol):
    """A language model, with or without eyes. Batch is 1, by decision."""

    @property
    def vocab_size(self) -> int:
        """How many logits it gives."""

    @property
    def max_positions(self) -> int:
        """The most tokens that it reads."""

    @property
    def n_parameters(self) -> int:
        """Of the language model, tied weights once; vision tower and projector apart."""

    @property
    def eos_ids(self) -> Set[int]:
        """The tokens that end a text."""

    @property
    def tokenizer(self) -> Any:
        """transformers' tokenizer; None for a model without words."""

    @property
    def path(self) -> str:
        """Its folder or hub id."""

    @property
    def sees_images(self) -> bool:
        """Whether `open` takes pictures."""

    @property
    def dtype(self) -> torch.dtype:
        """The number format of the weights."""

    def chat(self, prompt: Any, image: int = 0) -> str:
        """The prompt inside the model's own template, with places for `image` pictures."""

    def encode(self, prompt: Any, image: Any = None) -> tuple[list[int], Any]:
        """Token ids of the templated prompt, and what the pictures become."""

    def open(self, prompt: Any, image: Any = None) -> Context:
        """A context that has read the prompt but its last token."""

    def piece(self, token_id: int) -> str:
        """The text of one token, with the space that it carries."""

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of an answer, without special tokens."""


@dataclass(frozen=True)
class Pair:
    """A target and a drafter that speak the same tokens."""

    target: Model
    draft: Model | None = None

    @property
    def parameter_ratio(self) -> float | None:
        """c = parameters of the drafter / parameters of the target's language model."""
        return self.draft.n_parameters / self.target.n_parameters if self.draft else None

    def describe(self) -> str:
        """Both models with their sizes, in words; what `generate` follows and we do not, too."""
        names = [("target", self.target), ("draft", self.draft)]
        return "\n".join(
            f"{role}: {model.path}, {model.n_parameters / 1e6:.2f} M parameters"
            f"{', sees images' if model.sees_images else ''}{_runtime(model)}"
            for role, model in names
            if model is not None
        )


def _runtime(model: Model) -> str:
    """Which runtime runs, how it was checked, and what it leaves out; toy models have none."""
    words = [getattr(model, "runtime", ""), getattr(model, "certificate", "")]
    if why := getattr(model, "only_chains", ""):
        words.append(f"chains only ({why})")
    left_out = getattr(model, "not_followed", ())
    if left_out:
        words.append(f"not followed from its generation config: {', '.join(left_out)}")
    return "".join(f", {word}" for word in words if word)


Fork = TypeVar("Fork", bound="Context")


class Context:
    """Committed text plus the pending nodes of the current block, over some cache.

    The cache holds one slot per fed token: `offset` image positions and the fed part of the
    committed text first, then pending nodes in the order in which they were fed. Subclasses say
    how to run tokens and how to keep slots; nobody else touches a cache.
    """

    def __init__(self, token_ids: Sequence[int], max_positions: int, offset: int = 0):
        self.committed = list(token_ids)
        self.offset = offset
        self.max_positions = max_positions
        self.fed = len(self.committed) - 1  # the subclass prefills all but the last token
        self.pending_tokens: list[int] = []
        self.pending_parents: list[int] = []
        # The first forward has a token to feed, and with it a root.
        self._root: Tensor = None  # type: ignore[assignment]  # see the line above
        self._nodes: list[Tensor] = []
        self.forwards = 0

    @property
    def length(self) -> int:
        """Tokens of text, prompt included, image positions not."""
        return len(self.committed)

    @property
    def room(self) -> int:
        """Positions left after the committed text."""
        return self.max_positions - self.offset - self.length

    def _run(self, tokens: list[int], positions: list[int], visible: Tensor | None) -> Tensor:
        """Feeds tokens into new slots and gives their logits [n, vocab].

        `visible` is [n, slots] (all slots, the new ones too) or None for plain causal order.
        """
        raise NotImplementedError

    def _keep(self, slots: list[int], n_before: int) -> None:
        """Forgets all slots but the first `n_before` and those listed, in this order."""
        raise NotImplementedError

    def forward(self, tokens: Sequence[int] = (), parents: Sequence[int] = ()) -> Scores:
        """Adds pending nodes and gives logits for the root and the new nodes.

        The first call after a commit also feeds what is committed but not yet fed, so one call
        scores a whole tree. Parents count nodes since the last commit, -1 = last committed token.
        """
        if len(tokens) != len(parents):
            raise ValueError(f"{len(tokens)} tokens with {len(parents)} parents: give one for each")
        first = len(self.pending_tokens)
        for offset, parent in enumerate(parents):
            if not -1 <= parent < first + offset:
                raise ValueError(f"parent {parent} of node {first + offset} is not an earlier node")
        unfed = self.committed[self.fed :]
        all_parents = self.pending_parents + list(parents)
        positions = [self.offset + self.fed + i for i in range(len(unfed))]
        last = self.offset + self.length - 1
        positions += [last + depth for depth in depths(all_parents)[first:]]
        if unfed or tokens:
            visible = self._visible(len(unfed), all_parents, first)
            logits = self._run([*unfed, *tokens], positions, visible)
            self.forwards += 1
            if unfed:
                self._root = logits[len(unfed) - 1]
            nodes = logits[len(unfed) :] if unfed else logits
        else:
            nodes = self._root.new_empty(0, self._root.shape[-1])
        self.fed = self.length
        self.pending_tokens += list(tokens)
        self.pending_parents = all_parents
        self._nodes += nodes.unbind()
        return Scores(self._root, nodes)

    def _visible(
        self, n_unfed: int, parents: list[int], first: int
    ) -> Bool[Tensor, "n slots"] | None:
        """Which slot may see which; None where that is plain causal order (a single chain)."""
        if parents == list(range(-1, len(parents) - 1)):
            return None
        n_prefix = self.offset + self.fed + n_unfed
        n_new = len(parents) - first
        mask = torch.zeros(n_unfed + n_new, n_prefix + len(parents), dtype=torch.bool)
        for i in range(n_unfed):
            mask[i, : self.offset + self.fed + i + 1] = True
        mask[n_unfed:, :n_prefix] = True
        mask[n_unfed:, n_prefix:] = ancestor_mask(parents)[first:]
        return mask

    def commit(self, token_ids: Sequence[int]) -> None:
        """The text goes on with these tokens.

        Pending nodes on that path stay in the cache, all others are forgotten; tokens that were
        never fed are fed with the next forward.
        """
        path, node = [], -1
        for token in token_ids:
            children = (
                child
                for child, parent in enumerate(self.pending_parents)
                if parent == node and self.pending_tokens[child] == token
            )
            node = next(children, None)
            if node is None:
                break
            path.append(node)
        n_before = self.offset + self.fed
        if self.pending_tokens:
            self._keep([n_before + node for node in path], n_before)
        if path and len(path) == len(token_ids):
            self._root = self._nodes[path[-1]]  # everything is fed: these logits are the root's
        self.committed += [int(token) for token in token_ids]
        self.fed += len(path)
        self.pending_tokens, self.pending_parents, self._nodes = [], [], []

    @property
    def image_slots(self) -> Sequence[int]:
        """The slots of image positions."""
        return ()

    def sparse(self, select: Selector, budget: int, over: str = "all") -> SparseContext:
        """A context of the same model that reads `budget` slots of this one's cache, chosen by
        `select`, and writes none. ValueError where this runtime cannot lend them.

        `over` says among which slots the budget is spent: "all", those of the "text", or those of
        the "images"; the others are read in any case.
        """
        raise ValueError(
            f"drafter: {type(self).__name__} lends no slots of its cache; load the target with "
            "runtime='lean' (Llama-type models) or 'transformers'"
        )

    def copy(self) -> Context:
        """A fork: both go on independently, the prompt is not read again."""
        raise NotImplementedError

    def __deepcopy__(self, memo: dict[int, Any]) -> Context:
        return self.copy()  # a fork shares the model, and cache tensors that nobody writes to

    def _fork(self, other: Fork) -> Fork:
        """Copies this class's bookkeeping to `other`."""
        other.committed = list(self.committed)
        other.pending_tokens = list(self.pending_tokens)
        other.pending_parents = list(self.pending_parents)
        other._nodes = list(self._nodes)
        other._root, other.fed, other.offset = self._root, self.fed, self.offset
        other.max_positions, other.forwards = self.max_positions, self.forwards
        return other
