"""The servers as child processes: Prefect's API and pages, MLflow's pages, the worker."""

import atexit
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from amvl_core.contracts.errors import AmvlError
from flows.environment import (
    HOST,
    MLFLOW_PORT,
    MLFLOW_URL,
    PREFECT_PORT,
    PREFECT_URL,
    SERVING,
    STATE,
    any_port,
    healthy,
    local_tracking,
    port_free,
    serving,
)
from infra.mlflow_client import AS_TRAINING

START_S = 180.0


class ServerError(AmvlError):
    """A server that cannot be started: its port is taken, or it ended; the message names its log."""


class Child:
    """A server as a child process, with its own children: it ends when it is told to, or with this process.

    It has a session of its own, so that Ctrl-C reaches only this process, which stops it in order.
    """

    def __init__(self, name: str, command: list[str], environment: dict[str, str]) -> None:
        self.name, self.log = name, STATE / "logs" / f"{name}.log"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "flows.leash", *command],
                env={**os.environ, **environment},
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.PIPE,
                start_new_session=True,
            )

    def wait_healthy(self, url: str) -> None:
        """Returns when the server answers; raises ServerError if it ends or takes too long."""
        deadline = time.monotonic() + START_S
        while not healthy(url):
            if self.process.poll() is not None:
                raise ServerError(f"{self.name} ended while it started: see {self.log}\n{self.tail()}")
            if time.monotonic() > deadline:
                raise ServerError(f"{self.name} did not answer at {url} within {START_S:.0f} s: see {self.log}")
            time.sleep(0.2)

    def tail(self) -> str:
        """The last lines of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-8:])

    def on_exit(self, call: Callable[["Child"], None]) -> None:
        """Calls `call(self)` from another thread when the process has ended."""

        def wait() -> None:
            self.process.wait()
            call(self)

        threading.Thread(target=wait, daemon=True).start()

    def stop(self) -> None:
        """Lets go of the leash, and returns when the process and its children have ended."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def prefect_server(port: int) -> Child:
    """Prefect's API and pages on loopback."""
    url = f"http://{HOST}:{port}/api"
    return Child(
        "prefect",
        ["prefect", "server", "start", "--host", HOST, "--port", str(port)],
        {
            "PREFECT_API_URL": url,
            "PREFECT_UI_API_URL": url,
            # What `--watch` shows of a run's log; Prefect's default is that it shows nothing.
            "PREFECT_SERVER_LOGS_STREAM_OUT_ENABLED": "true",
            "PREFECT_SERVER_LOGS_STREAM_PUBLISHING_ENABLED": "true",
        },
    )


def mlflow_server() -> Child:
    """MLflow's pages on the demo's own database: one worker, nothing that runs jobs."""
    database, artifacts = local_tracking()
    Path(artifacts).mkdir(parents=True, exist_ok=True)
    # Artifacts are not proxied: a run in this folder and one through the server write to the same place.
    where = ["--host", HOST, "--port", str(MLFLOW_PORT), "--workers", "1", "--backend-store-uri", database]
    return Child(
        "mlflow",
        ["mlflow", "server", *where, "--no-serve-artifacts", "--default-artifact-root", artifacts],
        {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
    )


@dataclass(frozen=True)
class PrefectApi:
    """The server that PREFECT_API_URL names; `own` is that of this process alone, which ends with it."""

    own: Child | None = None

    def wait(self) -> None:
        """Returns when it answers; raises ServerError as `Child.wait_healthy`."""
        if self.own is not None:
            self.own.wait_healthy(f"{os.environ['PREFECT_API_URL']}/health")


def prefect_api() -> PrefectApi:
    """Points PREFECT_API_URL at this folder's `make serve`, else at a server of its own until this process ends.

    A server that PREFECT_API_URL names already goes before both; ServerError if it does not answer, or if its address
    holds a login.

    Its own has a port that nobody else asks, so that no other run takes it for a lasting one. It starts meanwhile:
    import what takes as long, and then `wait`. Call this before Prefect is imported: the own server is then stopped
    after Prefect has sent its last log lines and events, because exit handlers run in reverse order.
    """
    named = os.environ.get("PREFECT_API_URL")
    if named and "@" in named:
        raise ServerError(
            "PREFECT_API_URL holds a login, which logs would show and Prefect does not use: take it out, and set "
            "PREFECT_API_AUTH_STRING to USER:PASSWORD"
        )
    api = named or (f"{found[0]}/api" if (found := serving()) else None)
    if api and healthy(f"{api}/health"):
        os.environ["PREFECT_API_URL"] = api
        return PrefectApi()
    if named:
        raise ServerError(f"no Prefect server answers at PREFECT_API_URL ({named}): start it, or unset the variable")
    port = any_port()
    os.environ["PREFECT_API_URL"] = f"http://{HOST}:{port}/api"
    server = prefect_server(port)
    atexit.register(server.stop)
    return PrefectApi(server)


def serve() -> int:
    """Runs both servers and a worker until it is interrupted or one of them ends; returns the exit code."""
    for name, port, variable in (("Prefect", PREFECT_PORT, "PREFECT_PORT"), ("MLflow", MLFLOW_PORT, "MLFLOW_PORT")):
        if not port_free(port):
            raise ServerError(
                f"port {port}, which {name} needs, is in use: stop what listens there (another `make serve`, or a demo "
                f"that still runs), or choose another port: `make serve {variable}={port + 1}`"
            )
    if not Path("prefect.yaml").is_file():
        raise ServerError("prefect.yaml is not in this folder: run it in the checkout")
    children: list[Child] = []
    ended = threading.Event()
    try:
        print("starting Prefect and MLflow ...", flush=True)
        children += [prefect_server(PREFECT_PORT), mlflow_server()]
        children[0].wait_healthy(f"{PREFECT_URL}/api/health")
        environment = {"PREFECT_API_URL": f"{PREFECT_URL}/api", "MLFLOW_TRACKING_URI": MLFLOW_URL}
        _prefect(environment, "work-pool", "create", "local", "--type", "process", "--overwrite")
        _prefect(environment, "--no-prompt", "deploy", "--all")
        children[1].wait_healthy(f"{MLFLOW_URL}/health")
        children.append(Child("worker", ["prefect", "worker", "start", "--pool", "local"], environment))
        for child in children:
            child.on_exit(lambda _: ended.set())
        SERVING.write_text(json.dumps({"pid": os.getpid(), "prefect": PREFECT_URL, "mlflow": MLFLOW_URL}))
        print(_READY, flush=True)
        ended.wait()
        gone = [child for child in children if child.process.poll() is not None]
        raise ServerError(f"{gone[0].name} ended: see {gone[0].log}\n{gone[0].tail()}")
    except KeyboardInterrupt:
        print("\nstopping ...", flush=True)
        return 0
    finally:
        SERVING.unlink(missing_ok=True)
        for child in reversed(children):
            child.stop()


def _prefect(environment: dict[str, str], *arguments: str) -> None:
    command = [sys.executable, "-m", "prefect", *arguments]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)
    if done.returncode:
        raise ServerError(f"`prefect {' '.join(arguments)}` failed:\n{done.stdout}{done.stderr}")


_READY = f"""
Prefect  {PREFECT_URL}
MLflow   {MLFLOW_URL}/#/experiments{AS_TRAINING}

A worker waits for runs. In another terminal, in this folder:
  export PREFECT_API_URL={PREFECT_URL}/api
  prefect deployment run amvl/demo --watch
  prefect deployment run amvl/demo --watch --param seed=3 --param 'cluster={{"num_workers":1}}'
  prefect deployment run amvl/ablations --watch --param table=3
  prefect deployment run amvl/experiment --watch --param name=latents-quick
  prefect deployment run amvl/full-pipeline --watch
Ctrl-C stops everything.
"""
