"""Chains and trees of a draft model, grown level by level.

Every drafter here is one method, `expand`: which children the nodes of a level get, and the law
that each child was drawn from. `TreeDrafting` does the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from specnb.arguments import shown, wholes
from specnb.drafters.base import law_of, one_hot, opened
from specnb.knobs import KEY, knob, rule_knob, settle
from specnb.models.base import Context, Model, Pair, PromptTooLong, Scores
from specnb.sampling import Draws, Sampling
from specnb.stopping import FixedLength, StoppingRule, asks_for, is_rule
from specnb.tree import DraftTree, depths, path_to


class Drawn(NamedTuple):
    """A child: the row of its parent in the level, its token, the law that it was drawn from."""

    row: int
    token: int
    law: Tensor
    carried: Any = None  # what `expand` wants to know of this node when its turn comes


class Level(NamedTuple):
    """The nodes to be expanded."""

    number: int  # 0 = the root alone
    logits: Tensor  # [nodes, vocab], raw
    probs: Tensor  # [nodes, vocab], what tokens are drawn from
    times: tuple[int, ...]  # how often each node was drawn
    carried: tuple[Any, ...]


WHY = {  # what a verification rule asks of the drafts
    "block": "it judges one path as a whole and is for a Chain",
    "traversal": "it is exact where siblings are drawn without replacement, or chosen, and where "
    "how many a node gets is settled before any token of their level is drawn",
    "kseq": "it is exact for independent draws of one law",
}


@dataclass(frozen=True)
class _Tree:
    """What all drafters that grow level by level share. Subclasses say how deep, and `expand`.

    stop: when a level is the last one. verify: by which rule the target takes the tree apart, the
    name of one that is exact for it, or a function `rule(tree, root_probs, node_probs, draws,
    eos_ids) -> Outcome` of one's own, which `specnb.exact.law` can hold against the target's law.
    """

    stop: StoppingRule = field(default_factory=FixedLength, kw_only=True)
    verify: str | Callable[..., Any] = field(
        default="recursive", kw_only=True, metadata=rule_knob("recursive")
    )

    def __post_init__(self) -> None:
        if not is_rule(self.stop):
            raise ValueError(f"stop={shown(self.stop)}: give a stopping rule, as in AdaEDL(0.5)")
        rules = next(f.metadata[KEY].choices for f in fields(self) if f.name == "verify")
        if isinstance(self.verify, str) and self.verify in WHY and self.verify not in rules:
            raise ValueError(
                f"verify={self.verify!r}: {type(self).__name__} cannot have it, as "
                f"{WHY[self.verify]}; choose {' or '.join(map(repr, rules))}, or give a function"
            )
        settle(self)

    @property
    def branches(self) -> bool:
        """Whether a node may get two children: not every model can score that."""
        return True

    @property
    def draws_a_tree(self) -> bool:
        """Whether several children of a node are draws: at temperature 0 they would be one."""
        return self.branches

    @property
    def depth(self) -> int:
        """The most levels of a tree."""
        raise NotImplementedError

    def expand(self, level: Level, draws: Draws) -> Iterable[Drawn]:
        """The children of a level, those of one node in draw order."""
        raise NotImplementedError

    def worth_a_level(self, carried: Sequence[Any]) -> bool:
        """Whether nodes that carry this are worth one more forward of the drafter."""
        return True


@dataclass(frozen=True)
class _OfDraftModel(_Tree):
    """A drafter whose tree the pair's draft model grows."""

    def child_law(self, probs: Tensor, earlier: Sequence[int], token: int) -> Tensor:
        """The law that `token` was drawn from: `probs` is the drafter's law at its parent,
        `earlier` are the siblings drawn before it."""
        return probs

    def start(
        self,
        pair: Pair,
        prompt: Any,
        image: Any,
        sampling: Sampling,
        target: Context | None = None,
    ) -> TreeDrafting | TrimmedDrafting:
        draft: Any = pair.draft
        if draft is None:
            raise ValueError(
                f"draft=None: {type(self).__name__} needs a draft model, "
                "load the pair with draft=..."
            )
        kept = getattr(draft, "kept", None)
        drawn_by = draft if kept is None else draft.narrow
        # A drafter without eyes gets the text alone; left-in image tokens halve its efficiency.
        try:
            context = opened(drawn_by, prompt, image, target)
        except PromptTooLong:
            context = None  # drafting has ended before it began, decoding goes on
        ends = pair.target.eos_ids
        if kept is None:
            return TreeDrafting(self, draft, context, sampling, ends)
        return TrimmedDrafting(self, draft, context, sampling, ends)


class TreeDrafting:
    """Grows trees level by level: one drafter forward per level, over all of its nodes.

    `context` is that of the model that drafts, `draft`; without one `propose` finds no room.
    """

    def __init__(
        self,
        settings: _Tree,
        draft: Model,
        context: Context | None,
        sampling: Sampling,
        eos_ids: Set[int],
    ):
        self.settings, self.sampling = settings, sampling
        self.vocab_size, self.eos_ids = draft.vocab_size, eos_ids
        self.context: Context = context  # type: ignore[assignment]  # used where there is room
        stop = settings.stop
        self.rule = stop.start()
        self.asks_for_path = asks_for(self.rule, "path")
        self.head = _head(draft, stop) if asks_for(self.rule, "acceptance") else None
        self.depth_drafted = self.max_depth = 0

    @property
    def state(self) -> Hashable:
        return self.rule.state

    def propose(self, draws: Draws, max_depth: int) -> DraftTree:
        room = self.context.room if self.context else 0  # positions that the draft model has left
        wanted = self.settings.depth
        self.max_depth = max(0, min(wanted, max_depth, room))
        stopped_by = "length"
        if self.max_depth < wanted:
            stopped_by = "context" if room < max_depth else "budget"
        tokens: list[int] = []
        parents: list[int] = []
        laws: list[Tensor] = []
        carried: list[Any] = []
        drawn: list[int] = []
        slot = {-1: -1}  # where a node stands in the context: those never fed have none
        frontier = [-1]  # nodes that may get children
        forwards, self.depth_drafted = 0, 0
        threshold = self.rule.threshold
        scores_of: dict[int, float] = {}  # by node, for rules over a whole path
        for number in range(self.max_depth):
            new = [node for node in frontier if node >= 0]
            slot |= {node: len(slot) - 1 + i for i, node in enumerate(new)}
            scores = self.context.forward(
                [tokens[node] for node in new], [slot[parents[node]] for node in new]
            )
            forwards += 1
            logits = scores.nodes if new else scores.root[None]
            probs = law_of(self.context, self.sampling, logits)
            nodes = frontier
            if not isinstance(self.rule, FixedLength):  # which never stops
                go_on = self._going_on(nodes, parents, logits, probs, scores_of)
                if not go_on:
                    stopped_by = "rule"
                    break
                if len(go_on) < len(nodes):
                    nodes = [nodes[i] for i in go_on]
                    logits, probs = logits[go_on], probs[go_on]
            level = Level(
                number,
                logits,
                probs,
                tuple(drawn.count(node) if node >= 0 else 1 for node in nodes),
                tuple(carried[node] if node >= 0 else None for node in nodes),
            )
            found: dict[tuple[int, int], int] = {}  # a token drawn again is its node listed again
            for child in self.settings.expand(level, draws):
                node = found.setdefault((child.row, child.token), len(tokens))
                if node == len(tokens):
                    tokens.append(child.token)
                    parents.append(nodes[child.row])
                    laws.append(child.law)
                    carried.append(child.carried)
                drawn.append(node)
            self.depth_drafted = number + 1
            frontier = [node for node in found.values() if tokens[node] not in self.eos_ids]
            if not frontier:  # nothing is ever said after the end
                stopped_by = "eos" if found else "rule"
                break
            if not self.settings.worth_a_level([carried[node] for node in frontier]):
                stopped_by = "rule"
                break
        return DraftTree(
            tokens=tuple(tokens),
            parents=tuple(parents),
            probs=torch.stack(laws) if laws else torch.empty(0, self.vocab_size),
            drawn=tuple(drawn),
            rule=self.settings.verify,
            forwards=forwards,
            stopped_by=stopped_by,
            threshold=threshold,
        )

    def _going_on(
        self,
        nodes: list[int],
        parents: list[int],
        logits: Tensor,
        probs: Tensor,
        scores_of: dict[int, float],
    ) -> list[int]:
        """The rows of a level at which the rule does not stop; adds their scores to `scores_of`."""
        rows = range(len(nodes))
        rule: Any = self.rule  # `path` and `score` are for rules that ask for them
        told: list[dict[str, Any]] = [{} for _ in rows]
        if self.head is not None:
            told = [{"acceptance": guess} for guess in self.head(logits).tolist()]
        if not self.asks_for_path:
            return [i for i in rows if not rule.stop(logits[i], probs[i], **told[i])]
        found = []
        for i in rows:
            before = [-1, *path_to(nodes[i], parents)[:-1]] if nodes[i] >= 0 else []
            path = [scores_of[node] for node in before]
            if not rule.stop(logits[i], probs[i], path=path, **told[i]):
                scores_of[nodes[i]] = rule.score(logits[i], probs[i], **told[i])
                found.append(i)
        return found

    def commit(self, token_ids: Sequence[int], n_accepted: int) -> None:
        if self.context:
            self.context.commit(token_ids)
        self.rule.update(self.depth_drafted, n_accepted, self.max_depth)


def _head(draft: Model, stop: StoppingRule) -> Callable[[Tensor], Tensor]:
    """The acceptance head of a draft model, which `stop` asks for."""
    find = getattr(draft, "acceptance_head", None)
    head: Callable[[Tensor], Tensor] | None = find() if find else None
    if head is None:
        raise ValueError(
            f"stop={shown(stop)}: the draft model {draft.path!r} has no acceptance head; train one "
            "with `python -m specnb.training head`, or choose another stopping rule"
        )
    return head


class TrimmedDrafting:
    """Drafts of a model that can say some ids only: its laws, and draws, are over these alone.

    `TreeDrafting` runs on the narrow model, for which the i-th of the `kept` ids is token i; what
    comes out is written in the ids, and laws over the vocabulary, of all others. `context` is that
    of the narrow model.
    """

    def __init__(
        self,
        settings: _Tree,
        draft: Any,
        context: Context | None,
        sampling: Sampling,
        eos_ids: Set[int],
    ):
        self.kept, self.columns = draft.kept, torch.tensor(draft.kept)
        self.vocab_size = draft.vocab_size
        ends = frozenset(i for i, token in enumerate(self.kept) if token in eos_ids)
        numbered = Numbered(context, self.kept) if context else None
        self.inner = TreeDrafting(settings, draft.narrow, numbered, sampling, ends)

    @property
    def context(self) -> Context:
        return self.inner.context

    @property
    def state(self) -> Hashable:
        return self.inner.state

    def propose(self, draws: Draws, max_depth: int) -> DraftTree:
        tree = self.inner.propose(draws, max_depth)
        probs = tree.probs.new_zeros(len(tree.tokens), self.vocab_size)
        probs[:, self.columns.to(probs.device)] = tree.probs
        return replace(tree, tokens=tuple(self.kept[i] for i in tree.tokens), probs=probs)

    def commit(self, token_ids: Sequence[int], n_accepted: int) -> None:
        self.inner.commit(token_ids, n_accepted)


class Numbered(Context):
    """A context that is fed with places in `kept` in place of ids; committed are ids."""

    def __init__(self, context: Context, kept: tuple[int, ...]):
        self.context, self.kept = context, kept
        self.model = getattr(context, "model", None)

    @property
    def length(self) -> int:
        return self.context.length

    @property
    def room(self) -> int:
        return self.context.room

    def forward(self, tokens: Sequence[int] = (), parents: Sequence[int] = ()) -> Scores:
        return self.context.forward([self.kept[i] for i in tokens], parents)

    def commit(self, token_ids: Sequence[int]) -> None:
        self.context.commit(token_ids)

    def copy(self) -> Numbered:
        return Numbered(self.context.copy(), self.kept)


@dataclass(frozen=True)
class _Chain(_Tree):
    """`draft_length` tokens, one after another, whichever model draws them."""

    verify: str | Callable[..., Any] = field(
        default="recursive", kw_only=True, metadata=rule_knob("recursive", "block")
    )

    branches = False

    @property
    def draft_length(self) -> int:
        """How many tokens; a field of every chain."""
        raise NotImplementedError

    @property
    def depth(self) -> int:
        return self.draft_length

    def expand(self, level: Level, draws: Draws) -> Iterator[Drawn]:
        yield Drawn(0, draws.categorical(level.probs[0]), level.probs[0])


@dataclass(frozen=True)
class Chain(_Chain, _OfDraftModel):
    """Speculative sampling's drafter: `draft_length` tokens, one after another (2211.17192).

    stop: a stopping rule, which is asked before each draw. verify: "recursive" judges token by
    token; "block" keeps the longest prefix that passes as a whole (2403.10444), which is never
    shorter on average; or a function of one's own, as `specnb.verify` describes it.
    """

    draft_length: int = knob(5, least=1, upto=16, words="tokens drafted per block", unit="tokens")


@dataclass(frozen=True)
class _Branching(_OfDraftModel):
    """`branching[l]` children for every node of level l; (1, 1, 1) is a chain of three."""

    branching: tuple[int, ...] = knob((2, 2, 1), least=1, words="children per node, by level")

    @property
    def branches(self) -> bool:
        return max(self.branching) > 1

    @property
    def depth(self) -> int:
        return len(self.branching)


@dataclass(frozen=True)
class GumbelTopK(_Branching):
    """RSD-C: children drawn without replacement by Gumbel top-k (2402.14160).

    At temperature 0 one token has all the mass, and every node one child: give `speculative` a
    `draft_sampling` of a higher temperature, or use `TopKTree`.

    branching: children of every node, level by level; (1, 1, 1) is a chain of three. stop: a
    stopping rule, which may make a level the last one. verify: "recursive" judges node by node,
    "traversal" paths as a whole, from the leaves (2505.12398); or a function of one's own.
    """

    verify: str | Callable[..., Any] = field(
        default="recursive", kw_only=True, metadata=rule_knob("recursive", "traversal")
    )

    def expand(self, level: Level, draws: Draws) -> Iterator[Drawn]:
        drawn = draws.without_replacement(level.probs, self.branching[level.number])
        for row, tokens in enumerate(drawn.tolist()):
            tokens = [token for token in tokens if token >= 0]
            laws = without_replacement_laws(level.probs[row], tokens)
            for token, law in zip(tokens, laws, strict=True):
                yield Drawn(row, token, law)

    def child_law(self, probs: Tensor, earlier: Sequence[int], token: int) -> Tensor:
        return without_replacement_laws(probs, [*earlier, token])[-1]


@dataclass(frozen=True)
class StaticTree(_OfDraftModel):
    """A tree of a given shape, children drawn without replacement: Sequoia's (2402.12374).

    `parents` says which node each node follows, as in a `DraftTree` (-1 = the last committed
    token), siblings in draw order; `specnb.best_tree` finds the shape for a budget. Where a token
    ends the text, or fewer have probability > 0, what would hang there is left out.

    stop, verify: as of `GumbelTopK`.
    """

    parents: tuple[int, ...] = knob(
        (-1, -1, 0, 0, 1), least=-1, words="the node that each node follows"
    )
    verify: str | Callable[..., Any] = field(
        default="recursive", kw_only=True, metadata=rule_knob("recursive", "traversal")
    )

    def __post_init__(self) -> None:
        remedy = "give the earlier node that each node follows, -1 for the first ones: (-1, -1, 0)"
        parents = wholes("parents", self.parents, -1, remedy)
        if any(parent >= node for node, parent in enumerate(parents)):
            raise ValueError(f"parents={shown(parents)}: {remedy}")
        super().__post_init__()

    @property
    def branches(self) -> bool:
        return len(set(self.parents)) < len(self.parents)

    @property
    def depth(self) -> int:
        return max(depths(self.parents))

    def expand(self, level: Level, draws: Draws) -> Iterator[Drawn]:
        places = [-1 if place is None else place for place in level.carried]
        below = [[i for i, parent in enumerate(self.parents) if parent == at] for at in places]
        rows = [row for row, children in enumerate(below) if children]
        if not rows:
            return  # the deepest branch has ended early
        # All draw as many as the one with most children; the first ones of a row do not depend on
        # how many follow.
        most = max(len(below[row]) for row in rows)
        drawn = draws.without_replacement(level.probs[rows], most).tolist()
        for row, found in zip(rows, drawn, strict=True):
            tokens = [token for token in found[: len(below[row])] if token >= 0]
            laws = without_replacement_laws(level.probs[row], tokens)
            for token, law, place in zip(tokens, laws, below[row], strict=False):
                yield Drawn(row, token, law, place)

    def child_law(self, probs: Tensor, earlier: Sequence[int], token: int) -> Tensor:
        return without_replacement_laws(probs, [*earlier, token])[-1]


@dataclass(frozen=True)
class StochasticBeam(_OfDraftModel):
    """RSD-S: `width` paths drawn without replacement by stochastic beam search (2402.14160).

    Kool et al. 1903.06059, algorithm 1: a path's perturbed log-probability is the maximum of its
    children's, and the `width` largest of a level live on. Which child of a node lives on depends
    on its rank alone, not on which token it is, so siblings are a sequence of draws without
    replacement, in descending order.

    depth: levels of the tree. stop, verify: as of `GumbelTopK`, without "traversal".
    """

    width: int = knob(3, least=1, upto=8, words="paths that live on")
    depth: int = knob(4, least=1, upto=16, words="levels of the tree")

    @property
    def branches(self) -> bool:
        return self.width > 1

    def expand(self, level: Level, draws: Draws) -> Iterator[Drawn]:
        nodes, vocab = level.probs.shape
        start = torch.tensor(
            [carried or (0.0, 0.0) for carried in level.carried], dtype=torch.float64
        )
        log_probs = start[:, :1] + level.probs.double().log().cpu()
        perturbed = conditioned(log_probs + draws.gumbel((nodes, vocab)), start[:, 1:])
        values, places = perturbed.flatten().topk(min(self.width, nodes * vocab))
        picked: dict[int, list[int]] = {}
        for value, place in zip(values.tolist(), places.tolist(), strict=True):
            if value > -float("inf"):  # a token of probability 0 is never a draft
                picked.setdefault(place // vocab, []).append(place % vocab)
        for row, tokens in picked.items():
            laws = without_replacement_laws(level.probs[row], tokens)
            for token, law in zip(tokens, laws, strict=True):
                carried = float(log_probs[row, token]), float(perturbed[row, token])
                yield Drawn(row, token, law, carried)

    def child_law(self, probs: Tensor, earlier: Sequence[int], token: int) -> Tensor:
        return without_replacement_laws(probs, [*earlier, token])[-1]


def conditioned(perturbed: Tensor, maximum: Tensor) -> Tensor:
    """Gumbel numbers [nodes, vocab] given that each row's largest is `maximum` ([nodes, 1]).

    The stable form of Kool et al. 1903.06059, appendix B.3; -inf stays -inf.
    """
    largest = perturbed.amax(dim=-1, keepdim=True)
    v = maximum - perturbed + torch.log1p(-(perturbed - largest).exp())
    return maximum - v.clamp_min(0.0) - torch.log1p((-v.abs()).exp())


def without_replacement_laws(probs: Tensor, tokens: Sequence[int]) -> list[Tensor]:
    """The law of each of these draws given the ones before it: removed, then renormalised."""
    laws, left = [], probs
    for token in tokens:
        laws.append(left / left.sum())
        if len(laws) < len(tokens):
            left = laws[-1].clone()
            left[token] = 0.0
    return laws


@dataclass(frozen=True)
class IIDTree(_Branching):
    """Independent draws: `branching[l]` for each time that a node was drawn itself.

    verify: "recursive" is SpecInfer's tree with one drafter (2305.09781), "kseq" with branching
    (K, 1, ..., 1) SpecTr's K paths (2310.15141); or a function of one's own. stop: as of
    `GumbelTopK`.
    """

    verify: str | Callable[..., Any] = field(
        default="recursive", kw_only=True, metadata=rule_knob("recursive", "kseq")
    )

    def expand(self, level: Level, draws: Draws) -> Iterator[Drawn]:
        for row, times in enumerate(level.times):
            for _ in range(times * self.branching[level.number]):
                yield Drawn(row, draws.categorical(level.probs[row]), level.probs[row])


@dataclass(frozen=True)
class TopKTree(_Branching):
    """The most probable tokens, without any draw: what most tree decoders do.

    A token that was chosen and not drawn has the law of a certain event, so it is verified
    against a one-hot; with the drafter's softmax in its place the output would not be the
    target's. Ranked by raw logits: at temperature 0, too, there is a second best.

    branching, stop, verify: as of `GumbelTopK`.
    """

    verify: str | Callable[..., Any] = field(
        default="recursive", kw_only=True, metadata=rule_knob("recursive", "traversal")
    )

    draws_a_tree = False

    def expand(self, level: Level, draws: Draws) -> Iterator[Drawn]:
        wanted = min(self.branching[level.number], level.logits.shape[-1])
        values, ids = level.logits.topk(wanted, dim=-1)
        for row in range(len(ids)):
            for token, value in zip(ids[row].tolist(), values[row].tolist(), strict=True):
                if value > -float("inf"):
                    yield Drawn(row, token, one_hot(token, level.probs[row]))

    def child_law(self, probs: Tensor, earlier: Sequence[int], token: int) -> Tensor:
        return one_hot(token, probs)
