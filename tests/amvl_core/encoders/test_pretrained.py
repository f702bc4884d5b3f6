"""Every kind of encoder against the stock model on what its own image processor gives."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from transformers import (
    BitImageProcessorPil,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    Siglip2ImageProcessorPil,
    Siglip2VisionConfig,
    Siglip2VisionModel,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from amvl_core.contracts.encoders import TINY_KINDS, EncoderConfig
from amvl_core.contracts.errors import CheckpointError, ConfigError
from amvl_core.data.pixels import decode, square
from amvl_core.encoders.pretrained import KINDS, load_encoder, tiny
from tests.tiny import picture

SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 64}
WIDE = {**SHAPE, "intermediate_size": 64}
TEXT = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
PLAIN = {"do_resize": False, "do_center_crop": False}

Whole = Callable[[], tuple[Any, Any]]
"""A checkpoint as it is published, and the vision model in it."""


def whole(model: Any, vision: Callable[[Any], Any] = lambda model: model) -> tuple[Any, Any]:
    """With weights large enough that nothing hides at zero."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.2 * torch.randn(weight.shape, generator=generator))
    return model.eval(), vision(model)


CHECKPOINTS: dict[str, tuple[Whole, Any, int, int]] = {
    "dinov3": (
        lambda: whole(DINOv3ViTModel(DINOv3ViTConfig(num_register_tokens=4, patch_size=16, **WIDE))), None, 16, 5,
    ),
    "dinov2": (
        lambda: whole(Dinov2Model(Dinov2Config(**{**SHAPE, "patch_size": 14, "image_size": 70}))),
        BitImageProcessorPil(image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225], **PLAIN), 14, 1,
    ),
    "dinov2 with registers": (
        lambda: whole(Dinov2WithRegistersModel(
            Dinov2WithRegistersConfig(num_register_tokens=4, **{**SHAPE, "patch_size": 14, "image_size": 70}))),
        None, 14, 5,
    ),
    "siglip, vision alone": (
        lambda: whole(SiglipVisionModel(SiglipVisionConfig(patch_size=16, **WIDE))),
        SiglipImageProcessorPil(**PLAIN), 16, 0,
    ),
    "siglip with its text model": (
        lambda: whole(SiglipModel(SiglipConfig(
            vision_config={"patch_size": 16, **WIDE}, text_config=TEXT)), lambda model: model.vision_model),
        SiglipImageProcessorPil(image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.3, 0.4], **PLAIN), 16, 0,
    ),
    "siglip2 of flexible resolution": (
        lambda: whole(Siglip2VisionModel(Siglip2VisionConfig(
            patch_size=16, num_patches=16, **{name: n for name, n in WIDE.items() if name != "image_size"}))),
        Siglip2ImageProcessorPil(patch_size=16), 16, 0,
    ),
    "clip, vision alone": (
        lambda: whole(CLIPVisionModel(CLIPVisionConfig(patch_size=16, **WIDE))),
        CLIPImageProcessorPil(**PLAIN), 16, 1,
    ),
    "clip with its text model": (
        lambda: whole(CLIPModel(CLIPConfig(
            vision_config={"patch_size": 16, **WIDE}, text_config=TEXT)), lambda model: model.vision_model),
        None, 16, 1,
    ),
}  # fmt: skip
"""A checkpoint, its image processor (None: the checkpoint has no file of one), pixels of a patch, special tokens."""


def config(source: str | Path, size: int) -> EncoderConfig:
    return EncoderConfig(name="encoder", source=str(source), size=size)


def images(size: int) -> tuple[list[Any], torch.Tensor]:
    """Pictures as a processor takes them and as an encoder does."""
    files = [picture(seed, size, size) for seed in range(2)]
    return [decode(file) for file in files], torch.from_numpy(np.stack([square(file, size) for file in files]))


def stock(name: str, vision: Any, pictures: list[Any], side: int, grid: int, native: int) -> torch.Tensor:
    """The stock model's last hidden state, called as its documentation says."""
    processor = CHECKPOINTS[name][1]
    if name == "siglip2 of flexible resolution":
        inputs = dict(processor(images=pictures, max_num_patches=grid**2, return_tensors="pt"))
    elif processor is not None:
        inputs = dict(processor(images=pictures, return_tensors="pt"))
    else:  # rescaled and normalised by hand, with the values that were published
        imagenet = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        openai = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
        mean, std = openai if name.startswith("clip") else imagenet
        levels = np.stack([np.asarray(one) for one in pictures]) / 255
        inputs = {"pixel_values": torch.from_numpy(((levels - mean) / std).transpose(0, 3, 1, 2)).float()}
    if name.startswith(("siglip,", "siglip with", "clip")) and side != native:
        inputs["interpolate_pos_encoding"] = True
    with torch.no_grad():
        hidden: torch.Tensor = vision(**inputs).last_hidden_state
    return hidden


@pytest.mark.parametrize("other_size", [False, True])
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_features_are_the_patches_of_the_stock_model(name: str, other_size: bool, tmp_path: Path) -> None:
    make, processor, patch, special = CHECKPOINTS[name]
    model, vision = make()
    model.save_pretrained(tmp_path)
    if processor is not None:
        processor.save_pretrained(tmp_path)
    native = 70 if patch == 14 else 64
    size = native + (2 * patch if other_size else 0)
    encoder = load_encoder(config(tmp_path, size))
    pictures, pixels = images(size)
    found, side = encoder(pixels), size // patch
    expected = stock(name, vision, pictures, size, side, native)[:, special:]
    assert encoder.grid == (side, side) and encoder.width == 32
    assert found.shape == (2, side**2, 32) and found.dtype == torch.float32
    # The order of scaling and normalising rounds otherwise. The worst was 7e-6, of CLIP's features of up to 12.
    torch.testing.assert_close(found, expected, rtol=0, atol=3e-5)


def test_an_encoder_stays_frozen_and_in_eval_mode() -> None:
    encoder = load_encoder(config("tiny:dinov3", 32))
    parent = torch.nn.ModuleList([encoder]).train()
    assert parent.training and not any(module.training for module in encoder.modules())
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    assert not encoder(images(32)[1]).requires_grad


def test_half_precision_weights_see_images_normalised_in_full() -> None:
    _, pixels = images(64)
    exact = load_encoder(config("tiny:dinov3", 64))(pixels)
    found = load_encoder(config("tiny:dinov3", 64), torch.bfloat16)(pixels)
    assert found.dtype == torch.float32
    cosine = torch.nn.functional.cosine_similarity(found, exact, dim=-1)
    assert float(cosine.min()) > 0.9995  # the worst was 0.99996


def digests() -> dict[str, str]:
    """Of every weight of every tiny encoder."""
    return {
        kind: hashlib.sha256(b"".join(w.detach().numpy().tobytes() for _, w in sorted(tiny(kind).named_parameters())))
        .hexdigest()
        for kind in TINY_KINDS
    }  # fmt: skip


def test_tiny_encoders_have_the_same_weights_in_every_process() -> None:
    state = torch.get_rng_state()
    here = digests()
    assert torch.equal(torch.get_rng_state(), state), "the run's own random numbers are not touched"
    code = (
        "import json, torch; torch.set_num_threads(2); torch.manual_seed(5)\n"
        f"from {__name__} import digests; print(json.dumps(digests()))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(output.stdout) == here
    assert len(set(here.values())) == len(TINY_KINDS)
    # They depend on no library's generator of normal numbers and on no logarithm: a later version gives these too.
    assert here["dinov3"].startswith("b3e938581ded")


@pytest.mark.parametrize("kind", TINY_KINDS)
def test_tiny_features_differ_between_images_and_patches(kind: str) -> None:
    found = load_encoder(config(f"tiny:{kind}", 64))(images(64)[1])
    assert found.shape == (2, 64, 32)
    assert 23_000 < sum(weight.numel() for weight in tiny(kind).parameters()) < 26_000
    assert float((found[0] - found[1]).norm(dim=-1).min()) > 0.5
    assert float(found.std(1).min()) > 0.1


def test_a_size_that_does_not_fit_the_patches_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"encoder encoder: size 60 is no multiple of 8 .* set size to 56 or 64"):
        load_encoder(config("tiny:dinov3", 60))


def test_an_unknown_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "resnet"}))
    with pytest.raises(CheckpointError, match="is a 'resnet' model; known are dinov3_vit, "):
        load_encoder(config(tmp_path, 64))


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"is no folder with a model's config\.json"):
        load_encoder(config(tmp_path, 64))


def test_a_checkpoint_without_some_weights_is_refused(tmp_path: Path) -> None:
    tiny("dinov3").save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["norm.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks 1 weights of a DINOv3ViTModel, the first is norm\.weight"):
        load_encoder(config(tmp_path, 64))
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load_encoder(config(tmp_path, 64))


def test_a_tiny_encoder_of_no_known_kind_is_an_error_of_the_configuration() -> None:
    with pytest.raises(ValidationError, match="give tiny: and one of dinov3, dinov2, siglip, clip"):
        config("tiny:resnet", 64)


def test_each_kind_is_in_the_table() -> None:
    tried = {type(vision).__name__ for _, vision in (make() for make, *_ in CHECKPOINTS.values())}
    assert {kind.model.__name__ for kind in KINDS.values()} == tried
