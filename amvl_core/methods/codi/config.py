"""CODI: what the method says of itself without torch (arXiv 2502.21074)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from amvl_core.contracts.latent import LatentConfig
from amvl_core.contracts.sample import Segment, StoredSample, reply
from amvl_core.methods.masks import LaterMaskedMethod
from amvl_core.methods.reply_blocks import PromptBlock

if TYPE_CHECKING:
    from amvl_core.contracts.ablations import Table
    from amvl_core.contracts.config import RunConfig
    from amvl_core.methods.cost import Cost


class CodiMethod(LaterMaskedMethod, PromptBlock):
    """Self-distillation of reasoning in words into `latent.num_slots` fed-back slots.

    L = CE(student) + CE(teacher) + `distil_weight` D: one model is the student, which has slots in the place of steps,
    and the teacher, which has the steps. D compares their states at the token before what both write.
    """

    kind: Literal["codi"] = "codi"
    label = "CODI"
    model_type = "codi"
    own_parts = ("projection.",)
    columns: ClassVar = {**PromptBlock.columns, "distil": ("distil",)}
    distil_weight: float = Field(
        20.0, ge=0, description="f, the weight of the distillation (20 for Llama-3.2-1B, 1 for GPT-2)"
    )

    @property
    def sequences(self) -> int:
        """The student's and the teacher's."""
        return 2

    def teacher(self, sample: StoredSample, latent: LatentConfig) -> list[Segment]:
        """The question, all steps, the answer."""
        return [Segment("prompt", sample.question), *reply(sample)]

    def cost(self, latent: LatentConfig) -> Cost:
        """The student's rows and the teacher's."""
        from amvl_core.methods.codi.cost import CodiCost

        return CodiCost(1, self.most_slots(latent))

    @classmethod
    def presets(cls) -> dict[str, Callable[[], RunConfig]]:
        """The demo's data and model."""
        from amvl_core.methods.codi.presets import codi_demo

        return {"codi-demo": codi_demo}

    @classmethod
    def tables(cls) -> dict[str, Table]:
        """Controls."""
        from amvl_core.methods.codi.tables import TABLES

        return TABLES


CONFIG = CodiMethod
