"""What a frozen vision encoder gives: one feature vector for each patch of a square image.

Shape suffixes: B images, S pixels along a side, P patches in rows, D width of a feature.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn

from amvl_core.contracts.encoders import EncoderConfig
from amvl_core.contracts.errors import ConfigError


class VisionEncoder(nn.Module, ABC):
    """A frozen encoder of images of `size` x `size` pixels. It stays in eval mode.

    `grid` are rows and columns of patches, P is their product; `width` is D.
    """

    size: int
    grid: tuple[int, int]
    width: int

    @abstractmethod
    def forward(self, pixels_B3SS: Tensor) -> Tensor:
        """Features [B, P, D] in float32, row by row, of 8-bit RGB pixels as `square` gives them; without gradient."""

    def train(self, mode: bool = True) -> Self:
        """Nothing: a frozen encoder has no training mode."""
        super().train(False)
        return self


def normalised(pixels_B3SS: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """8-bit levels as an encoder was trained to see them, in float32."""
    mean_311, std_311 = (torch.tensor(values, device=pixels_B3SS.device)[:, None, None] for values in (mean, std))
    return (pixels_B3SS.float() / 255 - mean_311) / std_311


def patch_grid(config: EncoderConfig, patch: int) -> tuple[int, int]:
    """Rows and columns of patches of `patch` pixels. Raises ConfigError where the image's size is no multiple."""
    if config.size % patch:
        below = max(1, config.size // patch) * patch
        raise ConfigError(
            f"encoder {config.name}: size {config.size} is no multiple of {patch} pixels, which a patch of "
            f"{config.source} has; set size to {below} or {below + patch}"
        )
    return config.size // patch, config.size // patch
