"""One contract for all models, and the bookkeeping that every kind of model shares."""

from specnb.models.base import Context, Model, Pair, Scores
from specnb.models.table import TableModel


def load_pair(
    target: str = "",
    draft: str = "",
    device: str = "auto",
    dtype: str = "auto",
    runtime: str = "auto",
) -> Pair:
    """A target and its drafter; with no names the embedded LLaVA and its language-only drafter.

    `target` and `draft` are local folders or hub ids with safetensors weights. `device` is
    "auto" (CUDA where there is one), "cpu" or "cuda"; `dtype` is "auto" (as saved on a GPU; on a
    CPU what `specnb.setup` has found fastest, float32 before it), "float32", "bfloat16" or
    "float16". `runtime` is "auto" (the lean one of
    `specnb.models.llama` wherever it knows the model) or "transformers".
    """
    from specnb.models import hf

    return hf.load_pair(target, draft, device, dtype, runtime)


def load_model(
    folder: str, device: str = "auto", dtype: str = "auto", runtime: str = "auto"
) -> Model:
    """One model, for plain decoding or to be put into a `Pair` by hand."""
    from specnb.models import hf

    return hf.load_model(folder, device, dtype, runtime)


__all__ = ["Context", "Model", "Pair", "Scores", "TableModel", "load_model", "load_pair"]
