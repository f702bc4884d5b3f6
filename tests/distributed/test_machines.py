"""Machines that go and come: `python -m pytest -m slow tests/distributed/test_machines.py` (some minutes)."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any

import psutil
import pytest

from amvl_core.contracts.progress import Progress
from amvl_core.contracts.records import CheckpointRecord, load_record
from benchmarks.trial import configuration, dataset
from infra.mlflow_client import client
from infra.ray_train import WorkerGroup
from tests.distributed.driver import settings

pytestmark = pytest.mark.slow
STEPS, EVERY = 150, 10


@pytest.fixture()
def machines(monkeypatch) -> Iterator[Any]:
    """A head without CPUs and two nodes with one each, one worker's worth."""
    monkeypatch.setattr("infra.cluster.CPUS_PER_WORKER", 1.0)
    for name, value in {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "1",
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "30",
        "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",
        "RAY_health_check_period_ms": "1000",
        "RAY_health_check_failure_threshold": "3",
    }.items():
        monkeypatch.setenv(name, value)
    import ray
    from ray.cluster_utils import Cluster

    memory = 100 * 2**20
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": memory})
    cluster.spare = [cluster.add_node(num_cpus=1, object_store_memory=memory) for _ in range(2)]
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    yield cluster
    ray.shutdown()
    cluster.shutdown()


class Run(threading.Thread):
    """Training in a thread: nodes are added and removed in the main one."""

    def __init__(self, root: str, **cluster: Any) -> None:
        super().__init__(daemon=True)
        changes: dict[str, Any] = {"stages": {"sft": {"steps": STEPS}}, "trainer": {"checkpoint_every": EVERY}}
        self.config = configuration(root, cluster={"num_workers": 2, **cluster}, **changes)
        self.data, self.uri = dataset(f"{root}/data"), f"{root}/sft"
        self.group = WorkerGroup(self.config)
        self.events: list[Progress] = []
        self.failed: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self.group.train(self.config, "sft", self.data, None, self.uri, "sft", self.events.append)
        except BaseException as error:
            self.failed = error

    def wait(self, reached: Callable[[], bool], limit: float = 200) -> None:
        """Until it is so; an error if training ends first or it takes too long."""
        deadline = time.monotonic() + limit
        while not reached():
            assert self.is_alive(), self.failed
            assert time.monotonic() < deadline, "too long"
            time.sleep(0.1)

    def steps(self) -> int:
        """The last step reported."""
        return self.events[-1].done if self.events else 0

    def finish(self) -> CheckpointRecord:
        """The record, and that each step was the same step each time it was reported."""
        self.join(300)
        assert not self.is_alive() and self.failed is None, self.failed
        record = load_record(self.uri, CheckpointRecord)
        assert record is not None and record.step == STEPS
        assert sorted({event.done for event in self.events}) == list(range(1, STEPS + 1))
        return record

    def lost(self) -> list[int]:
        """Steps done again after each new start, which first reports, times and all, the steps it goes on from."""
        logged = [(event.done, event.metrics) for event in self.events if event.metrics]
        starts = [i for i in range(1, len(logged)) if logged[i][0] == 1]
        found = []
        for i in starts:
            before = dict(logged[:i])
            kept = list(takewhile(lambda event, known=before: known.get(event[0]) == event[1], logged[i:]))
            found.append(logged[i - 1][0] - len(kept))
        return found


def test_a_lost_node_is_named_and_training_goes_on_when_another_comes(machines, tmp_path, caplog) -> None:
    caplog.set_level(logging.WARNING)
    run = Run(str(tmp_path))
    run.wait(lambda: run.steps() > 15)
    machines.remove_node(machines.spare[1], allow_graceful=False)
    run.wait(lambda: "room for 1 of 2 workers on 2 nodes, and waits for 2" in caplog.text)
    assert "cluster.num_workers=1" in caplog.text
    machines.add_node(num_cpus=1, object_store_memory=100 * 2**20)
    run.finish()
    (lost,) = run.lost()
    assert 0 <= lost < EVERY
    assert "there is room for all workers again" in caplog.text


def test_with_min_workers_training_goes_on_on_the_node_that_is_left(machines, tmp_path, caplog) -> None:
    caplog.set_level(logging.WARNING)
    run = Run(str(tmp_path), min_workers=1)
    run.wait(lambda: run.steps() > 15)
    machines.remove_node(machines.spare[1], allow_graceful=False)
    run.finish()
    (lost,) = run.lost()
    assert 0 <= lost < EVERY
    assert "room for 1 of 2 workers on 2 nodes; it goes on with 1" in caplog.text


def test_sigterm_to_a_worker_loses_no_step(machines, tmp_path, caplog) -> None:
    caplog.set_level(logging.WARNING)
    run = Run(str(tmp_path))
    run.wait(lambda: run.steps() > 15)
    workers = [p for p in psutil.Process().children(recursive=True) if "RayTrainWorker" in " ".join(p.cmdline())]
    assert len(workers) == 2
    os.kill(workers[0].pid, signal.SIGTERM)
    run.finish()
    assert "a worker's machine is taken away" in caplog.text
    assert run.lost() == [0]


def test_a_drained_node_is_left_with_a_checkpoint(machines, tmp_path, caplog) -> None:
    caplog.set_level(logging.WARNING)
    run = Run(str(tmp_path), min_workers=1)
    run.wait(lambda: run.steps() > 5)
    import ray
    from ray.core.generated.autoscaler_pb2 import DrainNodeReason

    node, reason = machines.spare[1].node_id, DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    in_an_hour = time.time_ns() // 10**6 + 3_600_000
    accepted, why = ray._raylet.GcsClient(address=machines.address).drain_node(node, reason, "spot", in_an_hour)
    assert accepted, why
    run.wait(lambda: "a worker's machine is taken away" in caplog.text)
    run.finish()
    assert run.lost() == [0]


def test_the_driver_is_killed_and_started_again(tmp_path) -> None:
    steps = 60
    runs = {}
    for name, kill in (("whole", None), ("killed", signal.SIGKILL), ("interrupted", signal.SIGINT)):
        root = tmp_path / name
        root.mkdir()
        command = [sys.executable, "-m", "tests.distributed.driver", str(root), str(steps)]
        if kill is not None:
            first = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            while not list(root.glob("sft/checkpoints/*/complete.json")):
                assert first.poll() is None
                time.sleep(0.05)
            first.send_signal(kill)
            first.wait(60)
            markers = [json.loads(path.read_text()) for path in root.glob("sft/checkpoints/*/complete.json")]
            assert markers and not (root / "sft" / "record.json").exists()
        output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=200).stdout
        run_id = output.split("run ")[1].split()[0]
        found = client(settings(str(root), steps)).get_metric_history(run_id, "sft/loss")
        runs[name] = [(point.step, point.value) for point in found]
        assert [step for step, _ in runs[name]] == list(range(1, steps + 1)), "no gap and no double step"
        assert (Path(root) / "sft" / "record.json").exists()
    assert runs["killed"] == runs["whole"] == runs["interrupted"]
