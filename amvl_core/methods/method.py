"""What the trainer knows of a method: one module with one forward, that gives a loss and its named terms."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from amvl_core.backbones.backbone import backbone_of
from amvl_core.backbones.patches import project_patches
from amvl_core.backbones.processor import AMVLProcessor
from amvl_core.contracts.encoders import Patches
from amvl_core.contracts.errors import CheckpointError, DataError
from amvl_core.contracts.latent import LatentConfig
from amvl_core.contracts.method import MethodConfig
from amvl_core.data.batch import Batch
from amvl_core.rows.bottleneck import has_bottleneck, token_kinds
from amvl_core.rows.spans import Span, bottleneck_spans


@dataclass(frozen=True)
class Clock:
    """Where training is: `step` optimiser steps are done.

    The label tokens of the global batch weigh `num_tokens` (`Method.label_weight`): as many as they are, by default.
    """

    seed: int
    step: int
    num_tokens: float
    num_samples: int


@dataclass
class StepOutput:
    """What is to be differentiated, and the terms to log, detached: what a micro-batch adds to those of its step.

    Their sum over the micro-batches of all ranks is the mean over the tokens or samples of the global batch. The term
    `loss` is the whole. `finite` says of each sample whether its part is finite; it is called only where the whole is
    not.

    A graph that is cut (`rows/cut.py`) is differentiated in two calls: `loss`, then what `rest` gives for the factor
    that `loss` had. Else `loss` is the whole.
    """

    loss: Tensor
    terms: dict[str, Tensor]
    finite: Callable[[], list[bool]]
    rest: Callable[[Tensor | float], Tensor] | None = None

    def backward(
        self, factor: Tensor | float = 1.0, differentiate: Callable[[Tensor], object] = Tensor.backward
    ) -> None:
        """Differentiates `factor` times the whole, each scalar by `differentiate`, and lets go of the graph."""
        differentiate(factor * self.loss)
        self.loss = self.loss.detach()  # with its graph go the keys and values that the later part was given
        if self.rest is not None:
            differentiate(self.rest(factor))


class Method(nn.Module, ABC):
    """Wraps the Hugging Face model, so that one call of one module is one training step on every rank."""

    model: Any
    config: MethodConfig

    def __init__(self, model: Any, config: Any) -> None:
        super().__init__()
        check_model(model)
        self.backbone = backbone_of(model)
        self.backbone.check(model)
        project_patches(self.backbone.vision(model))
        self.model = model
        self.config = config
        if config.bottleneck != has_bottleneck(model):
            model.config.bottleneck = config.bottleneck  # the checkpoint says how it is to be asked

    @classmethod
    @abstractmethod
    def load(cls, folder: str, processor: AMVLProcessor, latent: LatentConfig, **kwargs: Any) -> Any:
        """The Hugging Face model this method trains, from a checkpoint folder of this or an earlier stage."""

    @staticmethod
    def drawn(model: Any, keys: Sequence[int], tau: float) -> dict[str, Any]:
        """What a prompt's pass takes so that its latents are drawn; nothing where none are."""
        return {}

    @staticmethod
    def set_blocks(model: Any, mode: str | None, steps: int | None) -> None:
        """Where the model has latent blocks in its replies and with how many slots; None: as its checkpoint says."""

    @abstractmethod
    def forward(self, batch: Batch, clock: Clock) -> StepOutput:
        """Loss and terms of one micro-batch."""

    def reference(self, batch: Batch, clock: Clock) -> Tensor:
        """The loss of `forward` with nothing shared between passes: what the step's time and numbers are held against.

        A method whose step shares nothing has no other.
        """
        return self.forward(batch, clock).loss

    def rows(self, batch: Batch) -> int:
        """How many rows a micro-batch needs of the text stack: its tokens, where each of them runs once."""
        return batch.num_tokens

    def own_parameters(self) -> list[nn.Parameter]:
        """Trained parameters that may have a learning rate of their own (`lr_scale.latent`).

        What hangs on the module beside `model` is trained and kept for resuming, and never exported.
        """
        frozen = {id(parameter) for module in self.frozen() for parameter in module.parameters()}
        inside = [p for name, p in self.model.named_parameters() if name.startswith(self.config.own_parts)]
        beside = [p for name, p in self.named_parameters() if not name.startswith("model.") and id(p) not in frozen]
        return inside + beside

    def label_weight(self, batch: Batch) -> float:
        """What the batch's label tokens weigh: its next-token loss is a mean over them by weight."""
        return batch.num_label_tokens

    def equip(self, processor: AMVLProcessor, computed: Mapping[str, Patches], teacher: Method | None = None) -> None:
        """Adds what training needs beside the model, such as teachers and projectors.

        `computed` has the encoders of `MethodConfig.aligned_with` whose features are in the batch already. `teacher` is
        the stage that `MethodConfig.taught_by` names, with its model.
        """

    def frozen(self) -> list[nn.Module]:
        """Modules that no stage trains, such as a teacher."""
        return []

    def new_token_rows(self) -> list[int]:
        """Embedding rows of tokens that the base model did not have."""
        return []

    def scalars(self, terms: dict[str, Tensor]) -> dict[str, float]:
        """What is logged of a step, from its terms summed over micro-batches and ranks."""
        return {name: float(value) for name, value in terms.items()}

    def spans(self, batch: Batch) -> list[Span]:
        """A causal sequence for each sample, cut where images and slots begin and end under the bottleneck mask."""
        kinds, spans = iter(token_kinds(self.model, batch.input_ids_N)), list[Span]()
        for length in batch.lengths:
            spans += bottleneck_spans(list(islice(kinds, length)), [], 0, len(spans))
        return spans

    def embed(self, batch: Batch) -> Tensor:
        """Embeddings [N, D] of the packed batch with image features in place.

        The vision encoder runs on every rank in every step: a batch without images shows it a blank one, whose
        features count with weight zero. A rank that skipped it would leave the others waiting.
        """
        model, base = self.model, self.backbone
        self._check_images(batch)
        device = model.get_input_embeddings().weight.device
        embeds_ND: Tensor = model.get_input_embeddings()(batch.input_ids_N.to(device))
        trained = any(parameter.requires_grad for parameter in base.vision(model).parameters())
        pixels, grid = batch.pixel_values, batch.image_grid_thw
        if pixels is None or grid is None:
            pixels, grid = base.blank_image(model)
        with torch.set_grad_enabled(trained and torch.is_grad_enabled()):
            features_FD = base.image_features(model, pixels.to(device), grid.to(device)).to(embeds_ND.dtype)
        if batch.pixel_values is None:
            return embeds_ND + 0.0 * features_FD.sum()
        in_place_N = base.stands_for_features(model, batch.input_ids_N).to(device)
        return embeds_ND.masked_scatter(in_place_N[:, None].expand_as(embeds_ND), features_FD)

    def positions(self, batch: Batch) -> Tensor:
        """Positions [3, N] of the packed batch, each sample's as the stock model gives them."""
        positions_3N = self.backbone.packed_positions(
            self.model, batch.input_ids_N, batch.lengths, batch.image_grid_thw, batch.seconds_I
        )
        return positions_3N.to(self.model.get_input_embeddings().weight.device)

    def _check_images(self, batch: Batch) -> None:
        """A DataError names the sample whose image tokens are not as many as its images' features."""
        counts = [0] * len(batch.lengths)
        if batch.image_grid_thw is not None:
            per_image = self.backbone.features_per_image(self.model, batch.image_grid_thw)
            counts = [int(part.sum()) for part in per_image.split(batch.num_images)]
        rows = zip(batch.sample_ids, batch.input_ids_N.split(batch.lengths), counts, strict=True)
        for name, ids_N, features in rows:
            tokens = int(self.backbone.stands_for_features(self.model, ids_N).sum())
            if tokens != features:
                raise DataError(f"{name}: {tokens} image tokens, but its images have {features} features")


def check_model(model: Any) -> None:
    """A CheckpointError where parts of the model differ in dtype."""
    first, *others = [(name, p.dtype) for name, p in model.named_parameters()]
    for name, dtype in others:
        if dtype != first[1]:
            raise CheckpointError(f"{first[0]} is {first[1]}, but {name} is {dtype}; load the whole model in one dtype")
