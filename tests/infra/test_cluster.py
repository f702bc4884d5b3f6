"""On the Ray that all tests share."""

import socket

import pytest

from amvl_core.config import ClusterConfig
from amvl_core.errors import ClusterError
from infra import cluster


def test_two_cpu_workers_fit_a_small_machine(ray_cluster: None) -> None:
    workers = cluster.resources(ClusterConfig(num_workers=2, device="cpu"))
    assert workers == cluster.Workers(device="cpu", num_workers=2)
    assert workers.resources == {"CPU": 0.5}


def test_connecting_twice_is_one_connection(ray_cluster: None) -> None:
    import ray

    before = ray.get_runtime_context().get_job_id()
    cluster.connect(ClusterConfig())
    assert ray.get_runtime_context().get_job_id() == before


def test_too_few_cpus_says_both_numbers(ray_cluster: None) -> None:
    with pytest.raises(ClusterError, match=r"needs 9999 workers .* the cluster has \d+ CPUs; set cluster.num_workers"):
        cluster.resources(ClusterConfig(num_workers=9999, device="cpu"))


def test_too_few_gpus_says_both_numbers(ray_cluster: None) -> None:
    with pytest.raises(ClusterError, match=r"needs 999 workers with a GPU each, the cluster has \d+ GPUs; .*to cpu"):
        cluster.resources(ClusterConfig(num_workers=999, device="cuda"))


def test_auto_prefers_gpus_and_never_falls_back_to_cpus_silently(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infra.cluster._capacity", lambda now: {"CPU": 64.0, "GPU": 8.0})
    monkeypatch.setattr("ray.cluster_resources", dict)
    assert cluster.resources(ClusterConfig(num_workers=8)).device == "cuda"
    with pytest.raises(ClusterError, match=r"set cluster\.num_workers to at most 8"):
        cluster.resources(ClusterConfig(num_workers=16))


def test_a_dead_address_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with pytest.raises(ClusterError, match=rf"no Ray cluster answers at '127.0.0.1:{port}'"):
        cluster.connect(ClusterConfig())


def test_the_environment_wins_over_the_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert cluster.address(ClusterConfig()) is None
    assert cluster.address(ClusterConfig(address="head:6379")) == "head:6379"
    monkeypatch.setenv("RAY_ADDRESS", "other:6379")
    assert cluster.address(ClusterConfig(address="head:6379")) == "other:6379"
