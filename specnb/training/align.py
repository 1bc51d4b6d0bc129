"""Direct alignment (2403.00858): a drafter learns from what the target itself says to prompts.

Three steps, each of which goes on where a killed run stopped: the target answers prompts at several
temperatures (`specnb.training.answers`), the drafter is trained on its distributions at every
answer token (`specnb.training.losses`), and is written as a folder that `load_pair(draft=...)`
takes. `python -m specnb.training align` does all of it.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from specnb import arguments
from specnb.models.adapter import Adapted, is_adapter, read_adapter, save_adapter
from specnb.models.head import save_head
from specnb.models.hf import HFModel
from specnb.models.load import EMBEDDED, check_same_tokens, load_model
from specnb.models.vocabulary import FREQUENT
from specnb.training.answers import (
    ASKING,
    Asked,
    Asking,
    read_batches,
    scene_prompts,
    write_answers,
)
from specnb.training.data import pad
from specnb.training.loop import ROW_EVERY, Stage, train
from specnb.training.losses import loss_of

DRAFT_LENGTH = 5
ABOUT = "alignment.json"
CHECK_EVERY = 200  # steps between two looks at held-out answers


@dataclass(frozen=True)
class Recipe:
    """How a drafter is trained: `steps` with `loss`, then `then_steps` with `then`, more slowly.

    loss, then: names of `LOSSES` or sums of them, as in "0.1 ce + 0.9 tv"; an empty `then` is the
    same loss. lr, then_lr: the highest learning rates of AdamW. batch: answers per step. blind: of
    the answers about a picture, the share that an adapter learns without it. seed: of the order of
    the answers. ValueError for numbers that cannot be.
    """

    loss: str = "kl"
    steps: int = 1400
    lr: float = 4e-3
    then: str = ""
    then_steps: int = 600
    then_lr: float = 1e-3
    batch: int = 64
    blind: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        loss_of(self.loss)
        if self.then:
            loss_of(self.then)
        settled: dict[str, Any] = {"seed": arguments.seed("seed", self.seed)}
        for name, least in (("steps", 1), ("then_steps", 0), ("batch", 1)):
            settled[name] = arguments.whole(name, getattr(self, name), least)
        for name in ("lr", "then_lr"):
            settled[name] = arguments.number(name, getattr(self, name), 0.0, above=True)
        settled["blind"] = arguments.number("blind", self.blind, 0.0, 1.0)
        for name, value in settled.items():
            object.__setattr__(self, name, value)

    @property
    def stages(self) -> list[tuple[str, Stage]]:
        """(loss, stage) in order; the name of a stage is that of its checkpoint."""
        then = self.then or self.loss
        first, second = (text.replace(" ", "") for text in (self.loss, then))
        warmup, final = min(100, self.steps // 4), 0.1 if self.then_steps else 0.02
        stage = Stage(f"1-{first}", self.steps, self.batch, self.lr, warmup, final)
        found = [(self.loss, stage)]
        if self.then_steps:
            stage = Stage(
                f"2-{first}-{second}",
                self.then_steps,
                self.batch,
                self.then_lr,
                warmup=min(20, self.then_steps // 4),
                final=0.02,
                data=self.steps,
            )
            found.append((then, stage))
        return found


class Batch(NamedTuple):
    """Answers, filled up on the right: what a drafter reads, and what the target had in mind."""

    ids: Tensor  # [rows, t] prompt and answer without its last token
    mask: Tensor  # [rows, t], where the next token is one of the answer
    hidden: Tensor  # [marked, width] the target's last hidden states there
    said: Tensor  # [marked] the token that it said
    features: Tensor | None  # [rows, image tokens, width]


class Answers:
    """All answers of a folder in memory; batches are a function of the step alone."""

    def __init__(self, folder: Path, n: int | None = None):
        self.prompts: list[list[int]] = []
        self.answers: list[list[int]] = []
        self.temperatures: list[float] = []
        self.tasks: list[str] = []
        hidden, features = [], []
        for tensors, meta in read_batches(folder):
            if n is not None and len(self.answers) >= n:
                break
            for name, rows in (("prompt", self.prompts), ("answer", self.answers)):
                lengths = tensors[f"{name}_n"].tolist()
                rows += [part.tolist() for part in tensors[name].split(lengths)]
            self.temperatures += [float(meta["temperature"])] * len(tensors["answer_n"])
            self.tasks += json.loads(meta["tasks"])
            hidden.append(tensors["hidden"])
            if "features" in tensors:
                features.append(tensors["features"])
        self.hidden = torch.cat(hidden)
        self.features = torch.cat(features) if features else None
        self.first = np.cumsum([0, *map(len, self.answers)])
        stored = load_file(folder / "head.safetensors")
        self.head, self.forbidden = stored["head"].float(), ~stored["allowed"]

    def __len__(self) -> int:
        return len(self.answers)

    @functools.cached_property
    def digest(self) -> str:
        """A sum over all that is learned from."""
        found = hashlib.sha256(repr((self.prompts, self.answers, self.temperatures)).encode())
        for tensor in (self.hidden, self.head, self.forbidden, self.features):
            found.update(b"none" if tensor is None else tensor.contiguous().numpy().tobytes())
        return found.hexdigest()[:16]

    def target_logits(self, hidden: Tensor) -> Tensor:
        """The target's logits [n, vocab] of its hidden states; ids that it never says are -inf."""
        return (hidden.float() @ self.head.T).masked_fill(self.forbidden, -torch.inf)

    def rows(self, chosen: Sequence[int]) -> Batch:
        """The answers of these numbers as a batch."""
        read = [self.prompts[i] + self.answers[i][:-1] for i in chosen]
        ids = pad(read, 0)
        mask = torch.zeros(ids.shape, dtype=torch.bool)
        for row, i in enumerate(chosen):
            mask[row, len(self.prompts[i]) - 1 : len(read[row])] = True
        hidden = torch.cat([self.hidden[self.first[i] : self.first[i + 1]] for i in chosen])
        said = torch.tensor([token for i in chosen for token in self.answers[i]])
        seen = None if self.features is None else self.features[list(chosen)].float()
        return Batch(ids, mask, hidden, said, seen)

    def batch(self, step: int, size: int, seed: int = 0) -> Batch:
        """The batch of a step: every answer once per epoch, those of like length together."""
        size = min(size, len(self))
        per_epoch = len(self) // size
        epoch, index = divmod(step, per_epoch)
        order = np.random.default_rng((seed, epoch)).permutation(len(self))
        group = index // 8  # batches of like length, from groups of eight
        members = order[group * 8 * size : (group + 1) * 8 * size]
        members = sorted(members, key=lambda i: len(self.prompts[i]) + len(self.answers[i]))
        start = (index % 8) * size
        return self.rows([int(i) for i in members[start : start + size]])


def draft_hidden(module: Any, batch: Batch, blind: Tensor | None = None) -> Tensor:
    """The drafter's last hidden states [marked, width] at the answer positions of a batch.

    `blind` [rows] marks rows that an adapter reads without their picture.
    """
    if getattr(module, "projector", None) is None:
        hidden = module.model(input_ids=batch.ids, use_cache=False).last_hidden_state
    else:
        assert batch.features is not None  # `align` has seen that there are pictures
        hidden = module.read(batch.ids, batch.features, blind)
    states: Tensor = hidden[batch.mask]
    return states


def draft_logits(module: Any, batch: Batch, blind: Tensor | None = None) -> Tensor:
    """The drafter's logits [marked, vocab] there."""
    logits: Tensor = module.get_output_embeddings()(draft_hidden(module, batch, blind))
    return logits


def distributions(module: Any, answers: Answers, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """(p, q, hidden) at the answer positions of a batch: what the target and the drafter draw from
    at temperature 1, [marked, vocab], and the drafter's last hidden states."""
    hidden = draft_hidden(module, batch)
    p = answers.target_logits(batch.hidden).softmax(-1)
    logits = _of_width(module.get_output_embeddings()(hidden).float(), p.shape[-1])
    return p, logits.masked_fill(answers.forbidden, -torch.inf).softmax(-1), hidden


def _of_width(logits: Tensor, n: int) -> Tensor:
    """Logits over the target's n ids: those that a drafter's table lacks are never drafted."""
    missing = max(0, n - logits.shape[-1])
    return torch.nn.functional.pad(logits[:, :n], (0, missing), value=-torch.inf)


def calls_needed(accepted: Sequence[float], draft_length: int) -> float:
    """Expected target calls that it takes to say a text, by chains of `draft_length` tokens.

    `accepted[t]` is the probability that token t of the text, if a draft reaches it, is one that
    was drafted and accepted: min(1, q / p) of that token when sampling, 1 or 0 when greedy. A block
    that starts at t ends behind the first token that was not, or with the bonus: this walks
    through the probabilities that a block starts at t, so it is exact for the given text.
    """
    starts = np.zeros(len(accepted) + draft_length + 2)
    starts[0] = 1.0
    for t in range(len(accepted)):
        alive = starts[t]
        for k, share in enumerate(accepted[t : t + draft_length]):
            starts[t + k + 1] += alive * (1 - share)
            alive *= share
        starts[t + draft_length + 1] += alive
    return float(starts[: len(accepted)].sum())


@torch.inference_mode()
def held_out(module: Any, answers: Answers, draft_length: int = DRAFT_LENGTH) -> dict[str, Any]:
    """Figures of a drafter on answers that it has not learned from.

    `alpha`: mean acceptance probability, sum of min(p, q), on answers at temperature 1;
    `by_position`: the same by position in the answer, in eights; `agree`: how often both say the
    same greedily, on answers at temperature 0; `tau` and `tau_greedy`: predicted block efficiency,
    tokens per expected target call (`calls_needed`).
    """
    by_position: list[list[float]] = []
    tokens, calls = {0.0: 0, 1.0: 0}, {0.0: 0.0, 1.0: 0.0}
    alphas: list[Tensor] = []
    agree: list[Tensor] = []
    for first in range(0, len(answers), 64):
        chosen = range(first, min(first + 64, len(answers)))
        batch = answers.rows(chosen)
        p, q, _ = distributions(module, answers, batch)
        alpha = torch.minimum(p, q).sum(-1)
        hits = (p.argmax(-1) == q.argmax(-1)).double()
        said = batch.said[:, None]
        ratio = (q.gather(1, said) / p.gather(1, said))[:, 0].clamp(max=1.0)
        at = 0
        for i in chosen:
            part = slice(at, at + len(answers.answers[i]))
            at = part.stop
            temperature = answers.temperatures[i]
            if temperature not in tokens:
                continue
            sampled = temperature == 1.0
            (alphas if sampled else agree).append((alpha if sampled else hits)[part])
            if sampled:
                for k, value in enumerate(alpha[part].tolist()):
                    if k // 8 == len(by_position):
                        by_position.append([])
                    by_position[k // 8].append(value)
            tokens[temperature] += len(answers.answers[i])
            shares = (ratio if sampled else hits)[part].tolist()
            calls[temperature] += calls_needed(shares, draft_length)
    figures: dict[str, Any] = {}
    if alphas:
        figures["alpha"] = float(torch.cat(alphas).mean())
        figures["tau"] = tokens[1.0] / calls[1.0]
        figures["by_position"] = [round(float(np.mean(part)), 4) for part in by_position]
    if agree:
        figures["agree"] = float(torch.cat(agree).mean())
        figures["tau_greedy"] = tokens[0.0] / calls[0.0]
    return figures


def train_on(
    module: nn.Module,
    answers: Answers,
    work: Path,
    recipe: Recipe = Recipe(),
    watched: Answers | None = None,
    check_every: int = CHECK_EVERY,
) -> dict[str, Any]:
    """Trains a drafter in place by a recipe, and gives its figures on the answers `watched`.

    `work` holds checkpoints (one per stage, finished ones stay) and `metrics.jsonl`, with the loss
    and the mean acceptance of batches, and every `check_every` steps the figures of `held_out`,
    all as they were before the step changed the weights. ValueError where `check_every` is not a
    multiple of ROW_EVERY, where the drafter lacks ids that the target may say, and where what lies
    in `work` was made by another recipe, from another start or with other answers.
    """
    if arguments.whole("check_every", check_every, 1) % ROW_EVERY:
        raise ValueError(
            f"check_every={check_every}: give a multiple of {ROW_EVERY}, the steps between two "
            "rows of metrics.jsonl"
        )
    if getattr(module, "projector", None) is not None and answers.features is None:
        raise ValueError("draft: an adapter learns from pictures, and these prompts have none")
    check_vocabulary(module, ~answers.forbidden)
    work.mkdir(parents=True, exist_ok=True)
    origin = {
        "start": _digest(module),
        "answers": answers.digest,
        "seed": recipe.seed,
        "blind": recipe.blind,
    }
    for name, stage in recipe.stages:
        loss = loss_of(name)

        def step_of(step: int, loss=loss, stage=stage) -> tuple[Tensor, dict[str, Any]]:
            batch = answers.batch(stage.data + step, stage.batch, recipe.seed)
            draw = np.random.default_rng((recipe.seed, stage.data + step, 1))
            blind = torch.from_numpy(draw.random(len(batch.ids)) < recipe.blind)
            theirs = answers.target_logits(batch.hidden)
            ours = _of_width(draft_logits(module, batch, blind), theirs.shape[-1])
            value = loss(theirs, ours, torch.ones(len(ours), dtype=torch.bool))
            figures: dict[str, Any] = {}
            last = step + 1 == stage.steps
            if (step + 1) % ROW_EVERY == 0 or last:
                with torch.no_grad():
                    overlap = torch.minimum(theirs.softmax(-1), ours.float().softmax(-1))
                figures["acceptance"] = float(overlap.sum(-1).mean())
            if watched is not None and ((step + 1) % check_every == 0 or last):
                figures |= {f"held_out_{k}": v for k, v in held_out(module, watched).items()}
            return value, figures

        train(stage, module, step_of, work, origin=origin)
    return {} if watched is None else held_out(module, watched)


def check_vocabulary(module: Any, allowed: Tensor) -> None:
    """ValueError where a drafter lacks ids that the target may say, `allowed` [vocab]."""
    n_own = len(module.get_output_embeddings().weight)
    if n_missing := int(allowed[n_own:].sum()):
        raise ValueError(
            f"draft: its vocabulary has {n_own} ids, and lacks {n_missing} that the target may "
            "say; train one over the target's vocabulary, as `new_drafter` and `inherit` make them"
        )


def _digest(module: nn.Module) -> str:
    """A sum over all parameters and their names."""
    found = hashlib.sha256()
    for name, parameter in module.named_parameters():
        found.update(name.encode())
        found.update(parameter.detach().float().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()[:16]


def said_most(answers: Answers) -> list[int]:
    """All ids of the target's vocabulary, those that it said most first, ties by id."""
    counts = np.bincount(np.concatenate(answers.answers), minlength=len(answers.head))
    return [int(i) for i in np.lexsort((np.arange(len(counts)), -counts))]


def save(module: Any, target: Any, answers: Answers, out: Path, about: dict[str, Any]) -> None:
    """bf16 weights, config, tokenizer, the ids that the target says most, and `about` (how it was
    trained, as alignment.json): a folder that `load_pair(draft=...)` takes."""
    seeing = getattr(module, "projector", None) is not None
    bf16 = copy.deepcopy(module.language if seeing else module).to(torch.bfloat16)
    bf16.save_pretrained(out)
    target.tokenizer.save_pretrained(out)
    (out / "chat_template.jinja").unlink(missing_ok=True)  # the target's own is followed
    (out / FREQUENT).write_text(json.dumps(said_most(answers)) + "\n")
    (out / ABOUT).write_text(json.dumps(about, indent=1) + "\n")
    if seeing:
        save_adapter(module, target.path, out)


def as_draft(module: Any, target: Any) -> HFModel:
    """A drafter in training as the draft model of a pair, as it is now: `Pair(target, this)`.

    `module` is a Llama (no adapter); it is copied, so that training may go on.
    """
    found = HFModel(copy.deepcopy(module).eval(), target.tokenizer, "in training")
    return found.beside(target)


def new_drafter(target: Any, layers: int = 1, width: int = 128, seed: int = 0) -> Any:
    """An untrained `LlamaForCausalLM` over the target's vocabulary, with a tied head.

    Heads of 32 dimensions, an MLP of 11/4 of the width (352 of 128), the embedded drafter's shape.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    if width % 32:
        raise ValueError(f"width={width}: give a multiple of 32, the width of a head")
    tokenizer = target.tokenizer
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=target.own_vocab_size,
            hidden_size=width,
            intermediate_size=width * 11 // 4,
            num_hidden_layers=layers,
            num_attention_heads=width // 32,
            num_key_value_heads=width // 32,
            max_position_embeddings=target.max_positions,
            initializer_range=0.06,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=sorted(target.eos_ids),
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def align(
    target: str = "",
    draft: Any = "",
    prompts: Sequence[Any] | None = None,
    *,
    work: str | Path = "runs/align",
    out: str | Path = "",
    recipe: Recipe = Recipe(),
    asking: Asking = ASKING,
    n: int = 3_072,
    sees: bool = False,
) -> Path:
    """A drafter for `target`, trained on what the target itself says; the folder it is written to.

    target: folder or hub id, the embedded one where it is empty. draft: what training starts from,
    a folder with a Llama or, with `sees`, an adapter, a `LlamaForCausalLM` (as from `inherit` or
    `new_drafter`), or empty for a new one of one layer. prompts: texts, lists of messages, or items
    with `prompt` and `image`; for the embedded target by default `n` of its world. One in 16 is
    held out of training. work: where answers, checkpoints and `metrics.jsonl` go; a killed run that
    is started again goes on there. out: the finished folder, `work`/drafter by default. asking: how
    the target is asked, in smaller batches where prompts are too few for its temperatures. sees:
    whether it is to be an adapter on the target's vision features.

    ValueError where there are no prompts, or too few, where there is no such target or draft, and
    where what lies in `work` was made with other settings; before the target is asked anything,
    wherever that can be known.
    """
    folder, embedded = Path(work), not target
    goal = _loaded(target or str(EMBEDDED / "target"))
    if prompts is None:
        if not embedded:
            raise ValueError("prompts=None: give texts, some hundred at least, for this target")
        n = arguments.whole("n", n, 1)
        asking, check = asking.spread(n), replace(asking, temperatures=(0.0, 1.0))
        asked = scene_prompts(n, 2_000, asking.batch)
        kept = scene_prompts(max(128, n // 16), 2_500, check.batch)
    else:
        rows = [_asked(i, item) for i, item in enumerate(prompts)]
        asked = [row for i, row in enumerate(rows) if i % 16 != 15]
        kept = rows[15::16]
        if len(kept) < 2:  # one for each temperature of the figures
            raise ValueError(f"prompts: {len(rows)} are too few; give 32 at least, better 1,000")
        check = replace(asking, temperatures=(0.0, 1.0)).spread(len(kept))
        asking = asking.spread(len(asked))
    if sees and asked[0].image is None:
        raise ValueError("sees=True: these prompts have no pictures; leave it out")
    module = _start(draft, goal, recipe.seed, sees)
    write_answers(goal, asked, folder / "answers", asking)
    write_answers(goal, kept, folder / "held_out", check)
    answers, watched = Answers(folder / "answers"), Answers(folder / "held_out")
    if sees and not isinstance(module, Adapted):
        assert answers.features is not None  # `sees` was held against the prompts
        torch.manual_seed(recipe.seed)
        module = Adapted(module, answers.features.shape[-1], math.isqrt(answers.features.shape[1]))
    figures = train_on(module, answers, folder, recipe, watched)
    place = Path(out) if str(out) else folder / "drafter"
    from specnb.training.head import fit_head

    head, figures["head"] = fit_head(module, answers, watched)
    about = {"recipe": asdict(recipe), "asking": asdict(asking), "n_answers": len(answers)}
    save(module, goal, answers, place, {**about, "held_out": figures})
    save_head(place, *head)
    return place


def _loaded(folder: str) -> HFModel:
    """A model as it is trained with: in float32, on the CPU, in transformers' own code."""
    return load_model(folder, dtype="float32", device="cpu", runtime="transformers", certify=False)


def _start(draft: Any, target: HFModel, seed: int, sees: bool) -> Any:
    """The module that training starts from; ValueError where `draft` is none for this target."""
    adapter = False
    if isinstance(draft, str | Path) and str(draft):
        found, adapter = _loaded(str(draft)), is_adapter(draft)
        check_same_tokens(target, found)
        if found.sees_images and not adapter:
            raise ValueError(f"draft={str(draft)!r}: it is no language model alone; give a Llama")
        if adapter and not sees:
            raise ValueError(
                f"draft={str(draft)!r}: it is an adapter, which learns from pictures; say so "
                "(sees=True, --sees)"
            )
        module = found.beside(target).module  # an adapter refuses a target with other eyes
    elif isinstance(draft, str | Path):
        module = new_drafter(target, seed=seed)
    elif hasattr(draft, "set_attn_implementation"):
        module = draft
    else:
        given = arguments.shown(draft)
        raise ValueError(f"draft={given}: give a folder, or a LlamaForCausalLM")
    module.set_attn_implementation("eager")  # rows are short: a fifth faster on the CPU
    check_vocabulary(module, target.allowed)
    return read_adapter(module, draft) if adapter else module


def _asked(number: int, item: Any) -> Asked:
    """A prompt of one's own, of whatever kind; ValueError says which one is none."""
    if isinstance(item, dict):
        raise ValueError(
            f"prompts[{number}]={arguments.shown(item)}: give a text, a list of messages, or "
            "Asked(prompt, image)"
        )
    image, task = getattr(item, "image", None), getattr(item, "task", "")
    try:
        prompt = arguments.prompt(getattr(item, "prompt", item))
    except ValueError as error:
        raise ValueError(f"prompts[{number}]: {error}") from None
    return Asked(prompt, image, task)
