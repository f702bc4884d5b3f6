"""What is told of a training step: its pace, its metrics, its warnings."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

from amvl_core.progress import Advice, Progress, ProgressFn
from amvl_core.train.watch import Watch


class StepLog:
    """Times optimiser steps and sends one `Progress` per logged step, of all steps since the one logged before it."""

    def __init__(
        self,
        stage: str,
        total: int,
        start: int,
        send: ProgressFn,
        watches: Sequence[Watch],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.stage, self.total, self.first = stage, total, start
        self.send, self.watches, self.clock = send, watches, clock
        self.begun = self.mark = clock()
        self._clear()

    def _clear(self) -> None:
        self.seconds = self.waited = 0.0
        self.tokens = self.skipped = 0

    def waiting(self) -> None:
        """The step asks for data."""
        self.mark = self.clock()

    def working(self) -> None:
        """The data are there."""
        self.waited += self.clock() - self.mark

    def worked(self, tokens: int, *, skipped: bool) -> None:
        """The optimiser has stepped, or left the step out, on `tokens` tokens of all ranks."""
        self.seconds += self.clock() - self.mark
        self.tokens += tokens
        self.skipped += skipped

    def warn(self, done: int, warnings: Sequence[Advice]) -> None:
        """Sends warnings of optimiser step `done` at once."""
        if warnings:
            self.send(Progress(self.stage, done, self.total, "steps", warnings=tuple(warnings)))

    def step(self, done: int, terms: dict[str, float]) -> dict[str, float]:
        """Sends and returns the metrics of optimiser step `done`, with the warnings that they give rise to."""
        pace = (self.clock() - self.begun) / (done - self.first)
        metrics = {**terms, "tokens_per_s": self.tokens / self.seconds, "data_wait": self.waited / self.seconds}
        metrics |= {"skipped_steps": self.skipped} if self.skipped else {}
        metrics = {name: value for name, value in metrics.items() if math.isfinite(value)}
        warnings = tuple(advice for watch in self.watches for advice in watch.step(metrics))
        left = (self.total - done) * pace
        self.send(Progress(self.stage, done, self.total, "steps", left, metrics, warnings))
        self._clear()
        return metrics
