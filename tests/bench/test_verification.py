"""The figures of `bench verification` that are computed and not only counted."""

from toys import PLAIN, models

import specnb as sn
from specnb import exact, theory, tuning
from specnb.bench import trees, verification
from specnb.drafters import Chain
from specnb.models import Pair
from specnb.record import accepted_lengths, joint_acceptance
from specnb.verify import RULES


def blocks_of(drafter, n=30):
    target, draft = models(5, order=2, seed=9)
    request = sn.Request([0], None, PLAIN, None, n, 1)
    run = sn.Decoding(Pair(target, draft), request, drafter)
    while run.finish is None:
        run.step()
    return [block for block in run.blocks if len(block.tree)], run.record()


def expected(block, rule: str, eos_ids=frozenset(), tokens: bool = False) -> float:
    """How many drafted tokens a rule keeps of these drafts, over all of its uniform numbers; with
    `tokens`, how many it emits."""
    scripts, kept, laws = [[]], 0.0, block.target_probs
    while scripts:
        draws = exact.Enumerator(scripts.pop())
        outcome = RULES[rule](block.tree, laws[0], laws[1:], draws, eos_ids)
        scripts += draws.open
        n = len(outcome.path) + (tokens and outcome.token is not None)
        kept += draws.prob * n
    return kept


def test_expectations_on_the_same_drafts_are_those_of_the_rules():
    blocks, _ = blocks_of(Chain(3))
    assert len(blocks) > 5
    for block in blocks:
        token, whole = expected(block, "recursive"), expected(block, "block")
        assert abs(sum(verification._kept_by_token(block)) - token) < 1e-9
        assert abs(sum(verification._kept_by_block(block)) - whole) < 1e-9


def test_nothing_follows_an_accepted_end():
    """The expected number of tokens, by enumeration, of blocks whose draft ends the text too."""
    blocks, _ = blocks_of(Chain(3))
    ended = 0
    for block in blocks:
        ends = frozenset({block.tree.tokens[-1]})
        if set(block.tree.tokens[:-1]) & ends:
            continue  # nothing is drafted behind an end
        for rule, kept in (
            ("recursive", verification._kept_by_token(block)),
            ("block", verification._kept_by_block(block)),
        ):
            for eos_ids in (frozenset(), ends):
                wanted = expected(block, rule, eos_ids, tokens=True)
                found = verification._expected_tokens(block, kept, eos_ids)
                assert abs(found - wanted) < 1e-9
        ended += 1
    assert ended > 2


def test_positions_add_up():
    runs = [blocks_of(drafter)[1] for drafter in (Chain(4), Chain(4, verify="block"))]
    for record in runs:
        drafting = [block for block in record.blocks if block.n_drafted]
        lengths = accepted_lengths(record)
        assert sum(lengths) == len(drafting)
        mean = sum(n * count for n, count in enumerate(lengths)) / len(drafting)
        assert abs(sum(joint_acceptance(record)) - mean) < 1e-12
        assert record.metrics.acceptance_by_depth[0] == joint_acceptance(record)[0]
    figures = verification.by_position(runs, 4)
    assert sum(figures["lengths"]) == sum(
        bool(block.n_drafted) for record in runs for block in record.blocks
    )
    product = 1.0
    for conditional, joint in zip(figures["conditional"], figures["joint"], strict=True):
        product *= conditional
        assert product >= joint - 1e-12  # shorter drafts at the end count in the joint one alone


def test_costs_are_what_best_first_asks_for():
    target, draft = models(5, seed=9)
    found = tuning.costs(Pair(target, draft), [[0], [1]], sampling=PLAIN)
    assert found.draft_cost >= 0 and found.node_cost >= 0
    sn.BestFirst(8, *found)


def test_every_kind_has_candidates_with_a_text():
    kinds = verification.candidates(tuning.Costs(0.1, 0.05), (0.6, 0.15, 0.05))
    assert {"chain", "BestFirst", "static tree", "RSD-C", "RSD-S"} <= set(kinds)
    for made in kinds.values():
        assert made and all(sn.method(text) == drafter for text, drafter in made.items())


def test_a_table_of_figures_is_printed():
    ratio = {"ratio": 1.01, "low": 1.0, "high": 1.02}
    one = {"chosen": "Chain(5)", "value": 3.0, "nodes": 5.0, **ratio}
    position = {"conditional": [0.5], "joint": [0.5], "lengths": [1, 1]}
    text = verification.table(
        {
            "n": 2,
            "seconds": True,
            "rules": [{"name": "block / token", "block_efficiency": (3.1, 3.0),
                       "block_efficiency ratio": ratio,
                       "same drafts": {"block": 3.1, "token": 3.0, **ratio}}],
            "trees": {"embedded": {"costs": {"draft_cost": 0.1, "node_cost": 0.05},
                                   "tuned on": 2, "nodes": [{"budget": 6, "BestFirst": one}],
                                   "seconds": {"BestFirst": one}}},
            "positions": {**dict.fromkeys(verification.TASKS, position),
                          "classes": {"seen": [(0.5, 2)]}},
            "shares": {990: {"share": 0.1, "law_of": 0.0, "verify": 0.05, "record_of": 0.05}},
        }
    )  # fmt: skip
    assert "goal 1.0: reached" in text and "1.010 (1.000-1.020)" in text and "8%: missed" in text


def test_the_strip_says_what_a_rule_over_paths_has_decided():
    _, record = blocks_of(Chain(4, verify="block"), 60)
    page = sn.views.tokens(record)._repr_html_()
    assert "but a longer part of the block has passed" in page
    assert "drafted after a token that was not kept" in page
    _, plain = blocks_of(Chain(4), 60)
    assert "longer part" not in sn.views.tokens(plain)._repr_html_()


def test_ways_of_drafting_as_a_figure():
    rows = [{"way": way, "drafts": k, "kept": 0.5 + 0.1 * k}
            for way in ("one draft", "best possible") for k in (2, 1)]  # fmt: skip
    figure = sn.views.plots.acceptance_by_drafts(rows)
    assert [trace.name for trace in figure.data] == ["one draft", "best possible"]
    assert list(figure.data[0].x) == [1, 2] and figure.data[1].mode == "lines"


def test_the_panel_compares_with_any_text():
    from specnb.live.methods import OWN
    from specnb.live.workbench import _named

    rule = _named("Chain(4, verify='block')", {"draft_length": 4})
    assert rule.name == OWN and rule.drafter() == Chain(4, verify="block")
    assert _named("chain", {"draft_length": 4}).drafter() == Chain(4)


def test_branchings_have_the_freedom_of_static_trees():
    """Of every branching within the budget the one that promises most by the trees' formula."""
    ranks = (0.6, 0.2, 0.1)
    for draft_cost, node_cost in ((0.0, 0.0), (0.2, 0.02)):
        promised = {
            branching: theory.expected_tree_tokens(trees.parents_of(branching), ranks)
            / (1 + draft_cost * len(branching) + node_cost * len(trees.parents_of(branching)))
            for branching in trees.branchings(10)
            if 1 < max(branching) <= 3
        }
        best = verification._best_branching(ranks, 10, draft_cost, node_cost)
        assert promised[best] == max(promised.values())
