"""On the Ray that all tests share."""

import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from amvl_core.contracts.config import ClusterConfig
from amvl_core.contracts.errors import ClusterError
from infra import cluster

ROOT = Path(__file__).parents[2]


def test_two_cpu_workers_fit_a_small_machine(ray_cluster: None) -> None:
    workers = cluster.resources(ClusterConfig(num_workers=2, device="cpu"))
    assert workers == cluster.Workers(device="cpu", num_workers=2)
    assert workers.resources == {"CPU": 0.5}


def test_connecting_twice_is_one_connection(ray_cluster: None) -> None:
    import ray

    before = ray.get_runtime_context().get_job_id()
    cluster.connect(ClusterConfig())
    assert ray.get_runtime_context().get_job_id() == before


def test_cores_are_those_that_the_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 7, 8})
    assert cluster.cores() == 3


def test_too_few_cpus_says_both_numbers(ray_cluster: None) -> None:
    with pytest.raises(ClusterError, match=r"needs 9999 workers .* the cluster has \d+ CPUs; set cluster.num_workers"):
        cluster.resources(ClusterConfig(num_workers=9999, device="cpu"))


def test_too_few_gpus_says_both_numbers(ray_cluster: None) -> None:
    with pytest.raises(ClusterError, match=r"needs 999 workers with a GPU each, the cluster has \d+ GPUs; .*to cpu"):
        cluster.resources(ClusterConfig(num_workers=999, device="cuda"))


def test_auto_prefers_gpus_and_never_falls_back_to_cpus_silently(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infra.cluster._capacity", lambda *_: {"CPU": 64.0, "GPU": 8.0})
    monkeypatch.setattr("ray.cluster_resources", dict)
    assert cluster.resources(ClusterConfig(num_workers=8)).device == "cuda"
    with pytest.raises(ClusterError, match=r"set cluster\.num_workers to at most 8"):
        cluster.resources(ClusterConfig(num_workers=16))


def test_only_fewer_than_min_workers_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stage that lost machines went on with 8; so do the next stage, the evaluation and the same command."""
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 96.0, "GPU": 8.0})
    config = ClusterConfig(address="head:6379", num_workers=16, min_workers=8)
    assert cluster.resources(config) == cluster.Workers("cuda", 8)
    assert cluster.jobs_at_once(config) == 1
    with pytest.raises(ClusterError, match=r"needs 9 .* has 8 GPUs; set cluster\.min_workers to at most 8"):
        cluster.resources(config.model_copy(update={"min_workers": 9}))
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 4.0})
    assert cluster.resources(config) == cluster.Workers("cpu", 8)
    with pytest.raises(ClusterError, match=r"needs 9 workers with 0\.5 CPU .*set cluster\.min_workers to at most 8"):
        cluster.resources(config.model_copy(update={"min_workers": 9}))


def test_a_model_lies_on_gpus_of_one_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three on each of 8: the other two are left over."""
    nodes = [{"Alive": True, "Resources": {"GPU": 8.0}}] * 2 + [{"Alive": False, "Resources": {"GPU": 16.0}}]
    monkeypatch.setattr("ray.nodes", lambda: nodes)
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 96.0, "GPU": 16.0})
    config = ClusterConfig(address="head:6379", num_workers=16, evaluation_gpus=3)
    assert cluster.resources(config) == cluster.Workers("cuda", 16)
    assert cluster.evaluators(config) == cluster.Workers("cuda", 4, 3)
    assert cluster.evaluators(config).resources == {"CPU": 1.0, "GPU": 3.0}
    assert cluster.evaluators(config.model_copy(update={"num_workers": 5})) == cluster.Workers("cuda", 1, 3)
    assert cluster.evaluators(config.model_copy(update={"evaluation_gpus": 1})) == cluster.Workers("cuda", 16)
    few = config.model_copy(update={"evaluation_gpus": 9, "min_workers": 2})
    assert cluster.resources(few).num_workers == 16  # what trains goes on with fewer machines, and they may come back
    with pytest.raises(ClusterError, match="no machine of the cluster has more than 8 GPUs"):
        cluster.evaluators(few)
    nodes.pop(0)
    lost = cluster.evaluators(config.model_copy(update={"num_workers": 15}))
    assert cluster.room(cluster.Workers("cuda", 4, 3)) == 2 and lost == cluster.Workers("cuda", 2, 3)
    said = cluster.Room(cluster.Workers("cuda", 4, 3), None, "evaluate")._message(2, 1)
    assert said is not None and "room for 2 of 4 workers on 1 nodes" in said and "cluster.num_workers=6" in said
    with pytest.raises(ClusterError, match="evaluation_gpus is 9, and no machine of the cluster has more than 8 GPUs"):
        cluster.resources(config.model_copy(update={"evaluation_gpus": 9}))
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 16.0})
    assert cluster.evaluators(config) == cluster.Workers("cpu", 16)
    with pytest.raises(ValueError, match=r"evaluation_gpus \(4\) must be at most num_workers \(2\)"):
        ClusterConfig(num_workers=2, evaluation_gpus=4)


def test_on_a_head_of_ray_up_the_nodes_count_that_are_still_to_come(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Before training there is no GPU node: the run must ask for one, not be refused."""
    shutil.copy(ROOT / "ray_cluster.yaml", tmp_path / "ray_bootstrap_config.yaml")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    monkeypatch.setattr("ray.cluster_resources", dict)
    workers = cluster.resources(ClusterConfig(num_workers=16))
    assert workers == cluster.Workers(device="cuda", num_workers=16)
    monkeypatch.setattr("ray.nodes", list)
    assert cluster.evaluators(ClusterConfig(num_workers=16, evaluation_gpus=3)) == cluster.Workers("cuda", 4, 3)
    with pytest.raises(ClusterError, match=r"the cluster has 16 GPUs; set cluster\.num_workers to at most 16"):
        cluster.resources(ClusterConfig(num_workers=17))
    monkeypatch.delenv("RAY_ADDRESS")  # a Ray of its own on the same machine has no autoscaler
    with pytest.raises(ClusterError, match="the cluster has 0 CPUs"):
        cluster.resources(ClusterConfig(num_workers=1))


def test_a_dead_address_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with pytest.raises(ClusterError, match=rf"no Ray cluster answers at '127.0.0.1:{port}'"):
        cluster.connect(ClusterConfig())


def test_auto_in_the_environment_is_the_cluster_that_runs_here(
    ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So Ray itself reads it: never a Ray of its own, on whose CPUs a large model would be trained."""
    import ray

    running, joined = ray.get_runtime_context().gcs_address, []
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", lambda address, **_: joined.append(address))
    monkeypatch.setattr("infra.cluster._take_sigterm", lambda: None)
    monkeypatch.setattr("ray._private.services.find_gcs_addresses", lambda: {running})
    cluster.connect(ClusterConfig())
    assert joined == ["auto"]  # Ray finds it again, and takes the token of this machine for it
    monkeypatch.setattr("ray._private.services.find_gcs_addresses", lambda: {"127.0.0.1:9"})
    with pytest.raises(ClusterError, match=r"no Ray cluster answers at 'auto' .*refused"):
        cluster.connect(ClusterConfig())
    monkeypatch.setattr("ray._private.services.find_gcs_addresses", set)
    monkeypatch.setattr("ray._private.services.find_bootstrap_address", lambda folder: None)
    with pytest.raises(ClusterError, match=r"no Ray cluster answers at 'auto' \(Could not find any.*RAY_ADDRESS=local"):
        cluster.connect(ClusterConfig())


def test_a_cluster_that_asks_for_a_token_says_so(ray_cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real one with a wrong token: Ray itself says only that it failed to connect."""
    import ray

    address = ray.get_runtime_context().gcs_address
    done = subprocess.run(
        [sys.executable, "-c", PRIVATE],
        env=os.environ | {"PYTHONPATH": str(ROOT), "RAY_ADDRESS": address, "RAY_AUTH_MODE": "disabled"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert re.search(rf"the Ray cluster at '{address}' asks for a token; set RAY_AUTH_MODE=token, and", done.stdout)


PRIVATE = """
import os, signal
from amvl_core.contracts.config import ClusterConfig
from amvl_core.contracts.errors import ClusterError
from infra import cluster
try:
    cluster.connect(ClusterConfig())
except ClusterError as error:
    print(error)
else:
    assert os.environ["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] == "0"
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    except KeyboardInterrupt:
        print("put away in order")
    cluster.disconnect()
"""


def private(**environment: str) -> str:
    """What a process says that starts a Ray of its own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", PRIVATE],
        env=kept | environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_a_folder_too_long_for_rays_sockets_is_one_message(tmp_path: Path) -> None:
    long = tmp_path / ("x" * 90)
    long.mkdir()
    assert "Ray cannot start on this machine" in (said := private(TMPDIR=str(long)))
    assert "set RAY_TMPDIR to a short path" in said


def test_ray_does_not_kill_a_process_that_is_told_to_end() -> None:
    assert private() == "put away in order\n"


def test_on_a_head_of_ray_up_a_ray_of_its_own_is_asked_for(tmp_path: Path) -> None:
    """One that nobody asked for would train a large model on the head's CPUs."""
    (tmp_path / "ray_bootstrap_config.yaml").touch()
    assert "set RAY_ADDRESS=127.0.0.1:6379 to run on that cluster, or RAY_ADDRESS=local" in private(HOME=str(tmp_path))
    assert private(HOME=str(tmp_path), RAY_ADDRESS="local") == "put away in order\n"


def test_the_environment_wins_over_the_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert cluster.address(ClusterConfig()) is None
    assert cluster.address(ClusterConfig(address="head:6379")) == "head:6379"
    monkeypatch.setenv("RAY_ADDRESS", "other:6379")
    assert cluster.address(ClusterConfig(address="head:6379")) == "other:6379"
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert cluster.address(ClusterConfig()) == "auto"
    monkeypatch.setenv("RAY_ADDRESS", "local")
    assert cluster.address(ClusterConfig(address="head:6379")) is None
