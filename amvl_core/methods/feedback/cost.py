"""What a training step with fed-back slots takes, for the planner. Imports no torch."""

from __future__ import annotations

from amvl_core.methods.cost import Cost, RowsOfStep
from amvl_core.rows.flops import sft_rows
from amvl_core.rows.spans import Piece, Rows, Span


class FeedbackCost(Cost):
    """As many blocks of as many slots in every sample."""

    def __init__(self, blocks: int, slots: int) -> None:
        self.blocks, self.slots = blocks, slots
        super().__init__(blocks * (slots + 2))

    def ways(self, x: int, y: int) -> dict[str, RowsOfStep]:
        """Fine-tuning has no block."""
        return {
            "fed_back": RowsOfStep(fed_back_rows(x, y, self.blocks, self.slots)),
            "sft": RowsOfStep(sft_rows(x, y)),
        }


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
