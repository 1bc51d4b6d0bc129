"""Table models, drafters for tests, and the check of a decoding method's exact law."""

import contextlib
import copy
from dataclasses import dataclass

import jaxtyping
import torch

from specnb import exact
from specnb.decode import next_block
from specnb.drafters import (
    Chain,
    GumbelTopK,
    IIDTree,
    PromptLookup,
    StaticTree,
    StochasticBeam,
    TopKTree,
)
from specnb.models import Pair, TableModel
from specnb.sampling import Sampling
from specnb.stopping import AdaEDL, MaxConfidence
from specnb.tree import DraftTree

TOLERANCE = 1e-12


@contextlib.contextmanager
def unchecked():
    """Without the type checker of the tests, as in notebooks."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", before)


def check_law(
    target, draft, drafter, sampling, n_tokens=3, draft_sampling=None, clip=False, prompt=(0,)
) -> exact.Law:
    """The one law check: method's law = target's law, mass 1, equal models never disagree.

    Without the checks of shapes, which take twice as long as all else; they have a test of their
    own (test_exact.py).
    """
    with unchecked():
        found = exact.law(target, draft, drafter, sampling, n_tokens, prompt, draft_sampling, clip)
    wanted = exact.target_law(target, sampling, n_tokens, prompt)
    error = float((found.probs - wanted).abs().max())
    assert error <= TOLERANCE, f"law differs by {error}"
    assert abs(found.mass - 1.0) <= TOLERANCE, f"mass {found.mass}"
    if draft is target and draft_sampling in (None, sampling):
        # Only this notices a drafter whose own cache is wrong: its drafts are still drawn from
        # the law that it declares, so the output stays right and merely gets slow.
        rejected = [event for event in found.outcomes if event[0] == "rejected"]
        assert not rejected, f"a model disagrees with itself: {rejected}"
    return found


def table(rows) -> TableModel:
    """A table model from probabilities (0 allowed)."""
    return TableModel(torch.tensor(rows, dtype=torch.float64).log())


@dataclass(frozen=True)
class Siblings:
    """A full tree: `width` children without replacement at every node. `flaw` plants an error."""

    width: int = 2
    depth: int = 1
    flaw: str = ""  # "sorted" | "same row" | "not renormalised"

    def start(self, pair, prompt, image, sampling):
        return SiblingsDrafting(self, pair.draft, prompt, sampling)


class SiblingsDrafting:
    state = ()

    def __init__(self, settings, draft, prompt, sampling):
        self.settings, self.sampling, self.context = settings, sampling, draft.open(prompt)

    def propose(self, draws, max_depth):
        tokens, parents, rows, forwards = [], [], [], 0
        level = [-1]
        for _ in range(min(self.settings.depth, max_depth)):
            new = [node for node in level if node >= 0]
            scores = self.context.forward([tokens[i] for i in new], [parents[i] for i in new])
            forwards += 1
            probs = self.sampling.probs(scores.nodes if new else scores.root[None])
            drawn = draws.without_replacement(probs, self.settings.width).tolist()
            grown = []
            for parent, law, children in zip(level, probs, drawn, strict=True):
                children = [token for token in children if token >= 0]
                if self.settings.flaw == "sorted":
                    children.sort(key=lambda token, law=law: -law[token])
                left = law.clone()
                for token in children:
                    row = left if self.settings.flaw == "not renormalised" else left / left.sum()
                    rows.append(law if self.settings.flaw == "same row" else row)
                    left = left.clone()
                    left[token] = 0.0
                    grown.append(len(tokens))
                    tokens.append(token)
                    parents.append(parent)
            level = grown
        empty = torch.empty(0, self.context.model.vocab_size, dtype=torch.float64)
        stacked = torch.stack(rows) if rows else empty
        return DraftTree(tuple(tokens), tuple(parents), stacked, forwards=forwards)

    def commit(self, token_ids, n_accepted):
        self.context.commit(token_ids)


@dataclass(frozen=True)
class Once:
    """Another drafter for the first block only: big trees are dear to enumerate block by block."""

    drafter: object

    def start(self, pair, prompt, image, sampling):
        return OnceDrafting(self.drafter.start(pair, prompt, image, sampling))


class OnceDrafting:
    def __init__(self, drafting):
        self.drafting, self.done = drafting, False

    @property
    def state(self):
        return self.done

    def propose(self, draws, max_depth):
        tree = self.drafting.propose(draws, 0 if self.done else max_depth)
        self.done = True
        return tree

    def commit(self, token_ids, n_accepted):
        self.drafting.commit(token_ids, n_accepted)


@dataclass(frozen=True)
class Repeated:
    """`n_draws` independent draws for one place; a token drawn again is its node listed again."""

    n_draws: int = 2

    def start(self, pair, prompt, image, sampling):
        return RepeatedDrafting(self, pair.draft, prompt, sampling)


class RepeatedDrafting(SiblingsDrafting):
    def propose(self, draws, max_depth):
        probs = self.sampling.probs(self.context.forward().root)
        drawn = [draws.categorical(probs) for _ in range(self.settings.n_draws * (max_depth > 0))]
        tokens = tuple(dict.fromkeys(drawn))
        return DraftTree(
            tokens,
            (-1,) * len(tokens),
            probs.expand(len(tokens), -1),
            drawn=tuple(tokens.index(token) for token in drawn),
            forwards=1,
        )


@dataclass(frozen=True)
class Hierarchy:
    """Target <- middle <- small: drafts are made by speculative decoding of the middle model.

    What is proposed follows the middle's law token by token, so the middle's rows are declared.
    `draft_length` tokens are proposed: inner blocks run until they suffice, and what they emit
    beyond is forgotten, which leaves the law of what is kept alone. With `one_block` the proposal
    is what one inner block emits: its length then depends on inner verdicts, but whether there is
    an i-th token is settled before that token is drawn, as a stopping rule must do it.
    """

    middle: TableModel
    draft_length: int = 2
    inner_length: int = 1
    one_block: bool = False
    flaw: str = ""  # "small's law" | "accepted only"

    def start(self, pair, prompt, image, sampling):
        return HierarchyDrafting(self, pair.draft, prompt, sampling)


class HierarchyDrafting:
    state = ()

    def __init__(self, settings, small, prompt, sampling):
        self.settings, self.sampling, self.model = settings, sampling, small
        self.middle = settings.middle.open(prompt)
        inner = Chain(settings.inner_length)
        self.small = inner.start(Pair(settings.middle, small), prompt, None, sampling)

    def propose(self, draws, max_depth):
        wanted = min(self.settings.draft_length, max_depth)
        shared = {id(m): m for m in (self.model, self.settings.middle, self.settings)}
        middle, small = self.middle.copy(), copy.deepcopy(self.small, shared)
        tokens, rows = [], []
        while len(tokens) < wanted:
            room = wanted - len(tokens) - 1 if self.settings.one_block else 1 << 20
            block = next_block(middle, small, self.sampling, draws, room)
            n = len(block.token_ids)
            if self.settings.flaw == "accepted only":
                n = len(block.outcome.path)
            tokens += block.token_ids[:n]
            if self.settings.flaw == "small's law":
                own = [self.sampling.probs(middle.model.next_logits([0]))] * n
                rows += [*block.tree.probs, *own][:n]
            else:
                rows += block.target_probs[:n]
            if self.settings.one_block or self.settings.flaw == "accepted only":
                break
        tokens, rows = tokens[:wanted], rows[:wanted]
        empty = torch.empty(0, self.model.vocab_size, dtype=torch.float64)
        return DraftTree(
            tuple(tokens), tuple(range(-1, len(tokens) - 1)), torch.stack(rows) if rows else empty
        )

    def commit(self, token_ids, n_accepted):
        self.middle.commit(token_ids)
        self.small.commit(token_ids, 0)


def models(vocab_size=3, order=1, seed=0, draft_order=None) -> tuple[TableModel, TableModel]:
    """A random target and a random drafter."""
    target = TableModel.random(vocab_size, order, seed=2 * seed)
    return target, TableModel.random(vocab_size, draft_order or order, seed=2 * seed + 1)


EVERY = {  # method by name, as far as it goes with any model
    "chain": Chain(5),
    "AdaEDL": Chain(12, stop=AdaEDL(0.4)),
    "MaxConfidence": Chain(12, stop=MaxConfidence(0.4)),
    "RSD-C": GumbelTopK((3, 2, 1)),
    "static tree": StaticTree((-1, -1, -1, 0, 0, 1, 3)),
    "RSD-S": StochasticBeam(3, 4),
    "iid": IIDTree((3, 2, 1)),
    "k-SEQ": IIDTree((3, 1, 1), verify="kseq"),
    "top-k": TopKTree((3, 2, 1)),
    "prompt lookup": PromptLookup(2, 4),
    "RSD-S with AdaEDL": StochasticBeam(4, 6, stop=AdaEDL(0.4)),
}
GREEDY = Sampling()
PLAIN = Sampling(temperature=1.0)
