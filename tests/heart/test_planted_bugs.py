"""Bugs planted in production code, one line each, and the checks that must go red.

Papers, forums and other engines have had every one of them. The law check is the very one that
passes on the code as it is (test_exact.py).
"""

import itertools
from dataclasses import dataclass, replace

import pytest
import torch
from fake_device import FakeCard, is_on_card, on_card
from mutate import Endless, n_statements, replaced, without_statement
from toys import PLAIN, check_law, models, table

from specnb import decode, exact, joint, outcome, sampling
from specnb import verify as verify_module
from specnb.drafters import Chain, GumbelTopK, IIDTree, TopKTree, TreeDrafting
from specnb.drafters import trees as tree_drafters
from specnb.models.base import Context
from specnb.models.table import TableContext
from specnb.sampling import Draws, Sampling
from specnb.stopping import MaxConfidence
from specnb.tree import DraftTree, empty_tree
from specnb.verify import Outcome, verify

# ---- one-line mutations, all caught by check_law


def law_battery() -> None:
    """`check_law` on text that remembers two tokens, so that a wrong cache shows in the logits."""
    target, draft = models(3, order=2, seed=1)
    confident = Chain(2, stop=MaxConfidence(0.5, adaptive=False))
    for drafter in (Chain(1), Chain(2), GumbelTopK((2,)), confident):
        check_law(target, draft, drafter, PLAIN, n_tokens=3)
        check_law(target, draft, drafter, PLAIN, n_tokens=3, clip=True)
    for drafter in (IIDTree((2, 1)), IIDTree((2,), verify="kseq"), TopKTree((2, 1))):
        check_law(target, draft, drafter, PLAIN, n_tokens=2)
    for seed in (3, 4):  # more tokens, so that more than one is left after a rejection
        check_law(*models(5, seed=seed), IIDTree((2,), verify="kseq"), PLAIN, n_tokens=1)
    for drafter in (Chain(2, verify="block"), GumbelTopK((2, 1), verify="traversal")):
        check_law(*models(3, seed=1), drafter, PLAIN, n_tokens=2)
    check_law(*models(5, seed=3), GumbelTopK((2,), verify="traversal"), PLAIN, n_tokens=1)
    check_law(target, target, Chain(2), PLAIN, n_tokens=4)


@dataclass(frozen=True)
class Bug:
    name: str
    places: tuple  # (owner, attribute) of everything that holds the function
    old: str
    new: str


RESIDUAL = ((sampling, "residual"), (verify_module, "residual"), (joint, "residual"))
WALK = ((verify_module, "node_by_node"),)
RECURSIVE = ((verify_module, "recursive"),)
K_SEQ = ((verify_module, "k_sequential"),)
BLOCK_RULE = ((verify_module.RULES, "block"),)
TRAVERSAL = ((verify_module.RULES, "traversal"),)
KEEP = ((TableContext, "_keep"),)
FORWARD = ((Context, "forward"),)
COMMIT = ((Context, "commit"),)
EXPAND = ((Chain, "expand"),)
PROPOSE = ((TreeDrafting, "propose"),)
LAWS = ((tree_drafters, "without_replacement_laws"),)
BLOCK = ((decode, "next_block"), (exact, "next_block"))
DRAWN = "Drawn(0, draws.categorical(level.probs[0]), level.probs[0])"
BUGS = (
    Bug("unnormalised residual", RESIDUAL, "rest / mass if mass > 0 else", "rest if mass > 0 else"),
    Bug(
        "residual the wrong way round",
        RESIDUAL,
        "(target_probs - draft_probs)",
        "(draft_probs - target_probs)",
    ),
    Bug(
        "target's own law instead of the residual",
        RESIDUAL,
        "(target_probs - draft_probs).clamp_min(0.0)",
        "target_probs",
    ),
    Bug(
        "absolute difference instead of the positive part",
        RESIDUAL,
        ".clamp_min(0.0)",
        ".abs()",
    ),
    Bug(
        "drafter drawn at another temperature than declared",
        EXPAND,
        DRAWN,
        "Drawn(0, draws.categorical(Sampling(0.7).probs(level.logits[0])), level.probs[0])",
    ),
    Bug(
        "declared at another temperature than drawn",
        EXPAND,
        DRAWN,
        "Drawn(0, draws.categorical(level.probs[0]), Sampling(0.7).probs(level.logits[0]))",
    ),
    Bug(
        "bonus after a rejection",
        BLOCK,
        "emitted.append(outcome.token)",
        "emitted += [outcome.token] if outcome.final != 'correction' else "
        "[outcome.token, draws.categorical(target_probs[len(emitted) + 1])]",
    ),
    Bug(
        "correction from the drafter's law",
        RECURSIVE,
        "target_probs = residual(target_probs, draft_probs)",
        "target_probs = draft_probs",
    ),
    Bug("always accepted", RECURSIVE, "draws.accept(accept_prob)", "(True, 0.0)"),
    Bug(
        "ratio upside down",
        RECURSIVE,
        "float(target_probs[token]) / _declared(tree, child)",
        "_declared(tree, child) / max(float(target_probs[token]), 1e-9)",
    ),
    Bug(
        "siblings verified in reverse order",
        WALK,
        "children = tree.draws_of(node)",
        "children = tree.draws_of(node)[::-1]",
    ),
    Bug(
        "siblings sorted by draft probability",
        WALK,
        "children = tree.draws_of(node)",
        "children = sorted(tree.draws_of(node), key=lambda c: -tree.probs[c][tree.tokens[c]])",
    ),
    Bug("not renormalised after a removal", LAWS, "left / left.sum()", "left"),
    Bug("nothing removed", LAWS, "left[token] = 0.0", "pass"),
    Bug(
        "a token dropped because its own probability is low",
        PROPOSE,
        "in self.settings.expand(level, draws):",
        "in [c for c in self.settings.expand(level, draws) if c.law[c.token] > 0.3]:",
    ),
    Bug(
        "greedy proposals verified with softmax probabilities",
        ((TopKTree, "expand"),),
        "one_hot(token, level.probs[row])",
        "level.probs[row]",
    ),
    Bug("k-SEQ with rho 1", K_SEQ, "ratio / rho, 1.0", "ratio, 1.0"),
    Bug(
        "k-SEQ followed by the plain residual",
        K_SEQ,
        "rest = (target_probs - said).clamp_min(0.0)",
        "rest = (target_probs - draft_probs).clamp_min(0.0)",
    ),
    Bug(
        "block: residual of the token rule",
        BLOCK_RULE,
        "residual(weights[kept] * probs, tree.probs[kept])",
        "residual(probs, tree.probs[kept])",
    ),
    Bug(
        "block: tests without the look-ahead",
        ((joint, "_tests"),),
        "[*(end_here(rest, w) for rest, w in zip(rests, inner, strict=True)), weights[-1]]",
        "weights[1:]",
    ),
    Bug(
        "block: look-ahead in the last test, too",
        ((joint, "_tests"),),
        "strict=True)), weights[-1]]",
        "strict=True)), end_here(0.1, weights[-1])]",
    ),
    Bug(
        "block: the first test that fails ends it",
        BLOCK_RULE,
        "max((place for place, (passed, _) in enumerate(decided, 1) if passed), default=0)",
        "[*(passed for passed, _ in decided), False].index(False)",
    ),
    Bug(
        "block: weights above 1",
        ((joint, "_weights"),),
        "min(weights[-1] * target_prob / draft_prob, 1.0)",
        "weights[-1] * target_prob / draft_prob",
    ),
    Bug(
        "traversal: a lost child leaves the weight as it was",
        TRAVERSAL,
        "weight = end_here(rest, weight)",
        "pass",
    ),
    Bug(
        "traversal: a lost child leaves the target's law as it was",
        TRAVERSAL,
        "probs = left / rest if rest > 0.0 else probs",
        "pass",
    ),
    Bug(
        "traversal: the siblings' laws of the first one",
        TRAVERSAL,
        "tree.probs[child]).clamp",
        "tree.probs[children[0]]).clamp",
    ),
    Bug(
        "rejected tokens stay in the cache",
        COMMIT,
        "self._keep([n_before + node for node in path], n_before)",
        "self._keep([n_before + node for node in range(len(self.pending_tokens))], n_before)",
    ),
    Bug(
        "no rollback at all",
        KEEP,
        "self.slots[:n_before] + [self.slots[slot] for slot in slots]",
        "self.slots",
    ),
    Bug("rollback one too far", KEEP, "self.slots[:n_before]", "self.slots[: n_before - 1]"),
    Bug(
        "rollback wipes one slot too many",
        KEEP,
        "self.slots[:n_before]",
        "self.slots[: n_before - 1] + [0]",
    ),
    Bug(
        "last accepted token dropped from the cache",
        COMMIT,
        "for node in path], n_before)",
        "for node in path[:-1]], n_before)",
    ),
    Bug(
        "last draft never fed after a full acceptance",
        COMMIT,
        "self.fed += len(path)",
        "self.fed = self.length - 1",
    ),
    Bug(
        "last draft never fed, the bonus in its place",
        FORWARD,
        "unfed = self.committed[self.fed :]",
        "unfed = self.committed[-1:] * (self.length - self.fed)",
    ),
    Bug("correction never fed", COMMIT, "self.fed += len(path)", "self.fed = self.length"),
    Bug(
        "stale root after a full acceptance",
        COMMIT,
        "if path and len(path) == len(token_ids):",
        "if path:",
    ),
)


def test_law_battery_passes_on_the_code_as_it_is():
    law_battery()


# A stale root is overwritten by the next forward, which always has something to feed then.
HARMLESS = {"stale root after a full acceptance"}


RED = "law differs|mass|disagrees with itself|list index out of range|is no distribution"


def plant_bug(bug: Bug, monkeypatch) -> None:
    for owner, name in bug.places:
        if isinstance(owner, dict):
            monkeypatch.setitem(owner, name, replaced(owner[name], bug.old, bug.new))
        else:
            monkeypatch.setattr(owner, name, replaced(getattr(owner, name), bug.old, bug.new))


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_law_check_catches(bug, monkeypatch):
    plant_bug(bug, monkeypatch)
    if bug.name in HARMLESS:
        law_battery()
        return
    # Most bugs change the law in silence; a cache that lost a slot may break off instead, and rows
    # that are no distribution are refused.
    with pytest.raises((AssertionError, IndexError, ValueError), match=RED):
        law_battery()


def test_only_a_model_drafting_for_itself_shows_a_drafter_with_a_wrong_cache(monkeypatch):
    """Why `check_law` also counts rejections: the declared law stays the drawn one."""
    bug = next(bug for bug in BUGS if bug.name.startswith("last draft never fed, the bonus"))
    (place,) = bug.places
    monkeypatch.setattr(*place, replaced(getattr(*place), bug.old, bug.new))
    target, draft = models(3, order=2, seed=1)
    check_law(target, draft, Chain(2), PLAIN)  # right, merely slow
    with pytest.raises(AssertionError, match="disagrees with itself"):
        check_law(target, target, Chain(2), PLAIN, n_tokens=4)


def test_a_replacement_that_fits_nowhere_is_an_error():
    with pytest.raises(AssertionError, match="0 times"):
        replaced(verify, "no such line", "")
    with pytest.raises(AssertionError, match="times"):
        replaced(verify, "target_probs", "")


# ---- verify by hand


class Scripted(Draws):
    """Given uniform numbers; a token drawn is the most probable one, and its law is kept."""

    def __init__(self, *uniforms: float):
        self.uniforms, self.laws = list(uniforms), []

    def accept(self, prob):
        uniform = self.uniforms.pop(0)
        return uniform < prob, uniform

    def categorical(self, probs):
        assert not self.laws, "a second token was drawn"
        self.laws.append(probs)
        return int(probs.argmax())


def rows(*values):
    return torch.tensor(values, dtype=torch.float64)


# Tokens 1 and 2 are siblings, drawn without replacement; 3 follows 2.
TREE = DraftTree(
    tokens=(1, 2, 3),
    parents=(-1, -1, 1),
    probs=rows([0.1, 0.6, 0.2, 0.1], [0.25, 0.0, 0.5, 0.25], [0.2, 0.2, 0.2, 0.4]),
)
ROOT = rows(0.1, 0.2, 0.3, 0.4)
NODES = rows([0.7, 0.1, 0.1, 0.1], [0.4, 0.3, 0.2, 0.1], [0.1, 0.1, 0.1, 0.7])
THIRD = 0.2 / 0.6  # for token 1
HALF = 0.25 / 0.5  # for token 2: the residual [0, 0, .1, .3] / .4 holds 1/4 of it
QUARTER = 0.1 / 0.4  # for token 3 behind 2
BY_HAND = (  # uniforms, path, final, its law, (node, accept_prob, accepted) of each look
    ([0.3], (0,), "bonus", [0.7, 0.1, 0.1, 0.1], [(0, THIRD, True)]),
    (
        [0.5, 0.4, 0.2],
        (1, 2),
        "bonus",
        [0.1, 0.1, 0.1, 0.7],
        [(0, THIRD, False), (1, HALF, True), (2, QUARTER, True)],
    ),
    (
        [0.5, 0.4, 0.3],
        (1,),
        "correction",
        [2 / 3, 1 / 3, 0.0, 0.0],
        [(0, THIRD, False), (1, HALF, True), (2, QUARTER, False)],
    ),
    (
        [0.5, 0.6],
        (),
        "correction",
        [0.0, 0.0, 0.0, 1.0],
        [(0, THIRD, False), (1, HALF, False)],
    ),
)
# A chain whose verification ends with its second token, the end token.
CHAIN = DraftTree((1, 2), (-1, 0), rows([0.2, 0.8, 0.0, 0.0], [0.0, 0.5, 0.5, 0.0]))
SAME = rows([0.2, 0.8, 0.0, 0.0], [0.0, 0.5, 0.5, 0.0], [0.25, 0.25, 0.25, 0.25])


# Two draws of one law, of which the target thinks little: rho comes out as 2, mass as 0.3.
TWICE = DraftTree((0, 1), (-1, -1), rows(*[[0.5, 0.5, 0.0, 0.0]] * 2), drawn=(0, 1), rule="kseq")
RARE = rows(0.2, 0.4, 0.3, 0.1)


def close(found, wanted, atol=1e-12) -> bool:
    return torch.allclose(found, torch.as_tensor(wanted, dtype=found.dtype), atol=atol)


def by_hand(function) -> None:
    """What `verify` must return for given trees and uniform numbers, field by field."""
    for uniforms, path, final, law, looks in BY_HAND:
        draws = Scripted(*uniforms)
        outcome = function(TREE, ROOT, NODES, draws)
        assert not draws.uniforms, "uniform numbers are left over"
        assert outcome.path == path and outcome.final == final
        assert close(outcome.final_probs, law) and close(draws.laws[0], law)
        assert outcome.token == max(range(4), key=law.__getitem__)
        found = [(node, look.accept_prob, look.accepted) for node, look in outcome.examined]
        for one, other in itertools.zip_longest(found, looks):
            assert one[0] == other[0] and one[2] is other[2] and abs(one[1] - other[1]) < 1e-12
        assert [look.uniform for _, look in outcome.examined] == uniforms

    rho = 0.6 / (1 - 0.4**0.5)  # the root of 1 - (1 - 0.6 / rho)^2 = 0.6
    draws = Scripted(0.3, 0.5)
    refused = function(TWICE, RARE, NODES[:2], draws)
    looks = [(node, look.accept_prob, look.accepted) for node, look in refused.examined]
    assert looks == [(0, pytest.approx(0.4 / rho), False), (1, pytest.approx(0.8 / rho), False)]
    assert refused.path == () and refused.final == "correction"
    assert close(draws.laws[0], [0.0, 0.0, 0.75, 0.25], 1e-8)  # what neither draw can have said
    kept = function(TWICE, RARE, NODES[:2], Scripted(0.3, 0.4))
    assert kept.path == (1,) and kept.final == "bonus" and close(kept.final_probs, NODES[1])
    own = function(TWICE, TWICE.probs[0], NODES[:2], Scripted(1 - 1e-15))
    assert own.path == (0,)  # equal laws never disagree

    empty = function(DraftTree((), (), torch.empty(0, 4)), ROOT, torch.empty(0, 4), Scripted())
    assert (empty.path, empty.token, empty.final, empty.examined) == ((), 3, "plain", ())

    ended = function(CHAIN, SAME[0], SAME[1:], Scripted(0.9, 0.9), frozenset({2}))
    assert (ended.path, ended.token, ended.final, ended.final_probs) == ((0, 1), None, None, None)
    assert len(ended.examined) == 2
    early = function(CHAIN, SAME[0], SAME[1:], Scripted(0.9), frozenset({3, 1}))
    assert early.path == (0,) and early.token is None and len(early.examined) == 1
    going_on = function(CHAIN, SAME[0], SAME[1:], Scripted(0.9, 0.9), frozenset({0}))
    assert going_on.path == (0, 1) and going_on.final == "bonus"

    # An end token that is rejected ends nothing, and neither does one drawn by the target.
    other = rows([1.0, 0.0, 0.0, 0.0]).expand(3, 4)
    refused = function(CHAIN, other[0], other[1:], Scripted(0.0), frozenset({1}))
    assert (refused.path, refused.token, refused.final) == ((), 0, "correction")


# A chain of two whose first token the target wants at half: w = 1/2, 0.4; what is wanted behind the
# first one and was not drafted there: 0.15, so that it passes with 0.15 / (0.15 + 0.5).
JOINT = DraftTree((0, 1), (-1, 0), rows([0.5, 0.5, 0.0, 0.0], [0.25, 0.75, 0.0, 0.0]), rule="block")
QUARTERS = rows(0.25, 0.25, 0.25, 0.25)
BEHIND = rows([0.1, 0.6, 0.2, 0.1], [0.7, 0.1, 0.1, 0.1])
ENDS_AT_ONE = 0.15 / 0.65
# TREE from its leaves: 0, then 2 below 1, then 1, whose law is [.7, .1, .1, .1] here.
LEAVES = replace(TREE, rule="traversal")
WIDER = rows([0.7, 0.1, 0.1, 0.1], [0.7, 0.1, 0.1, 0.1], [0.1, 0.1, 0.1, 0.7])
JOINT_BY_HAND = (  # tree, root, nodes, uniforms, ends, path, final, its law, looks
    (JOINT, QUARTERS, BEHIND, [0.9, 0.3], (), (0, 1), "bonus", [0.7, 0.1, 0.1, 0.1],
     [(0, ENDS_AT_ONE, True), (1, 0.4, True)]),
    (JOINT, QUARTERS, BEHIND, [0.2, 0.5], (), (0,), "correction", [0, 0, 2 / 3, 1 / 3],
     [(0, ENDS_AT_ONE, True), (1, 0.4, False)]),
    (JOINT, QUARTERS, BEHIND, [0.3, 0.5], (), (), "correction", [0, 0, 0.5, 0.5],
     [(0, ENDS_AT_ONE, False), (1, 0.4, False)]),
    (JOINT, QUARTERS, BEHIND, [0.4], (0,), (0,), None, None, [(0, 0.5, True)]),
    (JOINT, QUARTERS, BEHIND, [0.6], (0, 1), (), "correction", [0, 0, 0.5, 0.5], [(0, 0.5, False)]),
    (JOINT, QUARTERS, BEHIND, [0.9, 0.3], (1,), (0, 1), None, None,
     [(0, ENDS_AT_ONE, True), (1, 0.4, True)]),
    (LEAVES, ROOT, WIDER, [0.3], (), (0,), "bonus", [0.7, 0.1, 0.1, 0.1], [(0, THIRD, True)]),
    (LEAVES, ROOT, WIDER, [0.5, 0.1], (), (1, 2), "bonus", [0.1, 0.1, 0.1, 0.7],
     [(0, THIRD, False), (2, 0.125, True)]),
    (LEAVES, ROOT, WIDER, [0.5, 0.2, 0.2], (), (1,), "correction", [1, 0, 0, 0],
     [(0, THIRD, False), (2, 0.125, False), (1, ENDS_AT_ONE, True)]),
    (LEAVES, ROOT, WIDER, [0.5, 0.2, 0.3], (), (), "correction", [0, 0, 0, 1],
     [(0, THIRD, False), (2, 0.125, False), (1, ENDS_AT_ONE, False)]),
    (LEAVES, ROOT, WIDER, [0.5, 0.4], (2,), (1,), None, None,
     [(0, THIRD, False), (1, 0.5, True)]),
)  # fmt: skip


def joint_by_hand(function) -> None:
    """The rules over whole paths, field by field, and what they refuse before anything is drawn."""
    for tree, root, nodes, uniforms, ends, path, final, law, looks in JOINT_BY_HAND:
        draws = Scripted(*uniforms)
        found = function(tree, root, nodes, draws, frozenset(ends))
        assert not draws.uniforms, "uniform numbers are left over"
        assert (found.path, found.final) == (path, final)
        assert (found.token is None) == (law is None) == (found.final_probs is None)
        assert law is None or (close(found.final_probs, law) and close(draws.laws[0], law))
        given = [(node, pytest.approx(prob), accepted) for node, prob, accepted in looks]
        assert [(node, one.accept_prob, one.accepted) for node, one in found.examined] == given
        assert sorted(one.uniform for _, one in found.examined) == sorted(uniforms)
    for rule in ("block", "traversal"):
        empty = DraftTree((), (), torch.empty(0, 4), rule=rule)
        outcome = function(empty, ROOT, torch.empty(0, 4), Scripted())
        assert (outcome.path, outcome.token, outcome.final, outcome.examined) == (
            (),
            3,
            "plain",
            (),
        )
        never = DraftTree((1,), (-1,), rows([1.0, 0.0, 0.0, 0.0]), rule=rule)
        with pytest.raises(ValueError, match="node 0: token 1 was drawn with probability 0"):
            function(never, ROOT, NODES[:1], Scripted())
        own = function(replace(CHAIN, rule=rule), SAME[0], SAME[1:], Scripted(*[1 - 1e-15] * 2))
        assert own.path == (0, 1)  # equal laws never disagree: 0 / 0 is 1
    with pytest.raises(ValueError, match="node 1 follows node -1: rule='block' judges one path"):
        function(replace(TREE, rule="block"), ROOT, NODES, Scripted())
    again = DraftTree((0, 1), (-1, -1), TWICE.probs, drawn=(0, 1, 1), rule="traversal")
    with pytest.raises(ValueError, match="node 1 was drawn twice: rule='traversal' needs siblings"):
        function(again, RARE, NODES[:2], Scripted())


def bad_input(function) -> None:
    """Errors name what is wrong, and nothing is decided before."""

    def refused(match: str, tree: DraftTree, root=ROOT) -> None:
        draws = Scripted(0.5, 0.5, 0.5)
        with pytest.raises(ValueError, match=match):
            function(tree, root, NODES[: len(tree)], draws)

    refused("rule='typical'", DraftTree(TREE.tokens, TREE.parents, TREE.probs, rule="typical"))
    refused("node 0: token 1", DraftTree((1,), (-1,), rows([1.0, 0.0, 0.0, 0.0])))
    nan, inf = float("nan"), float("inf")
    law = [0.1, 0.6, 0.2, 0.1]
    for wrong, why in (
        ([nan, nan, nan, nan], "lowest entry is nan"),
        ([0.1, 0.9, nan, 0.0], "lowest entry is nan"),
        ([0.1, inf, 0.0, 0.0], "it sums to inf"),
        ([0.0, 1.2, -0.2, 0.0], "lowest entry is -0.2"),
        ([0.1, 0.6, 0.2, 0.2], "it sums to 1.1"),
        ([0.1, 0.6, 0.2, 0.1 + 1e-8], "it sums to 1"),
        ([0.1, 0.6, 0.0, 0.0], "it sums to 0.7"),
    ):
        refused(f"node 1: token 1 .* {why}", DraftTree((1, 1), (-1, 0), rows(law, wrong)))
    narrow = rows(law, [0.1, 0.6, 0.2, 0.102]).float()
    refused("node 1: token 1 .* it sums to 1.002", DraftTree((1, 1), (-1, 0), narrow))
    refused("1 rows for 2 nodes", DraftTree((1, 1), (-1, 0), rows(law)))
    rounded = rows(law, [0.1, 0.6, 0.2, 0.1002]).float()
    function(DraftTree((1, 1), (-1, 0), rounded), ROOT, NODES[:2], Scripted(0.0, 0.0))
    function(empty_tree(0, "length"), ROOT, NODES[:0], Scripted())


def by_drawing(tree, root_probs, node_probs, draws, eos_ids=frozenset()):
    """A rule of one's own: the target draws, and what was drafted stays where it says the same."""
    path, node, probs = [], -1, root_probs
    while True:
        token = draws.categorical(probs)
        same = [child for child in tree.draws_of(node) if tree.tokens[child] == token]
        if not same:
            final = "correction" if tree.draws_of(node) else "bonus" if len(tree) else "plain"
            return Outcome(tuple(path), token, final, probs, ())
        node = same[0]
        path.append(node)
        probs = node_probs[node]
        if token in eos_ids:
            return Outcome(tuple(path), None, None, None, ())


def rules_of_ones_own(function) -> None:
    """A function is called as it is, and its outcome must be one that a text can take."""
    given = []

    def rule(outcome):
        def decided(*args):
            given.append(args)
            return outcome

        return DraftTree(CHAIN.tokens, CHAIN.parents, CHAIN.probs, rule=decided)

    ends = frozenset({2})
    good = Outcome((0,), 3, "correction", ROOT, ())
    for right in (good, Outcome((0, 1), None, None, None, ()), Outcome((), 0, "bonus", ROOT, ())):
        assert function(rule(right), SAME[0], SAME[1:], Scripted(), ends) is right
    assert len(given) == 3 and all(len(args) == 5 and args[4] is ends for args in given)
    for wrong, why in (
        (None, "it gave None, and no Outcome"),
        (replace(good, path=(1,)), r"its path \(1,\) does not lead down"),
        (replace(good, path=(0, 0)), "does not lead down"),
        (replace(good, path=(0, 2)), "does not lead down"),
        (replace(good, path=(-1,)), "does not lead down"),
        (replace(good, path=(0, 1)), "a token of the target's own follows, unless"),
        (replace(good, token=None), "a token of the target's own follows, unless"),
        (Outcome((), None, None, None, ()), "a token of the target's own follows, unless"),
        (replace(good, token=4), "its token 4 is no id from 0 to 3"),
        (replace(good, token=-1), "its token -1 is no id"),
        (replace(good, final_probs=None), "does not say from which law"),
        (replace(good, final="forced"), "final='forced' is none of plain, correction, bonus"),
    ):
        with pytest.raises(ValueError, match=f"^verify=<function .*{why}"):
            function(rule(wrong), SAME[0], SAME[1:], Scripted(), ends)
    behind = Outcome((0, 1), 3, "bonus", ROOT, ())
    with pytest.raises(ValueError, match="goes on after an end token"):
        function(rule(behind), SAME[0], SAME[1:], Scripted(), frozenset({1}))


def nan_from_the_target(function) -> None:
    """Never accepted in silence; `Draws` then finds nothing to draw from."""
    nan = torch.full((4,), float("nan"), dtype=torch.float64)
    with pytest.raises(ValueError, match="nothing to draw from"):
        function(CHAIN, nan, nan.expand(2, 4), Draws(0))


def rows_elsewhere(function) -> None:
    """The drafter's rows may lie on another device than the target's, either way round."""
    for uniforms, path, final, law, _ in BY_HAND:
        for target, draft in ((on_card, torch.clone), (torch.clone, on_card)):
            tree = DraftTree(TREE.tokens, TREE.parents, draft(TREE.probs))
            given = tree.probs
            with FakeCard():
                draws = Scripted(*uniforms)
                outcome = function(tree, target(ROOT), target(NODES), draws)
                assert (outcome.path, outcome.final) == (path, final)
                assert close(outcome.final_probs.cpu(), law)
            assert tree.probs is given and is_on_card(given) == (draft is on_card)


def verify_battery() -> None:
    """All that holds of the verifier, on whatever stands in its module now."""
    by_hand(verify_module.verify)
    joint_by_hand(verify_module.verify)
    rows_elsewhere(verify_module.verify)
    bad_input(verify_module.verify)
    nan_from_the_target(verify_module.verify)
    rules_of_ones_own(verify_module.verify)
    target, draft = models(3, seed=2)
    for drafter in (Chain(2, verify=by_drawing), TopKTree((2, 1), verify=by_drawing)):
        check_law(target, draft, drafter, PLAIN, n_tokens=2)
    for drafter in (Chain(2), GumbelTopK((2,)), IIDTree((2,), verify="kseq")):
        check_law(target, draft, drafter, PLAIN, n_tokens=2)
    for drafter in (Chain(2, verify="block"), GumbelTopK((2, 1), verify="traversal")):
        check_law(target, draft, drafter, PLAIN, n_tokens=2)
    check_law(target, target, IIDTree((2, 1), verify="kseq"), PLAIN, n_tokens=2)
    disjoint = table([[0.5, 0.5, 0, 0]] * 4), table([[0, 0, 0.5, 0.5]] * 4)
    check_law(*disjoint, IIDTree((2,), verify="kseq"), PLAIN, n_tokens=2)


PARTS = {
    "verify": verify_module,
    "rule_of": verify_module,
    "node_by_node": verify_module,
    "recursive_rejection": verify_module,
    "k_sequential_selection": verify_module,
    "check_rows": verify_module,
    "check_outcome": verify_module,
    "recursive": verify_module,
    "k_sequential": verify_module,
    "k_sequential_rho": verify_module,
    "_masses": verify_module,
    "declared": outcome,
    "block_verification": joint,
    "_weights": joint,
    "_tests": joint,
    "end_here": joint,
    "traversal_verification": joint,
}


def plant(name: str, mutant, monkeypatch) -> None:
    original = getattr(PARTS[name], name)
    for known, rule in verify_module.RULES.items():
        if rule is original:
            monkeypatch.setitem(verify_module.RULES, known, mutant)
    for module in (verify_module, joint, outcome, decode):
        for alias, value in vars(module).copy().items():
            if value is original:
                monkeypatch.setattr(module, alias, mutant)


def test_verify():
    verify_battery()


def test_law_check_catches_a_wrong_rule_of_ones_own():
    def always(tree, root_probs, node_probs, draws, eos_ids=frozenset()):
        path = tuple(range(len(tree)))
        return Outcome(path, draws.categorical(node_probs[-1]), "bonus", node_probs[-1], ())

    with pytest.raises(AssertionError, match="law differs"):
        check_law(*models(3, seed=2), Chain(2, verify=always), PLAIN, n_tokens=2)


@pytest.mark.slow
@pytest.mark.parametrize("name", PARTS)
def test_verify_copied_without_a_change(name, monkeypatch):
    """The copies themselves are sound: what turns red below is the deletion."""
    function = getattr(PARTS[name], name)
    deleted, copy = without_statement(function, None)
    assert deleted == "nothing"
    plant(name, copy, monkeypatch)
    verify_battery()
    with pytest.raises(IndexError):
        without_statement(function, n_statements(function))


@pytest.mark.parametrize(
    "name, number",
    [(name, n) for name in PARTS for n in range(n_statements(getattr(PARTS[name], name)))],
)
def test_deleting_any_statement_of_verify_turns_a_test_red(name, number, monkeypatch):
    deleted, mutant = without_statement(getattr(PARTS[name], name), number)
    plant(name, mutant, monkeypatch)
    try:
        verify_battery()
    except (Exception, pytest.fail.Exception):
        return
    pytest.fail(f"survived without: {deleted}")


def test_a_hanging_mutant_is_stopped():
    walk, examine = verify_module.node_by_node, verify_module.recursive
    numbers = range(n_statements(walk))
    (step,) = [n for n in numbers if without_statement(walk, n)[0] == "node = looks[-1][0]"]
    endless = without_statement(walk, step)[1]
    with pytest.raises(Endless):
        endless(examine, CHAIN, SAME[0], SAME[1:], Scripted(*[0.0] * 900), frozenset())


@pytest.mark.parametrize("target_dtype", [torch.float32, torch.float64])
def test_verify_keeps_float64(target_dtype):
    """No step narrows the law: the residual of float64 rows is float64."""
    outcome = verify(TREE, ROOT.to(target_dtype), NODES.to(target_dtype), Scripted(0.5, 0.6))
    assert outcome.final_probs.dtype == torch.float64  # the drafter's rows are


def test_verify_leaves_its_arguments_as_they_were():
    before = TREE.probs.clone(), ROOT.clone(), NODES.clone()
    for uniforms, *_ in BY_HAND:
        verify(TREE, ROOT, NODES, Scripted(*uniforms))
    for kept, now in zip(before, (TREE.probs, ROOT, NODES), strict=True):
        assert torch.equal(kept, now)


def test_law_check_has_the_power_at_every_sampling(monkeypatch):
    """A drafter's wrong temperature shows at other settings than T = 1 as well."""
    wrong = "Drawn(0, draws.categorical(level.probs[0]), Sampling(0.3).probs(level.logits[0]))"
    mutant = replaced(Chain.expand, DRAWN, wrong)
    target, draft = models(3, seed=1)
    settings = (Sampling(0.5), Sampling(1.7), Sampling(1.0, top_p=0.8))
    for setting in settings:
        check_law(target, draft, Chain(2), setting, clip=True)
    monkeypatch.setattr(Chain, "expand", mutant)
    for setting in settings:
        with pytest.raises((AssertionError, ValueError)):
            check_law(target, draft, Chain(2), setting, clip=True)
