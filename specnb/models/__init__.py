"""One contract for all models, and the bookkeeping that every kind of model shares."""

from typing import Any

from specnb.models.base import Context, Model, Pair, Scores
from specnb.models.table import TableModel


def load_pair(
    target: str = "",
    draft: str = "",
    device: str = "auto",
    dtype: str = "auto",
    runtime: str = "auto",
    device_map: Any = "",
    quantization: str = "",
    certify: bool = True,
) -> Pair:
    """A target and its drafter; with no names the embedded LLaVA and its language-only drafter.

    A target without a draft model comes alone: `PromptLookup` drafts for it. `draft` is loaded by
    the same settings but `device_map` and `quantization`, which are the target's. See `load_model`.
    """
    from specnb.models import hf

    return hf.load_pair(target, draft, device, dtype, runtime, device_map, quantization, certify)


def load_model(
    folder: str,
    device: str = "auto",
    dtype: str = "auto",
    runtime: str = "auto",
    device_map: Any = "",
    quantization: str = "",
    certify: bool = True,
) -> Model:
    """One model, for plain decoding or to be put into a `Pair` by hand.

    `folder` is a local folder or hub id with safetensors weights. `device` is "auto" (CUDA where
    there is one), "cpu" or "cuda", also "cuda:1"; `dtype` is "auto" (as saved on a GPU; on a CPU
    what `specnb.setup` has found fastest, float32 before it), "float32", "bfloat16" or "float16"
    (on a CPU with FBGEMM, and on the lean runtime, fp16 weights beside float32 activations).
    `runtime` is "auto" (the lean one of `specnb.models.llama` wherever it knows the model, that of
    `specnb.models.small` for small drafters on a CPU), "lean" (never the latter) or
    "transformers". `device_map` goes to transformers, "auto" spreads a model over what is there;
    `quantization` is "4bit" or "8bit" (bitsandbytes, on CUDA).

    A model is tried before it is used (`specnb.models.certificate`); `certify=False` leaves that
    out and is written into every record. ValueError in one sentence, with the remedy, where a model
    cannot be exact: most reasons are found before any weight is read.
    """
    from specnb.models import hf

    return hf.load_model(folder, device, dtype, runtime, device_map, quantization, certify)


__all__ = ["Context", "Model", "Pair", "Scores", "TableModel", "load_model", "load_pair"]
