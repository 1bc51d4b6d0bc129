"""What happened in a decoding run: one row per token, one per target call, metrics from both.

Everything that is shown or measured anywhere is computed from a `Record`; each metric is defined
here, once, with its formula.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean
from typing import Any, NamedTuple

VERDICTS = ("accepted", "rejected", "unexamined", "correction", "bonus", "plain", "forced")
EMITTED = ("accepted", "correction", "bonus", "plain", "forced")


class TokenRow(NamedTuple):
    """One drafted or emitted token. Probabilities are those of the laws really used."""

    block: int
    depth: int  # 1 = directly after the committed text
    node: int  # number in the draft tree, -1 for a token of the target's own
    parent: int  # node of the tree that it follows, -1 = the committed text
    token_id: int
    text: str
    draft_prob: float | None  # the drafter's probability of this token here
    target_prob: float | None  # the target's
    draft_entropy: float | None  # nats
    accept_prob: float | None  # what the uniform number was held against; under a rule that judges
    # whole paths the chance that the path may end here: kept is what stands before its end
    uniform: float | None
    verdict: str  # one of VERDICTS
    draft_top: tuple[tuple[int, float], ...] = ()  # five most probable ids
    target_top: tuple[tuple[int, float], ...] = ()


class BlockRow(NamedTuple):
    """One target call."""

    n_drafted: int
    draft_forwards: int
    n_accepted: int
    n_emitted: int
    draft_s: float
    verify_s: float
    stopped_by: str  # why drafting ended: length | budget | context | rule | eos | forced
    threshold: float | None
    clipped: bool  # shortened by max_new_tokens or by a context's end


@dataclass(frozen=True)
class Metrics:
    """Figures of one run; None where the run does not define them."""

    n_tokens: int
    n_target_calls: int
    block_efficiency: float | None
    acceptance_rate: float | None
    acceptance_by_depth: tuple[float, ...]
    draft_forwards: float | None
    mbsu: float | None
    target_budget: float | None
    tokens_per_second: float | None
    prefill_s: float


@dataclass(frozen=True)
class Record:
    """A finished run. `token_ids` is what was emitted, `text` the same decoded."""

    text: str
    token_ids: tuple[int, ...]
    tokens: tuple[TokenRow, ...]
    blocks: tuple[BlockRow, ...]
    finish: str  # eos | length | context | open (a run under way)
    prefill_s: float
    settings: Mapping[str, Any] = field(default_factory=dict)
    token_texts: Mapping[int, str] = field(default_factory=dict)  # of every id in a top-five list
    parameter_ratio: float | None = None  # drafter / target language model

    @cached_property
    def emitted(self) -> tuple[TokenRow, ...]:
        """The rows that became text, in order."""
        return tuple(row for row in self.tokens if row.verdict in EMITTED)

    @property
    def calls(self) -> tuple[BlockRow, ...]:
        """The blocks that a target call decided. One put there by hand is none of them."""
        return tuple(block for block in self.blocks if block.stopped_by != "forced")

    @property
    def n_forced(self) -> int:
        """Tokens put into the text by hand; no figure of a method counts them."""
        return sum(row.verdict == "forced" for row in self.tokens)

    @property
    def seconds(self) -> float:
        """The time of all blocks, without prefill."""
        return sum(block.draft_s + block.verify_s for block in self.blocks)

    @property
    def metrics(self) -> Metrics:
        """The figures of this run, each by the function of its name in this module."""
        calls = self.calls
        seconds = sum(block.draft_s + block.verify_s for block in calls)
        said = len(self.token_ids) - self.n_forced
        return Metrics(
            n_tokens=len(self.token_ids),
            n_target_calls=len(calls),
            block_efficiency=block_efficiency(self),
            acceptance_rate=acceptance_rate(self),
            acceptance_by_depth=acceptance_by_depth(self),
            draft_forwards=fmean(b.draft_forwards for b in calls) if calls else None,
            mbsu=mbsu(self),
            target_budget=fmean(b.n_drafted for b in calls) if calls else None,
            tokens_per_second=said / seconds if seconds > 0 else None,
            prefill_s=self.prefill_s,
        )

    def to_json(self) -> str:
        """The whole record as one JSON object; `from_json` gives an equal record back."""
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return json.dumps(plain, ensure_ascii=False)

    @staticmethod
    def from_json(text: str) -> "Record":
        data = json.loads(text)

        def row(values: list[Any]) -> TokenRow:
            *start, draft_top, target_top = values
            return TokenRow(*start)._replace(
                draft_top=_pairs(draft_top), target_top=_pairs(target_top)
            )

        data["token_ids"] = tuple(data["token_ids"])
        data["tokens"] = tuple(row(values) for values in data["tokens"])
        data["blocks"] = tuple(BlockRow(*values) for values in data["blocks"])
        data["token_texts"] = {int(key): value for key, value in data["token_texts"].items()}
        return Record(**data)

    def to_pandas(self) -> Any:
        """One line per token row, as a DataFrame."""
        import pandas as pd

        return pd.DataFrame(self.tokens, columns=TokenRow._fields)


def _pairs(values: list[Any]) -> tuple[tuple[int, float], ...]:
    return tuple((int(token), float(prob)) for token, prob in values)


def block_efficiency(record: Record) -> float | None:
    """Tokens emitted / target calls that could emit. Prefill emits nothing and does not count.

    Blocks shortened by `max_new_tokens` count (they are flagged `clipped`). Forced tokens count in
    neither: nobody drafted or drew them.
    """
    calls = len(record.calls)
    return (len(record.token_ids) - record.n_forced) / calls if calls else None


def acceptance_rate(record: Record) -> float | None:
    """Accepted candidates / examined candidates; unexamined ones count in neither."""
    accepted = sum(row.verdict == "accepted" for row in record.tokens)
    rejected = sum(row.verdict == "rejected" for row in record.tokens)
    return accepted / (accepted + rejected) if accepted + rejected else None


def acceptance_by_depth(record: Record) -> tuple[float, ...]:
    """Per depth from 1: blocks with an accepted token there / blocks with one examined there."""
    seen: dict[int, set[int]] = {}
    kept: dict[int, set[int]] = {}
    for row in record.tokens:
        if row.verdict in ("accepted", "rejected"):
            seen.setdefault(row.depth, set()).add(row.block)
            if row.verdict == "accepted":
                kept.setdefault(row.depth, set()).add(row.block)
    return tuple(len(kept.get(depth, ())) / len(seen[depth]) for depth in sorted(seen))


def joint_acceptance(*records: Record) -> tuple[float, ...]:
    """Per depth from 1: blocks whose kept path goes that deep / blocks that drafted anything, over
    all blocks of these records.

    `acceptance_by_depth` is conditional on having got there; this is not, so that its sum is the
    mean number of kept drafts.
    """
    kept = [block.n_accepted for record in records for block in record.blocks if block.n_drafted]
    rows = (row for record in records for row in record.tokens)
    deepest = max((row.depth for row in rows if row.node >= 0), default=0)
    return tuple(sum(n >= depth for n in kept) / len(kept) for depth in range(1, deepest + 1))


def accepted_lengths(record: Record) -> tuple[int, ...]:
    """How many of the blocks that drafted anything kept 0, 1, 2 ... drafted tokens."""
    kept = [block.n_accepted for block in record.blocks if block.n_drafted]
    return tuple(kept.count(n) for n in range(max(kept, default=-1) + 1))


def mbsu(record: Record) -> float | None:
    """Memory-bound speed-up: block efficiency / (1 + c * mean draft forwards per block).

    c = `parameter_ratio`. A tree level is one forward; a forward that led to a stop counts.
    """
    efficiency = block_efficiency(record)
    if efficiency is None or record.parameter_ratio is None:
        return None
    from specnb import theory

    forwards = fmean(block.draft_forwards for block in record.calls)
    return theory.mbsu(efficiency, forwards, record.parameter_ratio)
