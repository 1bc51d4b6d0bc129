"""Rows: one method on one prompt with one seed, known by the content of all that decides them."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import inspect
import json
import os
import sys
import typing
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from specnb import methods
from specnb.drafters import parts_of
from specnb.files import sha256_of, sum_of
from specnb.models.base import Model, Pair
from specnb.models.calibration import processor
from specnb.models.pictures import as_pictures
from specnb.paths import PACKAGE
from specnb.record import Record
from specnb.sampling import Sampling
from specnb.scenes.words import word_classes

DRAFT_COST = 1 / 7  # of a target call: what a draft costs a 7B target whose drafter has 1B
# What computes no figure: pictures, controls, and what only starts runs or measures them.
NO_FIGURES = ("views", "live", "batch", "bench", "doctor.py", "checks.py", "cli.py", "lesson")


class Row(NamedTuple):
    """One run in figures. `prompt` is a sum over the prompt and its pictures."""

    prompt: str
    seed: int
    tokens: int
    calls: int
    drafted: int
    accepted: int
    examined: int
    forwards: int  # of the drafter
    seconds: float  # without prefill
    lengths: str = ""  # how many calls with drafts kept 0, 1, 2 ... of them: "4 1 7"
    words: str = (
        ""  # of places with an examined draft, where one was kept: "function 9/10, seen 1/4"
    )


def row_of(record: Record, prompt: str = "", seed: int = 0) -> Row:
    """The figures of a run."""
    blocks = record.blocks
    return Row(
        prompt=prompt,
        seed=seed,
        tokens=len(record.token_ids),
        calls=len(blocks),
        drafted=sum(block.n_drafted for block in blocks),
        accepted=sum(block.n_accepted for block in blocks),
        examined=sum(row.verdict in ("accepted", "rejected") for row in record.tokens),
        forwards=sum(block.draft_forwards for block in blocks),
        seconds=record.seconds,
        lengths=lengths_of(block.n_accepted for block in blocks if block.n_drafted),
    )


def words_of(record: Record, item: Any) -> str:
    """By class of word, of the places where a draft was examined those where one was kept, in one
    text: "function 9/10, seen 1/4".

    Empty where the item has no scene of the picture world: elsewhere words have no classes.
    """
    if getattr(item, "scene", None) is None:
        return ""
    found = word_classes([record], [item.prompt]).items()
    return ", ".join(f"{name} {sum(kept)}/{len(kept)}" for name, kept in found)


def lengths_of(kept: Iterable[int]) -> str:
    """How often each number of kept drafts occurs, from 0, in one text: "4 1 7"."""
    counts = Counter(kept)
    return " ".join(str(counts[n]) for n in range(max(counts, default=-1) + 1))


# -------------------------------------------------------------------------------------- keys


@dataclass(frozen=True)
class Setting:
    """All that decides a row but the method, the prompt and the seed.

    `beside` names the methods that took turns on a prompt, where rows are held against each other
    in seconds: times of another machine, or among other methods, are no fair comparison.
    """

    pair: str  # `models_of`
    sampling: Sampling
    draft_sampling: Sampling | None
    max_new_tokens: int
    beside: tuple[str, ...] = ()

    def key(self, method: str, source: str, prompt: str, seed: int) -> str:
        """The content of a row as its key; `source` is the code of a method that is not ours."""
        what = {
            "pair": self.pair,
            "sampling": repr(self.sampling),
            "draft_sampling": repr(self.draft_sampling),
            "max_new_tokens": self.max_new_tokens,
            "beside": sorted(self.beside),
            "processor": processor() if self.beside else "",
            "method": method,
            "source": source,
            "prompt": prompt,
            "seed": seed,
            "code": code_of_figures(),
            "versions": versions(),
            "threads": torch.get_num_threads(),
        }
        text = json.dumps(what, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:24]


def prompt_key(prompt: Any, image: Any = None) -> str:
    """A sum over a prompt (text, messages or ids) and the pixels of its pictures."""
    digest = hashlib.sha256(json.dumps(prompt, sort_keys=True).encode())
    for one in [] if image is None else as_pictures(image):
        digest.update(f"{one.size}".encode() + one.tobytes())
    return digest.hexdigest()[:16]


def code_of(drafter: Any) -> str:
    """A sum over the files of a method's code that are not of this package; "" without any.

    That is its class, its base classes, and those of whatever it holds (a stopping rule, another
    drafter); of a function that it holds, the function's. What their files import does not count.
    """
    sources = set()
    for code in {code for one in parts_of(drafter) for code in _code_behind(one)}:
        root = code.__module__.split(".")[0]
        if root == "specnb" or root in sys.stdlib_module_names:
            continue
        # The whole file, but of what stands in a notebook its own text.
        whole = code if code.__module__ == "__main__" else sys.modules[code.__module__]
        try:
            sources.add(inspect.getsource(whole))
        except (OSError, TypeError):
            raise ValueError(
                f"drafter={code.__qualname__}: its source cannot be read, by which its rows would "
                "be known; put it into a file"
            ) from None
    return hashlib.sha256("".join(sorted(sources)).encode()).hexdigest()[:16] if sources else ""


def _code_behind(one: Any) -> tuple[Any, ...]:
    """The classes of a value; of a function or a class itself, that."""
    if isinstance(one, type):
        return one.__mro__
    return (one,) if inspect.isroutine(one) else type(one).__mro__


def models_of(pair: Pair) -> str:
    """A sum over both models: weights, number formats, runtimes, devices, what of them is used."""
    digest = hashlib.sha256()
    for model in (pair.target, pair.draft):
        digest.update(b"none" if model is None else _model(model).encode())
    return digest.hexdigest()[:16]


def _model(model: Model) -> str:
    if Path(model.path).is_dir():
        content = _content(Path(model.path))
    elif isinstance(logits := getattr(model, "logits", None), torch.Tensor):
        content = hashlib.sha256(logits.numpy().tobytes()).hexdigest()
    else:
        raise ValueError(f"{model.path}: rows are kept by the weights, which are not in a folder")
    names = ("dtype", "runtime", "device", "kept", "n_placeholders")  # kept: of a trimmed drafter
    how = [content, *(getattr(model, name, "") for name in names)]
    config = getattr(getattr(model, "module", None), "config", None)
    return " ".join(map(str, [*how, getattr(config, "quantization_config", "")]))


def _content(folder: Path) -> str:
    """Of all that lies in a model's folder, whole: weights, an acceptance head, settings, words."""
    files = [path for path in folder.iterdir() if path.is_file() and path.suffix != ".md"]
    sums = (f"{path.name} {_sum(path, *_state(path))}" for path in sorted(files))
    return hashlib.sha256("\n".join(sums).encode()).hexdigest()


def _state(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns


@functools.cache
def _sum(path: Path, size: int, changed: int) -> str:
    """Of a file as it is now: large weights are read once in a process."""
    return sha256_of(path)


@functools.cache
def code_of_figures() -> str:
    """A sum over the package's code, but for what computes no figure."""
    files = (
        path
        for path in PACKAGE.rglob("*.py")
        if path.relative_to(PACKAGE).parts[0] not in NO_FIGURES
    )
    return sum_of(PACKAGE, files)


@functools.cache
def versions() -> dict[str, str]:
    """Of what computes the figures."""
    return {name: importlib.metadata.version(name) for name in ("torch", "transformers")}


def method_key(drafter: Any) -> tuple[str, str]:
    """A method as part of a key: its text and the sum of its source. ValueError without a text."""
    return methods.name_of(drafter), code_of(drafter)


# ------------------------------------------------------------------------------------- files


class RowCache:
    """Rows in a file, by their keys, so that a measurement that was stopped goes on.

    Rows are NamedTuples of one `kind`. Every line is a row of its own, written whole; what is none
    (half a line, another kind) is left out with a word on stderr, and its row is measured again.
    """

    def __init__(self, path: str | Path, kind: type = Row):
        self.path, self.kind = Path(path), kind
        self._rows: dict[str, Any] = {}
        self._ends_in_a_line = True
        if not self.path.exists():
            return
        data = self.path.read_bytes()
        self._ends_in_a_line = not data or data.endswith(b"\n")
        for number, line in enumerate(data.split(b"\n"), 1):
            if not line.strip():
                continue
            try:
                key, row = _read(line, kind)
            except (ValueError, TypeError) as error:
                words = f"{self.path.name}, line {number}: no row of this kind, left out ({error})"
                print(words, file=sys.stderr)
                continue
            self._rows[key] = row

    def __len__(self) -> int:
        return len(self._rows)

    def get(self, key: str) -> Any:
        """The row of this content, None where it has not been measured."""
        return self._rows.get(key)

    def add(self, key: str, row: Any) -> None:
        """Keeps a row, on disk before this returns."""
        self._rows[key] = row
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps({"key": key, **row._asdict()}) + "\n"
        with self.path.open("ab") as file:
            file.write(line.encode() if self._ends_in_a_line else b"\n" + line.encode())
            file.flush()
            os.fsync(file.fileno())
        self._ends_in_a_line = True


def _read(line: bytes, kind: Any) -> tuple[str, Any]:
    data = json.loads(line)
    if not isinstance(data, dict) or set(data) != {"key", *kind._fields}:
        raise ValueError("other fields")
    key = data.pop("key")
    wanted = typing.get_type_hints(kind)
    if not isinstance(key, str) or any(type(data[name]) is not wanted[name] for name in data):
        raise ValueError("other kinds of values")
    return key, kind(**data)
