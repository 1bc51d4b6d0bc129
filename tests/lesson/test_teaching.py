"""What TEACHING.md says a room will see is what the embedded models do."""

import pytest
from places import ROOT

import specnb as sn
from specnb import notebook

TEACHING = " ".join((ROOT / "notebooks" / "TEACHING.md").read_text(encoding="utf-8").split())

pytestmark = pytest.mark.weights


@pytest.fixture(scope="module")
def pair():
    return sn.load_pair(dtype="float32", device="cpu")


def run_of(pair, drafter, cfg):
    item = notebook.items(cfg)[0]
    return sn.speculative(
        pair,
        item.prompt,
        image=item.image,
        drafter=drafter,
        sampling=cfg.sampling,
        seed=cfg.seed,
    )


def wasted(run) -> int:
    return sum(row.verdict in ("rejected", "unexamined") for row in run.tokens)


def test_lesson_00_calls_and_waste(pair):
    runs = [run_of(pair, sn.Chain(n), sn.RunConfig()) for n in (1, 5, 12)]
    calls = [run.metrics.n_target_calls for run in runs]
    waste = [wasted(run) for run in runs]
    assert (
        f"{calls[0]} calls at length 1, {calls[1]} at 5, {calls[2]} at 12, for the same "
        f"{runs[0].metrics.n_tokens} tokens; {waste[0]}, {waste[1]} and {waste[2]} guesses wasted"
    ) in TEACHING


def test_lesson_08_either_rule_may_keep_more(pair):
    """On one draft: the first blocks of both rules hold the same tokens."""
    cfg, kept = sn.RunConfig(temperature=1.0), {}
    for length in (12, 10):
        firsts = []
        for rule in ("recursive", "block"):
            run = run_of(pair, sn.Chain(length, verify=rule), cfg)
            rows = [row for row in run.tokens if row.block == 0 and row.node >= 0]
            firsts.append([row.token_id for row in rows])
            kept[length, rule] = sum(row.verdict == "accepted" for row in rows)
        assert firsts[0] == firsts[1]
    words = {0: "none"}
    told = {key: words.get(n, str(n)) for key, n in kept.items()}
    assert (
        f"the token rule {told[12, 'recursive']} and the block rule {told[12, 'block']} with "
        f"drafts of 12; {told[10, 'recursive']} and {told[10, 'block']} with drafts of 10"
    ) in TEACHING
