"""Tiny random-weight models of the architectures that people bring, as complete folders.

Every folder is made with transformers' own classes and looks like one from a hub: config, weights
in safetensors, tokenizer, generation config, and for models that see images the processor files
and a chat template with the family's own markup. The models are small (two to four layers, width
32), hold every kind of layer of their family, and have windows that a short prompt overruns.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

WORDS = 300  # entries of the tokenizer: unk, bos, eos, the bytes and some that no text holds
WINDOW = 8  # of sliding and chunked layers: far shorter than any prompt here
SIDE, PATCH = 32, 8  # pixels of a square picture and of a patch of it
LAST_NORMS = ("norm", "final_layernorm", "final_layer_norm", "layer_norm", "ln_f", "norm_f")
GAIN = 1.2  # matrices are drawn this wide over the root of their fan-in


@dataclass(frozen=True)
class Family:
    """One architecture and what is expected of it.

    `expect` is "exact" (all methods), "chains" (trees are refused) or "refused"; `words` are what
    a refusal must mention, in lower case. `noise` perturbs the drafter: enough that some drafts
    are rejected, not all. `build(folder, seed)` writes the folder and gives its path.
    """

    name: str
    sees: bool
    build: Callable[..., str] = field(repr=False)
    expect: str = "exact"
    words: tuple[str, ...] = ()
    noise: float = 0.1


# --------------------------------------------------------------------------------- what all share


def tokenizer(specials: Mapping[str, str] | None = None, plain: tuple[str, ...] = ()):
    """A byte-level tokenizer with `WORDS` entries, named special tokens, and further ones."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    words += [f"entry{index}" for index in range(len(words), WORDS)]
    bpe = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, []))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    made = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="</s>",
        extra_special_tokens=dict(specials or {}),
    )
    if plain:
        made.add_tokens(list(plain), special_tokens=True)
    return made


@torch.no_grad()
def redraw(module, seed: int, silent: tuple[int, ...] = ()) -> None:
    """Draws all parameters anew, wide enough that greedy text varies and attention matters.

    Tokens in `silent` (the end, image markup) get a logit of 0 or nearly so: texts do not stop
    early, and no answer holds the mark of a picture.
    """
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() < 2:
            parameter += 0.1 * noise.to(parameter)
        else:
            fan_in = parameter[0].numel() if parameter.dim() > 3 else parameter.shape[-1]
            parameter.copy_(noise * GAIN / math.sqrt(fan_in))
    head = module.get_output_embeddings()
    if head is None:
        return
    if head.weight is module.get_input_embeddings().weight:
        # The last word's own embedding must not win for ever: the layers have to outweigh it.
        head.weight *= 0.3
        decoder = module.get_decoder()
        for name in LAST_NORMS:
            if hasattr(decoder, name):
                getattr(decoder, name).weight += 14.0
        if hasattr(decoder, "word_embeddings_layernorm"):  # BLOOM's, which would undo it
            decoder.word_embeddings_layernorm.weight *= 0.1
    else:
        head.weight *= 4.0  # else every law is nearly uniform
    for index in silent:
        head.weight[index] = 0


@torch.no_grad()
def perturb(module, noise: float, seed: int = 1) -> None:
    """Adds noise of this share of each matrix's spread."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        if parameter.dim() >= 2:
            drawn = torch.randn(parameter.shape, generator=generator).to(parameter)
            parameter += noise * parameter.std() * drawn


@contextmanager
def _drawn(seed: int) -> Iterator[None]:
    """What is drawn in here depends on the seed alone, and nothing outside on it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _save(module, folder: Path, made_tokenizer) -> str:
    if module.can_generate():
        module.generation_config.eos_token_id = 2
    module.save_pretrained(folder)
    made_tokenizer.save_pretrained(folder)
    return str(folder)


SMALL = {
    "vocab_size": WORDS,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
    "tie_word_embeddings": False,
}


# ------------------------------------------------------------------------ models that see pictures


@dataclass(frozen=True)
class Sight:
    """How a family that sees pictures is put together; `tokens` are its named special tokens."""

    config: str
    text: tuple[str, dict[str, Any]]
    vision: tuple[str, dict[str, Any]]
    processor: str
    pictures: tuple[str, dict[str, Any]]  # image processor
    template: str
    tokens: Mapping[str, str]
    settings: Mapping[str, Any] = field(default_factory=dict)  # of the config; "@name" is an id
    processing: Mapping[str, Any] = field(default_factory=dict)  # of the processor
    plain: tuple[str, ...] = ()
    video: str = ""


def build_sight(sight: Sight, folder: Path, seed: int = 0, draw: int = 0) -> str:
    """Writes a vision-language folder as hubs hold it and gives its path."""
    import transformers

    folder = Path(folder)
    made = tokenizer(sight.tokens, sight.plain)
    with _drawn(seed):  # for the few parameters that `redraw` only changes
        module = transformers.AutoModelForImageTextToText.from_config(_sight_config(sight, made))
    silent = tuple(made.convert_tokens_to_ids([*sight.tokens.values(), *sight.plain]))
    redraw(module, seed + draw, (2, *silent))
    _save(module, folder, made)
    name, settings = sight.pictures
    if name.endswith("Pil"):
        pictures = getattr(transformers, name)(**settings).to_dict()
    else:  # needs torchvision even to be made
        pictures = dict(settings)
    # Folders on hubs name the class without its backend.
    pictures["image_processor_type"] = name.removesuffix("Pil")
    pictures["processor_class"] = sight.processor
    _write(folder / "preprocessor_config.json", pictures)
    _write(
        folder / "processor_config.json",
        {"processor_class": sight.processor, **sight.processing},
    )
    if sight.video:
        video = {"video_processor_type": sight.video, "processor_class": sight.processor}
        _write(folder / "video_preprocessor_config.json", video)
    if sight.template:
        (folder / "chat_template.jinja").write_text(sight.template, encoding="utf-8")
    return str(folder)


def _write(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=1, default=str), encoding="utf-8")


def _sight_config(sight: Sight, made):
    import transformers

    def ids(settings: Mapping[str, Any]) -> dict[str, Any]:
        return {
            key: made.convert_tokens_to_ids(value[1:])
            if isinstance(value, str) and value.startswith("@")
            else copy.deepcopy(value)
            for key, value in settings.items()
        }

    name, settings = sight.text
    text = getattr(transformers, name)(**ids({**settings, "vocab_size": len(made)}))
    name, settings = sight.vision
    vision = getattr(transformers, name)(**ids(settings))
    config = getattr(transformers, sight.config)
    return config(text_config=text, vision_config=vision, **ids(sight.settings))


def turns(before: str, image: str, after: str, start: str, opening: str = "") -> str:
    """A chat template: `before` role and parts `after`, then `start`, behind an `opening`.

    `{role}` in `before` is the role of the message, `image` stands where a picture is.
    """
    return (
        f"{opening}{{% for message in messages %}}{before}"
        "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
        "{% for part in message['content'] %}{% if part['type'] == 'image' %}"
        f"{image}{{% else %}}{{{{ part['text'] }}}}{{% endif %}}{{% endfor %}}{{% endif %}}"
        f"{after}{{% endfor %}}{{% if add_generation_prompt %}}{start}{{% endif %}}"
    ).replace("{role}", "{{ message['role'] }}")


USER = turns("{{ message['role'].upper() }}: ", "<image>\n", " ", "ASSISTANT:")
CHATML = turns("<|im_start|>{role}\n", "<image>\n", "<|im_end|>\n", "<|im_start|>assistant\n")
QWEN = CHATML.replace("<image>\n", "<|vision_start|><|image_pad|><|vision_end|>")
INST = turns("[INST] ", "<image>\n", " [/INST]", "", "{{ bos_token }}")
GEMMA = turns(
    "<start_of_turn>{role}\n",
    "<start_of_image>",
    "<end_of_turn>\n",
    "<start_of_turn>model\n",
    "{{ bos_token }}",
)
IDEFICS = turns(
    "{{ message['role'].capitalize() }}:",
    "<image>",
    "<end_of_utterance>\n",
    "Assistant:",
    "<|im_start|>",
)
PIXTRAL = turns("[INST]", "[IMG]", "[/INST]", "", "{{ bos_token }}")
COHERE = turns(
    "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>",
    "<image>",
    "<|END_OF_TURN_TOKEN|>",
    "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
    "{{ bos_token }}",
)
LLAMA3 = turns(
    "<|start_header_id|>{role}<|end_header_id|>\n\n",
    "<|image|>",
    "<|eot_id|>",
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "{{ bos_token }}",
)
LLAMA4 = LLAMA3.replace("start_header_id", "header_start").replace("end_header_id", "header_end")
LLAMA4 = LLAMA4.replace("eot_id", "eot")

TOWER = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "patch_size": PATCH,
}
CLIP = ("CLIPVisionConfig", {**TOWER, "projection_dim": 32})
SIGLIP = ("SiglipVisionConfig", {**TOWER, "vision_use_head": False})
N_PATCHES = (SIDE // PATCH) ** 2
LLAVA_SETTINGS = {
    "image_token_index": "@<image>",
    "image_seq_length": N_PATCHES,
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
}
LLAVA_PROCESSING = {
    "patch_size": PATCH,
    "vision_feature_select_strategy": "default",
    "image_token": "<image>",
    "num_additional_image_tokens": 1,
}
CLIP_PICTURES = (
    "CLIPImageProcessorPil",
    {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}},
)
SIGLIP_PICTURES = ("SiglipImageProcessorPil", {"size": {"height": SIDE, "width": SIDE}})
IMAGE = {"image_token": "<image>"}
TILES = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE]]
MISTRAL = ("MistralConfig", {**SMALL, "sliding_window": None})
QWEN2 = ("Qwen2Config", SMALL)
HEAD = {**SMALL, "head_dim": 16, "num_attention_heads": 2, "num_key_value_heads": 1}
GEMMA1 = ("GemmaConfig", {**SMALL, "head_dim": 8, "tie_word_embeddings": True})
MROPE = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
QWEN_TOKENS = {
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
    "vision_start_token": "<|vision_start|>",
    "vision_end_token": "<|vision_end|>",
}
QWEN_IDS = {
    "image_token_id": "@<|image_pad|>",
    "video_token_id": "@<|video_pad|>",
    "vision_start_token_id": "@<|vision_start|>",
    "vision_end_token_id": "@<|vision_end|>",
}
QWEN_PICTURES = (
    "Qwen2VLImageProcessorPil",
    {"patch_size": PATCH, "min_pixels": 16 * 16, "max_pixels": 48 * 48},
)
QWEN3_PATCHES = {**QWEN_PICTURES[1], "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
QWEN3_PICTURES = ("Qwen2VLImageProcessorPil", QWEN3_PATCHES)
QWEN_TOWER = {"depth": 2, "num_heads": 2, "patch_size": PATCH, "spatial_merge_size": 2}
QWEN3_TOWER = {
    **QWEN_TOWER,
    "hidden_size": 32,
    "intermediate_size": 48,
    "out_hidden_size": 32,
    "num_position_embeddings": 16,
}
PIXTRAL_TOWER = (
    "PixtralVisionConfig",
    {**TOWER, "num_hidden_layers": 2, "head_dim": 16, "image_size": 64},
)
PIXTRAL_TOKENS = {
    "image_token": "[IMG]",
    "image_break_token": "[IMG_BREAK]",
    "image_end_token": "[IMG_END]",
}
CROPS = {
    "size": {"height": SIDE, "width": SIDE},
    "crop_to_patches": True,
    "min_patches": 1,
    "max_patches": 4,
}
IDEFICS_TOKENS = {
    "fake_image_token": "<fake_token_around_image>",
    "image_token": "<image>",
    "end_of_utterance_token": "<end_of_utterance>",
    "global_image_token": "<global-img>",
}
IDEFICS_PLAIN = (
    *(f"<row_{i + 1}_col_{j + 1}>" for i in range(3) for j in range(3)),
    "<|im_start|>",
)
IDEFICS_SIZES = {
    "size": {"longest_edge": 2 * SIDE},
    "max_image_size": {"longest_edge": SIDE},
}
IDEFICS_TEXT = ("LlamaConfig", SMALL)
CHATML_PLAIN = ("<|im_start|>", "<|im_end|>")


def _llava(text, **changes) -> Sight:
    sight = {
        "config": "LlavaConfig",
        "text": text,
        "vision": CLIP,
        "processor": "LlavaProcessor",
        "pictures": CLIP_PICTURES,
        "template": USER,
        "tokens": IMAGE,
        "settings": LLAVA_SETTINGS,
        "processing": LLAVA_PROCESSING,
    }
    return Sight(**{**sight, **changes})


def _llava_next(text, template: str) -> Sight:
    return _llava(
        text,
        config="LlavaNextConfig",
        processor="LlavaNextProcessor",
        template=template,
        pictures=(
            "LlavaNextImageProcessorPil",
            {**CLIP_PICTURES[1], "image_grid_pinpoints": TILES},
        ),
        settings={**LLAVA_SETTINGS, "image_grid_pinpoints": TILES},
    )


def _qwen(name: str, text: dict[str, Any], vision: dict[str, Any]) -> Sight:
    new = name in ("Qwen3VL", "Qwen3_5")
    return Sight(
        f"{name}Config",
        (f"{name}TextConfig", {**HEAD, "rope_parameters": MROPE, **text}),
        (f"{name}VisionConfig", vision),
        "Qwen3VLProcessor" if new else f"{name}Processor",
        QWEN3_PICTURES if new else QWEN_PICTURES,
        QWEN,
        QWEN_TOKENS,
        QWEN_IDS,
        plain=CHATML_PLAIN,
        video="Qwen3VLVideoProcessor" if new else "Qwen2VLVideoProcessor",
    )


HYBRID = {
    "num_hidden_layers": 3,
    "layer_types": ["linear_attention", "linear_attention", "full_attention"],
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
GEMMA3_TEXT = {
    **SMALL,
    "head_dim": 8,
    "query_pre_attn_scalar": 8,
    "num_hidden_layers": 3,
    "tie_word_embeddings": True,
    "sliding_window": WINDOW,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}
COHERE2 = {
    **SMALL,
    "num_hidden_layers": 3,
    "head_dim": 8,
    "tie_word_embeddings": True,
    "sliding_window": WINDOW,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
    "logit_scale": 0.5,
}
LLAMA4_TEXT = {
    **SMALL,
    "num_hidden_layers": 4,
    "head_dim": 8,
    "intermediate_size_mlp": 48,
    "num_local_experts": 4,
    "interleave_moe_layer_step": 2,
    "no_rope_layer_interval": 4,
    "attention_chunk_size": WINDOW,
}

OPT = {
    "hidden_size": 32,
    "ffn_dim": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "word_embed_proj_dim": 32,
    "vocab_size": WORDS,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}

SIGHTS: dict[str, Sight] = {
    "llava_llama": _llava(("LlamaConfig", SMALL)),
    "llava_mistral": _llava(MISTRAL),
    "llava_mistral_sliding": _llava(("MistralConfig", {**SMALL, "sliding_window": 4096})),
    # Wide enough that by two layers the answer still sees the picture.
    "llava_mistral_filled": _llava(("MistralConfig", {**SMALL, "sliding_window": 8 * WINDOW})),
    "llava_qwen2": _llava(QWEN2, template=CHATML, plain=CHATML_PLAIN),
    "llava_siglip_gemma": _llava(
        GEMMA1,
        vision=SIGLIP,
        pictures=SIGLIP_PICTURES,
        settings={**LLAVA_SETTINGS, "vision_feature_select_strategy": "full"},
        processing={
            **LLAVA_PROCESSING,
            "vision_feature_select_strategy": "full",
            "num_additional_image_tokens": 0,
        },
    ),
    "vipllava": _llava(
        ("LlamaConfig", SMALL),
        config="VipLlavaConfig",
        settings={
            "image_token_index": "@<image>",
            "image_seq_length": N_PATCHES,
            "vision_feature_layers": [-2, -1, 1],
        },
    ),
    "llava_next": _llava_next(("LlamaConfig", SMALL), USER),
    "llava_next_mistral": _llava_next(MISTRAL, INST),
    "llava_onevision": _llava(
        QWEN2,
        config="LlavaOnevisionConfig",
        vision=SIGLIP,
        processor="LlavaOnevisionProcessor",
        pictures=(
            "LlavaOnevisionImageProcessorPil",
            {**SIGLIP_PICTURES[1], "image_grid_pinpoints": TILES},
        ),
        template=CHATML,
        tokens={**IMAGE, "video_token": "<video>"},
        plain=CHATML_PLAIN,
        settings={
            "image_token_index": "@<image>",
            "video_token_index": "@<video>",
            "vision_feature_layer": -1,
            "vision_feature_select_strategy": "full",
            "image_grid_pinpoints": TILES,
        },
        processing={"num_image_tokens": N_PATCHES, "vision_feature_select_strategy": "full"},
        video="LlavaOnevisionVideoProcessor",
    ),
    "qwen2_vl": _qwen("Qwen2VL", {}, {**QWEN_TOWER, "embed_dim": 32, "hidden_size": 32}),
    "qwen2_5_vl": _qwen(
        "Qwen2_5_VL",
        {},
        {
            **QWEN_TOWER,
            "hidden_size": 32,
            "intermediate_size": 48,
            "out_hidden_size": 32,
            "window_size": 2 * 2 * PATCH,
            "fullatt_block_indexes": [1],
        },
    ),
    "qwen3_vl": _qwen(
        "Qwen3VL",
        {"rope_parameters": {**MROPE, "mrope_interleaved": True}},
        {**QWEN3_TOWER, "deepstack_visual_indexes": [0]},
    ),
    "qwen3_5": _qwen(
        "Qwen3_5",
        {**HYBRID, "rope_parameters": {**MROPE, "mrope_interleaved": True}},
        QWEN3_TOWER,
    ),
    "idefics3": Sight(
        "Idefics3Config",
        IDEFICS_TEXT,
        ("Idefics3VisionConfig", TOWER),
        "Idefics3Processor",
        ("Idefics3ImageProcessorPil", IDEFICS_SIZES),
        IDEFICS,
        IDEFICS_TOKENS,
        {"image_token_id": "@<image>", "scale_factor": 2},
        {"image_seq_len": N_PATCHES // 4},
        IDEFICS_PLAIN,
    ),
    "smolvlm": Sight(
        "SmolVLMConfig",
        IDEFICS_TEXT,
        ("SmolVLMVisionConfig", TOWER),
        "SmolVLMProcessor",
        ("SmolVLMImageProcessorPil", IDEFICS_SIZES),
        IDEFICS,
        IDEFICS_TOKENS,
        {"image_token_id": "@<image>", "scale_factor": 2},
        {"image_seq_len": N_PATCHES // 4},
        IDEFICS_PLAIN,
        "SmolVLMVideoProcessor",
    ),
    "gemma3": Sight(
        "Gemma3Config",
        ("Gemma3TextConfig", GEMMA3_TEXT),
        SIGLIP,
        "Gemma3Processor",
        ("Gemma3ImageProcessorPil", SIGLIP_PICTURES[1]),
        GEMMA,
        {
            "image_token": "<image_soft_token>",
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
        },
        {
            "mm_tokens_per_image": N_PATCHES,
            "boi_token_index": "@<start_of_image>",
            "eoi_token_index": "@<end_of_image>",
            "image_token_index": "@<image_soft_token>",
        },
        {"image_seq_length": N_PATCHES},
        ("<start_of_turn>", "<end_of_turn>"),
    ),
    "paligemma": Sight(
        "PaliGemmaConfig",
        GEMMA1,
        SIGLIP,
        "PaliGemmaProcessor",
        ("SiglipImageProcessorPil", {**SIGLIP_PICTURES[1], "image_seq_length": N_PATCHES}),
        "",
        IMAGE,
        {"image_token_index": "@<image>", "projection_dim": 32},
    ),
    "paligemma_with_template": Sight(
        "PaliGemmaConfig",
        GEMMA1,
        SIGLIP,
        "PaliGemmaProcessor",
        ("SiglipImageProcessorPil", {**SIGLIP_PICTURES[1], "image_seq_length": N_PATCHES}),
        turns("", "<image>", "", ""),
        IMAGE,
        {"image_token_index": "@<image>", "projection_dim": 32},
    ),
    "internvl": Sight(
        "InternVLConfig",
        QWEN2,
        (
            "InternVLVisionConfig",
            {**TOWER, "image_size": [SIDE, SIDE], "patch_size": [PATCH, PATCH]},
        ),
        "InternVLProcessor",
        ("GotOcr2ImageProcessorPil", CROPS),
        CHATML.replace("<image>", "<IMG_CONTEXT>"),
        {
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
        {
            "image_token_id": "@<IMG_CONTEXT>",
            "image_seq_length": N_PATCHES // 4,
            "tie_word_embeddings": False,
        },
        {"image_seq_length": N_PATCHES // 4},
        CHATML_PLAIN,
        "InternVLVideoProcessor",
    ),
    "llava_pixtral": _llava(
        MISTRAL,
        vision=PIXTRAL_TOWER,
        processor="PixtralProcessor",
        pictures=(
            "PixtralImageProcessorPil",
            {"size": {"longest_edge": 48}, "patch_size": {"height": PATCH, "width": PATCH}},
        ),
        template=PIXTRAL,
        tokens=PIXTRAL_TOKENS,
        plain=("[INST]", "[/INST]"),
        settings={
            "image_token_index": "@[IMG]",
            "vision_feature_layer": -1,
            "vision_feature_select_strategy": "full",
        },
        processing={"patch_size": PATCH},
    ),
    "mistral3": Sight(
        "Mistral3Config",
        MISTRAL,
        PIXTRAL_TOWER,
        "PixtralProcessor",
        (
            "PixtralImageProcessorPil",
            {"size": {"longest_edge": 64}, "patch_size": {"height": PATCH, "width": PATCH}},
        ),
        PIXTRAL,
        PIXTRAL_TOKENS,
        {"image_token_index": "@[IMG]", "spatial_merge_size": 2, "tie_word_embeddings": False},
        {"patch_size": PATCH, "spatial_merge_size": 2},
        ("[INST]", "[/INST]"),
    ),
    "aya_vision": Sight(
        "AyaVisionConfig",
        ("Cohere2Config", COHERE2),
        SIGLIP,
        "AyaVisionProcessor",
        ("GotOcr2ImageProcessorPil", CROPS),
        COHERE,
        IMAGE,
        {"image_token_index": "@<|IMG_PATCH|>", "downsample_factor": 2},
        {"patch_size": PATCH, "img_size": SIDE, "downsample_factor": 2},
        (
            "<|START_OF_IMG|>",
            "<|END_OF_IMG|>",
            "<|IMG_PATCH|>",
            "<|IMG_LINE_BREAK|>",
            *(f"TILE_{i}" for i in range(1, 5)),
            "TILE_GLOBAL",
            "<|START_OF_TURN_TOKEN|>",
            "<|END_OF_TURN_TOKEN|>",
            "<|USER_TOKEN|>",
            "<|CHATBOT_TOKEN|>",
        ),
    ),
    "mllama": Sight(
        "MllamaConfig",
        ("MllamaTextConfig", {**SMALL, "num_hidden_layers": 3, "cross_attention_layers": [1]}),
        (
            "MllamaVisionConfig",
            {
                "hidden_size": 32,
                "intermediate_size": 48,
                "num_hidden_layers": 2,
                "num_global_layers": 1,
                "attention_heads": 2,
                "intermediate_layers_indices": [0, 1],
                "vision_output_dim": 96,
                "image_size": SIDE,
                "patch_size": PATCH,
            },
        ),
        "MllamaProcessor",
        ("MllamaImageProcessorPil", {"size": {"height": SIDE, "width": SIDE}}),
        LLAMA3,
        {"image_token": "<|image|>"},
        {"image_token_index": "@<|image|>"},
        plain=("<|python_tag|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    ),
    "llama4": Sight(
        "Llama4Config",
        ("Llama4TextConfig", LLAMA4_TEXT),
        (
            "Llama4VisionConfig",
            {
                **TOWER,
                "num_hidden_layers": 2,
                "vision_output_dim": 32,
                "projector_input_dim": 32,
                "projector_output_dim": 32,
            },
        ),
        "Llama4Processor",
        (
            "Llama4ImageProcessor",
            {"size": {"height": SIDE, "width": SIDE}, "resize_to_max_canvas": False},
        ),
        LLAMA4,
        {},
        {
            "boi_token_index": "@<|image_start|>",
            "eoi_token_index": "@<|image_end|>",
            "image_token_index": "@<|patch|>",
        },
        {"patch_size": PATCH},
        (
            "<|image|>",
            "<|image_start|>",
            "<|image_end|>",
            "<|patch|>",
            "<|tile_x_separator|>",
            "<|tile_y_separator|>",
            "<|header_start|>",
            "<|header_end|>",
            "<|eot|>",
        ),
    ),
    "blip2_opt": Sight(
        "Blip2Config",
        ("OPTConfig", OPT),
        ("Blip2VisionConfig", TOWER),
        "Blip2Processor",
        ("BlipImageProcessorPil", {"size": {"height": SIDE, "width": SIDE}}),
        "",
        IMAGE,
        {
            "qformer_config": {
                "hidden_size": 32,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "intermediate_size": 48,
                "cross_attention_frequency": 1,
            },
            "num_query_tokens": 4,
            "image_token_index": "@<image>",
        },
        {"num_query_tokens": 4},
    ),
    "florence2": Sight(
        "Florence2Config",
        (
            "BartConfig",
            {
                "d_model": 32,
                "encoder_layers": 2,
                "decoder_layers": 2,
                "encoder_attention_heads": 2,
                "decoder_attention_heads": 2,
                "encoder_ffn_dim": 48,
                "decoder_ffn_dim": 48,
                "max_position_embeddings": 256,
                "bos_token_id": 1,
                "eos_token_id": 2,
                "pad_token_id": 2,
                "decoder_start_token_id": 2,
            },
        ),
        (
            "Florence2VisionConfig",
            {
                "depths": [1, 1],
                "patch_size": [7, 3],
                "patch_stride": [4, 2],
                "patch_padding": [3, 1],
                "patch_prenorm": [False, True],
                "embed_dim": [16, 32],
                "num_heads": [2, 2],
                "num_groups": [2, 2],
                "window_size": 4,
                "projection_dim": 32,
            },
        ),
        "Florence2Processor",
        (
            "CLIPImageProcessorPil",
            {
                "size": {"height": SIDE, "width": SIDE},
                "do_center_crop": False,
                "image_seq_length": N_PATCHES,
            },
        ),
        "",
        IMAGE,
        {"image_token_id": "@<image>"},
    ),
}


def build_without_processor(folder: Path, seed: int = 0) -> str:
    """A LLaVA of which only weights, config and tokenizer were copied."""
    made = build_sight(SIGHTS["llava_llama"], folder, seed)
    for name in ("preprocessor_config.json", "processor_config.json"):
        (Path(folder) / name).unlink()
    return made


# --------------------------------------------------------------------------- models of text alone


def build_text(
    config: str, settings: Mapping[str, Any], folder: Path, seed: int = 0, draw: int = 0
) -> str:
    """Writes a folder of a text model and gives its path."""
    import transformers

    made = getattr(transformers, config)(**copy.deepcopy(dict(settings)))
    if made.is_encoder_decoder:
        auto = transformers.AutoModelForSeq2SeqLM
    elif type(made) in transformers.MODEL_FOR_MASKED_LM_MAPPING and not made.is_decoder:
        auto = transformers.AutoModelForMaskedLM
    else:
        auto = transformers.AutoModelForCausalLM
    with _drawn(seed):
        module = auto.from_config(made)
    redraw(module, seed + draw, (2,))
    return _save(module, Path(folder), tokenizer())


def _kinds(*kinds: str) -> dict[str, Any]:
    """Layers of these kinds, in this order, with a short window."""
    names = {"s": "sliding_attention", "f": "full_attention"}
    return {
        "num_hidden_layers": len(kinds),
        "layer_types": [names[kind] for kind in kinds],
        "sliding_window": WINDOW,
    }


ENDS = {"vocab_size": WORDS, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
GPT = {**ENDS, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}
MHA = {**SMALL, "num_key_value_heads": 4}
WIDTHS8 = {**SMALL, "head_dim": 8}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
LOCAL_MOE = {"num_local_experts": 4, "num_experts_per_tok": 2}
FALCON = {**ENDS, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
FALCON |= {"max_position_embeddings": 512, "tie_word_embeddings": False}
MLA = {"kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
ROPE3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [2.0, 3.0, 4.0, 5.0],
}
MAMBA_PARTS = {"mamba_d_state": 8, "mamba_d_conv": 4, "mamba_expand": 2}
HEADED_MAMBA = {**MAMBA_PARTS, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_chunk_size": 8}
STATE = {"expect": "refused", "words": ("state",)}
ENCODER = {"expect": "refused", "words": ("encoder-decoder",)}
ALIBI = {"expect": "chains", "words": ("alibi",)}

TEXTS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "llama": ("LlamaConfig", SMALL, {}),
    "llama_llama3_rope": ("LlamaConfig", {**SMALL, "rope_parameters": ROPE3}, {}),
    "llama_tied_mha": ("LlamaConfig", {**MHA, "tie_word_embeddings": True}, {}),
    "llama_dynamic_rope": (
        "LlamaConfig",
        {
            **SMALL,
            "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0},
        },
        {},
    ),
    "llama_padded_vocabulary": ("LlamaConfig", {**SMALL, "vocab_size": WORDS + 4}, {}),
    "mistral": ("MistralConfig", {**SMALL, "sliding_window": None}, {}),
    "mistral_sliding": ("MistralConfig", {**SMALL, "sliding_window": WINDOW}, {}),
    "mistral_sliding_unfilled": ("MistralConfig", {**SMALL, "sliding_window": 4096}, {}),
    "mixtral": ("MixtralConfig", {**SMALL, **LOCAL_MOE, "sliding_window": None}, {}),
    "mixtral_sliding": ("MixtralConfig", {**SMALL, **LOCAL_MOE, "sliding_window": WINDOW}, {}),
    "qwen2": ("Qwen2Config", {**SMALL, "tie_word_embeddings": True}, {}),
    "qwen2_5_untied": ("Qwen2Config", {**SMALL, "vocab_size": WORDS + 4}, {}),
    "qwen2_sliding": (
        "Qwen2Config",
        {**SMALL, "use_sliding_window": True, **_kinds("f", "s", "s"), "max_window_layers": 1},
        {},
    ),
    "qwen3": ("Qwen3Config", WIDTHS8, {}),
    "qwen3_moe": ("Qwen3MoeConfig", {**WIDTHS8, **MOE}, {}),
    "qwen3_next": (
        "Qwen3NextConfig",
        {**WIDTHS8, **HYBRID, **MOE, "shared_expert_intermediate_size": 24},
        STATE,
    ),
    "qwen3_5_text": ("Qwen3_5TextConfig", {**WIDTHS8, **HYBRID}, STATE),
    "gemma": ("GemmaConfig", {**WIDTHS8, "tie_word_embeddings": True}, {}),
    "gemma2": (
        "Gemma2Config",
        {
            **WIDTHS8,
            **_kinds("s", "f", "s"),
            "query_pre_attn_scalar": 8,
            "tie_word_embeddings": True,
        },
        {},
    ),
    "gemma3_text": ("Gemma3TextConfig", GEMMA3_TEXT, {}),
    "gemma3n_text": (
        "Gemma3nTextConfig",
        {
            **WIDTHS8,
            **_kinds("s", "f", "s", "f"),
            "tie_word_embeddings": True,
            "intermediate_size": [48] * 4,
            "vocab_size_per_layer_input": WORDS,
            "hidden_size_per_layer_input": 8,
            "altup_num_inputs": 2,
            "num_kv_shared_layers": 2,
            "laurel_rank": 4,
            "activation_sparsity_pattern": [0.5, 0.0, 0.0, 0.0],
        },
        {},
    ),
    "gemma4_text": (
        "Gemma4TextConfig",
        {
            **WIDTHS8,
            **_kinds("s", "f", "s", "f"),
            "tie_word_embeddings": True,
            "vocab_size_per_layer_input": WORDS,
            "hidden_size_per_layer_input": 8,
            "global_head_dim": 16,
            "num_global_key_value_heads": 1,
        },
        {},
    ),
    "phi": ("PhiConfig", MHA, {}),
    "phi3": ("Phi3Config", {**MHA, "original_max_position_embeddings": 2048}, {}),
    "phi3_sliding": (
        "Phi3Config",
        {**MHA, "original_max_position_embeddings": 2048, "sliding_window": WINDOW},
        {},
    ),
    "phi3_longrope": (
        "Phi3Config",
        {**MHA, "original_max_position_embeddings": 1024, "rope_parameters": LONGROPE},
        {},
    ),
    "phi3_longrope_beyond": (
        "Phi3Config",
        {**MHA, "original_max_position_embeddings": 16, "rope_parameters": LONGROPE},
        {},
    ),
    "starcoder2": ("Starcoder2Config", {**SMALL, "sliding_window": None}, {}),
    "starcoder2_sliding": ("Starcoder2Config", {**SMALL, "sliding_window": WINDOW}, {}),
    "gpt2": ("GPT2Config", GPT, {}),
    "gpt_bigcode": ("GPTBigCodeConfig", GPT, {}),
    "gpt_neo_local": (
        "GPTNeoConfig",
        {
            **ENDS,
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 4,
            "max_position_embeddings": 256,
            "attention_types": [[["global", "local"], 1]],
            "window_size": WINDOW,
        },
        {"expect": "chains", "words": ("local attention",)},
    ),
    "gpt_neox": ("GPTNeoXConfig", MHA, {}),
    "gptj": ("GPTJConfig", {**GPT, "rotary_dim": 4}, {}),
    "opt": ("OPTConfig", OPT, {}),
    "bloom": ("BloomConfig", {**ENDS, "hidden_size": 32, "n_layer": 2, "n_head": 4}, ALIBI),
    "falcon_rotary": ("FalconConfig", FALCON, {}),
    "falcon_new": (
        "FalconConfig",
        {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2},
        {},
    ),
    "falcon_alibi": ("FalconConfig", {**FALCON, "alibi": True}, ALIBI),
    "mpt": (
        "MptConfig",
        {**ENDS, "d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 256},
        ALIBI,
    ),
    "stablelm": ("StableLmConfig", SMALL, {}),
    "olmo2": ("Olmo2Config", SMALL, {}),
    "olmo3": ("Olmo3Config", {**SMALL, **_kinds("s", "s", "f")}, {}),
    "olmoe": ("OlmoeConfig", {**SMALL, "num_experts": 4, "num_experts_per_tok": 2}, {}),
    "smollm3": ("SmolLM3Config", {**SMALL, "num_hidden_layers": 4}, {}),
    "granite": ("GraniteConfig", {**SMALL, "attention_multiplier": 0.35}, {}),
    "glm4": ("Glm4Config", WIDTHS8, {}),
    "glm4_moe": (
        "Glm4MoeConfig",
        {
            **WIDTHS8,
            "moe_intermediate_size": 24,
            "num_experts_per_tok": 2,
            "n_routed_experts": 4,
            "first_k_dense_replace": 1,
            "num_mtp_layers": 0,
        },
        {},
    ),
    "cohere": ("CohereConfig", {**SMALL, "logit_scale": 0.5, "tie_word_embeddings": True}, {}),
    "cohere2": ("Cohere2Config", COHERE2, {}),
    "nemotron": ("NemotronConfig", WIDTHS8, {}),
    "exaone4": ("Exaone4Config", {**SMALL, **_kinds("s", "s", "s", "f")}, {}),
    "ernie4_5": ("Ernie4_5Config", {**WIDTHS8, "tie_word_embeddings": True}, {}),
    "hunyuan_dense": ("HunYuanDenseV1Config", WIDTHS8, {}),
    "seed_oss": ("SeedOssConfig", WIDTHS8, {}),
    "apertus": ("ApertusConfig", SMALL, {}),
    "arcee": ("ArceeConfig", SMALL, {}),
    "deepseek_v3": (
        "DeepseekV3Config",
        {
            **MHA,
            **MLA,
            "q_lora_rank": 16,
            "moe_intermediate_size": 24,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_group": 2,
            "topk_group": 1,
            "first_k_dense_replace": 1,
            "num_mtp_layers": 0,
        },
        {},
    ),
    "gpt_oss": ("GptOssConfig", {**WIDTHS8, **LOCAL_MOE, **_kinds("s", "f")}, {}),
    "ministral": ("MinistralConfig", {**WIDTHS8, **_kinds("s", "f", "s")}, {}),
    "ministral3": ("Ministral3Config", WIDTHS8, {}),
    "llama4_text": ("Llama4TextConfig", LLAMA4_TEXT, {}),
    "xglm": (
        "XGLMConfig",
        {
            **ENDS,
            "d_model": 32,
            "ffn_dim": 48,
            "num_layers": 2,
            "attention_heads": 4,
            "max_position_embeddings": 256,
        },
        {},
    ),
    "mamba": (
        "MambaConfig",
        {**ENDS, "hidden_size": 32, "state_size": 8, "num_hidden_layers": 2},
        STATE,
    ),
    "mamba2": (
        "Mamba2Config",
        {
            **ENDS,
            "hidden_size": 32,
            "state_size": 8,
            "num_hidden_layers": 2,
            "num_heads": 4,
            "head_dim": 16,
            "n_groups": 2,
            "chunk_size": 8,
        },
        STATE,
    ),
    "rwkv": ("RwkvConfig", {**ENDS, "hidden_size": 32, "num_hidden_layers": 2}, STATE),
    "jamba": (
        "JambaConfig",
        {
            **SMALL,
            **MAMBA_PARTS,
            "num_hidden_layers": 2,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "mamba_dt_rank": 4,
            "use_mamba_kernels": False,
        },
        STATE,
    ),
    "bamba": ("BambaConfig", {**SMALL, **HEADED_MAMBA, "attn_layer_indices": [1]}, STATE),
    "falcon_h1": ("FalconH1Config", {**SMALL, **HEADED_MAMBA, "mamba_d_ssm": 64}, STATE),
    "granitemoehybrid": (
        "GraniteMoeHybridConfig",
        {
            **SMALL,
            **HEADED_MAMBA,
            **LOCAL_MOE,
            "shared_intermediate_size": 24,
            "layer_types": ["mamba", "attention"],
        },
        STATE,
    ),
    "minimax": (
        "MiniMaxConfig",
        {
            **WIDTHS8,
            **LOCAL_MOE,
            "block_size": 8,
            "layer_types": ["linear_attention", "full_attention"],
        },
        STATE,
    ),
    "lfm2": (
        "Lfm2Config",
        {
            **SMALL,
            "block_multiple_of": 8,
            "tie_word_embeddings": True,
            "layer_types": ["conv", "full_attention"],
        },
        STATE,
    ),
    "recurrent_gemma": (
        "RecurrentGemmaConfig",
        {
            **SMALL,
            "num_hidden_layers": 3,
            "lru_width": 32,
            "attention_window_size": WINDOW,
            "tie_word_embeddings": True,
        },
        STATE,
    ),
    "t5": (
        "T5Config",
        {**ENDS, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
        | {"decoder_start_token_id": 2},
        ENCODER,
    ),
    "bart": ("BartConfig", SIGHTS["florence2"].text[1] | {"vocab_size": WORDS}, ENCODER),
    "bert": (
        "BertConfig",
        {
            "vocab_size": WORDS,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 48,
        },
        {"expect": "refused", "words": ("both directions",)},
    ),
}


# ------------------------------------------------------------------------------------ the registry


# Where the first draw says one word for ever, a later one that does not.
DRAWS = {
    "qwen2": 1,
    "gemma": 7,
    "gemma3": 4,
    "llava_siglip_gemma": 5,
    "bloom": 6,
    "mpt": 1,
    "cohere": 2,
    "xglm": 8,
    "apertus": 7,
    "qwen3_moe": 3,
    "vipllava": 1,
    "llava_next": 1,
    "llava_next_mistral": 1,
    "llava_onevision": 1,
    "qwen3_vl": 2,
    "llava_pixtral": 2,
    "paligemma": 2,
    "paligemma_with_template": 2,
    "mistral3": 1,
}
NOISES = {"gemma3n_text": 0.02, "gemma4_text": 0.02}


def _seen() -> Iterator[Family]:
    expected: dict[str, dict[str, Any]] = {
        "qwen3_5": STATE,
        "mllama": {"expect": "refused", "words": ("cross-attention",)},
        "florence2": ENCODER,
        "blip2_opt": {"expect": "refused", "words": ("cache",)},
    }
    if importlib.util.find_spec("torchvision") is None:  # it has no other image processor
        expected["llama4"] = {"expect": "refused", "words": ("torchvision",)}
    for name, sight in SIGHTS.items():
        build = partial(build_sight, sight, draw=DRAWS.get(name, 0))
        yield Family(name, True, build, noise=0.04, **expected.get(name, {}))
    refused: dict[str, Any] = {"expect": "refused", "words": ("processor",)}
    yield Family("no_processor", True, build_without_processor, **refused)


def _read() -> Iterator[Family]:
    for name, (config, settings, expected) in TEXTS.items():
        build = partial(build_text, config, settings, draw=DRAWS.get(name, 0))
        yield Family(name, False, build, noise=NOISES.get(name, 0.1), **expected)


FAMILIES: dict[str, Family] = {family.name: family for family in (*_read(), *_seen())}


# ---------------------------------------------------------------------------------------- drafters


def drafter_of(
    family: Family, folder: str | Path, out: Path, noise: float | None = None, rows: int = 0
) -> str:
    """Writes a text-only drafter for a folder of that family and gives its path.

    It has the same tokenizer, and its weights are a perturbed copy of the language model: of the
    same class, or of the text class of which a model that sees pictures is made. `noise` is the
    share of each matrix's spread, by default the family's. With `rows` it has so many ids, and a
    tokenizer without special tokens of its own.
    """
    import transformers

    noise = family.noise if noise is None else noise
    if not family.sees:
        module = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    else:
        target = transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype="float32")
        module = _language_model(target)
    perturb(module, noise)
    if rows:
        module.resize_token_embeddings(rows, mean_resizing=False)
        return _save(module, Path(out), tokenizer())
    made = transformers.AutoTokenizer.from_pretrained(folder)
    made.chat_template = None
    return _save(module, Path(out), made)


def _language_model(target):
    """The language model of one that sees pictures, as a model of text with the same weights."""
    import transformers

    text = target.config.get_text_config()
    plain = {"qwen2_vl_text": "Qwen2Config", "qwen2_5_vl_text": "Qwen2Config"}
    plain["qwen3_vl_text"] = "Qwen3Config"
    if text.model_type in plain:  # on text alone, M-RoPE is the plain rope
        settings = text.to_dict()
        for name in ("model_type", "layer_types", "sliding_window"):
            settings.pop(name, None)
        settings["rope_parameters"] = {"rope_type": "default", "rope_theta": 10000.0}
        text = getattr(transformers, plain[text.model_type])(**settings)
    text.use_bidirectional_attention = False  # only a prefix with a picture is read both ways
    text.tie_word_embeddings = getattr(target.config, "tie_word_embeddings", True)
    module = transformers.AutoModelForCausalLM.from_config(text)
    module.get_decoder().load_state_dict(target.get_decoder().state_dict())
    head = target.get_output_embeddings()
    module.get_output_embeddings().load_state_dict(head.state_dict())
    return module
