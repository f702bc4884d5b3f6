"""Servers as child processes; the real ones run in `test_full_pipeline.py` and `test_outbox.py`."""

import json
import os
import re
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from flows.environment import any_port, port_free, serving
from flows.servers import Child, ServerError, prefect_api

pytestmark = pytest.mark.timeout(60)
NESTED = """
import subprocess, sys
subprocess.call([sys.executable, "-m", "http.server", "--bind", "127.0.0.1", sys.argv[1]])
"""
OWNER = """
import sys, time
from flows.servers import Child
child = Child("web", ["nested", sys.argv[1]], {})
child.wait_healthy(f"http://127.0.0.1:{sys.argv[1]}")
print("up", flush=True)
time.sleep(60)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a module whose server is a process of its own, as Prefect's is."""
    (tmp_path / "nested.py").write_text(NESTED)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(Path(__file__).resolve().parents[2])]))
    return tmp_path


def within(seconds: float, met: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while not met() and time.monotonic() < deadline:
        time.sleep(0.1)
    return met()


def test_a_child_ends_with_its_own_children(folder: Path) -> None:
    port = any_port()
    child = Child("web", ["nested", str(port)], {})
    child.wait_healthy(f"http://127.0.0.1:{port}")
    child.stop()
    assert child.process.poll() is not None
    assert within(5, lambda: port_free(port))


def test_the_servers_of_a_folder_are_known_while_their_process_lives(folder: Path) -> None:
    said = folder / ".amvl" / "serving.json"
    said.parent.mkdir()
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert serving() is None
    for pid, found in ((os.getpid(), ("http://p", "http://m")), (ended.pid, None)):
        said.write_text(json.dumps({"pid": pid, "prefect": "http://p", "mlflow": "http://m"}))
        assert serving() == found


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGTERM])
def test_a_child_ends_with_its_owner_however_that_ends(folder: Path, sign: int) -> None:
    port = any_port()
    owner = subprocess.Popen([sys.executable, "-c", OWNER, str(port)], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    assert owner.stdout.readline() == "up\n"
    owner.send_signal(sign)
    owner.wait(timeout=10)
    assert within(10, lambda: port_free(port))


@pytest.mark.parametrize(("name", "given"), [("PREFECT_PORT", "abc"), ("MLFLOW_PORT", "-1"), ("MLFLOW_PORT", "65536")])
def test_a_port_that_is_none_is_one_line(name: str, given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, given)
    with pytest.raises(SystemExit, match=f"{name} is '{given}'; set it to a port from 1 to 65535"):
        runpy.run_path(str(Path(__file__).parents[2] / "flows" / "environment.py"))


@pytest.mark.parametrize("url", ["http://me:s3cret@127.0.0.1:1/api", "http://me:s3cret@127.0.0.1/api"])
def test_a_login_in_prefects_address_is_refused_and_not_shown(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", url)
    with pytest.raises(ServerError, match=r"PREFECT_API_URL holds a login.* PREFECT_API_AUTH_STRING") as caught:
        prefect_api()
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/api", "http://127.0.0.1:port/api", "127.0.0.1:4200"])
def test_an_address_at_which_nothing_answers_is_refused(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", url)
    with pytest.raises(ServerError, match=re.escape(f"no Prefect server answers at PREFECT_API_URL ({url})")):
        prefect_api()
