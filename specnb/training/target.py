"""The embedded target: a LLaVA of 8 layers x 384 that sees, trained in stages.

The tower on what every cell shows *and which cell it is*: without the second a tower forgets
positions, and no language model after it can tell places. Then the projector on words, terse
look-ups in every direction (place to thing, thing to facts, thing to thing) until they are right,
questions, and at last all tasks. Until the last stages words that tell facts count more than
others: how a fact is said is random, and that noise hides what the picture teaches.
The text model is trained shallow and grown by identity blocks at the end, which changes no logit,
and trained on at its full depth.
"""

import copy
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from specnb.scenes import attribute_of
from specnb.training.data import (
    IGNORE,
    IMAGE,
    N_PATCHES,
    TRAINING_SEED,
    batches,
    cell_labels,
    pixels,
)
from specnb.training.loop import Stage, train

TOWER = Stage("tower", steps=1800, batch=64, lr=2e-3)
ALIGN = Stage("align", steps=250, batch=48, lr=2e-3)
FACTS = Stage("facts", steps=300, batch=64, lr=1e-3, final=0.8)
LOOKUP = Stage("lookup", steps=700, batch=96, lr=8e-4, final=0.5, data=1_000)
LOOKUP_WEIGHTS = {"lookup": 0.8, "facts": 0.2}
QUESTION = Stage("question", steps=1100, batch=64, lr=6e-4, final=0.5, data=4_000)
MIX = Stage("mix", steps=2700, batch=48, lr=5e-4, final=0.06, data=8_000)
DEEP = Stage("deep", steps=200, batch=48, lr=1e-4, warmup=20, final=0.05, data=14_000)
QUESTION_WEIGHTS = {
    "question": 0.45,
    "lookup": 0.15,
    "relate": 0.25,
    "places": 0.08,
    "listing": 0.07,
}
MIX_WEIGHTS = {
    "caption": 0.4,
    "conversation": 0.17,
    "question": 0.17,
    "science": 0.14,
    "lookup": 0.05,
    "relate": 0.05,
    "blind": 0.02,
}
FACT_WEIGHT = 3.0
SHALLOW_LAYERS, LAYERS = 4, 8
CHAT_TEMPLATE = (  # the shape of LLaVA-1.5's: USER: <image> text ASSISTANT: answer
    "{% for message in messages %}{% if message['role'] == 'user' %}USER: "
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>\n"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %} ASSISTANT:"
    "{% else %} {{ message['content'][0]['text'] }}</s>{% endif %}{% endfor %}"
)


def build(tokenizer, layers: int, seed: int = 0):
    """An untrained `LlavaForConditionalGeneration` with `layers` blocks in its language model."""
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
    )

    torch.manual_seed(seed)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=192,
            intermediate_size=512,
            num_hidden_layers=4,
            num_attention_heads=4,
            image_size=96,
            patch_size=32,
            projection_dim=192,
        ),
        text_config=LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=384,
            intermediate_size=1024,
            num_hidden_layers=layers,
            num_attention_heads=6,
            num_key_value_heads=6,
            max_position_embeddings=1024,
            initializer_range=0.04,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        ),
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=N_PATCHES,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
    )
    model = LlavaForConditionalGeneration(config)
    model.set_attn_implementation("eager")  # a fifth faster here: rows are short, and on the CPU
    return model  # the backward pass of the fused kernel is slow


def patch_features(model, images: Tensor) -> Tensor:
    """[batch, 9, width] what the tower sees in every cell."""
    return model.model.vision_tower(images, output_hidden_states=True).hidden_states[-1][:, 1:]


class CellHeads(nn.Module):
    """Linear read-out of kind, colour, size, background and place; trains the tower only."""

    def __init__(self, width: int):
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(width, n) for n in (9, 6, 2, 4, N_PATCHES))

    def forward(self, features: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, float]]:
        filled = labels[..., 0] > 0
        cells = torch.arange(N_PATCHES, device=labels.device).expand(labels.shape[:2])
        wanted = (*labels.unbind(-1), cells)
        loss: Any = 0.0
        figures = {}
        names = ("kind", "colour", "size", "background", "place")
        for name, head, want in zip(names, self.heads, wanted, strict=True):
            logits = head(features)
            if name in ("colour", "size"):
                logits, want = logits[filled], want[filled]
            loss = loss + F.cross_entropy(logits.flatten(0, -2), want.flatten())
            figures[name] = (logits.argmax(-1) == want).float().mean().item()
        return loss, figures


def tower_stage(model, folder: Path, device: str) -> None:
    """The tower on what is in every cell and on which cell it is."""
    heads = CellHeads(model.config.vision_config.hidden_size).to(device)
    tower = model.model.vision_tower

    def loss_of(step):
        items = _scene_items(TOWER.batch, step)
        labels = cell_labels([item.scene for item in items]).to(device)
        return heads(patch_features(model, pixels(items).to(device)), labels)

    train(TOWER, nn.ModuleDict({"tower": tower, "heads": heads}), loss_of, folder)
    tower.requires_grad_(False)


def align_stage(model, tokenizer, folder: Path, device: str) -> None:
    """The projected patch must predict the words of its cell through the embedding table."""
    from specnb.scenes.world import BACKGROUNDS, COLOURS, KINDS, SIZES

    def ids(words):
        return torch.tensor([tokenizer.encode(f" {w}", add_special_tokens=False)[0] for w in words])

    kinds, colours, sizes = ids(KINDS), ids(COLOURS), ids(SIZES)
    grounds = ids(BACKGROUNDS)
    places = ids(("top", "middle", "bottom")), ids(("left", "center", "right"))
    embedding = model.model.language_model.embed_tokens.weight

    def loss_of(step):
        items = _scene_items(ALIGN.batch, 10_000 + step)
        labels = cell_labels([item.scene for item in items])
        wanted = torch.zeros(*labels.shape[:2], embedding.shape[0])
        cell = torch.arange(N_PATCHES).expand(labels.shape[:2])
        filled = (labels[..., 0] > 0).float()[..., None]
        wanted.scatter_add_(2, places[0][cell // 3][..., None], torch.ones_like(filled))
        wanted.scatter_add_(2, places[1][cell % 3][..., None], torch.ones_like(filled))
        wanted.scatter_add_(2, grounds[labels[..., 3]][..., None], torch.ones_like(filled))
        for index, words in ((0, kinds), (1, colours), (2, sizes)):
            value = (labels[..., index] - int(index == 0)).clamp(min=0)
            wanted.scatter_add_(2, words[value][..., None], filled)
        wanted = (wanted / wanted.sum(-1, keepdim=True)).to(device)
        with torch.no_grad():
            features = patch_features(model, pixels(items).to(device))
        logits = model.model.multi_modal_projector(features) @ embedding.T
        loss = F.cross_entropy(logits.flatten(0, 1), wanted.flatten(0, 1))
        entropy = -(wanted * wanted.clamp(min=1e-9).log()).sum(-1).mean()
        return loss, {"kl": (loss - entropy).item()}

    trained = nn.ModuleDict(
        {
            "projector": model.model.multi_modal_projector,
            "embed": model.model.language_model.embed_tokens,
        }
    )
    train(ALIGN, trained, loss_of, folder)


def text_stage(
    stage: Stage, weights, model, tokenizer, folder: Path, device: str, fact_weight: float = 1.0
) -> None:
    """Projector and language model on answers; the tower does not move."""
    model.model.vision_tower.requires_grad_(False)
    per_token = token_weights(tokenizer, fact_weight).to(device)
    stream: Any = None
    at = -1

    def loss_of(step):
        nonlocal stream, at
        if step != at:
            stream = batches(tokenizer, weights, stage.batch, stage.data + step, image=True)
        at = step + 1
        ids, labels, images = (tensor.to(device) for tensor in next(stream))
        return answer_loss(model, ids, labels, images, per_token)

    train(stage, model, loss_of, folder)


def token_weights(tokenizer, fact_weight: float) -> Tensor:
    """[vocabulary] how much each token counts in the loss: `fact_weight` where it tells a fact."""
    words = [tokenizer.decode([index]) for index in range(len(tokenizer))]
    return torch.tensor([fact_weight if attribute_of(word) else 1.0 for word in words])


def answer_loss(model, ids, labels, images, per_token) -> tuple[Tensor, dict[str, float]]:
    """Weighted cross-entropy over answer tokens; the head runs on those positions only.

    `facts` is the accuracy on tokens that tell facts, where some weight is not 1.
    """
    with torch.autocast(ids.device.type, dtype=torch.bfloat16):
        hidden = model.model(input_ids=ids, pixel_values=images, use_cache=False).last_hidden_state
        learnt = labels != IGNORE
        logits = model.lm_head(hidden[learnt])
    wanted = labels[learnt]
    loss = F.cross_entropy(logits.float(), wanted, per_token)
    hits = (logits.argmax(-1) == wanted).float()
    figures = {"accuracy": hits.mean().item(), "tokens": float(ids.numel())}
    facts = per_token[wanted] > 1
    if facts.any():
        figures["facts"] = hits[facts].mean().item()
    return loss, figures


def grow(model, tokenizer, layers: int):
    """The same model with more blocks: copies with zeroed outputs, so no logit changes."""
    deep = build(tokenizer, layers)
    deep.model.vision_tower = model.model.vision_tower
    deep.model.multi_modal_projector = model.model.multi_modal_projector
    shallow, text = model.model.language_model, deep.model.language_model
    text.embed_tokens.weight.data.copy_(shallow.embed_tokens.weight)
    text.norm.weight.data.copy_(shallow.norm.weight)
    for index, block in enumerate(text.layers):
        source = index * len(shallow.layers) // layers
        block.load_state_dict(shallow.layers[source].state_dict())
        if index > 0 and (index - 1) * len(shallow.layers) // layers == source:
            block.self_attn.o_proj.weight.data.zero_()
            block.mlp.down_proj.weight.data.zero_()
    return deep


def _scene_items(n: int, step: int):
    from specnb.scenes import example

    first = (TRAINING_SEED + 7) * 1_000_000 + step * n
    return [example("caption", first + index) for index in range(n)]


def save(model, tokenizer, folder: Path) -> None:
    """bf16 weights, config, tokenizer and processor: a plain transformers folder."""
    from transformers import CLIPImageProcessor, LlavaProcessor

    processor = LlavaProcessor(
        CLIPImageProcessor(
            size={"height": 96, "width": 96},
            do_center_crop=False,
            image_mean=[0.5] * 3,
            image_std=[0.5] * 3,
        ),
        tokenizer,
        patch_size=32,
        vision_feature_select_strategy="default",
        image_token=IMAGE,
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )
    bf16 = copy.deepcopy(model).to(torch.bfloat16)
    bf16.generation_config.eos_token_id = tokenizer.eos_token_id
    bf16.save_pretrained(folder)
    processor.save_pretrained(folder)


def train_target(tokenizer, work: Path, out: Path, device: str = "cpu") -> None:
    """All stages, each from its last checkpoint; the finished model is written to `out`."""
    model = build(tokenizer, SHALLOW_LAYERS).to(device)
    tower_stage(model, work, device)
    align_stage(model, tokenizer, work, device)
    text = (model, tokenizer, work, device)
    text_stage(FACTS, {"facts": 1.0}, *text, FACT_WEIGHT)
    text_stage(LOOKUP, LOOKUP_WEIGHTS, *text, FACT_WEIGHT)
    text_stage(QUESTION, QUESTION_WEIGHTS, *text, FACT_WEIGHT)
    text_stage(MIX, MIX_WEIGHTS, *text, FACT_WEIGHT)
    model = grow(model, tokenizer, LAYERS).to(device)
    text_stage(DEEP, MIX_WEIGHTS, model, tokenizer, work, device)
    save(model, tokenizer, out)
