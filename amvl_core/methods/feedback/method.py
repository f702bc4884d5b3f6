"""What the methods share that feed states back: their model, its markers, its prober, and the packed step.

Shape suffixes: N tokens, R rows with a label.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from amvl_core.backbones.processor import AMVLProcessor
from amvl_core.contracts.errors import DataError
from amvl_core.contracts.latent import LatentConfig
from amvl_core.contracts.method import MethodConfig
from amvl_core.data.batch import Batch
from amvl_core.data.encode import IGNORED
from amvl_core.methods.feedback.loading import load_feedback
from amvl_core.methods.feedback.modeling import FeedbackForConditionalGeneration
from amvl_core.methods.losses import next_labels, token_losses
from amvl_core.methods.method import Method
from amvl_core.methods.probing import Prober
from amvl_core.rows.bottleneck import token_kinds
from amvl_core.rows.feedback import FedBack, run_fed_back


class FeedbackMethod(Method):
    """A method whose model is a `FeedbackForConditionalGeneration`."""

    model: FeedbackForConditionalGeneration
    model_class: ClassVar[type[FeedbackForConditionalGeneration]]

    @classmethod
    def load(cls, folder: str, processor: AMVLProcessor, latent: LatentConfig, **kwargs: Any) -> Any:
        """From a stock checkpoint, or from one of its own with any number of slots: no weight depends on it."""
        model = load_feedback(cls.model_class, folder, processor, latent, **kwargs)
        model.config.num_slots = latent.num_slots
        return model

    @staticmethod
    def set_blocks(model: FeedbackForConditionalGeneration, mode: str | None, steps: int | None) -> None:
        """By the model's configuration."""
        if mode is not None:
            model.config.latent_mode = mode
        model.config.latent_steps = steps

    @staticmethod
    def prober(model: FeedbackForConditionalGeneration, processor: Any, method: MethodConfig) -> Prober:
        """Its model under every change of its slots' inputs."""
        from amvl_core.methods.feedback import probes

        return probes.Prober(model, processor, method)

    def new_token_rows(self) -> list[int]:
        """Both markers; a slot's own embedding is never read."""
        config = self.model.config
        return [token for token in (config.block_start_token_id, config.block_end_token_id) if token is not None]

    def scalars(self, terms: dict[str, Tensor]) -> dict[str, float]:
        """With the mean of the slots' norms; a step without a slot has none."""
        rest = dict(terms)
        norm, slots = rest.pop("slot_norm", torch.zeros(2)).tolist()
        return super().scalars(rest) | ({"slot_norm": norm / slots} if slots else {})

    def fed_back(
        self, batch: Batch, hops: int | None, taps: Sequence[int] = (), tapped: Sequence[int] | None = None, **how: Any
    ) -> tuple[FedBack, Tensor]:
        """The batch with its slots fed back, and the losses [R] of its label tokens; as `run`."""
        labels_N = next_labels(batch)
        wanted = (labels_N != IGNORED).nonzero()[:, 0].tolist()
        fed = self.run(batch, wanted, taps=taps, hops=hops, tapped=tapped, **how)
        return fed, token_losses(self.model.lm_head(fed.hidden_RD), labels_N[wanted].to(fed.hidden_RD.device))

    def run(self, batch: Batch, wanted: Sequence[int], masked: bool = True, **how: Any) -> FedBack:
        """`run_fed_back` on a batch with its blocks; `masked`: under the model's mask."""
        slots = self.blocks(batch)
        embeds_ND, positions_3N = self.embed(batch), self.positions(batch)
        text, kinds = self.backbone.text(self.model), token_kinds(self.model, batch.input_ids_N) if masked else None
        feed = self.model.fed
        return run_fed_back(text, embeds_ND, positions_3N, batch.lengths, slots, wanted, feed=feed, kinds=kinds, **how)

    def blocks(self, batch: Batch) -> list[list[range]]:
        """Where each sample's blocks have their slots: as many in each as the model writes.

        A DataError names the sample with a block of another length.
        """
        found, num_slots = [], self.model.config.num_slots
        for name, places in zip(batch.sample_ids, self.slot_places(batch), strict=True):
            blocks = [range(first, first + num_slots) for first in places[::num_slots]]
            if places != [place for block in blocks for place in block]:
                raise DataError(f"{name}: latent slots stand at tokens {places}, not in blocks of {num_slots}")
            found.append(blocks)
        return found

    def slot_places(self, batch: Batch) -> list[list[int]]:
        """The slots among each sample's own tokens."""
        slot = self.model.config.slot_token_id
        return [(ids_T == slot).nonzero()[:, 0].tolist() for ids_T in batch.input_ids_N.split(batch.lengths)]


def slot_norm(inputs_TD: Tensor) -> Tensor:
    """Of the norms of what a batch's slots are given: the sum, and how many there are, [2]."""
    norms_T = inputs_TD.detach().norm(dim=-1)
    return torch.stack([norms_T.sum(), norms_T.new_tensor(len(norms_T))])
