"""What a target says to prompts, kept so that a drafter can learn from it without the target.

Of every answer token the target's last hidden state (fp16) is kept: `hidden @ head.T` are its
logits, over all ids or over some of them, and no forward of the target is needed while training.
One file per batch, written whole or not at all, so that a killed run goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm

from specnb import arguments
from specnb.models.pictures import as_pictures

TEMPERATURES = (0.0, 0.3, 0.7, 1.0)
MOST_NEW_TOKENS = 100


class Asked(NamedTuple):
    """A prompt that the target is to answer, with its picture if it has one."""

    prompt: Any
    image: Any = None
    task: str = ""


@dataclass(frozen=True)
class Asking:
    """What decides which answers are written. The i-th batch is answered at the i-th temperature,
    over and over; `seed` is that of the draws. ValueError for numbers that cannot be."""

    temperatures: tuple[float, ...] = TEMPERATURES
    max_new_tokens: int = MOST_NEW_TOKENS
    batch: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.temperatures, tuple | list) or not self.temperatures:
            given = arguments.shown(self.temperatures)
            raise ValueError(f"temperatures={given}: give one at least, as in (0.0, 1.0)")
        settled = {
            "temperatures": tuple(
                arguments.number(f"temperatures[{i}]", one, 0.0)
                for i, one in enumerate(self.temperatures)
            ),
            "max_new_tokens": arguments.whole("max_new_tokens", self.max_new_tokens, 1),
            "batch": arguments.whole("batch", self.batch, 1),
            "seed": arguments.seed("seed", self.seed),
        }
        for name, value in settled.items():
            object.__setattr__(self, name, value)

    def spread(self, n: int) -> Asking:
        """The same for `n` prompts, in batches so small that every temperature has one."""
        return replace(self, batch=min(self.batch, max(1, n // len(self.temperatures))))


ASKING = Asking()


def scene_prompts(n: int, scenes_seed: int, batch: int = 64) -> list[Asked]:
    """Prompts of the embedded world: one task a batch (little padding), half of them captions.

    Evaluation draws its scenes from seed 0, the target's training from 1,000; drafters learn on
    2,000 and are held out on 2,500.
    """
    from specnb.scenes import TASKS, example

    mix = {"caption": 50, "conversation": 28, "science": 22}
    schedule = [task for task in TASKS for _ in range(mix[task])]
    found = []
    for index in range(n):
        number = index // batch
        task = schedule[(number * 37) % 100]
        item = example(task, scenes_seed * 1_000_000 + index)
        found.append(Asked(item.prompt, item.image, task))
    return found


@torch.inference_mode()
def write_answers(
    target: Any, asked: Sequence[Asked], folder: Path, asking: Asking = ASKING
) -> None:
    """The target's answers to all prompts, one file per batch; files that exist are kept.

    `target` is an `HFModel`; prompts are templated by it. Raises ValueError, before anything is
    written, where there are no prompts, where they differ in how many pictures they have or have
    some for a target without eyes, where the target's logits are not the product of its last hidden
    states and its head, and where `folder` holds answers of another target, asking or list of
    prompts.
    """
    if not asked:
        raise ValueError("prompts: there are none; give one at least")
    numbers_of_pictures = sorted({len(_pictures(row)) for row in asked})
    if len(numbers_of_pictures) > 1:
        raise ValueError(
            f"prompts: some have {numbers_of_pictures[0]} pictures and some have "
            f"{numbers_of_pictures[1]}; train on prompts that all have as many"
        )
    if numbers_of_pictures[0] and not target.sees_images:
        raise ValueError(f"prompts: target {target.path!r} sees no pictures; leave them out")
    check_head(target, asked[0])
    folder.mkdir(parents=True, exist_ok=True)
    check_origin(folder, target, asked, asking)
    head = target.module.get_output_embeddings().weight.detach().float().contiguous()
    save_file({"head": head, "allowed": target.allowed.contiguous()}, folder / "head.safetensors")
    numbers = range(-(-len(asked) // asking.batch))
    for index in tqdm(numbers, desc="answers", mininterval=5.0):
        path = folder / f"{index:04d}.safetensors"
        if path.exists():
            continue
        rows = asked[index * asking.batch : (index + 1) * asking.batch]
        temperature = asking.temperatures[index % len(asking.temperatures)]
        generator = torch.Generator().manual_seed(asking.seed * 1_000_003 + index)
        tensors = answer_batch(target, rows, temperature, asking.max_new_tokens, generator)
        meta = {"temperature": str(temperature), "tasks": json.dumps([row.task for row in rows])}
        temporary = path.with_suffix(".tmp")
        save_file(tensors, temporary, meta)
        temporary.rename(path)


def _pictures(row: Asked) -> list[Any]:
    return [] if row.image is None else as_pictures(row.image)


@torch.inference_mode()
def check_head(target: Any, row: Asked) -> None:
    """ValueError where the target does more to its hidden states than multiply by its head (a
    scale, a soft cap, a bias): what is kept of answers would give another distribution."""
    module = target.module
    ids = torch.tensor([target.encode(row.prompt)[0]], device=module.device)
    logits = module(input_ids=ids).logits[0, -1].float()
    hidden = module.base_model(input_ids=ids).last_hidden_state[0, -1].float()
    product = module.get_output_embeddings().weight.float() @ hidden
    if (logits - product).abs().max() > 1e-3 * max(1.0, float(logits.abs().max())):
        raise ValueError(
            f"target {target.path!r}: its logits are not the product of its last hidden state and "
            "its head, from which a drafter would learn; give a Llama-type target"
        )


def check_origin(folder: Path, target: Any, asked: Sequence[Asked], asking: Asking) -> None:
    """Writes what the answers depend on into the folder, or holds it against what stands there."""
    digest = hashlib.sha256()
    for row in asked:
        digest.update(repr(row.prompt).encode())
        for picture in _pictures(row):
            digest.update(picture.tobytes())
    weights = hashlib.sha256()
    for parameter in (target.module.get_output_embeddings().weight, *target.module.parameters()):
        weights.update(parameter.detach().double().sum().numpy().tobytes())
    origin = {
        "target": weights.hexdigest(),
        "prompts": digest.hexdigest(),
        "n_prompts": len(asked),
        "temperatures": list(asking.temperatures),
        "max_new_tokens": asking.max_new_tokens,
        "batch": asking.batch,
        "seed": asking.seed,
    }
    path = folder / "origin.json"
    if not path.exists():
        path.write_text(json.dumps(origin, indent=1))
        return
    found = json.loads(path.read_text())
    differ = [name for name, value in origin.items() if found.get(name) != value]
    if differ:
        raise ValueError(
            f"folder={str(folder)!r}: it holds answers that differ in {', '.join(differ)}; delete "
            "it, or give another folder"
        )


def answer_batch(
    target: Any,
    asked: Sequence[Asked],
    temperature: float,
    max_new_tokens: int,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Answers to prompts that all have as many pictures, or none: flat tensors with lengths.

    `prompt`/`answer` are ids of all rows one after another, `prompt_n`/`answer_n` [rows] their
    lengths, the prompts as a text-only drafter reads them; `hidden` [answer tokens, width], in
    fp16, belongs to the position that said the token; `features` [rows, image tokens, width], where
    there are pictures, are what the target's language model reads in their place.
    """
    from transformers import DynamicCache

    module, eos_ids = target.module, sorted(target.eos_ids)
    blind = [target.encode(row.prompt)[0] for row in asked]  # what a drafter without eyes reads
    encoded = [target.encode(row.prompt, row.image) for row in asked]
    width = max(len(ids) for ids, _ in encoded)
    pad_id = target.tokenizer.pad_token_id
    pad_id = eos_ids[0] if pad_id is None else pad_id
    ids = torch.tensor([[pad_id] * (width - len(row)) + row for row, _ in encoded])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row, _ in encoded])
    extras = {}
    if encoded[0][1] is not None:
        pictures = torch.cat([row["pixel_values"] for _, row in encoded])
        extras["pixel_values"] = pictures.to(module.device, module.dtype)
    cache: Any = DynamicCache()
    forbidden = ~target.allowed
    hidden_of, said = [], []
    ended = torch.zeros(len(asked), dtype=torch.bool)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    feed: dict[str, Any] = {"input_ids": ids, **extras}
    kept_in = "cache" if "cache" in target.plan.takes else "past_key_values"
    for _ in range(max_new_tokens):
        if "position_ids" in target.plan.takes:
            feed["position_ids"] = positions
        feed[kept_in] = cache
        output = module.base_model(attention_mask=mask, use_cache=True, **feed)
        hidden = output.last_hidden_state[:, -1]
        logits = module.get_output_embeddings()(hidden).float().masked_fill(forbidden, -torch.inf)
        if temperature == 0:
            token = logits.argmax(-1)
        else:
            probs = (logits / temperature).softmax(-1)
            token = torch.multinomial(probs, 1, generator=generator)[:, 0]
        hidden_of.append(hidden.half())
        said.append(torch.where(ended, -1, token))
        ended |= torch.isin(token, torch.tensor(eos_ids))
        if ended.all():
            break
        mask = torch.cat([mask, torch.ones(len(mask), 1, dtype=mask.dtype)], 1)
        positions = positions[:, -1:] + 1
        feed = {"input_ids": token[:, None]}
    answers = torch.stack(said, 1)
    kept = answers >= 0
    tensors = {
        "prompt": torch.tensor([token for row in blind for token in row], dtype=torch.int32),
        "prompt_n": torch.tensor([len(row) for row in blind], dtype=torch.int32),
        "answer": answers[kept].int(),
        "answer_n": kept.sum(1).int(),
        "hidden": torch.stack(hidden_of, 1)[kept],
    }
    if extras:
        features = target.image_features(extras)
        tensors["features"] = features.view(len(asked), -1, features.shape[-1]).half()
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def read_batches(folder: Path) -> Iterator[tuple[dict[str, Tensor], dict[str, str]]]:
    """(tensors, what was asked how) of all batches of a folder, in order."""
    paths = sorted(folder.glob("[0-9]*.safetensors"))
    if not paths:
        raise ValueError(f"folder={str(folder)!r}: it holds no answers; run write_answers first")
    for path in paths:
        with safe_open(path, "pt") as file:
            yield {name: file.get_tensor(name) for name in file.keys()}, file.metadata()
