"""A training stage on Ray Train: places the workers, starts them again after a failure, brings progress home."""

from __future__ import annotations

import logging
import os
import threading
import uuid
from pathlib import Path
from typing import Any

import ray
from ray.train import FailureConfig, ScalingConfig
from ray.train import RunConfig as RayRunConfig
from ray.train.torch import TorchConfig, TorchTrainer

from amvl_core import storage
from amvl_core.base import TINY, base_folder
from amvl_core.config import RunConfig
from amvl_core.errors import AmvlError, ClusterError
from amvl_core.progress import Progress, ProgressFn
from amvl_core.records import CheckpointRecord, DatasetRecord, load_record
from infra.cluster import resources

POLL_SECONDS = 1.0


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
) -> CheckpointRecord:
    """Runs `stage` to its end and returns its record; a stage that was cut off goes on from its last checkpoint.

    Ray is connected. `jobs` such stages run at the same time, on a part of the cores each. Raises ClusterError where
    the workers cannot be placed or keep failing, and the worker's own AmvlError where the configuration or the data
    are at fault.
    """
    workers = resources(config.cluster)
    mailbox = ray.remote(num_cpus=0)(Mailbox).remote()
    job = {
        "config": config.model_dump(mode="json"),
        "stage": stage,
        "dataset": dataset.model_dump(mode="json"),
        "start_from": parent.model_uri if parent else _publish_base(config, uri),
        "parent": parent.fingerprint if parent else None,
        "uri": uri,
        "fingerprint": fingerprint,
    }
    gpu = workers.device == "cuda"
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"job": job, "mailbox": mailbox, "jobs": jobs},
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=workers.num_workers,
            use_gpu=gpu,
            resources_per_worker={"GPU": 1, "CPU": 1} if gpu else {"CPU": 0.5},
        ),
        run_config=RayRunConfig(
            # A name of its own each time: what is resumed is decided by our checkpoints, not by Ray's snapshot.
            name=f"{stage}-{fingerprint}-{uuid.uuid4().hex[:6]}",
            **_ray_storage(config.storage),
            failure_config=FailureConfig(max_failures=config.trainer.max_failures),
        ),
    )
    with _Collector(mailbox, on_progress):
        try:
            trainer.fit()
        except ray.train.TrainingFailedError as error:
            raise (ray.get(mailbox.failed.remote()) or _gave_up(error, stage)) from error
    fault: AmvlError | None = ray.get(mailbox.failed.remote())
    if fault is not None:
        raise fault
    record = load_record(uri, CheckpointRecord)
    if record is None:
        raise ClusterError(f"training stage {stage} ended without a record at {uri}; look at the workers' logs")
    return record


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
    try:
        train_stage(TrainJob.model_validate(settings["job"]), lambda event: mailbox.put.remote(event))
    except AmvlError as error:
        ray.get(mailbox.fail.remote(error))
        raise


class _Collector:
    """Hands events from the mailbox to a callback, each once, from a thread of its own while `fit` blocks."""

    def __init__(self, mailbox: Any, on_progress: ProgressFn) -> None:
        self.mailbox, self.on_progress = mailbox, on_progress
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
    target = storage.join(uri, "base")
    with base_folder(config.model) as folder:
        storage.upload(Path(folder), target)
    return target


def _gave_up(error: Exception, stage: str) -> ClusterError:
    """What is said when workers kept failing."""
    return ClusterError(f"training stage {stage}: the workers failed once too often (trainer.max_failures): {error}")
