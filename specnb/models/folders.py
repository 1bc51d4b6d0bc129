"""Folders with a model in them: what is missing or broken, judged before anything is loaded."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tekken.json")
TOKENIZERS += ("spiece.model", "sentencepiece.bpe.model")
JSON_FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
JSON_FILES += ("special_tokens_map.json", "added_tokens.json", "vocab.json", "tekken.json")
JSON_FILES += ("chat_template.json", "processor_config.json", "preprocessor_config.json")
JSON_FILES += ("video_preprocessor_config.json",)
READ = tuple(dict.fromkeys([*JSON_FILES, *TOKENIZERS, "merges.txt", "chat_template.jinja"]))
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
HUB_ID = re.compile(r"(?=.{3,96}$)[a-zA-Z0-9][\w.-]*/[\w.-]+", re.ASCII)
LFS = b"version https://git-lfs"
UNPACKED = "choose weights that are not quantised"
AGAIN = "copy it again"
PLACES, BLOCK = 16, 1 << 16  # samples of each weight file in a fingerprint, and bytes of each

# What transformers asks for to load weights of each kind: names to import. Versions are its affair.
PACKAGES = {
    "aqlm": ("accelerate", "aqlm"),
    "auto-round": ("auto_round",),
    "awq": ("gptqmodel", "accelerate"),
    "bitnet": ("accelerate",),
    "bitsandbytes": ("bitsandbytes", "accelerate"),
    "compressed-tensors": ("compressed_tensors",),
    "eetq": ("kernels", "accelerate"),
    "fbgemm_fp8": ("fbgemm_gpu", "accelerate"),
    "fouroversix": ("fouroversix",),
    "fp8": ("accelerate",),
    "fp_quant": ("fp_quant",),
    "gemma": (),
    "gguf": (),
    "gptq": ("optimum", "gptqmodel"),
    "higgs": ("accelerate", "flute", "fast_hadamard_transform"),
    "hqq": ("hqq",),
    "metal": (),  # unpacked where there is no Apple GPU
    "mxfp4": ("accelerate",),
    "mxfp8": ("accelerate",),
    "quanto": ("optimum.quanto", "accelerate"),
    "quark": ("quark",),
    "sinq": ("sinq",),
    "spqr": ("accelerate", "spqr_quant"),
    "torchao": ("torchao",),
    "vptq": ("accelerate", "vptq"),
}
DISTRIBUTIONS = {  # where what is installed is called otherwise than what is imported
    "auto_round": "auto-round",
    "compressed_tensors": "compressed-tensors",
    "fbgemm_gpu": "fbgemm-gpu",
    "flute": "flute-kernel",
    "optimum.quanto": "optimum-quanto",
    "quark": "amd-quark",
    "spqr_quant": "spqr-quant",
}
ON_GPU_ONLY = ("eetq", "fbgemm_fp8", "fp_quant", "higgs", "spqr", "vptq")


@dataclass(frozen=True)
class Stored:
    """A tensor in a safetensors file: its dtype as written there (`BF16`, `F32`) and its shape."""

    dtype: str
    shape: tuple[int, ...]


def check_folder(folder: Any) -> str:
    """The path of a folder (text or `Path`) with `~` expanded; a hub id "owner/name" as it is.

    ValueError, in one sentence, for what a local folder lacks and for files that did not arrive
    whole: Git LFS pointers, web pages, empty or cut files. Of weights only headers are read.
    """
    if not isinstance(folder, (str, Path)):
        raise ValueError(f"model {folder!r}: give a folder or a hub id 'owner/name'")
    path = Path(os.path.expanduser(folder))
    if not str(folder) or not os.path.exists(path):
        if isinstance(folder, str) and HUB_ID.fullmatch(folder):
            return folder
        raise ValueError(f"model {str(folder)!r}: there is no such folder; check the path")
    if not path.is_dir():
        raise ValueError(f"model {str(folder)!r}: this is a file; give the folder that holds it")
    try:
        _check_files(path)
    except OSError as error:
        raise ValueError(
            f"model {str(folder)!r}: it cannot be read ({error}); check its permissions"
        ) from error
    return os.path.expanduser(os.fspath(folder))


def weight_files(folder: str | os.PathLike) -> list[Path]:
    """The safetensors files that are loaded from a local folder; ValueError if one is missing."""
    path = Path(folder)
    given = _json(path / "config.json").get("transformers_weights")
    main = given or (WEIGHTS if (path / WEIGHTS).is_file() else INDEX)
    if not (path / main).is_file():
        raise _without_weights(path, given)
    if not main.endswith(".index.json"):
        return [path / main]
    places = _json(path / main).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise _broken(path / main, f"does not say where the weights are; {AGAIN}")
    files = [path / name for name in sorted(set(map(str, places.values())))]
    for file in files:
        if not file.is_file():
            raise _broken(file, "is missing; copy the folder again")
    return files


def header(path: str | os.PathLike) -> dict[str, Stored]:
    """The tensors of a safetensors file by name, in the file's order; no tensor is read.

    ValueError where the file is a Git LFS pointer, a web page, empty, damaged or cut.
    """
    entries = json.loads(_raw_header(Path(path)))
    return {
        name: Stored(entry["dtype"], tuple(entry["shape"]))
        for name, entry in entries.items()
        if name != "__metadata__"
    }


def fingerprint(folder: str | os.PathLike) -> str:
    """A sha256, as 64 hexadecimal digits, by which a local model folder is known again.

    It covers whole what says how the model is built, and reads and writes text; of each weight
    file name, size and header, and `PLACES` even samples of `BLOCK` bytes. ValueError where a
    file is missing or broken.
    """
    path = Path(os.path.expanduser(folder))
    if not path.is_dir():
        raise ValueError(f"model {str(folder)!r}: there is no such folder; give a local one")
    files = weight_files(path)
    digest = hashlib.sha256()

    def add(part: bytes) -> None:
        digest.update(len(part).to_bytes(8, "little") + part)

    for name in READ:
        if (path / name).is_file():
            add(name.encode())
            add((path / name).read_bytes())
    for file in files:
        raw, size = _raw_header(file), file.stat().st_size
        add(file.name.encode())
        add(str(size).encode())
        add(raw)
        with file.open("rb") as stream:
            for start in _places(8 + len(raw), size):
                stream.seek(start)
                add(stream.read(BLOCK))
    return digest.hexdigest()


def check_quantization(config: Any) -> None:
    """Refuses quantised weights that cannot be loaded here.

    `config` is what config.json holds, or a transformers config. ValueError names the packages to
    install, or says that the method is unknown, only loaded elsewhere, or needs a GPU.
    """
    parts = (config, *(_value(config, name) for name in ("text_config", "decoder", "generator")))
    found = [_value(part, "quantization_config") for part in parts]
    settings = next((one for one in found if one is not None), None)
    if settings is None:
        return
    method = _value(settings, "quant_method")
    in_bits = _value(settings, "load_in_4bit") or _value(settings, "load_in_8bit")
    method = "bitsandbytes" if in_bits else getattr(method, "value", method)
    label = f"quantization_config.quant_method={method!r}"
    if method == "bitsandbytes" and not in_bits:
        raise ValueError(f"{label}: neither load_in_4bit nor load_in_8bit is set; set one")
    if method == "nvfp4":
        raise ValueError(f"{label}: transformers cannot load such weights; {UNPACKED}")
    if method not in _known_methods():
        known = ", ".join(sorted(PACKAGES))
        raise ValueError(f"{label}: this method is unknown; use one of {known}")
    if method in ON_GPU_ONLY and not _has_gpu():
        raise ValueError(f"{label}: it runs on a GPU only, and here is none; {UNPACKED}")
    missing = [name for name in PACKAGES.get(method, ()) if not _installed(name)]
    if missing:
        wanted = " ".join(DISTRIBUTIONS.get(name, name) for name in missing)
        raise ValueError(f"{label}: a package is missing for these weights; pip install {wanted}")


def _known_methods() -> set[str]:
    """What the transformers at hand, and what was registered with it, can load."""
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

    known = {getattr(name, "value", name) for name in AUTO_QUANTIZATION_CONFIG_MAPPING}
    return {name.removesuffix("_4bit").removesuffix("_8bit") for name in known}


def _installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # its parent is not there
        return False


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available() or torch.xpu.is_available()


def _value(config: Any, name: str) -> Any:
    return config.get(name) if isinstance(config, dict) else getattr(config, name, None)


def _check_files(path: Path) -> None:
    names = {file.name for file in path.iterdir() if file.is_file()}
    if "adapter_config.json" in names and not names & {WEIGHTS, INDEX}:
        raise _broken(path / "adapter_config.json", "says that this is an adapter; merge it first")
    if "config.json" not in names:
        raise _broken(path / "config.json", "is missing; give a transformers folder")
    for name in READ:
        if name in names:
            _check_arrived(path / name)
        if name in names.intersection(JSON_FILES):
            _json(path / name)
    for file in weight_files(path):
        _raw_header(file)
    if not names.intersection(TOKENIZERS):
        raise ValueError(f"model {str(path)!r}: it has no tokenizer; add tokenizer.json")


def _broken(file: Path, what: str) -> ValueError:
    return ValueError(f"model {str(file.parent)!r}: {file.name} {what}")


def _without_weights(path: Path, given: str | None) -> ValueError:
    names = sorted(file.name for file in path.iterdir())
    if given:
        return _broken(path / given, "is missing, which config.json asks for; copy it, too")
    if any(name.endswith(".safetensors") and "-of-" in name for name in names):
        return _broken(path / INDEX, "is missing; copy the folder again")
    for name in names:
        if name.endswith(PICKLES):
            what = "is a pickle, which may run code; convert the weights to safetensors"
            return _broken(path / name, what)
        if name.endswith(".gguf"):
            return _broken(path / name, "is GGUF; give the model's folder of safetensors")
    return _broken(path / WEIGHTS, "is missing; copy the folder again")


def _check_arrived(file: Path) -> None:
    """What comes in place of a file when a download fails."""
    with file.open("rb") as stream:
        start = stream.read(64)
    if not start:
        raise _broken(file, f"is empty; {AGAIN}")
    if start.startswith(LFS):
        raise _broken(file, "is a Git LFS pointer, not the file itself; run git lfs pull there")
    if start.lstrip().lower().startswith((b"<!doctype", b"<html")):
        raise _broken(file, "is a web page, not the file itself; download it again")


def _json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise _broken(file, "is missing; copy the folder again")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise _broken(file, f"is no valid JSON ({error}); {AGAIN}") from error
    if not isinstance(content, dict):
        raise _broken(file, f"holds no JSON object; {AGAIN}")
    return content


def _raw_header(file: Path) -> bytes:
    """A safetensors header, once the library found it in order and the file as long as it says."""
    from safetensors import SafetensorError, safe_open

    _check_arrived(file)
    try:
        with safe_open(file, "numpy"):
            pass
    except (SafetensorError, OSError) as error:
        raise _broken(file, f"is damaged or cut ({error}); {AGAIN}") from error
    with file.open("rb") as stream:
        return stream.read(int.from_bytes(stream.read(8), "little"))


def _places(start: int, end: int) -> list[int]:
    """Where the samples begin: evenly from first to last byte; all of it where it is small."""
    if end - start <= PLACES * BLOCK:
        return list(range(start, end, BLOCK))
    return [start + (end - start - BLOCK) * place // (PLACES - 1) for place in range(PLACES)]
