"""Offline pages of a run: nothing from elsewhere; figures, formulas and folds are kept."""

from __future__ import annotations

import html
import json
import re

import nbformat
import plotly.graph_objects as go
import pytest
from axe import CORNERS, complaints

from specnb import batch
from specnb.batch import export

FORMULA = (
    "# A page\n\nThen $1 + \\alpha^2$ tokens, `$not$ this`.\n\n"
    "```\n$nor$ this\n```\n\n$$\\sqrt{x}$$"
)
FOLD = "<details><summary>Hint</summary>\n\nTry **this**.\n\n</details>"
SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><rect width="9"/></svg>'


def output(data) -> nbformat.NotebookNode:
    return nbformat.v4.new_output("display_data", data=data)


# A file's folders are the machine's own; what only looks like one is kept.
TEXT = (
    "read /srv/me/data/models/target and C:\\Users\\me\\x.png; 3/4/5, https://a.b/c/d/e, <b>/x</b>"
)
PICTURE = "data:image/png;base64,iVBO+/9j/4AAQ/SkZJ/Rg=="


def machinery() -> list[nbformat.NotebookNode]:
    """Cells of every tag that a reader of a page does not need, and one of them that failed."""
    cells = []
    for tag in (*sorted(export.HIDDEN), *sorted(export.WITHOUT_CODE)):
        cell = nbformat.v4.new_code_cell(f"code_of_{tag.replace('-', '_')}()")
        cell.metadata["tags"] = [tag]
        cell.outputs = [nbformat.v4.new_output("stream", text=f"said by {tag}\n")]
        cells.append(cell)
    failed = nbformat.v4.new_code_cell("code_that_failed()")
    failed.metadata["tags"] = ["setup"]
    failed.outputs = [
        nbformat.v4.new_output("error", ename="E", evalue="no", traceback=["E: /srv/me/a/b.py"])
    ]
    paths = nbformat.v4.new_code_cell("paths")
    paths.outputs = [
        nbformat.v4.new_output("stream", text=TEXT),
        output({"text/html": f'<img alt="" src="{PICTURE}"> /srv/me/a/b.csv'}),
    ]
    return [*cells, failed, paths]


@pytest.fixture
def folder(tmp_path):
    """A run of two notebooks, the second of which failed before its first cell."""
    figure = go.Figure(go.Bar(x=["a", "b"], y=[1, 2], name="</script><b>"))
    figures = {"application/vnd.plotly.v1+json": json.loads(figure.to_json())}
    widget = {
        export.WIDGET: {"model_id": "1"},
        "text/plain": "VBox(children=(IntSlider(value=5),))",
    }
    code = nbformat.v4.new_code_cell("figure")
    code.outputs = [
        output(widget),
        output(figures),
        output(figures),
        output({"image/svg+xml": SVG}),
    ]
    texts = [nbformat.v4.new_markdown_cell(text) for text in (FORMULA, FOLD)]
    book = nbformat.v4.new_notebook(
        cells=[*texts, code, *machinery()],
        metadata={"widgets": {"big": "state"}},
    )
    nbformat.write(book, tmp_path / "00_one-1.ipynb")
    ran = {"id": "00_one-1", "notebook": "00_one", "seconds": 3.2, "status": "ok", "error": ""}
    ran |= {"measurements": [], "versions": {}}
    ran |= {"parameters": {"draft_length": 7, "target": "", "prompts": "/srv/me/my/p.jsonl"}}
    not_ran = ran | {
        "id": "01-2",
        "notebook": "01_<b>",
        "seconds": 0.1,
        "status": "failed",
        "error": "no <i>",
    }
    rows = [ran | {"headline": {"tau_of_all": 3.14159}}, not_ran | {"headline": {}}]
    (tmp_path / "summary.json").write_text(json.dumps(rows))
    return tmp_path


def test_a_page_needs_nothing_from_elsewhere(folder):
    page, index = export.write(folder)
    assert (page.name, index.name) == ("00_one-1.html", "index.html")
    body = page.read_text()
    assert page.stat().st_size < 6e6
    assert not re.search(r'<script[^>]*\ssrc=|<link[^>]*href="http|@import|from .https:', body)
    assert body.count("Plotly.newPlot") >= 2 and body.count("plotly.js v") == 1
    assert "IntSlider" not in body and "A control stands here" in body
    assert '"big"' not in body
    assert "<rect" in body


def test_a_page_leaves_the_machinery_out_but_not_what_failed(folder):
    body = export.write(folder)[0].read_text()
    text = re.sub("<[^>]*>", "", body)
    for tag in export.HIDDEN:
        assert f"code_of_{tag.replace('-', '_')}" not in text and f"said by {tag}" not in text
    for tag in export.WITHOUT_CODE:  # what a control showed is for the reader
        assert f"code_of_{tag}" not in text and f"said by {tag}" in text
    assert "code_that_failed" in text and "paths" in text


def test_a_page_names_no_folder_of_the_machine(folder):
    body = export.write(folder)[0].read_text()
    text = html.unescape(re.sub("<[^>]*>", "", body))
    assert "/srv/me" not in body and "Users\\" not in body
    assert "read …/target and …/x.png; 3/4/5, https://a.b/c/d/e, <b>/x</b>" in text
    assert "E: …/b.py" in text and PICTURE in body and " …/b.csv" in body
    assert "Run with draft_length = 7, prompts = '…/p.jsonl'." in text


def test_pages_lead_to_each_other(folder):
    rows = json.loads((folder / "summary.json").read_text())
    for number in (2, 3):
        (folder / f"0{number}.ipynb").write_bytes((folder / "00_one-1.ipynb").read_bytes())
        rows.append(rows[0] | {"id": f"0{number}", "notebook": f"0{number}_more"})
    (folder / "summary.json").write_text(json.dumps(rows))
    pages = [path.read_text() for path in export.write(folder)[:-1]]
    links = [re.findall(r"<nav.*?</nav>", body)[0] for body in pages]
    ways = [re.findall(r'href="(.*?)">(.*?)<', link) for link in links]
    assert ways[0] == [("index.html", "all pages"), ("02.html", "02_more ▶")]
    assert ways[1][1:] == [("00_one-1.html", "◀ 00_one"), ("03.html", "03_more ▶")]
    assert ways[2][1:] == [("02.html", "◀ 02_more")]
    assert all((folder / to).is_file() for way in ways for to, _ in way)


def test_links_among_notebooks_lead_to_pages_and_others_are_words(folder):
    more = nbformat.read(folder / "00_one-1.ipynb", as_version=4)
    text = "[two](02_more.ipynb), [*res*](../RESULTS.md), [a](https://a.b/c), `[c](d.md)`, [h](#h)"
    more.cells.append(nbformat.v4.new_markdown_cell(text))
    nbformat.write(more, folder / "00_one-1.ipynb")
    (folder / "02-x.ipynb").write_bytes((folder / "00_one-1.ipynb").read_bytes())
    rows = json.loads((folder / "summary.json").read_text())
    rows.append(rows[0] | {"id": "02-x", "notebook": "02_more"})
    (folder / "summary.json").write_text(json.dumps(rows))
    body = export.write(folder)[0].read_text()
    assert '<a href="02-x.html">two</a>, <em>res</em>, <a href="https://a.b/c">a</a>' in body
    assert "<code>[c](d.md)</code>" in body and '<a href="#h">h</a>' in body


# The lower end of an exponent lies below the upper end of its base, in a font of the page's own.
SET = """() => { const box = e => e.getBoundingClientRect();
  const [base, power] = [...document.querySelector('msup').children].map(box);
  return [[...document.fonts].map(f => f.family.replaceAll('"', '') + ' ' + f.status),
          power.bottom > base.top && power.top < base.top + base.height / 2
          && power.height < base.height + 4]; }"""
GROUND = "() => getComputedStyle(document.body).backgroundColor"


@pytest.mark.slow
def test_a_page_follows_the_readers_scheme_and_sets_its_formulas(folder, chrome, shots):
    path = export.write(folder)[0]
    grounds = {}
    for scheme in ("light", "dark"):
        context = chrome.new_context(color_scheme=scheme, offline=True)
        page = context.new_page()
        page.goto(path.as_uri())
        page.wait_for_timeout(500)
        fonts, set_well = page.evaluate(SET)
        assert fonts == ["STIX Two Math loaded"] and set_well
        grounds[scheme] = [int(n) for n in re.findall(r"\d+", page.evaluate(GROUND))]
        dark = page.evaluate("document.documentElement.dataset.jpThemeLight") == "false"
        turned = page.evaluate("getComputedStyle(document.querySelector('.main-svg')).filter")
        assert dark is (scheme == "dark") and ("invert" in turned) is dark
        assert complaints(page, known=CORNERS) == []
        page.screenshot(path=shots / f"page-{scheme}.png")
        page.set_viewport_size({"width": 380, "height": 800})
        assert page.evaluate("document.body.scrollWidth <= window.innerWidth")
        context.close()
    assert min(grounds["light"]) > 240 and max(grounds["dark"]) < 40


def test_formulas_become_mathml_and_code_does_not(folder):
    body = export.write(folder)[0].read_text()
    assert "<msup>" in body and "<msqrt>" in body and 'display="block"' in body
    assert "$not$ this" in body and "$nor$ this" in body and "\\alpha" not in body


def test_folds_keep_what_is_in_them(folder):
    body = export.write(folder)[0].read_text()
    fold = re.search(r"<details>.*?</details>", body, re.S)[0]
    assert "<strong>this</strong>" in fold


def test_the_index_shows_every_notebook(folder):
    text = export.write(folder)[-1].read_text()
    assert '<a href="00_one-1.html">A page</a>' in text and "data:image/svg+xml;base64" in text
    assert "<dt>tau of all</dt><dd>3.14</dd>" in text
    assert "01_&lt;b&gt;" in text and "no &lt;i&gt;" in text and '"01_<b>' not in text


def test_a_foreign_row_writes_nothing_outside(folder, capsys):
    rows = json.loads((folder / "summary.json").read_text())
    victim = folder.parent / "victim.ipynb"
    victim.write_bytes((folder / "00_one-1.ipynb").read_bytes())
    rows += [rows[0] | {"id": "../victim"}, {"id": "x"}, 3]
    (folder / "summary.json").write_text(json.dumps(rows))
    assert len(export.write(folder)) == 2 and not victim.with_suffix(".html").exists()
    said = capsys.readouterr().err
    assert "'../victim' is no plain name" in said and "no JSON object" in said


def test_command_line(folder, capsys):
    assert batch.main(["html", str(folder)]) == 0
    assert str(folder / "index.html") in capsys.readouterr().out
    with pytest.raises(SystemExit) as caught:
        batch.main(["html", str(folder / "nothing")])
    assert caught.value.code == 2 and "summary.json" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.notebook
@pytest.mark.weights
def test_pages_of_a_run_in_a_browser(executed, chrome, shots):
    folder, rows = executed
    written = export.write(folder)
    foreign, errors, inside = [], [], ("file:", "data:", "blob:")
    both = [(path, scheme) for path in written for scheme in ("light", "dark")]
    for path, scheme in both:
        size = {"width": 1280, "height": 2000}
        context = chrome.new_context(viewport=size, color_scheme=scheme, offline=True)
        page = context.new_page()
        page.on("request", lambda r: None if r.url.startswith(inside) else foreign.append(r.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(path.as_uri())
        page.wait_for_timeout(500)
        if path.name != "index.html":
            assert path.stat().st_size < 7e6  # of which 4.8e6 are the script of plotly
            report = path.stem.startswith("9")
            # A panel leaves a copy that needs no kernel; two lessons have sliders and strips only.
            scope = "" if path.stem[:2] in ("05", "06") else ".snb-static "
            views = page.locator(f"{scope}.snb-tokens, {scope}svg:not(.main-svg)")
            assert report or views.count(), path.name
            for plot in page.locator(".plotly-graph-div").all():
                assert plot.locator(".main-svg").count()
            strip = page.locator(".snb-t[tabindex]").first
            if strip.count():
                strip.focus()
                assert strip.locator(".snb-tip").is_visible()  # laws are shown without a kernel
            assert page.evaluate("document.body.scrollWidth <= window.innerWidth")
        else:
            bare = 2  # lesson 06 and the report have no picture but what scripts draw
            assert page.locator("li").count() == len(rows) == page.locator("li img").count() + bare
        page.screenshot(path=shots / f"page-{path.stem}-{scheme}.png")
        assert complaints(page, known=CORNERS) == []
        context.close()
    assert foreign == [] and errors == []


# ---- slides

PLACE = "() => Math.round(scrollY / innerHeight)"
HEIGHTS = "() => [...document.querySelectorAll('.snb-slide')].map(s => s.offsetHeight)"


def test_a_text_becomes_slides(tmp_path, capsys):
    source, goal = tmp_path / "talk.md", tmp_path / "talk.html"
    source.write_text("# One & all\n\n$a^2$\n\n---\n\n# Two\n\na --- b\n")
    assert batch.main(["slides", str(goal), str(source)]) == 0
    body = goal.read_text()
    assert body.count('<section class="snb-slide">') == 2 and "a --- b" in body
    assert "<msup>" in body and "<title>One &amp; all</title>" in body
    assert not re.search(r'<script[^>]*\ssrc=|<link[^>]*href="http|@import|from .https:', body)
    with pytest.raises(SystemExit):
        batch.main(["slides", str(goal), str(tmp_path / "nothing.md")])
    assert "nothing.md: there is no such file" in capsys.readouterr().err


@pytest.mark.slow
def test_the_five_slides_fit_and_turn(chrome, shots, tmp_path):
    goal = tmp_path / "slides.html"
    batch.main(["slides", str(goal)])
    context = chrome.new_context(viewport={"width": 1280, "height": 720}, offline=True)
    page = context.new_page()
    page.goto(goal.as_uri())
    assert page.evaluate(HEIGHTS) == [720] * 5
    seen = []
    for key in ("Space", "ArrowRight", "PageDown", "ArrowDown", "Space", "Shift+Space", "ArrowUp"):
        page.keyboard.press(key)
        page.wait_for_timeout(200)
        seen.append(page.evaluate(PLACE))
        page.screenshot(path=shots / f"slide-{seen[-1] + 1}.png")
    assert seen == [1, 2, 3, 4, 4, 3, 2]
    assert complaints(page, known={"page-has-heading-one": "html"}) == []
    context.close()
