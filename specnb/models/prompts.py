"""A reader's prompt on its way to token ids: messages, places of pictures, control tokens as text.

A prompt is a text, a list of chat messages, or a list of token ids. What a reader writes is text,
even where it looks like a control token of the model: `</s>` in a question does not end it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

STAND_INS = range(0xE000, 0xF8FF)  # private characters, which no text means


def is_ids(prompt: Any) -> bool:
    """Whether a prompt is given as token ids."""
    return not isinstance(prompt, str) and not any(isinstance(part, Mapping) for part in prompt)


def messages_of(prompt: Any) -> list[dict]:
    """A text as one message of the user's; messages as they are."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)


def n_image_parts(prompt: Any) -> int:
    """How many places for pictures the messages name themselves."""
    if isinstance(prompt, str) or is_ids(prompt):
        return 0
    return sum(part.get("type") == "image" for m in prompt for part in _parts(m["content"]))


def with_parts(prompt: Any, n_images: int) -> list[dict]:
    """Messages for a processor's template: contents in parts, pictures where the messages say.

    Where they do not, pictures come first in the first message of the user's. With `n_images` = 0
    places for pictures are left out.
    """
    messages, places = messages_of(prompt), n_image_parts(prompt)
    found, first = [], True
    for message in messages:
        parts = [part for part in _parts(message["content"]) if part["type"] != "image" or n_images]
        parts = [{"type": "image"} if part["type"] == "image" else part for part in parts]
        if first and message["role"] == "user":
            parts = [{"type": "image"}] * (0 if places else n_images) + parts
            first = False
        found.append({**message, "content": parts})
    return found


def with_text(prompt: Any) -> list[dict]:
    """Messages for a tokenizer's template: contents as text, pictures left out."""
    return [
        {
            **message,
            "content": "".join(
                p["text"] for p in _parts(message["content"]) if p["type"] == "text"
            ),
        }
        for message in messages_of(prompt)
    ]


def _parts(content: Any) -> list[dict]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else list(content)


def control_tokens(tokenizer: Any, image_token: str | None = None) -> re.Pattern | None:
    """What a text may hold that the tokenizer would read as a control token."""
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    words = {token.content for token in added if token.special} | set(tokenizer.all_special_tokens)
    words |= {image_token} if image_token else set()
    ranked = sorted(filter(None, words), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, ranked))) if ranked else None


def stand_ins(prompt: Any, controls: re.Pattern | None) -> tuple[Any, dict[str, str]]:
    """The prompt with a private character for every control token, and what each stands for."""
    texts = [part["text"] for m in messages_of(prompt) for part in _parts(m["content"])
             if part["type"] == "text"]  # fmt: skip
    found = {word for text in texts for word in (controls.findall(text) if controls else ())}
    if controls is None or not found:
        return prompt, {}
    free = (chr(code) for code in STAND_INS if not any(chr(code) in text for text in texts))
    chars = dict(zip(sorted(found), free, strict=False))

    def hidden(text: str) -> str:
        return controls.sub(lambda match: chars[match.group()], text)

    swaps = {char: word for word, char in chars.items()}
    if isinstance(prompt, str):
        return hidden(prompt), swaps
    changed = [
        {
            **message,
            "content": [
                {**part, "text": hidden(part["text"])} if part["type"] == "text" else part
                for part in _parts(message["content"])
            ],
        }
        for message in prompt
    ]
    return changed, swaps


def written_out(
    ids: Sequence[int], swaps: Mapping[str, str], tokenizer: Any, per_token: Iterable[list] = ()
) -> list[int]:
    """Token ids in which control tokens stand as the text that they are.

    `per_token` are lists with an entry for each id; they are changed in place with it. ValueError
    where the tokenizer cannot write such a text.
    """
    ids = list(ids)
    for char, word in swaps.items():
        mark, text = _spelling(tokenizer, char, word)
        places = [i for i in range(len(ids) - len(mark) + 1) if ids[i : i + len(mark)] == mark]
        if not mark or not places:
            raise _cannot_write(word)
        for place in reversed(places):
            ids[place : place + len(mark)] = text
            for values in per_token:
                values[place : place + len(mark)] = values[place : place + 1] * len(text)
    # One beside a blank or another one may have become part of a longer token.
    left = tokenizer.decode(ids) if swaps else ""
    for char, word in swaps.items():
        if char in left:
            raise _cannot_write(word)
    return ids


def _cannot_write(word: str) -> ValueError:
    return ValueError(
        f"prompt: it holds {word!r}, a control token that this model's tokenizer cannot write as "
        "text; leave it out"
    )


def _spelling(tokenizer: Any, char: str, word: str) -> tuple[list[int], list[int]]:
    """Ids of a private character within a text, and of a control token as text between two."""

    def plain(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]

    before = plain("a")
    mark = plain(f"a{char}a")[len(before) : -1]
    inner = plain(f"a{char}{word}{char}a")[len(before) : -1]
    if not mark or inner[: len(mark)] != mark or inner[-len(mark) :] != mark:
        return [], []
    return mark, inner[len(mark) : -len(mark)]
