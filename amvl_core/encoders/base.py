"""The vision encoder of the base model itself as a target: it costs no weights, because the model has it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from amvl_core.backbones.backbone import Backbone
from amvl_core.contracts.encoders import EncoderConfig
from amvl_core.encoders.encoder import VisionEncoder, normalised, patch_grid


class BaseEncoder(VisionEncoder):
    """Features behind the merger of `model`, a stock model or one that extends it; a patch is a merged one.

    The model is looked at and not owned: its weights are none of this module's. Where a stage trains them, features
    follow. `image_processor` has the mean and deviation that images are normalised with. Raises ConfigError where the
    size does not fit the patches.
    """

    def __init__(self, config: EncoderConfig, backbone: Backbone, model: Any, image_processor: Any) -> None:
        super().__init__()
        self.size, self.grid = config.size, patch_grid(config, backbone.feature_pixels(model))
        self.width = model.config.text_config.hidden_size
        self.backbone, self.owner = backbone, (model,)  # in a tuple, a module is no part of this one
        self.mean, self.std = tuple(image_processor.image_mean), tuple(image_processor.image_std)
        self.eval()

    @torch.no_grad()
    def forward(self, pixels_B3SS: Tensor) -> Tensor:
        """Of a square image each."""
        (model,) = self.owner
        pixels, grids = self.backbone.square_images(model, normalised(pixels_B3SS, self.mean, self.std))
        features_FD = self.backbone.image_features(model, pixels, grids.to(pixels.device))
        return features_FD.float().unflatten(0, (len(pixels_B3SS), -1))
