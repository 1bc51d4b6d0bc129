"""Executed notebooks as pages that need neither a kernel nor a network, and an index of them."""

from __future__ import annotations

import base64
import html
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from specnb.batch.execute import unsound
from specnb.files import write_whole

FORMULA = re.compile(r"\$\$(.+?)\$\$|\$(.+?)\$", re.DOTALL)
CODE = re.compile(r"(```.*?```|`[^`\n]*`)", re.DOTALL)
LIVE = "<p><em>A control stands here in the notebook; what follows shows its state.</em></p>"
WIDGET, PLOTLY = "application/vnd.jupyter.widget-view+json", "application/vnd.plotly.v1+json"
# The template's own prompts, comments, numbers and operators are paler than WCAG's 4.5 to 1.
DARKER = """<style>:root { --jp-mirror-editor-comment-color: #2d6a6a;
--jp-mirror-editor-number-color: #060; --jp-mirror-editor-operator-color: #8a00d4;
--jp-cell-prompt-not-active-font-color: #595959; --jp-cell-prompt-not-active-opacity: 1;
}</style>"""
INDEX = """<!doctype html><html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width"><title>specnb: a run of the workbook</title>
<style>body {{ font: 16px/1.5 sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }}
ul {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(20rem, 1fr)); gap: 1.5rem;
padding: 0; list-style: none; }}
li {{ border: 1px solid #bbb; border-radius: .5rem; padding: 1rem; }}
.picture {{ height: 10rem; overflow: hidden; }}
.picture > * {{ max-width: 100%; max-height: 10rem; box-sizing: border-box; }}
h2 {{ font-size: 1.1em; overflow-wrap: anywhere; }} .failed {{ color: #a00; }}
dl {{ display: grid; grid-template-columns: auto auto; font-size: .85em; margin: .5rem 0 0; }}
dd {{ margin: 0; text-align: right; }}
@media (prefers-color-scheme: dark) {{ body {{ background: #111; color: #eee; }}
a {{ color: #8bf; }} }}</style></head>
<body><main><h1>A run of the workbook</h1><ul>
{entries}
</ul></main></body></html>
"""


def write(folder: str | Path) -> list[Path]:
    """A page per executed notebook of a run folder, and `index.html`; the files that were written.

    ValueError where the folder has no `summary.json` of `specnb.batch`.
    """
    folder = Path(folder)
    summary = folder / "summary.json"
    if not summary.is_file():
        raise ValueError(f"folder {folder}: it has no summary.json; give the folder of a run")
    rows = json.loads(summary.read_text(encoding="utf-8"))
    written, entries = [], []
    for row in rows if isinstance(rows, list) else []:
        if why := unsound(row):
            print(f"left out of {summary.name}: {why}", file=sys.stderr)
            continue
        source = folder / f"{row['id']}.ipynb"
        if not source.is_file():  # it failed before its first cell
            entries.append(_entry(row, None, ""))
            continue
        body, thumbnail = page(source)
        target = source.with_suffix(".html")
        write_whole(target, body)
        written.append(target)
        entries.append(_entry(row, target.name, thumbnail))
    index = folder / "index.html"
    write_whole(index, INDEX.format(entries="\n".join(entries)))
    return [*written, index]


def page(path: Path) -> tuple[str, str]:
    """One executed notebook as HTML, and a picture of it: its first drawing, or its last bitmap."""
    import nbformat
    from nbconvert import HTMLExporter

    book = nbformat.read(path, as_version=4)
    book.metadata.pop("widgets", None)
    pictures, figures = [""], False
    for cell in book.cells:
        if cell.cell_type == "markdown":
            cell.source = _with_formulas(cell.source)
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if PLOTLY in data:
                figures = True
                output["data"] = {"text/html": _figure(data[PLOTLY])}
            elif WIDGET in data:
                output["data"] = {"text/html": LIVE}
            else:
                pictures += filter(None, [_picture(data)])
    exporter = HTMLExporter(template_name="lab")  # embed_images would close every <details> early
    body, _ = exporter.from_notebook_node(book, {"metadata": {"name": path.stem}})
    drawings = [picture for picture in pictures if "image/svg" in picture]
    return _offline(body, figures), (drawings or pictures[-1:])[0]


def _figure(data: Mapping) -> str:
    import plotly.io

    figure = plotly.io.from_json(json.dumps(data), skip_invalid=True)
    return plotly.io.to_html(figure, include_plotlyjs=False, full_html=False)


def _offline(body: str, figures: bool) -> str:
    """Scripts from elsewhere out, plotly's own in once; words that can be read on a beamer."""
    body = re.sub(r'<script[^>]*\ssrc="[^"]*"[^>]*>\s*</script>', "", body)
    body = re.sub(
        r'<script type="module">(?:(?!</script>).)*?mermaid.*?</script>', "", body, flags=re.S
    )
    body = re.sub(
        r"<!-- Load mathjax -->.*?<!-- End of mathjax configuration -->", "", body, flags=re.S
    )
    head = DARKER
    if figures:
        import plotly.offline

        script = plotly.offline.get_plotlyjs().replace("</script", "<\\/script")
        head += f"<script>{script}</script>"
    return body.replace("</head>", f"{head}</head>", 1)


def _with_formulas(text: str) -> str:
    """LaTeX as MathML, which browsers draw themselves; code stays as it is."""
    from latex2mathml.converter import convert

    def formula(found: re.Match) -> str:
        block = found[1] is not None
        return convert(found[1] or found[2], display="block" if block else "inline")

    parts = CODE.split(text)
    return "".join(part if i % 2 else FORMULA.sub(formula, part) for i, part in enumerate(parts))


def _picture(data: Mapping) -> str:
    """The picture of an output: a vector drawing, a bitmap, or one inside its HTML."""
    text = "".join(data.get("image/svg+xml", "")) + "".join(data.get("text/html", ""))
    if drawing := re.search(r"<svg .*</svg>", text, re.DOTALL):
        coded = base64.b64encode(drawing[0].encode()).decode()
        # As an image: inside the page its styles would be the page's.
        return f'<img alt="" src="data:image/svg+xml;base64,{coded}">'
    if "image/png" in data:
        return f'<img alt="" src="data:image/png;base64,{"".join(data["image/png"])}">'
    found = re.search(r'<img [^>]*src="data:image/[^>]*>', text)
    return found[0] if found else ""


def _entry(row: Mapping, link: str | None, thumbnail: str) -> str:
    name = html.escape(row["notebook"])
    title = f'<a href="{html.escape(link)}">{name}</a>' if link else name
    state = "" if row["status"] == "ok" else f'<p class="failed">{html.escape(row["error"])}</p>'
    figures = "".join(
        f"<dt>{html.escape(key)}</dt><dd>{_short(value)}</dd>"
        for key, value in list(row["headline"].items())[:6]
    )
    return (
        f'<li><div class="picture">{thumbnail}</div><h2>{title}</h2>{state}'
        f"<p>{row['seconds']:.0f} s</p><dl>{figures}</dl></li>"
    )


def _short(value: object) -> str:
    if value is None:
        return "missing"
    return f"{value:.3g}" if isinstance(value, float) else html.escape(str(value))
