"""A measurement is a row with a content key: methods in turns, and statistics on their rows."""

from specnb.measure.rows import Row, RowCache, row_of
from specnb.measure.runner import in_turns, turns
from specnb.measure.stats import best_of, geometric_ratio, interval, median_ratio, pooled, wilson

__all__ = [
    "Row",
    "RowCache",
    "best_of",
    "geometric_ratio",
    "in_turns",
    "interval",
    "median_ratio",
    "pooled",
    "row_of",
    "turns",
    "wilson",
]
