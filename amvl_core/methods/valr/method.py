"""Vision-aligned latent reasoning: L = L_CE + lambda L_REPA, on blocks of fed-back states.

Shape suffixes: N tokens, R rows with a label, T slots, B blocks with a target, K slots of a block, P patches, D hidden
size, E an encoder's width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from amvl_core.backbones.processor import AMVLProcessor
from amvl_core.contracts.encoders import BASE, EncoderConfig, Patches
from amvl_core.contracts.errors import CheckpointError, ConfigError, DataError
from amvl_core.contracts.latent import LatentConfig
from amvl_core.data.batch import Batch
from amvl_core.encoders.base import BaseEncoder
from amvl_core.encoders.encoder import VisionEncoder
from amvl_core.encoders.pretrained import load_encoder
from amvl_core.methods.feedback.loading import load_feedback
from amvl_core.methods.feedback.method import FeedbackMethod, slot_norm
from amvl_core.methods.losses import finite_samples
from amvl_core.methods.method import Clock, Method, StepOutput
from amvl_core.methods.valr.alignment import Projector, similarities, upsampled
from amvl_core.methods.valr.config import ValrMethod
from amvl_core.methods.valr.modeling import VaLRForConditionalGeneration


class Valr(FeedbackMethod):
    """Next-token loss on what the model writes, and alignment of its slots in one layer."""

    model: VaLRForConditionalGeneration
    model_class = VaLRForConditionalGeneration
    config: ValrMethod

    def __init__(self, model: Any, config: ValrMethod) -> None:
        super().__init__(model, config)
        model.config.max_blocks, model.config.block_first = config.max_blocks, config.blocks != "interleaved"
        self.encoders, self.projectors = nn.ModuleDict(), nn.ModuleDict()
        self.patches: dict[str, Patches] = {}

    @classmethod
    def load(cls, folder: str, processor: AMVLProcessor, latent: LatentConfig, **kwargs: Any) -> Any:
        """From a stock checkpoint, or from one of its own; a CheckpointError names another number of slots."""
        model = load_feedback(cls.model_class, folder, processor, latent, **kwargs)
        if (found := model.config.num_slots) != latent.num_slots:
            raise CheckpointError(f"{folder} has {found} latent slots, the run asks for {latent.num_slots}")
        return model

    def equip(self, processor: AMVLProcessor, computed: Mapping[str, Patches], teacher: Method | None = None) -> None:
        """The encoders whose features have not been `computed`, and a new projector for each encoder.

        Raises ConfigError where the method has a problem with the model, such as a layer that is not there.
        """
        text, latent = self.model.config.text_config, LatentConfig(num_slots=self.model.config.num_slots)
        if problem := self.config.problem(latent, text.num_hidden_layers, zero_stage=0):
            raise ConfigError(problem)
        size = text.hidden_size
        weight = self.model.get_input_embeddings().weight
        for config in self.config.aligned_with:
            if config.name in computed:
                self.patches[config.name] = computed[config.name]
            else:
                encoder = self.encoders[config.name] = self._encoder(config, processor)
                self.patches[config.name] = Patches(*encoder.grid, encoder.width)
            projector = Projector(size, self.config.projector_width, self.patches[config.name].width)
            self.projectors[config.name] = projector.to(weight)

    def _encoder(self, config: EncoderConfig, processor: AMVLProcessor) -> VisionEncoder:
        if config.source == BASE:
            return BaseEncoder(config, self.backbone, self.model, processor.image_processor)
        return load_encoder(config)

    def frozen(self) -> list[nn.Module]:
        """The encoders."""
        return [self.encoders]

    def forward(self, batch: Batch, clock: Clock) -> StepOutput:
        """The objective and its terms."""
        taps = [self.config.align_layer] if self.projectors else []
        fed, losses_R = self.fed_back(batch, self.config.gradient_hops, taps)
        ntp = losses_R.sum() / clock.num_tokens
        terms, aligned_BM = {"ntp": ntp}, losses_R.new_zeros(0, 1)
        loss = ntp
        if self.projectors:
            aligned_BM = self.aligned(batch, fed.tapped[self.config.align_layer])
            share_B = torch.tensor(shares(batch), dtype=aligned_BM.dtype, device=aligned_BM.device) / clock.num_samples
            means_M = -(share_B[:, None] * aligned_BM).sum(0)
            terms["align"] = means_M.mean()
            loss = ntp + self.config.align_weight * terms["align"]
            if len(means_M) > 1:
                terms |= {f"align_{name}": mean for name, mean in zip(self.projectors, means_M, strict=True)}
        terms |= {"slot_norm": slot_norm(fed.inputs_TD), "loss": loss}
        found = {name: value.detach() for name, value in terms.items()}
        return StepOutput(loss, found, partial(_finite, batch, losses_R.detach(), aligned_BM.detach()))

    def aligned(self, batch: Batch, tapped_TD: Tensor) -> Tensor:
        """The similarity of each block that has a target with each encoder's features, [B, encoders].

        Every projector runs on every rank in every step: without a target it runs on zeros, which count nothing.
        """
        slots_BKD = tapped_TD.unflatten(0, (-1, self.model.config.num_slots)) if len(tapped_TD) else tapped_TD[:, None]
        about = [number for sample in batch.about for number in sample]
        if len(about) != len(slots_BKD):
            raise DataError(f"{batch.sample_ids}: {len(slots_BKD)} blocks of slots, but targets for {len(about)}")
        blocks = [block for block, number in enumerate(about) if number is not None]
        targets = [number for number in about if number is not None]
        found = []
        for name, projector in self.projectors.items():
            if not blocks:
                nothing_1D = tapped_TD.new_zeros(1, projector[0].in_features)
                found.append(0.0 * projector(nothing_1D).sum() + tapped_TD.new_zeros(0))
                continue
            up_BPD = upsampled(slots_BKD[blocks], self.patches[name], self.config.interpolation)
            found.append(similarities(projector(up_BPD), self.features(name, batch)[targets]))
        return torch.stack(found, 1)

    @torch.no_grad()
    def features(self, name: str, batch: Batch) -> Tensor:
        """What the encoder gives for the batch's targets, [targets, P, E]: computed before, or here.

        A DataError where they have another shape than the encoder's.
        """
        given = batch.targets[name].to(self.model.get_input_embeddings().weight.device)
        features_BPE: Tensor = given if given.is_floating_point() else self.encoders[name](given)
        patches = self.patches[name]
        if features_BPE.shape[1:] != (patches.number, patches.width):
            raise DataError(
                f"the features of {name} are {tuple(features_BPE.shape[1:])}, the encoder's are "
                f"{patches.rows} x {patches.columns} patches of {patches.width}"
            )
        return features_BPE

    def reference(self, batch: Batch, clock: Clock) -> Tensor:
        """The stock model token by token through the slots, one sample at a time."""
        from amvl_core.methods.valr.reference import objective

        return objective(self, batch, clock)


def shares(batch: Batch) -> list[float]:
    """Of each block that has a target, its share of its sample's alignment: a mean over the sample's blocks."""
    counts = [sum(number is not None for number in sample) for sample in batch.about]
    return [1.0 / count for count in counts for _ in range(count)]


def _finite(batch: Batch, losses_R: Tensor, aligned_BM: Tensor) -> list[bool]:
    """Of each sample, whether the losses of its label tokens and its blocks' similarities are finite."""
    tokens = finite_samples(batch, losses_R)
    counts: Sequence[int] = [0] * len(tokens)
    if len(aligned_BM):
        counts = [sum(number is not None for number in sample) for sample in batch.about]
    return [
        fine and bool(part.isfinite().all()) for fine, part in zip(tokens, aligned_BM.split(list(counts)), strict=True)
    ]


METHOD = Valr
