"""Methods on prompts, in turns: whatever drifts while they run touches all of them alike."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from tqdm.auto import tqdm

from specnb.arguments import SEED_MOST, shown
from specnb.decode import autoregressive, speculative
from specnb.drafters import Drafter, NoDraft
from specnb.measure.rows import (
    Row,
    RowCache,
    Setting,
    method_key,
    models_of,
    prompt_key,
    row_of,
    words_of,
)
from specnb.models.base import Pair
from specnb.record import Record
from specnb.sampling import Sampling

Name = TypeVar("Name")


def turns(names: Sequence[Name], n: int, label: str = "") -> Iterator[tuple[int, Name]]:
    """(number, name) for every name on each of n prompts; the order goes round from one prompt to
    the next, so that no method is always the first. `label` is shown beside the progress."""
    numbers = range(n)
    for number in tqdm(numbers, desc=label, leave=False, mininterval=5) if label else numbers:
        turn = number % len(names)
        for name in (*names[turn:], *names[:turn]):
            yield number, name


def check_prompts(prompts: Any) -> None:
    """ValueError where these are no prompts: of one text every letter would be a prompt."""
    if isinstance(prompts, str):
        raise ValueError(f"prompts={shown(prompts)}: this is one text; put it into a list")


def decode(
    pair: Pair,
    item: Any,
    drafter: Drafter,
    *,
    sampling: Sampling,
    draft_sampling: Sampling | None = None,
    max_new_tokens: int = 64,
    seed: int = 0,
) -> Record:
    """A run on an item (with `prompt` and `image`, or a text); NoDraft() is plain decoding.

    A target that sees nothing gets the text alone.
    """
    prompt = getattr(item, "prompt", item)
    image = getattr(item, "image", None) if pair.target.sees_images else None
    more: dict[str, Any] = {"max_new_tokens": max_new_tokens, "seed": seed % (SEED_MOST + 1)}
    if isinstance(drafter, NoDraft):
        return autoregressive(pair.target, prompt, image, sampling=sampling, **more)
    more["draft_sampling"] = draft_sampling
    return speculative(pair, prompt, image, drafter=drafter, sampling=sampling, **more)


def in_turns(
    pair: Pair,
    prompts: Sequence[Any],
    methods: Mapping[Name, Drafter],
    sampling: Sampling,
    *,
    seeds: Sequence[int] = (0,),
    draft_sampling: Sampling | None = None,
    max_new_tokens: int = 64,
    kept: RowCache | None = None,
    timed: bool = True,
    label: str = "",
) -> dict[Name, list[Row]]:
    """Every method on every prompt with every seed, in turns: rows by method.

    `prompts` are items with `prompt` and `image`, or texts; prompt number i is decoded with seed
    s + i for each s of `seeds`. Rows stand seed by seed, in the prompts' order, so that rows of two
    methods pair up. With `kept`, rows of the same content are taken from there, and new ones kept;
    `timed=False` says that their seconds will not be used, so that a row may be taken that was
    measured beside other methods. ValueError, before anything is decoded, where a method has no
    text to be kept by.
    """
    check_prompts(prompts)
    names = list(methods)
    found: dict[Name, list[Row]] = {name: [] for name in names}
    keys = {name: method_key(methods[name]) for name in names} if kept is not None else {}
    asked = [prompt_key(getattr(item, "prompt", item), getattr(item, "image", None))
             for item in prompts]  # fmt: skip
    beside = tuple(text for text, _ in keys.values()) if timed else ()
    models = models_of(pair) if kept is not None else ""
    setting = Setting(models, sampling, draft_sampling, max_new_tokens, beside)
    for start in seeds:
        for number, name in turns(names, len(prompts), label):
            seed = start + number
            key = setting.key(*keys[name], asked[number], seed) if kept is not None else ""
            row = kept.get(key) if kept is not None else None
            if row is None:
                run = decode(
                    pair,
                    prompts[number],
                    methods[name],
                    sampling=sampling,
                    draft_sampling=draft_sampling,
                    max_new_tokens=max_new_tokens,
                    seed=seed,
                )
                row = row_of(run, asked[number], seed)._replace(
                    words=words_of(run, prompts[number])
                )
                if kept is not None:
                    kept.add(key, row)
            found[name].append(row)
    return found
