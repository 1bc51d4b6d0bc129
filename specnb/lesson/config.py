"""The parameters of a notebook, checked before a model loads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints

from specnb import arguments
from specnb.paths import need_folder, resolved

# What a drafter's own text says in place of these parameters.
OVERRIDDEN = (
    "draft_length",
    "rule",
    "threshold",
    "entropy_factor",
    "adaptive",
    "branching",
    "width",
    "budget",
    "select",
)


@dataclass(frozen=True)
class RunConfig:
    """The parameters of a notebook, checked. Paths may be relative to the repository."""

    draft_length: int = 5
    temperature: float = 0.0
    top_p: float = 1.0
    target: str = ""
    draft: str = ""
    task: str = "caption"
    prompts: str = ""
    n_prompts: int = 4
    seed: int = 0
    drafter: str = ""  # a method by its text (`specnb.methods`), in place of `draft_length`
    out_dir: str = ""

    def __post_init__(self):
        from specnb import smollm2
        from specnb.models import folders
        from specnb.sampling import Sampling
        from specnb.scenes import TASKS

        smollm2.named(self.target)  # refuses what is not made; rows keep the name, not the path
        for name in ("target", "draft", "prompts"):
            object.__setattr__(self, name, resolved(getattr(self, name)))
        for name in ("draft_length", "n_prompts"):
            object.__setattr__(self, name, arguments.whole(name, getattr(self, name), 1))
        object.__setattr__(self, "seed", arguments.seed("seed", self.seed))
        sampling = Sampling(self.temperature, top_p=self.top_p)
        object.__setattr__(self, "temperature", sampling.temperature)
        object.__setattr__(self, "top_p", sampling.top_p)
        if self.task not in TASKS:
            raise ValueError(f"task={self.task!r}: choose one of {', '.join(TASKS)}")
        for folder in (self.target, self.draft):
            if folder and folder != smollm2.NAME:
                folders.check_folder(folder)
        if self.prompts and not Path(self.prompts).is_file():
            raise ValueError(f"prompts={self.prompts!r}: there is no such file; give a JSONL file")
        _check_out_dir(self.out_dir)
        if self.drafter:
            self._check_drafter()

    def _check_drafter(self) -> None:
        """ValueError where the text names no drafter, or stands beside what it would override."""
        from specnb import methods

        methods.method(self.drafter)
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in OVERRIDDEN and value != field.default:
                raise ValueError(
                    f"drafter={self.drafter!r} and {field.name}={arguments.shown(value)}: the "
                    "drafter says it all; leave one of them out"
                )

    @classmethod
    def from_notebook(cls, names: Mapping[str, Any]) -> RunConfig:
        """From `globals()`; what is missing there has its default. ValueError names what is wrong,
        before a model loads."""
        return _from_notebook(cls, names)

    @property
    def sampling(self):
        """The `Sampling` that temperature and top_p describe."""
        from specnb.sampling import Sampling

        return Sampling(self.temperature, top_p=self.top_p)


@dataclass(frozen=True)
class DraftModelConfig(RunConfig):
    """Parameters of the lessons that are about what a draft model does, so they need one."""

    def __post_init__(self):
        super().__post_init__()
        if self.target and not self.draft:
            raise ValueError(
                f"target={self.target!r} without draft: this lesson looks at what a draft model "
                "does; give draft=, a small model with the target's tokenizer, or take lesson 00, "
                "01 or 07, where drafts may be looked up"
            )


@dataclass(frozen=True)
class StoppingConfig(DraftModelConfig):
    """Parameters of the notebook on stopping rules."""

    draft_length: int = 16
    temperature: float = 1.0
    rule: str = "AdaEDL"
    threshold: float = 0.5
    entropy_factor: float = 0.2
    adaptive: bool = True

    def __post_init__(self):
        super().__post_init__()
        if self.rule not in ("AdaEDL", "MaxConfidence"):
            raise ValueError(f"rule={self.rule!r}: choose AdaEDL or MaxConfidence")
        threshold = arguments.number("threshold", self.threshold, finite=False)
        entropy_factor = arguments.number("entropy_factor", self.entropy_factor, 0)
        object.__setattr__(self, "threshold", threshold)
        object.__setattr__(self, "entropy_factor", entropy_factor)
        object.__setattr__(self, "adaptive", arguments.flag("adaptive", self.adaptive))
        _ = self.stop  # refuses what the rule refuses

    @property
    def stop(self):
        """The stopping rule that the parameters describe."""
        return self.stop_at(self.threshold)

    def stop_at(self, threshold: float):
        """The same rule with another threshold."""
        from specnb.stopping import AdaEDL, MaxConfidence

        if self.rule == "MaxConfidence":
            return MaxConfidence(threshold, adaptive=self.adaptive)
        return AdaEDL(threshold, adaptive=self.adaptive, entropy_factor=self.entropy_factor)


@dataclass(frozen=True)
class LongContextConfig(RunConfig):
    """Parameters of the notebook on long texts. `select` is written as in "Chunks(4)"."""

    draft_length: int = 4
    temperature: float = 1.0
    n_prompts: int = 2
    kind: str = "album"
    positions: int = 256
    budget: int = 24
    select: str = "Chunks(4)"

    def __post_init__(self):
        super().__post_init__()
        from specnb.scenes import LONG_TASKS

        if self.kind not in LONG_TASKS:
            raise ValueError(f"kind={self.kind!r}: choose one of {', '.join(LONG_TASKS)}")
        object.__setattr__(self, "positions", arguments.whole("positions", self.positions, 16))
        object.__setattr__(self, "budget", arguments.whole("budget", self.budget, 1))
        _ = self.own  # refuses what is no selector, or a budget that it cannot spend

    @property
    def own(self):
        """The `SparseSelf` that the parameters describe."""
        from specnb.methods import method

        return method(f"SparseSelf({self.select}, {self.budget}, {self.draft_length})")


@dataclass(frozen=True)
class ReportConfig:
    """Parameters of the report: the folder of a sweep, empty for the results that are shipped."""

    folder: str = ""
    out_dir: str = ""

    def __post_init__(self):
        object.__setattr__(self, "folder", resolved(self.folder))
        if self.folder and not Path(self.folder).is_dir():
            raise ValueError(f"folder={self.folder!r}: there is no such folder; give a sweep's")
        _check_out_dir(self.out_dir)

    @classmethod
    def from_notebook(cls, names: Mapping[str, Any]) -> ReportConfig:
        """From `globals()`; ValueError names what is missing or wrong."""
        return _from_notebook(cls, names)


@dataclass(frozen=True)
class TreeConfig(DraftModelConfig):
    """Parameters of the notebook on trees. `branching` is written as in "2,2,1"."""

    draft_length: int = 4
    temperature: float = 1.0
    draft_temperature: float = 1.0
    branching: str = "3,2,1"
    width: int = 3

    def __post_init__(self):
        super().__post_init__()
        from specnb.sampling import Sampling

        draft_temperature = Sampling(self.draft_temperature).temperature
        object.__setattr__(self, "draft_temperature", draft_temperature)
        object.__setattr__(self, "width", arguments.whole("width", self.width, 1))
        _ = self.shape  # refuses what is no list of numbers

    @property
    def shape(self) -> tuple[int, ...]:
        """The children per level."""
        from specnb.knobs import shape_of

        return shape_of(self.branching)


@dataclass(frozen=True)
class VerificationConfig(DraftModelConfig):
    """Parameters of the notebook on verification."""

    draft_length: int = 8
    temperature: float = 1.0


@dataclass(frozen=True)
class TrainingConfig(DraftModelConfig):
    """Parameters of the notebook on training. `steps` = 0 trains nothing while the lesson runs;
    `drafter_checkpoint` is a folder whose drafter is then shown as the trained one."""

    temperature: float = 1.0
    loss: str = "kl"
    steps: int = 200
    drafter_checkpoint: str = ""

    def __post_init__(self):
        super().__post_init__()
        from specnb.models import folders
        from specnb.training.losses import loss_of

        loss_of(self.loss)  # refuses what is no loss
        object.__setattr__(self, "steps", arguments.whole("steps", self.steps, 0))
        object.__setattr__(self, "drafter_checkpoint", resolved(self.drafter_checkpoint))
        if self.drafter_checkpoint:
            folders.check_folder(self.drafter_checkpoint)


def _from_notebook(cls: type, names: Mapping[str, Any]) -> Any:
    wanted = [field.name for field in fields(cls)]
    given = [name for name in wanted if name in names]
    if not given:
        raise ValueError(
            "no parameter is there: run the cell tagged 'parameters' first; it defines "
            f"{', '.join(wanted)}"
        )
    kinds = get_type_hints(cls)  # a subclass elsewhere may have its types as texts, or as they are
    return cls(**{name: _coerced(name, names[name], kinds[name]) for name in given})


def _check_out_dir(out_dir: str) -> None:
    if out_dir:
        need_folder("out_dir", out_dir)


def _coerced(name: str, value: Any, kind: Any) -> Any:
    """A value as papermill may hand it over ("3", 3.0, None), as the field's own type.

    Other types than str, bool, int and float are for the class itself to judge.
    """
    if kind is str:
        if value is None:
            return ""
        if isinstance(value, (int, Path)) and not isinstance(value, bool):
            return str(value)
        return arguments.text(name, value)
    if kind is bool:
        words = {"true": True, "false": False, "1": True, "0": False}
        if str(value).lower() not in words:
            raise ValueError(f"{name}={arguments.shown(value)}: give True or False")
        return words[str(value).lower()]
    if kind is int:
        return arguments.read_whole(name, value)
    return arguments.read_number(name, value) if kind is float else value
