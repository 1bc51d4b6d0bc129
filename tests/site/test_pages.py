"""The built pages: links resolve, nothing is from elsewhere, they fit a phone, pass axe-core."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from pathlib import Path

import pytest
from axe import CORNERS, complaints
from places import ROOT

from specnb.bench import browser

sys.path.insert(0, str(ROOT / "docs"))
import build

LACKS = browser.missing()
if not LACKS and any(importlib.util.find_spec(name) is None for name in ("sphinx", "myst_nb")):
    LACKS = "the pages' builder is missing: pip install -e '.[site]'"
NEEDED = bool(os.environ.get("SPECNB_NEEDS_BROWSER"))  # then its absence is a failure

pytestmark = [
    pytest.mark.slow,
    pytest.mark.notebook,
    pytest.mark.skipif(bool(LACKS) and not NEEDED, reason=LACKS or "-"),
]


@pytest.fixture(scope="module")
def site(request, tmp_path_factory) -> Path:
    """The pages of the executed notebooks, or those in SPECNB_TEST_PAGES, of an earlier build."""
    if built := os.environ.get("SPECNB_TEST_PAGES"):
        return Path(built).resolve()
    folder, _ = request.getfixturevalue("executed")
    out = tmp_path_factory.mktemp("site") / "pages"
    build.build(Path(folder), out)
    return out


def names(site: Path) -> list[str]:
    found = [path.relative_to(site).as_posix() for path in sorted(site.rglob("*.html"))]
    return [name for name in found if not name.startswith("_")]


def test_links_resolve_and_nothing_comes_from_elsewhere(site):
    assert build.broken(site) == []
    assert sum(path.stat().st_size for path in site.rglob("*") if path.is_file()) < build.LARGEST


def test_every_lesson_is_there_with_its_outputs(site):
    lessons = sorted(
        path.stem for path in (ROOT / "notebooks").glob("*.ipynb") if path.stem[0] < "9"
    )
    assert {f"lessons/{name}.html" for name in lessons} <= set(names(site))
    for name in lessons:
        text = (site / "lessons" / f"{name}.html").read_text(encoding="utf-8")
        assert "cell_output" in text and "snb-" in text, name
        assert "Prev" in text and "Next" in text and "copybutton" in text, name
        assert "not written yet" not in text and "papermill" not in text.split("<article")[1], name
        if "js-plotly-plot" in text or "Plotly.newPlot" in text:
            assert text.count("plotly.min.js") == 1, name
    assert (site / "_static" / "plotly.min.js").is_file()


def test_broken_pages_are_noticed(tmp_path):
    (tmp_path / "a.html").write_text(
        '<a href="b.html">x</a><a href="#there">x</a><a href="https://a b">x</a>'
        f'<img src="https://example.org/x.png"><p>{ROOT}/data</p><a href="a.html#here">x</a>'
        '<p id="here"></p>'
    )
    faults = build.broken(tmp_path)
    wanted = (
        "b.html leads nowhere",
        "no such place",
        "no address",
        "from elsewhere",
        "a folder of",
    )
    for words in wanted:
        assert sum(words in fault for fault in faults) == 1, (words, faults)
    assert len(faults) == len(wanted)


def looked_at(sheet, address: str) -> list[str]:
    """What is wrong with one page at this width and in this scheme."""
    wrong: list[str] = []
    inside = ("file:", "data:", "blob:")
    sheet.on("pageerror", lambda error: wrong.append(str(error)))
    sheet.on(
        "request",
        lambda one: None if one.url.startswith(inside) else wrong.append(f"asks for {one.url}"),
    )
    sheet.goto(address)
    sheet.wait_for_function("() => document.body.dataset.scheme")
    sheet.wait_for_timeout(400)
    wide = sheet.evaluate("document.documentElement.scrollWidth - window.innerWidth")
    wrong += [f"{wide} pixels too wide"] if wide > 0 else []
    return wrong + complaints(sheet, None, CORNERS)


DARK = ("index.html", "lessons/00_start_here.html", "lessons/04_tree_drafting.html", "results.html")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_work_on_a_phone_and_pass_axe(site, chrome, scheme):
    """In the dark one page of each kind: style sheets are shared, and what lessons show is looked
    at in both schemes where a run's pages are."""
    context = chrome.new_context(viewport={"width": 380, "height": 800}, color_scheme=scheme)
    wrong = set()
    assert set(DARK) <= set(names(site))
    for name in DARK if scheme == "dark" else names(site):
        sheet = context.new_page()
        wrong.update(f"{name}: {one}" for one in looked_at(sheet, (site / name).as_uri()))
        sheet.close()
    context.close()
    assert not wrong, "\n".join(sorted(wrong)[:40])


def test_search_and_scheme_work_from_a_folder(site, chrome):
    sheet = chrome.new_page()
    sheet.goto((site / "search.html").as_uri() + "?q=residual")
    sheet.wait_for_selector("#search-results li a", timeout=15_000)
    hits = sheet.locator("#search-results li a").all_inner_texts()
    assert any("Glossary" in hit or hit.startswith("01") for hit in hits), hits
    sheet.goto((site / "lessons" / "01_speculative_sampling.html").as_uri())
    sheet.wait_for_function("() => document.body.dataset.scheme")
    ground = "getComputedStyle(document.body).backgroundColor"
    seen = set()
    for _ in range(3):  # automatic, light, dark
        sheet.locator("button.theme-toggle:visible").first.click()
        seen.add(sheet.evaluate(ground))
    assert len(seen) == 2
    tip = sheet.locator("a.term").first
    tip.focus()
    shown = tip.evaluate("one => getComputedStyle(one, '::after').content")
    assert len(shown) > 20
    sheet.close()


def test_the_page_without_a_kernel_is_steered_by_keyboard(site, chrome):
    sheet = chrome.new_page(viewport={"width": 380, "height": 800})
    sheet.goto((site / "play.html").as_uri())
    figures = sheet.locator("#play-figures")
    before = figures.inner_text()
    assert re.search(r"\d+ tokens in \d+ passes", before)
    tokens = before.split(" tokens")[0]
    slider = sheet.locator("#play-length")
    slider.focus()
    sheet.keyboard.press("Home")
    shortest = figures.inner_text()
    sheet.keyboard.press("End")
    longest = figures.inner_text()
    assert sheet.locator("#play-length-is").inner_text() == "16"
    assert len({before, shortest, longest}) == 3
    assert all(text.startswith(f"{tokens} tokens") for text in (shortest, longest))
    sheet.locator("#play-strip button").first.press("Enter")
    assert "temperature 1" in sheet.locator("#play-detail").inner_text()
    for mode, method in (("greedy", "tree"), ("drawn", "tree"), ("drawn", "AdaEDL")):
        sheet.select_option("#play-mode", mode)
        sheet.select_option("#play-method", method)
        assert sheet.locator("#play-strip li").count() > 2
    sheet.select_option("#play-mode", "drawn")
    assert sheet.locator('#play-method option[value="MaxConfidence"]').is_disabled()
    sheet.close()
