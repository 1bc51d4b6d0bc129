"""How long a reader waits: key press to new token strip, in JupyterLab and a real browser.

Every press moves the draft length by one, on a seed that nothing was decoded with before, and is
timed in the page: from the key event to the first frame after the strip has changed.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nbformat

from specnb.bench import browser
from specnb.bench.speed import WIDE, machine_class
from specnb.live.shown import BUTTONS

PRESSES = 40
BARS = {WIDE: {"strip": 200, "others": 450}}  # ms within which nine of ten presses are shown
USUAL = {"strip": 280, "others": 650}  # on AVX2, and on whatever is no faster
# Without an end token every answer has its 64 tokens; what stands after the natural end is drafted
# worse, so this is the slow case.
CELLS = (
    """import specnb as sn

sn.setup()
pair = sn.load_pair({target!r}, {draft!r})
pair.target.eos_ids = frozenset()
items = sn.scenes.examples("science", 4, 0)
cfg = sn.RunConfig(temperature=1.0, draft_length=8)
sn.live.workbench(pair, items, cfg).static()  # the first run of a process also sets up
bench = sn.live.workbench(pair, items, cfg, views={views!r})
bench""",
)
OTHERS = ("figures", "time", "tree", "laws")
# Seconds of the kernel's own clock within the last press; the status line has the whole to 0.1 s.
PARTS = """{
    "prompt": bench._record.prefill_s,
    "speculative decoding": bench._record.seconds,
    "plain decoding": (lambda run: run.prefill_s + run.seconds)(
        bench._session.plain(bench.request)
    ),
    "kernel": float(bench.page.status.value.rsplit("shown after ", 1)[1].split()[0]),
}"""
# When each view changed after the last key press; painted means in the next frame.
WATCH = """() => {
  const state = name => {
    const view = document.querySelector(`.snb-workbench [data-view="${name}"]`);
    return view && !view.dataset.state.includes("so_far") && view.dataset.state;
  };
  window.__watch = {};
  document.addEventListener('keydown', () => {
    window.__watch = { start: performance.now(), before: {}, after: {} };
    for (const name of %s) window.__watch.before[name] = state(name);
  }, true);
  new MutationObserver(() => {
    const watch = window.__watch;
    for (const name of Object.keys(watch.before || {})) {
      const now = state(name);
      if (!(name in watch.after) && now && now !== watch.before[name]) {
        watch.after[name] = null;
        requestAnimationFrame(() => { watch.after[name] = performance.now() - watch.start; });
      }
    }
  }).observe(document.body, { childList: true, subtree: true });
}"""
DONE = """names => { const after = (window.__watch || {}).after || {};
  return names.every(name => after[name] > 0); }"""


def stored_as() -> str:
    """The subject under which figures of this class of machine are kept, beside other classes."""
    return "live" if machine_class() == WIDE else "live_other"


def measure(target: str = "", draft: str = "", n: int = 0) -> dict[str, Any]:
    """Milliseconds from key press to views; `n` = presses. RuntimeError without a browser."""
    if lacks := browser.missing():
        raise RuntimeError(lacks)
    panels = {"as shipped": ("tokens", "figures"), "all views": ("tokens", *OTHERS)}
    figures: dict[str, Any] = {"presses": n or PRESSES, "machine": machine_class()}
    for name, views in panels.items():
        figures[name] = _press(target, draft, views, n or PRESSES)
    return figures | {"passed": passed(figures)}


def _press(target: str, draft: str, views: tuple[str, ...], presses: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "latency.ipynb"
        cells = [cell.format(target=target, draft=draft, views=views) for cell in CELLS]
        book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
        book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3 (ipykernel)"}
        nbformat.write(book, path)
        lab = browser.Lab([path])
        try:
            with browser.browser() as chrome:
                return _in_page(browser.Sheet(chrome, lab, path.name), lab, views, presses)
        finally:
            lab.stop()


def _in_page(sheet, lab, views: tuple[str, ...], presses: int) -> dict[str, Any]:
    sheet.run_all()
    page, kernel = sheet.page, lab.kernel(sheet.name)
    page.wait_for_selector('.snb-workbench [data-view="tokens"]')
    page.evaluate(WATCH % list(views))
    handle = page.locator(".snb-workbench .snb-set-draft-length .noUi-handle").first
    took: dict[str, list[float]] = {name: [] for name in views}
    lengths, tokens, parts, way = [], [], [], "ArrowRight"
    for press in range(presses):
        # A fresh seed, set without a run of its own: the press is the first to decode with it.
        kernel.run(f"with bench.page.silent(): bench.drawing['seed'].value = {1000 + press}")
        at = kernel.value("bench.a.controls['draft_length'].value")
        way = {1: "ArrowRight", 16: "ArrowLeft"}.get(at, way)
        handle.focus()
        page.wait_for_timeout(50)
        page.keyboard.press(way)
        page.wait_for_function(DONE, arg=list(views))
        after = page.evaluate("window.__watch.after")
        for name in views:
            took[name].append(after[name])
        lengths.append(kernel.value("bench.a.controls['draft_length'].value"))
        tokens.append(kernel.value("len(bench._record.token_ids)"))
        parts.append(kernel.value(PARTS) | {"all": max(after.values()) / 1e3})
        assert lengths[-1] != at, "the press did not reach the kernel"
    assert not sheet.foreign and not sheet.errors, (sheet.foreign, sheet.errors)
    kernel.close()
    sheet.close()
    return {
        "views": {name: _spread(values) for name, values in took.items()},
        "draft_lengths": [min(lengths), max(lengths)],
        "median_tokens": statistics.median(tokens),
        "where": _where(parts),
    }


def _where(presses: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean milliseconds of a press until the last view has changed, by what they went into."""
    mean = {name: 1e3 * statistics.fmean(one[name] for one in presses) for name in presses[0]}
    decoding = {name: mean[name] for name in mean if name not in ("kernel", "all")}
    return decoding | {
        "the kernel's drawing": mean["kernel"] - sum(decoding.values()),
        "server and browser": mean["all"] - mean["kernel"],
    }


def _spread(values: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(values, n=10, method="inclusive")
    return {"median_ms": statistics.median(values), "p90_ms": cuts[8], "max_ms": max(values)}


def bars(figures: Mapping[str, Any]) -> dict[str, int]:
    """Of the strip and of all other views, for the class of machine that was measured."""
    return BARS.get(figures["machine"], USUAL)


def reached(figures: Mapping[str, Any]) -> dict[str, float]:
    """Nine of ten presses are shown within so many ms: the shipped panel's strip, all else."""
    panels = {name: figures[name]["views"] for name in ("as shipped", "all views")}
    others = [
        spread["p90_ms"]
        for views in panels.values()
        for name, spread in views.items()
        if name != "tokens"
    ]
    return {"strip": panels["as shipped"]["tokens"]["p90_ms"], "others": max(others)}


def passed(figures: Mapping[str, Any]) -> bool:
    """Whether both bars hold."""
    return all(value <= bars(figures)[name] for name, value in reached(figures).items())


def table(figures: Mapping[str, Any]) -> str:
    """A Markdown table: milliseconds from key press to painted view."""
    lines = ["| panel | view | median ms | p90 ms | longest |", "|---|---|---|---|---|"]
    for panel in ("as shipped", "all views"):
        for name, spread in figures[panel]["views"].items():
            cells = " | ".join(f"{spread[key]:.0f}" for key in ("median_ms", "p90_ms", "max_ms"))
            lines.append(f"| {panel} | {BUTTONS[name]} | {cells} |")
    ran = figures["as shipped"]
    least, most = ran["draft_lengths"]
    said = ", ".join(
        f"{name} {value:.0f} ms (bar {bars(figures)[name]}"
        f"{'' if value <= bars(figures)[name] else ': missed'})"
        for name, value in reached(figures).items()
    )
    return "\n".join(
        [
            *lines,
            "",
            f"{figures['machine']}; {figures['presses']} presses each, draft lengths {least} to "
            f"{most}, {ran['median_tokens']:.0f} new tokens (median). At most, in nine of ten: "
            f"{said}.",
            *_parts(ran.get("where")),
        ]
    )


def _parts(where: Mapping[str, float] | None) -> list[str]:
    """Where the time of a press is, in words; older figures do not hold it."""
    if not where:
        return []
    words = ", ".join(f"{name} {ms:.0f}" for name, ms in where.items())
    return ["", f"Of a press on the shipped panel until all is shown, mean ms: {words}."]
