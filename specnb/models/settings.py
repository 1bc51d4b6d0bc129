"""The number format of models that are loaded without one, for this process."""

from __future__ import annotations

_dtype = {"cpu": "float32", "gpu": "auto"}


def dtype(device: str = "cpu") -> str:
    """The number format of models that are loaded on a device with dtype="auto".

    On a CPU float32 until `specnb.setup` has found a faster one: only there two ways of decoding
    give equal greedy tokens whatever the kernels round. On a GPU "auto", which is as saved.
    """
    return _dtype["cpu" if device == "cpu" else "gpu"]


def set_dtype(name: str, device: str = "cpu") -> None:
    """What `dtype` gives from now on."""
    _dtype["cpu" if device == "cpu" else "gpu"] = name


def words(dtype: str) -> str:
    """What runs on this CPU where models are loaded in a number format, as it is printed."""
    if dtype != "float16":
        return dtype
    from specnb.models.llama import has_halves

    if has_halves():
        return "fp16 weights with float32 activations"
    return "float32 (no FBGEMM here for fp16 weights)"
