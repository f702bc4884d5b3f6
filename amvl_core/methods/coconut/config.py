"""Coconut: what the method says of itself without torch (arXiv 2412.06769)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from amvl_core.contracts.latent import LatentConfig
from amvl_core.contracts.sample import Segment, StoredSample
from amvl_core.methods.curriculum import StepsReplaced
from amvl_core.methods.reply_blocks import LATENT_END, LATENT_START, SLOT, FeedbackBlocks

if TYPE_CHECKING:
    from amvl_core.contracts.ablations import Table
    from amvl_core.contracts.config import RunConfig
    from amvl_core.methods.cost import Cost


class CoconutMethod(StepsReplaced, FeedbackBlocks):
    """Chain of continuous thought: fed-back states in the place of the first steps. Next-token loss alone.

    A stage replaces `replaced_steps` of them; the curriculum is in `config.stages` (`methods/curriculum.py`).
    """

    kind: Literal["coconut"] = "coconut"
    label = "Coconut"
    has_latents = True
    writes_blocks = True
    model_type = "coconut"
    replaced_steps: int | None = Field(
        None,
        ge=1,
        description="the first steps that slots stand for, in every sample as many slots; null: all steps are gone, "
        "and latent.num_slots slots stand for them",
    )
    slots_per_step: int = Field(2, ge=1, description="c, the slots that stand for a step (2 on GSM8k, 1 on ProsQA)")
    gradient_hops: int | None = Field(
        None, ge=0, description="feed-back links in a row that gradient passes; 0: none, left out: all (exact)"
    )

    def slots(self, latent: LatentConfig) -> list[str]:
        """c slots for each step that is replaced."""
        if self.replaced_steps is None:
            return [SLOT] * latent.num_slots
        return [SLOT] * (self.slots_per_step * self.replaced_steps)

    def layout(self, sample: StoredSample, latent: LatentConfig) -> list[Segment]:
        """Question, block, the steps that are left, answer. No token of the block carries a label."""
        block = LATENT_START + "".join(self.slots(latent)) + LATENT_END
        return [Segment("prompt", sample.question), Segment("latent", block), *self.reply(sample)]

    def added_tokens(self, latent: LatentConfig) -> int:
        """The slots and both markers."""
        return len(self.slots(latent)) + 2

    def cost(self, latent: LatentConfig) -> Cost:
        """Two packed rows and a pass for each slot."""
        from amvl_core.methods.feedback.cost import FeedbackCost

        return FeedbackCost(1, len(self.slots(latent)))

    def problem(self, latent: LatentConfig, num_layers: int | None, zero_stage: int) -> str | None:
        """More slots than the last stage has, or a ZeRO stage that gathers the weights for every slot."""
        if (found := len(self.slots(latent))) > latent.num_slots:
            return (
                f"{self.replaced_steps} steps of {self.slots_per_step} slots are {found} slots, but all steps together "
                f"have latent.num_slots = {latent.num_slots}; raise it, or replace fewer steps"
            )
        if zero_stage == 3:
            return "zero_stage 3 gathers all weights anew for every fed-back slot; use 0, 1 or 2"
        return None

    @classmethod
    def presets(cls) -> dict[str, Callable[[], RunConfig]]:
        """The curriculum at the demo's size."""
        from amvl_core.methods.coconut.presets import coconut_demo

        return {"coconut-demo": coconut_demo}

    @classmethod
    def tables(cls) -> dict[str, Table]:
        """The paper's controls."""
        from amvl_core.methods.coconut.tables import TABLES

        return TABLES


CONFIG = CoconutMethod
