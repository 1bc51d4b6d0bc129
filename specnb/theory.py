"""Closed forms of speculative decoding under independent acceptance (2211.17192, section 3).

And what follows for trees where acceptance depends on a sibling's rank alone (2402.12374).
"""

import functools
import math
from collections import Counter
from collections.abc import Callable, Sequence


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
    expected = expected_tokens(acceptance_rate, draft_length)
    return expected / _block_cost(draft_length, cost_ratio, verify_ratio)


def _block_cost(draft_length: int, cost_ratio: float, verify_ratio: float) -> float:
    """The time of a block in units of a target forward of one token."""
    if not cost_ratio >= 0.0 or not verify_ratio > 0.0:
        raise ValueError(
            f"cost_ratio={cost_ratio}, verify_ratio={verify_ratio}: give c >= 0 and v > 0"
        )
    return verify_ratio + cost_ratio * draft_length


def optimal_draft_length(
    acceptance_rate: float,
    cost_ratio: float,
    longest: int | None = None,
    verify_ratio: float | Callable[[int], float] = 1.0,
) -> int:
    """The draft length with the best improvement, of any length; 0 where drafting never pays.

    `verify_ratio` is v, the time of a target forward over a whole block, over that of one token:
    a number, or a function that gives it for a block of so many rows (draft length + 1) and does
    not fall. `longest` limits the length. ValueError where longer is always better without it.

    >>> optimal_draft_length(0.8, 0.0164)
    12
    >>> optimal_draft_length(0.8, 0.0164, verify_ratio=lambda rows: 1 + 0.1 * (rows - 1))
    5
    """
    free = cost_ratio == 0 and not callable(verify_ratio)
    if longest is None and (acceptance_rate == 1 or free):
        raise ValueError(
            f"acceptance_rate={acceptance_rate}, cost_ratio={cost_ratio}: there a longer draft is "
            "always better; give longest, the most that you would draft"
        )
    tokens = power = expected_tokens(acceptance_rate, 0)
    best, found, length = 0.0, 0, 0
    while longest is None or length <= longest:
        verify = verify_ratio(length + 1) if callable(verify_ratio) else verify_ratio
        cost = _block_cost(length, cost_ratio, verify)
        if tokens / cost > best:
            best, found = tokens / cost, length
        power *= acceptance_rate
        # All the tokens that longer drafts can add would not better it, at a cost that cannot fall.
        if acceptance_rate < 1 and (tokens + power / (1 - acceptance_rate)) / cost <= best:
            break
        tokens, length = tokens + power, length + 1
    return found


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


def expected_tree_tokens(parents: Sequence[int], ranks: Sequence[float]) -> float:
    """Expected tokens per target call of a tree, 1 + the sum over its nodes of being kept.

    `parents` as in a `DraftTree` (-1 = the last committed token), siblings in draw order. `ranks`
    are the probabilities that the first, second ... draw at a node is the one that is accepted,
    the same at every node: Sequoia's positional acceptance (2402.12374).

    >>> round(expected_tree_tokens((-1, -1, 0), (0.7, 0.1)), 2)  # two siblings, one goes on
    2.29
    """
    _check_ranks(ranks)
    n_before: Counter[int] = Counter()
    kept: list[float] = []
    for node, parent in enumerate(parents):
        if not -1 <= parent < node or n_before[parent] >= len(ranks):
            raise ValueError(
                f"parents={tuple(parents)}: node {node} follows {parent}; give an earlier node or "
                f"-1, and at most {len(ranks)} children, as many as there are ranks"
            )
        kept.append(ranks[n_before[parent]] * (1.0 if parent < 0 else kept[parent]))
        n_before[parent] += 1
    return 1.0 + math.fsum(kept)


def best_tree(
    ranks: Sequence[float], budget: int, draft_cost: float = 0.0, node_cost: float = 0.0
) -> tuple[int, ...]:
    """The shape of at most `budget` nodes with the most expected tokens per unit of time.

    For `StaticTree`: the node that each node follows, -1 = the last committed token, level by
    level; () where drafting never pays. `ranks` as in `expected_tree_tokens`. A target call takes
    1 + draft_cost * levels + node_cost * nodes, in units of a target forward of one token; with
    both costs 0 the shape has the most expected tokens, with node_cost 0 and the ratio of
    parameters as draft_cost the most MBSU. Sequoia's dynamic program (2402.12374, section 4), with
    the levels and not only the nodes as a cost.

    >>> best_tree((0.6, 0.2), 3), best_tree((0.6, 0.2), 3, draft_cost=0.5)
    ((-1, 0, 1), (-1, -1))
    """
    _check_ranks(ranks)
    if budget < 1 or budget != int(budget):
        raise ValueError(f"budget={budget}: give a whole number of nodes >= 1")
    if not draft_cost >= 0 or not node_cost >= 0:
        raise ValueError(f"draft_cost={draft_cost}, node_cost={node_cost}: give numbers >= 0")

    @functools.cache
    def below(nodes: int, levels: int, rank: int) -> tuple[float, int]:
        """Of at most so many nodes and levels below a node, in children from this rank on: the
        most expected tokens, and the size of the first child's subtree, the child included."""
        best, size = 0.0, 0
        if levels and rank < len(ranks):
            for mine in range(1, nodes + 1):
                inside = 1 + below(mine - 1, min(levels - 1, mine - 1), 0)[0]
                total = ranks[rank] * inside + below(nodes - mine, levels, rank + 1)[0]
                if total > best + 1e-12:
                    best, size = total, mine
        return best, size

    def shape(nodes: int, levels: int) -> tuple[int, ...]:
        parents: list[int] = []
        grown = [(nodes, levels)]  # of the last committed token, then of each node
        for place, (left, deep) in enumerate(grown):
            rank = 0
            while size := below(left, deep, rank)[1]:
                parents.append(place - 1)
                grown.append((size - 1, deep - 1))
                left, rank = left - size, rank + 1
        return tuple(parents)

    fastest, found = 1.0, (0, 0)
    for levels in range(1, budget + 1):
        for nodes in range(levels, budget + 1):
            cost = 1 + draft_cost * levels + node_cost * nodes
            if (speed := (1 + below(nodes, levels, 0)[0]) / cost) > fastest + 1e-12:
                fastest, found = speed, (nodes, levels)
    return shape(*found)


def _check_ranks(ranks: Sequence[float]) -> None:
    if not ranks or not all(0 <= rank <= 1 for rank in ranks) or math.fsum(ranks) > 1 + 1e-9:
        raise ValueError(
            f"ranks={tuple(ranks)}: give the probability that the first, second ... sibling is the "
            "accepted one; together they are at most 1"
        )
