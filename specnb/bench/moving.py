"""README's moving picture: `python -m specnb.bench.moving`.

The real panel in JupyterLab and Chromium: its draft length is moved by key presses, and each state
is photographed when the strip has followed. The result is `notebooks/images/slider.gif`.
"""

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from typing import Any

import nbformat

from specnb import arguments
from specnb.bench import browser
from specnb.paths import ROOT, need_checkout

GOAL = ROOT / "notebooks" / "images" / "slider.gif"
LENGTHS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16)
SHOWN_MS = 1300  # of each state; the first and the last stay twice as long
WIDTH = 860  # pixels
COLOURS = 128
LARGEST = 2_000_000  # bytes
CELL = """import specnb as sn

sn.setup()
pair = sn.load_pair()
items = sn.scenes.examples("caption", 4, 0)
cfg = sn.RunConfig(draft_length=1)
bench = sn.live.workbench(pair, items, cfg, views=("tokens",))
bench"""
FOLLOWED = """(before) => {
  const view = document.querySelector('.snb-workbench [data-view="tokens"]');
  return view && !view.dataset.state.includes("so_far") && view.dataset.state !== before; }"""
STATE = "() => document.querySelector('.snb-workbench [data-view=\"tokens\"]').dataset.state"


def frames() -> list[bytes]:
    """A picture (PNG) of the panel at every draft length. RuntimeError without a browser."""
    if lacks := browser.missing():
        raise RuntimeError(lacks)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "moving.ipynb"
        book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL)])
        book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3 (ipykernel)"}
        nbformat.write(book, path)
        lab = browser.Lab([path])
        try:
            with browser.browser() as chrome:
                return _photographed(browser.Sheet(chrome, lab, path.name, height=1600))
        finally:
            lab.stop()


def _photographed(sheet: Any) -> list[bytes]:
    sheet.run_all()
    page = sheet.page
    page.wait_for_selector('.snb-workbench [data-view="tokens"]')
    handle = page.locator(".snb-workbench .snb-set-draft-length .noUi-handle").first
    taken, at = [], LENGTHS[0]
    for length in LENGTHS:
        while at < length:
            before = page.evaluate(STATE)
            handle.focus()
            page.keyboard.press("ArrowRight")
            page.wait_for_function(FOLLOWED, arg=before)
            at += 1
        page.evaluate("() => document.activeElement.blur()")
        page.wait_for_timeout(500)  # pictures and fonts
        # Down to the strip's end: the box below it speaks of a token that nobody points at.
        panel = page.locator(".snb-workbench").first.bounding_box()
        last = page.locator(".snb-workbench .snb-block").last.bounding_box()
        height = last["y"] + last["height"] + 2 - panel["y"]
        taken.append(page.screenshot(clip={**panel, "height": height}))
    if sheet.errors or sheet.foreign:
        raise RuntimeError(f"the page had errors: {sheet.errors or sheet.foreign}")
    sheet.close()
    return taken


def assembled(pictures: list[bytes], width: int = WIDTH) -> bytes:
    """Pictures of one page as a GIF that goes round; all as high as the highest."""
    from PIL import Image

    loaded = [Image.open(io.BytesIO(one)).convert("RGB") for one in pictures]
    size = max(one.width for one in loaded), max(one.height for one in loaded)
    drawn = []
    for one in loaded:
        sheet = Image.new("RGB", size, "white")
        sheet.paste(one)
        height = round(size[1] * width / size[0])
        drawn.append(sheet.resize((width, height), Image.Resampling.LANCZOS))
    # One palette, from a sheet with all of them on it, or few tokens of a kind lose their colour.
    both = Image.new("RGB", (width, sum(one.height for one in drawn)))
    for number, one in enumerate(drawn):
        both.paste(one, (0, number * one.height))
    palette = both.quantize(COLOURS, method=Image.Quantize.MAXCOVERAGE)
    drawn = [one.quantize(palette=palette, dither=Image.Dither.NONE) for one in drawn]
    times = [SHOWN_MS] * len(drawn)
    times[0] = times[-1] = 2 * SHOWN_MS
    kept = io.BytesIO()
    more = {"save_all": True, "append_images": drawn[1:], "duration": times, "loop": 0}
    drawn[0].save(kept, "GIF", optimize=True, **more)
    return kept.getvalue()


def main(goal: Path = GOAL) -> None:
    """Records and writes the picture; ValueError where it is too large."""
    need_checkout("moving")
    picture = assembled(frames())
    if len(picture) > LARGEST:
        raise ValueError(f"{goal.name}: {len(picture):,} bytes, more than {LARGEST:,}")
    goal.write_bytes(picture)
    print(f"{goal.relative_to(ROOT)}: {len(LENGTHS)} states, {len(picture) / 1e6:.2f} MB")


if __name__ == "__main__":
    arguments.no_options("specnb.bench.moving", __doc__)
    try:
        main()
    except (ValueError, RuntimeError) as error:
        raise SystemExit(str(error)) from None
