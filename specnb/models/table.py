"""Toy language models given by a table of logits: small enough to enumerate, exact in float64."""

from __future__ import annotations

import copy
import sys
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from specnb.models.base import Context, PromptTooLong
from specnb.models.selectors import Selector, need_places
from specnb.models.sparse import SparseContext, chosen_by_place
from specnb.models.vocabulary import kept_ids

if TYPE_CHECKING or "jaxtyping" in sys.modules:  # not on Colab; the tests have it
    from jaxtyping import Float


class TableModel:
    """The next token's logits depend on the last `order` tokens: `logits[vocab ** order, vocab]`.

    A context shorter than `order` is read as if it began with zeros.
    """

    sees_images, dtype = False, torch.float64
    tokenizer = None
    kept: tuple[int, ...] | None = None  # see `trimmed`
    narrow: TableModel | None = None
    columns: Tensor | None = None  # of the logits that it gives, where it is the narrow one

    def __init__(
        self,
        logits: Float[Tensor, "contexts vocab"],
        eos_ids: Collection[int] = (),
        max_positions: int = 1 << 20,
    ):
        contexts, self.vocab_size = logits.shape
        self.order = 0
        while self.vocab_size**self.order < contexts:
            self.order += 1
        if self.vocab_size**self.order != contexts:
            raise ValueError(
                f"logits of shape {tuple(logits.shape)}: the first size must be a power of the last"
            )
        self.logits = logits.double()
        self.eos_ids, self.max_positions = frozenset(eos_ids), max_positions
        self.n_parameters, self.path = logits.numel(), "table"

    @staticmethod
    def random(vocab_size: int, order: int = 1, seed: int = 0, spread: float = 1.5) -> TableModel:
        """A random law; `spread` is the standard deviation of its logits."""
        generator = torch.Generator().manual_seed(seed)
        shape = (vocab_size**order, vocab_size)
        return TableModel(spread * torch.randn(shape, generator=generator, dtype=torch.float64))

    def trimmed(self, k: int, ids: Sequence[int] | None = None) -> TableModel:
        """The same model as a drafter that can say `k` of its ids only: the first of `ids`.

        It has `kept`, those ids, and `narrow`, the model whose logits are over them alone.
        """
        kept = kept_ids(self.path, k, ids, self.kept or range(self.vocab_size))
        other, narrow = copy.copy(self), copy.copy(self)
        said = torch.zeros(self.vocab_size, dtype=torch.bool)
        said[list(kept)] = True
        other.logits = self.logits.masked_fill(~said, -torch.inf)
        other.n_parameters = len(self.logits) * len(kept)
        narrow.columns, narrow.vocab_size = torch.tensor(kept), len(kept)
        other.kept, other.narrow = kept, narrow
        return other

    def next_logits(self, tokens: Sequence[int]) -> Float[Tensor, " vocab"]:
        """The logits after a text."""
        row = 0
        for token in ([0] * self.order + list(tokens))[len(tokens) :]:
            row = row * self.logits.shape[1] + token
        found = self.logits[row]
        return found if self.columns is None else found[self.columns]

    def chat(self, prompt: Any, image: int = 0) -> Any:
        return prompt

    def encode(self, prompt: Any, image: Any = None) -> tuple[list[int], None]:
        return list(prompt), None

    def piece(self, token_id: int) -> str:
        return f"{token_id} "

    def decode(self, token_ids: Sequence[int]) -> str:
        return " ".join(map(str, token_ids))

    def open(self, prompt: Sequence[int], image: Any = None) -> TableContext:
        """A context on a prompt of token ids."""
        if image is not None:
            raise ValueError("image: a table model sees no images, leave it out")
        n_ids = self.logits.shape[1]  # of the whole vocabulary, though it is the narrow one
        if not prompt or not all(0 <= token < n_ids for token in prompt):
            raise ValueError(f"prompt={prompt!r}: give ids in 0..{n_ids - 1}")
        if len(prompt) > self.max_positions:
            raise PromptTooLong(
                f"prompt: it has {len(prompt)} tokens, the table model reads at most "
                f"{self.max_positions}; shorten it"
            )
        return TableContext(self, prompt)


class TableContext(Context):
    """The cache is the list of fed tokens; a token's logits come from the slots that it sees."""

    def __init__(self, model: TableModel, prompt: Sequence[int]):
        super().__init__(prompt, model.max_positions)
        self.model = model
        self.slots = list(prompt[:-1])

    def _run(self, tokens: list[int], positions: list[int], visible: Tensor | None) -> Tensor:
        first = len(self.slots)
        self.slots += tokens
        rows = []
        for index in range(len(tokens)):
            if visible is None:
                seen = self.slots[: first + index + 1]
            else:
                seen = [self.slots[i] for i in visible[index].nonzero().flatten().tolist()]
            rows.append(self.model.next_logits(seen))
        return torch.stack(rows)

    def _keep(self, slots: list[int], n_before: int) -> None:
        self.slots = self.slots[:n_before] + [self.slots[slot] for slot in slots]

    def sparse(self, select: Selector, budget: int, over: str = "all") -> TableSparse:
        need_places(select, "a table model has none")
        return TableSparse(self, select, budget, over)

    def copy(self) -> TableContext:
        other = self._fork(copy.copy(self))
        other.slots = list(self.slots)
        return other


class TableSparse(SparseContext):
    """A table model that reads chosen tokens of a text as if they stood side by side."""

    target: TableContext

    def _forget(self) -> None:
        self.slots: list[int] = []
        self.read = [self.target.slots[slot] for slot in chosen_by_place(self)]

    def _run(self, tokens: list[int], positions: list[int], visible: Tensor | None) -> Tensor:
        first = len(self.slots)
        self.slots += tokens
        rows = []
        for index in range(len(tokens)):
            own = self.slots[: first + index + 1]
            if visible is not None:
                seen = visible[index, self.base :].nonzero().flatten().tolist()
                own = [self.slots[i] for i in seen]
            rows.append(self.target.model.next_logits([*self.read, *own]))
        return torch.stack(rows)

    def _keep(self, slots: list[int], n_before: int) -> None:
        kept = [self.slots[slot - self.base] for slot in slots]
        self.slots = self.slots[: n_before - self.base] + kept

    def copy(self) -> TableSparse:
        other = super().copy()
        other.slots = list(self.slots)
        return other
