"""Which workers a stage has, and what is said when they keep failing; tests/distributed/test_train.py trains."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import RayActorError
from ray.train import ControllerError, WorkerGroupError

from amvl_core.contracts.errors import ClusterError, DataError, StorageError
from amvl_core.contracts.progress import Progress
from amvl_core.contracts.records import CheckpointRecord, DatasetRecord, save_record
from benchmarks.trial import configuration
from infra import ray_train
from infra.cluster import Workers
from infra.mailbox import Job, News
from infra.ray_train import WorkerGroup, _gave_up

DATA = DatasetRecord(uri="u", fingerprint="d", schema_version=1, shards=[], kept=1, dropped={}, reports=[])
STEP = Progress("sft", 1, 1, "steps")


class Run:
    """Stands in for a run of Ray Train: each of its jobs comes to an end as `ends` says, and an error ends it."""

    ends: list[str | Exception]
    started: int

    def __init__(self, config: object, jobs: int, job: Job) -> None:
        type(self).started += 1
        self.alive, self.job = True, job
        self.error: Exception | None = None

    def post(self, job: Job) -> bool:
        self.job = job
        return self.alive

    def is_alive(self) -> bool:
        return self.alive

    def news(self) -> News:
        end = self.ends.pop(0)
        if isinstance(end, DataError):
            return News([], True, end)
        self.alive = end in ("done", "running")
        self.error = end if isinstance(end, Exception) else self.error
        if end == "done":
            save_record(
                CheckpointRecord(
                    uri=self.job["uri"], fingerprint="f", stage="sft", method="sft", step=1, config={}, dataset="d",
                    parent=None, num_parameters=1, metrics={},
                )
            )  # fmt: skip
        return News([STEP], end == "done", None)

    def leave(self) -> None:
        self.alive = False

    def join(self, seconds: float | None = None) -> None:
        """At once."""


@pytest.fixture()
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Trains two stages whose jobs end so, and gives how many runs that took."""
    monkeypatch.setattr(ray_train, "_Run", Run)
    monkeypatch.setattr(ray_train, "_publish_base", lambda *_: "base")
    monkeypatch.setattr(ray_train, "resources", lambda _: Workers("cpu", 1))
    monkeypatch.setattr(ray_train.Room, "look", lambda _: None)

    def train(*ends: str | Exception, stages: int = 2, **trainer: Any) -> int:
        Run.ends, Run.started = [*ends], 0
        config = configuration(str(tmp_path), trainer=trainer)
        group, events = WorkerGroup(config), list[Progress]()
        for number in range(stages):
            group.train(config, "sft", DATA, None, f"{tmp_path}/{number}", "f", events.append)
        assert events == [STEP] * len(ends) and not Run.ends
        return Run.started

    return train


def test_the_next_stage_has_the_workers_of_the_one_before(trained: Any) -> None:
    assert trained("running", "done", "running", "done") == 1


def test_after_zero_3_it_has_new_ones(trained: Any) -> None:
    assert trained("done", "done", zero_stage=3) == 2


def test_a_stage_whose_workers_left_or_whose_controller_was_lost_goes_on_with_others(trained: Any) -> None:
    assert trained("running", "left", "left", "done", "done") == 2
    assert trained(RayActorError(), "left", "done", "done", max_failures=1) == 2
    with pytest.raises(ClusterError, match="failed once too often"):
        trained(RayActorError(), "left", RayActorError(), "left", max_failures=1)


def test_a_group_begins_with_the_workers_that_there_are_and_may_grow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_train, "resources", lambda _: Workers("cpu", 1))
    config = configuration(str(tmp_path), cluster={"num_workers": 2, "min_workers": 1})
    assert ray_train._trainer(config, ray_train._wanted(config), {}).scaling_config.num_workers == (1, 2)


def test_workers_that_cannot_leave_are_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Those of a lost machine are started again before they can; here the thread waits for that until it is aborted."""

    class Stuck(threading.Thread):
        error: Exception | None = None

        def __init__(self) -> None:
            super().__init__(daemon=True)
            self.left, self.aborted = False, threading.Event()

        def run(self) -> None:
            self.aborted.wait()

        def leave(self) -> None:
            self.left = True

        def abort(self) -> None:
            self.aborted.set()

    monkeypatch.setattr(ray_train, "LEAVE_SECONDS", 0.01)
    group = WorkerGroup(configuration(str(tmp_path)))
    stuck: Any = Stuck()
    stuck.start()
    group._run = stuck
    assert group.close() is None and group._run is None
    assert stuck.left and stuck.aborted.is_set()
    assert "have not ended within" in caplog.text


def test_an_error_of_the_job_is_raised_as_it_is(trained: Any) -> None:
    with pytest.raises(DataError, match="two images"):
        trained("running", DataError("two images, one placeholder"))


def test_the_storage_is_named_where_it_was_that_the_last_time() -> None:
    refused = StorageError("cannot read s3://bucket/part: 503")
    error = _gave_up(WorkerGroupError("a long text", {0: RuntimeError("gloo"), 1: refused}), "sft")
    assert type(error) is StorageError
    assert "training stage sft" in str(error) and "trainer.max_failures" in str(error)
    assert "cannot read s3://bucket/part: 503" in str(error) and "a long text" not in str(error)


def test_other_failures_are_told_as_ray_tells_them() -> None:
    for failure in (WorkerGroupError("rank 0 was killed", {0: RuntimeError("x")}), ControllerError(ValueError("lost"))):
        error = _gave_up(failure, "sft")
        assert type(error) is ClusterError and str(failure) in str(error)
