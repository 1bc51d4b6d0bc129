"""A second device that no machine needs to have: tensors on "the card", kept apart from the CPU's.

Values live in ordinary memory; what is simulated is where they are said to be, and the refusal to
mix two places in one operation.
"""

from __future__ import annotations

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

CARD = torch.device("cuda", 0)
CPU = torch.device("cpu")
TO_CPU = ("cpu", "tolist", "item", "__float__", "__int__", "__index__", "__bool__")


def on_card(tensor: torch.Tensor) -> torch.Tensor:
    """A copy of a tensor on the card."""
    found = tensor.clone()
    found._on_card = True
    return found


def is_on_card(tensor: torch.Tensor) -> bool:
    return getattr(tensor, "_on_card", False)


class FakeCard(TorchFunctionMode):
    """While it is entered, operations on two devices at once raise, as on a real machine."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = getattr(function, "__name__", "")
        tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)]
        given = any(map(is_on_card, tensors))
        if name == "__get__":  # .device, .dtype, .T, ...
            found = function(*args, **kwargs)
            if isinstance(found, torch.device):
                return CARD if given else found
            return tree_map(lambda x: self._marked(x, given), found)
        if name == "to" and tensors:
            goal = kwargs.pop("device", None)
            goal = next((x for x in args[1:] if isinstance(x, torch.device | str)), goal)
            args = tuple(x for x in args if not isinstance(x, torch.device | str))
            card = given if goal is None else torch.device(goal).type == CARD.type
            moved = function(*args, **kwargs) if len(args) > 1 or kwargs else args[0].clone()
            return self._marked(moved, card)
        sizes = [x for x in tensors if x.ndim]
        if any(map(is_on_card, sizes)) and not all(map(is_on_card, sizes)):
            raise RuntimeError(f"{name}: expected all tensors to be on the same device")
        goal = kwargs.get("device")
        if goal is not None and torch.device(goal).type == CARD.type:
            kwargs["device"], given = CPU, True
        found = function(*args, **kwargs)
        return tree_map(lambda x: self._marked(x, given and name not in TO_CPU), found)

    @staticmethod
    def _marked(value, card: bool):
        if isinstance(value, torch.Tensor):
            if is_on_card(value) and not card:
                value = value.clone()
            value._on_card = card
        return value
