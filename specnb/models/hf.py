"""transformers models of text, or of text and images: the contract, prompts, exact rollback."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from tqdm.auto import tqdm

from specnb.models import attention, gate, prompts
from specnb.models.base import PromptTooLong
from specnb.models.head import AcceptanceHead, read_head
from specnb.models.llama import PIECE, Llama, LlamaContext, parts, why_not
from specnb.models.pictures import as_picture as as_picture  # for those who import it from here
from specnb.models.pictures import as_pictures
from specnb.models.selectors import Selector, need_places
from specnb.models.small import SmallContext, SmallLlama, fits
from specnb.models.sparse import ByHead, Watched, chosen_by_place
from specnb.models.vocabulary import kept_ids

# What `generate` follows in a generation config and this package does not, with what does nothing.
NOT_FOLLOWED = {
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "bad_words_ids": None,
    "sequence_bias": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "min_new_tokens": None,
    "min_length": 0,
    "min_p": None,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "guidance_scale": None,
    "exponential_decay_length_penalty": None,
    "num_beams": 1,
}


# Once per model; its copies, with other vocabularies, have their own.
_HEADS: WeakKeyDictionary[HFModel, AcceptanceHead] = WeakKeyDictionary()
# Once per module: what keeps its attention from being shown, by layer and head.
_OBSTACLES: WeakKeyDictionary[Any, str] = WeakKeyDictionary()
NO_TEMPLATE = (
    "model {path!r}: it has no chat template, so nothing says where the image goes; add "
    "chat_template.jinja"
)


class HFModel:
    """A transformers model behind the `Model` contract.

    `vocab_size` is the width of its logits here; beside a target (see `beside`) a drafter's
    logits are cut or filled with -inf to the target's width. Ids to which the tokenizer has no
    word are never said; transformers' `generate` may say them, so "equal to `generate`" means: of
    a model that does not. `certificate` says how it was checked (see `specnb.models.certificate`).
    `dtype` is the number format of the weights, `activations` that of all else: with `halves` the
    weights are in fp16, and `module` is the same function, in float32 throughout.
    """

    kept: tuple[int, ...] | None = None  # see `trimmed`
    narrow: HFModel | None = None
    whole: HFModel | None = None  # the model that was trimmed
    columns: Tensor | None = None  # of the logits that it gives, where it is the narrow one

    def __init__(
        self,
        module,
        tokenizer,
        path: str,
        processor=None,
        runtime: str = "auto",
        plan: gate.Plan | None = None,
        halves: bool = False,
    ):
        self.module, self.tokenizer, self.path, self.processor = module, tokenizer, path, processor
        self.plan = plan or gate.judge(module.config, path)
        self.certificate = "not checked"
        self.sees_images = self.plan.sees_images
        self.only_chains = self.plan.only_chains
        self.own_vocab_size = self.vocab_size = module.get_output_embeddings().weight.shape[0]
        self.max_positions = self.plan.max_positions
        self.device, self.activations = module.device, module.dtype
        self.dtype = torch.float16 if halves else module.dtype
        self.eos_ids = _eos_ids(module, tokenizer)
        self.image_token_id = getattr(module.config, "image_token_id", None)
        self.n_parameters = _language_parameters(module, self.sees_images)
        self.template: HFModel | None = None  # the target whose template a drafter follows
        self.n_placeholders = 0  # raw image tokens left in a text-only prompt, for comparison
        self.controls = prompts.control_tokens(tokenizer, getattr(processor, "image_token", None))
        known = set(tokenizer.get_vocab().values())
        self._allow(torch.tensor([index in known for index in range(self.own_vocab_size)]))
        reason = "asked for" if runtime == "transformers" else why_not(module)
        self.llama: Llama | None = None
        self.small: SmallLlama | None = None  # beside it, where that is faster
        self.runtime = f"transformers runtime ({reason})"
        if not reason:
            weights = parts(module, halves)
            self.llama, self.runtime = Llama(weights), "lean runtime"
            if runtime == "auto" and fits(module.config, self.device.type, module.dtype):
                self.small, self.runtime = SmallLlama(weights), "lean runtime in numpy"
            if halves:
                self.runtime += ", fp16 weights with float32 activations"

    @property
    def not_followed(self) -> list[str]:
        """Settings of its generation config that `generate` follows and this package does not."""
        settings = self.module.generation_config
        values = {name: getattr(settings, name, None) for name in NOT_FOLLOWED}
        return [
            f"{name}={value}"
            for name, value in values.items()
            if value is not None and value != NOT_FOLLOWED[name]
        ]

    def beside(self, target: HFModel) -> HFModel:
        """The same weights as a drafter for `target`: its template, its vocabulary.

        Ids that the drafter lacks get probability 0; ids that the target lacks are removed
        before the drafter's softmax. The target's law is never altered.
        """
        if self.kept is not None:
            raise ValueError("draft: its vocabulary is trimmed; trim it in its pair, pair.draft")
        other = copy.copy(self)
        other.vocab_size = target.vocab_size
        allowed = torch.zeros(target.vocab_size, dtype=torch.bool)
        shared = min(target.vocab_size, self.own_vocab_size)
        allowed[:shared] = self.allowed[:shared] & target.allowed[:shared]
        other._allow(allowed)
        other.template = target
        return other

    def _allow(self, allowed: Tensor) -> None:
        """Sets which ids this model may say."""
        self.allowed = allowed
        self._forbidden = None if allowed.all() else ~allowed.to(self.device)

    def trimmed(self, k: int, ids: Sequence[int] | None = None) -> HFModel:
        """The same weights as a drafter that can say `k` ids only, those that its target says most.

        They are the first `k` of `ids`, or of frequent_ids.json in its folder. What `open` gives
        has -inf for all others; drafters of this package use `narrow`, whose logits are over `kept`
        alone, from as many rows of the head. `n_parameters` counts those rows.
        """
        may = self.allowed[: self.own_vocab_size].nonzero().flatten().tolist()
        kept = kept_ids(self.path, k, ids, frozenset(may))
        other = copy.copy(self)
        said = torch.zeros(self.vocab_size, dtype=torch.bool)
        said[list(kept)] = True
        other._allow(said)
        whole = self.whole or self
        width = self.module.get_output_embeddings().weight.shape[1]
        other.n_parameters = whole.n_parameters - (self.own_vocab_size - len(kept)) * width
        other.runtime = f"{whole.runtime}, {len(kept)} ids of {self.own_vocab_size}"
        other.kept, other.narrow, other.whole = kept, self._narrow(kept), whole
        return other

    def _narrow(self, kept: tuple[int, ...]) -> HFModel:
        """This model with logits [n, kept] instead of [n, vocab]; fed with the ids of all."""
        other = copy.copy(self)
        other.vocab_size, other._forbidden = len(kept), None
        other.columns = torch.tensor(kept, device=self.device)
        if self.llama is not None:
            weights = parts(self.module, self.dtype != self.activations)
            weights = weights._replace(head=weights.head[other.columns])
            other.llama = Llama(weights)
            other.small = None if self.small is None else SmallLlama(weights)
        return other

    def acceptance_head(self) -> AcceptanceHead | None:
        """What its folder holds to guess acceptance with; None where there is none.

        ValueError where its logits are no linear function of hidden states, or too few.
        """
        found = _HEADS.get(self) or self._read_head()
        if found is not None:
            _HEADS[self] = found
        return found

    def _read_head(self) -> AcceptanceHead | None:
        if (stored := read_head(self.path)) is None:
            return None
        if reason := why_not(self.module):
            raise ValueError(
                f"draft {self.path!r}: an acceptance head is for Llama-type drafters ({reason}); "
                "choose another stopping rule"
            )
        columns = self.columns
        table = self.module.get_output_embeddings().weight
        if columns is None:
            found = self.allowed[: self.own_vocab_size].nonzero().flatten()
            columns = None if len(found) == self.vocab_size else found
            return AcceptanceHead(*stored, table[found.to(table.device)], columns)
        return AcceptanceHead(*stored, table[columns])

    def check_selector(self, select: Selector) -> None:
        """ValueError where this selector cannot choose slots of the model's caches."""
        if self.llama is not None:
            return
        if self.only_chains:
            raise ValueError(
                f"drafter: it reads chosen slots by a mask, and {self.path} is exact without masks "
                f"only ({self.only_chains}); use Chain"
            )
        if select.by_place:  # one mask for all layers and heads, which any model takes
            return
        if self.module not in _OBSTACLES:
            _OBSTACLES[self.module] = attention.obstacle(HFContext(self, [0], None))
        if why := _OBSTACLES[self.module]:
            need_places(select, f"those of {self.path} cannot be shown to it ({why})")

    def with_image_placeholders(self, n: int) -> HFModel:
        """A text-only drafter whose prompt keeps `n` raw image tokens, as other software does."""
        other = copy.copy(self)
        other.n_placeholders = n
        if self.narrow is not None:  # a trimmed drafter's runs open that one
            other.narrow = self.narrow.with_image_placeholders(n)
        return other

    def logits(self, raw: Tensor) -> Tensor:
        """The module's logits [n, own vocab] in this model's vocabulary; unknown ids are -inf."""
        if self.columns is not None and raw.shape[-1] != len(self.columns):
            raw = raw.index_select(-1, self.columns)  # of a module that has its whole head
        extra = self.vocab_size - raw.shape[-1]
        if extra:  # a negative number of columns is cut off
            raw = torch.nn.functional.pad(raw, (0, extra))
        if raw.dtype != torch.float64:
            raw = raw.float()
        return raw if self._forbidden is None else raw.masked_fill(self._forbidden, -torch.inf)

    def chat(self, prompt: Any, image: int = 0) -> str:
        """The prompt in the chat template, if there is one, with places for `image` pictures."""
        if self.template is not None and not self.sees_images:
            return self.template.chat(prompt, image)
        speaker = self.processor or self.tokenizer
        if getattr(speaker, "chat_template", None) is None:
            if not isinstance(prompt, str):
                raise ValueError(
                    f"prompt: {self.path} has no chat template for messages; give a text"
                )
            if self.sees_images and not self.plan.whole_prompt:
                raise ValueError(NO_TEMPLATE.format(path=self.path))
            return prompt  # a base model goes on from the text as it stands
        if self.sees_images:
            messages = prompts.with_parts(prompt, int(image))
        else:
            messages = prompts.with_text(prompt)
        return speaker.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)

    def encode(self, prompt: Any, image: Any = None) -> tuple[list[int], dict | None]:
        """Token ids of the templated prompt (image positions filled in), and what else the
        processor makes of the pictures; None without one."""
        if prompts.is_ids(prompt):
            return [int(token) for token in prompt], None
        pictures = [] if image is None else as_pictures(image)
        asked, swaps = prompts.stand_ins(prompt, self.controls)
        text = self.chat(asked, len(pictures))
        special = self._adds_special(text)
        if pictures:
            batch = self.processor(
                images=[pictures], text=[text], return_tensors="pt", add_special_tokens=special
            )
            ids, extras = batch["input_ids"][0].tolist(), dict(batch)
            for name in ("input_ids", "attention_mask", "labels"):
                extras.pop(name, None)
            if self.image_token_id not in ids:
                raise ValueError(
                    f"model {self.path!r}: its chat template leaves no place for the image; add "
                    "one that does"
                )
            return self._written_out(ids, extras, swaps)
        if self.n_placeholders:
            assert self.template is not None  # who has none feeds no placeholders
            # The target's tokenizer: a drafter's own may have no entry for the image token.
            text = self.template.chat(asked, True)
            text = text.replace("<image>", "<image>" * self.n_placeholders)
            return self.template.tokenizer.encode(text, add_special_tokens=special), None
        ids = self.tokenizer.encode(text, add_special_tokens=special)
        end, word = self.tokenizer.eos_token_id, self.tokenizer.eos_token
        if ids[-1:] == [end] and text != prompt and not text.rstrip().endswith(word):
            ids = ids[:-1]  # a templated prompt does not end with the end of an answer
        return prompts.written_out(ids, swaps, self.tokenizer), None

    def _adds_special(self, text: str) -> bool:
        """Whether the tokenizer adds its own start: as `apply_chat_template` of transformers."""
        speaker = self.template if self.template and not self.sees_images else self
        if speaker.processor is None and speaker.tokenizer.chat_template is not None:
            return False
        bos = self.tokenizer.bos_token
        return not (bos and text.startswith(bos))

    def _written_out(self, ids, extras: dict, swaps: Mapping[str, str]):
        """`prompts.written_out` for ids that come with other entries per token."""
        if not swaps:
            return ids, extras
        names = [name for name in extras if name.endswith(PER_TOKEN)]
        lists = [extras[name][0].tolist() for name in names]
        ids = prompts.written_out(ids, swaps, self.tokenizer, lists)
        changed = {name: torch.tensor([values]) for name, values in zip(names, lists, strict=True)}
        return ids, extras | changed

    def open(self, prompt: Any, image: Any = None) -> HFContext | LlamaContext | SmallContext:
        """A context that has read prompt and image, but not the prompt's last token."""
        if self.template is None:
            _check_pictures(self, prompt, image)
        ids, extras = self.encode(prompt, image)
        if len(ids) > self.max_positions:
            raise PromptTooLong(
                f"prompt: with its template and image it has {len(ids)} tokens, {self.path} "
                f"reads at most {self.max_positions}; shorten it"
            )
        if self.template is None:
            self._check_known(ids)
        return self.context(ids, extras)

    def context(
        self, ids: list[int], extras: dict | None = None
    ) -> HFContext | LlamaContext | SmallContext:
        """A context that has read these ids but the last one."""
        if self.small is not None:
            return SmallContext(self, ids, extras)
        return (HFContext if self.llama is None else LlamaContext)(self, ids, extras)

    def _check_known(self, ids: Sequence[int]) -> None:
        """A target that lacks an id would answer another prompt."""
        for token in ids:
            if not 0 <= token < self.own_vocab_size and token != self.image_token_id:
                word = self.tokenizer.convert_ids_to_tokens(token) if token >= 0 else None
                raise ValueError(
                    f"prompt: id {token} ({word!r}) is beyond the {self.own_vocab_size} that "
                    f"{self.path} knows; leave it out, or use the model's own tokenizer"
                )

    def own_ids(self, token_ids: Sequence[int]) -> list[int]:
        """What is fed for these tokens.

        A drafter that lacks an id which the target said is fed its first token instead: this can
        only cost acceptance, never exactness. A target has all ids that it is given.
        """
        if self.template is None:
            return list(token_ids)
        return [token if token < self.own_vocab_size else 0 for token in token_ids]

    def accepted_by(self, function, extras: Mapping[str, Any]) -> dict[str, Any]:
        """Those of a processor's outputs that a function names, on this model's device."""
        import inspect

        names = inspect.signature(function).parameters
        return {name: self.placed(value) for name, value in extras.items() if name in names}

    def inputs(self, token_ids: Sequence[int], extras: Mapping[str, Any]) -> dict[str, Any]:
        """What the module is called with for these tokens and what the processor made of images."""
        ids = torch.tensor([self.own_ids(token_ids)], device=self.device)
        return {"input_ids": ids} | {name: self.placed(value) for name, value in extras.items()}

    def placed(self, value: Any) -> Any:
        """A processor's output on this model's device; pictures in its number format."""
        if not isinstance(value, Tensor):
            return value
        if value.is_floating_point():
            return value.to(self.device, self.module.dtype)
        return value.to(self.device)

    @torch.inference_mode()
    def image_features(self, extras: Mapping[str, Any]) -> Tensor:
        """What the language model reads in the places of the images' tokens, [n, width]."""
        config = self.module.config
        settings = {
            name: getattr(config, name)
            for name in ("vision_feature_layer", "vision_feature_select_strategy")
        }
        function = self.module.get_image_features
        output = function(**self.accepted_by(function, extras), **settings, return_dict=True)
        return torch.cat(list(output.pooler_output))

    def piece(self, token_id: int) -> str:
        text = self.tokenizer.decode([token_id])
        raw = self.tokenizer.convert_ids_to_tokens(token_id)
        # SentencePiece-style decoders drop the space at the start of a text.
        if raw is not None and raw.startswith("\u2581") and not text.startswith(" "):
            return " " + text
        return text

    def decode(self, token_ids: Sequence[int]) -> str:
        return self.tokenizer.decode(list(token_ids), skip_special_tokens=True).strip()


PER_TOKEN = "token_type_ids"  # how the names of outputs with one entry per token end


def _check_pictures(model: HFModel, prompt: Any, image: Any) -> None:
    """Messages that name places for pictures must come with as many."""
    places = prompts.n_image_parts(prompt)
    given = 0 if image is None else len(image) if isinstance(image, (list, tuple)) else 1
    if places and places != given:
        raise ValueError(
            f"prompt: its messages have places for {places} pictures, image= brings {given}; give "
            "one for each"
        )
    if given and prompts.is_ids(prompt):
        raise ValueError("image: it cannot go with token ids; give a text or messages")
    if model.plan.whole_prompt and not given:
        raise ValueError(f"image=None: {model.path} reads prompts only with a picture; give one")


class HFContext(Watched):
    """One prompt in a transformers cache. Image positions count in `offset`, not in `length`.

    The cache keeps every slot, also where layers see a window or a chunk only: what they may see
    is said by masks, so that any slot can be taken back.
    """

    def __init__(self, model: HFModel, ids: list[int], extras: Mapping[str, Any] | None):
        from transformers import DynamicCache

        plan = model.plan
        image_id = model.image_token_id if extras is not None else None
        text = [token for token in ids if token != image_id]
        limit = plan.positions_for(len(ids), model.path)
        super().__init__(text, limit, offset=len(ids) - len(text))
        self.model = model
        self.images = [slot for slot, token in enumerate(ids) if token == image_id]
        self.cache = DynamicCache()  # without a config, so that no layer forgets
        self.places: list[int] = []  # the position of each slot
        self.shift = plan.position_of_first
        n = len(ids) if plan.whole_prompt else len(ids) - 1
        if n < 1:
            return
        given = {} if extras is None else dict(extras)  # the only place where images are encoded
        for name in given:
            if name.endswith(PER_TOKEN):
                given[name] = given[name][:, :n]
        positions = list(range(n))
        raw = self._prefill(ids[:n], positions, given)
        self.places = positions
        deltas = getattr(getattr(model.module, "model", None), "rope_deltas", None)
        if given and deltas is not None:
            self.shift += int(deltas)
        if plan.whole_prompt:
            self._root, self.fed = model.logits(raw)[-1], self.length

    def _prefill(self, ids: list[int], positions: list[int], given: Mapping[str, Any]) -> Tensor:
        """Feeds a prompt, a long text in pieces and with a progress bar; the last logits [1, n]."""
        size = len(ids) if given or self.model.plan.whole_prompt else PIECE
        firsts = range(0, len(ids), size)
        bar = tqdm(firsts, unit="piece", leave=False, disable=len(firsts) == 1)
        for first in bar:
            part = slice(first, first + size)
            # With images the module finds its own positions, which may have three axes (M-RoPE).
            places = None if given else positions[part]
            raw = self._call(ids[part], places, None, given, keep=1)
            if not first and not bar.disable:
                layers: Any = self.cache.layers
                held = sum(one.keys.nbytes + one.values.nbytes for one in layers)
                whole = held / size * len(ids) / 1e6
                bar.set_description(f"reading the prompt into a cache of {whole:,.1f} MB")
        return raw

    @torch.inference_mode()
    def _call(self, tokens, positions, mask, extras, keep) -> Tensor:
        model = self.model
        takes, device = model.plan.takes, model.device
        settings = model.inputs(tokens, extras)
        settings["cache" if "cache" in takes else "past_key_values"] = self.cache
        if positions is not None and "position_ids" in takes:
            places = [position + self.shift for position in positions]
            settings["position_ids"] = torch.tensor([places], device=device)
        if keep and "logits_to_keep" in takes:
            settings["logits_to_keep"] = keep
        with self._through():
            output = model.module(
                attention_mask=mask,
                use_cache=True,
                **settings,
            )
        return output.logits[0, -keep:].to(device)

    def _run(self, tokens, positions, visible):
        mask = None
        if visible is not None:
            if self.model.only_chains:
                raise ValueError(
                    f"drafter: it proposes a tree, and {self.model.path} is exact for chains only "
                    f"({self.model.only_chains}); use Chain"
                )
            mask = self._masks(visible, positions)
        self.places += positions
        if self.watched:
            self.queries, self.last = [], len(tokens) - 1
        return self.model.logits(self._call(tokens, positions, mask, {}, keep=0))

    def _masks(self, visible: Tensor, positions: list[int]) -> Tensor | dict[str, Tensor]:
        """What is added to attention scores, for each kind of layer where there are several."""
        plan = self.model.plan
        query = torch.tensor(positions)[:, None]
        key = torch.tensor([*self.places, *positions])[None]
        masks = {}
        for kind in plan.kinds:
            seen = visible
            if kind == gate.SLIDING:
                assert plan.window is not None
                seen = visible & (query - key < plan.window)
            elif kind == gate.CHUNKED:
                assert plan.chunk is not None
                seen = visible & (query // plan.chunk == key // plan.chunk)
            # Additive and floating: a bool mask is silently wrong with eager attention.
            dtype = self.model.module.dtype
            hidden = torch.zeros(seen.shape, dtype=dtype)
            hidden.masked_fill_(~seen, torch.finfo(dtype).min)
            masks[kind] = hidden[None, None].to(self.model.device)
        return masks if len(masks) > 1 else next(iter(masks.values()))

    def _through(self) -> AbstractContextManager[None]:
        """Around each forward: what is heard of the attention of its layers."""
        if not self.watched:
            return nullcontext()
        return attention.through(self.model.module, self._note)

    def _note(self, number: int, query: Tensor, key: Tensor, *others: Tensor | None) -> None:
        by_head = query[0].unflatten(0, (key.shape[1], -1))
        self.queries = [*self.queries, by_head]  # layers ask one after another

    def last_queries(self, layer: int) -> Tensor | None:
        return self.queries[layer][:, :, self.last] if self.queries else None

    def _keep(self, slots, n_before):
        self._follow_last(slots, n_before, len(self.places))
        kept = [*range(n_before), *slots]
        straight = kept == list(range(len(kept)))
        self.places = [self.places[slot] for slot in kept]
        layers: list[Any] = self.cache.layers  # of transformers, each kind with parts of its own
        for layer in layers:
            if getattr(layer, "keys", None) is None:  # a layer that reads another one's
                continue
            if straight:
                layer.keys = layer.keys[:, :, : len(kept)]
                layer.values = layer.values[:, :, : len(kept)]
            else:
                index = torch.tensor(kept, device=layer.keys.device)
                layer.keys = layer.keys.index_select(2, index)
                layer.values = layer.values.index_select(2, index)

    @property
    def image_slots(self) -> Sequence[int]:
        return self.images

    def sparse(self, select: Selector, budget: int, over: str = "all") -> HFSparse:
        self.model.check_selector(select)
        return HFSparse(self, select, budget, over)

    def copy(self) -> HFContext:
        other = self._fork(copy.copy(self))
        other.cache, other.places = shared(self.cache), list(self.places)
        return other


def shared(cache):
    """A cache of the same tensors: they are replaced, never written to."""
    other = copy.copy(cache)
    other.layers = [copy.copy(layer) for layer in cache.layers]
    return other


class HFSparse(ByHead, HFContext):
    """Own drafts behind the tensors of an `HFContext`.

    A selector that goes by places alone hides all other slots by a mask, which any model takes; for
    others this context stands in the place of the layers' attention. Neither saves reading: this
    runtime shows what such a drafter says, not what it costs.
    """

    target: HFContext
    model: Any

    def __init__(self, target: HFContext, select: Selector, budget: int, over: str = "all"):
        if not select.by_place:
            target.watch()
        super().__init__(target, select, budget, over)

    def _forget(self) -> None:
        self.cache, self.shift = shared(self.target.cache), self.target.shift
        self.places = list(self.target.places)
        HFContext._keep(self, [], self.base)
        self.read = torch.ones(self.base, dtype=torch.bool)
        if self.select.by_place:
            self.read[:] = False
            self.read[chosen_by_place(self)] = True
        ByHead._forget(self)

    def _run(self, tokens, positions, visible):
        if visible is None:
            n, slots = len(tokens), len(self.places) + len(tokens)
            visible = torch.ones(n, slots, dtype=torch.bool).tril_(slots - n)
        visible = visible & torch.cat(
            [self.read, torch.ones(visible.shape[1] - self.base, dtype=torch.bool)]
        )
        return super()._run(tokens, positions, visible)

    def _through(self) -> AbstractContextManager[None]:
        if self.select.by_place:
            return nullcontext()
        return attention.through(self.model.module, self._layer)

    def _layer(self, number: int, query: Tensor, key: Tensor, value: Tensor, mask: Any) -> Tensor:
        cached = key[0, :, : self.base], value[0, :, : self.base]
        own = key[0, :, self.base :], value[0, :, self.base :]
        return self._attend(number, query, cached, own, mask[0, 0, :, self.base :])

    def copy(self) -> HFSparse:
        other = super().copy()
        other.cache, other.places = shared(self.cache), list(self.places)
        return other


def _eos_ids(module, tokenizer) -> frozenset[int]:
    """End tokens: of the generation config, else of the config, else of the tokenizer."""
    for source in (module.generation_config, module.config.get_text_config(), tokenizer):
        ids = getattr(source, "eos_token_id", None)
        if ids is not None:
            return frozenset(ids if isinstance(ids, list) else [ids])
    return frozenset()


def _language_parameters(module, sees_images: bool) -> int:
    """Parameters of the language model, tied weights once; vision tower and projector left out."""
    parts = [module]
    if sees_images:
        parts = [module.get_decoder(), module.get_output_embeddings()]
    unique = {id(p): _numbers(p) for part in parts for p in part.parameters()}
    return sum(unique.values())


def _numbers(parameter: Tensor) -> int:
    """How many numbers a parameter stands for: four-bit weights are packed in pairs."""
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else math.prod(state.shape)
