"""What any stopping rule or static tree would have made of a text: replayed, not decoded anew.

The text follows the target's distribution however it is made. Given the text, the draft at a place
is the text's own token with probability min(1, draft / target) of that token, however the text is
cut into blocks: so one text shows what every draft length, rule and shape would have kept. Behind a
rejected token the drafter is really run on, on its own words, as deep as the longest draft; beside
it siblings are drawn without replacement, until one is the text's own.
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from specnb.drafters import Chain, StaticTree
from specnb.measure.rows import Row, RowCache, Setting, lengths_of, models_of, prompt_key
from specnb.measure.runner import check_prompts, decode
from specnb.models.base import Pair
from specnb.sampling import Draws, Sampling
from specnb.stopping import AdaEDL, FixedLength, MaxConfidence, PathScore, SpecDecPP, SumEntropy
from specnb.tree import depths

DEEPEST = 16  # tokens of the longest draft
RANKS = 8  # siblings at a place


class Text(NamedTuple):
    """A text of the target, n tokens, and the draft that would begin at each of its places.

    `kept` [n]: whether the draft at this place is the text's own token; `overlap` [n]: how likely
    that was before anything was drawn, sum(min(target, draft)). `run` [n]: how many tokens of a
    draft from here are kept before the first rejection; `rank` [n]: of RANKS siblings drawn without
    replacement, which one is kept, from 1; 0 = none. [n, DEEPEST], along that draft: `entropy`
    (nats) and `top`, the largest probability, of the drafter's distribution at temperature 1;
    `known`, its `overlap`, or the last one behind a rejection; `guess`, what the draft model's
    acceptance head makes of it (NaN where it has none); `ends`, whether the drafted token ends the
    text.
    """

    prompt: str
    seed: int
    max_new_tokens: int
    kept: np.ndarray
    overlap: np.ndarray
    run: np.ndarray
    rank: np.ndarray
    entropy: np.ndarray
    top: np.ndarray
    known: np.ndarray
    guess: np.ndarray
    ends: np.ndarray


class Replayed(NamedTuple):
    """A target call as it would have been."""

    drafted: int
    forwards: int
    accepted: int
    emitted: int
    threshold: float | None  # that of the rule, when the block began


class Stored(NamedTuple):
    """A `Text` as a row of a `RowCache`."""

    arrays: str


def followed(
    pair: Pair,
    prompts: Sequence[Any],
    sampling: Sampling,
    *,
    draft_sampling: Sampling | None = None,
    seeds: Sequence[int] = (0,),
    kept: RowCache | None = None,
    label: str = "",
) -> list[Text]:
    """A text for every prompt and seed, seed by seed; prompt number i has seed s + i.

    With `kept`, a cache of kind `Stored`, texts of the same content are taken from there.
    """
    check_prompts(prompts)
    models = models_of(pair) if kept is not None else ""
    setting = Setting(models, sampling, draft_sampling, 64)
    found = []
    for start in seeds:
        numbers = range(len(prompts))
        for number in tqdm(numbers, desc=label, leave=False, mininterval=5) if label else numbers:
            item, seed = prompts[number], start + number
            asked = prompt_key(getattr(item, "prompt", item), getattr(item, "image", None))
            key = setting.key("followed text", "", asked, seed) if kept is not None else ""
            stored = kept.get(key) if kept is not None else None
            text = (
                _unpacked(stored)
                if stored
                else follow(pair, item, sampling, draft_sampling=draft_sampling, seed=seed)
            )
            if kept is not None and not stored:
                kept.add(key, _packed(text))
            found.append(text)
    return found


def _packed(text: Text) -> Stored:
    file = io.BytesIO()
    arrays: dict[str, Any] = {name: np.asarray(value) for name, value in text._asdict().items()}
    np.savez_compressed(file, **arrays)
    return Stored(base64.b64encode(file.getvalue()).decode())


def _unpacked(stored: Stored) -> Text:
    arrays = np.load(io.BytesIO(base64.b64decode(stored.arrays)), allow_pickle=False)
    plain = {name: value if value.ndim else value.item() for name, value in arrays.items()}
    return Text(**plain)


@torch.inference_mode()
def follow(
    pair: Pair,
    item: Any,
    sampling: Sampling,
    *,
    draft_sampling: Sampling | None = None,
    seed: int = 0,
    max_new_tokens: int = 64,
) -> Text:
    """Lets the target say something, and the drafter draft from every place of it.

    `item` has `prompt` and `image`, or is a text. `draft_sampling` is the drafter's, by default the
    target's. ValueError where the pair has no draft model, or one whose positions end within the
    longest draft: decoding would draft less there than a replay.
    """
    if pair.draft is None:
        raise ValueError("draft=None: a replay asks a draft model; load the pair with draft=...")
    prompt, image = getattr(item, "prompt", item), getattr(item, "image", None)
    image = image if pair.target.sees_images else None
    more: dict[str, Any] = {"sampling": sampling, "max_new_tokens": max_new_tokens, "seed": seed}
    draft_sampling = draft_sampling or sampling
    ids = list(decode(pair, item, Chain(5), draft_sampling=draft_sampling, **more).token_ids)
    n, before = len(ids), range(-1, len(ids) - 2)
    scores = pair.target.open(prompt, image).forward(ids[:-1], before)
    target = sampling.probs(torch.cat([scores.root[None], scores.nodes]).cpu())
    context = pair.draft.open(prompt, image if pair.draft.sees_images else None)
    if context.room < n + DEEPEST:
        raise ValueError(
            f"prompt: the draft model has {context.room} positions behind it, a text of {n} tokens "
            f"with drafts of {DEEPEST} needs {n + DEEPEST}; give a shorter prompt or fewer tokens"
        )
    scores = context.forward(ids[:-1], before)
    laws = [torch.cat([scores.root[None], scores.nodes]).cpu()]
    draft = draft_sampling.probs(laws[0])

    draws = _own_draws(seed)
    rank, first = _ranks(target, draft, ids, draws)
    kept = rank == 1
    said, parents = [first], [*before, n - 2]
    for depth in range(DEEPEST - 1):
        laws.append(context.forward(said[-1], parents).nodes.cpu())
        said.append(_one_each(draft_sampling.probs(laws[-1]), draws))
        parents = [n - 1 + depth * n + row for row in range(n)]
    raw = torch.stack(laws, 1)
    head = _head_of(pair.draft)
    guess = head(raw) if head else torch.full(raw.shape[:2], torch.nan)
    raw = (raw if raw.dtype == torch.float64 else raw.float()).softmax(-1)
    overlap = torch.minimum(target, draft).sum(-1).double().numpy()

    # Along the draft from place `at`: places of the text up to the first rejection, then the
    # drafter's own words behind it. `row` and `column` say where in `raw` that stands.
    run = np.zeros(n, int)
    for at in reversed(range(n)):
        run[at] = 1 + (run[at + 1] if at + 1 < n else 0) if kept[at] else 0
    at, step = np.arange(n)[:, None], np.arange(DEEPEST)[None]
    row = np.minimum(at + np.minimum(step, run[:, None]), n - 1)
    column = np.maximum(step - run[:, None], 0)
    tokens = np.where(step < run[:, None], np.array(ids)[row], np.array(said).T[row, column])
    entropy, top = torch.special.entr(raw).sum(-1).double().numpy(), raw.amax(-1).double().numpy()
    return Text(
        prompt=prompt_key(prompt, image),
        seed=seed,
        max_new_tokens=max_new_tokens,
        kept=kept,
        overlap=overlap,
        run=run,
        rank=rank,
        entropy=entropy[row, column],
        top=top[row, column],
        known=overlap[row],
        guess=guess.double().numpy()[row, column],
        ends=np.isin(tokens, sorted(pair.target.eos_ids)),
    )


def _own_draws(seed: int) -> Draws:
    """A stream of its own: that of `seed` chose the text, so with it the first uniform numbers of a
    replay would lean towards keeping what they themselves had drawn."""
    digest = hashlib.sha256(f"replay {seed}".encode()).digest()
    return Draws(int.from_bytes(digest[:7], "little"))


def _head_of(draft: Any) -> Any:
    """The draft model's acceptance head; None without one, or where it cannot be used with these
    logits, which only a rule that asks for it needs to know."""
    try:
        return getattr(draft, "acceptance_head", lambda: None)()
    except ValueError:
        return None


def _ranks(
    target: Tensor, draft: Tensor, ids: Sequence[int], draws: Draws
) -> tuple[np.ndarray, list[int]]:
    """At every place, given that the text goes on as it does: the rank of the sibling that is kept
    (0 = none of RANKS), and the token that is rejected first, should one be.

    A sibling is kept with probability min(1, draft / target) of the text's token, both as they
    stand after the rejections before it; a rejected one is drawn from norm(max(0, draft - target)).
    """
    own, rank = torch.tensor(ids)[:, None], np.zeros(len(ids), int)
    first: list[int] = []
    for number in range(1, RANKS + 1):
        likely = (draft.gather(1, own) / target.gather(1, own))[:, 0].tolist()
        chances = [draws.accept(one)[0] for one in likely]
        rank[(rank == 0) & np.array(chances)] = number
        excess = (draft - target).clamp_min(0.0)
        # Where nothing can be rejected, nobody asks for what would have been.
        some = excess.sum(-1, keepdim=True) > 0
        tokens = _one_each(torch.where(some, excess, torch.ones_like(excess)), draws)
        first = first or tokens
        left = draft.scatter(1, torch.tensor(tokens)[:, None], 0.0)
        rest = (target - draft).clamp_min(0.0)
        some &= rest.sum(-1, keepdim=True) > 0
        # A drafter that has no second token has no siblings to offer: its row becomes zeros.
        draft = torch.where(some, left / left.sum(-1, keepdim=True).clamp_min(1e-38), draft * 0)
        target = torch.where(some, rest / rest.sum(-1, keepdim=True).clamp_min(1e-38), target)
    return rank, first


def _one_each(weights: Tensor, draws: Draws) -> list[int]:
    """A token drawn from each row, in proportion."""
    return [draws.categorical(row) for row in weights]


# ------------------------------------------------------------------------------------- rules


@dataclass(frozen=True)
class Oracle:
    """Knows what will be kept: stops right before the first token that the target would reject.

    No rule does better while a draft step costs less than a target call; the forward that it stops
    at is paid, as any rule's is.
    """


@dataclass(frozen=True)
class KnownAcceptance:
    """Stops where the true acceptance probability, sum(min(target, draft)), is below `threshold`:
    what an estimate for one token could reach, were it always right.

    `whole=True` holds the product over the draft against it.
    """

    threshold: float = 0.5
    whole: bool = False


Rule = (
    FixedLength
    | AdaEDL
    | MaxConfidence
    | SumEntropy
    | PathScore
    | SpecDecPP
    | Oracle
    | KnownAcceptance
)


def scores_of(rule: Rule, text: Text) -> np.ndarray:
    """What a rule holds against its threshold along the draft from every place, [n, DEEPEST].

    For all but `SumEntropy` a stop is below it; a rule over the whole draft has sums or products.
    """
    if isinstance(rule, MaxConfidence):
        return text.top
    if isinstance(rule, SumEntropy):
        return text.entropy.cumsum(1)
    if isinstance(rule, SpecDecPP):
        if np.isnan(text.guess).any():
            raise ValueError(f"rule={rule!r}: these texts were followed without an acceptance head")
        return text.guess.cumprod(1)
    if isinstance(rule, KnownAcceptance):
        return text.known.cumprod(1) if rule.whole else text.known
    if isinstance(rule, AdaEDL | PathScore):
        bound = 1.0 - np.sqrt(rule.entropy_factor * text.entropy.clip(0.0))
        return bound if isinstance(rule, AdaEDL) else bound.clip(0.0).cumprod(1)
    return np.zeros_like(text.top)


def replay(text: Text, rule: Rule, draft_length: int) -> list[Replayed]:
    """The target calls that a chain of at most so many tokens (DEEPEST at most), with this rule,
    would have made of this text. Scores are those of signal "raw". ValueError for other rules.
    """
    if not isinstance(rule, Rule) or getattr(rule, "signal", "raw") != "raw":
        raise ValueError(f"rule={rule!r}: a replay knows the rules of specnb, with signal='raw'")
    if not 1 <= draft_length <= DEEPEST:
        raise ValueError(f"draft_length={draft_length}: give 1 to {DEEPEST}")
    scores, blocks, at, n = scores_of(rule, text), [], 0, len(text.kept)
    state = rule.start() if isinstance(rule, AdaEDL | MaxConfidence) else None
    while at < n:
        room = min(draft_length, text.max_new_tokens - at - 1)
        line = scores[at, :room]
        if isinstance(rule, Oracle):
            stopping = np.arange(room) == text.run[at]
        elif isinstance(rule, SumEntropy):
            stopping = line > rule.threshold
        elif isinstance(rule, FixedLength):
            stopping = np.zeros(room, bool)
        else:
            stopping = line < (state.threshold if state else rule.threshold)
        stop, end = _first(stopping), _first(text.ends[at, :room]) + 1
        drafted = min(stop, end, room)
        accepted = min(int(text.run[at]), drafted)
        emitted = min(accepted + 1, n - at)  # nothing behind an accepted end
        forwards = drafted + (stop < min(end, room))
        threshold = state.threshold if state else getattr(rule, "threshold", None)
        blocks.append(Replayed(drafted, forwards, accepted, emitted, threshold))
        if state:
            state.update(drafted, accepted, room)
        at += emitted
    return blocks


def replay_tree(text: Text, parents: Sequence[int]) -> list[Replayed]:
    """The target calls that a `StaticTree` of this shape would have made of this text.

    Nodes and forwards are those of the whole shape, as far as the budget of the text lets it grow:
    that a drafted end of the text has nothing behind it is not taken off. ValueError for what is no
    shape, and for one with more than RANKS children at a node.
    """
    parents = StaticTree(tuple(parents)).parents
    children: dict[int, list[int]] = {}
    for node, parent in enumerate(parents):
        children.setdefault(parent, []).append(node)
    if max(map(len, children.values())) > RANKS:
        raise ValueError(f"parents={parents}: a replay knows at most {RANKS} siblings")
    levels = depths(parents)
    blocks, at, n = [], 0, len(text.rank)
    while at < n:
        room = min(max(levels), text.max_new_tokens - at - 1)
        node, accepted = -1, 0
        while accepted < room and at + accepted < n:
            below, rank = children.get(node, []), int(text.rank[at + accepted])
            if not 0 < rank <= len(below):
                break
            node, accepted = below[rank - 1], accepted + 1
        drafted = sum(level <= room for level in levels)
        emitted = min(accepted + 1, n - at)
        blocks.append(Replayed(drafted, room, accepted, emitted, None))
        at += emitted
    return blocks


def _first(flags: np.ndarray) -> int:
    """The place of the first True; far away without one."""
    return int(flags.argmax()) if flags.any() else 1 << 30


def replayed_row(text: Text, blocks: Sequence[Replayed]) -> Row:
    """A replay in figures, as `row_of` has them of a run; it took no seconds."""
    accepted = sum(block.accepted for block in blocks)
    return Row(
        prompt=text.prompt,
        seed=text.seed,
        tokens=sum(block.emitted for block in blocks),
        calls=len(blocks),
        drafted=sum(block.drafted for block in blocks),
        accepted=accepted,
        examined=accepted + sum(block.accepted < block.drafted for block in blocks),
        forwards=sum(block.forwards for block in blocks),
        seconds=0.0,
        lengths=lengths_of(block.accepted for block in blocks if block.drafted),
    )


def costed(rows: Iterable[Row], draft_cost: float, node_cost: float = 0.0) -> list[Row]:
    """Rows with the time that they would take, in target forwards of one token, as `seconds`.

    A call takes 1 + draft_cost per drafter forward + node_cost per drafted token. Then
    "tokens_per_second" is the speed over plain decoding: with the ratio of parameters as
    draft_cost MBSU, with both 0 the block efficiency.
    """
    return [
        row._replace(seconds=row.calls + draft_cost * row.forwards + node_cost * row.drafted)
        for row in rows
    ]
