"""How long work tells how far it is: one event type for every stage, one callback."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Progress:
    """`done` of `total` units of `stage`; `metrics` at training step `done` (name -> value).

    `total` is 0 until it is known.
    """

    stage: str
    done: int
    total: int
    unit: str
    seconds_left: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)

    def line(self) -> str:
        """One line for a terminal or a log."""
        amount = f"{self.done:,}/{self.total:,}" if self.total else "counting"
        parts = [f"{self.stage}: {amount} {self.unit}"]
        parts += [f"{name} {_number(value)}" for name, value in self.metrics.items()]
        if self.seconds_left is not None:
            parts.append(f"{_clock(self.seconds_left)} left")
        return "  ".join(parts)


ProgressFn = Callable[[Progress], None]


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
