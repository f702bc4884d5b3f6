"""What goes wrong in training while it runs: a pure function of what is logged."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from amvl_core.contracts.progress import Advice

WINDOW = 20
"""Logged steps whose mean is judged."""
OVER = f"over {WINDOW} logged steps"


@dataclass
class Watch:
    """Judges the mean of one reading over the last `WINDOW` logged steps, and says once that it has gone wrong.

    It is wrong beyond `limit` (above it, or below it) and right again at half or twice that, so a mean that wavers
    about the limit is said once. A reading of None does not apply, and the window starts anew.
    """

    kind: str
    reading: Callable[[dict[str, float]], float | None]
    limit: float
    above: bool
    text: str
    values: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    wrong: bool = False

    def step(self, terms: dict[str, float]) -> list[Advice]:
        """Takes one logged step; the advice where this step is the onset."""
        value = self.reading(terms)
        if value is None:
            self.values.clear()
            self.wrong = False
            return []
        self.values.append(value)
        if len(self.values) < WINDOW:
            return []
        mean = sum(self.values) / WINDOW
        before, factor = self.wrong, 0.5 if self.above else 2.0
        limit = self.limit * factor if before else self.limit
        self.wrong = mean > limit if self.above else mean < limit
        return [Advice(self.kind, self.text.format(mean=mean))] if self.wrong and not before else []
