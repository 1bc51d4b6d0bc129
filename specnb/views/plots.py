"""Figures of runs and of the closed forms; every function gives a `go.Figure` back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

import plotly.graph_objects as go

from specnb import theory
from specnb.measure.stats import wilson
from specnb.record import Record
from specnb.views.theme import bars_of, figure_of, line_of, ruled

Records = Record | Iterable[Record] | Mapping[str, Record | Iterable[Record]]


def _groups(records: Records) -> dict[str, list[Record]]:
    """Runs by name: one run, several pooled ones, or named groups to be held side by side."""
    named = records if isinstance(records, Mapping) else {"": records}
    return {name: [r] if isinstance(r, Record) else list(r) for name, r in named.items()}


def acceptance_by_position(records: Records) -> go.Figure:
    """Per position in the draft: blocks with an accepted token there / with an examined one.

    Runs given together are pooled; a mapping gives one line per name. Bars are Wilson's 95 %
    intervals, as if blocks were independent.
    """
    figure = figure_of("Acceptance by position", "position in the draft", "acceptance rate")
    for index, (name, runs) in enumerate(_groups(records).items()):
        seen: dict[int, set] = {}
        kept: dict[int, set] = {}
        for number, run in enumerate(runs):
            for row in run.tokens:
                if row.verdict in ("accepted", "rejected"):
                    seen.setdefault(row.depth, set()).add((number, row.block))
                if row.verdict == "accepted":
                    kept.setdefault(row.depth, set()).add((number, row.block))
        depths = sorted(seen)
        counts = [(len(kept.get(depth, ())), len(seen[depth])) for depth in depths]
        shares = [k / n for k, n in counts]
        spans = [wilson(k, n) for k, n in counts]
        figure.add_scatter(
            x=depths,
            y=shares,
            error_y={
                "array": [high - y for (_, high), y in zip(spans, shares, strict=True)],
                "arrayminus": [y - low for (low, _), y in zip(spans, shares, strict=True)],
            },
            customdata=[n for _, n in counts],
            hovertemplate="position %{x}: %{y:.3f} of %{customdata} examined<extra></extra>",
            **line_of(index, name),
        )
    figure.update_yaxes(range=[0, 1.05])
    figure.update_xaxes(dtick=1)
    return figure


def entropy_against_acceptance(records: Records, bins: int = 8) -> go.Figure:
    """Draft entropy against accept probability of every examined token, with means of bins.

    Bins hold equally many tokens (fewer bins where entropies are tied). All runs are pooled.
    """
    figure = figure_of(
        "Draft entropy against accept probability", "draft entropy (nats)", "accept probability"
    )
    runs = [run for group in _groups(records).values() for run in group]
    points: list[tuple[Any, Any]] = sorted(
        (row.draft_entropy, row.accept_prob)
        for run in runs
        for row in run.tokens
        if row.verdict in ("accepted", "rejected") and row.accept_prob is not None
    )
    means = [
        (fmean(x), fmean(y)) for x, y in (zip(*cell, strict=True) for cell in _bins(points, bins))
    ]
    grey = {"color": "#767676", "size": 6, "opacity": 0.45}
    figure.add_scatter(
        x=[x for x, _ in points], y=[y for _, y in points], mode="markers", marker=grey,
        name="examined tokens",
    )  # fmt: skip
    figure.add_scatter(
        x=[x for x, _ in means], y=[y for _, y in means], **line_of(1, "mean of a bin")
    )
    figure.update_yaxes(range=[-0.03, 1.05])
    return figure


def bound_against_acceptance(bounds: Iterable[float], acceptance: Iterable[float]) -> go.Figure:
    """A stopping rule's score of every token against its true acceptance probability.

    Above the diagonal the score is a lower bound, as Pinsker's inequality would have it.
    """
    figure = figure_of("Is the score a lower bound?", "score", "true acceptance probability")
    xs, ys = list(bounds), list(acceptance)
    for index, (name, holds) in enumerate((("bound holds", True), ("bound broken", False))):
        mine = [(x, y) for x, y in zip(xs, ys, strict=True) if (x <= y) is holds]
        line = line_of(index, name) | {"mode": "markers"}
        line["marker"] = line["marker"] | {"size": 7, "opacity": 0.55}
        figure.add_scatter(x=[x for x, _ in mine], y=[y for _, y in mine], **line)
    low = min([0.0, *xs])
    figure.add_shape(type="line", x0=low, y0=low, x1=1, y1=1, **ruled())
    figure.update_yaxes(range=[-0.03, 1.05])
    return figure


def calibration(table: Any) -> go.Figure:
    """A reliability diagram: true acceptance by a stopping rule's score, one line per task.

    `table` is a DataFrame or a list of dicts with `task`, `score`, `acceptance`, both means of a
    bin of scores, and `n`, its tokens. On the dotted line the score would be the acceptance.
    """
    rows = table.to_dict("records") if hasattr(table, "to_dict") else list(table)
    figure = figure_of("What a score is worth", "score (mean of a bin)", "true acceptance")
    for index, name in enumerate(dict.fromkeys(row["task"] for row in rows)):
        mine = sorted((row for row in rows if row["task"] == name), key=lambda row: row["score"])
        figure.add_scatter(
            x=[row["score"] for row in mine],
            y=[row["acceptance"] for row in mine],
            customdata=[row["n"] for row in mine],
            hovertemplate="score %{x:.2f}: %{y:.2f} of %{customdata} tokens<extra></extra>",
            **line_of(index, name),
        )
    figure.add_shape(type="line", x0=0, y0=0, x1=1, y1=1, **ruled("dot"))
    figure.update_yaxes(range=[-0.03, 1.05])
    return figure


def threshold_drift(thresholds: Sequence[float], blocks: Sequence[int]) -> go.Figure:
    """A rule's threshold block by block; dotted lines part the runs (`blocks` of each)."""
    figure = figure_of("The threshold, block by block", "block", "threshold")
    line = line_of(0, "threshold") | {"mode": "lines", "showlegend": False}
    figure.add_scatter(x=list(range(1, len(thresholds) + 1)), y=list(thresholds), **line)
    end = 0
    for n in blocks[:-1]:
        end += n
        figure.add_vline(x=end + 0.5, **ruled("dot"))
    return figure


def budget_curves(table: Any, column: str = "block_efficiency") -> go.Figure:
    """Block efficiency by the nodes that the target scores per call, one line per method.

    `table` is a DataFrame or a list of dicts with `method`, `budget`, `block_efficiency` and
    `shape`, and where known the ends `low` and `high` of an interval. `column` is what is
    drawn, such as "mbsu".
    """
    rows = table.to_dict("records") if hasattr(table, "to_dict") else list(table)
    words = {"block_efficiency": "tokens per target call", "mbsu": "MBSU"}.get(column, column)
    figure = figure_of("What a budget buys", "at most so many nodes per target call", words)
    for index, name in enumerate(dict.fromkeys(row["method"] for row in rows)):
        mine = sorted((row for row in rows if row["method"] == name), key=lambda r: r["budget"])
        figure.add_scatter(
            x=[row["budget"] for row in mine],
            y=[row[column] for row in mine],
            customdata=[str(row["shape"]) for row in mine],
            hovertemplate="%{x} nodes, shape %{customdata}: %{y:.2f}<extra></extra>",
            error_y=_error(mine, column) if all("low" in row for row in mine) else None,
            **line_of(index, name),
        )
    figure.update_yaxes(rangemode="tozero")
    return figure


def acceptance_by_drafts(table: Any) -> go.Figure:
    """How likely one of k drafts of a place is kept, one line per way of drafting.

    `table` is a DataFrame or a list of dicts with `way`, `drafts` and `kept`; ways whose name has
    "best" in it are bounds, drawn without points.
    """
    rows = table.to_dict("records") if hasattr(table, "to_dict") else list(table)
    figure = figure_of("How far from the best possible", "drafts of one place", "one is kept")
    for index, way in enumerate(dict.fromkeys(row["way"] for row in rows)):
        mine = sorted((row for row in rows if row["way"] == way), key=lambda row: row["drafts"])
        line = line_of(index, way)
        if "best" in way:
            line |= {"mode": "lines"}
        figure.add_scatter(
            x=[row["drafts"] for row in mine], y=[row["kept"] for row in mine], **line
        )
    figure.update_xaxes(dtick=1)
    return figure


def _error(rows: Sequence[Mapping[str, Any]], column: str) -> dict[str, list[float]]:
    """Error bars from the ends `low` and `high` of an interval."""
    return {
        "array": [row["high"] - row[column] for row in rows],
        "arrayminus": [row[column] - row["low"] for row in rows],
    }


def _bins(points: Sequence[tuple[float, float]], bins: int) -> list[list[tuple[float, float]]]:
    """Sorted points in at most `bins` cells of about equal size; ties stay in one cell."""
    cells: list[list[tuple[float, float]]] = []
    size = max(1.0, len(points) / bins)
    for index, point in enumerate(points):
        tied = bool(cells) and cells[-1][-1][0] == point[0]
        if not cells or (index >= size * len(cells) and not tied):
            cells.append([])
        cells[-1].append(point)
    return cells


def block_efficiency_curve(
    draft_lengths: Sequence[int],
    measured: Sequence[float],
    acceptance_rate: float | None = None,
    spans: Sequence[tuple[float, float]] | None = None,
) -> go.Figure:
    """Measured block efficiency by draft length, beside (1 - a^(g+1)) / (1 - a).

    Without `acceptance_rate`, a is the one that fits the measured points best (least squares).
    `spans` are the ends (low, high) of an interval for each point.
    """
    lengths, values = list(draft_lengths), list(measured)
    if not lengths or len(lengths) != len(values):
        raise ValueError(
            f"{len(lengths)} draft lengths, {len(values)} measured: give one value per length"
        )
    rate, word = acceptance_rate, "at"
    if rate is None:
        word = "fitted:"

        def error(a: float) -> float:
            pairs = zip(lengths, values, strict=True)
            return sum((theory.expected_tokens(a, g) - value) ** 2 for g, value in pairs)

        rate = min((step / 1000 for step in range(1001)), key=error)
    figure = figure_of("Block efficiency by draft length", "draft length", "tokens per target call")
    points = line_of(0, "measured")
    if spans is not None:
        points["error_y"] = {
            "array": [high - y for (_, high), y in zip(spans, values, strict=True)],
            "arrayminus": [y - low for (low, _), y in zip(spans, values, strict=True)],
        }
    figure.add_scatter(x=lengths, y=values, **points)
    steps = list(range(max(lengths) + 1))
    figure.add_scatter(
        x=steps,
        y=[theory.expected_tokens(rate, g) for g in steps],
        **line_of(1, f"closed form, {word} acceptance {rate:.3f}") | {"mode": "lines"},
    )
    figure.update_traces(mode="markers", selector={"name": "measured"})
    figure.update_yaxes(rangemode="tozero")
    return figure


def speedup_curve(
    acceptance_rates: float | Sequence[float], cost_ratio: float, longest: int = 16
) -> go.Figure:
    """Expected speed-up over plain decoding by draft length, its best length as a large marker.

    `cost_ratio` = time of a draft forward / of a target forward (theorem 3.8 of 2211.17192).
    """
    rates = [acceptance_rates] if isinstance(acceptance_rates, float) else list(acceptance_rates)
    figure = figure_of(
        f"Expected speed-up, a draft step costs {cost_ratio:g} of a target step",
        "draft length",
        "speed-up over plain decoding",
    )
    lengths = list(range(longest + 1))
    for index, rate in enumerate(rates):
        line = line_of(index, f"acceptance {rate:g}")
        gains = [theory.walltime_improvement(rate, length, cost_ratio) for length in lengths]
        best = theory.optimal_draft_length(rate, cost_ratio, longest)
        line["marker"]["size"] = [15 if length == best else 6 for length in lengths]
        figure.add_scatter(x=lengths, y=gains, **line)
    figure.add_hline(y=1.0, **ruled("dot"))
    figure.update_yaxes(rangemode="tozero")
    return figure


def measured(table: Any, x: str, y: str, by: str, title: str) -> go.Figure:
    """A line per value of `by`: column `y` against column `x`, with the ends `y_low` and `y_high`.

    `table` is a DataFrame or a list of dicts, as `specnb.batch.estimates` gives it.
    """
    rows = table.to_dict("records") if hasattr(table, "to_dict") else list(table)
    figure = figure_of(title, x.replace("param.", "").replace("_", " "), y.replace("_", " "))
    for index, name in enumerate(dict.fromkeys(row[by] for row in rows)):
        mine = sorted((row for row in rows if row[by] == name), key=lambda row: row[x])
        figure.add_scatter(
            x=[row[x] for row in mine],
            y=[row[y] for row in mine],
            error_y={
                "array": [row[f"{y}_high"] - row[y] for row in mine],
                "arrayminus": [row[y] - row[f"{y}_low"] for row in mine],
            },
            **line_of(index, f"{by.removeprefix('param.')} {name}"),
        )
    figure.update_yaxes(rangemode="tozero")
    return figure


def token_classes(table: Any) -> go.Figure:
    """Acceptance rate of function words against seen words, per task, in bars side by side.

    `table` is a DataFrame or a list of dicts with `task`, `token_class` and `acceptance_rate`, and
    where known the ends `low` and `high` of an interval and the number `examined`, which then
    stands at the bar's foot.
    """
    rows = table.to_dict("records") if hasattr(table, "to_dict") else list(table)
    figure = figure_of("Which words the drafter gets right", "task", "acceptance rate")
    names, tasks = (
        list(dict.fromkeys(row[key] for row in rows)) for key in ("token_class", "task")
    )
    for index, name in enumerate(names):
        mine = [row for row in rows if row["token_class"] == name]
        rates = [row["acceptance_rate"] for row in mine]
        bars = bars_of(index, name)
        if all("low" in row and "high" in row for row in mine):
            bars["error_y"] = {
                "array": [row["high"] - rate for row, rate in zip(mine, rates, strict=True)],
                "arrayminus": [rate - row["low"] for row, rate in zip(mine, rates, strict=True)],
            }
        figure.add_bar(x=[row["task"] for row in mine], y=rates, **bars)
        for row in mine:
            if "examined" in row:  # on the bar's foot: bars of a task share 0.8 of its place
                place = (index - (len(names) - 1) / 2) * 0.8 / len(names)
                figure.add_annotation(
                    x=tasks.index(row["task"]) + place,
                    y=0,
                    yshift=11,
                    text=f"n={row['examined']}",
                    showarrow=False,
                    bgcolor="#ffffff",
                    font={"size": 12, "color": "#000000"},
                )
    figure.update_yaxes(range=[0, 1.05])
    return figure.update_layout(barmode="group")


def row_costs(rows: Sequence[int], ms: Mapping[str, Sequence[float]]) -> go.Figure:
    """Milliseconds of one target forward by its number of tokens, a line per number format.

    As `specnb.models.calibration.row_costs` measures them. A flat line makes verification free; one
    through the origin makes it cost what plain decoding of these tokens costs.
    """
    title = "What a target forward of several tokens costs here"
    figure = figure_of(title, "tokens in one forward", "milliseconds")
    for index, (name, values) in enumerate(ms.items()):
        figure.add_scatter(
            x=list(rows),
            y=list(values),
            hovertemplate="%{x} tokens: %{y:.2f} ms<extra></extra>",
            **line_of(index, name),
        )
    figure.update_yaxes(rangemode="tozero")
    return figure
