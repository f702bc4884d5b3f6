"""What tests of several rooms share: one Ray, one S3 endpoint, and that nothing is skipped in CI."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TypeVar

# Before torch is loaded, and for every process that a test starts: where several processes have a thread for each core,
# every thread waits in a busy loop for others that do not run, and a step takes ten times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # of those that choose a number themselves

import pytest
from transformers.utils import logging as hf_logging

from tests.shared import FOLDER

hf_logging.disable_progress_bar()

LONGEST = (
    "tests/flows/test_full_pipeline.py",
    "tests/distributed/test_train.py",
    "tests/benchmarks/test_commands.py",
)
"""They come first: of two workers, none is left with minutes of tests while the other has nothing to do."""

NEEDS_RAY = pytest.StashKey[set[Path]]()
"""The files of which some test needs it."""

Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)


def pytest_configure(config: pytest.Config) -> None:
    """The process that starts the tests makes the folder which it shares with those that it starts, and removes it."""
    if FOLDER not in os.environ:
        folder = os.environ[FOLDER] = tempfile.mkdtemp(prefix="amvl-test-")
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The longest files come first, then those that need Ray; otherwise the order is that of the folders."""
    needs_ray = config.stash[NEEDS_RAY] = {
        item.path for item in items if "ray_cluster" in getattr(item, "fixturenames", ())
    }
    rank = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: (rank.get(item.nodeid.partition("::")[0], len(rank)), item.path not in needs_ray))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    """After the last test that needs Ray it ends: its processes take a tenth of two cores where nobody uses them."""
    yield
    needs_ray = item.config.stash[NEEDS_RAY]
    if item.path in needs_ray and (nextitem is None or nextitem.path not in needs_ray):
        import ray

        ray.shutdown()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Where CI runs the tests, nothing that they need may be missing: one that skips itself has failed."""
    return _refused_if_skipped((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """So has a file that skips itself."""
    return _refused_if_skipped((yield))


def _refused_if_skipped(report: Report) -> Report:
    if report.skipped and os.environ.get("CI"):
        report.outcome, report.longrepr = "failed", f"in CI a skip is a failure: {report.longrepr}"
    return report


@pytest.fixture(scope="session")
def s3_bucket() -> Iterator[str]:
    """`s3://<bucket>` on a real S3 endpoint on loopback; every client and worker finds it through the environment."""
    import s3fs
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    settings = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        s3fs.S3FileSystem().mkdir("amvl-test")
        yield "s3://amvl-test"
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        server.stop()


@pytest.fixture(scope="module")
def ray_cluster(s3_bucket: str) -> None:
    """One local Ray for all tests that need it; a flow that ran in this process has left it, and it is started again.

    After `s3_bucket`, so that its workers inherit the endpoint.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    import ray

    if ray.is_initialized():
        return
    ray.init(
        address="local",
        num_cpus=3,
        object_store_memory=150 * 2**20,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
    )
