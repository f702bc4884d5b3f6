"""DINOv3, DINOv2, SigLIP, SigLIP2 and CLIP by the stock classes of transformers, and tiny ones of them.

Shape suffixes: B images, S pixels along a side, P patches in rows, D width, C pixels x channels of a patch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    PreTrainedConfig,
    Siglip2VisionModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    IMAGENET_STANDARD_MEAN,
    IMAGENET_STANDARD_STD,
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
)

from amvl_core.backbones.loading import model_folder
from amvl_core.contracts.encoders import BASE, TINY, EncoderConfig
from amvl_core.contracts.errors import CheckpointError
from amvl_core.encoders.encoder import VisionEncoder, normalised, patch_grid

Call = Callable[[Any, Tensor], Any]
"""How a model is called on normalised pixels [B, 3, S, S]; gives the stock output."""


class Kind(NamedTuple):
    """How a kind of encoder is called, what stands before its patches, and how images were normalised for it."""

    model: Any
    call: Call
    special: Callable[[Any], int]
    mean: Sequence[float]
    std: Sequence[float]


def _any_size(model: Any, pixels_B3SS: Tensor) -> Any:
    return model(pixels_B3SS)


def _interpolated(model: Any, pixels_B3SS: Tensor) -> Any:
    """Learned positions are interpolated where the image has another size than those of pretraining."""
    return model(pixels_B3SS, interpolate_pos_encoding=pixels_B3SS.shape[-1] != model.config.image_size)


def _in_patches(model: Any, pixels_B3SS: Tensor) -> Any:
    """SigLIP2 of flexible resolution takes patches, rows and columns."""
    patch, batch = model.config.patch_size, len(pixels_B3SS)
    patches_B3RpQp = pixels_B3SS.unflatten(3, (-1, patch)).unflatten(2, (-1, patch))
    patches_BPC = patches_B3RpQp.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
    side = pixels_B3SS.shape[-1] // patch
    present_BP = torch.ones(patches_BPC.shape[:2], dtype=torch.int32, device=pixels_B3SS.device)
    return model(patches_BPC, present_BP, torch.tensor([[side, side]] * batch))


def _cls(config: Any) -> int:
    return 1


def _cls_and_registers(config: Any) -> int:
    return 1 + int(config.num_register_tokens)


def _none(config: Any) -> int:
    return 0


_DINOV2 = (_any_size, _cls, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
_DINO_REGISTERS = (_any_size, _cls_and_registers, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
_SIGLIP = Kind(SiglipVisionModel, _interpolated, _none, IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD)
_SIGLIP2 = Kind(Siglip2VisionModel, _in_patches, _none, IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD)
_CLIP = Kind(CLIPVisionModel, _interpolated, _cls, OPENAI_CLIP_MEAN, OPENAI_CLIP_STD)

KINDS = {
    "dinov3_vit": Kind(DINOv3ViTModel, *_DINO_REGISTERS),
    "dinov2_with_registers": Kind(Dinov2WithRegistersModel, *_DINO_REGISTERS),
    "dinov2": Kind(Dinov2Model, *_DINOV2),
    "siglip": _SIGLIP,
    "siglip_vision_model": _SIGLIP,
    "siglip2": _SIGLIP2,
    "siglip2_vision_model": _SIGLIP2,
    "clip": _CLIP,
    "clip_vision_model": _CLIP,
}
"""Hugging Face model type -> kind. SigLIP2 of fixed resolution is published as `siglip`."""

_SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "patch_size": 8,
    "image_size": 64,
}
_TINY = {
    "dinov3": DINOv3ViTConfig(num_register_tokens=4, **_SHAPE),
    "dinov2": Dinov2Config(mlp_ratio=2, **{name: n for name, n in _SHAPE.items() if name != "intermediate_size"}),
    "siglip": SiglipVisionConfig(vision_use_head=False, **_SHAPE),
    "clip": CLIPVisionConfig(**_SHAPE),
}
_LOOKED_UP = ("token", "position_embedding", "class_embedding")
"""Vectors that are added or put in front, at the scale of a patch's."""


class PretrainedEncoder(VisionEncoder):
    """A stock model of one of `KINDS`. CLS and registers are dropped."""

    def __init__(
        self, config: EncoderConfig, kind: Kind, model: Any, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        super().__init__()
        self.size, self.grid, self.width = (
            config.size,
            patch_grid(config, model.config.patch_size),
            model.config.hidden_size,
        )
        self.kind, self.mean, self.std = kind, tuple(mean), tuple(std)
        self.model = model.requires_grad_(False)
        self.eval()

    @torch.no_grad()
    def forward(self, pixels_B3SS: Tensor) -> Tensor:
        """Of the last hidden state."""
        seen_B3SS = normalised(pixels_B3SS, self.mean, self.std).to(self.model.dtype)
        hidden = self.kind.call(self.model, seen_B3SS).last_hidden_state
        features_BPD: Tensor = hidden[:, self.kind.special(self.model.config) :].float()
        return features_BPD


def load_encoder(config: EncoderConfig, dtype: torch.dtype = torch.float32) -> VisionEncoder:
    """The model of `config.source`: a Hub id, a folder anywhere, or `tiny:KIND`.

    Images are normalised by the checkpoint's `preprocessor_config.json`, without one by what was published for its
    kind. Raises ConfigError where the size does not fit the patches, CheckpointError where the model type is not known
    or weights are missing.
    """
    assert config.source != BASE and config.stored is None, "it has no model of its own"
    if config.source.startswith(TINY):
        model = tiny(config.source.removeprefix(TINY))
        kind = KINDS[model.config.model_type]
        return PretrainedEncoder(config, kind, model.to(dtype), kind.mean, kind.std)
    with model_folder(config.source) as folder:
        kind = _kind(config, folder)
        try:
            model, found = kind.model.from_pretrained(
                folder, dtype=dtype, use_safetensors=True, output_loading_info=True
            )
        except (OSError, RuntimeError) as error:
            raise CheckpointError(f"encoder {config.name}: {config.source} cannot be loaded: {error}") from error
        if found["missing_keys"]:
            raise CheckpointError(
                f"encoder {config.name}: {config.source} lacks {len(found['missing_keys'])} weights of a "
                f"{kind.model.__name__}, the first is {min(found['missing_keys'])}; give a whole checkpoint"
            )
        return PretrainedEncoder(config, kind, model, *_normalisation(kind, folder))


def tiny(kind: str) -> Any:
    """A stock model of about 25,000 random weights. They are the same bit by bit on every machine."""
    config = _TINY[kind]
    with torch.random.fork_rng(devices=[]):  # its constructor draws, and what is drawn is replaced
        model = KINDS[config.model_type].model(config)
    random = np.random.default_rng(0)
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            if any(part in name for part in _LOOKED_UP):
                fan_in = 1
            elif weight.dim() > 1:
                fan_in = weight[0].numel()
            else:
                if name.endswith("bias"):
                    weight.zero_()
                continue  # norms and scales are built as ones
            # Uniform numbers are integers times a power of two: no machine rounds them in another way.
            values = (2 * random.random(weight.shape, np.float32) - 1) * np.float32((3 / fan_in) ** 0.5)
            weight.copy_(torch.from_numpy(values))
    return model


def check_size(config: EncoderConfig, fields: Mapping[str, Any] | None = None) -> None:
    """Raises as `load_encoder` does, without weights. `fields` are a model's config.json; None: it is a tiny one."""
    if fields is None:
        fields = _TINY[config.source.removeprefix(TINY)].to_dict()
    kind = _known(config, fields.get("model_type"))
    patch_grid(config, kind.model.config_class.from_dict(fields.get("vision_config") or fields).patch_size)


def _known(config: EncoderConfig, model_type: str | None) -> Kind:
    if model_type not in KINDS:
        raise CheckpointError(
            f"encoder {config.name}: {config.source} is a {model_type!r} model; known are {', '.join(KINDS)}"
        )
    return KINDS[model_type]


def _kind(config: EncoderConfig, folder: str) -> Kind:
    said = ""
    try:
        model_type = PreTrainedConfig.get_config_dict(folder)[0].get("model_type")
    except OSError as error:
        model_type, said = None, f" ({type(error).__name__})"
    if model_type is None:
        raise CheckpointError(
            f"encoder {config.name}: {config.source!r} is no folder with a model's config.json, and no model that is "
            f"in the Hugging Face cache or can be read from the Hub{said}; download it first, or give a folder"
        )
    return _known(config, model_type)


def _normalisation(kind: Kind, folder: str) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and deviation of each channel in shares of white."""
    try:
        fields = BaseImageProcessor.get_image_processor_dict(folder)[0]
    except OSError:
        return kind.mean, kind.std
    return fields.get("image_mean") or kind.mean, fields.get("image_std") or kind.std
