"""What is reported of a training step: its pace, its metrics, its warnings."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from amvl_core.contracts.progress import Advice, Progress, ProgressFn
from amvl_core.contracts.watch import Watch


class Pace(NamedTuple):
    """The pace of one rank since the step logged before: share of time that it waited for data, tokens, GiB.

    `gpu_memory_gib` is the most that its GPU held. It is 0 on a CPU.
    """

    data_wait: float
    tokens: float
    gpu_memory_gib: float


class StepLog:
    """Times optimiser steps. Sends one `Progress` for each logged step, about all steps since the one logged before."""

    def __init__(
        self,
        stage: str,
        total: int,
        start: int,
        send: ProgressFn,
        watches: Sequence[Watch],
        columns: Mapping[str, tuple[str, ...]],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.stage, self.total, self.first = stage, total, start
        self.send, self.watches, self.columns, self.clock = send, watches, columns, clock
        self.begun = self.mark = clock()
        self._clear()

    def _clear(self) -> None:
        self.seconds = self.waited = 0.0
        self.tokens = self.skipped = 0

    def waiting(self) -> None:
        """Call when the step asks for data."""
        self.mark = self.clock()

    def working(self) -> None:
        """Call when the data are there."""
        self.waited += self.clock() - self.mark

    def worked(self, tokens: int, *, skipped: bool) -> None:
        """Call when the optimiser has taken or skipped the step; `tokens` are those of this rank."""
        self.seconds += self.clock() - self.mark
        self.tokens += tokens
        self.skipped += skipped

    def warn(self, done: int, warnings: Sequence[Advice]) -> None:
        """Sends warnings of optimiser step `done` at once."""
        if warnings:
            self.send(Progress(self.stage, done, self.total, "steps", warnings=tuple(warnings)))

    def pace(self, gpu_memory_gib: float) -> Pace:
        """This rank's pace since the last logged step."""
        return Pace(self.waited / self.seconds, self.tokens, gpu_memory_gib)

    def step(self, done: int, terms: dict[str, float], ranks: Sequence[Pace]) -> dict[str, float]:
        """Sends and returns the metrics of optimiser step `done`, with the warnings that they give rise to.

        `ranks` are all ranks' paces. A rank that has its data waits for the others where they first meet. So the cost
        of data is the longest wait of any rank.
        """
        left = (self.total - done) * (self.clock() - self.begun) / (done - self.first)
        metrics = {
            **terms,
            "tokens_per_s": sum(rank.tokens for rank in ranks) / self.seconds,
            "data_wait": max(rank.data_wait for rank in ranks),
            "seconds_left": left,
        }
        memory = max(rank.gpu_memory_gib for rank in ranks)
        metrics |= {"gpu_memory_gib": memory} if memory else {}
        metrics |= {"skipped_steps": self.skipped} if self.skipped else {}
        metrics = {name: value for name, value in metrics.items() if math.isfinite(value)}
        warnings = tuple(advice for watch in self.watches for advice in watch.step(metrics))
        self.send(Progress(self.stage, done, self.total, "steps", left, metrics, self.columns, warnings))
        self._clear()
        return metrics
