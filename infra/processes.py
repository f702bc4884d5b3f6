"""The processes of a run, kept from stage to stage: to start them and to import takes longer than a small stage."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Self

from amvl_core.contracts.config import RunConfig
from infra.cluster import Workers, resources, room

if TYPE_CHECKING:
    from infra.actors import Actors
    from infra.ray_train import WorkerGroup


class Processes:
    """Those that train and those that evaluate, each started by the first stage that needs them.

    Where the cluster has no room for both (each holds its devices), one ends before the other starts. `jobs` such runs
    share the cluster. `with Processes(config) as processes`; Ray is connected where they are asked for.
    """

    def __init__(self, config: RunConfig, jobs: int = 1) -> None:
        self.config, self.jobs = config, jobs
        self._trainers: WorkerGroup | None = None
        self._evaluators: Actors | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if kind is None or issubclass(kind, Exception):  # an interrupt waits for nobody: Ray is left
            self.close()

    def close(self) -> None:
        """Ends all of them; they start again where they are asked for.

        Evaluators end at once. So they come first: trainers that lost a machine may wait for the room that they take.
        """
        for found in (self._evaluators, self._trainers):
            if found is not None:
                found.close()

    def trainers(self) -> WorkerGroup:
        """The worker group of training stages."""
        from infra.ray_train import WorkerGroup

        if self._evaluators is not None and not self._room_for_both():
            self._evaluators.close()
        self._trainers = self._trainers or WorkerGroup(self.config, self.jobs)
        return self._trainers

    def evaluators(self) -> Actors:
        """The actors of evaluations."""
        from infra.actors import Actors

        if self._trainers is not None and not self._room_for_both():
            self._trainers.close()
        self._evaluators = self._evaluators or Actors(self.config)
        return self._evaluators

    def _room_for_both(self) -> bool:
        # How many GPUs of one machine are free depends on where the trainers lie.
        if self.config.cluster.evaluation_gpus > 1:
            return False
        workers = resources(self.config.cluster)
        both = Workers(workers.device, 2 * self.jobs * workers.num_workers)
        return room(both) == both.num_workers
