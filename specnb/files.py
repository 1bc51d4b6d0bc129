"""Files that are whole or absent, what identifies their content, and reading those of others."""

from __future__ import annotations

import codecs
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from specnb.arguments import plain


def text_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 file, with or without a byte order mark; they end at a newline only.

    Other separators, as U+2028, are part of a line. ValueError names file and line of what is not
    UTF-8.
    """
    lines = []
    data = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    for number, line in enumerate(data.split(b"\n"), 1):
        try:
            lines.append(line.removesuffix(b"\r").decode("utf-8"))
        except UnicodeDecodeError:
            raise ValueError(
                f"{path.name}, line {number}: this is not UTF-8; save the file with that encoding"
            ) from None
    return lines


def json_rows(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """The objects of a JSONL file, each with its place in words; blank lines are left out.

    ValueError names file and line of what is no JSON object, or holds a key twice.
    """
    rows = []
    for number, line in enumerate(text_lines(path), 1):
        if not line.strip():
            continue
        where = f"{path.name}, line {number}"
        try:
            row = json.loads(line, object_pairs_hook=_pairs)
        except json.JSONDecodeError as error:
            raise ValueError(f"{where}: this is no JSON ({error.msg}); write an object") from None
        except (ValueError, RecursionError) as error:  # a key twice; endless digits or brackets
            raise ValueError(f"{where}: this cannot be read ({error})") from None
        if not isinstance(row, dict):
            raise ValueError(f'{where}: write an object such as {{"prompt": "..."}}')
        rows.append((where, row))
    return rows


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key!r} stands there twice; leave one out")
        found[key] = value
    return found


def finite(row: Mapping[str, Any], asked: str) -> dict[str, Any]:
    """A row as JSON can hold it, which has neither NaN nor infinity: None stands in their places.

    Its `not_finite` tells the places and what was there, as in {"headline.ratio": "nan"}; without
    any it has none. What was asked for, under the key `asked`, is not missing: it becomes a text.
    """
    found: dict[str, str] = dict(row.get("not_finite") or {})

    def cleaned(value: Any, place: str) -> Any:
        value = plain(value)
        if isinstance(value, float) and not math.isfinite(value):
            if not place.startswith(f"{asked}."):
                found[place] = str(value)
            return None if place in found else str(value)
        if isinstance(value, Mapping):
            return {key: cleaned(one, f"{place}.{key}") for key, one in value.items()}
        if isinstance(value, list | tuple):
            return [cleaned(one, f"{place}[{number}]") for number, one in enumerate(value)]
        return value

    whole = {key: cleaned(one, key) for key, one in row.items() if key != "not_finite"}
    return whole | ({"not_finite": found} if found else {})


def missing_words(row: Mapping[str, Any]) -> str:
    """What `finite` has left out of a row, in words; empty where it has all its figures."""
    found = [f"{place} is {number}" for place, number in row.get("not_finite", {}).items()]
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return f"{', '.join(found[:3])}{more}: kept as missing" if found else ""


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes a file in one step: whoever reads it finds all of it, the old one, or none."""
    data = content.encode("utf-8") if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    # Beside the goal, so that the last step is a rename.
    with tempfile.NamedTemporaryFile(
        dir=path.parent, prefix=f".{path.name}.", suffix=".tmp", delete=False
    ) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.chmod(file.name, 0o666 & ~_umask())  # a temporary file is for its owner only
    os.replace(file.name, path)


def _umask() -> int:
    mask = os.umask(0)  # it can only be read by setting it
    os.umask(mask)
    return mask


def sha256_of(path: Path) -> str:
    """The sum of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sum_of(folder: Path, files: Iterable[Path]) -> str:
    """One sum over files of a folder, their names within it included."""
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(f"{sha256_of(path)}  {path.relative_to(folder).as_posix()}\n".encode())
    return digest.hexdigest()
