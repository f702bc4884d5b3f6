"""A training stage on Ray Train: places the workers, starts them again after a failure, brings progress home.

A worker's failures are counted (`trainer.max_failures`), also those of the storage: they may pass. Other errors of
ours only come back, and end the stage at once. A worker that gets SIGTERM, or whose node Ray drains, is none:
all workers write a checkpoint and end, and are placed again where there is room.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
from ray.train import FailureConfig, ScalingConfig
from ray.train import RunConfig as RayRunConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.torch.config import _TorchBackend
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from amvl_core.backbones.loading import TINY, base_folder
from amvl_core.contracts import storage
from amvl_core.contracts.config import RunConfig
from amvl_core.contracts.errors import AmvlError, ClusterError, StorageError
from amvl_core.contracts.progress import Progress, ProgressFn
from amvl_core.contracts.records import BASE, CheckpointRecord, DatasetRecord, FeaturesRecord, load_record
from amvl_core.train.preemption import Sigterm
from infra.cluster import Workers, resources, room

log = logging.getLogger(__name__)

POLL_SECONDS = 1.0
ROOM_SECONDS = 5.0
REPEAT_SECONDS = 60.0


class Mailbox:
    """An actor that holds what the workers report until the driver collects it."""

    def __init__(self) -> None:
        self.events: list[Progress] = []
        self.fault: AmvlError | None = None

    def put(self, event: Progress) -> None:
        """Adds one event."""
        self.events.append(event)

    def collect(self) -> list[Progress]:
        """All events since the last call."""
        events, self.events = self.events, []
        return events

    def fail(self, error: AmvlError) -> None:
        """Notes an error that no restart can mend."""
        self.fault = self.fault or error

    def failed(self) -> AmvlError | None:
        """The first such error."""
        return self.fault


def train(
    config: RunConfig,
    stage: str,
    dataset: DatasetRecord,
    parent: CheckpointRecord | None,
    uri: str,
    fingerprint: str,
    on_progress: ProgressFn,
    jobs: int = 1,
    features: Sequence[FeaturesRecord] = (),
    teacher: CheckpointRecord | None = None,
) -> CheckpointRecord:
    """Runs `stage` to its end and returns its record; a stage that was cut off goes on from its last checkpoint.

    Ray is connected. It starts from `parent`, else from the base model; `teacher` is its frozen teacher. `jobs` such
    stages run at the same time, on a part of the cores each. `features` are those of the stage's encoders that were
    computed before. Raises ClusterError where the workers cannot be placed or keep failing, StorageError where the
    storage keeps failing them, and the worker's own AmvlError where the configuration or the data are at fault.
    """
    workers = resources(config.cluster)
    mailbox = _mailbox()
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
    settings = {"job": job, "mailbox": mailbox, "jobs": jobs}
    with _Collector(mailbox, on_progress, _Room(workers, config.cluster.min_workers, stage)):
        controllers = 0
        while True:
            try:
                _trainer(config, f"{stage}-{fingerprint}", workers, settings).fit()
            except ray.train.TrainingFailedError as error:
                fault: AmvlError | None = ray.get(mailbox.failed.remote())
                raise (fault or _gave_up(error, stage)) from error
            except ray.exceptions.RayActorError as error:  # Ray places its controller anywhere
                controllers += 1
                if controllers > config.trainer.max_failures:
                    raise _gave_up(error, stage) from error
                log.warning("training stage %s: Ray's controller went with its machine; it is started again", stage)
                continue
            fault = ray.get(mailbox.failed.remote())
            if fault is not None:
                raise fault
            record = load_record(uri, CheckpointRecord)
            if record is not None:
                return record
            log.warning("training stage %s: a worker's machine is taken away; goes on from its checkpoint", stage)


def _mailbox() -> Any:
    """A mailbox on the driver's own machine: on a worker's it would be lost with it."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=here)(Mailbox).remote()


def _trainer(config: RunConfig, name: str, workers: Workers, settings: dict[str, Any]) -> TorchTrainer:
    least = min(config.cluster.min_workers or workers.num_workers, workers.num_workers)
    elastic = least < workers.num_workers
    return TorchTrainer(
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
            name=f"{name}-{uuid.uuid4().hex[:6]}",
            **_ray_storage(config.storage),
            failure_config=FailureConfig(max_failures=config.trainer.max_failures),
        ),
    )


def _worker(settings: dict[str, Any]) -> None:
    """One Ray Train worker."""
    import torch

    mailbox = settings["mailbox"]
    if ray.get(mailbox.failed.remote()) is not None:
        return  # started again after an error of the configuration or the data: it would only come back
    processes = ray.train.get_context().get_local_world_size() * settings["jobs"]
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // processes))
    from transformers.utils import logging as hf_logging

    from amvl_core.train.loop import TrainJob, train_stage

    hf_logging.disable_progress_bar()
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    job = TrainJob.model_validate(settings["job"])
    try:
        train_stage(job, lambda event: mailbox.put.remote(event), _interrupted)
    except StorageError:
        raise  # may have passed when the workers are started again
    except AmvlError as error:
        ray.get(mailbox.fail.remote(error))
        raise


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


class _Torch(TorchConfig):
    @property
    def backend_cls(self) -> type[_Backend]:
        return _Backend


class _Room:
    """Says when machines are missing for the workers, again every minute, and when they are back."""

    def __init__(self, workers: Workers, least: int | None, stage: str) -> None:
        self.workers, self.least, self.stage = workers, least or workers.num_workers, stage
        self.said: str | None = None
        self.checked = self.said_at = 0.0

    def look(self) -> None:
        """Asks Ray every few seconds what the cluster has."""
        now = time.monotonic()
        if now - self.checked < ROOM_SECONDS:
            return
        self.checked = now
        message = self._message(room(self.workers), len([node for node in ray.nodes() if node["Alive"]]))
        if message != self.said or (message and now - self.said_at > REPEAT_SECONDS):
            log.warning("training stage %s: %s", self.stage, message or "there is room for all workers again")
            self.said, self.said_at = message, now

    def _message(self, found: int, nodes: int) -> str | None:
        wanted = self.workers.num_workers
        if found >= wanted:
            return None
        missing = f"the cluster has room for {found} of {wanted} workers on {nodes} nodes"
        if found >= self.least:
            return f"{missing}; it goes on with {found} until more machines come"
        return (
            f"{missing}, and waits for {self.least} (each takes {self.workers.resources}); bring the lost machines "
            f"back, or run again with cluster.num_workers={max(found, 1)}: it goes on from the last checkpoint"
        )


class _Collector:
    """Hands events from the mailbox to a callback, each once, from a thread of its own while `fit` blocks."""

    def __init__(self, mailbox: Any, on_progress: ProgressFn, room: _Room) -> None:
        self.mailbox, self.on_progress, self.room = mailbox, on_progress, room
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> None:
        self.thread.start()

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join()
        self._collect()

    def _run(self) -> None:
        while not self.stop.wait(POLL_SECONDS):
            self._collect()
            self.room.look()

    def _collect(self) -> None:
        for event in ray.get(self.mailbox.collect.remote()):
            self.on_progress(event)


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
