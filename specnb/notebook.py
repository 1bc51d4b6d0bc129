"""What every notebook needs around its lesson: set-up, parameters, prompts, a picture, a result."""

from __future__ import annotations

import base64
import html
import importlib.metadata
import io
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from specnb import arguments
from specnb._version import __version__
from specnb.files import json_rows, write_whole
from specnb.models import machine
from specnb.paths import ROOT, need_checkout, resolved

PROMPT_KEYS = ("prompt", "image", "task")
# What a drafter's own text says in place of these parameters.
OVERRIDDEN = (
    "draft_length",
    "rule",
    "threshold",
    "entropy_factor",
    "adaptive",
    "branching",
    "width",
)
DTYPES = ("auto", "float32", "bfloat16", "float16")
MOST_THREADS = 1024


# ------------------------------------------------------------------------------------- set-up


def setup(renderer: str = "auto", threads: int | str = "auto", dtype: str = "auto") -> None:
    """The only set-up call of a notebook; prints one line that says what runs here.

    `renderer` is plotly's; "auto" takes PLOTLY_RENDERER where it is set, "colab" on Colab and
    "plotly_mimetype" elsewhere. `threads` for torch, and `dtype` for models that are loaded with
    dtype="auto"; on a CPU "auto" takes what is fastest on this machine, which is measured once (2
    seconds) and remembered; never more threads than OMP_NUM_THREADS says or the process may use.
    With a GPU, "auto" is the format that models were saved in. May be called again at any time.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r}: choose one of {', '.join(DTYPES)}")
    if not (isinstance(threads, str) and threads == "auto"):
        threads = arguments.whole("threads", threads, 1, MOST_THREADS, note=", or 'auto'")
    import plotly.io
    import torch

    on_colab = _on_colab()
    if renderer == "auto":
        # A figure in plotly's own mix of renderers stalls papermill, so it is always one of them.
        usual = "colab" if on_colab else "plotly_mimetype"
        renderer = os.environ.get("PLOTLY_RENDERER") or usual
    plotly.io.renderers.default = renderer
    gpu = torch.cuda.is_available()
    fastest = machine.choice() if "auto" in (threads, dtype) and not gpu else None
    automatic = fastest.threads if fastest else machine.cores()
    torch.set_num_threads(automatic if threads == "auto" else int(threads))
    if gpu:
        machine.set_dtype(dtype, "cuda")
    else:
        machine.set_dtype(fastest.dtype if fastest and dtype == "auto" else dtype)
    versions = {"specnb": _version("specnb"), "Python": platform.python_version()}
    versions |= {name: _version(name) for name in ("torch", "transformers")}
    n = torch.get_num_threads()
    words = [" ".join(pair) for pair in versions.items()]
    kind = machine.dtype("cuda") if gpu else machine.words(machine.dtype())
    kind = "as saved" if kind == "auto" else kind
    words += [f"device {'cuda' if gpu else 'cpu'}, {kind}"]
    print(" · ".join([*words, f"{n} thread{'s' if n > 1 else ''}"]))


def _version(package: str) -> str:
    if package == "specnb":
        return __version__
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def _on_colab() -> bool:
    """Whether this is Colab; if so, its switch for widgets is turned on where it has one."""
    try:
        from google.colab import output
    except ImportError:
        return False
    enable = getattr(output, "enable_custom_widget_manager", None)
    if enable is not None:  # some builds lack it; core widgets work without
        enable()
    return True


# --------------------------------------------------------------------------------- parameters


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
class StoppingConfig(RunConfig):
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
class TreeConfig(RunConfig):
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
        from specnb.studio import shape_of

        return shape_of(self.branching)


def _from_notebook(cls: type, names: Mapping[str, Any]) -> Any:
    wanted = [field.name for field in fields(cls)]
    given = [name for name in wanted if name in names]
    if not given:
        raise ValueError(
            "no parameter is there: run the cell tagged 'parameters' first; it defines "
            f"{', '.join(wanted)}"
        )
    kinds = {field.name: str(field.type) for field in fields(cls)}
    return cls(**{name: _coerced(name, names[name], kinds[name]) for name in given})


def _check_out_dir(out_dir: str) -> None:
    if out_dir and Path(out_dir).is_file():
        raise ValueError(f"out_dir={out_dir!r}: this is a file; give a folder")


def _coerced(name: str, value: Any, kind: str) -> Any:
    """A value as papermill may hand it over ("3", 3.0, None), as the field's own type."""
    if kind == "str":
        if value is None:
            return ""
        if isinstance(value, (int, Path)) and not isinstance(value, bool):
            return str(value)
        return arguments.text(name, value)
    if kind == "bool":
        words = {"true": True, "false": False, "1": True, "0": False}
        if str(value).lower() not in words:
            raise ValueError(f"{name}={arguments.shown(value)}: give True or False")
        return words[str(value).lower()]
    read = arguments.read_whole if kind == "int" else arguments.read_number
    return read(name, value)


# ------------------------------------------------------------------------------------ prompts


@dataclass(frozen=True)
class Item:
    """A prompt of the reader's own; built-in ones are `scenes.Example`."""

    prompt: str
    image: Any = None
    task: str = "prompts"
    scene: None = None
    asks: str = ""


def items(cfg: RunConfig) -> list:
    """The prompts of a run: the file `cfg.prompts` where given, else examples of `cfg.task`.

    A file has one JSON object per line with `prompt` and, if wanted, `image` (a path relative to
    the file) and `task` (any name). Every line is checked, the first `n_prompts` are used.
    """
    from specnb import scenes

    if not cfg.prompts:
        return scenes.examples(cfg.task, cfg.n_prompts, cfg.seed)
    path = Path(cfg.prompts)
    rows = json_rows(path)
    if not rows:
        raise ValueError(f"prompts={cfg.prompts!r}: the file is empty; give a JSON object per line")
    return [_item(path.parent, where, row) for where, row in rows][: cfg.n_prompts]


def by_task(cfg: RunConfig) -> dict[str, list]:
    """The prompts of a run by task: all built-in tasks, or those that the file names."""
    from dataclasses import replace

    from specnb import scenes

    if not cfg.prompts:
        return {task: items(replace(cfg, task=task)) for task in scenes.TASKS}
    found: dict[str, list] = {}
    for item in items(cfg):
        found.setdefault(item.task, []).append(item)
    return found


def _item(folder: Path, where: str, row: Mapping[str, Any]) -> Item:
    """The item of a row that stands at a place of a file in `folder`."""
    for key in row:
        if key not in PROMPT_KEYS:
            raise ValueError(f"{where}: unknown key {key!r}; known are {', '.join(PROMPT_KEYS)}")
    if not isinstance(row.get("prompt"), str) or not row["prompt"].strip():
        raise ValueError(f"{where}: 'prompt' is missing or empty; write what to answer")
    for key in PROMPT_KEYS:
        if row.get(key) is not None:
            arguments.text(f"{where}: {key}", row[key])
    image = None
    if row.get("image"):
        from specnb.models.pictures import as_picture

        try:
            image = as_picture(folder / row["image"])
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
    return Item(row["prompt"], image, row.get("task") or "prompts")


# ------------------------------------------------------------------------------- what is shown


@dataclass(frozen=True)
class Panel:
    """A picture beside a token strip; a notebook shows it as a cell's last value."""

    html: str

    def _repr_html_(self) -> str:
        return self.html


def panel(item: Any, record: Any, title: str | None = None) -> Panel:
    """The prompt, its picture (where there is one) and the strip of a run on it."""
    from specnb import views
    from specnb.scenes import render

    picture = ""
    if item.image is not None:
        scene = getattr(item, "scene", None)
        # A scene can be drawn anew, larger than the models see it; a photograph is only shrunk.
        shown = item.image.copy() if scene is None else render(scene, 384)
        if max(shown.size) > 480:
            shown.thumbnail((480, 480))
        file = io.BytesIO()
        shown.save(file, "PNG")
        data = base64.b64encode(file.getvalue()).decode("ascii")
        picture = (
            '<img alt="the picture that the prompt is about" width="192" style="flex:0 0 192px;'
            "border:1px solid #8a8a8a;border-radius:6px;margin-top:4px;"
            f'align-self:flex-start" src="data:image/png;base64,{data}">'
        )
    asked = html.escape(item.prompt).replace("\n", "<br>")
    strip = views.tokens(record, title=title)._repr_html_()
    return Panel(
        f'<div style="margin:6px 0"><div style="margin-bottom:2px"><b>Prompt:</b> {asked}</div>'
        '<div style="display:flex;gap:12px;flex-wrap:wrap">'
        f'{picture}<div style="flex:1 1 420px;min-width:0">{strip}</div></div></div>'
    )


# ------------------------------------------------------------------------------- measurements


def measure(
    pair: Any, items: Sequence[Any], methods: Mapping[Any, Any], cfg: RunConfig
) -> list[dict[str, Any]]:
    """Every drafter on every prompt, in turns with plain decoding: a dict for each, for `save_row`.

    `methods` maps a name, or (name, nodes per target call), to a drafter. Nothing is measured
    where `cfg.out_dir` is empty. Times are without prefill.
    """
    from specnb.drafters import NoDraft
    from specnb.measure import in_turns
    from specnb.sampling import Sampling

    if not cfg.out_dir:
        return []
    drafts = Sampling(getattr(cfg, "draft_temperature", cfg.temperature), top_p=cfg.top_p)
    plain = object()  # a name that no method has
    rows = in_turns(
        pair,
        items,
        {plain: NoDraft(), **methods},
        cfg.sampling,
        seeds=(cfg.seed,),
        draft_sampling=drafts,
    )
    found = []
    for number, item in enumerate(items):
        alone = rows[plain][number]
        for name in methods:
            method, budget = name if isinstance(name, tuple) else (name, None)
            row = rows[name][number]
            counted = {
                "task": getattr(item, "task", cfg.task),
                "method": method,
                "budget": budget,
                "prompt": number,
                "tokens": row.tokens,
                "target_calls": row.calls,
                "drafted": row.drafted,
                "accepted": row.accepted,
                "seconds": row.seconds,
                "plain_seconds": alone.seconds,
                "plain_tokens": alone.tokens,
            }
            found.append(counted)
    return found


# ------------------------------------------------------------------------------------- results


def save_row(
    cfg: RunConfig, notebook: str, headline: Mapping[str, Any], **more: Any
) -> Path | None:
    """Writes `<out_dir>/<notebook>.json` in one step and gives its path; None without `out_dir`.

    `headline` holds the figures by name, `more` whatever else a batch may want to collect.
    """
    if not cfg.out_dir:
        print("out_dir is empty: nothing is written")
        return None
    row = {"notebook": notebook, "config": asdict(cfg), "headline": dict(headline), **more}
    text = json.dumps(row, indent=2, ensure_ascii=False, allow_nan=False, default=_plain) + "\n"
    path = Path(cfg.out_dir) / f"{notebook}.json"
    write_whole(path, text)
    print(f"written: {path}")
    return path


def _plain(value: Any) -> Any:
    """numpy and torch scalars as Python numbers."""
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"{type(value).__name__} cannot stand in a JSON row: {value!r}")


# ------------------------------------------------------------------------------------ address


def write_address(folder: Path = ROOT) -> int:
    """Writes pyproject.toml's address and the version into the notebooks' first cells; how many.

    On Colab a notebook comes alone, so each has to know where the rest of the project is.
    """
    import re
    import tomllib

    need_checkout("address", folder)
    project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    line = f'REPO, TAG = \\"{project["urls"]["Repository"]}\\", \\"v{__version__}\\"'
    paths = sorted((folder / "notebooks").glob("*.ipynb"))
    for path in paths:
        text = path.read_text(encoding="utf-8")
        text, n = re.subn(r'REPO, TAG = \\"[^"]*\\", \\"[^"]*\\"', lambda _: line, text)
        if n != 1:
            raise ValueError(f"{path.name}: {n} lines with REPO, TAG = ...; there must be one")
        path.write_text(text, encoding="utf-8")
    return len(paths)


if __name__ == "__main__":
    try:
        print(f"address and version written into {write_address()} notebooks")
    except ValueError as error:
        raise SystemExit(str(error)) from None
