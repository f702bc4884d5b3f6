"""What a training step of VaLR takes, for the planner. Imports no torch."""

from __future__ import annotations

from amvl_core.contracts.latent import LatentConfig
from amvl_core.methods.feedback.cost import FeedbackCost
from amvl_core.methods.valr.config import ValrMethod

ASSUMED_BLOCKS = 3
"""Blocks of a sample where they stand before every step or in the place of images: the data alone know."""
ENCODER_WIDTH = 1024
"""Of the features of a ViT-L, which all of the paper's encoders are."""


class ValrCost(FeedbackCost):
    """VaLR with as many blocks in every sample. The frozen encoders are not counted: 0.25 % each at 7B."""

    def __init__(self, method: ValrMethod, latent: LatentConfig) -> None:
        self.method = method
        once = method.blocks in ("first_step", "paper")
        super().__init__(1 if once else min(method.max_blocks, ASSUMED_BLOCKS), latent.num_slots)

    def parts(self, size: int) -> dict[str, int]:
        """One projector an encoder."""
        hidden = self.method.projector_width
        each = (size + 1) * hidden + (hidden + 1) * hidden + (hidden + 1) * ENCODER_WIDTH
        return {"projectors": each * len(self.method.aligned_with)}
