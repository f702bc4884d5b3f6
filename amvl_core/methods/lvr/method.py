"""Latent visual reasoning: L = L_CE + w L_MSE in one packed row, with vision tokens in the slots.

Shape suffixes: N tokens, R rows that are read, T slots, D hidden size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from amvl_core.contracts.errors import DataError
from amvl_core.data.batch import Batch
from amvl_core.data.encode import IGNORED
from amvl_core.methods.feedback.method import FeedbackMethod
from amvl_core.methods.losses import finite_samples, next_labels, token_losses, widen
from amvl_core.methods.lvr.config import LvrMethod
from amvl_core.methods.lvr.modeling import LVRForConditionalGeneration
from amvl_core.methods.method import Clock, StepOutput
from amvl_core.rows.packed import run_row


class Lvr(FeedbackMethod):
    """Next-token loss, and the error of what the state before a slot says of its vision token."""

    model_class = LVRForConditionalGeneration
    config: LvrMethod

    def __init__(self, model: Any, config: LvrMethod) -> None:
        super().__init__(model, config)
        model.config.num_slots = config.latent_steps

    def forward(self, batch: Batch, clock: Clock) -> StepOutput:
        """The objective and its terms."""
        slots, labels_N = filled_slots(batch, self.model.config.slot_token_id), next_labels(batch)
        embeds_ND, features_TD = self.filled(batch, slots)
        text = self.backbone.text(self.model)
        hidden_ND, _ = run_row(text, embeds_ND, self.positions(batch), self.spans(batch))
        wanted_N = labels_N != IGNORED
        device = hidden_ND.device
        logits_RV = self.model.lm_head(hidden_ND[wanted_N.to(device)])
        losses_R = token_losses(logits_RV, labels_N[wanted_N].to(device))
        before_TD = hidden_ND[torch.tensor(slots, dtype=torch.long, device=device) - 1]
        errors_T = (widen(before_TD) - widen(features_TD)).square().mean(-1)
        share_T = errors_T.new_tensor([1 / len(own) for own in batch.filled_with for _ in own])
        ntp, mse = losses_R.sum() / clock.num_tokens, (errors_T * share_T).sum() / clock.num_samples
        loss = ntp + self.config.feature_weight * mse
        blocks = losses_R.new_tensor(sum(map(bool, batch.filled_with)) / clock.num_samples)
        found = {"loss": loss.detach(), "ntp": ntp.detach(), "mse": mse.detach(), "blocks": blocks}
        fine_R, fine_T = losses_R.detach(), errors_T.detach()
        return StepOutput(loss, found, lambda: _finite(batch, fine_R, fine_T))

    def filled(self, batch: Batch, slots: list[int]) -> tuple[Tensor, Tensor]:
        """Embeddings [N, D] with vision tokens in the `slots`, and those tokens [T, D], without gradient."""
        embeds_ND = self.embed(batch)
        device = embeds_ND.device
        sources = torch.tensor([token for own in batch.filled_with for token in own], dtype=torch.long, device=device)
        features_TD = embeds_ND.detach()[sources]
        return embeds_ND.index_copy(0, torch.tensor(slots, dtype=torch.long, device=device), features_TD), features_TD

    def reference(self, batch: Batch, clock: Clock) -> Tensor:
        """The stock model, one sample at a time."""
        from amvl_core.methods.lvr.reference import objective

        return objective(self, batch, clock)


def filled_slots(batch: Batch, slot_token_id: int | None) -> list[int]:
    """The tokens that are slots. A DataError names the sample whose slots are not as many as what fills them."""
    found: list[int] = []
    start = 0
    for name, ids_N, own in zip(
        batch.sample_ids, batch.input_ids_N.split(batch.lengths), batch.filled_with, strict=True
    ):
        places = (ids_N == slot_token_id).nonzero()[:, 0].tolist()
        if len(places) != len(own):
            raise DataError(f"{name}: {len(places)} latent slots, but {len(own)} vision tokens to fill them with")
        found += [start + place for place in places]
        start += len(ids_N)
    return found


def _finite(batch: Batch, losses_R: Tensor, errors_T: Tensor) -> list[bool]:
    """Of each sample, whether the losses of its label tokens and the errors of its slots are finite."""
    slots = errors_T.split([len(own) for own in batch.filled_with])
    tokens = finite_samples(batch, losses_R)
    return [fine and bool(part.isfinite().all()) for fine, part in zip(tokens, slots, strict=True)]


METHOD = Lvr
