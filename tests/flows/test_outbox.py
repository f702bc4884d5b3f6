"""A Prefect server that goes while runs are attached to it, and the keys that Prefect takes."""

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from amvl_core.experiments import EXPERIMENTS
from flows import outbox
from flows.environment import any_port
from flows.servers import Child, prefect_server

pytestmark = pytest.mark.timeout(240)
RUN = """
import sys
from prefect import flow, get_run_logger, task
from flows import outbox
from flows.run import quiet

@task
def work(name):
    get_run_logger().info("at %s", name)
    outbox.create_table_artifact([{"name": name}], key=name, description="a table")
    page = outbox.progress_page(f"progress-{name}")
    for share in (10.0, 60.0):
        page(share, "on")

def ask(text):
    print(text, flush=True)
    sys.stdin.readline()

@flow(name="run")
def run(name):
    with outbox.sending():
        ask("started")
        work(name)
        ask("worked")
    return name

quiet()
print("gave", outbox.told(run, sys.argv[1]))
"""


class Run:
    """A flow in a process of its own, which stops where it asks."""

    def __init__(self, name: str, folder: Path, api: str) -> None:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
        quick = {"PREFECT_CLIENT_MAX_RETRIES": "1", "PREFECT_HOME": str(folder / name), "PREFECT_API_URL": api}
        self.process = subprocess.Popen(
            [sys.executable, "-c", RUN, name],
            env=kept | quick | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])},
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def asked(self, text: str) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == f"{text}\n", self.process.communicate(timeout=60)

    def go_on(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()


class Server:
    def __init__(self) -> None:
        self.port = any_port()
        self.api = f"http://127.0.0.1:{self.port}/api"
        self.child: Child | None = None

    def start(self) -> None:
        self.child = prefect_server(self.port)
        self.child.wait_healthy(f"{self.api}/health")

    def stop(self) -> None:
        if self.child is not None:
            self.child.stop()

    def rows(self, what: str) -> list[dict[str, Any]]:
        request = urllib.request.Request(
            f"{self.api}/{what}/filter", data=b"{}", headers={"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            rows: list[dict[str, Any]] = json.load(answer)
        return rows


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    server = Server()
    try:
        server.start()
        yield server
    finally:
        server.stop()


def test_no_name_makes_a_key_that_prefect_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    keys: list[str] = []

    def create_artifact(wanted: Any) -> SimpleNamespace:
        keys.append(wanted.key)
        return SimpleNamespace(id="i")

    client = SimpleNamespace(create_artifact=create_artifact, update_artifact=lambda *_: None)
    monkeypatch.setattr(outbox.OUTBOX, "call", lambda send: send(client))
    names = [*EXPERIMENTS, "test_time", "V* 2.5/7B (x)", "größe", "\u989c\u8272", "\u5927\u5c0f", "*"]
    for name in names:
        outbox.create_table_artifact([], key=name, description="")
        outbox.create_markdown_artifact("", key=name, description="")
        outbox.create_link_artifact("http://x", key=name, link_text="x", description="")
        outbox.progress_page(name)(50.0, "on")
    assert keys[::4] == keys[1::4] == keys[2::4] == keys[3::4]
    assert len(set(keys)) == len(names)
    assert {*EXPERIMENTS, "test-time", "v--2-5-7b--x-"} < set(keys)


def test_a_run_survives_its_server_and_tells_it_the_rest_when_it_is_back(server: Server, tmp_path: Path) -> None:
    waits, ends = (Run(name, tmp_path, server.api) for name in ("waits", "ends"))
    try:
        for run in (waits, ends):
            run.asked("started")
        server.stop()
        for run in (waits, ends):
            run.go_on()
            run.asked("worked")

        shown, errors = ends.process.communicate("\n", timeout=60)
        assert (ends.process.returncode, shown) == (0, "gave ends\n"), errors
        said = [line for line in errors.splitlines() if "View at" not in line and "at ends" not in line]
        assert len(said) == 1, errors
        assert f"Prefect at {server.api} does not answer; the run goes on" in said[0]

        server.start()
        shown, errors = waits.process.communicate("\n", timeout=60)
        assert (waits.process.returncode, shown) == (0, "gave waits\n"), errors
        assert f"Prefect at {server.api} answers again" in errors
    finally:
        for run in (waits, ends):
            run.process.kill()
    found = {
        row["key"]: json.loads(row["data"]) if row["type"] == "table" else row["data"]
        for row in server.rows("artifacts")
    }
    assert found == {"waits": [{"name": "waits"}], "progress-waits": 60.0}
    assert "at waits" in [row["message"] for row in server.rows("logs")]
    deadline = time.monotonic() + 30  # the server takes task runs from its events, in batches
    while [row["state_type"] for row in server.rows("task_runs")] != ["COMPLETED"]:
        assert time.monotonic() < deadline, server.rows("task_runs")
        time.sleep(0.5)
    states = {row["id"]: row["state_type"] for row in server.rows("flow_runs")}
    assert sorted(states.values()) == ["COMPLETED", "RUNNING"]  # nobody told it of the one that ended meanwhile
    (task,) = server.rows("task_runs")
    assert states[task["flow_run_id"]] == "COMPLETED"  # the task run lies with its flow run
