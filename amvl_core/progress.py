"""How long work tells how far it is: one event type for every stage, one callback, one line for a person."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Advice:
    """Something that goes wrong but does not stop the work: what it is called, what is seen and what to do."""

    kind: str
    text: str


@dataclass(frozen=True)
class Progress:
    """`done` of `total` units of `stage`; `metrics` at training step `done` (name -> value); warnings as they arise.

    `total` is 0 until it is known.
    """

    stage: str
    done: int
    total: int
    unit: str
    seconds_left: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    warnings: tuple[Advice, ...] = ()

    def line(self) -> str:
        """One line of at most 120 columns for a terminal or a log; those of one stage stand below each other."""
        return "  ".join([self._amount(), *_columns(self.metrics), *self._left()])

    def _amount(self) -> str:
        if not self.total:
            return f"{self.stage}: counting {self.unit}"
        total = f"{self.total:,}"
        return f"{self.stage}: {self.done:>{len(total)},}/{total} {self.unit}"

    def _left(self) -> list[str]:
        return [] if self.seconds_left is None else [f"{_clock(self.seconds_left)} left"]


ProgressFn = Callable[[Progress], None]

_TERMS = {"loss": "loss", "ntp": "ntp", "kl_forward": "fwd", "kl_reverse": "rev"}


def _columns(metrics: dict[str, float]) -> list[str]:
    """The metrics that a person watches; the tracker has them all."""
    columns = [f"{short} {_number(metrics[name])}" for name, short in _TERMS.items() if name in metrics]
    if "tokens_per_s" in metrics:
        columns.append(f"{metrics['tokens_per_s']:>7,.0f} tok/s")
    if "data_wait" in metrics:
        columns.append(f"wait {metrics['data_wait']:>5.1%}")
    if "gpu_memory_gib" in metrics:
        columns.append(f"{metrics['gpu_memory_gib']:>5.1f} GiB")
    if metrics.get("skipped_steps"):
        columns.append(f"skipped {metrics['skipped_steps']:.0f}")
    return columns


def _number(value: float) -> str:
    """Six columns with three to four digits that count."""
    size = abs(value)
    if size and not 1e-3 <= size < 1e5:
        return f"{value:>6.0e}"
    decimals = 4 if size < 1 else 3 if size < 10 else 2 if size < 100 else 1 if size < 1000 else 0
    return f"{value:>6.{decimals}f}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
