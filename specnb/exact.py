"""The exact law of a decoding method: every outcome of the production code, enumerated.

Nothing is re-implemented here. The production loop runs with `Draws` replaced by an enumerator
that follows one path of random choices at a time and notes the choices not yet taken.
"""

from __future__ import annotations

import copy
import math
import sys
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from specnb.arguments import whole
from specnb.decode import next_block
from specnb.drafters import Chain, Drafter, Drafting, GumbelTopK, IIDTree, start
from specnb.models.base import Context, Model, Pair
from specnb.models.table import TableModel
from specnb.record import Record
from specnb.sampling import Draws, Sampling, residual
from specnb.tree import DraftTree
from specnb.verify import Block

if TYPE_CHECKING or "jaxtyping" in sys.modules:  # not on Colab; the tests have it
    from jaxtyping import Float, Float64


T = TypeVar("T")


@dataclass(frozen=True)
class Law:
    """A joint law of n tokens, and what was walked to find it.

    A text that ends before has its end token in the places that are left.

    `outcomes` counts walked events by name: ("accepted", depth, draw), ("rejected", depth, draw),
    ("bonus",), ("correction",), ("drafted", length); a draw is counted from 0 among its siblings.
    `mass` is 1 up to rounding.
    """

    probs: Float64[Tensor, "*vocab"]
    outcomes: Counter[Any] = field(repr=False)
    mass: float


class Enumerator(Draws):
    """Stands in for `Draws`: takes scripted branches, then the first one of each new choice."""

    def __init__(self, script: Sequence[int] = ()):
        self.script = list(script)
        self.taken: list[int] = []
        self.open: list[list[int]] = []  # scripts of the branches not taken
        self.prob = 1.0

    def _choose(self, options: Sequence[tuple[T, float]]) -> T:
        """One of (value, probability > 0); the others are noted the first time round."""
        place = len(self.taken)
        if place < len(self.script):
            branch = self.script[place]
        else:
            branch = 0
            self.open += [[*self.taken, other] for other in range(1, len(options))]
        self.taken.append(branch)
        value, prob = options[branch]
        self.prob *= prob
        return value

    def accept(self, prob: float) -> tuple[bool, float]:
        options = [(True, prob), (False, 1.0 - prob)]
        return self._choose([option for option in options if option[1] > 0.0]), float("nan")

    def categorical(self, probs: Tensor) -> int:
        return self._choose([(i, p) for i, p in enumerate(probs.tolist()) if p > 0.0])

    def without_replacement(self, probs: Tensor, k: int) -> Tensor:
        rows = []
        for row in probs.tolist():
            taken: list[int] = []
            for _ in range(k):
                options = [(i, p) for i, p in enumerate(row) if p > 0 and i not in taken]
                if not options:
                    break
                total = sum(p for _, p in options)  # of what is left
                taken.append(self._choose([(i, p / total) for i, p in options]))
            rows.append(taken + [-1] * (k - len(taken)))
        return torch.tensor(rows)

    def gumbel(self, shape: Sequence[int]) -> Tensor:
        raise TypeError("continuous noise cannot be enumerated: test this drafter by sampling")


def law(
    target: TableModel,
    draft: TableModel | None,
    drafter: Drafter,
    sampling: Sampling,
    n_tokens: int,
    prompt: Sequence[int] = (0,),
    draft_sampling: Sampling | None = None,
    clip: bool = False,
) -> Law:
    """The exact joint law of the first `n_tokens` of `speculative` on table models.

    The target's end tokens end a text, as they do there (see `Law`). Goes block by block; equal
    (text, drafter state) are merged. Unclipped blocks may run past `n_tokens`, the surplus is
    marginalised; `clip=True` shortens drafts as `max_new_tokens` does.
    """
    context = target.open(list(prompt))
    pair = Pair(target, draft)
    drafting = start(drafter, pair, list(prompt), None, draft_sampling or sampling, context)
    frontier = {((), drafting.state): (1.0, context, drafting)}
    probs = torch.zeros((target.vocab_size,) * n_tokens, dtype=torch.float64)
    outcomes: Counter[Any] = Counter()
    shared = (target, draft, drafter, sampling, draft_sampling)
    while frontier:
        grown: dict[Any, list[Any]] = defaultdict(lambda: [0.0, None, None])
        for (text, _), (mass, context, drafting) in frontier.items():
            max_depth = n_tokens - len(text) - 1 if clip else 1 << 20
            for block, prob, after in _blocks(
                context, drafting, sampling, max_depth, target.eos_ids, shared
            ):
                _count(outcomes, block)
                longer = text + block.token_ids
                if longer[-1] in target.eos_ids:
                    longer += longer[-1:] * n_tokens
                if len(longer) >= n_tokens:
                    probs[longer[:n_tokens]] += mass * prob
                else:
                    entry = grown[longer, after[1].state]
                    entry[0] += mass * prob
                    entry[1:] = after
        frontier = grown
    return Law(probs, outcomes, float(probs.sum()))


def _blocks(
    context: Context,
    drafting: Drafting,
    sampling: Sampling,
    max_depth: int,
    eos_ids: Set[int],
    shared: Sequence[Any],
) -> Iterator[tuple[Block, float, tuple[Context, Drafting]]]:
    """Every block that there can be from here, its probability, and both sides behind it.

    Neither side given is touched; what is `shared` is not copied with them.
    """
    once = _DraftedOnce(context, drafting, {id(one): one for one in shared})
    scripts: list[list[int]] = [[]]
    while scripts:
        draws = Enumerator(scripts.pop())
        after = once.fork(draws)
        block = next_block(after[0], once, sampling, draws, max_depth, eos_ids)
        scripts += draws.open
        yield block, draws.prob, after


class _DraftedOnce:
    """A drafter as `next_block` meets it on every path of an enumeration; drafts no tree twice.

    The last choice is varied first, so the outcomes of one tree's verification follow one another.
    Each goes on from a copy of both sides as they were when the tree had been drafted.
    """

    def __init__(self, context: Context, drafting: Drafting, shared: dict[int, Any]):
        self.before = self.now = context, drafting
        self.shared = shared
        self.known = False  # whether the path under way has the tree of the path before
        self.choices: list[int] | None = None  # by which that tree was drafted
        self.prob = 1.0  # of these choices

    def fork(self, draws: Enumerator) -> tuple[Context, Drafting]:
        """Both sides, in copies, for the path of these draws."""
        n = None if self.choices is None else len(self.choices)
        self.known = n is not None and draws.script[:n] == self.choices
        self.now = copy.deepcopy(self.drafted if self.known else self.before, dict(self.shared))
        return self.now

    def propose(self, draws: Any, max_depth: int) -> DraftTree:
        if self.known:
            draws.taken, draws.prob = list(self.choices or ()), self.prob
        else:
            self.tree = self.now[1].propose(draws, max_depth)
            self.choices, self.prob = list(draws.taken), draws.prob
            self.drafted = copy.deepcopy(self.now, dict(self.shared))
        return replace(self.tree, probs=self.tree.probs.clone())  # a rule may write into it

    def commit(self, token_ids: Sequence[int], n_accepted: int) -> None:
        self.now[1].commit(token_ids, n_accepted)

    @property
    def state(self) -> Hashable:
        return self.now[1].state


def _count(outcomes: Counter[Any], block: Block) -> None:
    depth = block.tree.depth
    draw: Counter[int] = Counter()  # looks come in draw order
    for node, look in block.outcome.examined:
        parent = block.tree.parents[node]
        outcomes["accepted" if look.accepted else "rejected", depth[node], draw[parent]] += 1
        draw[parent] += 1
    if block.outcome.final is not None:  # else the text has ended with a draft
        outcomes[(block.outcome.final,)] += 1
    outcomes["drafted", len(block.tree)] += 1


def target_law(
    target: TableModel, sampling: Sampling, n_tokens: int, prompt: Sequence[int] = (0,)
) -> Float64[Tensor, "*vocab"]:
    """The joint law of the target's next n tokens, by the chain rule: what `law` must equal."""
    joint = torch.ones((), dtype=torch.float64)
    again = torch.eye(target.vocab_size, dtype=torch.float64)  # an end token goes on with itself
    texts: list[tuple[int, ...]] = [()]
    for length in range(n_tokens):
        rows = [
            again[text[-1]]
            if text and text[-1] in target.eos_ids
            else sampling.probs(target.next_logits([*prompt, *text]))
            for text in texts
        ]
        joint = joint[..., None] * torch.stack(rows).view(*(target.vocab_size,) * (length + 1))
        texts = [(*text, token) for text in texts for token in range(target.vocab_size)]
    return joint


def distance(a: Tensor, b: Tensor) -> float:
    """Total variation distance, half the sum of absolute differences."""
    return float((a - b).abs().sum() / 2)


def acceptance(
    target: TableModel, draft: TableModel, drafter: Drafter, sampling: Sampling
) -> float:
    """The exact probability that the first block keeps at least one drafted token."""
    return float(accepted_lengths(target, draft, drafter, sampling)[1:].sum())


def accepted_lengths(
    target: TableModel,
    draft: TableModel | None,
    drafter: Drafter,
    sampling: Sampling,
    prompt: Sequence[int] = (0,),
    draft_sampling: Sampling | None = None,
) -> Float64[Tensor, " lengths"]:
    """How likely the first block is to keep 0, 1, 2 ... drafted tokens.

    Without end tokens its expected tokens per target call are 1 + sum n * lengths[n].
    """
    found: dict[int, float] = defaultdict(float)
    for block, prob in _first_blocks(target, draft, drafter, sampling, prompt, draft_sampling):
        found[len(block.outcome.path)] += prob
    return torch.tensor([found[n] for n in range(max(found) + 1)], dtype=torch.float64)


def tokens_per_call(
    target: TableModel,
    draft: TableModel | None,
    drafter: Drafter,
    sampling: Sampling,
    prompt: Sequence[int] = (0,),
) -> float:
    """The exact expected number of tokens that the first block emits."""
    blocks = _first_blocks(target, draft, drafter, sampling, prompt, None)
    return math.fsum(prob * len(block.token_ids) for block, prob in blocks)


def _first_blocks(
    target: TableModel,
    draft: TableModel | None,
    drafter: Drafter,
    sampling: Sampling,
    prompt: Sequence[int],
    draft_sampling: Sampling | None,
) -> Iterator[tuple[Block, float]]:
    """Every first block that there can be, with its probability."""
    context = target.open(list(prompt))
    pair, drawn_at = Pair(target, draft), draft_sampling or sampling
    drafting = start(drafter, pair, list(prompt), None, drawn_at, context)
    shared = (target, draft, drafter, sampling, draft_sampling)
    for block, prob, _ in _blocks(context, drafting, sampling, 1 << 20, target.eos_ids, shared):
        yield block, prob


@dataclass(frozen=True)
class Distortion:
    """What a rule does to the output, and what it gives for that."""

    distance: float  # total variation between the two laws of the first n tokens
    largest_ratio: float  # of any text's probability to the target's; infinite: never said there
    tokens_per_call: float  # expected, in the first block


def distortion(
    target: TableModel,
    draft: TableModel | None,
    drafter: Drafter,
    sampling: Sampling,
    n_tokens: int = 2,
    prompt: Sequence[int] = (0,),
) -> Distortion:
    """How far the output's law is from the target's, beside the tokens that a call gives.

    Both are exact, by enumeration: the distance is 0 but for rounding for whatever is lossless.
    """
    found = law(target, draft, drafter, sampling, n_tokens, prompt).probs
    wanted = target_law(target, sampling, n_tokens, prompt)
    said = found > 0
    return Distortion(
        distance(found, wanted),
        float((found[said] / wanted[said]).max()),
        tokens_per_call(target, draft, drafter, sampling, prompt),
    )


MOST_SEQUENCES = 2_000_000  # of k draws without replacement, all held at once
SUM_TOLERANCE = 1e-3  # of a law's sum to 1, as laws of bfloat16 need it


def best_acceptance(
    target_probs: Float[Tensor, " vocab"],
    draft_probs: Float[Tensor, " vocab"],
    k: int,
    *,
    replacement: bool = True,
) -> float:
    """The largest probability with which any lossless rule can keep one of k drafts of one node.

    An optimal transport from the law of the drafts to the target's (2502.18779): by the theorem of
    the least cut it is 1 + min over sets H of tokens of target(H) - P(all drafts lie in H), and the
    least H holds the tokens with the smallest target / draft. `replacement=False`: draws without
    replacement, of which all sequences are looked at. ValueError where there are too many of them,
    for k < 1, and for what are not two laws over the same tokens.
    """
    k = whole("k", k, 1)
    target, draft = target_probs.double(), draft_probs.double()
    _check_laws(target, draft)
    k = min(k, int((draft > 0).sum())) if not replacement else k
    order = (target / draft).nan_to_num(nan=torch.inf).argsort()
    target, draft = target[order], draft[order]
    if replacement:
        inside = draft.cumsum(0) ** k
    else:
        vocab = int((draft > 0).sum())
        if vocab**k > MOST_SEQUENCES:
            raise ValueError(
                f"{vocab} tokens, k={k}: too many sequences without replacement; cut the laws to "
                "their most probable tokens with `cut`"
            )
        inside = _all_inside(draft, k)
    return float((1.0 + (target.cumsum(0) - inside).min()).clamp(0.0, 1.0))


def recursive_acceptance(
    target_probs: Float[Tensor, " vocab"], draft_probs: Float[Tensor, " vocab"], k: int
) -> float:
    """The probability with which recursive rejection keeps one of k independent drafts of a node.

    In closed form, for a node of any vocabulary: whichever drafts are turned down, the i-th is
    tried against the same residual (2305.09781). `acceptance` enumerates it. ValueError as of
    `best_acceptance`.
    """
    k = whole("k", k, 1)
    left, draft = target_probs.double(), draft_probs.double()
    _check_laws(left, draft)
    turned_down = 1.0
    for _ in range(k):
        turned_down *= 1.0 - min(1.0, float(torch.minimum(left, draft).sum()))
        left = residual(left, draft)
    return 1.0 - turned_down


def _check_laws(target: Tensor, draft: Tensor) -> None:
    """ValueError unless both are probabilities over the same tokens."""
    if target.ndim != 1 or target.shape != draft.shape:
        shapes = f"{tuple(target.shape)}, draft_probs {tuple(draft.shape)}"
        raise ValueError(f"target_probs {shapes}: give two laws over the same tokens")
    for name, law in (("target_probs", target), ("draft_probs", draft)):
        # Written so that NaN, which compares with nothing, is wrong.
        if not ((law >= 0).all() and abs(float(law.sum()) - 1.0) <= SUM_TOLERANCE):
            raise ValueError(f"{name}: give probabilities that sum to 1, as in logits.softmax(-1)")


def _all_inside(draft: Tensor, k: int) -> Tensor:
    """For each n: how likely k draws without replacement are all among the first n tokens."""
    ids = torch.arange(len(draft))
    prob, left, last = draft, 1.0 - draft, ids
    seen = torch.nn.functional.one_hot(ids, len(draft)).bool()
    for step in range(1, k):
        fresh = ~seen & (draft > 0)  # [sequences, vocab]
        rows, token = fresh.nonzero(as_tuple=True)
        prob = prob[rows] * draft[token] / left[rows].clamp_min(1e-300)
        left, last = left[rows] - draft[token], torch.maximum(last[rows], token)
        if step < k - 1:
            seen = seen[rows].scatter(1, token[:, None], True)
    return torch.zeros_like(draft).index_add_(0, last, prob).cumsum(0)


def cut(
    target_probs: Tensor, draft_probs: Tensor, n: int
) -> tuple[Float64[Tensor, " n"], Float64[Tensor, " n"], list[int]]:
    """Two laws of one place on the n tokens that either gives most to, and those tokens' ids.

    Both are made to sum to 1 again: what is computed from them is no longer of the models, but of
    a place much like theirs.
    """
    ids = torch.maximum(target_probs, draft_probs).topk(min(n, len(target_probs))).indices
    target, draft = (probs[ids].double() for probs in (target_probs, draft_probs))
    return target / target.sum(), draft / draft.sum(), ids.tolist()


def acceptance_by_way(
    target_probs: Float[Tensor, " vocab"], draft_probs: Float[Tensor, " vocab"], k: int
) -> dict[str, float]:
    """How likely one of k drafts is kept at a node with these laws, by every way of drafting there.

    The production code, enumerated; and beside it the best that any rule could do (see
    `best_acceptance`) with the same drafts.
    """
    target, draft = (
        TableModel(probs.double().log()[None]) for probs in (target_probs, draft_probs)
    )
    ways: dict[str, Drafter] = {
        "one draft": Chain(1),
        "independent, recursive": IIDTree((k,)),
        "independent, k-SEQ": IIDTree((k,), verify="kseq"),
        "without replacement, recursive": GumbelTopK((k,)),
    }
    plain = Sampling(temperature=1.0)
    found = {name: acceptance(target, draft, way, plain) for name, way in ways.items()}
    for name, again in (("independent, best possible", True), ("without replacement, best", False)):
        found[name] = best_acceptance(target_probs, draft_probs, k, replacement=again)
    return found


def two_tokens(
    target: TableModel, draft: TableModel, drafter: Drafter, sampling: Sampling, draws: Draws
) -> tuple[int, int]:
    """The first two tokens of one run on table models: for drafters that cannot be enumerated.

    A block that emits one token is completed from the target's own law, an end token by itself.
    """
    prompt = [0]
    context = target.open(prompt)
    drafting = start(drafter, Pair(target, draft), prompt, None, sampling, context)
    text = next_block(context, drafting, sampling, draws, 1 << 20, target.eos_ids).token_ids
    if text[-1] in target.eos_ids:
        text += text[-1:]
    if len(text) == 1:
        text += (draws.categorical(sampling.probs(target.next_logits([*prompt, *text]))),)
    return text[0], text[1]


def same_greedy(model: Model, prompt: Any, image: Any, one: Record, other: Record) -> str:
    """Checks that two greedy runs of a model gave one text; says "equal", or what parted them.

    In float32 nothing may, nor with fp16 weights beside float32 activations. With activations of 8
    or 11 bits, forwards over one and over several tokens round differently, and a tie closer than
    that may fall to either side: the two logits at the first difference must then lie within two
    units of the largest one's last place.
    AssertionError where the texts differ for any other reason.
    """
    a, b = one.token_ids, other.token_ids
    place = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), None)
    if place is None and len(a) == len(b):
        return "equal"
    assert place is not None, f"the text has changed: {len(a)} tokens and {len(b)}"
    context = model.open(prompt, image)
    context.commit(a[:place])
    logits = context.forward().root
    gap = abs(float(logits[a[place]] - logits[b[place]]))
    largest = float(logits[logits.isfinite()].abs().max())
    kind = getattr(model, "activations", model.dtype)  # what is rounded, token by token
    tie = 2 * torch.finfo(kind).eps * largest
    words = f"token {place + 1} is {model.piece(a[place])!r} or {model.piece(b[place])!r}"
    full = kind in (torch.float32, torch.float64)
    assert not full and gap <= tie, f"the text has changed: {words}, logits {gap:.2g} apart"
    return f"{words}: a tie, logits {gap:.2g} apart in {str(kind).removeprefix('torch.')}"


def noise_bound(probs: Tensor, n: int, repeats: int = 200, seed: int = 0) -> float:
    """Twice the mean distance between a law and the frequencies of n draws from it."""
    flat = probs.flatten()
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(repeats):
        drawn = torch.multinomial(flat, n, replacement=True, generator=generator)
        found.append(distance(torch.bincount(drawn, minlength=flat.numel()) / n, flat))
    return 2.0 * sum(found) / repeats
