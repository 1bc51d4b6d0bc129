"""What the page without a kernel plays with: `python -m specnb.bench.play`.

Real runs of the embedded pair, recorded so that a browser can do the rest. Greedy: the target's
text, and what the drafter proposes at every position of it, so that verdicts for any draft length,
threshold and tree follow by comparing tokens. At temperature 1 a draft changes the text, so there
whole runs are recorded, on a grid of settings. `docs/_static/play.js` reads the file.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

import specnb as sn
from specnb import arguments
from specnb.files import write_whole
from specnb.paths import ROOT, need_checkout
from specnb.scenes import TASKS, Example, examples

GOAL = ROOT / "docs" / "_static" / "recorded.js"
SEED = 71  # of the prompts: scenes that no table is about
PER_TASK = 10
TOKENS = 64
LONGEST, WIDEST, DEEPEST = 16, 4, 8  # of a chain; of a tree
LENGTHS = (1, 2, 3, 5, 8, 12, 16)  # at temperature 1
THRESHOLDS = (0.2, 0.4, 0.6, 0.8)
WIDTHS = (2, 3, 4)
SIDE = 120  # pixels of a picture
N_TOP = 4  # candidates kept of a distribution
LETTERS = {"accepted": "a", "rejected": "r", "unexamined": "u"}
LETTERS |= {"correction": "c", "bonus": "b", "plain": "p"}


def prompts() -> list[Example]:
    """The prompts in the order of the file."""
    return [item for task in TASKS for item in examples(task, PER_TASK, SEED)]


def grid() -> dict[str, sn.Drafter]:
    """The settings that are recorded at temperature 1, by the name that the page gives them."""
    found: dict[str, sn.Drafter] = {f"chain {n}": sn.Chain(n) for n in LENGTHS}
    found |= {f"AdaEDL {t}": sn.Chain(LONGEST, stop=sn.AdaEDL(t)) for t in THRESHOLDS}
    return found | {f"tree {w}": sn.GumbelTopK((w, 1, 1, 1)) for w in WIDTHS}


@torch.inference_mode()
def record(pair: sn.Pair, items: Sequence[Example]) -> dict[str, Any]:
    """Everything the page needs, as JSON can hold it."""
    draft = pair.draft
    assert draft is not None  # the embedded one
    ids: set[int] = set()
    found = []
    for number, item in enumerate(tqdm(items, desc="recording")):
        plain = sn.autoregressive(pair.target, item.prompt, item.image, max_new_tokens=TOKENS)
        text = plain.token_ids
        places = [_place(pair, item, text[:i]) for i in range(len(text))]
        runs = {name: _run(pair, item, drafter, number) for name, drafter in grid().items()}
        ids.update(text)
        for place in places:
            ids.update(place["chain"], *place["tree"])
            ids.update(token for token, _ in (*place["target"], *place["draft"]))
        for blocks in runs.values():
            ids.update(token for nodes, _ in blocks for token, *_ in nodes)
            ids.update(own[0] for _, own in blocks if own)
        found.append(
            {
                "task": item.task,
                "prompt": item.prompt,
                "picture": _picture(item),
                "text": list(text),
                "places": places,
                "runs": runs,
            }
        )
    ratio = pair.parameter_ratio
    return {
        "max_new_tokens": TOKENS,
        "cost": None if ratio is None else round(ratio, 6),
        "ends": sorted(pair.target.eos_ids),
        "pieces": {str(token): pair.target.piece(token) for token in sorted(ids)},
        "lengths": LENGTHS,
        "thresholds": THRESHOLDS,
        "widths": WIDTHS,
        "items": found,
    }


def _place(pair: sn.Pair, item: Example, before: Sequence[int]) -> dict[str, Any]:
    """What is proposed after `before`, and how sure the drafter was of it.

    chain: up to 16 tokens, each the drafter's best; sure and entropy (nats): of the distribution
    that each was the best of, and of one more. tree: the four best first tokens, each followed
    greedily. target, draft: the best few at this place, at temperature 1.
    """
    greedy = sn.Sampling(0.0)
    chain = _proposed(pair, item, sn.Chain(LONGEST), greedy, before)
    paths = _proposed(pair, item, sn.TopKTree((WIDEST, *[1] * (DEEPEST - 1))), greedy, before)
    draft = pair.draft
    assert draft is not None
    context = draft.open(item.prompt)
    context.commit(before)
    tokens = list(chain.tokens)
    scores = context.forward(tokens, range(-1, len(tokens) - 1))
    probs = torch.cat([scores.root[None], scores.nodes]).float().softmax(-1)
    target = pair.target.open(item.prompt, item.image)
    target.commit(before)
    seen = sn.Sampling(1.0).probs(target.forward().root)
    return {
        "chain": tokens,
        "sure": _rounded(probs.amax(-1)),
        "entropy": _rounded(torch.special.entr(probs).sum(-1)),
        "tree": [_path(paths, child) for child in paths.draws_of(-1)],
        "target": _top(seen),
        "draft": _top(probs[0]),
    }


def _proposed(
    pair: sn.Pair, item: Example, drafter: Any, sampling: sn.Sampling, before: Sequence[int]
) -> sn.DraftTree:
    drafting = drafter.start(pair, item.prompt, item.image, sampling)
    drafting.commit(before, 0)
    tree: sn.DraftTree = drafting.propose(sn.Draws(0), LONGEST)
    return tree


def _path(tree: sn.DraftTree, node: int) -> list[int]:
    """The tokens of a node and all below it, which have one child each."""
    tokens = [tree.tokens[node]]
    while below := tree.draws_of(node):
        node = below[0]
        tokens.append(tree.tokens[node])
    return tokens


def _rounded(values: torch.Tensor) -> list[float]:
    return [round(value, 6) for value in values.tolist()]


def _top(probs: torch.Tensor) -> list[tuple[int, float]]:
    values, ids = probs.float().topk(N_TOP)
    return [(i, round(p, 3)) for i, p in zip(ids.tolist(), values.tolist(), strict=True)]


def _run(pair: sn.Pair, item: Example, drafter: sn.Drafter, seed: int) -> list[Any]:
    """A run at temperature 1: per block the drafted (token, parent, verdict), and the own token."""
    run = sn.speculative(
        pair,
        item.prompt,
        item.image,
        drafter=drafter,
        sampling=sn.Sampling(1.0),
        max_new_tokens=TOKENS,
        seed=seed,
    )
    return blocks_of(run)


def blocks_of(run: sn.Record) -> list[Any]:
    """A record's verdicts as the page holds them: ([token, parent, letter] ..., own or None)."""
    blocks: list[Any] = [[[], None] for _ in run.blocks]
    for row in run.tokens:
        if row.node >= 0:
            blocks[row.block][0].append([row.token_id, row.parent, LETTERS[row.verdict]])
        else:
            blocks[row.block][1] = [row.token_id, LETTERS[row.verdict]]
    return blocks


def _picture(item: Example) -> str:
    from PIL import Image

    kept = io.BytesIO()
    small = item.image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    small.save(kept, "WEBP", quality=80)
    return "data:image/webp;base64," + base64.b64encode(kept.getvalue()).decode()


def written(recorded: Mapping[str, Any]) -> str:
    """The file: a script and not JSON, since a page opened from a folder may fetch nothing."""
    text = json.dumps(recorded, ensure_ascii=True, separators=(",", ":"))
    return f"window.SPECNB_RECORDED = {text};\n"


def main(goal: Path = GOAL) -> None:
    """Records everything and writes the file; a minute or two."""
    need_checkout("play")
    pair = sn.load_pair(dtype="float32", device="cpu")
    text = written(record(pair, prompts()))
    goal.parent.mkdir(parents=True, exist_ok=True)
    write_whole(goal, text)
    print(f"{goal.relative_to(ROOT)}: {len(text) / 1e6:.2f} MB")


if __name__ == "__main__":
    arguments.no_options("specnb.bench.play", __doc__)
    try:
        main()
    except (ValueError, RuntimeError) as error:
        raise SystemExit(str(error)) from None
