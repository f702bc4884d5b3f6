"""Coconut: what the method says of itself without torch (arXiv 2412.06769)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field

from amvl_core.contracts.latent import LatentConfig
from amvl_core.contracts.sample import StoredSample
from amvl_core.methods.curriculum import MixedStages
from amvl_core.methods.masks import LaterMaskedMethod
from amvl_core.methods.reply_blocks import SLOT, PromptBlock

if TYPE_CHECKING:
    from amvl_core.contracts.ablations import Table
    from amvl_core.contracts.config import RunConfig


class CoconutMethod(LaterMaskedMethod, MixedStages, PromptBlock):
    """Chain of continuous thought: fed-back states in the place of the first steps. Next-token loss alone.

    A stage replaces `replaced_steps` of them; the curriculum is in `config.stages` (`methods/curriculum.py`).
    """

    kind: Literal["coconut"] = "coconut"
    label = "Coconut"
    model_type = "coconut"
    slots_per_step: int = Field(2, ge=1, description="c, the slots that stand for a step (GSM8k: 2, ProsQA: 1)")

    def slots(self, latent: LatentConfig) -> list[str]:
        """c slots for each step that is replaced; `latent.num_slots` for all steps together."""
        return [SLOT] * (latent.num_slots if self.replaced_steps is None else self.slots_per_step * self.replaced_steps)

    def for_training(self, sample: StoredSample, latent: LatentConfig) -> Self:
        """No draw has more slots than the last stage: where one would, all steps are gone, as in that stage.

        Under the bottleneck mask a draw without a slot does not count, because such a sample would be blind.
        """
        drawn = super().for_training(sample, latent)
        if drawn.bottleneck and drawn.replaced_steps == 0:
            return self
        beyond = len(drawn.slots(latent)) > latent.num_slots
        return drawn.model_copy(update={"replaced_steps": None}) if beyond else drawn

    def most_slots(self, latent: LatentConfig) -> int:
        """Those of the last stage, where samples are drawn for any."""
        return latent.num_slots if self.stage_mix else super().most_slots(latent)

    def problem(self, latent: LatentConfig, num_layers: int | None, zero_stage: int) -> str | None:
        """More slots than the last stage has, or a ZeRO stage that gathers the weights for every slot."""
        if (found := len(self.slots(latent))) > latent.num_slots:
            return (
                f"{self.replaced_steps} steps of {self.slots_per_step} slots are {found} slots, but all steps together "
                f"have latent.num_slots = {latent.num_slots}; raise it, or replace fewer steps"
            )
        return super().problem(latent, num_layers, zero_stage)

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
