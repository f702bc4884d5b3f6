"""Coconut: what the method says of itself without torch (arXiv 2412.06769)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from amvl_core.contracts.latent import LatentConfig
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
        """The same token for each."""
        return [SLOT] * self.block_length(latent)

    def most_slots(self, latent: LatentConfig) -> int:
        """Those of the last stage, where samples are drawn for any."""
        return latent.num_slots if self.stage_mix else super().most_slots(latent)

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
