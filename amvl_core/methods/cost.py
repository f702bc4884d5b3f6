"""What a training step of a method takes, for the planner: packed rows, and parameters that a stock model has not.

Imports no torch: plans are made where there is none.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from amvl_core.rows.flops import rows_flops, sft_rows
from amvl_core.rows.spans import Rows, Span


class RowsOfStep(NamedTuple):
    """One sample's packed rows, in the order they run, and how often its labels get logits.

    `once` are rows that take one pass: those of a frozen teacher, and those that go backward a second time. `cut`: each
    of `rows` is differentiated in a call of its own (`rows/cut.py`).
    """

    rows: Rows
    draws: int = 1
    once: Rows = ()
    cut: bool = False

    def flops(self, config: Any, logit_rows: int, passes: float = 3.0) -> float:
        """A step with logits on `logit_rows` rows of each draw; forward and backward together are `passes` forward."""
        return passes * rows_flops(config, self.rows, self.draws * logit_rows) + rows_flops(config, self.once, 0)


class Cost:
    """A method of one plain row: `added` tokens of its layout, the prompt and the answer."""

    frozen_models: int = 0
    """Frozen models as large as the one that is trained, which lie beside it."""

    def __init__(self, added: int = 0) -> None:
        self.added = added

    def ways(self, x: int, y: int) -> dict[str, RowsOfStep]:
        """A step on x tokens of prompt and y of answer as it is run, then other ways to compare it with."""
        return {"sft": RowsOfStep(sft_rows(x + self.added, y))}

    def step(self, x: int, y: int) -> RowsOfStep:
        """A step as it is run."""
        return next(iter(self.ways(x, y).values()))

    def prefill_flops(self, config: Any, x: int) -> float:
        """Up to the first token of an answer, behind a prompt of x tokens and what the layout adds."""
        return rows_flops(config, [[Span(x + self.added, read=1)]], 1)

    def parts(self, size: int) -> dict[str, int]:
        """Its own parameters by part, on a model whose hidden states have `size` elements."""
        return {}
