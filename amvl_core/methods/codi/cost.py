"""What a training step of CODI takes, for the planner. Imports no torch."""

from __future__ import annotations

from amvl_core.methods.cost import RowsOfStep
from amvl_core.methods.feedback.cost import FeedbackCost, fed_back_rows
from amvl_core.rows.flops import sft_rows


class CodiCost(FeedbackCost):
    """A student with slots, and a teacher with steps. As many tokens are counted for both: the data know the steps."""

    def ways(self, x: int, y: int) -> dict[str, RowsOfStep]:
        """Fine-tuning has no block and no teacher."""
        rows = [*fed_back_rows(x, y, self.blocks, self.slots), *sft_rows(x, y)]
        return {"codi": RowsOfStep(rows, draws=2), "sft": RowsOfStep(sft_rows(x, y))}

    def parts(self, size: int) -> dict[str, int]:
        """Two linear layers and a norm."""
        return {"projection": 2 * (size + 1) * size + 2 * size}
