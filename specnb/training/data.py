"""Tokenizer, and batches that are a pure function of the step, so that training resumes."""

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from specnb.scenes import TASKS, Example, blank, example
from specnb.scenes.grammar import COUNTS, place, relation
from specnb.scenes.tasks import ASSISTANT_TURN, USER_TURN
from specnb.scenes.world import Scene

IGNORE = -100
TRAINING_SEED = 1_000  # seeds below belong to evaluation
BOS, EOS, PAD, IMAGE = "<s>", "</s>", "<pad>", "<image>"
N_PATCHES = 9


def train_tokenizer(folder: Path, n: int = 4000):
    """Byte-level BPE of at most 1,024 entries over all three tasks, saved to `folder`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    texts = []
    for task in TASKS:
        for index in range(n):
            item = example(task, TRAINING_SEED * 1_000_000 + index)
            texts.append(f"USER: \n{item.prompt} ASSISTANT: {item.answer}")
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=1024,
            min_frequency=2,
            special_tokens=[PAD, BOS, EOS, IMAGE],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    bpe.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, bpe.token_to_id(BOS))]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=BOS, eos_token=EOS, pad_token=PAD
    )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    return tokenizer


def token_ids(item: Example, tokenizer, image: bool) -> tuple[list[int], list[int]]:
    """Input ids and labels of an item; every answer of the dialogue is learnt, each ends in EOS."""
    start = f"USER: {IMAGE * N_PATCHES}\n" if image else "USER: "
    turns = item.prompt.replace(ASSISTANT_TURN, "\0").replace(USER_TURN, "\0").split("\0")
    turns.append(item.answer)
    ids, labels = [tokenizer.bos_token_id], [IGNORE]
    for index, turn in enumerate(turns):
        if index % 2 == 0:
            lead = start if index == 0 else USER_TURN
            after = " ASSISTANT:" if index == len(turns) - 2 else ASSISTANT_TURN[:-1]
            piece = tokenizer.encode(lead + turn + after, add_special_tokens=False)
            ids += piece
            labels += [IGNORE] * len(piece)
        else:
            piece = tokenizer.encode(" " + turn, add_special_tokens=False)
            labels[-1] = piece[0]
            labels += [*piece[1:], tokenizer.eos_token_id]
            ids += piece
    return ids, labels


def pad(rows: list[list[int]], value: int) -> Tensor:
    """The rows as one tensor, filled up on the right."""
    width = max(map(len, rows))
    return torch.tensor([row + [value] * (width - len(row)) for row in rows])


def pixels(items: list[Example]) -> Tensor:
    """Pictures as the image processor makes them: [batch, 3, 96, 96] in -1..1."""
    array = np.stack([np.asarray(item.image) for item in items])
    return torch.from_numpy(array).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)


def facts(seed: int) -> Example:
    """A thing named, then all about it: the first step of binding, one look from word to patch."""
    item = example("conversation", seed)
    thing = random.Random(f"facts {seed}").choice(item.scene.only())
    answer = f"{thing.kind} {thing.colour} {thing.size} {_cell(thing)}"
    return Example("facts", item.image, f"the {thing.kind} is", answer, item.scene)


def lookup(seed: int) -> Example:
    """A very short question: binding in every other direction there is."""
    rng = random.Random(f"lookup {seed}")
    item = example("conversation", seed)
    scene = item.scene
    thing, other = rng.sample(scene.only(), 2)
    asks = rng.choices(("thing", "place", "look", "where", "relation"), (3, 2, 3, 3, 4))[0]
    if asks == "thing":
        thing = rng.choice(scene.things)
        prompt, answer = _cell(thing), f"{thing.size} {thing.colour} {thing.kind}"
    elif asks == "place":
        thing = rng.choice(scene.things)
        same = [t for t in scene.of_kind(thing.kind) if t.colour == thing.colour]
        prompt = f"{thing.colour} {thing.kind}"
        answer = _cell(thing) if len(same) == 1 else COUNTS[len(same) - 1]
    elif asks == "look":
        prompt, answer = f"look {thing.kind}", f"{thing.colour} {thing.size}"
    elif asks == "where":
        prompt, answer = f"where {thing.kind}", _cell(thing)
    else:
        prompt, answer = f"{thing.kind} from {other.kind}", relation(thing, other)
    return Example("lookup", item.image, prompt, answer, scene)


def relate(seed: int) -> Example:
    """Two things and how they stand to each other: the look-up that takes longest to learn."""
    item = example("conversation", seed)
    thing, other = random.Random(f"relate {seed}").sample(item.scene.only(), 2)
    prompt = f"{thing.kind} from {other.kind}"
    return Example("relate", item.image, prompt, relation(thing, other), item.scene)


def _cell(thing) -> str:
    return f"{('top', 'middle', 'bottom')[thing.row]} {('left', 'center', 'right')[thing.column]}"


def listing(seed: int) -> Example:
    """All things of a scene as facts alone: a caption without its function words."""
    rng = random.Random(f"listing {seed}")
    item = example("caption", seed)
    things = list(item.scene.things)
    rng.shuffle(things)
    parts = [f"{t.size} {t.colour} {t.kind} {place(rng, t.cell)}" for t in things]
    answer = f"{COUNTS[len(things) - 1]}: {'. '.join(parts)}."
    return Example("listing", item.image, "List.", answer, item.scene)


def places(seed: int) -> Example:
    """All things of a scene, each place before its facts: what a caption mostly has to do."""
    rng = random.Random(f"places {seed}")
    item = example("caption", seed)
    things = list(item.scene.things)
    rng.shuffle(things)
    parts = [f"{place(rng, t.cell)} {t.size} {t.colour} {t.kind}" for t in things]
    return Example("places", item.image, "Places.", f"{'. '.join(parts)}.", item.scene)


def question(seed: int) -> Example:
    """The last question of a conversation without the turns before it."""
    item = example("conversation", seed)
    return replace(item, task="question", prompt=item.prompt.rsplit(USER_TURN, 1)[-1])


def blind(seed: int) -> Example:
    """A caption without its picture: what to say when there is nothing to see."""
    return replace(example("caption", seed), image=blank())


EXERCISES = {
    "facts": facts,
    "lookup": lookup,
    "relate": relate,
    "listing": listing,
    "places": places,
    "question": question,
    "blind": blind,
}


def batches(
    tokenizer, weights: dict[str, float], size: int, start: int, image: bool, group: int = 4
) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """Endless (ids, labels, pixels) from step `start` on; rows of like length go together."""
    step = start
    names, odds = list(weights), list(weights.values())
    while True:
        pool_index, chunk = divmod(step, group)
        rng = random.Random(f"pool {pool_index}")
        items = []
        for index in range(size * group):
            name = rng.choices(names, odds)[0]
            seed = TRAINING_SEED * 1_000_000 + 50_000 + pool_index * size * group + index
            write = EXERCISES.get(name)
            items.append(write(seed) if write else example(name, seed))
        rows = [(item, *token_ids(item, tokenizer, image)) for item in items]
        rows.sort(key=lambda row: len(row[1]))
        chunks = [rows[i * size : (i + 1) * size] for i in range(group)]
        rng.shuffle(chunks)
        for rows in chunks[chunk:]:
            ids = pad([row[1] for row in rows], tokenizer.pad_token_id)
            labels = pad([row[2] for row in rows], IGNORE)
            yield ids, labels, pixels([row[0] for row in rows]) if image else None
            step += 1


def cell_labels(scenes: list[Scene]) -> Tensor:
    """[batch, 9, 4] class of kind (0 = empty), colour, size and background for every cell."""
    from specnb.scenes.world import BACKGROUNDS, COLOURS, KINDS, SIZES

    table = torch.zeros(len(scenes), N_PATCHES, 4, dtype=torch.long)
    for row, scene in enumerate(scenes):
        table[row, :, 3] = BACKGROUNDS.index(scene.background)
        for thing in scene.things:
            table[row, thing.cell, 0] = KINDS.index(thing.kind) + 1
            table[row, thing.cell, 1] = COLOURS.index(thing.colour)
            table[row, thing.cell, 2] = SIZES.index(thing.size)
    return table
