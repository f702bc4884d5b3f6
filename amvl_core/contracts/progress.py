"""How long work tells how far it is: one event type for every stage, one callback, one line for a person."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field

HISTORY = "history.json"
"""The file of a training checkpoint, and of a finished stage, with every step logged so far."""


@dataclass(frozen=True)
class Advice:
    """Something that goes wrong: what it is called, what is seen and what to do; all `samples` in question."""

    kind: str
    text: str
    samples: tuple[str, ...] = ()


@dataclass(frozen=True)
class Progress:
    """`done` of `total` units of `stage`; `metrics` at training step `done` (name -> value); warnings as they arise.

    `columns` are those of its line: a name and the metrics that stand in it. `total` is 0 until it is known.
    """

    stage: str
    done: int
    total: int
    unit: str
    seconds_left: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    warnings: tuple[Advice, ...] = ()

    def line(self) -> str:
        """One line for a terminal or a log, under 120 columns; those of one stage stand below each other."""
        return "  ".join([self._amount(), *_columns(self.metrics, self.columns), *self._left()])

    def _amount(self) -> str:
        if not self.total:
            return f"{self.stage}: counting {self.unit}"
        total = f"{self.total:,}"
        return f"{self.stage}: {self.done:>{len(total)},}/{total}" + ("" if self.metrics else f" {self.unit}")

    def _left(self) -> list[str]:
        return [] if self.seconds_left is None else [f"{_clock(self.seconds_left)} left"]


ProgressFn = Callable[[Progress], None]


def history_to_json(events: Sequence[Progress]) -> bytes:
    """What a `HISTORY` file holds."""
    return json.dumps([asdict(event) for event in events]).encode()


def history_from_json(content: bytes) -> list[Progress]:
    """The events of a `HISTORY` file, without their warnings."""
    return [Progress(**{**event, "warnings": ()}) for event in json.loads(content)]


def _columns(metrics: dict[str, float], asked: Mapping[str, tuple[str, ...]]) -> list[str]:
    """The metrics that a person watches; the tracker has them all."""
    found = {title: [_number(metrics[name]) for name in names if name in metrics] for title, names in asked.items()}
    columns = [" ".join([title, *values]) for title, values in found.items() if values]
    if "tokens_per_s" in metrics:
        columns.append(f"{metrics['tokens_per_s'] / 1000:>5.1f}k tok/s")
    if "heldout_ntp" in metrics:  # in the place of another: a line has no room for both
        columns.append(f"held {_number(metrics['heldout_ntp'])}")
    elif "data_wait" in metrics:
        columns.append(f"wait {metrics['data_wait']:>5.1%}")
    if "gpu_memory_gib" in metrics:
        columns.append(f"{metrics['gpu_memory_gib']:>5.1f} GiB")
    if "skipped_steps" in metrics:
        columns.append(f"skipped {metrics['skipped_steps']:.0f}")
    return columns


def _number(value: float) -> str:
    """Five columns, from 0.001 up to 99,999 without an exponent."""
    size = abs(value)
    if size and not 1e-3 <= size < 99_999.5:
        return f"{value:5.0e}"
    decimals = 3 if size < 9.9995 else 2 if size < 99.995 else 1 if size < 999.95 else 0
    return f"{value:5.{decimals}f}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
