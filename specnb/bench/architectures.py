"""Is decoding exact on every architecture that people bring, or refused in one sentence?

Each family of `specnb.bench.families` is made as a folder with random weights, loaded as a user
would, and held against transformers: prompts against its processors, plain greedy decoding against
`generate`, logits of chains and trees against forwards over whole texts without any cache, and the
law of a sampled token against its exact law. Tokens without a word are never said here, so
`generate` may not say them either.
"""

from __future__ import annotations

import copy
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from tqdm.auto import tqdm

import specnb as sn
from specnb.bench.exactness import chi_square, second_law, tail
from specnb.bench.families import FAMILIES, Family, drafter_of
from specnb.decode import next_block
from specnb.scenes import random_scene, render
from specnb.tree import path_to

PROMPT = "Tell me a story of a fox and a hen, please, and of a wolf and a goat after that"
N_TOKENS = 40
LEAST_WORDS = 4  # different tokens in a text, for it to prove something
BOUND = 1e-4  # of the largest logit, in float32
CHAIN = (-1, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10)
TREE = (-1, -1, 0, 0, 1, 2, 2, 3, 5, 5, 8, 8)
METHODS = {
    "chain": sn.Chain(4),
    "tree": sn.GumbelTopK((2, 2, 1)),
    "beam": sn.StochasticBeam(2, 3),
}
SAMPLED = ("mistral_sliding", "gemma2", "llava_next", "qwen2_vl", "gemma3")
N_SAMPLED, LEAST_P = 1500, 1e-4


class Wrong(Exception):
    """What is not as it should be, in words."""


def picture(seed: int = 3):
    """A picture that is not square, so that tiles and grids are not either."""
    return render(random_scene(seed)).convert("RGB").resize((60, 40))


# ------------------------------------------------------------------------------- what is measured


def measure(target: str = "", draft: str = "", n: int = 0, only: Sequence[str] = ()) -> dict:
    """One row per family, or for those in `only`; `passed` says whether all are as expected.

    `n` is the number of sampled runs where the law is tested. The families are made here, so
    `target` and `draft` must be empty: ValueError otherwise.
    """
    if target or draft:
        raise ValueError("target, draft: the families are made here; leave both out")
    unknown = sorted(set(only) - set(FAMILIES))
    if unknown:
        raise ValueError(f"only={unknown[0]!r}: no such family; see specnb.bench.families")
    names = [name for name in FAMILIES if not only or name in only]
    rows = []
    with quiet(), stills(), tempfile.TemporaryDirectory() as root:
        for name in tqdm(names, desc="architectures", leave=False):
            rows.append(judge(FAMILIES[name], Path(root) / name, n or N_SAMPLED))
            shutil.rmtree(Path(root) / name)
    passed = all(row["status"] != "WRONG" for row in rows)
    return {"tokens": N_TOKENS, "bound": BOUND, "rows": rows, "passed": passed}


@contextmanager
def quiet() -> Iterator[None]:
    """transformers without progress bars and advice."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def stills() -> Iterator[None]:
    """Where torchvision is missing: processors for still pictures without their video processors.

    A stand-in for measuring here. Users install torchvision; without it, loading says so.
    """
    from importlib.util import find_spec

    if find_spec("torchvision") is not None:
        yield
        return
    from transformers import processing_utils
    from transformers.image_processing_utils import BaseImageProcessor
    from transformers.models import pixtral
    from transformers.models.auto.video_processing_auto import AutoVideoProcessor
    from transformers.models.pixtral import image_processing_pil_pixtral as pil
    from transformers.models.smolvlm import processing_smolvlm

    class NoVideos(BaseImageProcessor):
        model_input_names = []
        num_frames = fps = None  # SmolVLM's chat template asks

    # All that PixtralProcessor takes from the torchvision module is a function that `pil` has, too.
    name = "transformers.models.pixtral.image_processing_pixtral"
    with mock.patch.dict(sys.modules, {name: pil}):
        from transformers.models.pixtral.processing_pixtral import PixtralProcessor
    with (
        mock.patch.object(AutoVideoProcessor, "from_pretrained", lambda *a, **k: NoVideos()),
        mock.patch.dict(
            processing_utils.MODALITY_TO_BASE_CLASS_MAPPING, video_processor="ImageProcessingMixin"
        ),
        mock.patch.object(pixtral, "PixtralProcessor", PixtralProcessor, create=True),
        mock.patch.object(processing_smolvlm, "num2words", str),  # it spells numbers of frames
    ):
        yield


def judge(family: Family, root: Path, n_sampled: int = 0, certify: bool = True) -> dict:
    """One family's row: `status` is ok, chains, refused or WRONG, and `why` says what is wrong.

    `root` is a folder to be filled. The law is sampled where `n_sampled` is above 0 and the family
    is among `SAMPLED`. `certify` is that of `specnb.load_pair`.
    """
    start = time.perf_counter()
    row: dict[str, Any] = {"name": family.name, "sees": family.sees, "expect": family.expect}
    try:
        _judge(family, root, n_sampled, certify, row)
        row["status"] = {"exact": "ok"}.get(family.expect, family.expect)
    except Wrong as wrong:
        row |= {"status": "WRONG", "why": str(wrong)}
    except Exception as error:
        words = f"{type(error).__name__}: {error}"
        row |= {"status": "WRONG", "why": f"crash after {_last(row)}: {' '.join(words.split())}"}
    row["seconds"] = round(time.perf_counter() - start, 1)
    return {name: _without(root, value) for name, value in row.items()}


def _without(root: Path, value: Any) -> Any:
    """Messages name the folder that the model lay in: here it is called by the family alone."""
    return value.replace(f"{root.parent}{os.sep}", "") if isinstance(value, str) else value


def _last(row: dict) -> str:
    done = [key for key in row if key not in ("name", "sees", "expect")]
    return done[-1] if done else "nothing"


def _judge(family: Family, root: Path, n_sampled: int, certify: bool, row: dict) -> None:
    """Fills the row; Wrong at the first thing that is not as expected."""
    folder = family.build(root / "target", seed=0)
    if family.expect == "refused":
        row["refusal"] = refused_early(family, folder, root)
        return
    draft = drafter_of(family, folder, root / "draft")
    pair = sn.load_pair(folder, draft, device="cpu", dtype="float32", certify=certify)
    row["load"] = "ok"
    compare(family, pair, Peer(folder, pair.target), row)
    if family.name in SAMPLED and n_sampled:
        row["p_value"] = second_token_p_value(pair, picture() if family.sees else None, n_sampled)
        if row["p_value"] < LEAST_P:
            raise Wrong(f"the second sampled token has p = {row['p_value']:.0e}")


def compare(family: Family, pair, peer: Peer, row: dict) -> None:
    """Fills the row with all that must equal transformers; Wrong at the first that does not."""
    image = picture() if family.sees else None
    inputs = peer.inputs(PROMPT, image)
    ids = inputs["input_ids"][0].tolist()
    if pair.target.encode(PROMPT, image)[0] != ids:
        raise Wrong("the prompt's ids are not those of transformers' own processor")
    row["prompt"] = len(ids)
    plain = sn.autoregressive(pair.target, PROMPT, image, max_new_tokens=N_TOKENS)
    theirs = peer.generate(inputs, N_TOKENS)
    equal = sum(a == b for a, b in zip(plain.token_ids, theirs, strict=False))
    row |= {"plain": f"{equal}/{len(theirs)}", "distinct": len(set(theirs))}
    if plain.token_ids != theirs:
        raise Wrong(f"plain text is not that of generate ({equal} of {len(theirs)} tokens equal)")
    if row["distinct"] < LEAST_WORDS:
        raise Wrong(f"the text says {row['distinct']} tokens only; change the family's draw")
    row["nodes"] = float(f"{worst_node(pair.target, peer, image, family.expect == 'exact'):.1e}")
    if not row["nodes"] <= BOUND:
        raise Wrong(f"logits of drafted tokens are off by {row['nodes']:.0e} of the largest")
    for name, drafter in METHODS.items():
        if family.expect == "chains" and name != "chain":
            row[name] = refusal_of_trees(family, pair, image, drafter)
            continue
        row[name] = acceptance(pair, image, drafter, plain.token_ids, name)


def acceptance(pair, image, drafter, wanted: tuple[int, ...], name: str) -> float:
    """Acceptance rate of drafts drawn at temperature 1; Wrong where the text differs from plain.

    A rate of 0 or 1 is wrong as well: then nothing was kept, or nothing taken back.
    """
    run = sn.speculative(
        pair,
        PROMPT,
        image,
        drafter=drafter,
        draft_sampling=sn.Sampling(1.0),
        max_new_tokens=N_TOKENS,
    )
    equal = sum(a == b for a, b in zip(run.token_ids, wanted, strict=False))
    if run.token_ids != wanted:
        raise Wrong(f"{name}: the text is not the plain one ({equal} of {len(wanted)} tokens)")
    rate = run.metrics.acceptance_rate or 0.0
    if not 0 < rate < 1:
        raise Wrong(f"{name}: acceptance {rate:.2f} proves nothing; change the drafter's noise")
    return round(rate, 2)


# ------------------------------------------------------------------------------------- refusals


def refused_early(family: Family, folder: str, root: Path) -> str:
    """The sentence with which a family is refused, before a weight is read."""
    from transformers import PreTrainedModel

    draft = FAMILIES["llama"].build(root / "draft", seed=0)
    read = mock.Mock(side_effect=Wrong("it is refused only after its weights were asked for"))
    with mock.patch.object(PreTrainedModel, "from_pretrained", read):
        return _sentence(family, lambda: sn.load_pair(folder, draft, device="cpu", dtype="float32"))


def refusal_of_trees(family: Family, pair, image, drafter) -> str:
    """The sentence with which trees are refused, before the prompt is read."""
    read = mock.Mock(side_effect=Wrong("trees are refused only after the prompt was read"))
    with mock.patch.object(pair.target, "open", read):
        _sentence(
            family,
            lambda: sn.speculative(
                pair,
                PROMPT,
                image,
                drafter=drafter,
                draft_sampling=sn.Sampling(1.0),
                max_new_tokens=N_TOKENS,
            ),
        )
    return "refused"


def _sentence(family: Family, call) -> str:
    try:
        call()
    except ValueError as error:
        text = str(error)
    else:
        raise Wrong("it is not refused")
    if "\n" in text or len(text) > 400:
        raise Wrong(f"the refusal is no sentence: {text[:200]!r}")
    if ";" not in text:
        raise Wrong(f"the refusal names no remedy: {text!r}")
    missing = [word for word in family.words if word not in text.lower()]
    if missing:
        raise Wrong(f"the refusal does not mention {missing[0]!r}: {text!r}")
    return text


# ---------------------------------------------------------------------- transformers by themselves


class Peer:
    """transformers' own model of a folder, its processor, and forwards without any cache."""

    def __init__(self, folder: str, model) -> None:
        import transformers

        self.sees = model.sees_images
        auto = (
            transformers.AutoModelForImageTextToText
            if self.sees
            else transformers.AutoModelForCausalLM
        )
        self.module = auto.from_pretrained(folder, dtype="float32").eval()
        self.processor = model.processor  # loaded, not called: that is done here
        self.tokenizer = model.tokenizer
        words = set(self.tokenizer.get_vocab().values())
        width = self.module.get_output_embeddings().weight.shape[0]
        self.silent = [index for index in range(width) if index not in words]

    def inputs(self, prompt: str, images: Any = None) -> dict[str, Any]:
        """What the processor makes of a prompt and its picture, or list of pictures."""
        if not self.sees:
            return dict(self.tokenizer(prompt, return_tensors="pt", return_token_type_ids=False))
        several = images if isinstance(images, list) else [images] if images else []
        text = prompt
        if self.processor.chat_template:
            content = [{"type": "image"}] * len(several) + [{"type": "text", "text": prompt}]
            text = self.processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
            )
        starts = text.startswith(self.tokenizer.bos_token)
        batch = self.processor(
            images=several or None, text=text, return_tensors="pt", add_special_tokens=not starts
        )
        return {name: value for name, value in batch.items() if name != "labels"}

    @torch.inference_mode()
    def generate(self, inputs: dict[str, Any], n: int) -> tuple[int, ...]:
        """Greedy text of `generate` with a neutral generation config."""
        from transformers import GenerationConfig

        settings = {"suppress_tokens": self.silent} if self.silent else {}
        neutral = GenerationConfig(
            do_sample=False, max_new_tokens=n, eos_token_id=2, pad_token_id=2, **settings
        )
        self.module.generation_config = neutral
        output = self.module.generate(**inputs, generation_config=neutral)
        return tuple(output[0, inputs["input_ids"].shape[1] :].tolist())

    @torch.inference_mode()
    def logits(self, inputs: dict[str, Any], more: Sequence[int]) -> Tensor:
        """Logits [vocab] behind a prompt and further ids, by one forward without a cache."""
        n = inputs["input_ids"].shape[1]
        longer = dict(inputs)
        longer["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([list(more)]).long()], 1)
        # An answer is text; PaliGemma calls what follows its prefix 1.
        behind_prefix = int(self.module.config.model_type == "paligemma")
        later = {"attention_mask": 1, "mm_token_type_ids": 0, "token_type_ids": behind_prefix}
        for name, value in later.items():
            if name in inputs and inputs[name].shape == (1, n):
                rest = inputs[name].new_full((1, len(more)), value)
                longer[name] = torch.cat([inputs[name], rest], 1)
        return self.module(**longer, use_cache=False).logits[0, -1].float()


def worst_node(model, peer: Peer, image: Any, trees: bool, prompt: Any = PROMPT) -> float:
    """Largest logit difference of drafted tokens to forwards without a cache, over four rounds.

    As a share of the largest logit. Two rounds are committed in part, one not at all; the second
    draft is fed level by level, as a drafter grows its tree.
    """
    inputs = peer.inputs(prompt, image)
    context = model.open(prompt, image)
    generator = torch.Generator().manual_seed(0)
    text: list[int] = []
    worst = 0.0
    for step, n_kept in enumerate((2, 0, 3, 0)):
        parents = TREE if trees else CHAIN
        tokens = torch.randint(3, 250, (len(parents) + 1,), generator=generator).tolist()
        *tokens, correction = tokens
        if step == 1:
            parts = [context.forward(tokens[:2], parents[:2])]
            parts.append(context.forward(tokens[2:], parents[2:]))
        else:
            parts = [context.forward(tokens, parents)]
        rows = [parts[0].root, *(row for part in parts for row in part.nodes)]
        for node, row in enumerate(rows, start=-1):
            path = [tokens[i] for i in path_to(node, parents)] if node >= 0 else []
            wanted = peer.logits(inputs, [*text, *path])
            seen = row.isfinite()
            error = float((row - wanted)[seen].abs().max() / wanted.abs().max())
            worst = max(worst, error)
        kept = [tokens[i] for i in path_to(len(parents) - 1, parents)][:n_kept]
        context.commit([*kept, correction])
        text += [*kept, correction]
    return worst


def second_token_p_value(pair, image: Any, runs: int) -> float:
    """Chi-square p-value of the second sampled token against its law from the target's logits."""
    sampling = sn.Sampling(1.0, top_k=12)
    context = pair.target.open(PROMPT, image)
    drafting = sn.Chain(2).start(pair, PROMPT, image, sampling)
    law = second_law(context, sampling)
    drafting.context.forward()
    counts: Counter = Counter()
    draws = sn.Draws(11)
    for _ in range(runs):
        fork, draft_fork = copy.deepcopy((context, drafting), {id(pair.draft): pair.draft})
        text: tuple[int, ...] = ()
        while len(text) < 2:
            text += next_block(fork, draft_fork, sampling, draws, 8).token_ids
        counts[text[1]] += 1
    return tail(*chi_square(counts, law, runs))


# ----------------------------------------------------------------------------------------- tables


def table(figures: dict) -> str:
    """The rows as two Markdown tables, families that see pictures first."""
    lines = []
    for sees, title in ((True, "Models that see pictures"), (False, "Models of text")):
        rows = [row for row in figures["rows"] if row["sees"] is sees]
        if rows:
            lines += [f"### {title}", "", *_table(rows), ""]
    n_wrong = sum(row["status"] == "WRONG" for row in figures["rows"])
    lines.append(f"{len(figures['rows'])} families, {n_wrong} not as expected")
    return "\n".join(lines)


def _table(rows: list[dict]) -> list[str]:
    keys = ("plain", "chain", "tree", "beam", "nodes", "p_value")
    head = ["architecture", "status", "= generate", *keys[1:4], "nodes", "second token", "words"]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for row in rows:
        cells = [_cell(row.get(key, "")) for key in keys]
        words = row.get("why") or row.get("refusal") or ""
        if row["status"] == "refused":  # the folder's name says nothing here
            words = words.split(": ", 1)[-1]
        line = [row["name"], row["status"], *cells, words.replace("|", "/")]
        lines.append("| " + " | ".join(line) + " |")
    return lines


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.0e}" if 0 < value < 1e-3 else f"{value:.2f}"
    return str(value)
