"""A target that drafts for itself over chosen slots, and hierarchies: exact by enumeration.

A table model has no keys, but a text of which it reads chosen tokens: the same drafter, the same
contract, another model's law. Selectors that look at keys: tests/models/test_sparse_contexts.py.
"""

import pytest
import torch
from mutate import replaced
from toys import GREEDY, PLAIN, check_law, models, unchecked

import specnb as sn
from specnb import exact
from specnb.drafters import (
    Chain,
    Chunks,
    Either,
    GumbelTopK,
    Hierarchy,
    HierarchyDrafting,
    LastVerification,
    NoDraft,
    PromptLookup,
    SinkRecent,
    SparQ,
    SparseSelf,
    TopKTree,
)
from specnb.methods import method, name_of
from specnb.models import Pair, TableModel
from specnb.models import table as table_models
from specnb.sampling import Sampling
from specnb.session import Session
from specnb.stopping import AdaEDL
from specnb.verify import Outcome, recursive_rejection

PROMPT = (2, 0, 1, 2, 1)  # longer than the budgets below
LITTLE = SparseSelf(SinkRecent(1), 2, 2)  # the first and the last token, and the draft
LATEST = SparseSelf(SinkRecent(0), 1, 2)
ALL = SparseSelf(SinkRecent(0), 1024, 2)


def events(law: exact.Law, name: str) -> set:
    return {event[1:] for event in law.outcomes if event[0] == name}


# ---- a part of its own text


@pytest.mark.parametrize("drafter", [LITTLE, LATEST], ids=name_of)
@pytest.mark.parametrize("clip", [False, True])
def test_drafts_over_a_part_of_the_text_keep_the_law(drafter, clip):
    target = TableModel.random(3, order=3, seed=1)
    for sampling in (PLAIN, GREEDY, Sampling(0.7, top_p=0.9)):
        law = check_law(target, None, drafter, sampling, 3, clip=clip, prompt=PROMPT)
        assert law.outcomes["drafted", 2]
    law = check_law(target, None, drafter, PLAIN, 3, clip=clip, prompt=PROMPT)
    assert events(law, "accepted") == {(1, 0), (2, 0)} and events(law, "rejected")
    check_law(target, None, drafter, PLAIN, 2, Sampling(0.5), clip, PROMPT)


def test_what_is_drafted_is_the_law_of_the_tokens_that_are_read():
    """Of a table model of order 3: the first token, the latest one, and the last committed."""
    target = TableModel.random(4, order=3, seed=2)
    context = target.open([3, 1, 2, 0, 1])
    drafting = sn.drafters.start(LITTLE, Pair(target), [3, 1, 2, 0, 1], None, PLAIN, context)
    tree = drafting.propose(sn.Draws(0), 5)
    first, second = (PLAIN.probs(target.next_logits(seen)) for seen in ((3, 0, 1), (0, 1)))
    assert torch.equal(tree.probs[0], first)
    second = PLAIN.probs(target.next_logits([3, 0, 1, tree.tokens[0]]))
    assert torch.equal(tree.probs[1], second) and tree.forwards == 2
    assert context.forwards == 0 and context.slots == [3, 1, 2, 0]  # read, never fed


def test_stopping_rules_and_rules_of_verification_apply():
    target = TableModel.random(3, order=3, seed=1)
    for more in ({"stop": AdaEDL(0.5)}, {"verify": recursive_rejection}, {"verify": "block"}):
        drafter = SparseSelf(SinkRecent(1), 2, 2, **more)
        check_law(target, None, drafter, PLAIN, 3, prompt=PROMPT)


STALE = "self.slots: list[int] = []"


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("_forget", STALE, "self.slots = getattr(self, 'slots', [])"),
        ("_keep", "self.slots[: n_before - self.base]", "self.slots"),
        ("_run", "own = self.slots[: first + index + 1]", "own = self.slots[first:]"),
    ],
    ids=["drafts stay behind", "rejected tokens stay", "earlier drafts unseen"],
)
def test_a_wrong_rollback_is_caught(name, old, new, monkeypatch):
    """The law stays right, as drafts are declared as they were drawn; that they are turned down
    though the drafter reads all of the target's text gives it away."""
    kind = table_models.TableSparse
    monkeypatch.setattr(kind, name, replaced(getattr(kind, name), old, new))
    with pytest.raises(AssertionError, match="was turned down|law differs"):
        never_turned_down()


def never_turned_down() -> None:
    """A drafter that reads all of the target's text is the target, also as a middle level, whose
    own drafts are rejected."""
    target = TableModel.random(3, order=4, seed=1)
    small = TableModel.random(3, order=1, seed=9)
    for drafter in (SparseSelf(SinkRecent(0), 1024, 1), Hierarchy(Chain(1), ALL)):
        with unchecked():
            law = exact.law(target, small, drafter, PLAIN, 3, PROMPT)
        wanted = exact.target_law(target, PLAIN, 3, PROMPT)
        assert float((law.probs - wanted).abs().max()) < 1e-12, "law differs"
        assert events(law, "accepted")
        assert not events(law, "rejected"), "it was turned down"


def test_what_reads_all_is_never_turned_down():
    never_turned_down()


# ---- a fork


TEXTS = ("SparseSelf(SinkRecent(1), 3, 4)", "Hierarchy(Chain(2), SparseSelf(SinkRecent(1), 3, 4))")


@pytest.mark.parametrize("text", TEXTS)
def test_a_fork_reads_its_own_target(text):
    target, draft = models(4, order=3, seed=3)
    request = sn.Request(list(PROMPT), sampling=PLAIN, max_new_tokens=12)
    first = sn.Decoding(Pair(target, draft), request, method(text))
    first.step()
    fork = first.fork()
    context = getattr(fork.drafting, "context", None) or fork.drafting.outer.context
    assert context.target is fork.target is not first.target
    before = list(first.target.committed)
    while fork.finish is None:
        fork.step()
    assert first.target.committed == before
    while first.finish is None:
        first.step()
    assert first.record().token_ids == fork.record().token_ids


# ---- settings


def test_texts():
    for text in (
        "SparseSelf(SinkRecent(4), 64, 4)",
        "SparseSelf(Chunks(8), 64, 4)",
        "SparseSelf(Chunks(8, always_first=False), 64, 4, over='images')",
        "SparseSelf(SparQ(16, 16), 64, 4, stop=AdaEDL(0.4))",
        "SparseSelf(LastVerification(), 32, 2)",
        "SparseSelf(LastVerification(local=8), 32, 2)",
        "Hierarchy(Chain(1), SparseSelf(SinkRecent(4), 64, 6))",
        "Hierarchy(PromptLookup(3, 5), Chain(4))",
    ):
        assert name_of(method(text)) == text
    assert method("SparseSelf(SinkRecent(4), budget=64, draft_length=4)") == SparseSelf()
    assert set(sn.methods.knobs_in("SparseSelf(SparQ(8, local=4))")) == {
        "select.rank", "select.local", "budget", "draft_length", "over", "verify",
    }  # fmt: skip
    assert sn.methods.with_knobs("SparseSelf(SinkRecent(4), 64, 4)", {"budget": 32}) == (
        "SparseSelf(SinkRecent(4), 32, 4)"
    )


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("SparseSelf(SinkRecent(64), 64)", r"budget=64: SinkRecent\(sink=64\) spends at least 65"),
        ("SparseSelf(Chunks(16), 47)", "spends at least 48; raise the budget"),
        ("SparseSelf(SparQ(8, 16), 16)", "spends at least 17"),
        ("SparseSelf(AdaEDL(0.4))", "give a selector, as in SinkRecent"),
        ("SparseSelf(SinkRecent(-1))", "sink=-1"),
        ("SparseSelf(SinkRecent(4), 64, 4, over='words')", "over='words': choose"),
        ("SinkRecent(4)", "a drafter has start"),
        ("Hierarchy(Chain(1), GumbelTopK((2, 1)))", "the middle level is a SparseSelf or a Chain"),
        ("Hierarchy(Chain(1), Chain(2))", "a pair has no smaller one; give PromptLookup"),
        ("Hierarchy(Chain(1), SparseSelf(stop=AdaEDL(0.4)))", "leave stop and verify out"),
        ("Hierarchy(AdaEDL(0.4))", "inner=.*: give a drafter"),
        ("Hierarchy(Either(PromptLookup(), Chain(1)), Chain(2))", "a pair has no smaller one"),
        ("Hierarchy(Hierarchy(Chain(1), SparseSelf()), Chain(2))", "a pair has no smaller one"),
        ("Hierarchy(SparseSelf(), SparseSelf())", "give Chain or PromptLookup"),
        ("Hierarchy(Either(PromptLookup(), SparseSelf()))", "give Chain or PromptLookup"),
        ("Hierarchy(Hierarchy(Chain(1), SparseSelf()))", "give Chain or PromptLookup"),
        ("SparseSelf(verify='traversal')", "choose 'recursive' or 'block'"),
    ],
)
def test_what_cannot_be_is_refused_in_words(text, said):
    with pytest.raises(ValueError, match=said):
        method(text)


@pytest.mark.parametrize("select", [Chunks(1), SparQ(2, 0), LastVerification()], ids=repr)
def test_a_table_model_has_no_keys(select):
    target, _ = models(3)
    with pytest.raises(ValueError, match="a table model has none; use SinkRecent"):
        sn.speculative(Pair(target), [0, 1], drafter=SparseSelf(select, 8))


def test_memory_bound_speed_up_counts_the_weights_that_are_read():
    """Those of the target for its own drafts, whatever else is in the pair; no figure where two
    kinds of forwards are counted together."""
    target, draft = models(3, order=3, seed=4)
    target.n_parameters, draft.n_parameters = 1000, 10
    more = {"sampling": PLAIN, "max_new_tokens": 9}
    own = sn.speculative(Pair(target, draft), list(PROMPT), drafter=LITTLE, **more)
    assert own.parameter_ratio == 1.0 and own.metrics.mbsu < own.metrics.block_efficiency
    usual = sn.speculative(Pair(target, draft), list(PROMPT), drafter=Chain(2), **more)
    assert usual.parameter_ratio == 0.01
    deep = sn.speculative(
        Pair(target, draft), list(PROMPT), drafter=Hierarchy(outer=LITTLE), **more
    )
    assert deep.parameter_ratio is None and deep.metrics.mbsu is None


# ---- hierarchies: target <- middle <- small


DEEP = (
    Hierarchy(Chain(1), LATEST),
    Hierarchy(Chain(2), LITTLE),
    Hierarchy(Chain(1), SparseSelf(SinkRecent(1), 2, 3)),
    Hierarchy(GumbelTopK((2,)), LITTLE),
    Hierarchy(NoDraft(), LATEST),
    Hierarchy(PromptLookup(2, 2), LITTLE),
    Hierarchy(PromptLookup(2, 2), Chain(2)),
    Hierarchy(LITTLE, Chain(2)),
    Hierarchy(Chain(2, stop=AdaEDL(0.5)), LITTLE),
    Hierarchy(Either(PromptLookup(2, 2), Chain(1)), LITTLE),
    Hierarchy(Hierarchy(PromptLookup(2, 2), Chain(1)), LITTLE),
)


@pytest.mark.slow
@pytest.mark.parametrize("drafter", DEEP, ids=name_of)
@pytest.mark.parametrize("clip", [False, True])
def test_a_hierarchy_keeps_the_law(drafter, clip):
    target = TableModel.random(3, order=5, seed=1)
    small = TableModel.random(3, order=1, seed=9)
    law = check_law(target, small, drafter, PLAIN, 2, clip=clip, prompt=PROMPT)
    depths = {(depth, 0) for depth in range(1, (1 if clip else drafter.outer.draft_length) + 1)}
    assert events(law, "accepted") == events(law, "rejected") == depths
    check_law(target, small, drafter, GREEDY, 3, clip=clip, prompt=PROMPT)
    check_law(target, small, drafter, PLAIN, 2, Sampling(0.6), True, PROMPT)


def test_an_end_token_ends_the_offer():
    """Nothing is offered behind it, whoever has said it."""
    target, small = models(3, order=2, seed=5)
    target.eos_ids = small.eos_ids = frozenset({2})
    for text in TEXTS:
        ended = 0
        for seed in range(30):
            run = sn.speculative(
                Pair(target, small), [0, 1, 0], drafter=method(text), sampling=PLAIN,
                max_new_tokens=20, seed=seed,
            )  # fmt: skip
            for block in run.blocks:
                drafted = [row for row in run.tokens if row.block == run.blocks.index(block)]
                words = [row.token_id for row in drafted if row.node >= 0]
                assert 2 not in words[:-1]
            ended += any(block.stopped_by == "eos" for block in run.blocks)
            assert 2 not in run.token_ids[:-1]
        assert ended


def shortcut(tree, root_probs, node_probs, draws, eos_ids=frozenset()) -> Outcome:
    """What the released code of TriForce does on the middle level: behind a rejection it draws from
    the middle's own distribution, where the residual would be right."""
    laws = [root_probs, *node_probs]
    path, node = [], -1
    for child in range(len(tree)):
        token = tree.tokens[child]
        prob = min(1.0, float(laws[node + 1][token] / tree.probs[child][token]))
        if not draws.accept(prob)[0]:
            law = laws[node + 1]
            return Outcome(tuple(path), draws.categorical(law), "correction", law, ())
        path.append(node := child)
    return Outcome(tuple(path), draws.categorical(laws[node + 1]), "bonus", laws[node + 1], ())


def test_the_shortcut_of_the_released_code_changes_the_law():
    target = TableModel.random(3, order=3, seed=1)
    small = TableModel.random(3, order=1, seed=9)
    right, wrong = (Hierarchy(Chain(1, verify=rule), LATEST) for rule in ("recursive", shortcut))
    check_law(target, small, right, PLAIN, 2, prompt=PROMPT)
    with pytest.raises(AssertionError, match="law differs"):
        check_law(target, small, wrong, PLAIN, 2, prompt=PROMPT)


def test_how_far_the_shortcut_is_off():
    """The distances that are known of it: 0.105 between what is offered and what is declared, and
    0.045 in the text. Behind three words the target speaks; behind fewer, the middle."""
    small, middle, target = (
        torch.tensor(row, dtype=torch.float64)
        for row in ([0.05, 0.1, 0.85], [0.1, 0.2, 0.7], [0.3, 0.4, 0.3])
    )
    accepted = torch.minimum(small, middle)
    offered = accepted + (1 - accepted.sum()) * middle
    assert exact.distance(offered, middle) == pytest.approx(0.105, abs=1e-12)
    logits = middle.log().repeat(27, 1)
    logits[9:] = target.log()  # contexts whose first word is not 0, with which short ones begin
    toys = TableModel(logits), TableModel(small.log()[None])
    wanted = exact.target_law(toys[0], PLAIN, 1, (0, 1, 1, 1))
    assert torch.allclose(wanted, target)
    for rule, off in (("recursive", 0.0), (shortcut, 0.045)):
        drafter = Hierarchy(Chain(1, verify=rule), LATEST)
        with unchecked():
            law = exact.law(*toys, drafter, PLAIN, 1, (0, 1, 1, 1))
        assert exact.distance(law.probs, wanted) == pytest.approx(off, abs=1e-12)


ROWS = "probs[node + 1] for node in behind"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (ROWS, "(tree.probs[0] if len(tree) else probs[0]) for node in behind"),
        (ROWS, "probs[-1] for node in behind"),
        ("[-1, *outcome.path][: len(said)]", "[0, *outcome.path][: len(said)]"),
    ],
    ids=["the small model's law", "the law behind the last one", "one late"],
)  # fmt: skip
def test_a_wrong_hierarchy_is_caught(old, new, monkeypatch):
    target = TableModel.random(3, order=3, seed=1)
    small = TableModel.random(3, order=1, seed=9)
    wrong = replaced(HierarchyDrafting.propose, old, new)
    monkeypatch.setattr(HierarchyDrafting, "propose", wrong)
    with pytest.raises((AssertionError, IndexError), match="law differs|out of bounds|mass"):
        for drafter in DEEP[:3]:
            check_law(target, small, drafter, PLAIN, 2, prompt=PROMPT)


# ---- what an inner drafter keeps, and what it is started with


def thresholds(drafter) -> list[float]:
    """What the scores of each block's drafts were held against."""
    target, small = models(6, seed=0)
    request = sn.Request([0], sampling=PLAIN, max_new_tokens=40)
    run = sn.Decoding(Pair(target, small), request, drafter)
    found = []
    while run.finish is None:
        found.append(run.drafting.state[0])
        fork = run.fork()
        fork.step()
        assert run.drafting.state[0] == found[-1]  # a fork learns for itself
        run.step()
    return found


@pytest.mark.parametrize("behind_a_lookup", [False, True])
def test_a_rule_inside_a_hierarchy_learns(behind_a_lookup):
    """From what the middle model keeps of its drafts, as it does from a target without one."""
    inner = Chain(2, stop=AdaEDL(0.1))
    if behind_a_lookup:
        inner = Either(PromptLookup(4, 2), inner)
    moved = thresholds(Hierarchy(inner, SparseSelf(SinkRecent(1), 2)))
    assert moved[0] == 0.1 and len(set(moved)) > len(moved) / 2
    still = Chain(2, stop=AdaEDL(0.1, adaptive=False))
    assert set(thresholds(Hierarchy(still, SparseSelf(SinkRecent(1), 2)))) == {0.1}


def test_a_rule_inside_a_hierarchy_learns_once_per_round(monkeypatch):
    """Each round of the middle model moves the threshold as the same round of a target does: where
    the middle model is the target, block by block."""
    target, small = models(4, order=2, seed=3)
    rule = AdaEDL(0.3)
    seen = []
    right = type(rule.start()).update

    def update(self, drafted, kept, most):
        seen.append((drafted, kept, most))
        right(self, drafted, kept, most)

    monkeypatch.setattr(type(rule.start()), "update", update)
    drafter = Hierarchy(Chain(2, stop=rule), SparseSelf(SinkRecent(0), 1024, 3))
    run = sn.Decoding(Pair(target, small), sn.Request([0, 1], sampling=PLAIN), drafter)
    tree = run.step().tree
    told = [one for one in seen if one[0]]
    assert tree.forwards >= len(told) > 0 and len(seen) == tree.forwards + 1
    anew = rule.start()
    for one in told:
        right(anew, *one)
    assert run.drafting.state == anew.state


def test_a_middle_level_is_no_trimmed_model():
    """One that scores some ids only cannot judge what is looked up; as the smallest it may be."""
    target, small = models(4, order=2, seed=3)
    pair = Pair(target, small.trimmed(2, (1, 3)))
    for inner in (PromptLookup(1, 2), LITTLE):
        with pytest.raises(ValueError, match="draft: its vocabulary is trimmed"):
            sn.speculative(pair, [0, 1, 0], drafter=Hierarchy(inner, Chain(2)))
    check_law(target, pair.draft, Hierarchy(Chain(2), LITTLE), PLAIN, 2, prompt=PROMPT)


@pytest.mark.parametrize(
    "drafter",
    [Hierarchy(LITTLE, Chain(2)), Hierarchy(PromptLookup(1, 2), Chain(2)), Hierarchy(Chain(2))],
    ids=name_of,
)
def test_a_prompt_too_long_for_the_draft_model_is_decoded(drafter):
    target, small = models(4, seed=1)
    pair = Pair(target, TableModel(small.logits, max_positions=2))
    asked = {"sampling": PLAIN, "max_new_tokens": 6}
    run = sn.speculative(pair, list(PROMPT), drafter=drafter, **asked)
    assert len(run.token_ids) == 6
    if isinstance(drafter.outer, Chain):
        assert run.token_ids == sn.autoregressive(target, list(PROMPT), **asked).token_ids


@pytest.mark.parametrize(
    "inner", [Chain(2), GumbelTopK((2, 2)), TopKTree((2, 2))], ids=lambda inner: name_of(inner)
)
def test_a_greedy_middle_level_stays_greedy_in_a_session(inner):
    """What the target is offered is a chain, whatever the smallest model grows."""
    target, small = models(6, order=2, seed=0)
    drafter = Hierarchy(inner, SparseSelf(SinkRecent(2), 6))
    for method_ in (drafter, Either(PromptLookup(8, 2), drafter)):
        pair, request = Pair(target, small), sn.Request([0], max_new_tokens=60)
        shown = Session(pair).run(request, method_).record()
        alone = sn.speculative(pair, [0], drafter=method_, max_new_tokens=60)
        assert shown.blocks[0].n_accepted == alone.blocks[0].n_accepted
        assert shown.metrics.block_efficiency == alone.metrics.block_efficiency
        assert shown.settings == alone.settings
