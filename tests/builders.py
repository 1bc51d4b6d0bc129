"""Random-weight model folders with the shapes of real ones, saved by transformers itself."""

from __future__ import annotations

from pathlib import Path

import torch

TEMPLATE = (  # LLaVA-1.5's: USER: <image> newline text ASSISTANT:
    "{% for message in messages %}USER: {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %} ASSISTANT:{% endfor %}"
)
INIT = 0.3  # wide enough that greedy text is not one token for ever


def byte_tokenizer(size: int, extra: tuple[str, ...] = (), prefix: str = "entry"):
    """A byte-level tokenizer with `size` entries (ids 0-2: unk, bos, eos) and extra ones."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    words += [f"{prefix}{index}" for index in range(len(words), size)]
    bpe = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, []))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": list(extra)})
    return tokenizer


def llama_config(**change):
    """Of a Llama of two layers over 50 ids; `change` replaces or adds settings."""
    from transformers import LlamaConfig

    return LlamaConfig(
        **{
            "vocab_size": 50,
            "hidden_size": 32,
            "intermediate_size": 40,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "initializer_range": 0.2,
            **change,
        }
    )


def llama(
    folder: Path,
    vocab_size: int = 300,
    seed: int = 0,
    tokenizer_size: int | None = None,
    positions: int = 2048,
    eos: int | list[int] | None = 2,
    layers: int = 2,
    prefix: str = "entry",
    noise_of: Path | None = None,
    noise: float = 0.02,
) -> str:
    """A small Llama; with `noise_of` a perturbed copy of that one, so that some drafts hold."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    if noise_of:
        model = LlamaForCausalLM.from_pretrained(noise_of)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += noise * parameter.std() * torch.randn_like(parameter)
    else:
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=vocab_size,
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=layers,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=positions,
                initializer_range=INIT,
                bos_token_id=1,
                eos_token_id=eos,
            )
        )
    model.generation_config.eos_token_id = eos
    model.save_pretrained(folder)
    byte_tokenizer(tokenizer_size or vocab_size, prefix=prefix).save_pretrained(folder)
    return str(folder)


def gpt2(folder: Path, seed: int = 0, vocab_size: int = 300, layers: int = 2) -> str:
    """A small GPT-2 with learnt positions."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=vocab_size,
        n_positions=256,
        n_embd=32,
        n_layer=layers,
        n_head=4,
        initializer_range=INIT,
        bos_token_id=1,
        eos_token_id=2,
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    byte_tokenizer(vocab_size).save_pretrained(folder)
    return str(folder)


def llava15(folder: Path, seed: int = 0) -> str:
    """LLaVA-1.5's interface: text vocabulary 32,064, image id 32,000, pad 32,001, 576 tokens."""
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    torch.manual_seed(seed)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=3,
            num_attention_heads=2,
            image_size=336,
            patch_size=14,
            projection_dim=32,
        ),
        text_config=LlamaConfig(
            vocab_size=32064,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=4096,
            initializer_range=INIT,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=32001,
        ),
        image_token_index=32000,
        image_seq_length=576,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        pad_token_id=32001,
    )
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    tokenizer = byte_tokenizer(32000, ("<image>", "<pad>"))
    tokenizer.pad_token = "<pad>"
    LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}),
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        image_token="<image>",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    ).save_pretrained(folder)
    return str(folder)
