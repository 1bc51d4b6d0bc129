"""Executed notebooks as pages that need neither a kernel nor a network, and an index of them."""

from __future__ import annotations

import base64
import html
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specnb.batch import columns
from specnb.batch.execute import FAILED, unsound
from specnb.files import write_whole

if TYPE_CHECKING:
    from nbconvert import HTMLExporter

FORMULA = re.compile(r"\$\$(.+?)\$\$|\$(.+?)\$", re.DOTALL)
CODE = re.compile(r"(```.*?```|`[^`\n]*`)", re.DOTALL)
# A link to another file of the repository.
NEARBY = re.compile(r"(?<!!)\[(?P<words>[^\]]+)\]\((?P<to>(?![a-z]+:|#)[^)\s]+)\)")
LIVE = "<p><em>A control stands here in the notebook; what follows shows its state.</em></p>"
WIDGET, PLOTLY = "application/vnd.jupyter.widget-view+json", "application/vnd.plotly.v1+json"
HERE = Path(__file__).parent / "page"
# What a reader of a page has no use for: the machinery of the notebook. A cell that failed stays.
HIDDEN = {"setup", "parameters", "injected-parameters", "check", "results"}
WITHOUT_CODE = {"live", "static"}
# The folders of a file on the machine that ran it: two at least, or a drive. Pictures stay whole.
PATHS = re.compile(
    r"""(?P<data>data:[\w/+.;-]+,[^\s"')]*)
    | (?<![\w:/.~<+=-]) (?: ~?/(?:[\w.+@-]+/){2,} | [A-Za-z]:\\(?:[\w.+@ -]+\\)+ )""",
    re.VERBOSE,
)
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
a {{ color: #8bf; }} .failed {{ color: #f99; }} }}</style></head>
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
    sound = []
    for row in rows if isinstance(rows, list) else []:
        if why := unsound(row):
            print(f"left out of {summary.name}: {why}", file=sys.stderr)
        else:
            sound.append((row, folder / f"{row['id']}.ipynb"))
    # One without a file failed before its first cell.
    there = {row["id"]: row["notebook"] for row, source in sound if source.is_file()}
    pages = {f"{name}.ipynb": f"{one}.html" for one, name in reversed(there.items())}
    written, entries = [], []
    for row, source in sound:
        if not source.is_file():
            entries.append(_entry(row, row["notebook"], None, ""))
            continue
        body, thumbnail = page(source, row["parameters"], _links(there, row["id"]), pages)
        target = source.with_suffix(".html")
        write_whole(target, body)
        written.append(target)
        entries.append(_entry(row, _heading(source) or row["notebook"], target.name, thumbnail))
    index = folder / "index.html"
    write_whole(index, INDEX.format(entries="\n".join(entries)))
    return [*written, index]


def slides(source: Path) -> str:
    """A Markdown text as slides, one HTML page: `---` in a line of its own parts them.

    Space, arrows and page keys go from one to the next; on paper each has a sheet of its own.
    """
    import nbformat

    parts = re.split(r"^---$", source.read_text(encoding="utf-8"), flags=re.M)
    cells = [nbformat.v4.new_markdown_cell(with_formulas(part.strip())) for part in parts]
    book = nbformat.v4.new_notebook(cells=cells)
    title = parts[0].strip().splitlines()[0].lstrip("# ")
    body, _ = _exporter("slides.html.j2").from_notebook_node(book, _resources(title))
    return body


def page(
    path: Path,
    parameters: Mapping[str, object] | None = None,
    links: str = "",
    pages: Mapping[str, str] | None = None,
) -> tuple[str, str]:
    """One executed notebook as HTML, and a picture of it: its first drawing, or its last bitmap.

    Cells of the machinery are left out, and so are paths of the machine. `parameters` are those
    that it was run with, `links` the HTML above it, `pages` the page of each notebook file that
    lies beside it; links to other files of the repository become plain words.
    """
    import nbformat

    book = nbformat.read(path, as_version=4)
    book.metadata.pop("widgets", None)
    book.cells = [cell for cell in book.cells if not _is_hidden(cell)]
    pictures, figures = [""], False
    for cell in book.cells:
        if cell.cell_type == "markdown":
            cell.source = with_formulas(_relinked(cell.source, pages or {}))
            if cell.source.startswith(FAILED):
                cell.source = _without_paths(cell.source)
        if WITHOUT_CODE & set(cell.metadata.get("tags", [])):
            cell.metadata["transient"] = {"remove_source": True}
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if PLOTLY in data:
                figures = True
                output["data"] = {"text/html": _figure(data[PLOTLY])}
            elif WIDGET in data:
                output["data"] = {"text/html": LIVE}
            else:
                pictures += filter(None, [_picture(data)])
                strip_paths(output)
    resources = _resources(path.stem) | {
        "plotly": _plotly() if figures else "",
        "links": links,
        "ran_with": _ran_with(parameters or {}),
    }
    body, _ = _exporter("index.html.j2").from_notebook_node(book, resources)
    drawings = [picture for picture in pictures if "image/svg" in picture]
    return body, (drawings or pictures[-1:])[0]


def _is_hidden(cell: Mapping) -> bool:
    failed = any(output["output_type"] == "error" for output in cell.get("outputs", []))
    return bool(HIDDEN & set(cell["metadata"].get("tags", []))) and not failed


def _relinked(text: str, pages: Mapping[str, str]) -> str:
    """Links to notebooks of the run lead to their pages; what would lead nowhere is words."""

    def link(found: re.Match) -> str:
        page = pages.get(found["to"].removeprefix("./"))
        return f"[{found['words']}]({page})" if page else found["words"]

    parts = CODE.split(text)
    return "".join(part if i % 2 else NEARBY.sub(link, part) for i, part in enumerate(parts))


def _without_paths(text: str) -> str:
    return PATHS.sub(lambda found: found["data"] or "…/", text)


def strip_paths(output: dict) -> None:
    """Leaves of every path its last part."""
    for holder, key in (
        (output, "text"),
        (output, "traceback"),
        (output.get("data", {}), "text/plain"),
        (output.get("data", {}), "text/html"),
    ):
        value = holder.get(key)
        if isinstance(value, str):
            holder[key] = _without_paths(value)
        elif isinstance(value, list):
            holder[key] = [_without_paths(part) for part in value]


def _ran_with(parameters: Mapping[str, object]) -> str:
    """The parameters that it was run with, but those left empty, as HTML."""
    given = {name: value for name, value in parameters.items() if value not in ("", None)}
    said = ", ".join(f"{name} = {value!r}" for name, value in given.items())
    return f'<p class="snb-ran">Run with {html.escape(_without_paths(said))}.</p>' if said else ""


def _links(pages: Mapping[str, str], here: str) -> str:
    """The way to the index and to the pages beside this one, as HTML; `pages` are names by id."""
    ids = list(pages)
    place = ids.index(here)
    ways = [("index", "all pages")]
    ways += [(one, f"◀ {pages[one]}") for one in ids[max(place - 1, 0) : place]]
    ways += [(one, f"{pages[one]} ▶") for one in ids[place + 1 : place + 2]]
    each = "".join(f'<a href="{html.escape(to)}.html">{html.escape(name)}</a>' for to, name in ways)
    return f'<nav class="snb-pages" aria-label="pages">{each}</nav>'


def _exporter(template: str) -> HTMLExporter:
    from nbconvert import HTMLExporter

    return HTMLExporter(  # embed_images would close every <details> early
        template_name=HERE.name, template_file=template, extra_template_basedirs=[str(HERE.parent)]
    )


def _resources(name: str) -> dict[str, Any]:
    """What every page has in it."""
    exporter = _exporter("index.html.j2")
    dark = exporter.environment.loader.get_source(exporter.environment, "static/theme-dark.css")[0]
    return {
        "metadata": {"name": name},
        "dark_theme": dark,
        "font": base64.b64encode((HERE / "math.woff2").read_bytes()).decode(),
        "style": (HERE / "page.css").read_text(encoding="utf-8"),
    }


def _plotly() -> str:
    import plotly.offline

    return plotly.offline.get_plotlyjs().replace("</script", "<\\/script")


def _figure(data: Mapping) -> str:
    import plotly.io

    figure = plotly.io.from_json(json.dumps(data), skip_invalid=True)
    return plotly.io.to_html(figure, include_plotlyjs=False, full_html=False)


def with_formulas(text: str) -> str:
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


def _heading(path: Path) -> str:
    """The first heading of a notebook; "" where it has none."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    texts = ("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    lines = (line for text in texts for line in text.splitlines())
    return next((line[2:].strip() for line in lines if line.startswith("# ")), "")


def _entry(row: Mapping, name: str, link: str | None, thumbnail: str) -> str:
    name = html.escape(name)
    title = f'<a href="{html.escape(link)}">{name}</a>' if link else name
    state = "" if row["status"] == "ok" else f'<p class="failed">{html.escape(row["error"])}</p>'
    figures = "".join(
        f"<dt>{html.escape(columns.meaning(key))}</dt><dd>{_short(value)}</dd>"
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
