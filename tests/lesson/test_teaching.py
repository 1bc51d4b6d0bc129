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


def test_lesson_03_stops_and_the_first_words_to_go(pair):
    cfg = notebook.StoppingConfig()
    item = notebook.items(cfg)[0]
    plain = sn.autoregressive(
        pair.target, item.prompt, item.image, sampling=cfg.sampling, max_new_tokens=40, seed=0
    )
    context = pair.draft.open(item.prompt)
    scores = context.forward(plain.token_ids[:-1], range(-1, len(plain.token_ids) - 2))
    rows = [scores.root, *scores.nodes]
    doubts = [cfg.stop.score(row.softmax(-1)) for row in rows]
    levels = (0.2, 0.4, 0.6, 0.8, 0.95)
    *stops, last = [sum(score < level for score in doubts) for level in levels]
    said = f"{', '.join(map(str, stops))} and {last} of {len(doubts)} words at 0.2, 0.4, 0.6, 0.8"
    assert said in TEACHING
    words = [
        pair.target.piece(token).strip()
        for token, score in zip(plain.token_ids, doubts, strict=True)
        if score < 0.4
    ]
    first, second, third = sorted(words)
    assert {first, second, third} == {"little", "lovely", "middle"}
    assert f"The first to go are *{first}*, *{second}* and *{third}*, at 0.4" in TEACHING


def test_lesson_01_one_caption_and_six(pair):
    cfg = sn.RunConfig(temperature=1.0, n_prompts=6)
    one, waste, six = [], [], []
    for length in (1, 3, 5, 8, 12, 16):
        runs = [
            sn.speculative(
                pair,
                item.prompt,
                image=item.image,
                drafter=sn.Chain(length),
                sampling=cfg.sampling,
                seed=cfg.seed,
            )
            for item in notebook.items(cfg)
        ]
        one.append(f"{runs[0].metrics.block_efficiency:.1f}")
        waste.append(str(wasted(runs[0])))
        calls = sum(len(run.blocks) for run in runs)
        six.append(f"{sum(len(run.token_ids) for run in runs) / calls:.1f}")
    assert (
        f"{', '.join(one[:3])} and {one[3]} tokens per call at lengths 1, 3, 5 and 8, with "
        f"{', '.join(waste[:3])} and {waste[3]} guesses wasted"
    ) in TEACHING
    assert f"({one[4]} at 12, {one[5]} at 16)" in TEACHING
    said = f"Over six captions the mean is {', '.join(six[:5])} and {six[5]} at 1, 3, 5, 8, 12 and"
    assert said in TEACHING
