"""How much a stopping rule's score knows of acceptance, on followed texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from specnb.measure.rollouts import Oracle, Rule, Text, scores_of
from specnb.stopping import AdaEDL, FixedLength, MaxConfidence, PathScore, SpecDecPP, SumEntropy

RULES: dict[str, Rule] = {
    "MaxConfidence": MaxConfidence(),
    "AdaEDL": AdaEDL(),
    "SumEntropy": SumEntropy(),
    "PathScore": PathScore(),
    "SpecDecPP": SpecDecPP(),
}


def guessed(texts: Sequence[Text]) -> bool:
    """Whether the drafter that these texts were followed with has an acceptance head."""
    return not any(np.isnan(text.guess).any() for text in texts)


def calibration(texts: Sequence[Text], rule: Rule, n_bins: int = 10) -> list[dict[str, Any]]:
    """Points of a reliability diagram: bins of equal width from 0 to 1, each with the mean `score`
    of its `n` places and their mean true `acceptance`; empty bins are left out. ValueError for a
    rule whose score is no guess of acceptance."""
    if isinstance(rule, SumEntropy | FixedLength | Oracle):
        raise ValueError(
            f"rule={rule!r}: its score is no probability, so it cannot be calibrated; give one of "
            "AdaEDL, MaxConfidence, PathScore, SpecDecPP, KnownAcceptance"
        )
    scores = np.concatenate([scores_of(rule, text)[:, 0] for text in texts])
    true = np.concatenate([text.overlap for text in texts])
    places = np.clip((scores * n_bins).astype(int), 0, n_bins - 1)
    return [
        {
            "score": float(scores[places == place].mean()),
            "acceptance": float(true[places == place].mean()),
            "n": int((places == place).sum()),
        }
        for place in np.unique(places)
    ]


def auc_of(texts: Sequence[Text], rule: Rule) -> float:
    """The probability that a token that is kept has a higher score than one that is not; of
    `SumEntropy`, which stops where its score is high, a lower one."""
    scores = _rising(rule, [scores_of(rule, text)[:, 0] for text in texts])
    return auc(scores, np.concatenate([text.kept for text in texts]))


def _rising(rule: Rule, scores: Sequence[np.ndarray]) -> np.ndarray:
    """All scores in one line, with their sign turned where a low one speaks for acceptance."""
    joined = np.concatenate(scores)
    return -joined if isinstance(rule, SumEntropy) else joined


def whole_auc(texts: Sequence[Text], longest: int = 8) -> dict[str, float]:
    """How well each rule's score tells, at the tokens of drafts of this length from every place,
    whether all of the draft up to the token is kept; "length alone" counts the tokens. A drafter
    without an acceptance head has no "SpecDecPP"."""
    kept = np.concatenate([(t.run[:, None] > np.arange(longest)).ravel() for t in texts])
    found = {}
    rules = RULES if guessed(texts) else {n: r for n, r in RULES.items() if n != "SpecDecPP"}
    for name, rule in rules.items():
        lines = [scores_of(rule, text)[:, :longest].ravel() for text in texts]
        found[name] = auc(_rising(rule, lines), kept)
    length = np.concatenate([np.tile(-np.arange(longest), len(text.run)) for text in texts])
    return found | {"length alone": auc(length, kept)}


def auc(scores: np.ndarray, events: np.ndarray) -> float:
    """The probability that an event has a higher score than a non-event, ties counting half; NaN
    where there are no two kinds."""
    import pandas as pd

    ranks = pd.Series(scores).rank().to_numpy()
    n, m = int(events.sum()), int((~events).sum())
    return float((ranks[events].sum() - n * (n + 1) / 2) / (n * m)) if n and m else float("nan")
