"""The token strip and the plots: escaped, complete, readable, and true to the record."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch

import specnb as sn
from specnb.models import TableModel
from specnb.record import (
    EMITTED,
    VERDICTS,
    BlockRow,
    Record,
    TokenRow,
    accepted_lengths,
    joint_acceptance,
)
from specnb.views import canvas, plots
from specnb.views import theme as themes
from specnb.views.style import CARD, STYLES, by_block, columns_of, number, visible

SVG = "{http://www.w3.org/2000/svg}"
VOID = {"meta", "br", "hr", "img"}
EVIL = ["<script>alert(1)</script>", '"><u onclick=x>', "\u202edesrever", "\x00", "🚤", "", "&amp;"]


@pytest.fixture(scope="module")
def run() -> sn.Record:
    target, noise = TableModel.random(5, seed=0), TableModel.random(5, seed=1)
    pair = sn.Pair(target, TableModel(target.logits + 0.6 * noise.logits))
    return sn.speculative(pair, [0], sampling=sn.Sampling(1.0), max_new_tokens=40, seed=3)


@pytest.fixture(scope="module")
def evil(run) -> sn.Record:
    rows = tuple(row._replace(text=EVIL[i % len(EVIL)]) for i, row in enumerate(run.tokens))
    texts = {i: EVIL[i % len(EVIL)] for i in range(5)}
    return replace(run, tokens=rows, token_texts=texts)


class Balance(HTMLParser):
    """Collects tags, and fails where one closes that is not open."""

    def __init__(self):
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.labels: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.seen.add(tag)
        self.labels += [value for name, value in attrs if name == "aria-label"]
        assert not any(name.startswith("on") for name, _ in attrs), attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag


def parsed(html: str) -> Balance:
    reader = Balance()
    reader.feed(html)
    reader.close()
    assert not reader.open
    return reader


def test_text_of_a_model_is_only_ever_text(evil):
    html = sn.views.tokens(evil, title="<i>x</i>").html
    reader = parsed(html)
    assert not reader.seen & {"script", "u", "i", "link", "iframe", "img"}
    assert "\u202e" not in html and "\x00" not in html and "U+202E" in html
    assert "http" not in html and "url(" not in html and "@import" not in html
    assert "&lt;script&gt;" in html


def test_every_verdict_has_its_sign_and_words(run):
    html = sn.views.tokens(run).html
    labels = parsed(html).labels
    seen = {row.verdict for row in run.tokens}
    assert seen >= {"accepted", "rejected", "correction", "unexamined", "bonus"}
    for verdict in seen:
        assert STYLES[verdict].sign in html
        assert any(verdict in label for label in labels)
    assert set(STYLES) == set(VERDICTS) and len({style.sign for style in STYLES.values()}) == 7


def test_a_rejected_token_is_followed_by_its_correction(run):
    order = re.findall(r'class="snb-t snb-(\w+) snb-\w+" role', sn.views.tokens(run).html)
    assert len(order) == len(run.tokens)
    for before, after in zip(order, order[1:], strict=False):
        if before == "rejected":
            assert after == "correction"


def test_the_panel_shows_the_numbers_of_the_record(run):
    html = sn.views.tokens(run).html
    panels = re.split(r'class="snb-t snb-\w+ snb-\w+" role', html)[1:]
    by_order = sorted(run.tokens, key=lambda row: (row.block, row.depth, row.node < 0))
    for panel, row in zip(panels, by_order, strict=True):
        assert number(row.target_prob) in panel
        if row.draft_prob is not None:
            assert number(row.draft_prob) in panel and number(row.draft_entropy) in panel
        for _, prob in row.target_top:
            assert number(prob) in panel


def test_what_cannot_be_said_is_not_among_the_top_five(run):
    """A greedy distribution has one token; the record holds others, of probability 0."""
    tops = {"target_top": ((1, 1.0), (2, 0.0), (3, 0.0)), "draft_top": ((1, 0.5), (2, 0.5))}
    greedy = replace(run, tokens=tuple(row._replace(**tops) for row in run.tokens))
    parts = sn.views.tokens(greedy).html.split('class="snb-head"')
    for name, n in (("target", 1), ("draft", 2)):
        lists = [part for part in parts if part.startswith(f">{name}, top five")]
        assert lists and {part.count("snb-pair") for part in lists} == {n}


def test_the_box_below_the_strip_speaks_of_the_first_rejected_token(run):
    """It is never empty; pointing at a token lays that one's panel over it."""
    html = sn.views.tokens(run).html
    box = html[html.index('class="snb-rest"') :]
    first = next(row for row in run.tokens if row.verdict == "rejected")
    assert f"<b>{visible(first.text)}</b></bdi> ✗ rejected, block {first.block + 1}," in box
    assert number(first.accept_prob) in box and "draft, top five" in box
    kept = tuple(row for row in run.tokens if row.verdict in ("accepted", "bonus"))
    assert "✓ accepted" in sn.views.tokens(replace(run, tokens=kept)).html.split("snb-rest")[-1]
    nothing = sn.views.tokens(replace(run, tokens=(), token_ids=(), blocks=())).html
    parsed(nothing)


def test_what_was_put_in_by_hand_is_one_frame_and_no_work(run):
    """Its tokens count in no figure of the method's."""
    block = run.blocks[0]._replace(n_drafted=0, stopped_by="forced", n_emitted=1, verify_s=9.0)
    n = len(run.blocks)
    row = run.emitted[0]._replace(depth=1, node=-1, parent=-1, verdict="forced", accept_prob=None)
    rows = [row._replace(block=n + i) for i in range(3)]
    more = replace(
        run,
        token_ids=(*run.token_ids, *(row.token_id for row in rows)),
        tokens=(*run.tokens, *rows),
        blocks=(*run.blocks, block, block, block),
    )
    html = sn.views.tokens(more).html
    assert html.count('class="snb-block"') == n + 1 and f">{n + 1}–{n + 3}</span>" in html
    assert f"{len(run.token_ids)} tokens in {n} target calls and 3 by hand" in html
    assert "by hand" not in sn.views.tokens(run).html.replace("put here by hand", "")
    same = ("n_target_calls", "block_efficiency", "mbsu", "target_budget", "tokens_per_second")
    for name in (*same, "draft_forwards", "acceptance_rate"):
        assert getattr(more.metrics, name) == pytest.approx(getattr(run.metrics, name)), name
    assert replace(more, blocks=(block,), tokens=(row,)).metrics.block_efficiency is None


def test_the_strip_is_deterministic(run):
    assert sn.views.tokens(run).html == sn.views.tokens(run).html


def test_the_svg_is_well_formed(evil, run):
    for record in (evil, run):
        root = ET.fromstring(sn.views.svg(record))
        assert root.tag.endswith("svg")
    assert len(list(ET.fromstring(sn.views.svg(run)).iter())) > len(run.tokens)


def test_the_canvas_frames_shapes_under_a_title():
    root = ET.fromstring(canvas.draw(['<path d="M0 0"/>'], 400, 90.5, "<a> & b").svg)
    assert [node.tag.removeprefix(SVG) for node in root] == ["rect", "text", "path"]
    assert root.get("viewBox") == "0 0 400 90.5" and root.get("aria-label") == "<a> & b"
    assert root.find(f"{SVG}text").text == "<a> & b"
    said = ET.fromstring(canvas.draw([], 400, 90, "title", label='what is "seen"').svg)
    assert said.get("aria-label") == 'what is "seen"'
    token = ET.fromstring(canvas.words(" \u6f22", 0, 0, 14, mono=True, fitted=True))
    assert token.get("textLength") == f"{3 * canvas.COLUMN:g}" and token.text == " \u6f22"


def contrast(a: str, b: str) -> float:
    def light(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        parts = [x / 12.92 if x <= 0.03928 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    high, low = sorted((light(a), light(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


# ---- trees and traces


@pytest.fixture(scope="module")
def branched() -> sn.Record:
    target, draft = TableModel.random(6, seed=1), TableModel.random(6, seed=2)
    return sn.speculative(
        sn.Pair(target, draft),
        [0],
        drafter=sn.GumbelTopK((3, 2)),
        sampling=sn.Sampling(1.0),
        max_new_tokens=30,
    )


def test_the_tree_shows_every_node_its_verdict_and_its_parent(branched):
    for block in range(len(branched.blocks)):
        root = ET.fromstring(sn.views.tree(branched, block).svg)
        rows = [row for row in branched.tokens if row.block == block]
        titles = [node.text for node in root.iter("{http://www.w3.org/2000/svg}title")]
        assert len(titles) == len(rows)
        for row, title in zip(rows, titles, strict=True):
            assert f": {row.verdict}, draft" in title
        thick = [n for n in root.iter() if n.get("stroke-width") == "2.6"]
        assert len(thick) == branched.blocks[block].n_emitted
    grown = [sn.views.tree(branched, 0, levels).svg for levels in (0, 1, 2)]
    assert [svg.count("<title>") for svg in grown] == [0, 3, 9]
    assert all("accepted" not in svg and "rejected" not in svg for svg in grown)


def test_siblings_stand_on_one_place_of_the_text(branched):
    """The text is read along the bottom: the last of every stack that was looked at."""
    html = sn.views.tokens(branched).html
    order = re.findall(r'class="snb-t snb-(\w+) snb-\w+" role', html)
    assert len(order) == len(branched.tokens)
    stacks = 0
    for _, rows in by_block(branched):
        columns = columns_of(rows)
        stacks += sum(len(column) > 1 for column in columns)
        text = [column[-1] for column in columns if column[-1].verdict in EMITTED]
        assert text == [row for row in branched.emitted if row.block == rows[0].block]
        for column in columns:
            parents = {row.parent for row in column}
            unseen = {row.verdict for row in column} == {"unexamined"}
            assert len(parents) == 1 or unseen and len({row.depth for row in column}) == 1
            assert not any(row.verdict in EMITTED for row in column[:-1])
    assert stacks and html.count('class="snb-stack"') == stacks


def test_a_chain_has_no_stacks(run):
    assert 'class="snb-stack"' not in sn.views.tokens(run).html
    for _, rows in by_block(run):
        assert all(len(column) == 1 for column in columns_of(rows))


def test_a_tree_of_evil_texts_is_well_formed(evil):
    root = ET.fromstring(sn.views.tree(evil, 0).svg)
    assert root.tag.endswith("svg")
    with pytest.raises(ValueError, match="block=99"):
        sn.views.tree(evil, 99)
    with pytest.raises(ValueError, match="levels=50"):
        sn.views.tree(evil, 0, 50)


def test_the_trace_marks_what_lies_below_the_threshold():
    texts, scores = [" a", "<b>&", "\u202e"], [0.9, 0.2, -0.4]
    picture = sn.views.trace(texts, scores, 0.5, "<score>")
    root = ET.fromstring(picture.svg)
    titles = [node.text for node in root.iter("{http://www.w3.org/2000/svg}title")]
    assert [title.endswith("stop") for title in titles] == [False, True, True]
    assert "below 0.50 at 2 of 3 tokens" in root.get("aria-label")
    with pytest.raises(ValueError, match="3 texts, 1 scores"):
        sn.views.trace(texts, [0.1], 0.5)


def test_plots_of_rules_and_budgets():
    plots = sn.views.plots
    bound = plots.bound_against_acceptance([0.1, 0.9], [0.5, 0.5])
    assert [list(trace.x) for trace in bound.data] == [[0.1], [0.9]]
    drift = plots.threshold_drift([0.4, 0.41, 0.42], [2, 1])
    assert list(drift.data[0].y) == [0.4, 0.41, 0.42] and len(drift.layout.shapes) == 1
    rows = [
        {"method": name, "budget": b, "block_efficiency": b / 3, "shape": (b,)}
        for name in ("chain", "RSD-C")
        for b in (10, 6)
    ]
    curves = plots.budget_curves(rows)
    assert [list(trace.x) for trace in curves.data] == [[6, 10], [6, 10]]


def figures_of(run) -> dict:
    """One call of every function of `plots`, each with more lines than there are colours where it
    draws a line per group."""
    names = [f"method {i}" for i in range(9)]
    points = [{"x": x, "y": x, "y_low": 0, "y_high": 9, "by": n} for n in names for x in (1, 2)]
    budget = [{"method": n, "budget": b, "block_efficiency": b, "shape": ""} for n in names
              for b in (6, 10)]  # fmt: skip
    bins = [{"task": n, "score": s, "acceptance": s, "n": 1} for n in names for s in (0.2, 0.8)]
    words = [{"task": "a", "token_class": n, "acceptance_rate": 0.5} for n in names]
    drafts = [
        {"way": n, "drafts": k, "kept": 0.5} for n in (*names, "best possible") for k in (1, 2)
    ]
    return {
        "acceptance_by_drafts": (drafts,),
        "row_costs": ((1, 2), dict.fromkeys(names, (1.0, 2.0))),
        "acceptance_by_position": (dict.fromkeys(names, run),),
        "entropy_against_acceptance": (run,),
        "bound_against_acceptance": ([0.1, 0.9], [0.5, 0.5]),
        "calibration": (bins,),
        "threshold_drift": ([0.4, 0.41, 0.42], [2, 1]),
        "budget_curves": (budget,),
        "block_efficiency_curve": ([1, 2, 4], [1.4, 1.7, 1.9]),
        "speedup_curve": ([0.8, 0.5], 0.05),
        "measured": (points, "x", "y", "by", "title"),
        "token_classes": (words,),
    }


def look(figure) -> list[tuple]:
    """The style of every trace; fails where a line or a shape has no visible width."""
    found = []
    for trace in figure.data:
        if trace.type == "bar":
            found.append((trace.marker.color, trace.marker.pattern.shape))
            continue
        drawn = "lines" in trace.mode
        assert not drawn or trace.line.width > 0, trace.name
        assert "markers" not in trace.mode or trace.marker.size
        style = trace.marker.color, trace.marker.symbol, trace.line.dash if drawn else None
        found.append(style)
    for shape in figure.layout.shapes:
        assert shape.line.width and shape.line.width >= 1 and shape.opacity == 1.0
    return found


def test_every_figure_can_be_seen_and_told_apart(run):
    calls = figures_of(run)
    public = {n for n, f in vars(plots).items() if callable(f) and f.__module__ == plots.__name__}
    assert set(calls) == {name for name in public if not name.startswith("_")}
    for name, arguments in calls.items():
        styles = look(getattr(plots, name)(*arguments))
        assert styles and len(set(styles)) == len(styles), name


def test_what_cannot_be_seen_is_noticed(run):
    bound = plots.bound_against_acceptance([0.1, 0.9], [0.5, 0.5])
    bound.layout.shapes[0].line.width = None
    with pytest.raises(AssertionError):
        look(bound)
    lines = [themes.line_of(i, "x") for i in range(49)]
    styles = {(n["line"]["color"], n["line"]["dash"], n["marker"]["symbol"]) for n in lines}
    assert len(styles) == 49
    with pytest.raises(ValueError, match="^50 lines: 49 can be told apart"):
        themes.line_of(49, "x")


def test_a_budget_has_its_intervals():
    row = {"method": "chain", "budget": 6, "mbsu": 3.0, "shape": "", "low": 2.5, "high": 3.25}
    (line,) = plots.budget_curves([row], "mbsu").data
    assert list(line.error_y.array) == [0.25] and list(line.error_y.arrayminus) == [0.5]


def test_bars_stand_side_by_side_with_their_intervals():
    plots = sn.views.plots
    rows = [
        {"task": task, "token_class": name, "acceptance_rate": rate}
        | {"low": rate - 0.25, "high": rate + 0.125}
        for task, name, rate in (("a", "x", 0.5), ("b", "x", 0.75), ("a", "y", 0.25))
    ]
    figure = plots.token_classes(rows)
    assert [(list(bar.x), list(bar.y)) for bar in figure.data] == [
        (["a", "b"], [0.5, 0.75]),
        (["a"], [0.25]),
    ]
    assert list(figure.data[0].error_y.array) == [0.125, 0.125]
    assert list(figure.data[0].error_y.arrayminus) == [0.25, 0.25]
    assert figure.layout.barmode == "group"
    classes = [{"task": "a", "token_class": "seen", "acceptance_rate": 0.4}]
    bare = plots.token_classes(classes)
    assert list(bare.data[0].y) == [0.4] and bare.data[0].error_y.array is None
    assert not bare.layout.annotations
    counted = plots.token_classes([row | {"examined": 7 + i} for i, row in enumerate(rows)])
    notes = {note.text: round(note.x, 3) for note in counted.layout.annotations}
    assert notes == {"n=7": -0.2, "n=8": 0.8, "n=9": 0.2}  # two bars share a task's place


def test_contrast_in_both_themes():
    for theme in ("light", "dark"):
        for style in STYLES.values():
            ink, ground, _ = getattr(style, theme)
            assert contrast(ink, ground) >= 4.5, (style.meaning, theme)
        assert contrast(*CARD[theme][:2]) >= 4.5
    assert contrast("#777777", "#888888") < 4.5  # the check can fail


@pytest.mark.parametrize("text", ["\u202e", "\x00", "\u200b", "\n", " a"])
def test_nothing_hidden(text):
    assert text.strip(" a") not in visible(text) or text == " a"
    assert visible(" a") == "␣a"


def test_plots_show_the_records_numbers(run):
    figure = plots.acceptance_by_position(run)
    heights = [list(trace.y) for trace in figure.data if trace.y is not None]
    assert any(
        row[: len(run.metrics.acceptance_by_depth)]
        == pytest.approx(run.metrics.acceptance_by_depth)
        for row in heights
    )
    examined = [row for row in run.tokens if row.accept_prob is not None]
    sizes = [len(trace.x) for trace in plots.entropy_against_acceptance(run).data]
    assert len(examined) in sizes
    curve = plots.block_efficiency_curve([1, 2, 4], [1.4, 1.7, 1.9], 0.5)
    assert any(list(trace.y) == [1.4, 1.7, 1.9] for trace in curve.data)
    spans = [(1.3, 1.5), (1.5, 2.0), (1.9, 2.2)]
    (bars,) = (
        trace.error_y
        for trace in plots.block_efficiency_curve([1, 2, 4], [1.4, 1.7, 1.9], spans=spans).data
        if trace.name == "measured"
    )
    assert list(bars.array) == pytest.approx([0.1, 0.3, 0.3])
    assert list(bars.arrayminus) == pytest.approx([0.1, 0.2, 0.0])
    speed = plots.speedup_curve([0.8], 0.05, 10)
    wanted = [sn.theory.walltime_improvement(0.8, n, 0.05) for n in range(0, 11)]
    values = [float(y) for trace in speed.data for y in trace.y]
    assert any(abs(value - max(wanted)) < 1e-9 for value in values)


def test_distributions_show_the_residual():
    target = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    draft = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    picture = sn.views.distributions(target, draft, ["a", "<b>", "c"], token=2)
    titles = [node.text for node in ET.fromstring(picture.svg).iter(f"{SVG}title")]
    assert titles[:3] == ["a: target 0.500", "a: draft 0.200", "a: residual 1.000"]
    assert "<b>: residual 0.000" in titles and picture.svg.count("▶") == 1
    hidden = sn.views.distributions(target, draft, ["a", "b", "c"], with_residual=False).svg
    assert "residual" not in hidden and "what is left" not in hidden and "draft 0.500" in hidden
    sure = sn.views.distributions([0.0, 1.0, 0.0], [0.0, 1.0, 0.0], ["a", "b", "c"], token=2).svg
    assert "a: target" not in sure and "b: target 1.000" in sure and "c: draft 0.000" in sure
    assert sn.views.laws is sn.views.distributions  # lesson 01 called it so before
    only = sn.views.distributions(target, None, ["a", "b", "c"], top=1, token=2, title="x").svg
    assert "draft" not in only and "c: target 0.200" in only  # the token is always there
    with pytest.raises(ValueError, match="rows of one length"):
        sn.views.distributions(target, draft[:2], ["a", "b", "c"])
    with pytest.raises(ValueError, match="token=3"):
        sn.views.distributions(target, draft, ["a", "b", "c"], token=3)


def test_the_timeline_is_to_scale(run):
    half = replace(
        run, blocks=tuple(b._replace(draft_s=b.draft_s / 2, verify_s=0.0) for b in run.blocks)
    )
    root = ET.fromstring(sn.views.timeline({"<all>": run, "half": half}).svg)
    groups = list(root.iter(f"{SVG}g"))
    n = len(run.blocks)
    assert len(groups) == 2 * n

    def long(group) -> float:
        return sum(float(bar.get("width")) for bar in group.iter(f"{SVG}rect"))

    whole = sum(b.draft_s + b.verify_s for b in run.blocks)
    assert sum(map(long, groups[:n])) == pytest.approx(760 - 32, abs=n * 0.02)
    wanted = sum(b.draft_s for b in run.blocks) / 2 / whole * (760 - 32)
    assert sum(map(long, groups[n:])) == pytest.approx(wanted, abs=n * 0.02)
    assert "5 drafted in" in groups[0].find(f"{SVG}title").text
    with pytest.raises(ValueError, match="at least one run"):
        sn.views.timeline({})


def test_aligned_strips_put_the_same_place_into_one_column(run, evil):
    html = sn.views.aligned({"one": run, "<two>": evil}, title="<t>").html
    reader = parsed(html)
    assert not reader.seen & {"script", "u", "i", "two", "t"}
    columns = html.split('class="snb-pairs">')[1:]
    assert len(columns) == len(run.token_ids)
    for column in columns:
        assert column.count("snb-cell") == 2
    assert html.count("snb-first") == 2 * len(run.blocks) + 1  # once in the style sheet
    assert "The texts are the same, token for token" in html
    shorter = replace(run, token_ids=run.token_ids[:3], tokens=run.tokens[:2])
    assert "The texts differ from token 4 on" in sn.views.aligned({"a": run, "b": shorter}).html
    with pytest.raises(ValueError, match="at least two"):
        sn.views.aligned({"one": run})


def test_figures_are_the_records(run):
    plain = replace(run, blocks=tuple(b._replace(draft_s=0.0, verify_s=0.002) for b in run.blocks))
    html = sn.views.figures({"<chain>": run}, plain).html
    assert "<chain>" not in html
    m = run.metrics
    ratio = m.tokens_per_second / plain.metrics.tokens_per_second
    for said in (f"{m.block_efficiency:.2f}", f"{m.acceptance_rate:.0%}", f"{ratio:.2f}", "1.00"):
        assert f"<td>{said}</td>" in html
    vain = sum(row.verdict in ("rejected", "unexamined") for row in run.tokens)
    assert f"<td>{vain}</td>" in html
    for shares in (joint_acceptance(run), m.acceptance_by_depth):
        assert f"<td>{' '.join(f'{100 * share:.0f}' for share in shares)}</td>" in html
    assert f"<td>{' '.join(map(str, accepted_lengths(run)))}</td>" in html
    assert "function" not in html


def test_figures_by_kind_of_word():
    """Of four examined guesses: a function word kept and one not, a named and a seen one."""
    said = [(" a", "accepted"), (" red", "rejected"), (" is", "rejected"), (" Red", "accepted")]
    rows = tuple(
        TokenRow(i, 1, 0, -1, i, text, 0.5, 0.5, 0.1, 0.5, 0.2, "correction" if bad else kept)
        for i, (text, kept) in enumerate(said)
        for bad in (kept == "rejected",)
    )
    drafts = tuple(
        row._replace(verdict=kept, text=" x") for row, (_, kept) in zip(rows, said, strict=True)
    )
    drafts = tuple(row for row in drafts if row.verdict == "rejected")
    blocks = (BlockRow(1, 1, 0, 1, 0.0, 0.0, "length", None, False),) * len(said)
    one = Record("", (0, 1, 2, 3), (*rows, *drafts), blocks, "length", 0.0)
    html = sn.views.figures({"a": one}, prompt="What is there?").html
    head, cell = "kept of the function, named, seen words, % of examined", "50 100 0"
    assert f'<th scope="row">{head}</th><td>{cell}</td>' in html
    told = sn.views.figures({"a": one}, prompt="What is red?").html  # the prompt has said it
    assert "<td>50 50 –</td>" in told
    nothing = replace(one, tokens=(rows[1],))  # of what nobody guessed, nothing is said
    assert f"{head}</th><td>–</td>" in sn.views.figures({"a": nothing}, prompt="?").html
