"""Chain of continuous thought: next-token loss behind a block of fed-back states, with gradient through all of them."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from amvl_core.data.batch import Batch
from amvl_core.methods.coconut.config import CoconutMethod
from amvl_core.methods.coconut.modeling import CoconutForConditionalGeneration
from amvl_core.methods.feedback.method import FeedbackMethod, slot_norm
from amvl_core.methods.feedback.reference import next_token_loss
from amvl_core.methods.losses import finite_samples
from amvl_core.methods.method import Clock, StepOutput


class Coconut(FeedbackMethod):
    """One stage of the curriculum."""

    model_class = CoconutForConditionalGeneration
    config: CoconutMethod

    def __init__(self, model: Any, config: CoconutMethod) -> None:
        super().__init__(model, config)
        if config.replaced_steps is not None:
            model.config.num_slots = config.slots_per_step * config.replaced_steps

    def blocks(self, batch: Batch) -> list[list[range]]:
        """One block of a sample; in a mixture of stages as long as its own stage's, or empty."""
        if not self.config.stage_mix:
            return super().blocks(batch)
        return [[range(places[0], places[-1] + 1)] if places else [] for places in self.slot_places(batch)]

    def forward(self, batch: Batch, clock: Clock) -> StepOutput:
        """Next-token loss."""
        fed, losses_R = self.fed_back(batch, self.config.gradient_hops)
        loss, parts_R = losses_R.sum() / clock.num_tokens, losses_R.detach()
        terms = {"loss": loss.detach(), "ntp": loss.detach(), "slot_norm": slot_norm(fed.inputs_TD)}
        return StepOutput(loss, terms, lambda: finite_samples(batch, parts_R))

    def reference(self, batch: Batch, clock: Clock) -> Tensor:
        """The stock model token by token through the slots, one sample at a time."""
        return next_token_loss(self, batch, clock)


METHOD = Coconut
