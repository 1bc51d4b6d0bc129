"""How the pages' sources are made, without Sphinx and a browser."""

from __future__ import annotations

import json
import sys

import pytest
from places import ROOT

sys.path.insert(0, str(ROOT / "docs"))
import build

TERMS = build.glossary((ROOT / "docs" / "glossary.md").read_text(encoding="utf-8"))


def test_terms_are_explained_once_and_only_in_prose():
    left = dict(TERMS)
    text = "# The target\n\nThe target keeps `target` as **target**; a [target](x.md).\n\n$target$"
    made = build.with_terms(text, left)
    assert made.count('class="term"') == 1 and "target" not in left
    assert made.startswith("# The target\n\nThe <a class") and "`target`" in made
    assert "../glossary.html#term-target" in made and "[target](x.md)" in made
    assert build.with_terms("The target again.", left) == "The target again."
    assert "block efficiency" in TERMS and len(TERMS) > 15


@pytest.mark.parametrize(
    ("text", "path", "page", "wanted"),
    [
        (
            "[a](01_x.ipynb)",
            "notebooks/TEACHING.md",
            "lessons/teaching",
            "[a](../lessons/01_x.ipynb)",
        ),
        ("[a](../RESULTS.md#b)", "notebooks/x.ipynb", "lessons/x", "[a](../results.md#b)"),
        ("[a](docs/play.md)", "CONTRIBUTING.md", "contributing", "[a](play.md)"),
        ("![a](images/b.png)", "notebooks/x.ipynb", "lessons/x", "![a](../images/b.png)"),
        ("[a](LICENSE)", "CONTRIBUTING.md", "contributing", "a (`LICENSE`)"),
        ("[one](solutions/01_x.ipynb)", "notebooks/x.ipynb", "lessons/x", "one (`notebooks/sol"),
        ("[a](https://b.org)", "RESULTS.md", "results", "[a](https://b.org)"),
        ("[a](#b)", "RESULTS.md", "results", "[a](#b)"),
    ],
)
def test_links_of_the_repository_become_links_of_the_pages(text, path, page, wanted):
    assert build.relinked(text, path, page).startswith(wanted)


def test_a_page_has_one_title():
    assert build.one_title("# a\n\n## b", "X") == "# a\n\n## b"
    assert build.one_title("# a\n\n# b\n", "Slides") == "# Slides\n\n## a\n\n## b\n"


def test_a_lesson_loses_its_machinery_and_keeps_its_outputs():
    def code(tags, **output):
        outputs = [{"output_type": "display_data", "metadata": {}, **output}] if output else []
        return {"cell_type": "code", "metadata": {"tags": tags}, "source": "x", "outputs": outputs}

    chart = {"data": [{"type": "bar", "y": [1]}], "layout": {}}
    cells = [
        {"cell_type": "markdown", "metadata": {}, "source": "# 01 Title?"},
        code(["setup"]),
        code(["parameters"]),
        code(["check"], data={"text/plain": "not written yet"}),
        code([], data={build.PLOTLY: chart}),
        code(["live"], data={build.WIDGET: {}}),
        code([], name="stderr", output_type="stream", text="a warning"),
        code(["results"]),
    ]
    made = build.lesson({"cells": cells, "metadata": {"widgets": {}}}, TERMS)
    text = json.dumps(made)
    assert "widgets" not in made["metadata"] and "not written" not in text and "warning" not in text
    assert text.count("plotly.min.js") == 1 and "Plotly.newPlot" in text
    assert "play.html" in text and '"hide-input"' in text and '"remove-input"' in text
    assert len(made["cells"]) == 6  # the script among them


def test_a_run_that_is_not_whole_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no summary.json"):
        build.executed(tmp_path)
    row = {"notebook": "00_start_here", "status": "failed", "id": "x"}
    (tmp_path / "summary.json").write_text(json.dumps([row]))
    with pytest.raises(ValueError, match="not finished there: 00_start_here, 01_"):
        build.executed(tmp_path)
