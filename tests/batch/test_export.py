"""Offline pages of a run: nothing from elsewhere; figures, formulas and folds are kept."""

from __future__ import annotations

import json
import re

import nbformat
import plotly.graph_objects as go
import pytest
from axe import CORNERS, complaints

from specnb import batch
from specnb.batch import export

FORMULA = "Then $1 + \\alpha^2$ tokens, `$not$ this`.\n\n```\n$nor$ this\n```\n\n$$\\sqrt{x}$$"
FOLD = "<details><summary>Hint</summary>\n\nTry **this**.\n\n</details>"
SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><rect width="9"/></svg>'


def output(data) -> nbformat.NotebookNode:
    return nbformat.v4.new_output("display_data", data=data)


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
    book = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_markdown_cell(FORMULA), nbformat.v4.new_markdown_cell(FOLD), code],
        metadata={"widgets": {"big": "state"}},
    )
    nbformat.write(book, tmp_path / "00_one-1.ipynb")
    ran = {"id": "00_one-1", "notebook": "00_one", "seconds": 3.2, "status": "ok", "error": ""}
    ran |= {"parameters": {}, "measurements": [], "versions": {}}
    not_ran = ran | {
        "id": "01-2",
        "notebook": "01_<b>",
        "seconds": 0.1,
        "status": "failed",
        "error": "no <i>",
    }
    rows = [ran | {"headline": {"tau": 3.14159}}, not_ran | {"headline": {}}]
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
    assert '<a href="00_one-1.html">' in text and "data:image/svg+xml;base64" in text
    assert "<dt>tau</dt><dd>3.14</dd>" in text
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
    context = chrome.new_context(viewport={"width": 1280, "height": 2000}, offline=True)
    foreign, errors, inside = [], [], ("file:", "data:", "blob:")
    for path in written:
        page = context.new_page()
        page.on("request", lambda r: None if r.url.startswith(inside) else foreign.append(r.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(path.as_uri())
        page.wait_for_timeout(500)
        if path.name != "index.html":
            assert path.stat().st_size < 6e6
            report = path.stem.startswith("9")
            assert report or page.locator(".snb-static :is(.snb-tokens, svg)").count()
            for plot in page.locator(".plotly-graph-div").all():
                assert plot.locator(".main-svg").count()
            strip = page.locator(".snb-t[tabindex]").first
            if strip.count():
                strip.focus()
                assert strip.locator(".snb-tip").is_visible()  # laws are shown without a kernel
            assert page.evaluate("document.body.scrollWidth <= window.innerWidth")
        else:
            assert page.locator("li").count() == len(rows) <= page.locator("li img").count() + 1
        page.screenshot(path=shots / f"page-{path.stem}.png")
        assert complaints(page, known=CORNERS) == []
        page.close()
    context.close()
    assert foreign == [] and errors == []
