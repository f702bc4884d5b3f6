"""Supervised fine-tuning: the base model itself, next-token loss on the answer."""

from __future__ import annotations

from typing import Any

from transformers import Qwen2_5_VLForConditionalGeneration

from amvl_core.config import LatentConfig, SftMethod
from amvl_core.data.batch import Batch
from amvl_core.methods.base import Clock, Method, StepOutput
from amvl_core.objectives import next_token_loss
from amvl_core.passes import label_logits, rope_positions
from amvl_core.processor import AMVLProcessor


class Sft(Method):
    """One pass over [x, y], logits on the rows that predict y."""

    def __init__(self, model: Any, config: SftMethod) -> None:
        super().__init__(model)

    @classmethod
    def load(cls, folder: str, processor: AMVLProcessor, latent: LatentConfig, **kwargs: Any) -> Any:
        """The stock Qwen2.5-VL model."""
        return Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, **kwargs)

    @classmethod
    def num_slots(cls, latent: LatentConfig) -> int:
        """No latent block."""
        return 0

    def forward(self, batch: Batch, clock: Clock) -> StepOutput:
        """Next-token loss."""
        hidden_BTD = self.model.model.language_model(
            inputs_embeds=self.embed(batch), position_ids=rope_positions(self.model, batch), use_cache=False
        ).last_hidden_state
        logits_NV, labels_N = label_logits(self.model, hidden_BTD, batch.labels_BT)
        loss = next_token_loss(logits_NV, labels_N, clock.num_tokens)
        return StepOutput(loss, {"loss": loss.detach(), "ntp": loss.detach()})
