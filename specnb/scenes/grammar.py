"""The language of the picture world: weighted phrasings of facts, and reading facts back.

Every phrasing is a list of `(text, weight)`: at temperature 1 a good model has real choices to
make (how to say it), while what it says is fixed by the picture. The reading half needs no
template: it takes clauses apart by a small lexicon, so it reads what a model wrote just as well.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from specnb.scenes.world import COLOURS, KINDS, Scene, Thing

Choices = Sequence[tuple[str, float]]

COUNTS = ("one", "two", "three", "four")
SIZE_WORDS = {
    "small": (("small", 4.0), ("little", 3.0), ("tiny", 2.2)),
    "big": (("big", 4.0), ("large", 3.0), ("huge", 2.2)),
}
BACKGROUND_PHRASES: dict[str, Choices] = {
    "meadow": (("on a green meadow", 4), ("in front of green hills", 3), ("in the meadow", 2)),
    "beach": (("on a sandy beach", 4), ("by the sea", 3), ("at the beach", 2)),
    "night": (("under a dark night sky", 4), ("at night", 3), ("in the dark", 2)),
    "snow": (("in a field of snow", 4), ("on a cold winter day", 3), ("in the snow", 2)),
}
_ROW_WORDS = ((("top", 3), ("upper", 1)), (("middle", 1),), (("bottom", 3), ("lower", 1)))
_COLUMN_WORDS = ("left", "center", "right")


def pick(rng: random.Random, choices: Choices) -> str:
    """One of the weighted texts."""
    return rng.choices([text for text, _ in choices], [weight for _, weight in choices])[0]


def plural(kind: str) -> str:
    return kind if kind == "fish" else kind + "s"


def place(rng: random.Random, cell: int) -> str:
    """A phrase for a cell, as in "in the top left" or "on the left at the top"."""
    row, column = cell // 3, _COLUMN_WORDS[cell % 3]
    if cell == 4:
        return pick(
            rng, (("in the very center", 4), ("right in the center", 3), ("at the center", 3))
        )
    row_word = pick(rng, _ROW_WORDS[row])
    if row_word in ("upper", "lower"):
        return f"in the {row_word} {column}"
    if row == 1:
        long = (f"in the middle on the {column}", 2.5), (f"on the {column} in the middle", 2)
    elif column == "center":
        long = (f"at the {row_word} in the center", 2.5), (f"in the center at the {row_word}", 2)
    else:
        long = (
            (f"at the {row_word} on the {column}", 2.5),
            (f"on the {column} at the {row_word}", 2),
        )
    return pick(rng, ((f"in the {row_word} {column}", 4), *long))


def noun(rng: random.Random, thing: Thing, opinion: bool = True) -> str:
    """An article and the thing's words, as in "a lovely small red house"; size may be left out."""
    words = []
    if opinion:
        words.append(
            pick(rng, (("", 3), ("lovely", 2), ("nice", 1.6), ("pretty", 1.4), ("fine", 1.2)))
        )
    if rng.random() < 0.75:
        words.append(pick(rng, SIZE_WORDS[thing.size]))
    words += [thing.colour, thing.kind]
    text = " ".join(word for word in words if word)
    return ("an " if text[0] in "aeiou" else "a ") + text


def sentence(text: str) -> str:
    """The text with its first letter in upper case and a full stop."""
    return text[0].upper() + text[1:] + "."


_TAILS: Choices = (
    ("", 2.4),
    (" that is easy to see", 2.0),
    (" and it looks really good", 1.7),
    (" which catches the eye at once", 1.5),
    (" as if it were made of paper", 1.3),
    (" like in a book for children", 1.2),
)
_CLOSINGS: Choices = (
    ("it is a calm and simple scene", 3),
    ("everything looks quiet and peaceful", 2.2),
    ("nothing else can be seen here", 1.8),
    ("the rest of the picture is empty", 1.5),
    ("somebody must have painted it with care", 1.2),
)


def caption(scene: Scene, rng: random.Random) -> str:
    """A caption of every thing of the scene in random order, 30-80 tokens long."""
    things = list(scene.things)
    rng.shuffle(things)
    number = COUNTS[len(things) - 1]
    objects = pick(rng, (("thing", 4), ("object", 3), ("item", 1.5)))
    counted = f"{number} {objects}" + ("" if len(things) == 1 else "s")
    where = pick(rng, BACKGROUND_PHRASES[scene.background])
    verb = "is" if len(things) == 1 else "are"
    opening, tells_count = rng.choices(
        (
            (f"this picture shows {counted} {where}", True),
            (f"there {verb} {counted} {where}", True),
            (f"here we can see {counted} {where}", True),
            (f"the picture was taken {where}", False),
            (f"we look at a scene {where}", False),
        ),
        (4, 2.5, 2, 1.5, 1.2),
    )[0]
    sentences = [sentence(opening)]
    tail_odds = (1.0, 0.9, 0.6, 0.15)[len(things) - 1]
    for index, thing in enumerate(things):
        tail = pick(rng, _TAILS) if rng.random() < tail_odds else ""
        sentences.append(sentence(_mention(rng, thing, index) + tail))
    if not tells_count:
        sentences.append(
            sentence(
                pick(
                    rng,
                    ((f"that makes {counted} in all", 3), (f"in all there {verb} {counted}", 2)),
                )
            )
        )
    closings = list(_CLOSINGS)
    for odds in ((1.0, 1.0), (0.8, 0.2), (0.4, 0.0), (0.05, 0.0))[len(things) - 1]:
        if rng.random() < odds:
            closing = pick(rng, closings)
            sentences.append(sentence(closing))
            closings = [(text, weight) for text, weight in closings if text != closing]
    return " ".join(sentences)


def _mention(rng: random.Random, thing: Thing, index: int) -> str:
    where, what = place(rng, thing.cell), noun(rng, thing)
    stands = pick(
        rng, (("is", 4), ("stands", 3), ("rests", 2), ("can be found", 2), ("waits", 1.4))
    )
    also = "" if index == 0 else pick(rng, (("", 3), ("also ", 1.8), ("then ", 1.2)))
    return pick(
        rng,
        (
            (f"{where} there is {also}{what}", 4),
            (f"{where} you can {also}see {what}", 2.4),
            (f"{what} {stands} {where}", 2.8),
            (f"{where} we {also}find {what}", 1.6),
            (f"there is {also}{what} {where}", 1.6),
        ),
    )


def relation(a: Thing, b: Thing) -> str:
    """Where a stands seen from b, as in "above and to the left of"."""
    vertical = "" if a.row == b.row else ("above" if a.row < b.row else "below")
    sideways = "" if a.column == b.column else ("left" if a.column < b.column else "right")
    if vertical and sideways:
        return f"{vertical} and to the {sideways} of"
    return vertical or f"to the {sideways} of"


# ------------------------------------------------------------------------------------- reading

_SIZE_OF = {word: size for size, words in SIZE_WORDS.items() for word, _ in words}
_KIND_OF = {form: kind for kind in KINDS for form in (kind, plural(kind))}
_ROW_OF = {"top": 0, "upper": 0, "bottom": 2, "lower": 2}
_WORD = re.compile(r"[a-z]+")
_RELATION = re.compile(r"\b(above|below|(?:to the )(?:left|right) of)\b")
_CELL = re.compile(
    r"\b(?:in the (?P<r>top|upper|middle|bottom|lower) (?P<c>left|center|right)"
    r"|(?:at|in) the (?P<r1>top|middle|bottom) (?:on|in) the (?P<c1>left|center|right)"
    r"|(?:on|in) the (?P<c2>left|center|right) (?:at|in) the (?P<r2>top|middle|bottom)"
    r"|(?:in the very|right in the|at the) (?P<middle>center))(?! of)"
)


@dataclass(frozen=True)
class Statement:
    """What one clause says. Empty tuples where it says nothing of that sort."""

    kinds: tuple[str, ...] = ()
    colours: tuple[str, ...] = ()
    sizes: tuple[str, ...] = ()
    cells: tuple[int, ...] = ()
    counts: tuple[int, ...] = ()
    relations: tuple[str, ...] = ()
    backgrounds: tuple[str, ...] = ()
    plural: bool = False

    @property
    def is_mention(self) -> bool:
        """One thing and its place: the unit that captions are scored by."""
        return len(self.kinds) == len(self.cells) == len(self.colours) == 1 and not self.counts


def statements(text: str, topic: tuple[str, ...] = ()) -> list[Statement]:
    """The clauses of a text as facts; "it" stands for the thing named last, at first `topic`."""
    found, last_kind = [], topic
    for clause in re.split(r"[.;,:?!\n]|\bwhile\b", text.lower()):
        cells, spans = [], []
        for match in _CELL.finditer(clause):
            named = {name: value for name, value in match.groupdict().items() if value}
            row = next((v for k, v in named.items() if k.startswith("r")), "middle")
            column = next((v for k, v in named.items() if k.startswith("c")), "center")
            cells.append(3 * _ROW_OF.get(row, 1) + _COLUMN_WORDS.index(column))
            spans.append(match.span())
        relations = [match.group(1) for match in _RELATION.finditer(clause)]
        for start, end in reversed(spans):  # "left" and "center" of a place say nothing else
            clause = clause[:start] + clause[end:]
        backgrounds = []
        for name, phrases in BACKGROUND_PHRASES.items():
            for phrase, _ in phrases:
                if phrase in clause:
                    clause = clause.replace(phrase, " ")
                    backgrounds.append(name)
        words = _WORD.findall(clause)
        kinds = tuple(_KIND_OF[word] for word in words if word in _KIND_OF)
        if not kinds and {"it", "its"} & set(words):
            kinds = last_kind
        last_kind = kinds[:1] or last_kind
        statement = Statement(
            kinds=kinds,
            colours=tuple(word for word in words if word in COLOURS),
            sizes=tuple(_SIZE_OF[word] for word in words if word in _SIZE_OF),
            cells=tuple(cells),
            counts=tuple(COUNTS.index(word) + 1 for word in words if word in COUNTS),
            relations=tuple(relations),
            backgrounds=tuple(backgrounds),
            plural=any(word in _KIND_OF and word not in KINDS for word in words),
        )
        if statement != Statement() and statement != Statement(kinds=statement.kinds):
            found.append(statement)
    return found


def is_true(statement: Statement, scene: Scene) -> bool:
    """Whether everything a clause says holds for the scene."""
    if any(name != scene.background for name in statement.backgrounds):
        return False
    if statement.counts:
        kind = statement.kinds[0] if statement.kinds else None
        counted = len(scene.of_kind(kind)) if kind else len(scene.things)
        return statement.counts == (counted,)
    if statement.relations:
        if len(statement.kinds) != 2:
            return False
        a, b = (scene.of_kind(kind) for kind in statement.kinds)
        if len(a) != 1 or len(b) != 1:
            return False
        true = relation(a[0], b[0])
        stated = " and ".join(statement.relations)
        return stated == true
    attributes = statement.colours or statement.sizes or statement.cells
    if not statement.kinds:
        return not attributes
    candidates = scene.of_kind(statement.kinds[0])
    return len(statement.kinds) == 1 and any(
        all(colour == thing.colour for colour in statement.colours)
        and all(size == thing.size for size in statement.sizes)
        and all(cell == thing.cell for cell in statement.cells)
        for thing in candidates
    )


@dataclass(frozen=True)
class CaptionFacts:
    """A caption read back: its mentions, what it counts, and the background it names."""

    mentions: tuple[Statement, ...]
    count: int | None
    background: str | None


def parse(text: str) -> CaptionFacts | None:
    """The facts of a caption, or None where it is not one (a broken clause, nothing named)."""
    mentions, count, background = [], None, None
    for statement in statements(text):
        if statement.kinds or statement.cells or statement.colours or statement.sizes:
            if not statement.is_mention or len(statement.sizes) > 1:
                return None
            mentions.append(statement)
        if statement.counts:
            count = statement.counts[0]
        if statement.backgrounds:
            background = statement.backgrounds[0]
    if not mentions or not text.rstrip().endswith("."):
        return None
    return CaptionFacts(tuple(mentions), count, background)


ATTRIBUTES = ("place", "colour", "kind", "size", "count")


def score(text: str, scene: Scene) -> dict[str, dict[str, int]]:
    """How a caption's facts compare with a scene.

    Per attribute `{"stated", "right", "present"}`: precision is right / stated, recall is
    right / present. A mention's place is right where a thing stands there (the first mention of
    it); colour, kind and size are judged on mentions at a right place, against that thing. A
    caption that does not parse states nothing. `parsed` is counted as an attribute of its own.
    """
    table = {name: {"stated": 0, "right": 0, "present": len(scene.things)} for name in ATTRIBUTES}
    table["count"]["present"] = 1
    table["parsed"] = {"stated": 1, "right": 0, "present": 1}
    facts = parse(text)
    if facts is None:
        return table
    table["parsed"]["right"] = 1
    seen: set[int] = set()
    for mention in facts.mentions:
        thing = scene.at(mention.cells[0])
        table["place"]["stated"] += 1
        if thing is None or thing.cell in seen:
            continue
        seen.add(thing.cell)
        table["place"]["right"] += 1
        for name, said, true in (
            ("colour", mention.colours, thing.colour),
            ("kind", mention.kinds, thing.kind),
            ("size", mention.sizes, thing.size),
        ):
            table[name]["stated"] += len(said)
            table[name]["right"] += said == (true,)
    if facts.count is not None:
        table["count"]["stated"] += 1
        table["count"]["right"] += facts.count == len(scene.things)
    return table


def attribute_of(word: str) -> str | None:
    """Which attribute of a picture a word tells: colour, kind, count, size or place; else None.

    These are the words that need eyes. Everything else is called a function word here.
    """
    word = word.strip().lower()
    for attribute, words in (
        ("colour", COLOURS),
        ("kind", _KIND_OF),
        ("count", COUNTS),
        ("size", _SIZE_OF),
        ("place", (*_ROW_OF, "middle", "left", "center", "right", "above", "below")),
    ):
        if word in words:
            return attribute
    return None
