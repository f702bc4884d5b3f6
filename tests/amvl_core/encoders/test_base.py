from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from amvl_core.backbones.backbone import backbone_of
from amvl_core.backbones.processor import load_processor
from amvl_core.contracts.encoders import BASE, EncoderConfig
from amvl_core.contracts.errors import ConfigError
from amvl_core.data.pixels import decode, square
from amvl_core.encoders.base import BaseEncoder
from tests.tiny import picture, stock_folder


def encoder(size: int) -> tuple[BaseEncoder, Qwen2_5_VLForConditionalGeneration, object]:
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(stock_folder())
    processor = load_processor(stock_folder()).image_processor
    config = EncoderConfig(name="qe", source=BASE, size=size)
    return BaseEncoder(config, backbone_of(model), model, processor), model, processor


def test_features_are_those_of_the_stock_model_on_what_its_processor_gives() -> None:
    found, model, processor = encoder(64)
    files = [picture(seed, 64, 64) for seed in range(3)]
    features = found(torch.from_numpy(np.stack([square(file, 64) for file in files])))
    inputs = processor(images=[decode(file) for file in files], do_resize=False, return_tensors="pt")  # type: ignore[operator]
    with torch.no_grad():
        expected = model.model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"]).pooler_output
    assert found.grid == (4, 4) and features.shape == (3, 16, found.width)
    # The processor rounds once more when it rescales. The worst was 2e-6 of features up to 4.
    torch.testing.assert_close(features, torch.stack(list(expected)), rtol=0, atol=2e-5)


def test_the_model_is_no_part_of_it_and_gets_no_gradient() -> None:
    found, model, _ = encoder(32)
    assert not list(found.parameters()) and not found.state_dict() and len(list(found.modules())) == 1
    assert not found(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)).requires_grad
    assert all(parameter.requires_grad for parameter in model.parameters()), "the model is left as it was"


def test_a_size_that_does_not_fit_the_merged_patches_is_refused() -> None:
    with pytest.raises(ConfigError, match="size 40 is no multiple of 16 pixels, which a patch of base has"):
        encoder(40)
