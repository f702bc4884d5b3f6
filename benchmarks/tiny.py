"""The smallest model and block that the benchmarks and the tests train, and pictures to train them on."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from amvl_core.contracts.config import TinyConfig
from amvl_core.contracts.latent import LatentConfig

TINY = TinyConfig(hidden_size=64, num_layers=2, intermediate_size=96, vision_hidden_size=32, vision_layers=2)
LATENT = LatentConfig(num_slots=3, dim=8, head_hidden=32)


def picture(seed: int, width: int = 32, height: int = 32) -> bytes:
    """A PNG of random pixels."""
    return png(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8))


def png(pixels_HWC: np.ndarray) -> bytes:
    """As PNG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels_HWC).save(buffer, "PNG")
    return buffer.getvalue()
