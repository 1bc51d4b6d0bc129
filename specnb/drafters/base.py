"""What a drafter and its drafting are, and the drafter that never drafts."""

from __future__ import annotations

import inspect
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from specnb.models.base import Context, Model, Pair
from specnb.sampling import Draws, NoNumbers, Sampling
from specnb.tree import DraftTree, empty_tree


@runtime_checkable
class Drafting(Protocol):
    """A drafter at work on one prompt; owns its contexts and all of its state."""

    @property
    def state(self) -> Hashable:
        """With the committed text, all that later proposals depend on."""

    def propose(self, draws: Draws, max_depth: int) -> DraftTree:
        """A tree of at most `max_depth` levels; an empty one makes a plain target step."""

    def commit(self, token_ids: Sequence[int], n_accepted: int) -> None:
        """The text goes on with these tokens, the first `n_accepted` of them drafted."""


@runtime_checkable
class Drafter(Protocol):
    """Frozen settings of a drafter."""

    def start(self, pair: Pair, prompt: Any, image: Any, sampling: Sampling) -> Drafting:
        """The drafting of one run. `sampling` is the law that drafts are drawn from.

        It runs `pair.draft`; of `pair.target` it may ask how tokens are made, but not run it. A
        drafter whose `start` has a fifth parameter, `target`, is given the target's `Context` by
        that name: to read, never to feed or to commit.
        """


def start(
    drafter: Drafter,
    pair: Pair,
    prompt: Any,
    image: Any,
    sampling: Sampling,
    target: Context | None,
) -> Drafting:
    """`drafter.start`, which is given the target's context where it asks for it."""
    if "target" not in inspect.signature(drafter.start).parameters:
        return drafter.start(pair, prompt, image, sampling)
    asked: Any = drafter.start
    drafting: Drafting = asked(pair, prompt, image, sampling, target=target)
    return drafting


def parameter_ratio(drafter: Drafter, pair: Pair) -> float | None:
    """c of the memory-bound speed-up: the parameters that a draft forward reads / the target's.

    That of the pair's draft model, unless the drafter itself says which; None: there is no one c.
    """
    own: Any = getattr(drafter, "parameter_ratio", None)
    ratio: float | None = pair.parameter_ratio if own is None else own(pair)
    return ratio


def draws_a_tree(drafter: Any) -> bool:
    """Whether the target is offered several draws for one place, which are one at temperature 0.

    A drafter whose nodes may get two children is taken for one, unless it says itself.
    """
    return bool(getattr(drafter, "draws_a_tree", getattr(drafter, "branches", False)))


def opened(draft: Model, prompt: Any, image: Any, target: Context | None) -> Context:
    """The draft model's context on a prompt; without the picture where it has no eyes.

    A draft model whose `open` has a parameter `features` is given those of the picture that the
    target's context keeps, so that a picture is encoded once.
    """
    if image is None or not draft.sees_images:
        return draft.open(prompt)
    features = getattr(target, "features", None)
    if features is None or "features" not in inspect.signature(draft.open).parameters:
        return draft.open(prompt, image)
    asked: Any = draft.open
    context: Context = asked(prompt, image, features=features)
    return context


@dataclass(frozen=True)
class NoDraft:
    """Proposes nothing: with it, the speculative loop is plain autoregressive decoding."""

    def start(self, pair: Pair, prompt: Any, image: Any, sampling: Sampling) -> NoDraft:
        return self

    @property
    def state(self) -> tuple[()]:
        return ()

    def propose(self, draws: Draws, max_depth: int) -> DraftTree:
        return empty_tree(0, "length")

    def commit(self, token_ids: Sequence[int], n_accepted: int) -> None:
        pass


def law_of(context: Context, sampling: Sampling, logits: Tensor) -> Tensor:
    """`sampling.probs(logits)`, in the computer's own memory; where the logits are NaN or infinite,
    the error names model and dtype.

    What draws, verifies and records looks at single numbers, for each of which an accelerator would
    have to be waited for; so all rows are fetched at once.
    """
    try:
        return sampling.probs(logits).cpu()
    except NoNumbers as error:
        model = getattr(context, "model", None)
        dtype = str(getattr(model, "dtype", logits.dtype)).removeprefix("torch.")
        raise NoNumbers(f"{getattr(model, 'path', 'model')} in {dtype}: {error}") from None


def one_hot(token: int, like: Tensor) -> Tensor:
    """The law of a token that was bound to come."""
    return torch.zeros_like(like).index_fill(-1, torch.tensor(token, device=like.device), 1.0)


def parts_of(method: Any) -> Iterator[Any]:
    """A method, and all that its fields hold: rules, other drafters, and what these hold."""
    yield method
    if is_dataclass(method) and not isinstance(method, type):
        for one in fields(method):
            yield from parts_of(getattr(method, one.name))


def not_lossless(method: Any) -> str:
    """Why a method's output is not the target's, in words; "" for all but those of `specnb.lossy`.

    A drafter says it, its verification rule, or another drafter or rule that it holds.
    """
    found = (getattr(part, "not_lossless", "") for part in parts_of(method))
    return str(next(filter(None, found), ""))
