"""Kinds of arguments: the value as Python's own kind, or one ValueError that says what is right.

Numbers of numpy and torch are numbers; truth values, texts and None are none.
"""

from __future__ import annotations

import argparse
import math
import numbers
import operator
import reprlib
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

EXACT = 2**53  # floats below it hold every whole number
SEED_MOST = 2**63 - 1  # what generators, JSON rows and Parquet all take unchanged

LONGEST = 160  # characters of a value in a message
_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother, _SHORT.maxlong = 3, 60, 60, 60


class Parser(argparse.ArgumentParser):
    """A command line that says what is wrong with it in one line, and ends with exit code 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}\n")


def no_options(prog: str, description: str | None, argv: Sequence[str] | None = None) -> None:
    """Reads the line of a command without options: `--help` is answered, all else is refused."""
    Parser(prog=f"python -m {prog}", description=(description or "").split("\n\n")[0]).parse_args(
        argv
    )


def shown(value: Any) -> str:
    """A value as it stands in a message: its repr in one line, cut where it is long or deep."""
    try:
        words = " ".join(_SHORT.repr(value).split())
    except ValueError:  # Python writes no number of more than some thousand digits
        words = f"<{type(value).__name__}>"
    return words if len(words) <= LONGEST else f"{words[: LONGEST - 3]}..."


def whole(name: str, value: Any, least: int, most: int | None = None, note: str = "") -> int:
    """A whole number of at least `least`, as an int; `note` is said after the remedy."""
    given = plain(value)
    single = not isinstance(given, bool) and not getattr(given, "ndim", 0)
    try:
        found = operator.index(given) if single else None
    except TypeError:
        found = None
    if found is None or found < least or (most is not None and found > most):
        wanted = f"a whole number >= {least}" + ("" if most is None else f" and <= {most}")
        raise ValueError(f"{name}={shown(value)}: give {wanted}{note}")
    return found


def wholes(name: str, values: Any, least: int, remedy: str) -> tuple[int, ...]:
    """Several whole numbers, at least one; `remedy` says what to give in place of another kind."""
    listed = isinstance(values, Iterable) and not isinstance(values, str | bytes | dict | set)
    if not listed or getattr(values, "ndim", 1) != 1 or not (found := tuple(values)):
        raise ValueError(f"{name}={shown(values)}: {remedy}")
    return tuple(whole(name, value, least) for value in found)


def seed(name: str, value: Any) -> int:
    """The number of a random sequence, from 0 to 2**63 - 1; never through a float."""
    return whole(name, value, 0, SEED_MOST)


def number(
    name: str,
    value: Any,
    least: float = -math.inf,
    most: float = math.inf,
    *,
    above: bool = False,
    finite: bool = True,
    note: str = "",
) -> float:
    """A real number from `least` (`above` it, if so) to `most`, as a float; never NaN."""
    found = _real(value)
    inside = found is not None and (least < found if above else least <= found) and found <= most
    if found is None or not inside or (finite and math.isinf(found)):
        bounded = f" in {'(' if above else '['}{least:g}, {most:g}]"
        limit = "" if math.isinf(least) else f" {'>' if above else '>='} {least:g}"
        kind = "a finite number" if finite else "a number"
        wanted = f"{kind}{limit}" if math.isinf(most) else f"a number{bounded}"
        raise ValueError(f"{name}={shown(value)}: give {wanted}{note}")
    return found


def read_whole(name: str, value: Any) -> int:
    """A whole number as papermill may hand it over: also "3" and 3.0, but no float from 2**53 on,
    where floats skip whole numbers."""
    found = value
    if isinstance(value, str):
        try:
            found = int(value)  # exact, however long
        except ValueError:
            found = _read_real(value)
    found = plain(found)
    if isinstance(found, float) and found.is_integer() and abs(found) < EXACT:
        found = int(found)
    if isinstance(found, bool) or not isinstance(found, int):
        raise ValueError(f"{name}={shown(value)}: give a whole number")
    return found


def read_number(name: str, value: Any) -> float:
    """A number as papermill may hand it over: also as text. Which are right is not judged."""
    found = _read_real(value) if isinstance(value, str) else _real(value)
    if found is None:
        raise ValueError(f"{name}={shown(value)}: give a number")
    return found


def flag(name: str, value: Any) -> bool:
    """True or False; no number and no text stands for them."""
    found = plain(value)
    if not isinstance(found, bool):
        raise ValueError(f"{name}={shown(value)}: give True or False")
    return found


def text(name: str, value: Any) -> str:
    """A text that can be written as UTF-8."""
    if not isinstance(value, str):
        raise ValueError(f"{name}={shown(value)}: give a text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{name}={shown(value)}: character {error.start + 1} is half of a surrogate pair, "
            "which is no text; give the whole character"
        ) from None
    return str(value)


ROLES = ("system", "user", "assistant")
MESSAGE = "{'role': 'user', 'content': '...'}"


def prompt(value: Any) -> str | list[int] | list[dict[str, Any]]:
    """A prompt of any kind, as plain values: a text, token ids, or chat messages.

    A message has `role` (system, user or assistant; the last one is the user's) and `content`: a
    text, or parts that are {"type": "text", "text": ...} or {"type": "image"}, the place of a
    picture. Which ids and roles a model knows is for the model to say.
    """
    if isinstance(value, str):
        if not text("prompt", value).strip():
            raise ValueError(f"prompt={value!r}: it is empty, write what the model should answer")
        return str(value)
    if not isinstance(value, list | tuple):
        raise ValueError(
            f"prompt={shown(value)}: give a text, a list of chat messages, or a list of token ids"
        )
    if not value:
        raise ValueError(f"prompt={value!r}: it is empty, write what the model should answer")
    if not any(isinstance(one, dict) for one in value):
        note = f", the id of a token; else a prompt is a text, or messages as in [{MESSAGE}]"
        return [whole(f"prompt[{place}]", one, 0, note=note) for place, one in enumerate(value)]
    messages = [_message(f"prompt[{place}]", one) for place, one in enumerate(value)]
    if messages[-1]["role"] != "user":
        raise ValueError(
            f"prompt[{len(messages) - 1}]: role={messages[-1]['role']!r} in the last message; end "
            "with one of the user's, which the model answers"
        )
    return messages


def _message(where: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or set(value) != {"role", "content"}:
        raise ValueError(f"{where}={shown(value)}: give a message, as in {MESSAGE}")
    role, content = value["role"], value["content"]
    if role not in ROLES:
        raise ValueError(f"{where}: role={shown(role)}: choose one of {', '.join(ROLES)}")
    if isinstance(content, str):
        if not text(f"{where}: content", content).strip():
            raise ValueError(f"{where}: content={content!r}: it is empty, write what is said")
        return {"role": role, "content": content}
    if not isinstance(content, list | tuple) or not content:
        raise ValueError(f"{where}: content={shown(content)}: give a text, or a list of parts")
    return {"role": role, "content": [_part(where, part) for part in content]}


def _part(where: str, value: Any) -> dict[str, str]:
    if value == {"type": "image"}:
        return {"type": "image"}
    if not isinstance(value, dict) or set(value) != {"type", "text"} or value["type"] != "text":
        raise ValueError(
            f"{where}: part {shown(value)}: give {{'type': 'text', 'text': '...'}}, or "
            "{'type': 'image'} with the picture itself in image="
        )
    return {"type": "text", "text": text(f"{where}: text", value["text"])}


def _real(value: Any) -> float | None:
    """Any real number as a float; None where it is none."""
    found = plain(value)
    if isinstance(found, bool) or not isinstance(found, numbers.Real):
        return None
    try:
        return float(found)
    except OverflowError:  # a whole number beyond all floats
        return -math.inf if found < 0 else math.inf


def _read_real(value: str) -> float | None:
    try:
        return float(value)
    except ValueError:
        return None


def plain(value: Any) -> Any:
    """A single number of numpy or torch as Python's own; anything else as it is."""
    if getattr(value, "ndim", None) == 0 and callable(getattr(value, "item", None)):
        return value.item()
    return value
