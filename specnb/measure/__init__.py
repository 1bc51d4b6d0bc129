"""A measurement is a row with a content key: methods in turns, and statistics on their rows."""

from specnb.measure.ranks import accepted_by_rank, places_of, shares
from specnb.measure.rollouts import (
    KnownAcceptance,
    Oracle,
    costed,
    follow,
    followed,
    replay,
    replay_tree,
    replayed_row,
)
from specnb.measure.rows import Row, RowCache, row_of
from specnb.measure.runner import in_turns, turns
from specnb.measure.scores import auc, auc_of, calibration, guessed, whole_auc
from specnb.measure.stats import best_of, geometric_ratio, interval, median_ratio, pooled, wilson

__all__ = [
    "KnownAcceptance",
    "Oracle",
    "Row",
    "RowCache",
    "accepted_by_rank",
    "auc",
    "auc_of",
    "best_of",
    "calibration",
    "costed",
    "follow",
    "followed",
    "geometric_ratio",
    "guessed",
    "in_turns",
    "interval",
    "median_ratio",
    "places_of",
    "pooled",
    "replay",
    "replay_tree",
    "replayed_row",
    "row_of",
    "shares",
    "turns",
    "whole_auc",
    "wilson",
]
