"""Builds the pages: `make site`, or `python docs/build.py --run FOLDER --out FOLDER`.

The pages of docs/, RESULTS.md, CONTRIBUTING.md, TEACHING.md, the lessons as a run of
`specnb.batch` has executed them, and the API from its docstrings, by Sphinx. The result opens from
a folder and needs nothing from elsewhere.
"""

from __future__ import annotations

import argparse
import html
import json
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
LARGEST = 25e6  # bytes of the whole site
WIDGET, PLOTLY = "application/vnd.jupyter.widget-view+json", "application/vnd.plotly.v1+json"
# Where no term is explained: code, formulas, headings, tables, links, tags, what is in bold.
APART = re.compile(
    r"(```.*?```|`[^`\n]*`|\$\$.*?\$\$|\$[^$\n]+\$|^#[^\n]*$|^\|[^\n]*$"
    r"|!?\[[^\]]*\]\([^)]*\)|<details>.*?</details>|<[^>]+>|\*\*[^*]+\*\*)",
    re.S | re.M,
)
LIVE = (
    '<p><em>In the notebook a control stands here; <a href="../play.html">this page</a> has some.'
    "</em></p>"
)
SCRIPT = '<script src="../_static/plotly.min.js"></script>'
REST = {  # pages that lie elsewhere in the repository
    "results": "RESULTS.md",
    "contributing": "CONTRIBUTING.md",
    "changes": "CHANGELOG.md",
}
REST |= {
    f"lessons/{p.stem.lower()}": f"notebooks/{p.name}" for p in (ROOT / "notebooks").glob("*.md")
}
# Where links of those pages, and of docs/, lead in the site.
PLACES = {path: name for name, path in REST.items()}
API = (  # modules whose public members are shown besides the names of `specnb` itself
    "specnb.exact", "specnb.theory", "specnb.verify", "specnb.measure", "specnb.training",
    "specnb.bench.results",
)  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, default=ROOT / "runs" / "site", help="executed lessons")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "pages")
    options = parser.parse_args(argv)
    build(options.run, options.out)
    faults = broken(options.out)
    size = sum(path.stat().st_size for path in options.out.rglob("*") if path.is_file())
    if size > LARGEST:
        faults.append(f"the site has {size / 1e6:.1f} MB, more than {LARGEST / 1e6:.0f}")
    print(*faults, sep="\n", file=sys.stderr)
    print(f"pages: {options.out / 'index.html'} ({size / 1e6:.1f} MB)")
    return 1 if faults else 0


def build(run: Path, out: Path) -> None:
    """Writes the sources beside `out` and calls Sphinx. ValueError for a run that is not whole."""
    from sphinx.cmd.build import build_main

    source = out.with_name(out.name + "-source")
    shutil.rmtree(source, ignore_errors=True)
    shutil.copytree(HERE, source, ignore=shutil.ignore_patterns("build.py", "__pycache__"))
    shutil.copytree(ROOT / "notebooks" / "images", source / "images")
    terms = glossary((HERE / "glossary.md").read_text(encoding="utf-8"))
    lessons = executed(run)
    (source / "lessons").mkdir()
    for name, path in lessons.items():
        book = lesson(json.loads(path.read_text(encoding="utf-8")), terms)
        (source / "lessons" / f"{name}.ipynb").write_text(json.dumps(book), encoding="utf-8")
    for name, path in REST.items():
        text = relinked((ROOT / path).read_text(encoding="utf-8"), path, name)
        text = one_title(text, Path(path).stem.capitalize())
        (source / f"{name}.md").write_text(text, encoding="utf-8")
    for path in HERE.glob("*.md"):
        text = relinked(path.read_text(encoding="utf-8"), f"docs/{path.name}", path.stem)
        text = text.replace("<!-- lessons -->", contents(source / "lessons", lessons))
        (source / path.name).write_text(text, encoding="utf-8")
    (source / "api.md").write_text(api(), encoding="utf-8")
    import plotly

    script = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"
    shutil.copy(script, source / "_static" / "plotly.min.js")
    for name in ("math.woff2", "OFL.txt"):  # browsers' own fonts draw formulas badly, or not
        shutil.copy(ROOT / "specnb" / "batch" / "page" / name, source / "_static" / name)
    shutil.rmtree(out, ignore_errors=True)
    # Warnings are errors: a formula, a link or a docstring that Sphinx cannot read.
    if build_main(["-q", "-W", "--keep-going", "-b", "html", str(source), str(out)]):
        raise SystemExit("the pages were not built; Sphinx says why above")
    for rest in (".doctrees", ".buildinfo", "objects.inv", "jupyter_execute"):
        place = out / rest
        shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)
    (out / ".nojekyll").touch()  # GitHub would leave out folders that begin with _


def executed(run: Path) -> dict[str, Path]:
    """The executed notebooks of a run by name. ValueError where one is missing or failed."""
    summary = run / "summary.json"
    if not summary.is_file():
        raise ValueError(f"run {run}: no summary.json there; `make run OUT={run}` makes one")
    rows = json.loads(summary.read_text(encoding="utf-8"))
    bad = [row["notebook"] for row in rows if row["status"] != "ok"]
    found = {row["notebook"]: run / f"{row['id']}.ipynb" for row in rows}
    wanted = {path.stem for path in (ROOT / "notebooks").glob("*.ipynb") if path.stem[0] != "9"}
    if bad or wanted - found.keys():
        lacking = ", ".join(sorted({*bad, *(wanted - found.keys())}))
        raise ValueError(f"run {run}: not finished there: {lacking}; run it again")
    return dict(sorted(found.items()))


# ------------------------------------------------------------------------------------ one lesson


def lesson(book: dict[str, Any], terms: Mapping[str, str]) -> dict[str, Any]:
    """An executed notebook as the pages show it: no set-up, figures as HTML, formulas as MathML."""
    from specnb.batch.export import HIDDEN, WITHOUT_CODE, strip_paths, with_formulas

    book["metadata"].pop("widgets", None)
    cells, figures, left = [], False, dict(terms)
    for cell in book["cells"]:
        tags = set(cell["metadata"].get("tags", []))
        if tags & (HIDDEN - {"parameters"}):  # a reader of pages runs nothing
            continue
        if cell["cell_type"] == "markdown":
            text = with_terms(without_badge("".join(cell["source"])), left)
            cell["source"] = relinked(with_formulas(text), "notebooks/x.ipynb", "lessons/x")
        else:
            outputs = [shown(output) for output in cell["outputs"]]
            cell["outputs"] = [output for output in outputs if output]
            figures |= any(PLOTLY in output.get("data", {}) for output in outputs if output)
            for output in cell["outputs"]:
                if PLOTLY not in output.get("data", {}):
                    strip_paths(output)
            if "parameters" in tags:
                cell["metadata"]["tags"] = ["hide-input"]
            elif tags & WITHOUT_CODE:
                cell["metadata"]["tags"] = ["remove-input"]
        cells.append(cell)
    for cell in cells:
        for output in cell.get("outputs", []):
            if data := output.get("data", {}).pop(PLOTLY, None):
                output["data"] = {"text/html": figure(data)}
    if figures:
        cells.insert(1, {"cell_type": "markdown", "metadata": {}, "source": SCRIPT, "id": "plotly"})
    book["cells"] = cells
    return book


def shown(output: dict[str, Any]) -> dict[str, Any] | None:
    """An output as the pages have it; None for warnings and progress bars."""
    if output.get("name") == "stderr":
        return None
    data = output.get("data", {})
    if WIDGET in data:
        return output | {"data": {"text/html": LIVE}}
    return output


def figure(data: Mapping[str, Any]) -> str:
    """A plotly figure as HTML that takes the page's script."""
    import plotly.io

    drawn = plotly.io.from_json(json.dumps(data), skip_invalid=True)
    settings = {"responsive": True, "displaylogo": False}
    return plotly.io.to_html(drawn, include_plotlyjs=False, full_html=False, config=settings)


def without_badge(text: str) -> str:
    """A page needs no badge that opens a notebook elsewhere, nor any remote picture."""
    return re.sub(r"\[!\[[^\]]*\]\(https?:[^)]*\)\]\([^)]*\)\s*", "", text)


def glossary(text: str) -> dict[str, str]:
    """Term to explanation, from the glossary's page."""
    body = re.search(r"```\{glossary\}\n(.*?)```", text, re.S)
    assert body is not None
    found = re.findall(r"^(\S.*)\n((?:    .*\n?)+)", body[1], re.M)
    return {term: " ".join(words.split()) for term, words in found}


def with_terms(text: str, left: dict[str, str]) -> str:
    """The first use of each term in a lesson as a link that explains itself; `left` shrinks."""
    parts = APART.split(text)
    for index in range(0, len(parts), 2):
        for term in sorted(left, key=len, reverse=True):
            pattern = re.compile(rf"(?<![\w-]){re.escape(term)}(?![\w-])", re.I)
            if pattern.search(parts[index]):
                link = f"../glossary.html#term-{re.sub(r'[^A-Za-z0-9]+', '-', term)}"
                tip = html.escape(left.pop(term), quote=True)
                start, found, rest = _cut(pattern, parts[index])
                anchor = f'<a class="term" href="{link}" data-tip="{tip}">{found}</a>'
                parts[index] = f"{start}{anchor}{rest}"
                break  # one in a piece of text: explanations do not stand in each other's way
    return "".join(parts)


def _cut(pattern: re.Pattern[str], text: str) -> tuple[str, str, str]:
    found = pattern.search(text)
    assert found is not None
    return text[: found.start()], found[0], text[found.end() :]


def relinked(text: str, path: str, page: str) -> str:
    """Links of a file of the repository as links of the page made of it."""
    folder, depth = Path(path).parent, page.count("/")

    def moved(found: re.Match[str]) -> str:
        link, _, part = found[2].partition("#")
        goal = (ROOT / folder / link).resolve()
        if not link or not goal.is_relative_to(ROOT):
            return found[0]
        inside = goal.relative_to(ROOT).as_posix()
        if inside.startswith("notebooks/images/"):
            inside = inside.removeprefix("notebooks/")
        elif inside in PLACES:
            inside = f"{PLACES[inside]}.md"
        elif re.fullmatch(r"notebooks/[0-8]\w*\.ipynb", inside):
            inside = inside.replace("notebooks/", "lessons/")
        elif inside.startswith("docs/"):
            inside = inside.removeprefix("docs/")
        else:  # in the repository, and not among the pages
            return found[1] if inside.endswith(found[1].strip("`")) else f"{found[1]} (`{inside}`)"
        return f"[{found[1]}]({'../' * depth}{inside}{'#' * bool(part)}{part})"

    return re.sub(r"(?<!`)\[([^\]]*)\]\((?!https?:|#|mailto:)([^)\s]+)\)", moved, text)


def one_title(text: str, title: str) -> str:
    """A page of many first headings, as slides have them, under one: the theme lists them all."""
    if len(re.findall(r"^# ", text, re.M)) < 2:
        return text
    return f"# {title}\n\n" + re.sub(r"^(#+ )", r"#\1", text, flags=re.M)


def contents(folder: Path, lessons: Mapping[str, Path]) -> str:
    """The table of lessons, and the tree that gives back, next and contents."""
    from specnb.lesson.address import lessons as described

    lines = ["| lesson | minutes | you will |", "|---|---|---|"]
    for one in described(ROOT / "notebooks"):
        name = one["file"].removesuffix(".ipynb")
        if name in lessons:
            title = f"[{one['number']} {one['title']}](lessons/{one['file']})"
            lines.append(f"| {title} | {one['minutes']} | {one['will']} |")
    tree = ["```{toctree}", ":caption: Lessons", ":hidden:", ""]
    tree += [f"lessons/{name}" for name in lessons]
    tree += [name for name in sorted(REST) if name.startswith("lessons/")] + ["```"]
    return "\n".join([*lines, "", *tree])


# ----------------------------------------------------------------------------------- the reference


def api() -> str:
    """The public names of `specnb` by module, and the members of a few modules."""
    stub = (ROOT / "specnb" / "__init__.pyi").read_text(encoding="utf-8")
    groups: dict[str, list[str]] = {}
    for module, name in re.findall(r"^from \.(\w+) import (\w+) as", stub, re.M):
        groups.setdefault(module, []).append(name)
    lines = ["# API reference", "", "`import specnb as sn`; the names below are `sn.name`.", ""]
    for module, names in groups.items():
        lines += [f"## {module}", "", "```{eval-rst}"]
        for name in names:
            lines += _directive(f"specnb.{name}")
        lines += ["```", ""]
    for module in API:
        lines += [f"## {module}", "", "```{eval-rst}", f".. automodule:: {module}", "   :members:"]
        lines += ["```", ""]
    return "\n".join(lines)


def _directive(name: str) -> Iterator[str]:
    import importlib

    thing = getattr(importlib.import_module("specnb"), name.rpartition(".")[2])
    kind = "class" if isinstance(thing, type) else "function"
    yield f".. auto{kind}:: {name}"
    if kind == "class":
        yield "   :members:"
    yield ""


# ------------------------------------------------------------------------------------------ checks


class Links(HTMLParser):
    """What a page links to, and the places in it that can be linked to."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.places: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.places.update(filter(None, (given.get("id"), given.get("name"))))
        for name in ("href", "src"):
            if given.get(name) and tag != "base":
                self.links.append(given[name] or "")


TAKEN = re.compile(r"<(?:script|img|link|iframe)[^>]*(?:src|href)=\"(?:https?:)?//[^>]*")
OUTER = re.compile(r"https://[\w.-]+\.[a-z]{2,}(:\d+)?(/[\w./?=%&#:@~+,;!()*'-]*)?")


def broken(site: Path) -> list[str]:
    """Inner links that lead nowhere, outer ones that are malformed, files taken from elsewhere."""
    pages = {}
    for path in site.rglob("*.html"):
        pages[path] = Links()
        pages[path].feed(path.read_text(encoding="utf-8"))
    faults = []
    for path, page in pages.items():
        name = path.relative_to(site)
        for link in page.links:
            if link.startswith(("data:", "mailto:", "javascript:")):
                continue
            if link.startswith(("http:", "https:", "//")):
                if not OUTER.fullmatch(link):
                    faults.append(f"{name}: {link} is no address")
                continue
            goal, part = urldefrag(link)
            there = (path.parent / unquote(goal.partition("?")[0])).resolve() if goal else path
            if there.is_dir():
                there = there / "index.html"
            if not there.is_file():
                faults.append(f"{name}: {link} leads nowhere")
            elif part and there in pages and unquote(part) not in pages[there].places:
                faults.append(f"{name}: {link}: no such place on that page")
        text = path.read_text(encoding="utf-8")
        for place in {str(ROOT), str(Path.home())} - {"/"}:
            if f"{place}/" in text:
                faults.append(f"{name}: it names a folder of this machine, {place}")
        for tag in TAKEN.findall(text):
            faults.append(f"{name}: taken from elsewhere: {tag[:120]}")
    return faults


if __name__ == "__main__":
    raise SystemExit(main())
