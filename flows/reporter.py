"""What a stage that works shows of its progress: the log, the run's page, the tracking run."""

import time
from collections.abc import Callable

from amvl_core.contracts.progress import Progress
from flows import report
from infra.tracking import Tracker

LOG_EVERY_S = 3.0


class Reporter:
    """Progress to the log and to the run's page at most every few seconds; metrics and warnings each time.

    `page` shows a share of 100 and a text. Safe to call from another thread than the task's.
    """

    def __init__(self, tracker: Tracker, log: report.Log, page: Callable[[float, str], None]) -> None:
        self.tracker, self.log, self.page = tracker, log, page
        self.prefix = f"{tracker.label}: " if tracker.label else ""
        self.last = 0.0
        self.warnings: list[str] = []

    def __call__(self, progress: Progress) -> None:
        """Takes one event."""
        if progress.metrics:
            self.tracker.metrics(progress.stage, progress.done, progress.metrics)
        for advice in progress.warnings:
            self.log.warning("%s: %s", progress.stage, advice.text)
            self.tracker.tag({f"amvl.warning.{progress.stage}.{advice.kind}": f"step {progress.done}: {advice.text}"})
            self.tracker.metrics(progress.stage, progress.done, {f"warning_{advice.kind}": 1.0})
            if advice.samples:
                where = f"warnings/{progress.stage}-{progress.done}-{advice.kind}.txt"
                self.tracker.text(where, "\n".join(advice.samples) + "\n")
            self.warnings.append(f"step {progress.done}: {advice.text}")
        quiet = time.monotonic() - self.last < LOG_EVERY_S and progress.done < progress.total
        if quiet and not progress.warnings:
            return
        self.last = time.monotonic()
        if progress.metrics or not progress.warnings:
            self.log.info(self.prefix + progress.line())
        share = 100.0 * progress.done / max(progress.total, 1)
        self.page(share, report.page_text(progress.line(), self.warnings))
