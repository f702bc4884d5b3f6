"""The shape of a base model, known before its weights are: published, from its config.json, or tiny."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amvl_core.backbones.loading import TINY
from amvl_core.contracts.config import ModelConfig
from amvl_core.contracts.errors import ConfigError


@dataclass(frozen=True)
class TextShape:
    """Qwen2.5-VL's text stack, by the names of its configuration."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    tie_word_embeddings: bool

    @property
    def kv_size(self) -> int:
        """Width of the keys, and of the values, of one layer."""
        return self.hidden_size // self.num_attention_heads * self.num_key_value_heads

    @property
    def layer(self) -> int:
        """Parameters of one layer: projections (biases on q, k, v), gated MLP, two norms."""
        size, kv = self.hidden_size, self.kv_size
        return 2 * size * size + size + 2 * (size + 1) * kv + 3 * size * self.intermediate_size + 2 * size


@dataclass(frozen=True)
class VisionShape:
    """Qwen2.5-VL's vision encoder, by the names of its configuration."""

    intermediate_size: int
    out_hidden_size: int
    hidden_size: int = 1280
    depth: int = 32
    num_heads: int = 16
    patch_size: int = 14
    spatial_merge_size: int = 2
    temporal_patch_size: int = 2
    in_channels: int = 3
    window_size: int = 112
    fullatt_block_indexes: tuple[int, ...] = (7, 15, 23, 31)

    @property
    def parameters(self) -> int:
        """Patch embedding, blocks (biases everywhere but on the embedding) and merger."""
        size, hidden = self.hidden_size, self.intermediate_size
        block = 4 * size * size + 4 * size + 3 * size * hidden + 2 * hidden + size + 2 * size
        merged = self.spatial_merge_size**2 * size
        merger = size + merged * merged + merged + (merged + 1) * self.out_hidden_size
        patch = self.in_channels * self.temporal_patch_size * self.patch_size**2
        return patch * size + self.depth * block + merger


@dataclass(frozen=True)
class ModelShape:
    """Both halves of a base model; `source` says where the shape is from."""

    text: TextShape
    vision: VisionShape
    source: str


PUBLISHED = {
    f"Qwen/Qwen2.5-VL-{name}-Instruct": ModelShape(text, VisionShape(hidden, text.hidden_size), "published")
    for name, text, hidden in (
        ("3B", TextShape(151936, 2048, 11008, 36, 16, 2, True), 3420),
        ("7B", TextShape(152064, 3584, 18944, 28, 28, 4, False), 3420),
        ("32B", TextShape(152064, 5120, 27648, 64, 40, 8, False), 3456),
        ("72B", TextShape(152064, 8192, 29568, 80, 64, 8, False), 3456),
    )
}
"""From each model's config.json on the Hugging Face Hub (huggingface.co/Qwen/Qwen2.5-VL-*-Instruct). Their parameters
add up to the totals that the Hub shows for the safetensors files, which a test holds."""


def model_shape(model: ModelConfig) -> ModelShape:
    """The shape of `model.base`: tiny, a folder, a Hub id in the local cache, or a published one.

    Reads no weights and no network. Raises ConfigError where the shape is not known here.
    """
    if model.base == TINY:
        from amvl_core.backbones.tiny import build_config, build_processor

        return _from_config(build_config(model.tiny, build_processor(model.tiny)).to_dict(), TINY)
    file = Path(model.base, "config.json")
    if not file.is_file() and model.base not in PUBLISHED:
        file = _cached(model.base)
    if not file.is_file():
        return PUBLISHED[model.base]
    try:
        fields = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read ({error}); download it again") from error
    return _from_config(fields, str(file))


def _cached(base: str) -> Path:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(base, "config.json")
    except HFValidationError:
        found = None
    if not isinstance(found, str):
        raise ConfigError(
            f"model.base: the shape of {base!r} is not known here; give a folder with its config.json, download that "
            f"file (`hf download {base} config.json`), or plan for one of {', '.join(PUBLISHED)}"
        )
    return Path(found)


def _from_config(fields: Any, source: str) -> ModelShape:
    """Of a config.json, whose text part stands at the top in older files and in `text_config` in newer ones."""
    try:
        text, vision = {**fields, **(fields.get("text_config") or {})}, fields.get("vision_config") or {}
        tied = bool(fields.get("tie_word_embeddings", False))
        names = [name for name in TextShape.__dataclass_fields__ if name != "tie_word_embeddings"]
        shape = TextShape(**{name: int(text[name]) for name in names}, tie_word_embeddings=tied)
        known = {name: vision[name] for name in VisionShape.__dataclass_fields__ if name in vision}
        defaults = {"intermediate_size": 3420, "out_hidden_size": shape.hidden_size}
        return ModelShape(shape, VisionShape(**{**defaults, **known}), source)
    except KeyError as error:
        raise ConfigError(f"{source} is not the configuration of a Qwen2.5-VL model: it has no {error}") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"{source} is not the configuration of a Qwen2.5-VL model ({error})") from error


def parameters(shape: ModelShape) -> dict[str, int]:
    """Parameters of a stock model by part."""
    text = shape.text
    size, copies = text.hidden_size, 1 if text.tie_word_embeddings else 2
    return {
        "vision": shape.vision.parameters,
        "language": text.num_hidden_layers * text.layer + size,
        "embeddings": copies * text.vocab_size * size,
    }
