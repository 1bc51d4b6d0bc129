"""README stays short and true; code on the pages of docs/ runs as printed."""

import re

import pytest
from places import ROOT

import specnb as sn
from specnb import methods
from specnb.bench import results
from specnb.bench.families import FAMILIES
from specnb.lesson import address

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = sorted((ROOT / "docs").glob("*.md"))
LINKING = [*ROOT.glob("*.md"), *PAGES, *(ROOT / "notebooks").glob("*.md")]
DRAFTER = (ROOT / "docs" / "drafter.md").read_text(encoding="utf-8")


def python_in(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, re.S)


def test_the_drafter_is_exact():
    drafter, proof = python_in(DRAFTER)
    code = [line for line in drafter.splitlines() if line.strip()]
    assert len(code) <= 32
    names = {}
    exec(drafter, names)
    exec(proof, names)
    law = names["law"]
    assert law.outcomes["accepted", 1, 0] and law.outcomes["rejected", 1, 0]
    assert law.outcomes["accepted", 2, 0] and law.outcomes[("bonus",)]


def test_a_wrong_law_fails_the_proof():
    drafter, proof = python_in(DRAFTER)
    wrong = drafter.replace("one_hot.double()", "one_hot.double() * 0.5 + 0.125")
    assert wrong != drafter
    names = {}
    exec(wrong, names)
    with pytest.raises(AssertionError):
        exec(proof, names)


@pytest.mark.weights
def test_the_example_runs(monkeypatch):
    monkeypatch.chdir(ROOT)
    example = python_in((ROOT / "docs" / "python.md").read_text(encoding="utf-8"))[0]
    names = {}
    exec(example, names)
    assert names["run"].text and names["run"].metrics.block_efficiency > 1


def test_a_stranger_can_read_it_in_a_minute():
    shown = re.sub(r"\]\([^)]*\)", "]", re.sub(r"<!--.*?-->", "", README))  # no addresses, no marks
    assert len([word for word in shown.split() if re.search(r"\w", word)]) < 900
    for command in ("make run", "make test", "make lab", "make address", "make site"):
        assert command in README


def test_lessons_and_badges_are_what_make_address_writes():
    lessons = re.search(r"<!-- lessons -->\n(.*?)\n<!-- /lessons -->", README, re.S)[1]
    assert lessons == address.table(ROOT / "notebooks"), "run `make address`"
    badges = re.search(r"<!-- badges -->\n(.*?)\n<!-- /badges -->", README, re.S)[1]
    assert badges == address.badges(repository()), "run `make address`"


def repository() -> str:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project["urls"]["Repository"]


def test_badges_lead_where_they_say():
    text = address.badges("https://github.com/Some-One/specnb")
    assert "https://some-one.github.io/specnb/" in text
    assert "colab.research.google.com/github/Some-One/specnb/blob/v" in text
    assert "mybinder.org/v2/gh/Some-One/specnb/HEAD?urlpath=lab/tree/notebooks/00_" in text
    assert "http" not in address.badges("https://github.com/OWNER/specnb")


@pytest.mark.parametrize("path", [ROOT / "README.md", *PAGES], ids=lambda path: path.stem)
def test_no_page_names_a_missing_file(path):
    text = path.read_text(encoding="utf-8")
    named = re.findall(r"`((?:notebooks|data|binder|docs)/[\w./-]+)`", text)
    assert not [name for name in named if not (ROOT / name).exists()]


def links(text: str) -> list[str]:
    """The files that a page links to, code left out."""
    plain = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.S)
    return re.findall(r"\]\((?!https?:|#)([^)#\s]+)[^)]*\)", plain)


@pytest.mark.parametrize("path", LINKING, ids=lambda path: path.stem)
def test_links_lead_to_files_of_the_repository(path):
    """As GitHub shows a page; the builder of the site turns them into links between its pages."""
    found = links(path.read_text(encoding="utf-8"))
    assert not [link for link in found if not (path.parent / link).exists()]


def test_a_dead_link_is_found():
    assert links("see [a](results.md#x), [b](https://c.d), `[e](f)`") == ["results.md"]
    assert not (ROOT / "docs" / "results.md").exists()
    assert links(README) and links((ROOT / "docs" / "index.md").read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", LINKING, ids=lambda path: path.stem)
def test_commands_stand_in_code(path):
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.S)
    assert not re.findall(r"^(?:python -m|make|specnb) .*", text, re.M), "indent it by four"


def test_every_method_is_on_the_page():
    """And each text of the table builds and comes back."""
    text = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    texts = re.findall(r"^\| `(sn\.[^`]+)` \|", text, re.M)
    assert len(texts) >= 23
    for one in texts:
        made = eval(one, {"sn": sn})
        assert sn.method(sn.name_of(made)) == made, one
    named = {name for one in texts for name in re.findall(r"sn\.(\w+)\(", one)}
    wanted = {cls.__name__ for cls in (*methods.DRAFTERS, *methods.RULES)}
    wanted -= {"NoDraft", "FixedLength"}  # plain decoding, and what every drafter does by itself
    assert not wanted - named


# Sizes of a model's interface and of number formats, which no bench measures.
KNOWN = {"limits": {"32,064", "32,000", "576"}, "models": {"537", "65504"}}


@pytest.mark.weights
@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_figures_of_the_pages_are_stored(path):
    text = path.read_text(encoding="utf-8")
    sources = [results.section(one) for one in results.load().values()]
    assert set(results.missing(text, sources)) <= KNOWN.get(path.stem, set())
    for kinds in re.findall(r"(\d+) kinds", text):
        assert int(kinds) == len(FAMILIES)


@pytest.mark.parametrize("path", [ROOT / "README.md", *PAGES], ids=lambda path: path.stem)
def test_outer_links_are_well_formed(path):
    text = path.read_text(encoding="utf-8")
    for link in re.findall(r"https?://[^\s)>\"`]+", text):
        assert re.fullmatch(r"https://[\w.-]+\.[a-z]{2,}(/[\w./?=%&-]*)?", link.rstrip(".,")), link
