"""The picture world: what a scene is, how one is drawn from a seed, and how it looks.

A scene is one to four coloured things of two sizes on a 3 x 3 grid before one of four backgrounds.
Every attribute is drawn independently and uniformly, so that no word of a description can be
guessed from another one: what a text-only drafter gets right, it gets right by grammar alone.
"""

import random
from dataclasses import dataclass
from functools import cache

from PIL import Image, ImageDraw

KINDS = ("house", "tree", "boat", "fish", "star", "balloon", "car", "flower")
COLOURS = ("red", "blue", "green", "yellow", "purple", "orange")
SIZES = ("small", "big")
ROWS = ("top", "middle", "bottom")
COLUMNS = ("left", "center", "right")
BACKGROUNDS = ("meadow", "beach", "night", "snow")
PICTURE_SIZE = 96  # pixels; one grid cell is 32 x 32, exactly one patch of the vision tower

_RGB = {
    "red": (222, 52, 48),
    "blue": (38, 96, 222),
    "green": (28, 150, 62),
    "yellow": (250, 212, 30),
    "purple": (142, 62, 190),
    "orange": (247, 132, 22),
}
_INK = (44, 42, 56)
_OVERSAMPLING = 8  # sprites are drawn this much larger and scaled down: clean edges


@dataclass(frozen=True)
class Thing:
    """One thing of a scene. `cell` counts the grid row by row: 0 is top left, 8 bottom right."""

    kind: str
    colour: str
    size: str
    cell: int
    shift: tuple[int, int] = (0, 0)  # pixels off the cell's middle at 96 x 96

    @property
    def row(self) -> int:
        return self.cell // 3

    @property
    def column(self) -> int:
        return self.cell % 3


@dataclass(frozen=True)
class Scene:
    """A background and its things, in no particular order."""

    background: str
    things: tuple[Thing, ...]
    seed: int = -1

    def at(self, cell: int) -> Thing | None:
        """The thing in a cell, or None."""
        return next((thing for thing in self.things if thing.cell == cell), None)

    def of_kind(self, kind: str) -> tuple[Thing, ...]:
        return tuple(thing for thing in self.things if thing.kind == kind)

    def only(self) -> tuple[Thing, ...]:
        """The things whose kind occurs once, so that "the boat" means one thing."""
        return tuple(thing for thing in self.things if len(self.of_kind(thing.kind)) == 1)


def random_scene(seed: int) -> Scene:
    """The scene of a seed: count, cells, kinds, colours, sizes and background are independent."""
    rng = random.Random(f"scene {seed}")
    cells = rng.sample(range(9), rng.randint(1, 4))
    things = tuple(
        Thing(
            kind=rng.choice(KINDS),
            colour=rng.choice(COLOURS),
            size=rng.choice(SIZES),
            cell=cell,
            shift=(rng.randint(-2, 2), rng.randint(-2, 2)),
        )
        for cell in cells
    )
    return Scene(rng.choice(BACKGROUNDS), things, seed)


def render(scene: Scene, size: int = PICTURE_SIZE) -> Image.Image:
    """The picture of a scene, `size` x `size` pixels RGB; 96 is what the models see."""
    if size < PICTURE_SIZE:
        raise ValueError(f"size={size}: a picture has at least {PICTURE_SIZE} pixels a side")
    picture = _background(scene.background, size).copy()
    scale = size / PICTURE_SIZE
    for thing in scene.things:
        sprite = _sprite(thing.kind, thing.colour, thing.size, size)
        middle_x = (thing.column * 32 + 16 + thing.shift[0]) * scale
        middle_y = (thing.row * 32 + 16 + thing.shift[1]) * scale
        corner = (round(middle_x - sprite.width / 2), round(middle_y - sprite.height / 2))
        picture.paste(sprite, corner, sprite)
    return picture


def blank(size: int = PICTURE_SIZE) -> Image.Image:
    """A picture of nothing (even grey): the control that shows what a model says without seeing."""
    return Image.new("RGB", (size, size), (127, 127, 127))


@cache
def _background(name: str, size: int) -> Image.Image:
    side = size * 4
    picture = Image.new("RGB", (side, side))
    draw = ImageDraw.Draw(picture)
    top, low, ground, horizon = {
        "meadow": ((196, 228, 246), (228, 243, 250), (188, 224, 160), 0.62),
        "beach": ((255, 224, 196), (255, 241, 222), (240, 216, 168), 0.58),
        "night": ((36, 40, 84), (66, 66, 120), (46, 52, 72), 0.78),
        "snow": ((206, 214, 226), (226, 231, 239), (250, 251, 253), 0.55),
    }[name]
    for y in range(side):
        mix = y / side
        line = tuple(round(a + (b - a) * mix) for a, b in zip(top, low, strict=True))
        draw.line([(0, y), (side, y)], fill=line)
    edge = side * horizon
    draw.ellipse([-side * 0.5, edge, side * 1.0, side * 1.9], fill=ground)
    lighter = tuple(min(255, value + 8) for value in ground)
    draw.ellipse([side * 0.2, edge + side * 0.05, side * 1.7, side * 2.1], fill=lighter)
    if name == "beach":
        draw.rectangle([0, edge - side * 0.1, side, edge + side * 0.03], fill=(176, 218, 232))
    if name == "night":
        rng = random.Random(7)
        for _ in range(26):
            x, y, r = rng.random() * side, rng.random() * edge, side * 0.004
            draw.ellipse([x - r, y - r, x + r, y + r], fill=(214, 216, 240))
    if name == "snow":
        rng = random.Random(9)
        for _ in range(40):
            x, y, r = rng.random() * side, rng.random() * side, side * 0.006
            draw.ellipse([x - r, y - r, x + r, y + r], fill=(255, 255, 255))
    return picture.resize((size, size), Image.Resampling.LANCZOS)


@cache
def _sprite(kind: str, colour: str, size: str, picture_size: int) -> Image.Image:
    """One thing with transparent surroundings, as large as it stands in the picture."""
    side = round((28 if size == "big" else 17) * picture_size / PICTURE_SIZE)
    canvas = Image.new("RGBA", (side * _OVERSAMPLING, side * _OVERSAMPLING))
    pen = _Pen(ImageDraw.Draw(canvas), side * _OVERSAMPLING)
    fill = _RGB[colour]
    shade = tuple(round(value * 0.72) for value in fill)
    light = tuple(round(value + (255 - value) * 0.45) for value in fill)
    _DRAW[kind](pen, fill, shade, light)
    return canvas.resize((side, side), Image.Resampling.LANCZOS)


class _Pen:
    """ImageDraw in a unit square with the house's outline: clip-art needs few, bold lines."""

    def __init__(self, draw: ImageDraw.ImageDraw, side: int):
        self.draw, self.side, self.width = draw, side, max(1, round(side * 0.045))

    def _scaled(self, points):
        return [tuple(value * self.side for value in point) for point in points]

    def polygon(self, *points, fill):
        scaled = self._scaled(points)
        self.draw.polygon(scaled, fill=fill)
        self.draw.line([*scaled, scaled[0], scaled[1]], fill=_INK, width=self.width, joint="curve")

    def ellipse(self, *box, fill):
        corners = [value * self.side for value in box]
        self.draw.ellipse(corners, fill=fill, outline=_INK, width=self.width)

    def plain(self, *box, fill):
        self.draw.ellipse([value * self.side for value in box], fill=fill)

    def rectangle(self, *box, fill):
        corners = [value * self.side for value in box]
        self.draw.rectangle(corners, fill=fill, outline=_INK, width=self.width)

    def line(self, *points):
        self.draw.line(self._scaled(points), fill=_INK, width=self.width, joint="curve")


def _house(pen, fill, shade, light):
    pen.rectangle(0.14, 0.46, 0.86, 0.96, fill=fill)
    pen.polygon((0.03, 0.49), (0.5, 0.05), (0.97, 0.49), fill=shade)
    pen.rectangle(0.42, 0.64, 0.6, 0.96, fill=(120, 82, 52))
    pen.rectangle(0.2, 0.56, 0.36, 0.74, fill=(252, 246, 208))
    pen.rectangle(0.66, 0.56, 0.81, 0.74, fill=(252, 246, 208))


def _tree(pen, fill, shade, light):
    pen.rectangle(0.43, 0.6, 0.57, 0.97, fill=(126, 86, 54))
    pen.ellipse(0.06, 0.3, 0.56, 0.74, fill=shade)
    pen.ellipse(0.44, 0.3, 0.94, 0.74, fill=shade)
    pen.ellipse(0.18, 0.03, 0.82, 0.6, fill=fill)
    pen.plain(0.3, 0.12, 0.5, 0.3, fill=light)


def _boat(pen, fill, shade, light):
    pen.polygon((0.47, 0.04), (0.47, 0.66), (0.08, 0.66), fill=(252, 250, 244))
    pen.polygon((0.53, 0.14), (0.53, 0.66), (0.9, 0.66), fill=light)
    pen.polygon((0.02, 0.7), (0.98, 0.7), (0.8, 0.95), (0.2, 0.95), fill=fill)
    pen.line((0.5, 0.04), (0.5, 0.7))


def _fish(pen, fill, shade, light):
    pen.polygon((0.7, 0.5), (0.98, 0.22), (0.93, 0.5), (0.98, 0.78), fill=shade)
    pen.ellipse(0.03, 0.23, 0.79, 0.77, fill=fill)
    pen.polygon((0.36, 0.5), (0.56, 0.41), (0.56, 0.62), fill=shade)
    pen.ellipse(0.15, 0.36, 0.29, 0.5, fill=(255, 255, 255))
    pen.plain(0.19, 0.4, 0.26, 0.47, fill=_INK)


def _star(pen, fill, shade, light):
    from math import cos, pi, sin

    points = []
    for spike in range(10):
        radius = 0.48 if spike % 2 == 0 else 0.21
        angle = -pi / 2 + spike * pi / 5
        points.append((0.5 + radius * cos(angle), 0.52 + radius * sin(angle)))
    pen.polygon(*points, fill=fill)
    pen.plain(0.42, 0.42, 0.55, 0.55, fill=light)


def _balloon(pen, fill, shade, light):
    pen.line((0.5, 0.68), (0.45, 0.82), (0.54, 0.98))
    pen.polygon((0.43, 0.76), (0.57, 0.76), (0.5, 0.66), fill=shade)
    pen.ellipse(0.19, 0.02, 0.81, 0.71, fill=fill)
    pen.plain(0.31, 0.13, 0.46, 0.33, fill=light)


def _car(pen, fill, shade, light):
    pen.polygon((0.2, 0.54), (0.33, 0.26), (0.69, 0.26), (0.83, 0.54), fill=shade)
    pen.polygon((0.29, 0.52), (0.38, 0.33), (0.49, 0.33), (0.49, 0.52), fill=(214, 236, 250))
    pen.polygon((0.55, 0.52), (0.55, 0.33), (0.65, 0.33), (0.73, 0.52), fill=(214, 236, 250))
    pen.rectangle(0.02, 0.51, 0.98, 0.77, fill=fill)
    for x in (0.26, 0.74):
        pen.ellipse(x - 0.13, 0.65, x + 0.13, 0.91, fill=(70, 70, 78))
        pen.plain(x - 0.05, 0.73, x + 0.05, 0.83, fill=(222, 222, 228))


def _flower(pen, fill, shade, light):
    from math import cos, pi, sin

    pen.line((0.5, 0.45), (0.5, 0.98))
    pen.polygon((0.5, 0.86), (0.7, 0.68), (0.8, 0.74), fill=(86, 164, 84))
    for petal in range(6):
        x = 0.5 + 0.22 * cos(petal * pi / 3)
        y = 0.34 + 0.22 * sin(petal * pi / 3)
        pen.ellipse(x - 0.15, y - 0.15, x + 0.15, y + 0.15, fill=fill)
    pen.ellipse(0.38, 0.22, 0.62, 0.46, fill=(255, 244, 190))


_DRAW = {
    "house": _house,
    "tree": _tree,
    "boat": _boat,
    "fish": _fish,
    "star": _star,
    "balloon": _balloon,
    "car": _car,
    "flower": _flower,
}
