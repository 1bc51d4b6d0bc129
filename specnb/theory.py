"""Closed forms of speculative decoding under independent acceptance (2211.17192, section 3)."""

import math


def _check(acceptance_rate: float, draft_length: int) -> None:
    if not 0.0 <= acceptance_rate <= 1.0:
        raise ValueError(f"acceptance_rate={acceptance_rate}: give a number in [0, 1]")
    if draft_length < 0 or draft_length != int(draft_length):
        raise ValueError(f"draft_length={draft_length}: give a whole number >= 0")


def expected_tokens(acceptance_rate: float, draft_length: int) -> float:
    """Expected tokens per target call, (1 - a^(g+1)) / (1 - a): equation 1 of the paper.

    >>> round(expected_tokens(0.8, 5), 3)
    3.689
    """
    _check(acceptance_rate, draft_length)
    return sum(acceptance_rate**power for power in range(draft_length + 1))


def walltime_improvement(
    acceptance_rate: float, draft_length: int, cost_ratio: float, verify_ratio: float = 1.0
) -> float:
    """Speed-up over plain decoding, expected tokens / (v + c * g): theorem 3.8 with v = 1.

    `cost_ratio` c = time of a draft forward / time of a one-token target forward;
    `verify_ratio` v = time of a (g + 1)-token target forward / that of one token.

    >>> round(walltime_improvement(0.8, 5, 0.0164), 2)
    3.41
    """
    if not cost_ratio >= 0.0 or not verify_ratio > 0.0:
        raise ValueError(
            f"cost_ratio={cost_ratio}, verify_ratio={verify_ratio}: give c >= 0 and v > 0"
        )
    expected = expected_tokens(acceptance_rate, draft_length)
    return expected / (verify_ratio + cost_ratio * draft_length)


def optimal_draft_length(acceptance_rate: float, cost_ratio: float, longest: int = 64) -> int:
    """The draft length in 0..longest with the best improvement; 0 where drafting never pays.

    >>> optimal_draft_length(0.8, 0.0164)
    12
    """
    return max(
        range(longest + 1),
        key=lambda length: walltime_improvement(acceptance_rate, length, cost_ratio),
    )


def acceptance_rate_of(block_efficiency: float, draft_length: int) -> float:
    """The rate at which `expected_tokens` gives this block efficiency (bisection).

    >>> round(acceptance_rate_of(3.689, 5), 2)
    0.8
    """
    if not 1.0 <= block_efficiency <= draft_length + 1:
        raise ValueError(
            f"block_efficiency={block_efficiency}: with draft length {draft_length} it lies in "
            f"[1, {draft_length + 1}]"
        )
    low, high = 0.0, 1.0
    while high - low > 1e-12:
        middle = (low + high) / 2
        if expected_tokens(middle, draft_length) < block_efficiency:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def operations_growth(acceptance_rate: float, draft_length: int, operations_ratio: float) -> float:
    """Arithmetic per emitted token against plain decoding: theorem 3.11 of the paper.

    `operations_ratio` = arithmetic of the drafter per token / that of the target.
    """
    expected = expected_tokens(acceptance_rate, draft_length)
    return (draft_length * operations_ratio + draft_length + 1) / expected


def mbsu(block_efficiency: float, draft_forwards: float, parameter_ratio: float) -> float:
    """Memory-bound speed-up, tau / (1 + c * draft forwards per block) (2404.08856).

    `parameter_ratio` c = parameters of the drafter / of the target's language model.

    >>> round(mbsu(2.56, 5, 0.0164), 2)
    2.37
    """
    if not math.isfinite(block_efficiency) or draft_forwards < 0 or parameter_ratio < 0:
        raise ValueError(f"mbsu({block_efficiency}, {draft_forwards}, {parameter_ratio})")
    return block_efficiency / (1.0 + parameter_ratio * draft_forwards)
