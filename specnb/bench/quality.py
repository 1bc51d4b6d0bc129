"""Does the target see, and which words does a language-only drafter get right?"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

import specnb as sn
from specnb.bench import runs_as
from specnb.measure import costed, interval, pooled, row_of
from specnb.scenes import TASKS, Example, attribute_of, blank, examples, is_right, score
from specnb.scenes.words import word_classes
from specnb.scenes.world import COLOURS, KINDS

UNSEEN_SEED = 7  # scenes for the quality of the target; the evaluation sets are seed 0
ATTRIBUTES = ("place", "colour", "kind", "size", "count", "parsed")
BARS = {"place": 0.95, "colour": 0.95, "kind": 0.90, "size": 0.95, "count": 0.97, "parsed": 0.99}


@torch.inference_mode()
def answers(
    model, items: Sequence[Example], pictures=None, temperature: float = 0.0, batch: int = 50
) -> list[str]:
    """What the target answers, by transformers' own `generate` on left-padded batches."""
    processor, tokenizer = model.processor, model.tokenizer
    tokenizer.padding_side = "left"
    pictures = [item.image for item in items] if pictures is None else pictures
    texts: list[str] = []
    order = sorted(range(len(items)), key=lambda i: len(items[i].prompt))
    for start in tqdm(range(0, len(items), batch), desc="answers", leave=False, mininterval=2):
        chosen = order[start : start + batch]
        inputs = processor(
            images=[pictures[i] for i in chosen],
            text=[model.chat(items[i].prompt, True) for i in chosen],
            padding=True,
            return_tensors="pt",
        ).to(model.device)
        torch.manual_seed(start)
        output = model.module.generate(
            **inputs,
            do_sample=temperature > 0,
            **({"temperature": temperature, "top_k": 0} if temperature > 0 else {}),
            max_new_tokens=110,
        )
        new = output[:, inputs["input_ids"].shape[1] :]
        texts += tokenizer.batch_decode(new, skip_special_tokens=True)
    placed = dict(zip(order, texts, strict=True))
    return [placed[i].strip() for i in range(len(items))]


def caption_scores(texts: Sequence[str], scenes) -> dict[str, float]:
    """Share of stated facts that are right, per attribute, over all captions."""
    totals: dict[str, Counter] = defaultdict(Counter)
    for text, scene in zip(texts, scenes, strict=True):
        for name, row in score(text, scene).items():
            totals[name].update(row)
    return {name: totals[name]["right"] / max(1, totals[name]["stated"]) for name in ATTRIBUTES}


def constant_guess(items: Sequence[Example]) -> dict[str, float]:
    """What the best answer that ignores the picture would score, per attribute."""
    things = [thing for item in items for thing in item.scene.things]
    cells = Counter(thing.cell for thing in things)
    return {
        "place": max(cells.values()) / len(items),
        "colour": max(Counter(t.colour for t in things).values()) / len(things),
        "kind": max(Counter(t.kind for t in things).values()) / len(things),
        "size": max(Counter(t.size for t in things).values()) / len(things),
        "count": max(Counter(len(i.scene.things) for i in items).values()) / len(items),
    }


def target_quality(model, n: int) -> dict:
    """Captions, conversation and science on `n` unseen scenes each, and the two controls."""
    sets = {task: examples(task, n, UNSEEN_SEED) for task in TASKS}
    captions = answers(model, sets["caption"])
    scenes = [item.scene for item in sets["caption"]]
    figures: dict[str, Any] = {"caption": caption_scores(captions, scenes), "n": n}
    for task in ("conversation", "science"):
        texts = answers(model, sets[task])
        right = [is_right(text, item) for text, item in zip(texts, sets[task], strict=True)]
        figures[task] = {"right": float(np.mean(right)), "interval": interval(right)}
        if task == "conversation":
            by_question = defaultdict(list)
            for item, good in zip(sets[task], right, strict=True):
                by_question[item.asks].append(good)
            figures[task]["by_question"] = {k: float(np.mean(v)) for k, v in by_question.items()}
    # Control 1: the prompts of one scene with the pictures of the next one.
    shifted = sets["caption"][1:] + sets["caption"][:1]
    pictures = [item.image for item in shifted]
    swapped = answers(model, sets["caption"], pictures)
    figures["exchanged_picture"] = {
        "against_the_shown_scene": caption_scores(swapped, [item.scene for item in shifted]),
        "against_the_own_scene": caption_scores(swapped, scenes),
        "tokens_changed": float(
            np.mean(
                [
                    _changed(model.tokenizer.encode(a), model.tokenizer.encode(b))
                    for a, b in zip(captions, swapped, strict=True)
                ]
            )
        ),
    }
    # Control 2: a picture of nothing.
    texts = answers(model, sets["caption"], [blank()] * n)
    figures["blank_picture"] = {
        "scores": caption_scores(texts, scenes),
        "constant_guess": constant_guess(sets["caption"]),
    }
    return figures


def _changed(a: list[int], b: list[int]) -> float:
    """Share of tokens of `a` that are not in `b` at the same place."""
    same = sum(x == y for x, y in zip(a, b, strict=False))
    return 1 - same / len(a)


def drafter_quality(pair: sn.Pair, n: int, draft_length: int = 5) -> dict:
    """Block efficiency per task, greedy and at temperature 1, and acceptance by word class."""
    figures: dict = {"draft_length": draft_length, "n": n}
    c = pair.parameter_ratio
    assert c is not None  # there is a draft model
    for task in TASKS:
        items = examples(task, n, 0)
        for temperature in (0.0, 1.0):
            runs = []
            for index, item in enumerate(tqdm(items, desc=f"{task} {temperature}", leave=False)):
                runs.append(
                    sn.speculative(
                        pair,
                        item.prompt,
                        item.image,
                        drafter=sn.Chain(draft_length),
                        sampling=sn.Sampling(temperature),
                        max_new_tokens=110,
                        seed=index,
                    )
                )
            emitted = [len(run.token_ids) for run in runs]
            calls = [len(run.blocks) for run in runs]
            classes = word_classes(runs, [item.prompt for item in items])
            key = "greedy" if temperature == 0 else "sampled"
            figures.setdefault(task, {})[key] = {
                "block_efficiency": sum(emitted) / sum(calls),
                "interval": interval(emitted, calls),
                "mbsu": pooled(costed(map(row_of, runs), c), "tokens_per_second"),
                "acceptance": {
                    name: {"rate": float(np.mean(values)), "n": len(values)}
                    for name, values in classes.items()
                },
                "tokens": float(np.mean(emitted)),
            }
            if temperature == 1.0:
                rows: Any = [r for run in runs for r in run.tokens if r.accept_prob is not None]
                figures[task][key]["spearman_entropy_acceptance"] = _spearman(
                    [row.draft_entropy for row in rows], [row.accept_prob for row in rows]
                )
    return figures


@torch.inference_mode()
def world_facts(pair: sn.Pair, n: int) -> dict:
    """Is the world neither too easy nor too hard? Figures on captions at temperature 1.

    Entropy of the target per token; rank correlation of the draft's entropy with the acceptance
    probability of its position, sum(min(target, draft)); the drafter's greedy accuracy on first
    mentions of colour, kind and count beside the best constant guess. A count behind "is" or "are"
    does not enter: the verb has told it already.
    """
    items = examples("caption", n, UNSEEN_SEED + 1)
    texts = answers(pair.target, items, temperature=1.0)
    entropies: list[float] = []
    draft_entropies: list[float] = []
    acceptance: list[float] = []
    hits: dict[str, list[bool]] = defaultdict(list)
    truth: dict[str, Counter] = defaultdict(Counter)
    for item, text in zip(tqdm(items, desc="world", leave=False), texts, strict=True):
        ids = pair.target.tokenizer.encode(" " + text, add_special_tokens=False)
        ids.append(min(pair.target.eos_ids))
        laws = []
        assert pair.draft is not None  # whose errors are counted here
        for model, picture in ((pair.target, item.image), (pair.draft, None)):
            scores = model.open(item.prompt, picture).forward(ids[:-1], range(-1, len(ids) - 2))
            laws.append(sn.Sampling(1.0).probs(torch.cat([scores.root[None], scores.nodes])))
        entropies += torch.special.entr(laws[0]).sum(-1).tolist()
        draft_entropies += torch.special.entr(laws[1]).sum(-1).tolist()
        acceptance += torch.minimum(*laws).sum(-1).tolist()
        guesses = laws[1].argmax(-1).tolist()
        earlier: set[str] = set()
        counted, last = False, ""
        for token, guess in zip(ids, guesses, strict=True):
            word = pair.target.piece(token).strip().lower()
            attribute = attribute_of(word)
            told = last in ("is", "are")
            counts_things = attribute == "count" and not (counted or earlier or told)
            fresh = attribute in ("colour", "kind") and word not in earlier
            if attribute and (counts_things or fresh):
                hits[attribute].append(token == guess)
                truth[attribute][word] += 1
            if attribute:
                counted |= attribute == "count"
                earlier.add(word)
            last = word
    prior = {"colour": 1 / len(COLOURS), "kind": 1 / len(KINDS), "count": 1 / 4}
    return {
        "target_entropy_nats": float(np.mean(entropies)),
        "spearman_entropy_acceptance": _spearman(draft_entropies, acceptance),
        "first_mentions": {
            name: {
                "drafter_accuracy": float(np.mean(hits[name])),
                "grammar_prior": prior[name],
                "best_constant_here": max(truth[name].values()) / len(hits[name]),
                "n": len(hits[name]),
            }
            for name in ("colour", "kind", "count")
        },
        "n": n,
    }


def measure(target: str = "", draft: str = "", n: int = 0) -> dict:
    """All figures of the cards; `n` items instead of 500 (target) and 200 (drafter) per task."""
    pair = sn.load_pair(target, draft)
    return {
        "runs_as": runs_as(pair.target),
        "target": target_quality(pair.target, n or 500),
        "drafter": drafter_quality(pair, n or 200),
        "world": world_facts(pair, n or 500),
    }


def table(figures: dict) -> str:
    """The figures as text, a line each."""
    seen, lines = figures["target"], []
    lines.append(f"target, {seen['n']} unseen scenes per task (greedy)")
    for name in ATTRIBUTES:
        lines.append(f"  caption {name:8} {seen['caption'][name]:6.1%}   bar {BARS[name]:.0%}")
    for task in ("conversation", "science"):
        low, high = seen[task]["interval"]
        lines.append(f"  {task:16} {seen[task]['right']:6.1%}   [{low:.1%}, {high:.1%}]   bar 90%")
    swap = seen["exchanged_picture"]
    for name in ("place", "colour", "kind", "size", "count"):
        lines.append(
            f"  exchanged picture, {name:7} shown {swap['against_the_shown_scene'][name]:6.1%}"
            f"   own {swap['against_the_own_scene'][name]:6.1%}"
            f"   blank {seen['blank_picture']['scores'][name]:6.1%}"
            f"   best constant {seen['blank_picture']['constant_guess'][name]:6.1%}"
        )
    lines.append(f"  exchanged picture changes {swap['tokens_changed']:.0%} of caption tokens")
    for task in TASKS:
        for key in ("greedy", "sampled"):
            row = figures["drafter"][task][key]
            low, high = row["interval"]
            rates = "  ".join(f"{k} {v['rate']:.1%}" for k, v in row["acceptance"].items())
            lines.append(
                f"drafter, {task:12} {key:7} block efficiency {row['block_efficiency']:.2f}"
                f" [{low:.2f}, {high:.2f}]  MBSU {row['mbsu']:.2f}  {rates}"
            )
    world = figures["world"]
    spearman = figures["drafter"]["caption"]["sampled"]["spearman_entropy_acceptance"]
    lines.append(f"world: target entropy on captions {world['target_entropy_nats']:.2f} nats/token")
    lines.append(
        "world: Spearman(draft entropy, acceptance probability) by position "
        f"{world['spearman_entropy_acceptance']:.3f}, by examined token {spearman:.3f}"
    )
    for name, row in world["first_mentions"].items():
        lines.append(
            f"world: first mention of {name:6} drafter {row['drafter_accuracy']:.1%}"
            f"  prior {row['grammar_prior']:.1%}  best constant {row['best_constant_here']:.1%}"
        )
    return "\n".join(lines)


def _spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Rank correlation; pandas gives ties their mean rank."""
    import pandas as pd

    return float(pd.Series(a).rank().corr(pd.Series(b).rank()))


def markdown(figures: dict) -> str:
    """The figures for RESULTS.md; the model cards hold the same tables."""
    from specnb.bench import cards

    seen, world = figures["target"], figures["world"]
    asked = seen["conversation"]["by_question"]
    by_question = ", ".join(f"{k} {v:.0%}" for k, v in sorted(asked.items(), key=lambda x: -x[1]))
    by_token = figures["drafter"]["caption"]["sampled"]["spearman_entropy_acceptance"]
    firsts = "; ".join(
        f"{name} {row['drafter_accuracy']:.1%} (guessing: {row['grammar_prior']:.1%})"
        for name, row in world["first_mentions"].items()
    )
    return f"""Target, {seen["n"]} unseen scenes per task, greedy:

{cards.target_table(figures)}

Conversation by question: {by_question}.

Controls: the same prompts with the next scene's picture, and with an even grey picture.

{cards.control_table(figures)}

Drafter, {figures["drafter"]["n"]} evaluation prompts per task, draft length \
{figures["drafter"]["draft_length"]}. Seen words tell a colour, kind, size, place or count for the
first time; the rate is accepted / examined.

{cards.drafter_table(figures)}

On {world["n"]} captions at temperature 1 the target's entropy is \
{world["target_entropy_nats"]:.2f} nats per token; Spearman's correlation between draft entropy and
acceptance probability is {world["spearman_entropy_acceptance"]:.2f} by position and \
{by_token:.2f} by examined token. First mentions that the drafter has right: {firsts}."""
