"""A drafter that sees with its target's eyes: features encoded once, pooled, in its own width.

The target's vision tower and projector run once a prompt, for the target; what its language model
reads in the places of a picture (`features`) is averaged over a coarser grid, projected to the
drafter's width, and read before the text (2404.08856; target's projector kept, as in 2505.10526).
Without a picture the drafter is the text-only model that its folder holds. The folder is a Llama
folder with two files more: adapter.json, which names the target, and adapter.safetensors.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from specnb.models.base import PromptTooLong
from specnb.models.folders import fingerprint
from specnb.models.hf import HFContext, HFModel
from specnb.models.llama import LlamaContext
from specnb.models.small import SmallContext

CONFIG, WEIGHTS = "adapter.json", "adapter.safetensors"
NAMES = ("weight", "bias")
IMAGE_ID = 1 << 40  # stands for a picture's place; no vocabulary is that large


class Adapted(nn.Module):
    """A text-only language model with a projector in front, to be trained.

    `side` is the side of the grid that a picture's features are averaged to.
    """

    def __init__(self, language: Any, seen_width: int, side: int):
        super().__init__()
        self.language, self.side = language, side
        self.projector = nn.Linear(seen_width, language.config.hidden_size)

    def get_output_embeddings(self) -> nn.Module:
        return self.language.get_output_embeddings()

    def read(self, ids: Tensor, features: Tensor, blind: Tensor | None = None) -> Tensor:
        """Last hidden states [rows, t, width] over the text `ids` [rows, t].

        `features` [rows, image tokens, seen width] stand before it, but for rows of `blind`.
        """
        seen = self.projector(pooled(features, self.side))
        text = self.language.get_input_embeddings()(ids)
        n = seen.shape[1]
        mask = torch.ones(len(ids), n + ids.shape[1], dtype=torch.long)
        if blind is not None:
            mask[blind, :n] = 0
        # Text behind hidden places counts its positions from 0, as it does without a picture.
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        output = self.language.model(
            inputs_embeds=torch.cat([seen, text], 1),
            attention_mask=mask,
            position_ids=positions,
            use_cache=False,
        )
        return output.last_hidden_state[:, n:]


def pooled(features: Tensor, side: int) -> Tensor:
    """[..., n, width] features of an even grid, averaged to [..., side * side, width]."""
    n = features.shape[-2]
    grid = math.isqrt(n)
    if grid * grid != n:
        raise ValueError(f"features: {n} of them are no even grid; use one square picture")
    if grid == side:
        return features
    flat = features.reshape(-1, grid, grid, features.shape[-1]).movedim(-1, 1)
    small = F.adaptive_avg_pool2d(flat, side).movedim(1, -1)
    return small.reshape(*features.shape[:-2], side * side, features.shape[-1])


def save_adapter(module: Adapted, target_folder: str, out: Path) -> None:
    """Writes the two files beside the language model's; `out` must hold that already.

    The target is named by its path from `out` where both are folders, and known by its content.
    """
    there = Path(target_folder)
    name = target_folder
    if there.is_dir():
        name = Path(os.path.relpath(there.resolve(), out.resolve())).as_posix()
    about = {
        "target": name,
        "fingerprint": fingerprint(there) if there.is_dir() else "",
        "side": module.side,
    }
    (out / CONFIG).write_text(json.dumps(about, indent=1) + "\n")
    weights = {
        "weight": module.projector.weight.detach().to(torch.bfloat16).contiguous(),
        "bias": module.projector.bias.detach().to(torch.bfloat16).contiguous(),
    }
    save_file(weights, out / WEIGHTS)


def read_adapter(language: Any, folder: str | Path) -> Adapted:
    """The adapter of a folder around its language model (a transformers module)."""
    weights = {name: tensor.float() for name, tensor in load_file(Path(folder) / WEIGHTS).items()}
    module = Adapted(language, weights["weight"].shape[1], _about(Path(folder))["side"])
    module.projector.load_state_dict(weights)
    return module


def is_adapter(folder: str | Path) -> bool:
    """Whether a local folder holds an adapter drafter."""
    return (Path(folder) / CONFIG).is_file()


class AdapterModel(HFModel):
    """A language model and its projector behind the `Model` contract; sees what `eyes` see.

    `eyes` is the target whose vision tower is shared: in a pair the target itself, else the model
    that the folder names, which is loaded when a picture is first to be encoded.
    """

    side: int  # of the grid of places that a picture takes
    projector: tuple[Tensor, Tensor]
    eyes_are: dict[str, Any]  # what adapter.json says
    _eyes: HFModel | None
    _load: Callable[..., HFModel]

    @classmethod
    def of(
        cls, language: HFModel, folder: str | Path, load: Callable[..., HFModel]
    ) -> AdapterModel:
        """The adapter of a folder around its language model, already loaded.

        `load(folder, device=...)` loads the eyes where they are needed and not at hand.
        """
        path = Path(folder)
        about = _about(path)
        other = cls.__new__(cls)
        other.__dict__.update(language.__dict__)
        weights = load_file(path / WEIGHTS)
        if set(weights) != set(NAMES) or len(weights["weight"]) != other.width:
            raise ValueError(
                f"model {str(path)!r}: {WEIGHTS} does not fit its language model; copy the folder "
                "again"
            )
        other.side = about["side"]
        weight, bias = (weights[name].to(other.device, torch.float32) for name in NAMES)
        other.projector = weight, bias
        other.sees_images, other.image_token_id = True, IMAGE_ID
        other.eyes_are = about
        other._eyes, other._load = None, load
        digest = hashlib.sha256(b"".join((path / name).read_bytes() for name in (CONFIG, WEIGHTS)))
        other.runtime += f", adapter {digest.hexdigest()[:8]} of {other.side**2} image tokens"
        return other

    @property
    def width(self) -> int:
        return self.module.config.hidden_size

    @property
    def eyes(self) -> HFModel:
        """The target that encodes pictures."""
        if self._eyes is None:
            name = self.eyes_are["target"]
            there = Path(self.path) / name
            eyes = self._load(str(there) if there.is_dir() else name, device=str(self.device))
            self._eyes = self._known(eyes)
        return self._eyes

    def _known(self, eyes: HFModel) -> HFModel:
        """Refuses the eyes of another target than the one that the projector has learned from."""
        wanted = self.eyes_are["fingerprint"]
        if not eyes.sees_images:
            raise ValueError(
                f"draft {self.path!r}: it shares its target's eyes, and target {eyes.path!r} sees "
                "no pictures; use a text-only drafter"
            )
        if wanted and Path(eyes.path).is_dir() and fingerprint(eyes.path) != wanted:
            raise ValueError(
                f"draft {self.path!r}: it has learned with other eyes than those of target "
                f"{eyes.path!r}; use a text-only drafter, or train an adapter for this target"
            )
        return eyes

    def beside(self, target: HFModel) -> AdapterModel:
        other: Any = super().beside(target)  # a copy of this kind
        other._eyes = self._known(target)
        return other

    def chat(self, prompt: Any, image: int = 0) -> str:
        """The prompt in the target's template, without places for pictures: they stand before."""
        return (self.template or self.eyes).chat(prompt, 0)

    def _adds_special(self, text: str) -> bool:
        return (self.template or self.eyes)._adds_special(text)

    def encode(self, prompt: Any, image: Any = None) -> tuple[list[int], dict | None]:
        ids, _ = super().encode(prompt)
        if image is None:
            return ids, None
        self._check_single(image)
        return self._behind(ids, self.look(prompt, image))

    def _check_single(self, image: Any) -> None:
        """Refuses several pictures: their features would be averaged as those of one."""
        if isinstance(image, list | tuple) and len(image) > 1:
            raise ValueError(
                f"image: {len(image)} pictures, of which draft {self.path!r} can read one; give "
                "one, or use a text-only drafter"
            )

    def look(self, prompt: Any, image: Any) -> Tensor:
        """What the target's language model reads in the picture's places [n, its width]."""
        return self.eyes.image_features(self.eyes.encode(prompt, image)[1] or {})

    def _behind(self, ids: list[int], features: Tensor) -> tuple[list[int], dict]:
        return [IMAGE_ID] * self.side**2 + ids, {"features": features}

    def open(
        self, prompt: Any, image: Any = None, features: Tensor | None = None
    ) -> HFContext | LlamaContext | SmallContext:
        """A context that has read picture and prompt but its last token.

        `features` are those of the picture where the target has encoded it already; else they are
        encoded now.
        """
        if image is None or features is None:
            return super().open(prompt, image)
        self._check_single(image)
        ids, extras = self._behind(super().encode(prompt)[0], features)
        if len(ids) > self.max_positions:
            raise PromptTooLong(
                f"prompt: with its image it has {len(ids)} tokens, {self.path} reads at most "
                f"{self.max_positions}; shorten it"
            )
        return self.context(ids, extras)

    def own_ids(self, token_ids) -> list[int]:
        return [token if token < self.own_vocab_size else 0 for token in token_ids]

    def inputs(self, token_ids: Sequence[int], extras: Mapping[str, Any]) -> dict[str, Any]:
        """Embeddings, with what this model reads of the picture in its places."""
        given = super().inputs(token_ids, {})
        if not extras:
            return given
        found = self.module.get_input_embeddings()(given["input_ids"])
        seen = self.image_features(extras).to(found.dtype)
        return {"inputs_embeds": torch.cat([seen[None], found[:, len(seen) :]], 1)}

    @torch.inference_mode()
    def image_features(self, extras: Mapping[str, Any]) -> Tensor:
        """What this model reads in the picture's places, [side * side, its width]."""
        weight, bias = self.projector
        seen = extras["features"].to(weight.device, torch.float32)
        return F.linear(pooled(seen, self.side), weight, bias)


def _about(path: Path) -> dict[str, Any]:
    """What adapter.json says; ValueError where it does not say all that is needed."""
    try:
        about = json.loads((path / CONFIG).read_text(encoding="utf-8"))
        whole = isinstance(about["side"], int) and about["side"] >= 1
        if whole and isinstance(about["target"], str) and isinstance(about["fingerprint"], str):
            if (path / WEIGHTS).is_file():
                return about
    except (ValueError, KeyError, TypeError):
        pass
    raise ValueError(
        f"model {str(path)!r}: {CONFIG} or {WEIGHTS} is missing or damaged; copy the folder again"
    )
