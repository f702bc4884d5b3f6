"""On a cluster whose head has no CPU, as `ray_cluster.yaml` starts it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

LATE = """
import logging, pathlib, sys, threading, time
from infra.cluster import _ENVIRONMENT
import os
os.environ.update(_ENVIRONMENT)
import ray
from ray.cluster_utils import Cluster
from data_prep.streaming import stream

folder, said, found = pathlib.Path(sys.argv[1]), [], []

def cut(count):
    for number in range(count):
        (folder / str(number)).touch()
        yield number

class Said(logging.Handler):
    def emit(self, record):
        said.append(record.getMessage())

logging.getLogger("data_prep.streaming").addHandler(Said())
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 100 * 2**20})
ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
streaming = threading.Thread(target=lambda: found.extend(stream([5], cut, str)), daemon=True)
streaming.start()
deadline = time.monotonic() + 60
while not said and not any(folder.iterdir()) and time.monotonic() < deadline:
    time.sleep(0.1)
time.sleep(3)
print(said, len(list(folder.iterdir())))
cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20)
streaming.join(60)
print(sorted(found))
ray.shutdown()
cluster.shutdown()
"""


def test_nothing_is_cut_before_there_is_a_node_that_takes_it(tmp_path: Path) -> None:
    """Ray Data asks for one only when everything is cut, and limits nothing before it is there."""
    done = subprocess.run(
        [sys.executable, "-c", LATE, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=200,
    )
    *_, waiting, found = done.stdout.splitlines()
    assert waiting == "['waits for a node: the cluster has no CPU yet; `ray status` says what is asked for'] 0"
    assert found == "['0', '1', '2', '3', '4']"
