"""Mull-Tokens: L = L_CE + a L_words + b L_images in one packed row (first stage), or L_CE alone.

Shape suffixes: N tokens, R rows with a label, T slots, W words of all slots, I slots of images, D hidden size, V
vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from amvl_core.backbones.processor import AMVLProcessor
from amvl_core.contracts.encoders import Patches
from amvl_core.contracts.errors import DataError
from amvl_core.contracts.latent import LatentConfig
from amvl_core.data.batch import Batch
from amvl_core.encoders.base import BaseEncoder
from amvl_core.methods.block import slot_tokens
from amvl_core.methods.loading import block_ids, load_stock
from amvl_core.methods.losses import finite_samples, token_losses, widen
from amvl_core.methods.method import Clock, Method, StepOutput
from amvl_core.methods.mull.config import MullMethod
from amvl_core.methods.probing import Prober
from amvl_core.methods.sft.method import Sft, predicted


class Thoughts(NamedTuple):
    """What the slots of a batch stand for: places of all slots; slot and id of each word; slot and target of each
    image. A share is that of a word or an image in its sample's mean.
    """

    places: list[int]
    words: list[tuple[int, int]]
    word_shares: list[float]
    images: list[tuple[int, int]]
    image_shares: list[float]


class Mull(Sft):
    """Learned slots in the prompt of a stock model, each of which stands for a step in the first stage."""

    config: MullMethod

    def __init__(self, model: Any, config: MullMethod) -> None:
        super().__init__(model, config)
        self.encoder: BaseEncoder | None = None

    @classmethod
    def load(cls, folder: str, processor: AMVLProcessor, latent: LatentConfig, **kwargs: Any) -> Any:
        """The stock model with rows for the block's tokens."""
        return load_stock(folder, processor, slot_tokens(latent), latent.token_init, **kwargs)

    def new_token_rows(self) -> list[int]:
        """The slots and both markers."""
        return block_ids(self.model)

    def equip(self, processor: AMVLProcessor, computed: Mapping[str, Patches], teacher: Method | None = None) -> None:
        """The base model's vision encoder as a target. It has no weights of its own."""
        for config in self.config.aligned_with:
            self.encoder = BaseEncoder(config, self.backbone, self.model, processor.image_processor)

    @staticmethod
    def prober(model: Any, processor: Any, method: MullMethod) -> Prober:
        """Its model under every change of its slots."""
        from amvl_core.methods.mull.probes import MullProber

        return MullProber(model, processor, method)

    def forward(self, batch: Batch, clock: Clock) -> StepOutput:
        """The objective and its terms."""
        if not self.config.guided:
            return super().forward(batch, clock)
        found, hidden_ND = thoughts(batch, self.model.config.slot_token_ids), self.states(batch)
        device = hidden_ND.device
        predicts_N, labels_R = predicted(batch)
        slots_TD = hidden_ND[torch.tensor(found.places, device=device)]
        # One call of the head and one of the encoder on every rank, whatever its samples hold.
        logits_V = self.model.lm_head(torch.cat([hidden_ND[predicts_N.to(device)], slots_TD]))
        logits_RV, logits_TV = logits_V.split([len(labels_R), len(slots_TD)])
        targets_ID = self.targets(batch)
        losses_R = token_losses(logits_RV, labels_R.to(device))
        slot_W, word_W = torch.tensor(found.words, dtype=torch.long, device=device).reshape(-1, 2).unbind(1)
        words_W = -widen(logits_TV).log_softmax(-1)[slot_W, word_W]
        slot_I, target_I = torch.tensor(found.images, dtype=torch.long, device=device).reshape(-1, 2).unbind(1)
        said_ID = widen(slots_TD)[slot_I]
        images_I = 1 - functional.cosine_similarity(said_ID, targets_ID[target_I].to(said_ID.dtype), dim=-1)
        ntp = losses_R.sum() / clock.num_tokens
        words = (words_W * words_W.new_tensor(found.word_shares)).sum() / clock.num_samples
        images = (images_I * images_I.new_tensor(found.image_shares)).sum() / clock.num_samples
        loss = ntp + self.config.words_weight * words + self.config.images_weight * images
        terms = {"loss": loss, "ntp": ntp, "words": words, "images": images}
        fine = losses_R.detach(), words_W.detach(), images_I.detach()
        return StepOutput(loss, {name: value.detach() for name, value in terms.items()}, lambda: _finite(batch, *fine))

    @torch.no_grad()
    def targets(self, batch: Batch) -> Tensor:
        """The mean over its patches of each target image's features, [images, D]. It is asked on every rank."""
        assert self.encoder is not None, "equip comes before a step"
        given = next(iter(batch.targets.values()), None)
        if given is None:
            size = self.encoder.size
            given = torch.zeros(1, 3, size, size, dtype=torch.uint8)
        features_IPD: Tensor = self.encoder(given.to(self.model.get_input_embeddings().weight.device))
        return features_IPD.mean(1)

    def reference(self, batch: Batch, clock: Clock) -> Tensor:
        """The stock model, one sample at a time."""
        from amvl_core.methods.mull.reference import objective

        return objective(self, batch, clock)


def thoughts(batch: Batch, slot_token_ids: list[int]) -> Thoughts:
    """What the slots stand for. A DataError names the sample whose slots are not as many."""
    found, start = Thoughts([], [], [], [], []), 0
    ids = set(slot_token_ids)
    for name, ids_N, said, about in zip(
        batch.sample_ids, batch.input_ids_N.split(batch.lengths), batch.words, batch.about, strict=True
    ):
        places = [start + place for place, token in enumerate(ids_N.tolist()) if token in ids]
        if not len(places) == len(said) == len(about):
            raise DataError(f"{name}: {len(places)} latent slots stand for {len(said)} steps and {len(about)} targets")
        in_words, in_images = sum(map(bool, said)), sum(number is not None for number in about)
        for slot, (words, number) in enumerate(zip(said, about, strict=True), len(found.places)):
            found.words.extend((slot, word) for word in words)
            found.word_shares.extend([1 / len(words) / in_words for _ in words])
            if number is not None:
                found.images.append((slot, number))
                found.image_shares.append(1 / in_images)
        found.places.extend(places)
        start += len(ids_N)
    return found


def _finite(batch: Batch, losses_R: Tensor, words_W: Tensor, images_I: Tensor) -> list[bool]:
    """Of each sample, whether the losses of its label tokens and of its slots are finite."""
    words = words_W.split([sum(map(len, said)) for said in batch.words])
    images = images_I.split([sum(number is not None for number in about) for about in batch.about])
    parts = zip(finite_samples(batch, losses_R), words, images, strict=True)
    return [fine and bool(w.isfinite().all() and i.isfinite().all()) for fine, w, i in parts]


METHOD = Mull
