"""Which draft length, stopping rule or tree is fastest for a pair on this machine?

Costs are measured in the decoding loop itself; acceptance is recorded once, with a long draft, and
replayed for every draft length and threshold: whether a draft would be kept at a place of the text
does not depend on how the text was cut into blocks (at temperature 0 exactly so, else on average).
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from specnb.drafters import (
    Chain,
    Drafter,
    GumbelTopK,
    NoDraft,
    PromptLookup,
    StochasticBeam,
    TopKTree,
)
from specnb.measure.runner import check_prompts, decode, turns
from specnb.methods import name_of
from specnb.models.base import Context, Pair
from specnb.record import Record
from specnb.sampling import Sampling
from specnb.stopping import AdaEDL, FixedLength, StoppingRule

LONGEST = 12
MEASURED = (2, 5, LONGEST)  # lengths that run, for the costs; the longest one's text is replayed
STOPPED = Chain(LONGEST, stop=AdaEDL(0.4))  # costs what a rule costs
THRESHOLDS = (0.2, 0.3, 0.4, 0.5, 0.6)
TREES = {  # at temperature 0 a tree that is drawn has one child per node
    True: (TopKTree((2, 1, 1, 1)), TopKTree((2, 1, 1, 1, 1, 1))),
    False: (GumbelTopK((2, 1, 1, 1)), StochasticBeam(2, 5)),
}
LOOKUPS = tuple(PromptLookup(length=length) for length in (2, 5, 10))
ROUNDS = 2  # of the comparison at the end


class Candidate(NamedTuple):
    """A drafter, and what is predicted of it."""

    drafter: Drafter
    block_efficiency: float
    ms_per_token: float
    speedup: float  # over plain decoding


@dataclass(frozen=True)
class Tuning:
    """What to decode with: the fastest candidate, its predicted and its measured speed-up."""

    drafter: Drafter
    predicted: float
    measured: float
    plain_ms: float  # per token
    candidates: tuple[Candidate, ...]  # the fastest first

    def to_pandas(self):
        """One line per candidate, the fastest first."""
        import pandas as pd

        columns = ["drafter", "block efficiency", "ms per token", "predicted speed-up"]
        return pd.DataFrame([(name_of(c[0]), *c[1:]) for c in self.candidates], columns=columns)

    def __repr__(self) -> str:
        return (
            f"{name_of(self.drafter)}: predicted {self.predicted:.2f} times, measured "
            f"{self.measured:.2f} times as fast as plain decoding"
        )


def tune(
    pair: Pair,
    prompts: Sequence[Any],
    *,
    sampling: Sampling | None = None,
    max_new_tokens: int = 64,
    seed: int = 0,
) -> Tuning:
    """The fastest drafter for this pair on this machine, for prompts of this kind.

    `prompts` are texts, or items with `prompt` and `image`; half a dozen do. Tried are draft
    lengths 1-12, AdaEDL at five thresholds and two trees; without a draft model, three lengths of
    `PromptLookup`. Times are without prefill. ValueError without a prompt, or with one behind which
    the draft model has no positions for the longest draft.
    """
    check_prompts(prompts)
    if not prompts:
        raise ValueError("prompts=[]: give some texts of the kind that you want to decode")
    _check_room(pair, prompts, max_new_tokens)
    sampling = sampling or Sampling()

    def run(drafter: Drafter, number: int) -> Record:
        return decode(
            pair,
            prompts[number],
            drafter,
            sampling=sampling,
            max_new_tokens=max_new_tokens,
            seed=seed + number,
        )

    timed: tuple[Drafter, ...] = TREES[sampling.temperature == 0]
    chains: tuple[Chain, ...] = (*map(Chain, MEASURED), STOPPED)
    if pair.draft is None:
        timed, chains = LOOKUPS, ()
    run(timed[-1], 0)  # the first run also sets up
    tried: list[Drafter] = [NoDraft(), *chains, *timed]
    runs: dict[Drafter, list[Record]] = {drafter: [] for drafter in tried}
    for number, drafter in turns(list(runs), len(prompts)):
        runs[drafter].append(run(drafter, number))
    plain_ms = _ms_per_token(runs[NoDraft()])
    found = []
    for drafter in timed:
        group = runs[drafter]
        ms, calls = _ms_per_token(group), sum(len(one.blocks) for one in group)
        efficiency = sum(len(one.token_ids) for one in group) / calls
        found.append(Candidate(drafter, efficiency, ms, plain_ms / ms))
    if chains:
        found += _replayed(pair, prompts, runs, sampling)
    found.sort(key=lambda candidate: candidate.ms_per_token)
    best = found[0]
    last: dict[Drafter, list[float]] = {NoDraft(): [], best.drafter: []}
    for number, drafter in turns(list(last), ROUNDS * len(prompts)):
        last[drafter].append(_ms_per_token([run(drafter, number % len(prompts))]))
    ratios = [alone / helped for alone, helped in zip(*last.values(), strict=True)]
    return Tuning(best.drafter, best.speedup, statistics.median(ratios), plain_ms, tuple(found))


def _check_room(pair: Pair, prompts: Sequence[Any], max_new_tokens: int) -> None:
    """A replay drafts from every place; near its last position decoding would draft less."""
    for item in prompts if pair.draft is not None else ():
        room = _draft_context(pair, item).room
        if room < max_new_tokens + LONGEST:
            raise ValueError(
                f"prompts: after one of them the draft model has {room} positions left, and "
                f"{max_new_tokens} new tokens with drafts of {LONGEST} need "
                f"{max_new_tokens + LONGEST}; give a shorter one, or a smaller max_new_tokens"
            )


def _draft_context(pair: Pair, item: Any) -> Context:
    assert pair.draft is not None  # `tune` has seen it
    prompt, image = getattr(item, "prompt", item), getattr(item, "image", None)
    return pair.draft.open(prompt, image if pair.draft.sees_images else None)


def _replayed(
    pair: Pair,
    prompts: Sequence[Any],
    runs: Mapping[Drafter, Sequence[Record]],
    sampling: Sampling,
) -> list[Candidate]:
    """Every draft length and threshold, from the costs and the longest drafts of these runs."""
    fixed = [run for length in MEASURED for run in runs[Chain(length)]]
    stopped, plain = runs[STOPPED], runs[NoDraft()]
    plain_ms = _ms_per_token(plain)
    verify = _verify_cost([*plain, *fixed, *stopped])
    costs = {FixedLength: _draft_cost(fixed), AdaEDL: _draft_cost(stopped)}
    texts = [
        _kept(run, _along(pair, item, run), sampling)
        for run, item in zip(runs[Chain(LONGEST)], prompts, strict=True)
    ]
    rules: list[tuple[int, StoppingRule]] = [(n, FixedLength()) for n in range(1, LONGEST + 1)]
    rules += [(LONGEST, AdaEDL(threshold)) for threshold in THRESHOLDS]
    found = []
    for length, rule in rules:
        blocks = [block for text in texts for block in _replay(text, length, rule)]
        base, slope = costs[type(rule)]
        seconds = sum(base + slope * b.forwards + verify(b.drafted) for b in blocks)
        tokens = sum(b.tokens for b in blocks)
        ms = 1e3 * seconds / tokens
        found.append(Candidate(Chain(length, stop=rule), tokens / len(blocks), ms, plain_ms / ms))
    return found


class Place(NamedTuple):
    """A place of the text: would a draft be kept here, and what does the drafter say."""

    kept: bool
    logits: Tensor
    probs: Tensor


class Block(NamedTuple):
    """A replayed target call."""

    drafted: int
    forwards: int
    tokens: int


def _replay(places: Sequence[Place], length: int, rule: StoppingRule) -> Iterable[Block]:
    """The blocks into which this text would have been cut."""
    state, at = rule.start(), 0
    while at < len(places):
        drafted = forwards = kept = 0
        rejected = False
        longest = min(length, len(places) - at - 1)  # the last token is the target's own
        for place in places[at : at + longest]:
            forwards += 1
            # Behind a rejected draft the drafter goes on with a text that nobody has recorded;
            # the scores of the real text stand in for those of its own.
            if state.stop(place.logits, place.probs):
                break
            drafted += 1
            rejected = rejected or not place.kept
            kept += not rejected
        state.update(drafted, kept, longest)
        yield Block(drafted, forwards, kept + 1)
        at += kept + 1


def _kept(run: Record, laws: Tensor, sampling: Sampling) -> list[Place]:
    """The places of a run's text; behind a full draft the next one counts as kept."""
    probs = sampling.probs(laws)
    return [
        Place(row.verdict != "correction", *pair)
        for row, *pair in zip(run.emitted, laws, probs, strict=True)
    ]


@torch.inference_mode()
def _along(pair: Pair, item: Any, run: Record) -> Tensor:
    """The drafter's logits at every place of a text, [tokens, vocab]."""
    context = _draft_context(pair, item)
    ids = run.token_ids[:-1]
    scores = context.forward(ids, range(-1, len(ids) - 1))
    return torch.cat([scores.root[None], scores.nodes])


def _ms_per_token(runs: Iterable[Record]) -> float:
    runs = list(runs)
    seconds = sum(run.seconds for run in runs)
    return 1e3 * seconds / sum(len(run.token_ids) for run in runs)


def _verify_cost(runs: Iterable[Record]):
    """Seconds of a target call with so many drafted tokens: medians, straight lines between."""
    took: dict[int, list[float]] = {}
    for block in itertools.chain(*(run.blocks for run in runs)):
        took.setdefault(block.n_drafted, []).append(block.verify_s)
    sizes = sorted(size for size, seconds in took.items() if len(seconds) >= 5) or sorted(took)
    middles = [statistics.median(took[size]) for size in sizes]
    return lambda size: float(np.interp(size, sizes, middles))


def _draft_cost(runs: Iterable[Record]) -> tuple[float, float]:
    """(a, b): drafting takes a + b * forwards seconds. Least squares over medians."""
    took: dict[int, list[float]] = {}
    for block in itertools.chain(*(run.blocks for run in runs)):
        took.setdefault(block.draft_forwards, []).append(block.draft_s)
    counts = sorted(took)
    middles = [statistics.median(took[count]) for count in counts]
    if len(counts) == 1:
        return 0.0, middles[0] / max(counts[0], 1)
    weights = np.sqrt([len(took[count]) for count in counts])
    slope, base = np.polyfit(counts, middles, 1, w=weights)
    return float(base), float(slope)


class Costs(NamedTuple):
    """In target calls of one token, as `BestFirst` asks for them."""

    draft_cost: float  # a forward of the drafter
    node_cost: float  # one more drafted token that the target scores


def costs(
    pair: Pair, prompts: Sequence[Any], *, sampling: Sampling | None = None, seed: int = 0
) -> Costs:
    """What a drafter's forward and a scored node cost on this machine, from runs of chains.

    Slopes of medians over draft lengths 2, 5 and 12, divided by the time of a call that scores one
    token. ValueError without a prompt, or without a draft model.
    """
    check_prompts(prompts)
    if not prompts or pair.draft is None:
        raise ValueError("costs: give prompts of the kind to be decoded, and a pair with a drafter")
    tried: list[Drafter] = [NoDraft(), *map(Chain, MEASURED)]
    runs: dict[Drafter, list[Record]] = {drafter: [] for drafter in tried}
    sampling = sampling or Sampling()
    decode(pair, prompts[0], tried[-1], sampling=sampling, seed=seed)  # the first run also sets up
    for number, drafter in turns(tried, len(prompts)):
        given: dict[str, Any] = {"sampling": sampling, "seed": seed + number}
        runs[drafter].append(decode(pair, prompts[number], drafter, **given))
    fixed = [run for length in MEASURED for run in runs[Chain(length)]]
    verify = _verify_cost([*runs[NoDraft()], *fixed])
    longest = MEASURED[-1]
    return Costs(
        max(0.0, _draft_cost(fixed)[1]) / verify(0),
        max(0.0, verify(longest) - verify(0)) / longest / verify(0),
    )
