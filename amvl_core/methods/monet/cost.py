"""What a training step of Monet takes, for the planner. Imports no torch."""

from __future__ import annotations

from amvl_core.contracts.latent import LatentConfig
from amvl_core.methods.cost import RowsOfStep
from amvl_core.methods.feedback.cost import FeedbackCost, fed_back_rows
from amvl_core.methods.monet.config import MonetMethod
from amvl_core.rows.flops import sft_rows


class MonetCost(FeedbackCost):
    """One of Monet's stages with one auxiliary image a sample: it is in y, and counted in stage 3 too."""

    def __init__(self, method: MonetMethod, latent: LatentConfig) -> None:
        super().__init__(1, latent.num_slots)
        self.method, self.frozen_models = method, int(method.weight_of_alignment > 0)

    def ways(self, x: int, y: int) -> dict[str, RowsOfStep]:
        """A teacher runs forward alone. Rows behind the first slot go backward twice: for the slots' inputs first."""
        fed_back, plain = fed_back_rows(x, y, self.blocks, self.slots), sft_rows(x, y)
        if self.method.stage == 1:
            return {"sft": RowsOfStep(plain)}
        teacher = plain if self.method.stage == 2 else fed_back
        once = [*fed_back[1:], *(teacher if self.frozen_models else ())]
        return {"monet": RowsOfStep(fed_back, once=once), "sft": RowsOfStep(plain)}
