"""What a training step of VaLR takes, for the planner. Imports no torch."""

from __future__ import annotations

from amvl_core.contracts.latent import LatentConfig
from amvl_core.methods.cost import Cost, RowsOfStep
from amvl_core.methods.valr.config import ValrMethod
from amvl_core.rows.flops import sft_rows
from amvl_core.rows.spans import Piece, Rows, Span

ASSUMED_BLOCKS = 3
"""Blocks of a sample where they stand before every step or in the place of images: the data alone know."""
ENCODER_WIDTH = 1024
"""Of the features of a ViT-L, which all of the paper's encoders are."""


class ValrCost(Cost):
    """VaLR with as many blocks in every sample. The frozen encoders are not counted: 0.25 % each at 7B."""

    def __init__(self, method: ValrMethod, latent: LatentConfig) -> None:
        self.method, self.slots = method, latent.num_slots
        self.blocks = 1 if method.blocks in ("first_step", "paper") else min(method.max_blocks, ASSUMED_BLOCKS)
        super().__init__(self.blocks * (self.slots + 2))

    def ways(self, x: int, y: int) -> dict[str, RowsOfStep]:
        """Fine-tuning has no block."""
        return {
            "fed_back": RowsOfStep(fed_back_rows(x, y, self.blocks, self.slots)),
            "sft": RowsOfStep(sft_rows(x, y)),
        }

    def parts(self, size: int) -> dict[str, int]:
        """One projector an encoder."""
        hidden = self.method.projector_width
        each = (size + 1) * hidden + (hidden + 1) * hidden + (hidden + 1) * ENCODER_WIDTH
        return {"projectors": each * len(self.method.aligned_with)}


def fed_back_rows(x: int, y: int, blocks: int, slots: int) -> Rows:
    """One sample as `rows/feedback.py` runs it: y tokens in `blocks` equal stretches, a block before each."""
    rows: list[list[Span]] = [[Span(x + 1, 2)]]
    chain = [Piece(0, 0, 0, x + 1)]
    for block in range(blocks):
        for link in range(slots):
            rows.append([Span(1, int(link + 1 < slots), tuple(chain))])
            chain.append(Piece(len(rows) - 1, 0, 0, 1))
        # The exit marker, the stretch, and the next entry marker where a block follows.
        size = y * (block + 1) // blocks - y * block // blocks + (2 if block + 1 < blocks else 1)
        rows.append([Span(size, size, tuple(chain))])
        chain.append(Piece(len(rows) - 1, 0, 0, size))
    return rows
