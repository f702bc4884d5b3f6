"""Tiny models and samples for the tests: real architecture, random weights, random pictures."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from amvl_core.backbones.processor import AMVLProcessor, load_processor
from amvl_core.backbones.tiny import save_tiny_base
from amvl_core.contracts.latent import LatentConfig
from amvl_core.contracts.sample import STEP_END, Segment
from amvl_core.data.batch import Batch, collate
from amvl_core.data.encode import Encoder
from amvl_core.methods.amvl.modeling import AMVLForConditionalGeneration, load_amvl
from amvl_core.methods.block import block_text, slot_tokens
from benchmarks.tiny import LATENT, TINY, picture
from tests.shared import once


@lru_cache(maxsize=1)
def stock_folder() -> str:
    """A stock Qwen2.5-VL checkpoint folder with random weights, which the first process that asks makes."""
    return str(once("stock", lambda folder: save_tiny_base(TINY, folder)))


def tied_folder(folder: Path) -> str:
    """The same model with its output layer tied to its token embeddings."""
    save_tiny_base(TINY.model_copy(update={"tie_word_embeddings": True}), folder)
    return str(folder)


def amvl_model(
    latent: LatentConfig = LATENT, dtype: torch.dtype = torch.float64
) -> tuple[AMVLForConditionalGeneration, AMVLProcessor]:
    """An AMVL model on the stock folder. Biases and heads are made large enough that nothing hides at zero."""
    processor = load_processor(stock_folder())
    torch.manual_seed(1)
    model = load_amvl(stock_folder(), processor, latent, dtype=dtype)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(dtype))
    return model, processor


SAMPLES: list[tuple[str, str, tuple[tuple[int, int], ...]]] = [
    ("<image>What colour is the circle?", "red", ((32, 32),)),
    ("<image><image>Are there more squares in the first?", "no, fewer", ((48, 32), (32, 64))),
    ("Is there a circle in the image?", "yes", ()),
    ("<image>A long question that falls back to bytes: zyxwv?", "A", ((64, 64),)),
]


def batch(processor: Any, latent: LatentConfig | None = LATENT, samples: Any = None, first: int = 0) -> Batch:
    """Samples of unequal length, one with two images and one with none; without a block where `latent` is None.

    A sample is its question, its answer, the sizes of its images, and its hidden steps where it has any. They are
    numbered from `first` on: a sample's number is its id and the seed of its pictures.
    """
    encoder = Encoder(processor)
    block = [Segment("latent", block_text(slot_tokens(latent)))] if latent else []
    encoded = []
    for number, (question, answer, sizes, *steps) in enumerate(samples or SAMPLES, first):
        hidden = [Segment("hidden", step + STEP_END) for step in steps]
        segments = [Segment("prompt", question), *block, *hidden, Segment("answer", answer)]
        images = [picture(10 * number + i, *size) for i, size in enumerate(sizes)]
        encoded.append(encoder.encode(f"sample-{number}", segments, images))
    return collate(encoded)
