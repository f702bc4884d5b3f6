"""What the trainer knows of a method: one module with one forward, that gives a loss and its named terms."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from amvl_core.config import LatentConfig
from amvl_core.data.batch import Batch
from amvl_core.processor import AMVLProcessor


@dataclass(frozen=True)
class Clock:
    """Where training is: `step` optimiser steps are done; `num_tokens` is the loss denominator of a micro-batch."""

    seed: int
    step: int
    num_tokens: float


@dataclass
class StepOutput:
    """The scalar to differentiate, and the terms to log (floats or detached scalars)."""

    loss: Tensor
    terms: dict[str, Tensor | float]


class Method(nn.Module, ABC):
    """Wraps the Hugging Face model, so that one call of one module is one training step on every rank."""

    model: Any

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    @classmethod
    @abstractmethod
    def load(cls, folder: str, processor: AMVLProcessor, latent: LatentConfig, **kwargs: Any) -> Any:
        """The Hugging Face model this method trains, from a checkpoint folder of this or an earlier stage."""

    @classmethod
    @abstractmethod
    def num_slots(cls, latent: LatentConfig) -> int:
        """Latent slots per sample in this method's layout."""

    @abstractmethod
    def forward(self, batch: Batch, clock: Clock) -> StepOutput:
        """Loss and terms of one micro-batch."""

    def new_token_rows(self) -> list[int]:
        """Embedding rows of tokens that the base model did not have."""
        return []

    def embed(self, batch: Batch) -> Tensor:
        """Embeddings [B, T, D] with image features in place.

        The vision encoder runs on every rank in every step: a batch without images shows it a blank one, whose
        features count with weight zero. A rank that skipped it would leave the others waiting.
        """
        model = self.model
        embeds_BTD: Tensor = model.get_input_embeddings()(batch.input_ids_BT)
        trained = any(parameter.requires_grad for parameter in model.model.visual.parameters())
        pixels, grid = batch.pixel_values, batch.image_grid_thw
        if pixels is None or grid is None:
            merge = model.config.vision_config.spatial_merge_size
            grid = torch.tensor([[1, merge, merge]], device=embeds_BTD.device)
            width = model.model.visual.patch_embed.proj.weight[0].numel()
            pixels = torch.zeros(merge * merge, width, device=embeds_BTD.device)
        with torch.set_grad_enabled(trained and torch.is_grad_enabled()):
            features = torch.cat(model.model.get_image_features(pixels, grid).pooler_output).to(embeds_BTD.dtype)
        if batch.pixel_values is None:
            return embeds_BTD + 0.0 * features.sum()
        is_image_BT = batch.input_ids_BT == model.config.image_token_id
        if int(is_image_BT.sum()) != len(features):
            raise ValueError(_mismatch(batch, is_image_BT, model.config.vision_config.spatial_merge_size))
        return embeds_BTD.masked_scatter(is_image_BT[..., None].expand_as(embeds_BTD), features)


def _mismatch(batch: Batch, is_image_BT: Tensor, merge: int) -> str:
    assert batch.image_grid_thw is not None
    features = int(batch.image_grid_thw.prod(-1).sum()) // merge**2
    counts = dict(zip(batch.sample_ids, is_image_BT.sum(1).tolist(), strict=True))
    return f"{int(is_image_BT.sum())} image tokens but {features} image features; image tokens by sample: {counts}"
