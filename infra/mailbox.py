"""What the driver and the workers of a group tell each other: jobs one way, progress and ends the other."""

from __future__ import annotations

from typing import Any, NamedTuple

from amvl_core.contracts.errors import AmvlError
from amvl_core.contracts.progress import Progress

Job = dict[str, Any]
"""A `TrainJob` as JSON."""


class News(NamedTuple):
    """What the workers reported since it was last asked for; `over` says that the last job is done or has failed."""

    events: list[Progress]
    over: bool
    fault: AmvlError | None


class Mailbox:
    """An actor. It has one job at a time, until that is over; workers that are started again are given it again.

    It alone decides whether a group takes a job or leaves, so that all workers of the group do the same.
    """

    def __init__(self) -> None:
        self.job: Job | None = None
        self.posted = self.taken = self.ended = 0
        """Numbers of jobs: the last that came, that a worker has, and that is over."""
        self.starts = 0
        self.controller: Any = None
        self.closed = False
        self.events: list[Progress] = []
        self.fault: AmvlError | None = None

    def post(self, job: Job) -> bool:
        """Takes the next job; False where the group leaves or was started again, so that another is to do it."""
        if self.closed or self.starts > 1:
            return False
        self.job = job
        self.posted += 1
        return True

    def news(self) -> News:
        """For the driver."""
        events, self.events = self.events, []
        return News(events, self.ended == self.posted, self.fault)

    def close(self) -> Any:
        """No worker takes another job. Gives the group's controller, and forgets it: kept here, it would never end."""
        self.closed, controller, self.controller = True, self.controller, None
        return controller

    def started(self, controller: Any) -> None:
        """The first worker of a group says it, each time that its `controller` starts the group."""
        self.starts += 1
        if not self.closed:
            self.controller = controller

    def take(self, last: int, leaving: bool) -> tuple[int, Job | None] | None:
        """The number of a job, and the job or None where there is none yet; None where the worker is to leave.

        `last` is the number of the worker's last job. A worker that is `leaving` takes what another has taken already.
        """
        there = self.posted > max(last, self.ended)
        if not there or self.taken < self.posted:
            self.closed = self.closed or leaving
            if self.closed:
                return None
            if not there:
                return last, None
        self.taken = self.posted
        return self.posted, self.job

    def put(self, event: Progress) -> None:
        """Adds one event."""
        self.events.append(event)

    def finish(self, number: int) -> None:
        """Job `number` is done."""
        self.ended = number

    def fail(self, error: AmvlError) -> None:
        """The job ends with an error that no restart can mend, and the group with it."""
        self.fault = self.fault or error
        self.ended, self.closed = self.posted, True
