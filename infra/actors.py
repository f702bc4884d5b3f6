"""Ray actors that hold one model each and work on batches; what each gives is a file of its own, so a kill loses none.

They are started when there is work for them, started again by Ray where one dies, and end with the `with` block.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, Self

import ray
from ray.exceptions import RayActorError, RayTaskError
from ray.util import ActorPool

from amvl_core.contracts.config import RunConfig
from amvl_core.contracts.errors import AmvlError, ClusterError
from infra.cluster import resources

RESTARTS = 3
IN_FLIGHT = 2
"""Batches that an actor has at once: one is worked on, the next one may be made ready."""


class Actors:
    """Up to `cluster.num_workers` actors of a class, made with the same arguments: `with Actors(...) as actors`."""

    def __init__(self, config: RunConfig, kind: type, *arguments: Any) -> None:
        self.config, self.kind, self.arguments = config, kind, arguments
        self.started: list[Any] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        for actor in self.started:
            ray.kill(actor)

    def run(self, method: str, tasks: Sequence[tuple[Any, ...]], about: str) -> Iterator[Any]:
        """What `method` returns for each of `tasks`, in the order in which they are done.

        Raises the AmvlError of an actor, and a ClusterError that names the work, `about`, where one keeps dying.
        """
        if not tasks:
            return
        pool = ActorPool(self._start(len(tasks)) * IN_FLIGHT)
        try:
            yield from pool.map_unordered(lambda actor, task: getattr(actor, method).remote(*task), tasks)
        except RayTaskError as error:
            if isinstance(error.cause, AmvlError):
                raise error.cause from None
            raise
        except RayActorError as error:
            raise ClusterError(
                f"{about}: a worker died {RESTARTS + 1} times ({error}); if it was out of memory, lower "
                "evaluation.batch_tokens; what is done so far is kept, and a second run goes on from it"
            ) from error

    def _start(self, tasks: int) -> list[Any]:
        workers = resources(self.config.cluster)
        options = {
            "num_cpus": workers.resources["CPU"],
            "num_gpus": workers.resources.get("GPU", 0),
            "max_concurrency": IN_FLIGHT,
            "max_restarts": RESTARTS,
            "max_task_retries": RESTARTS,
        }
        kind = ray.remote(self.kind).options(**options)
        while len(self.started) < min(workers.num_workers, tasks):
            self.started.append(kind.remote(*self.arguments))
        return self.started


def part_name(number: int, content: Any) -> str:
    """The file of a batch; its name says what is in it (`content`, as JSON), so that another cut never finds it."""
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]
    return f"{number:06d}-{digest}.parquet"
