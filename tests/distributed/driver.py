"""A training stage as a process of its own, to be killed: `python -m tests.distributed.driver FOLDER STEPS`."""

from __future__ import annotations

import sys
from typing import Any

from amvl_core.contracts import storage
from amvl_core.contracts.config import RunConfig
from benchmarks.trial import configuration, dataset
from infra import cluster
from infra.ray_train import WorkerGroup
from infra.tracking import Tracker


def settings(root: str, steps: int) -> RunConfig:
    """Two workers, a checkpoint every five steps, tracking in the folder."""
    changes: dict[str, Any] = {
        "stages": {"sft": {"steps": steps}},
        "trainer": {"checkpoint_every": 5},
        "cluster": {"num_workers": 2},
        "tracking": {"uri": f"sqlite:///{root}/mlflow.db"},
    }
    return configuration(root, **changes)


def main(root: str, steps: int) -> None:
    """Trains from where it was left, and prints the run's id."""
    config = settings(root, steps)
    with Tracker(config) as tracker:
        run = tracker.start()
        cluster.connect(config.cluster)
        data = dataset(f"{root}/data")
        uri = storage.join(root, "sft")
        group = WorkerGroup(config)
        group.train(config, "sft", data, None, uri, "sft", lambda e: tracker.metrics(e.stage, e.done, e.metrics))
    cluster.disconnect()
    print(f"run {run}")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
