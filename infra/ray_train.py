"""Training stages on Ray Train: one worker group for one stage after another, started again after a failure.

A worker's failures are counted (`trainer.max_failures`), also those of the storage: they may pass. Other errors of
ours only come back, and end the stage at once. A worker that gets SIGTERM, or whose node Ray drains, is none:
all workers write a checkpoint and end, and are placed again where there is room.
"""

from __future__ import annotations

import gc
import logging
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray.train import FailureConfig, ScalingConfig
from ray.train import RunConfig as RayRunConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.torch.config import _TorchBackend
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from amvl_core.contracts import storage
from amvl_core.contracts.config import RunConfig
from amvl_core.contracts.errors import AmvlError, ClusterError, StorageError
from amvl_core.contracts.progress import ProgressFn
from amvl_core.contracts.records import BASE, CheckpointRecord, DatasetRecord, FeaturesRecord, load_record
from amvl_core.train.preemption import Sigterm
from infra.cluster import Room, Workers, cores, resources
from infra.mailbox import Job, Mailbox, News

if TYPE_CHECKING:
    from amvl_core.train.loop import TrainJob

log = logging.getLogger(__name__)

POLL_SECONDS = 0.5
LEAVE_SECONDS = 60.0


class WorkerGroup:
    """Workers that train stage after stage until `close`. They start with the first stage.

    Ray is connected. `jobs` such groups train at the same time, on a part of the cores each. Cluster, storage root and
    `trainer.max_failures` are those of `config` for all stages. The next stage has new workers where Ray started these
    again, because failures count for each stage, and after ZeRO-3.
    """

    def __init__(self, config: RunConfig, jobs: int = 1) -> None:
        self.config, self.jobs = config, jobs
        self._run: _Run | None = None

    def train(
        self,
        config: RunConfig,
        stage: str,
        dataset: DatasetRecord,
        parent: CheckpointRecord | None,
        uri: str,
        fingerprint: str,
        on_progress: ProgressFn,
        features: Sequence[FeaturesRecord] = (),
        teacher: CheckpointRecord | None = None,
    ) -> CheckpointRecord:
        """Runs `stage` to its end and returns its record; a stage that was cut off goes on from its last checkpoint.

        It starts from `parent`, else from the base model; `teacher` is its frozen teacher. `features` are those of the
        stage's encoders that were computed before. Raises ClusterError where the workers cannot be placed or keep
        failing, StorageError where the storage keeps failing them, and the worker's own AmvlError where the
        configuration or the data are at fault.
        """
        job = {
            "config": config.model_dump(mode="json"),
            "stage": stage,
            "dataset": dataset.model_dump(mode="json"),
            "start_from": parent.model_uri if parent else _publish_base(config, uri),
            "parent": parent.fingerprint if parent else None,
            "uri": uri,
            "fingerprint": fingerprint,
            "teacher": teacher.model_uri if teacher else None,
            "features": [record.model_dump(mode="json") for record in features],
        }
        found = Room(_wanted(self.config), self.config.cluster.min_workers, f"training stage {stage}")
        controllers = 0
        while True:
            news = self._follow(job, on_progress, found)
            if news.over and news.fault is None:
                record = load_record(uri, CheckpointRecord)
                assert record is not None
                if config.trainer.zero_stage == 3:
                    self.close()  # DeepSpeed keeps these weights and their states for as long as the process lives
                return record
            error = self.close()
            if news.fault is not None:
                raise news.fault from error
            if isinstance(error, ray.train.TrainingFailedError):
                raise _gave_up(error, stage) from error
            if isinstance(error, ray.exceptions.RayActorError):  # Ray places its controller anywhere
                controllers += 1
                if controllers > self.config.trainer.max_failures:
                    raise _gave_up(error, stage) from error
                log.warning("training stage %s: Ray's controller went with its machine; it is started again", stage)
            elif error is not None:
                raise error
            else:
                log.warning("training stage %s: a worker's machine is taken away; goes on from its checkpoint", stage)

    def close(self) -> Exception | None:
        """Lets the workers go, if there are any, and waits for it; the error that they ended with.

        Workers that wait for a job are gone within seconds. Where a machine of theirs was lost, Ray would start them
        again first, however long there is no room for them.
        """
        run, self._run = self._run, None
        if run is None:
            return None
        run.leave()
        run.join(LEAVE_SECONDS)
        if run.is_alive():
            log.warning("the workers of training have not ended within %.0f s; they are given up", LEAVE_SECONDS)
            run.abort()
        return run.error

    def _follow(self, job: Job, on_progress: ProgressFn, found: Room) -> News:
        """Gives the job to the workers and hands on what they report, until it is over or they have ended before."""
        if self._run is not None and not self._run.post(job):
            self.close()
        if self._run is None:
            self._run = _Run(self.config, self.jobs, job)
        run = self._run
        try:
            while True:
                ended = not run.is_alive()  # asked first: afterwards nothing comes
                news = run.news()
                for event in news.events:
                    on_progress(event)
                if news.over or ended:
                    return news
                found.look()
                run.join(POLL_SECONDS)
        except BaseException:  # nobody waits for the job any more, and it may take days
            run.leave()
            self._run = None
            raise


class _Run(threading.Thread):
    """One `fit` of Ray Train, in a thread of its own: its workers take one job after another from a mailbox."""

    def __init__(self, config: RunConfig, jobs: int, first: Job) -> None:
        super().__init__(name="ray-train", daemon=True)
        self.mailbox = _mailbox()
        self.controller: Any = None
        self.error: Exception | None = None
        ray.get(self.mailbox.post.remote(first))
        settings = {"mailbox": self.mailbox, "jobs": jobs, "loaders": config.trainer.loader_workers}
        self.trainer = _trainer(config, _wanted(config), settings)
        self.start()

    def run(self) -> None:
        """Until the workers leave or have failed once too often."""
        try:
            self.trainer.fit()
        except Exception as error:
            self.error = error

    def post(self, job: Job) -> bool:
        """Whether the workers will do it."""
        return self.is_alive() and bool(ray.get(self.mailbox.post.remote(job)))

    def news(self) -> News:
        """What has come since the last call."""
        news: News = ray.get(self.mailbox.news.remote())
        return news

    def leave(self) -> None:
        """Tells the workers to go after the job that they have."""
        self.controller = self.mailbox.close.remote()

    def abort(self) -> None:
        """Has Ray's controller give back what the workers hold and wait for, and end; a killed one would not."""
        if (controller := ray.get(self.controller)) is not None:
            controller.abort.remote()


def _mailbox() -> Any:
    """A mailbox on the driver's own machine: on a worker's it would be lost with it."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=here)(Mailbox).remote()


def _wanted(config: RunConfig) -> Workers:
    """All workers of the run, also those that the cluster has no room for yet."""
    return replace(resources(config.cluster), num_workers=config.cluster.num_workers)


def _trainer(config: RunConfig, workers: Workers, settings: dict[str, Any]) -> TorchTrainer:
    least = config.cluster.min_workers or workers.num_workers
    elastic = least < workers.num_workers
    return _Trainer(
        _worker,
        train_loop_config=settings,
        torch_config=_Torch(backend="nccl" if workers.device == "cuda" else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=(least, workers.num_workers) if elastic else workers.num_workers,
            use_gpu=workers.device == "cuda",
            resources_per_worker=workers.resources,
        ),
        run_config=RayRunConfig(
            # A name of its own each time: what is resumed is decided by our checkpoints, not by Ray's snapshot.
            name=f"workers-{uuid.uuid4().hex[:12]}",
            **_ray_storage(config.storage),
            failure_config=FailureConfig(max_failures=config.trainer.max_failures),
        ),
    )


def _worker(settings: dict[str, Any]) -> None:
    """One Ray Train worker."""
    import torch
    import torch.distributed as dist
    from ray.train.v2._internal.execution.context import get_train_context
    from transformers.utils import logging as hf_logging

    from amvl_core.train.loop import train_stage

    mailbox = settings["mailbox"]
    processes = ray.train.get_context().get_local_world_size() * settings["jobs"]
    # Threads wait for each other after each operation. One that shares its core with a loader makes all of them wait.
    torch.set_num_threads(max(1, cores() // processes - settings["loaders"]))
    hf_logging.disable_progress_bar()
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    if dist.get_rank() == 0:
        ray.get(mailbox.started.remote(get_train_context().controller_actor))
    for number, job in _jobs(mailbox):
        try:
            finished = train_stage(job, lambda event: mailbox.put.remote(event), _interrupted)
        except StorageError:
            raise  # may have passed when the workers are started again
        except AmvlError as error:
            ray.get(mailbox.fail.remote(error))
            raise
        if not finished:
            return
        gc.collect()  # an engine lies in cycles, and the next stage needs its memory
        torch.cuda.empty_cache()
        if dist.get_rank() == 0:
            ray.get(mailbox.finish.remote(number))


def _jobs(mailbox: Any) -> Iterator[tuple[int, TrainJob]]:
    """The jobs with their numbers, on every worker of a group the same, until the group is to leave."""
    from amvl_core.train.loop import TrainJob

    number = 0
    while (taken := ray.get(mailbox.take.remote(number, _interrupted()))) is not None:
        number, job = taken
        if job is None:
            time.sleep(POLL_SECONDS)
        else:
            yield number, TrainJob.model_validate(job)


_sigterm = Sigterm()


def _listen() -> None:
    """Run by Ray in each worker's main thread, which alone may take signals; training runs in another."""
    _sigterm.listen()


def _interrupted() -> bool:
    """Whether this worker got SIGTERM or Ray drains a node of its group; asks no other worker."""
    from ray.train.v2._internal.execution.context import get_train_context

    return _sigterm.arrived or get_train_context().preemption_context.preemption_info is not None


class _Backend(_TorchBackend):
    """Ray's process group, and an ear for SIGTERM."""

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        """Runs before training starts."""
        super().on_start(worker_group, backend_config)
        worker_group.execute(_listen)


class _Trainer(TorchTrainer):
    """Without the actor that hands out Ray's datasets: our workers read their rows, and wait a second less."""

    def _create_default_callbacks(self) -> list[Any]:
        return [found for found in super()._create_default_callbacks() if not isinstance(found, DatasetsCallback)]


class _Torch(TorchConfig):
    @property
    def backend_cls(self) -> type[_Backend]:
        return _Backend


def _ray_storage(root: str) -> dict[str, Any]:
    """Where Ray Train keeps its own small state: below our root, through the same file system."""
    uri = storage.join(root, "ray")
    if storage.is_local(uri):
        return {"storage_path": str(storage.local_path(uri))}
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    fs, path = storage.filesystem(uri)
    return {"storage_path": path, "storage_filesystem": PyFileSystem(FSSpecHandler(fs))}


def _publish_base(config: RunConfig, uri: str) -> str:
    """Where the workers find the base model: the tiny one is written below the stage, any other is where it is."""
    from amvl_core.backbones.loading import TINY, base_folder  # not above: Ray's controller imports this file too

    if config.model.base != TINY:
        return config.model.base
    target = storage.join(uri, BASE)
    with base_folder(config.model) as folder:
        storage.upload(Path(folder), target)
    return target


def _gave_up(error: Exception, stage: str) -> AmvlError:
    """What is said when workers kept failing: a StorageError where it was that the last time."""
    message = f"training stage {stage}: the workers failed once too often (trainer.max_failures)"
    failures = error.worker_failures.values() if isinstance(error, ray.train.WorkerGroupError) else ()
    for failure in failures:
        if isinstance(failure, StorageError):
            return StorageError(
                f"{message}, the last time on the storage: {failure}; once that is mended, the same command goes on "
                "from the last checkpoint"
            )
    return ClusterError(f"{message}: {error}")
