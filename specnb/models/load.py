"""From a folder or hub id to a model: arguments, config, weights, and the checks between them."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from specnb import smollm2
from specnb.models import adapter, certificate, folders, gate, settings
from specnb.models.base import Pair
from specnb.models.hf import NO_TEMPLATE, HFModel
from specnb.models.llama import MOST_HALF, largest, no_halves
from specnb.models.small import fits
from specnb.paths import DATA, need_share, to_install

EMBEDDED = DATA / "models"
DTYPES = ("auto", "float32", "bfloat16", "float16")
DEVICES = ("auto", "cpu", "cuda")
RUNTIMES = ("auto", "lean", "transformers")
QUANTIZATIONS = ("", "4bit", "8bit")
SMALL = 4_000_000  # parameters; such matrices gain nothing from bfloat16
# Tensors that older files hold and that are made anew: masks, rotary tables, counters.
BUFFERS = re.compile(
    r"(inv_freq|masked_bias|position_ids|num_batches_tracked|attn\.bias|attention\.bias"
    r"|cos_cached|sin_cached|relative_position_index)$"
)


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
    if not target:
        need_share()  # for the embedded models
    common: dict[str, Any] = {"device": device, "runtime": runtime, "certify": certify}
    goal = load_model(
        target or str(EMBEDDED / "target"),
        dtype=dtype,
        device_map=device_map,
        quantization=quantization,
        **common,
    )
    if not draft and target:
        return Pair(goal, None)
    draft = draft or str(EMBEDDED / "drafter")
    if dtype == "auto" and goal.device.type == "cpu" and _is_small(draft):
        dtype = "float32"  # nothing is faster for it
    helper = load_model(draft, dtype=dtype, **common)
    check_same_tokens(goal, helper)
    return Pair(goal, helper.beside(goal))


def load_model(
    folder: str,
    device: str = "auto",
    dtype: str = "auto",
    runtime: str = "auto",
    device_map: Any = "",
    quantization: str = "",
    certify: bool = True,
) -> HFModel:
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
    for name, value, known in (
        ("dtype", dtype, DTYPES),
        ("runtime", runtime, RUNTIMES),
        ("quantization", quantization, QUANTIZATIONS),
    ):
        if value not in known:
            choices = ", ".join(map(repr, known))
            raise ValueError(f"{name}={value!r}: choose one of {choices}")
    device = _device(device, device_map)
    kind = settings.dtype(device) if dtype == "auto" else dtype
    folder = folders.check_folder(smollm2.named(folder))
    more = (runtime, device_map, quantization, certify)
    with _quiet() as transformers:
        return _load(transformers, folder, device, kind, dtype == "auto", *more)


def _is_small(folder: str) -> bool:
    """Whether a local folder holds so few parameters that no other format is faster for it."""
    if not Path(folder).is_dir():
        return False
    files = folders.weight_files(folder)
    stored = (tensor for file in files for tensor in folders.header(file).values())
    return sum(math.prod(tensor.shape) for tensor in stored) < SMALL


def _device(device: str, device_map: Any) -> str:
    """The device that weights are put on; ValueError where there is none such."""
    if device == "mps":
        raise ValueError(
            "device='mps': laws are drawn from in float64, which this device has not; use "
            "device='cpu'"
        )
    if device not in DEVICES and not re.fullmatch(r"cuda:\d+", device):
        raise ValueError(f"device={device!r}: choose one of {', '.join(DEVICES)}")
    if device_map and device != "auto":
        raise ValueError(f"device={device!r}: leave it out where there is a device_map")
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device={device!r}: this machine has no CUDA device, use device='cpu'")
    return device


def _has_bfloat16() -> bool:
    return torch.cuda.is_bf16_supported(including_emulation=False)


def _load(
    transformers, folder, device, kind, automatic, runtime, device_map, quantization, certify
) -> HFModel:
    local = Path(folder).is_dir()
    common = {"trust_remote_code": False, "local_files_only": local}
    config = _config(transformers, folder, common)
    folders.check_quantization(config)
    if kind == "auto" and device.startswith("cuda") and not _has_bfloat16():
        if getattr(config, "dtype", None) == torch.bfloat16:  # there it is emulated, and slow
            kind = "float16"
    placed = _placement(transformers, device, device_map, quantization)
    plan = gate.judge(config, folder)
    tokenizer, processor = _speakers(transformers, folder, plan, common)
    halves, obstacle = False, ""
    if kind == "float16" and device == "cpu" and not placed:
        # Beside float32 activations, wherever that can be; else as transformers does it, unless
        # nobody asked for it: all of it in float16 is slow on a CPU.
        obstacle = "asked for"
        if runtime != "transformers":
            obstacle = no_halves(_skeleton(transformers, config))
        halves = not obstacle
        if halves or automatic:
            kind = "float32"
    if runtime == "auto" and not fits(config, device, getattr(torch, kind, None)):
        runtime = "lean"  # for the check of its structure, too, whose random model is small

    def wrap(module, plan: gate.Plan, runtime: str = runtime, halves: bool = False) -> HFModel:
        return HFModel(module, tokenizer, folder, processor, runtime, plan, halves)

    embedded = Path(folder).resolve().is_relative_to(EMBEDDED)
    ways = (f"{kind}{' halves' * halves}", str(placed), runtime, device)
    check = certificate.Check(folder, config, plan, wrap, ways)
    if certify and not embedded:
        check.structure()
    module = _weights(transformers, folder, plan, {"dtype": kind, **placed, **common})
    if not placed:
        module = module.to(device)
    if halves and (reach := largest(module)) > MOST_HALF:
        obstacle = f"weights up to {reach:.3g} do not fit in fp16"
        if not automatic:
            raise ValueError(
                f"model {folder!r}: {obstacle}, which ends at {MOST_HALF:.0f}; load it with "
                "dtype='float32' or 'bfloat16'"
            )
        halves = False
    model = wrap(module.eval(), plan, halves=halves)
    if obstacle and not automatic:
        model.runtime = f"transformers runtime ({obstacle})"
    elif obstacle and f"({obstacle})" not in model.runtime:
        model.runtime += f", float32 for fp16 ({obstacle})"
    if embedded:
        model.certificate = "embedded"
    elif certify:
        model.certificate = check.weights(model)
    if adapter.is_adapter(folder):
        return adapter.AdapterModel.of(model, folder, load_model)
    return model


def _skeleton(transformers, config):
    """A module of this config without memory for its weights."""
    auto = (
        transformers.AutoModelForImageTextToText
        if hasattr(config, "vision_config")
        else transformers.AutoModelForCausalLM
    )
    with torch.device("meta"):
        return auto.from_config(copy.deepcopy(config), dtype=torch.float32)


def _config(transformers, folder: str, common: dict):
    try:
        return transformers.AutoConfig.from_pretrained(folder, **common)
    except OSError as error:
        raise ValueError(
            f"model {folder!r}: no such folder, and no model of this name could be fetched; give a "
            "folder that holds config.json, tokenizer and *.safetensors, or a hub id while online"
        ) from error
    except (ValueError, KeyError) as error:
        words = str(error)
        if "trust_remote_code" in words:
            why = "it brings code of its own, which is never run"
        else:
            why = f"transformers {transformers.__version__} cannot read its config.json"
            why += f" ({_first_words(error)})"
        raise ValueError(
            f"model {folder!r}: {why}; choose a model type that transformers has"
        ) from error


def _speakers(transformers, folder: str, plan: gate.Plan, common: dict):
    """The tokenizer and, for a model that sees, the processor."""
    if not plan.sees_images:
        try:
            return transformers.AutoTokenizer.from_pretrained(folder, **common), None
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise ValueError(
                f"model {folder!r}: its tokenizer cannot be loaded ({_first_words(error)}); "
                "add tokenizer.json"
            ) from error
    try:
        processor = transformers.AutoProcessor.from_pretrained(folder, **common)
    except (ImportError, OSError, ValueError, KeyError, TypeError) as error:
        if "orchvision" in str(error):
            raise ValueError(
                f"model {folder!r}: its processor needs torchvision; "
                + to_install("vision", "torchvision")
            ) from error
        raise ValueError(
            f"model {folder!r}: it sees images, but its processor cannot be loaded "
            f"({_first_words(error)}); add processor_config.json (or preprocessor_config.json)"
        ) from error
    if not hasattr(processor, "image_processor"):
        raise ValueError(
            f"model {folder!r}: it sees images, but has no image processor; add "
            "processor_config.json (or preprocessor_config.json)"
        )
    if getattr(processor, "chat_template", None) is None and not plan.whole_prompt:
        raise ValueError(NO_TEMPLATE.format(path=folder))
    return processor.tokenizer, processor


def _placement(transformers, device: str, device_map: Any, quantization: str) -> dict:
    """What `from_pretrained` needs so that weights never stand in the CPU's memory as a whole."""
    from importlib.util import find_spec

    if quantization:
        if not device.startswith("cuda") and not device_map:
            raise ValueError(
                f"quantization={quantization!r}: it needs a CUDA device; leave it out on "
                f"device={device!r}"
            )
        for package in ("bitsandbytes", "accelerate"):
            if find_spec(package) is None:
                raise ValueError(
                    f"quantization={quantization!r}: {package} is missing; "
                    + to_install("gpu", package)
                )
    if device_map and find_spec("accelerate") is None:
        raise ValueError(
            f"device_map={device_map!r}: accelerate is missing; " + to_install("gpu", "accelerate")
        )
    placed: dict[str, Any] = {}
    if device_map or (device != "cpu" and find_spec("accelerate") is not None):
        placed["device_map"] = device_map or {"": device}
    if quantization:
        bits: dict[str, Any] = {
            "load_in_4bit": quantization == "4bit",
            "load_in_8bit": quantization == "8bit",
        }
        if quantization == "4bit":
            bits |= {"bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float16}
        placed["quantization_config"] = transformers.BitsAndBytesConfig(**bits)
    return placed


def _weights(transformers, folder: str, plan: gate.Plan, settings: dict):
    """The module with all of its weights; ValueError where file and config do not fit."""
    auto = (
        transformers.AutoModelForImageTextToText
        if plan.sees_images
        else transformers.AutoModelForCausalLM
    )
    try:
        module, found = auto.from_pretrained(
            folder,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below, by name
            **settings,
        )
    except (OSError, RuntimeError, ValueError, ImportError, KeyError) as error:
        raise ValueError(
            f"model {folder!r}: its weights cannot be loaded ({_first_words(error)}); copy the "
            "folder again"
        ) from error
    mismatched = sorted(str(entry[0]) for entry in found["mismatched_keys"])
    unexpected = sorted(key for key in found["unexpected_keys"] if not BUFFERS.search(key))
    for keys, what in (
        (
            sorted(found["missing_keys"]),
            "its config asks for {n} tensors that are not in its files",
        ),
        (mismatched, "{n} tensors have another shape than its config says"),
        (unexpected, "its files hold {n} tensors that its config has no place for"),
    ):
        if keys:
            names = ", ".join(keys[:3])
            raise ValueError(
                f"model {folder!r}: {what.format(n=len(keys))} ({names}); config.json and weights "
                "must be of one model"
            )
    return module


def _first_words(error: Exception) -> str:
    """The first sentence of a message, for a place within one of ours."""
    words = " ".join(str(error).split()) or type(error).__name__
    return words.split(". ")[0][:160].rstrip(".")


@contextmanager
def _quiet() -> Iterator[Any]:
    """transformers without progress bars and advice; real errors are raised, not logged."""
    import transformers

    logging = transformers.utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield transformers
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def check_same_tokens(target: HFModel, draft: HFModel) -> None:
    """Refuses a drafter whose ids mean other tokens; ids that only one side has are fine."""
    ours, theirs = (
        {index: token for token, index in model.tokenizer.get_vocab().items()}
        for model in (target, draft)
    )
    for index in range(min(target.vocab_size, draft.vocab_size)):
        a, b = ours.get(index), theirs.get(index)
        if a is not None and b is not None and a != b:
            raise ValueError(
                f"target {target.path!r} and draft {draft.path!r} have different tokenizers: "
                f"id {index} is {a!r} in the target and {b!r} in the drafter; use a drafter that "
                "was trained with the target's tokenizer"
            )
