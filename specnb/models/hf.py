"""Any decoder-only or LLaVA-type transformers model: loading, templates, exact rollback."""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from specnb.models import machine
from specnb.models.base import Context, Pair, PromptTooLong
from specnb.models.llama import Llama, LlamaContext, why_not

EMBEDDED = Path(__file__).resolve().parents[2] / "data" / "models"
DTYPES = ("auto", "float32", "bfloat16", "float16")
DEVICES = ("auto", "cpu", "cuda")
RUNTIMES = ("auto", "transformers")
SMALL = 4_000_000  # parameters; such matrices gain nothing from bfloat16


def load_pair(target: str, draft: str, device: str, dtype: str, runtime: str) -> Pair:
    """See `specnb.load_pair`."""
    goal = load_model(target or str(EMBEDDED / "target"), device, dtype, runtime)
    helper = load_model(draft or str(EMBEDDED / "drafter"), device, dtype, runtime)
    if dtype == "auto" and helper.device.type == "cpu" and helper.n_parameters < SMALL:
        helper = load_model(helper.path, device, "float32", runtime)  # nothing is faster for it
    check_same_tokens(goal, helper)
    return Pair(goal, helper.beside(goal))


def load_model(
    folder: str, device: str = "auto", dtype: str = "auto", runtime: str = "auto"
) -> HFModel:
    """A model from a local folder or hub id; safetensors only, no remote code.

    Errors: ValueError naming what is missing or wrong, before any weight is read.
    """
    if device not in DEVICES:
        raise ValueError(f"device={device!r}: choose one of {', '.join(DEVICES)}")
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r}: choose one of {', '.join(DTYPES)}")
    if runtime not in RUNTIMES:
        raise ValueError(f"runtime={runtime!r}: choose one of {', '.join(RUNTIMES)}")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    elif device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device='cuda': this machine has no CUDA device, use device='cpu'")
    kind = machine.dtype() if dtype == "auto" and device == "cpu" else dtype
    check_folder(folder)

    with _quiet() as transformers:
        return _load(transformers, folder, device, kind, runtime)


def _load(transformers, folder: str, device: str, kind: str, runtime: str) -> HFModel:
    common = {"trust_remote_code": False, "local_files_only": Path(folder).is_dir()}
    try:
        config = transformers.AutoConfig.from_pretrained(folder, **common)
    except OSError as error:
        raise ValueError(
            f"model {folder!r}: no such folder, and no model of this name could be fetched; give a "
            "folder that holds config.json, tokenizer and *.safetensors, or a hub id while online"
        ) from error
    weights = {"dtype": kind, "use_safetensors": True, **common}
    if not hasattr(config, "vision_config"):
        module = transformers.AutoModelForCausalLM.from_pretrained(folder, **weights)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **common)
        return HFModel(module.to(device).eval(), tokenizer, str(folder), runtime=runtime)
    processor = transformers.AutoProcessor.from_pretrained(folder, **common)
    if not hasattr(processor, "image_processor"):
        raise ValueError(
            f"model {folder!r}: it sees images, but has no image processor; add "
            "processor_config.json (or preprocessor_config.json)"
        )
    module = transformers.AutoModelForImageTextToText.from_pretrained(folder, **weights)
    module = module.to(device).eval()
    return HFModel(module, processor.tokenizer, str(folder), processor, runtime)


@contextmanager
def _quiet() -> Iterator[Any]:
    """transformers without progress bars and advice; real errors are raised, not logged."""
    import transformers

    logging = transformers.utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield transformers
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def check_folder(folder: str) -> None:
    """Says what a local model folder lacks; hub ids are left to transformers."""
    path = Path(folder)
    if not path.exists():
        if path.is_absolute() or folder.startswith((".", "~")) or folder.count("/") != 1:
            raise ValueError(f"model {folder!r}: there is no such folder; check the path")
        return  # "owner/name" may be a hub id
    if not path.is_dir():
        raise ValueError(f"model {folder!r}: this is a file; give the folder that holds it")
    if not (path / "config.json").is_file():
        raise ValueError(f"model {folder!r}: config.json is missing; give a transformers folder")
    names = {file.name for file in path.iterdir()}
    weights = {name for name in names if name.endswith(".safetensors")}
    if "model.safetensors.index.json" in names:
        index = json.loads((path / "model.safetensors.index.json").read_text())
        missing = sorted(set(index["weight_map"].values()) - weights)
        if missing:
            raise ValueError(f"model {folder!r}: {missing[0]} is missing; copy the folder again")
    elif "model.safetensors" not in weights:
        pickles = sorted(n for n in names if n.endswith((".bin", ".pt", ".pth", ".pkl", ".ckpt")))
        if pickles:
            raise ValueError(
                f"model {folder!r}: {pickles[0]} is a pickle, which may run code; convert the "
                "weights to safetensors"
            )
        raise ValueError(f"model {folder!r}: model.safetensors is missing; copy the folder again")
    if not names & {"tokenizer.json", "tokenizer.model", "vocab.json"}:
        raise ValueError(f"model {folder!r}: it has no tokenizer; add tokenizer.json")


def check_same_tokens(target: HFModel, draft: HFModel) -> None:
    """Refuses a drafter whose ids mean other tokens; ids that only one side has are fine."""
    ours, theirs = (
        {index: token for token, index in model.tokenizer.get_vocab().items()}
        for model in (target, draft)
    )
    for index in range(min(target.vocab_size, draft.vocab_size)):
        a, b = ours.get(index), theirs.get(index)
        if a is not None and b is not None and a != b:
            raise ValueError(
                f"target {target.path!r} and draft {draft.path!r} have different tokenizers: "
                f"id {index} is {a!r} in the target and {b!r} in the drafter; use a drafter that "
                "was trained with the target's tokenizer"
            )


def as_picture(image: Any):
    """A PIL picture in RGB, upright, from a picture, a path or an open file.

    ValueError where it cannot be.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    name = type(image).__name__
    if isinstance(image, (str, Path)):
        name = str(image)
        if not Path(image).is_file():
            raise ValueError(f"image={name!r}: there is no such file; check the path")
    if isinstance(image, (str, Path, io.IOBase)):
        try:
            image = Image.open(image)
        except UnidentifiedImageError:
            raise ValueError(f"image={name!r}: this is no picture; give a PNG or JPEG") from None
    if not isinstance(image, Image.Image):
        raise ValueError(f"image={name}: give a PIL picture or the path of a picture file")
    try:
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I;16"):  # Pillow would cut 16 bits off at 255: all white
            image = image.point(lambda value: value / 256, "L")
        if "A" in image.mode or "transparency" in image.info:
            rgba = image.convert("RGBA")  # transparent parts are shown on white, as on a page
            return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
        return image.convert("RGB")
    except (OSError, SyntaxError) as error:
        raise ValueError(
            f"image={name!r}: the picture is damaged ({error}); get it anew"
        ) from error


class HFModel:
    """A transformers model behind the `Model` contract.

    `vocab_size` is the width of its logits here; beside a target (see `beside`) a drafter's
    logits are cut or filled with -inf to the target's width.
    """

    def __init__(self, module, tokenizer, path: str, processor=None, runtime: str = "auto"):
        self.module, self.tokenizer, self.path, self.processor = module, tokenizer, path, processor
        self.sees_images = processor is not None
        text = module.config.get_text_config()
        self.own_vocab_size = self.vocab_size = module.get_output_embeddings().weight.shape[0]
        self.max_positions = text.max_position_embeddings
        self.device, self.dtype = module.device, module.dtype
        self.eos_ids = _eos_ids(module, tokenizer)
        self.image_token_id = getattr(module.config, "image_token_id", None)
        self.n_parameters = _language_parameters(module, self.sees_images)
        self.template: HFModel | None = None  # the target whose template a drafter follows
        self.n_placeholders = 0  # raw image tokens left in a text-only prompt, for comparison
        known = set(tokenizer.get_vocab().values())
        self._allow(torch.tensor([index in known for index in range(self.own_vocab_size)]))
        if any(kind == "sliding_attention" for kind in getattr(text, "layer_types", None) or ()):
            raise ValueError(f"model {path!r}: sliding-window attention cannot be rolled back")
        reason = "asked for" if runtime == "transformers" else why_not(module)
        self.runtime = f"transformers runtime ({reason})" if reason else "lean runtime"
        self.llama = None if reason else Llama.of(module)

    def beside(self, target: HFModel) -> HFModel:
        """The same weights as a drafter for `target`: its template, its vocabulary.

        Ids that the drafter lacks get probability 0; ids that the target lacks are removed
        before the drafter's softmax. The target's law is never altered.
        """
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

    def with_image_placeholders(self, n: int) -> HFModel:
        """A text-only drafter whose prompt keeps `n` raw image tokens, as other software does."""
        other = copy.copy(self)
        other.n_placeholders = n
        return other

    def logits(self, raw: Tensor) -> Tensor:
        """The module's logits [n, own vocab] in this model's vocabulary; unknown ids are -inf."""
        extra = self.vocab_size - raw.shape[-1]
        if extra:  # a negative number of columns is cut off
            raw = torch.nn.functional.pad(raw, (0, extra))
        if raw.dtype != torch.float64:
            raw = raw.float()
        return raw if self._forbidden is None else raw.masked_fill(self._forbidden, -torch.inf)

    def chat(self, prompt: str, image: bool = False) -> str:
        """The prompt in the chat template, if there is one; `<image>` stands in it with `image`."""
        if self.template is not None and not self.sees_images:
            return self.template.chat(prompt, image)
        speaker = self.processor or self.tokenizer
        if getattr(speaker, "chat_template", None) is None:
            if self.sees_images:
                raise ValueError(
                    f"model {self.path!r}: it has no chat template, so nothing says where the "
                    "image goes; add chat_template.jinja"
                )
            return prompt  # a base model goes on from the text as it stands
        content = [{"type": "image"}] if image else []
        content.append({"type": "text", "text": prompt})
        message = {"role": "user", "content": content if self.sees_images else prompt}
        return speaker.apply_chat_template([message], add_generation_prompt=True, tokenize=False)

    def encode(self, prompt: str, image: Any = None) -> tuple[list[int], Tensor | None]:
        """Token ids of the templated prompt (image positions filled in) and pixel values."""
        text = self.chat(prompt, image is not None)
        bos = self.tokenizer.bos_token
        special = not (bos and text.startswith(bos))
        if image is not None:
            batch = self.processor(
                images=as_picture(image), text=text, return_tensors="pt", add_special_tokens=special
            )
            return batch["input_ids"][0].tolist(), batch["pixel_values"]
        if self.n_placeholders:
            # The target's tokenizer: a drafter's own may have no entry for the image token.
            text = self.template.chat(prompt, True)
            text = text.replace("<image>", "<image>" * self.n_placeholders)
            return self.template.tokenizer.encode(text, add_special_tokens=special), None
        return self.tokenizer.encode(text, add_special_tokens=special), None

    def open(self, prompt: str, image: Any = None) -> HFContext:
        """A context that has read prompt and image, but not the prompt's last token."""
        ids, pixels = self.encode(prompt, image)
        if len(ids) > self.max_positions:
            raise PromptTooLong(
                f"prompt: with its template and image it has {len(ids)} tokens, {self.path} "
                f"reads at most {self.max_positions}; shorten it"
            )
        return (HFContext if self.llama is None else LlamaContext)(self, ids, pixels)

    def own_ids(self, token_ids: Sequence[int]) -> list[int]:
        """What is fed for these tokens.

        A drafter that lacks an id which the target said is fed its first token instead: this can
        only cost acceptance, never exactness.
        """
        return [token if token < self.own_vocab_size else 0 for token in token_ids]

    @torch.inference_mode()
    def image_features(self, pixels: Tensor) -> Tensor:
        """What the language model reads in the places of an image's tokens, [n, width]."""
        config = self.module.config
        output = self.module.get_image_features(
            pixel_values=pixels.to(self.device, self.module.dtype),
            vision_feature_layer=config.vision_feature_layer,
            vision_feature_select_strategy=config.vision_feature_select_strategy,
            return_dict=True,
        )
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


class HFContext(Context):
    """One prompt in a transformers cache. Image positions count in `offset`, not in `length`."""

    def __init__(self, model: HFModel, ids: list[int], pixels: Tensor | None):
        from transformers import DynamicCache

        image_id = model.image_token_id if pixels is not None else None
        text = [token for token in ids if token != image_id]
        super().__init__(text, model.max_positions, offset=len(ids) - len(text))
        self.model = model
        self.cache = DynamicCache(config=model.module.config.get_text_config())
        if len(ids) > 1:
            extra = {}
            if pixels is not None:  # the only place where the image is encoded
                extra["pixel_values"] = pixels.to(model.device, model.module.dtype)
            self._call(ids[:-1], list(range(len(ids) - 1)), None, extra, keep=1)

    @torch.inference_mode()
    def _call(self, tokens, positions, mask, extra, keep) -> Tensor:
        device = self.model.device
        ids = torch.tensor([self.model.own_ids(tokens)], device=device)
        output = self.model.module(
            input_ids=ids,
            position_ids=torch.tensor([positions], device=device),
            attention_mask=mask,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=keep,
            **extra,
        )
        return output.logits[0]

    def _run(self, tokens, positions, visible):
        mask = None
        if visible is not None:
            # Additive and floating: a bool mask is silently wrong with eager attention.
            dtype = self.model.module.dtype
            hidden = torch.zeros(visible.shape, dtype=dtype)
            hidden.masked_fill_(~visible, torch.finfo(dtype).min)
            mask = hidden[None, None].to(self.model.device)
        return self.model.logits(self._call(tokens, positions, mask, {}, keep=0))

    def _keep(self, slots, n_before):
        straight = slots == list(range(n_before, n_before + len(slots)))
        for layer in self.cache.layers:
            if straight:
                end = n_before + len(slots)
                layer.keys, layer.values = layer.keys[:, :, :end], layer.values[:, :, :end]
            else:
                index = torch.tensor([*range(n_before), *slots], device=layer.keys.device)
                layer.keys = layer.keys.index_select(2, index)
                layer.values = layer.values.index_select(2, index)

    def copy(self) -> HFContext:
        other = self._fork(copy.copy(self))
        other.cache = copy.copy(self.cache)
        # Cache tensors are replaced, never written to, so a fork may share them.
        other.cache.layers = [copy.copy(layer) for layer in self.cache.layers]
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
    parts = [module.model.language_model, module.lm_head] if sees_images else [module]
    unique = {id(p): p.numel() for part in parts for p in part.parameters()}
    return sum(unique.values())
