"""Trying a model before it is used: what is decoded must be what a forward without a cache says.

First the structure: a two-layer random model of the same config in float32 goes through chains with
rejections and trees with partial commits; every logit is held against a forward of that node's own
path without any cache, and plain greedy decoding against transformers' `generate`. Then the weights
in their own number format, in at most twelve forwards. What was found right is remembered.
"""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from specnb.files import sum_of, write_whole
from specnb.models import folders, gate
from specnb.models.miniature import miniatures, random_model, small_ids
from specnb.tree import path_to

STRICT = 1e-4  # of the largest logit, in float32
COARSE = 8  # units of the last place of the largest logit, below float32
N_PROMPT, N_GREEDY = 20, 12
CHAIN = (-1, 0, 1)
TREE = (-1, -1, 0, 0, 1, 2, 2, 4, 5, 5, 8, 9)
SMALL_TREE = (-1, -1, 0, 2, 2, 1)
ANNOUNCED = 50_000_000  # parameters from which on a line says that a check is under way
QUESTION = "Describe what you see, word for word."


Extras = dict[str, Any] | None  # what a processor made of a prompt's pictures


class Differs(Exception):
    """What differs, and by how much."""


class Check:
    """The check of one model; `wrap` makes a model of this package of a transformers module."""

    def __init__(
        self,
        folder: str,
        config: Any,
        plan: gate.Plan,
        wrap: Callable[..., Any],
        settings: tuple[str, ...],
    ):
        self.folder, self.config, self.plan, self.wrap = folder, config, plan, wrap
        self.settings = settings
        self.key = ""  # of what is remembered; a hub's files may not be here yet
        if Path(folder).is_dir():
            self.key = self._key(folder)

    def structure(self) -> None:
        """ValueError where a model of this config is not decoded exactly. No weight is read."""
        if self.key and self.key in _remembered():
            return
        import transformers

        table = (
            transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
            if self.plan.sees_images
            else transformers.MODEL_FOR_CAUSAL_LM_MAPPING
        )
        kind: Any = table[type(self.config)]
        kind = kind[0] if isinstance(kind, tuple) else kind
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # for matrices this small a second one only waits
        try:
            self._structure(kind)
        except Differs as difference:
            raise ValueError(
                f"model {self.folder!r}: a {self.config.model_type} is not decoded exactly here "
                f"({difference}); choose another model, or certify=False at your own risk"
            ) from None
        finally:
            torch.set_num_threads(threads)

    def _structure(self, kind: type) -> None:
        """Differs where something does."""
        trouble = None
        for small in miniatures(self.config):
            try:
                module = random_model(kind, small)
                plan = gate.judge(small, self.folder)
                reference = Reference(copy.deepcopy(module), plan)
                model = self.wrap(module, plan)
                model.own_ids = list  # random ids are the model's own
                model._allow(torch.ones(model.own_vocab_size, dtype=torch.bool))
                ids, extras = _sample(model, self.config)
                reference.of(ids, len(ids), extras, 1)
            except Differs:
                raise
            except Exception as error:  # whatever a config that was cut too far breaks
                trouble = error
                continue
            try:
                rounds(model, reference, ids, extras, STRICT, small=False)
                _same_greedy(model, reference, ids, extras)
            except Differs:
                raise
            except Exception as error:
                raise Differs(f"{type(error).__name__}: {_short(error)}") from error
            return
        raise Differs(f"transformers does not run it: {_short(trouble)}")

    def weights(self, model: Any) -> str:
        """How the model was checked, in words; ValueError where its weights are not decoded right.

        Twice the largest difference between forwards over one and over many rows is allowed for.
        """
        self.key = self.key or self._key(_hub_folder(self.folder))
        known = _remembered()
        if self.key in known:
            return known[self.key]
        if model.n_parameters > ANNOUNCED:
            seconds = max(1, round(20 * model.n_parameters / 1e9))
            print(f"checking {self.folder}, about {seconds} s, once", file=sys.stderr, flush=True)
        ids, extras = _prompt(model)
        kind = str(model.dtype).removeprefix("torch.")
        if model.activations != model.dtype:
            kind += f" beside {str(model.activations).removeprefix('torch.')}"
        try:
            reference = Reference(model.module, model.plan)
            bound = _bound(model, reference, ids, extras)
            worst = rounds(model, reference, ids, extras, bound, small=True)
        except Differs as difference:
            raise ValueError(
                f"model {self.folder!r}: its weights in {kind} are not decoded exactly "
                f"({difference}); load it with dtype='float32', or certify=False at your own risk"
            ) from None
        words = f"checked in {kind} (largest difference {worst:.0e} of the largest logit)"
        _remember(self.key, words)
        return words

    def _key(self, folder: str) -> str:
        import transformers

        here = Path(__file__).parent
        code = sum_of(here, here.glob("*.py"))[:16]
        versions = [torch.__version__, transformers.__version__, code]
        return " ".join([folders.fingerprint(folder), *versions, *self.settings])


class Reference:
    """Forwards over whole texts without a cache, by transformers alone."""

    def __init__(self, module: Any, plan: gate.Plan):
        self.module, self.plan = module, plan

    @torch.inference_mode()
    def of(self, ids: Sequence[int], n_prompt: int, extras: Extras, rows: int) -> Tensor:
        """The last [rows, vocab] logits of a text whose first `n_prompt` ids are the prompt."""
        keep = {"logits_to_keep": rows} if "logits_to_keep" in self.plan.takes else {}
        output = self.module(**self.inputs(ids, n_prompt, extras), **keep, use_cache=False)
        logits: Tensor = output.logits[0, -rows:].to(self.module.device).float()
        return logits

    def inputs(self, ids: Sequence[int], n_prompt: int, extras: Extras) -> dict[str, Any]:
        """What transformers' own processors would give for the whole text."""
        device, kind = self.module.device, self.module.dtype
        found = {}
        for name, value in (extras or {}).items():
            if name.endswith("token_type_ids"):  # an answer is text; behind a prefix it is 1
                later = value.new_full((1, len(ids) - n_prompt), int(self.plan.whole_prompt))
                value = torch.cat([value[:, :n_prompt], later], -1)
            if isinstance(value, Tensor):
                value = value.to(device, kind if value.is_floating_point() else value.dtype)
            found[name] = value
        text = torch.tensor([list(ids)], device=device)
        return found | {"input_ids": text, "attention_mask": torch.ones_like(text)}


def rounds(
    model: Any, reference: Reference, ids: list[int], extras: Extras, bound: float, small: bool
) -> float:
    """Two rounds of a chain with a rejection and a tree, partly committed; the largest difference.

    `bound` and what comes back are shares of the largest logit. Differs says what differs.
    """
    context, text = model.context(ids, extras), list(ids)
    if context.offset + context.length != len(ids):
        raise Differs(f"{context.offset + context.length} of {len(ids)} tokens were read")
    words = sorted(set(ids) - {model.image_token_id})
    worst, drawn = 0.0, 0

    def fresh(n: int) -> list[int]:
        nonlocal drawn
        drawn += n
        return [words[(7 * i + 3) % len(words)] for i in range(drawn - n, drawn)]

    tree = CHAIN if model.only_chains else SMALL_TREE if small else TREE
    plans = [(CHAIN, 1, 1), (tree, 2, len(tree))]
    for parents, n_kept, n_first in plans + ([] if small else plans):
        tokens = fresh(len(parents))
        # Level by level, as a drafter grows a tree: a part first, then the rest behind it.
        parts = [context.forward(tokens[:n_first], parents[:n_first])] if n_first else []
        if n_first < len(parents):
            parts.append(context.forward(tokens[n_first:], parents[n_first:]))
        rows = torch.cat([parts[0].root[None], *(part.nodes for part in parts)])
        leaves = sorted(set(range(len(parents))) - set(parents))
        for leaf in leaves:
            path = path_to(leaf, parents)
            whole = [*text, *(tokens[node] for node in path)]
            wanted = reference.of(whole, len(ids), extras, 1 + len(path))
            got = rows[[0, *(node + 1 for node in path)]][:, : wanted.shape[-1]].to(wanted.device)
            allowed = got.isfinite()
            if bool(got.isnan().any()) or not bool(allowed.any()):
                raise Differs("logits are not numbers; the weights are damaged or overflow")
            scale = float(wanted.abs().max())
            error = float((got - wanted)[allowed].abs().max()) / scale
            worst = max(worst, error)
            if not error <= bound:
                shape = "chain" if parents is CHAIN else "tree"
                raise Differs(f"logits of a {shape} are off by {error:.1e} of the largest")
        kept = [tokens[node] for node in path_to(leaves[-1], parents)[:n_kept]]
        emitted = [*kept, *fresh(1)]
        context.commit(emitted)
        text += emitted
    return worst


def _sample(model: Any, config: Any) -> tuple[list[int], Extras]:
    """A prompt for a random model: random ids, or a picture with a question."""
    if model.sees_images:
        small = model.image_token_id
        model.image_token_id = config.image_token_id
        try:
            ids, extras = _prompt(model)
        finally:
            model.image_token_id = small
        return small_ids(ids, config), extras
    generator = torch.Generator().manual_seed(0)
    return torch.randint(3, model.own_vocab_size, (N_PROMPT,), generator=generator).tolist(), None


def _prompt(model: Any) -> tuple[list[int], Extras]:
    """A question, with a picture where the model sees; ids as the templates of transformers."""
    from PIL import Image

    picture = None
    if model.sees_images:
        picture = Image.linear_gradient("L").resize((96, 72)).convert("RGB")
    ids, extras = model.encode(QUESTION, picture)
    wanted = _templated(model, picture)
    if wanted is not None and ids != wanted:
        raise Differs("the prompt's tokens are not those of apply_chat_template")
    room = model.plan.positions_for(len(ids), model.path) - len(SMALL_TREE) - 6
    return (ids if len(ids) <= room else ids[: max(room, 1)]), extras


def _templated(model: Any, picture: Any) -> list[int] | None:
    """The question's ids by transformers alone; None for a model without a template."""
    speaker = model.processor or model.tokenizer
    if getattr(speaker, "chat_template", None) is None:
        return None
    content: Any = QUESTION
    if picture is not None:
        content = [{"type": "image", "image": picture}, {"type": "text", "text": QUESTION}]
    batch = speaker.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    ids: list[int] = batch["input_ids"][0].tolist()
    return ids


@torch.inference_mode()
def _bound(model: Any, reference: Reference, ids: list[int], extras: Extras) -> float:
    """What rounding may do: one row behind a cache of transformers' own, against many rows."""
    kind = model.activations
    precise = kind in (torch.float32, torch.float64)
    floor = STRICT if precise else COARSE * torch.finfo(kind).eps
    if len(ids) < 2 or model.plan.whole_prompt:
        return floor
    module, inputs = reference.module, reference.inputs(ids[:-1], len(ids) - 1, extras)
    many = reference.of(ids, len(ids), extras, 1)[0]
    first = module(**inputs, use_cache=True)
    settings = {
        "cache" if "cache" in model.plan.takes else "past_key_values": first.past_key_values
    }
    deltas = getattr(getattr(module, "model", None), "rope_deltas", None)
    if deltas is not None:  # M-RoPE finds positions for a whole text only
        place = len(ids) - 1 + int(deltas)
        settings["position_ids"] = torch.tensor([[place]], device=module.device)
    one = module(
        input_ids=torch.tensor([ids[-1:]], device=module.device),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long, device=module.device),
        use_cache=True,
        **settings,
    )
    one = one.logits[0, -1].float()
    return floor + 2 * float((one.to(many.device) - many).abs().max() / many.abs().max())


def _same_greedy(model: Any, reference: Reference, ids: list[int], extras: Extras) -> None:
    """Plain greedy decoding and `generate` with a neutral generation config say the same."""
    from transformers import GenerationConfig

    neutral = GenerationConfig(do_sample=False, max_new_tokens=N_GREEDY, pad_token_id=0)
    module = reference.module
    module.generation_config = neutral
    inputs = reference.inputs(ids, len(ids), extras)
    wanted = module.generate(**inputs, generation_config=neutral)[0, len(ids) :].tolist()
    context, text = model.context(ids, extras), []
    for _ in wanted:
        text.append(int(context.forward().root.argmax()))
        context.commit(text[-1:])
    if text != wanted:
        place = next(i for i, pair in enumerate(zip(text, wanted, strict=True)) if len({*pair}) > 1)
        raise Differs(f"greedy text leaves that of generate at token {place + 1}")


def _short(error: Exception | None) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__


def _hub_folder(name: str) -> str:
    """Where the files of a hub's model lie, now that they were fetched."""
    from transformers.utils import cached_file

    return (
        str(Path(str(cached_file(name, "config.json"))).parent) if not Path(name).is_dir() else name
    )


def _memory() -> Path:
    import platformdirs

    return Path(platformdirs.user_cache_dir("specnb")) / "certificates.json"


def _remembered() -> dict[str, str]:
    try:
        known = json.loads(_memory().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _remember(key: str, words: str) -> None:
    known = dict(list(_remembered().items())[-199:])  # old ones make room
    try:
        write_whole(_memory(), json.dumps(known | {key: words}, indent=1))
    except OSError:  # a home that cannot be written to: checked again next time
        pass
