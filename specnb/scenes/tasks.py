"""The three tasks of the picture world, in the shape of the multimodal paper's data sets.

`caption` stands for COCO, `conversation` for LLaVA-Instruct, `science` for ScienceQA (question,
options and answer are given; the model writes lecture and explanation). arXiv 2404.08856.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image

from specnb.scenes.grammar import (
    COUNTS,
    SIZE_WORDS,
    is_true,
    noun,
    pick,
    place,
    plural,
    relation,
    score,
    statements,
)
from specnb.scenes.grammar import caption as write_caption
from specnb.scenes.world import KINDS, Scene, random_scene, render

TASKS = ("caption", "conversation", "science")
USER_TURN, ASSISTANT_TURN = "\nUSER: ", "\nASSISTANT: "  # how earlier turns stand in a prompt


@dataclass(frozen=True)
class Example:
    """One evaluation or training item. `prompt` is plain text without an image placeholder."""

    task: str
    image: Image.Image
    prompt: str
    answer: str
    scene: Scene
    asks: str = ""  # conversation: the attribute that the last question asks for


CAPTION_PROMPTS = (
    "Describe the picture.",
    "What does the picture show?",
    "Write a caption for this picture.",
    "Tell me what you see.",
)


def _caption(scene: Scene, rng: random.Random) -> tuple[str, str, str]:
    return rng.choice(CAPTION_PROMPTS), write_caption(scene, rng), ""


# ------------------------------------------------------------------------------- conversation


def _ask_colour(scene, rng):
    thing = rng.choice(scene.only())
    question = pick(
        rng,
        (
            (f"What colour is the {thing.kind}?", 4),
            (f"Which colour does the {thing.kind} have?", 2),
            (f"Can you tell me the colour of the {thing.kind}?", 2),
            (f"What is the colour of the {thing.kind}?", 2),
        ),
    )
    answer = pick(
        rng,
        (
            (f"The {thing.kind} is {thing.colour}.", 4),
            (f"It is {thing.colour}.", 2.5),
            (f"The {thing.kind} in the picture is {thing.colour}.", 2),
            (f"The colour of the {thing.kind} is {thing.colour}.", 1.5),
        ),
    )
    return question, answer


def _ask_kind(scene, rng):
    thing = rng.choice(scene.things)
    where = place(rng, thing.cell)
    question = pick(
        rng,
        (
            (f"What is {where}?", 4),
            (f"What can you see {where}?", 3),
            (f"Which thing is {where}?", 2),
            (f"What do we find {where}?", 1.5),
        ),
    )
    what = noun(rng, thing, opinion=False)
    answer = pick(
        rng,
        (
            (f"There is {what}.", 4),
            (f"That is {what}.", 2.5),
            (f"You can see {what} there.", 2),
            (f"I can see {what} in that part of the picture.", 1.5),
        ),
    )
    return question, answer


def _ask_count(scene, rng):
    if rng.random() < 0.6:
        number, one, many = len(scene.things), "thing", "things"
    else:
        kind = rng.choice(scene.things).kind
        number, one, many = len(scene.of_kind(kind)), kind, plural(kind)
    question = pick(
        rng,
        (
            (f"How many {many} are there?", 4),
            (f"How many {many} can you see?", 3),
            (f"Can you count the {many}?", 1.5),
            (f"What is the number of {many} in the picture?", 1.5),
        ),
    )
    said = f"{COUNTS[number - 1]} {one if number == 1 else many}"
    verb = "is" if number == 1 else "are"
    answer = pick(
        rng,
        (
            (f"There {verb} {said} in the picture.", 4),
            (f"I can see {said}.", 2.5),
            (f"There {verb} {said}.", 2),
            (f"The picture shows {said}.", 1.5),
        ),
    )
    return question, answer


def _ask_place(scene, rng):
    thing = rng.choice(scene.only())
    where = place(rng, thing.cell)
    question = pick(
        rng,
        (
            (f"Where is the {thing.kind}?", 4),
            (f"Where can I find the {thing.kind}?", 2),
            (f"In which part of the picture is the {thing.kind}?", 2),
            (f"Can you tell me where the {thing.kind} is?", 2),
        ),
    )
    answer = pick(
        rng,
        (
            (f"The {thing.kind} is {where}.", 4),
            (f"It is {where}.", 2.5),
            (f"You can find the {thing.kind} {where}.", 2),
            (f"Look {where} and it is there.", 1.2),
        ),
    )
    return question, answer


def _ask_relation(scene, rng):
    a, b = rng.sample(scene.only(), 2)
    question = pick(
        rng,
        (
            (f"Where is the {a.kind} seen from the {b.kind}?", 4),
            (f"How do the {a.kind} and the {b.kind} stand to each other?", 2),
            (f"On which side of the {b.kind} is the {a.kind}?", 2),
            (f"Is the {a.kind} far from the {b.kind}?", 1.5),
        ),
    )
    how = relation(a, b)
    answer = pick(
        rng,
        (
            (f"The {a.kind} is {how} the {b.kind}.", 4),
            (f"You can see the {a.kind} {how} the {b.kind}.", 2.5),
            (f"In the picture the {a.kind} is {how} the {b.kind}.", 2),
            (f"Look closely and you find the {a.kind} {how} the {b.kind}.", 1.2),
        ),
    )
    return question, answer


def _ask_open(scene, rng):
    a, b = rng.sample(scene.only(), 2)
    question = pick(
        rng,
        (
            (f"Can you compare the {a.kind} and the {b.kind}?", 4),
            (f"What is different between the {a.kind} and the {b.kind}?", 3),
            (f"How would you tell the {a.kind} from the {b.kind}?", 2),
            (f"Please explain the {a.kind} and the {b.kind} to somebody who cannot see them.", 2),
        ),
    )
    size = {thing: pick(rng, SIZE_WORDS[thing.size]) for thing in (a, b)}
    first = pick(
        rng,
        (
            (f"The {a.kind} is {size[a]} and {a.colour}", 4),
            (f"The {a.kind} is {a.colour} and {size[a]}", 2.5),
            (f"In the picture the {a.kind} is {size[a]} and {a.colour}", 1.5),
            (f"As you can see the {a.kind} is {a.colour} and {size[a]}", 1.5),
        ),
    )
    link = pick(rng, ((", while ", 4), (", and ", 2.5), (". On the other hand, ", 1.5)))
    second = pick(
        rng,
        (
            (f"the {b.kind} is {size[b]} and {b.colour}", 4),
            (f"the {b.kind} is {b.colour} and {size[b]}", 2.5),
        ),
    )
    end = pick(
        rng,
        (
            (f" The {a.kind} is {relation(a, b)} the {b.kind}.", 4),
            (f" You find the {a.kind} {place(rng, a.cell)}.", 2.5),
            (f" The {b.kind} is {place(rng, b.cell)}.", 2),
            (" That is how you can tell which is which.", 1.5),
        ),
    )
    return question, f"{first}{link}{second}.{end}"


_QUESTIONS: dict[str, tuple[Callable, int]] = {  # and how many single things each needs
    "colour": (_ask_colour, 1),
    "kind": (_ask_kind, 0),
    "count": (_ask_count, 0),
    "place": (_ask_place, 1),
    "relation": (_ask_relation, 2),
    "open": (_ask_open, 2),
}


def _conversation(scene: Scene, rng: random.Random) -> tuple[str, str, str]:
    able = [name for name, (_, needed) in _QUESTIONS.items() if len(scene.only()) >= needed]
    rng.shuffle(able)
    turns = [(name, *_QUESTIONS[name][0](scene, rng)) for name in able[: rng.randint(2, 4)]]
    asks, question, answer = turns[-1]
    earlier = "".join(f"{q}{ASSISTANT_TURN}{a}{USER_TURN}" for _, q, a in turns[:-1])
    return earlier + question, answer, asks


# ------------------------------------------------------------------------------------ science

_SCIENCE: dict[str, tuple[str, tuple[tuple[str, float], ...]]] = {
    "house": (
        "Which thing in the picture gives people shelter?",
        (
            (
                "A house has walls and a roof. They keep out wind and rain, so people "
                "can live inside.",
                4,
            ),
            (
                "People need shelter. Walls and a roof keep the rain outside and the "
                "warm air inside.",
                3,
            ),
        ),
    ),
    "tree": (
        "Which thing in the picture makes wood?",
        (
            (
                "A tree is a plant with a trunk of wood. Its leaves use light to make "
                "food from air and water.",
                4,
            ),
            (
                "Plants with a trunk grow a new ring of wood every year. Their roots "
                "take water from the ground.",
                3,
            ),
        ),
    ),
    "boat": (
        "Which thing in the picture is made to float?",
        (
            (
                "A boat pushes water aside. The water pushes back, and this force "
                "carries the boat.",
                4,
            ),
            (
                "Things float when they weigh less than the water they push aside. A "
                "hollow hull does that.",
                3,
            ),
        ),
    ),
    "fish": (
        "Which thing in the picture can breathe under water?",
        (
            (
                "A fish breathes with gills. Water flows through them, and they take "
                "the oxygen out of it.",
                4,
            ),
            (
                "Animals need oxygen. Gills take oxygen from water in the same way "
                "that lungs take it from air.",
                3,
            ),
        ),
    ),
    "star": (
        "Which thing in the picture shines by its own light?",
        (
            (
                "A star is a hot ball of gas. Deep inside it hydrogen turns into "
                "helium and sets light free.",
                4,
            ),
            ("Planets only send back light. Stars are so hot that they make their own light.", 3),
        ),
    ),
    "balloon": (
        "Which thing in the picture can rise into the air?",
        (
            (
                "A balloon is filled with a light gas. The heavy air around it sinks "
                "and lifts it up.",
                4,
            ),
            (
                "A gas that weighs less than air rises. That is why a string must hold "
                "such a thing down.",
                3,
            ),
        ),
    ),
    "car": (
        "Which thing in the picture has an engine?",
        (
            (
                "A car has an engine that turns its wheels. The wheels push against "
                "the road and move it.",
                4,
            ),
            (
                "An engine turns fuel into motion. Tires need friction with the road "
                "to push ahead.",
                3,
            ),
        ),
    ),
    "flower": (
        "Which thing in the picture makes seeds?",
        (
            (
                "A flower attracts bees. They carry pollen to the next one, and then "
                "seeds can grow.",
                4,
            ),
            (
                "Plants make seeds after pollen has reached them. Insects carry it "
                "from one to the next.",
                3,
            ),
        ),
    ),
}


def _science(scene: Scene, rng: random.Random) -> tuple[str, str, str]:
    thing = rng.choice(scene.only())
    absent = [kind for kind in KINDS if not scene.of_kind(kind)]
    options = [thing.kind, *rng.sample(absent, 2)]
    rng.shuffle(options)
    letter = "ABC"[options.index(thing.kind)]
    question, lectures = _SCIENCE[thing.kind]
    listed = " ".join(f"({name}) {option}" for name, option in zip("ABC", options, strict=True))
    prompt = (
        f"Question: {question}\nOptions: {listed}\nAnswer: The answer is ({letter}) {thing.kind}.\n"
        "Based on the picture, write the lecture and the explanation."
    )
    where, size = place(rng, thing.cell), pick(rng, SIZE_WORDS[thing.size])
    explanation = pick(
        rng,
        (
            (
                f"The {thing.kind} in the picture is {thing.colour} and {size}. You "
                f"find it {where}.",
                4,
            ),
            (f"In the picture there is a {size} {thing.colour} {thing.kind} {where}.", 3),
            (f"We can see the {thing.kind} {where}. It is {size} and {thing.colour}.", 2),
            (f"Look {where} and you see a {size} {thing.colour} {thing.kind}.", 1.5),
        ),
    )
    end = pick(
        rng,
        (
            (f"So the answer is ({letter}).", 4),
            (f"This is why ({letter}) is right.", 2.5),
            ("The other options are not in the picture.", 2),
            (f"Therefore we choose ({letter}).", 1.5),
        ),
    )
    return prompt, f"Lecture: {pick(rng, lectures)} Explanation: {explanation} {end}", ""


_WRITERS = {"caption": _caption, "conversation": _conversation, "science": _science}


def example(task: str, scene_seed: int) -> Example:
    """The item of a task on the first scene from `scene_seed` on that the task can use."""
    if task not in _WRITERS:
        raise ValueError(f"task={task!r}: choose one of {', '.join(TASKS)}")
    for attempt in range(16):
        scene = random_scene(scene_seed * 16 + attempt)
        if task == "caption" or len(scene.only()) >= (2 if task == "conversation" else 1):
            break
    prompt, answer, asks = _WRITERS[task](scene, random.Random(f"{task} {scene.seed}"))
    return Example(task, render(scene), prompt, answer, scene, asks)


def examples(task: str, n: int, seed: int) -> list[Example]:
    """n items of a task; the same seed gives the same items, different seeds different scenes."""
    return [example(task, seed * 1_000_000 + index) for index in range(n)]


def is_right(text: str, item: Example) -> bool:
    """Whether a written answer answers its question and states nothing false about the picture.

    Conversation: the fact that was asked for must be there. Science: at least two facts about the
    picture. Caption: it parses and every attribute is right.
    """
    if item.task == "caption":
        return all(row["stated"] == row["right"] for row in score(text, item.scene).values())
    if item.task == "science":
        found = [s for s in statements(text.partition("Explanation:")[2])]
        facts = [s for s in found if s.colours or s.sizes or s.cells]
        return bool(facts) and all(is_true(s, item.scene) for s in found)
    question = item.prompt.rsplit("USER: ", 1)[-1]
    asked = [word for word in question.lower().strip("?.").split() if word in KINDS][:1]
    found = statements(text, topic=tuple(asked))
    if item.asks == "kind":  # the thing is named by its place: the answer must be that thing
        cell = statements(question)[0].cells[0]
        thing = item.scene.at(cell)
        return any(
            said.kinds == (thing.kind,)
            and said.colours == (thing.colour,)
            and said.sizes in ((), (thing.size,))
            for said in found[:1]
        )
    wanted = {
        "colour": lambda said: said.colours and list(said.kinds) == asked,
        "count": lambda said: said.counts,
        "place": lambda said: said.cells and list(said.kinds) == asked,
        "relation": lambda said: said.relations,
        "open": lambda said: said.colours and said.sizes,
    }[item.asks]
    enough = sum(1 for said in found if wanted(said)) >= (2 if item.asks == "open" else 1)
    return enough and all(is_true(said, item.scene) for said in found)
