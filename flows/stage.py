"""A stage: where its record is, and the one way to it, found or made now."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from prefect import get_run_logger

from amvl_core.contracts import storage
from amvl_core.contracts.config import ClusterConfig, RunConfig
from amvl_core.contracts.records import Place, Record, check_unchanged, load_record
from flows.outbox import progress_page
from flows.reporter import Reporter
from infra import cluster
from infra.tracking import Tracker

R = TypeVar("R", bound=Record)


def place(config: RunConfig, stage: str, fingerprint: str) -> Place:
    """Where the record of a stage is or will be."""
    return Place(storage.join(storage.absolute(config.storage), stage, fingerprint), fingerprint)


def finished_or(
    name: str,
    where: Place,
    kind: type[R],
    make: Callable[[], R],
    found: Callable[[R], object] = lambda record: None,
    valid: Callable[[R], bool] = lambda record: True,
    about: Callable[[R], str] | None = None,
) -> R:
    """The record at `where`, or what `make` gives; `found` is told of one that is there.

    One that is not `valid` any more is made again. The log calls a record that is reused by `name` and fingerprint,
    or says what `about` gives.
    """
    (record,) = all_finished_or(name, [where], kind, lambda missing: [make()], found, valid, about)
    return record


def all_finished_or(
    name: str,
    places: Sequence[Place],
    kind: type[R],
    make: Callable[[list[Place]], Iterable[R]],
    found: Callable[[R], object] = lambda record: None,
    valid: Callable[[R], bool] = lambda record: True,
    about: Callable[[R], str] | None = None,
) -> list[R]:
    """The same for several; `make` is given the places of those that are missing, and gives them in that order."""
    there: dict[Place, R] = {}
    for where in places:
        if (record := load_record(where.uri, kind)) is not None and valid(record):
            get_run_logger().info("%s", about(record) if about else f"{name}: reused {where.fingerprint}")
            found(record)
            there[where] = record
    if missing := [where for where in places if where not in there]:
        there |= dict(zip(missing, make(missing), strict=True))
    return [there[where] for where in places]


def unchanged(name: str, where: Place, record: R) -> R:
    """The record of a stage that read files of a user's. Raises DataError where they changed while it read them."""
    check_unchanged(name, where, record.fingerprint)
    return record


@contextmanager
def working(
    config: RunConfig,
    tracker: Tracker,
    name: str,
    workers_of: Callable[[ClusterConfig], cluster.Workers] = cluster.resources,
) -> Iterator[Reporter]:
    """A stage that has work to do for workers: the tracking run is open, Ray is connected and large enough."""
    tracker.start()
    cluster.connect(config.cluster)
    workers = workers_of(config.cluster)
    log = get_run_logger()
    many, device = workers.num_workers, workers.device if workers.gpus == 1 else f"{workers.gpus} GPUs each"
    log.info("%s: starts, %d worker%s on %s", name, many, "s" * (many > 1), device)
    started = time.monotonic()
    yield Reporter(tracker, log, progress_page(name))
    log.info("%s: done in %.0f s", name, time.monotonic() - started)
