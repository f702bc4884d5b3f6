"""Supervised fine-tuning: the base model itself, next-token loss on the answer."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from amvl_core.backbones.processor import AMVLProcessor
from amvl_core.contracts.latent import LatentConfig
from amvl_core.data.batch import Batch
from amvl_core.data.encode import IGNORED
from amvl_core.methods.loading import load_stock
from amvl_core.methods.losses import finite_samples, next_labels, token_losses
from amvl_core.methods.method import Clock, Method, StepOutput
from amvl_core.rows.packed import run_row


class Sft(Method):
    """One pass over [x, y], logits on the rows that predict y."""

    @classmethod
    def load(cls, folder: str, processor: AMVLProcessor, latent: LatentConfig, **kwargs: Any) -> Any:
        """The stock model."""
        return load_stock(folder, processor, None, **kwargs)

    def forward(self, batch: Batch, clock: Clock) -> StepOutput:
        """Next-token loss."""
        logits_NV, labels_N = self.logits(batch)
        losses_N = token_losses(logits_NV, labels_N)
        loss, parts_N = losses_N.sum() / clock.num_tokens, losses_N.detach()
        return StepOutput(loss, {"loss": loss.detach(), "ntp": loss.detach()}, lambda: finite_samples(batch, parts_N))

    def logits(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits and labels on the rows that predict a label token, and on no other: [N, V] and [N]."""
        hidden_ND = self.states(batch)
        predicts_N, labels_R = predicted(batch)
        return self.model.lm_head(hidden_ND[predicts_N.to(hidden_ND.device)]), labels_R.to(hidden_ND.device)

    def states(self, batch: Batch) -> Tensor:
        """Final states [N, D] of the packed batch."""
        text = self.backbone.text(self.model)
        return run_row(text, self.embed(batch), self.positions(batch), self.spans(batch))[0]


def predicted(batch: Batch) -> tuple[Tensor, Tensor]:
    """Which tokens predict a label [N], and those labels [R]."""
    labels_N = next_labels(batch)
    predicts_N = labels_N != IGNORED
    return predicts_N, labels_N[predicts_N]


METHOD = Sft
