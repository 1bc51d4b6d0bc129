"""Which picture, and what is asked about it."""

from __future__ import annotations

import base64
import io
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import ipywidgets as w

from specnb import scenes
from specnb.live.page import LABELLED, NARROW, WRAPPED, Page, named, show
from specnb.models.pictures import as_picture

MOST = 8  # pictures to choose from
FRESH = 500_000_000  # numbers of scenes of no notebook and no training
SCENES_PER_SEED = 16  # that `scenes.example` may try for one number
OWN_WORDS = "own words"
STYLE = (
    ".snb-sight{background-size:64px 64px!important;background-repeat:no-repeat!important;"
    "background-position:center 2px!important;padding:66px 0 0!important;"
    "line-height:20px!important}"
)


@dataclass(frozen=True, eq=False)
class PictureChoice:
    """A picture to choose (None: text only), and its prompt for every task that has one."""

    image: Any
    prompts: Mapping[str, str]
    large: Any = None  # the same, drawn larger for the reader
    is_scene: bool = False  # of the picture world


def choice_of(item: Any) -> PictureChoice:
    """An item of a notebook, with its prompt and those of the other tasks on its scene."""
    scene = getattr(item, "scene", None)
    if scene is None:  # a prompt of the reader's own
        return PictureChoice(item.image, {item.task: item.prompt}, item.image)
    # The same number gives all tasks the same scene, unless one finds too little to ask there.
    number = scene.seed // SCENES_PER_SEED
    others = (scenes.example(task, number) for task in scenes.TASKS)
    prompts = {other.task: other.prompt for other in others if other.scene == scene}
    prompts = {item.task: item.prompt} | prompts | {item.task: item.prompt}  # its own first
    return PictureChoice(item.image, prompts, scenes.render(scene, 384), is_scene=True)


class PictureChooser(w.VBox):
    """Thumbnails, a new picture, a file; a task's prompt, or own words. `changed` hears of it.

    For a target that reads text only no picture is offered or shown: numbers stand for prompts.
    """

    _count = itertools.count()

    def __init__(self, items: Sequence[Any], page: Page, changed: Callable[[], None], sees: bool):
        self._choices = [choice_of(item) for item in items[:MOST]]
        self._page, self._changed, self._chosen = page, changed, 0
        self._number, self._sees = next(self._count), sees
        self._fresh = itertools.count(FRESH)
        self.thumbs = w.HBox(layout=WRAPPED)
        self._rules = w.HTML(layout={"display": "none"})
        self.new = w.Button(description="new picture", icon="refresh")
        self.file = w.FileUpload(accept="image/*", description="own picture")
        self.task = w.Dropdown(description="task", style=LABELLED, layout=NARROW)
        self.prompt = w.Textarea(
            description="prompt",
            rows=2,
            continuous_update=False,
            style=LABELLED,
            layout={"width": "670px", "max_width": "98%"},
        )
        self.picture = w.HTML()
        named(new_picture=self.new, own_picture=self.file, task=self.task, prompt=self.prompt)
        self.fit(sees)
        self._offer()
        self.new.on_click(page.on(self._take_new))
        self.file.observe(page.on(self._take_file), names="value")
        self.task.observe(page.on(self._take_task), names="value")
        self.prompt.observe(page.on(self._take_prompt), names="value")
        row = w.HBox([self.thumbs, w.VBox([self.new, self.file])], layout=WRAPPED)
        super().__init__([self._rules, row, self.task, self.prompt])

    @property
    def number(self) -> int:
        """Which picture is chosen, from 1."""
        return self._chosen + 1

    @property
    def image(self) -> Any:
        """The chosen picture as the models see it."""
        return self._choices[self._chosen].image

    @property
    def about_scene(self) -> str:
        """The prompt, where it is one of a scene's own; else empty."""
        is_own = self.task.value != OWN_WORDS and self._choices[self._chosen].is_scene
        return self.prompt.value if is_own else ""

    def fit(self, sees: bool) -> None:
        """For a target that sees pictures, or for one that reads text only."""
        self._sees = sees
        for control in (self.new, self.file):
            show(control, sees)
        self._draw()

    def _draw(self) -> None:
        """One button per picture; those there stay, or the keyboard would lose its place."""
        rules, buttons = [STYLE], list(self.thumbs.children)
        for index, choice in enumerate(self._choices):
            name = f"snb-sight-{self._number}-{index}"
            if index == len(buttons):
                buttons.append(w.Button(layout={"width": "68px"}))
                buttons[index].add_class(name)
                buttons[index].on_click(self._page.on(partial(self._take, index)))
            chosen, seen = index == self._chosen, self._sees and choice.large is not None
            (buttons[index].add_class if seen else buttons[index].remove_class)("snb-sight")
            buttons[index].layout.height = "88px" if seen else None
            buttons[index].description = f"▸{index + 1}" if chosen else f"{index + 1}"
            what = "picture" if seen else "prompt"
            buttons[index].tooltip = f"{what} {index + 1}{', chosen' if chosen else ''}"
            if seen:
                image = _png(choice.large, 128)
                rules.append(f".{name}{{background-image:url({image})!important}}")
        self._rules.value = f"<style>{''.join(rules)}</style>"
        self.thumbs.children = buttons
        large = self._choices[self._chosen].large if self._sees else None
        self.picture.value = (
            ""
            if large is None
            else (
                '<img alt="the picture that the prompt is about" width="176" '
                'style="border:1px solid #8a8a8a;border-radius:6px;margin:2px 12px 2px 2px" '
                f'src="{_png(large, 384)}">'
            )
        )

    def _offer(self) -> None:
        """The tasks of the chosen picture, the one that was on if it has it, and its prompt; a
        prompt in own words stays."""
        with self._page.silent():
            prompts, wanted = self._choices[self._chosen].prompts, self.task.value
            self.task.options = [*prompts, OWN_WORDS]
            known = wanted in (*prompts, OWN_WORDS)
            self.task.value = wanted if known else next(iter(prompts))
            if self.task.value != OWN_WORDS:
                self.prompt.value = prompts[self.task.value]

    def reset(self) -> None:
        """The first picture and its first prompt; nobody hears of it."""
        self._chosen = 0
        with self._page.silent():
            self.task.value = None
        self._draw()
        self._offer()

    def _take(self, index: int) -> None:
        self._chosen = index
        self._draw()
        self._offer()
        self._changed()

    def _take_task(self) -> None:
        prompt = self._choices[self._chosen].prompts.get(self.task.value)
        if prompt is not None:
            with self._page.silent():
                self.prompt.value = prompt
            self._changed()

    def _take_prompt(self) -> None:
        """The task is the one whose prompt it is, or none."""
        prompts = self._choices[self._chosen].prompts
        tasks = (task for task, prompt in prompts.items() if prompt == self.prompt.value)
        with self._page.silent():
            self.task.value = next(tasks, OWN_WORDS)
        self._changed()

    def _add(self, choice: PictureChoice) -> None:
        if len(self._choices) >= MOST:
            self._choices.pop()
        self._choices.append(choice)
        self._take(len(self._choices) - 1)

    def _take_new(self) -> None:
        found = (choice_of(scenes.example("caption", number)) for number in self._fresh)
        self._add(next(choice for choice in found if len(choice.prompts) == len(scenes.TASKS)))

    def _take_file(self) -> None:
        given = self.file.value
        if not given:
            return
        # ipywidgets 8 gives a tuple of files, 7 (Colab) a mapping by name.
        file = next(iter(given.values())) if isinstance(given, Mapping) else given[0]
        if not file["content"]:  # what a server does to a message that is too long
            raise ValueError(
                "own picture: nothing arrived; a server may drop files above 10 MB, give a "
                "smaller one"
            )
        image = as_picture(io.BytesIO(bytes(file["content"])))
        self._add(PictureChoice(image, {"caption": "Describe the picture."}, image))


def _png(image: Any, size: int) -> str:
    small = image.copy()
    small.thumbnail((size, size))
    file = io.BytesIO()
    small.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
