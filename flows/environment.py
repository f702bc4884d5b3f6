"""Ports, folders and the environment of Prefect and MLflow; imports neither, because both read it when imported."""

import json
import os
import socket
import sys
import urllib.request
from http.client import HTTPException
from pathlib import Path

from amvl_core.contracts import storage
from amvl_core.contracts.loopback import past_proxies
from amvl_core.contracts.storage import LOCAL_STORAGE


def _port(name: str, default: int) -> int:
    """What the environment says, read when a command starts; one line ends it where that is no port."""
    given = os.environ.get(name) or str(default)
    if not given.isdecimal() or not 0 < int(given) < 2**16:
        sys.exit(f"{name} is {given!r}; set it to a port from 1 to 65535, or leave it out for {default}")
    return int(given)


STATE = Path(".amvl")
HOST = "127.0.0.1"
PREFECT_PORT = _port("PREFECT_PORT", 4200)
MLFLOW_PORT = _port("MLFLOW_PORT", 5000)
PREFECT_URL = f"http://{HOST}:{PREFECT_PORT}"
MLFLOW_URL = f"http://{HOST}:{MLFLOW_PORT}"
SERVING = STATE / "serving.json"
"""What `make serve` of this folder says of itself while it runs: its process, and where its servers are."""

_LINE = "%(asctime)s  %(message)s"
_DEFAULTS = {
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "PREFECT_CLIENT_MAX_RETRIES": "3",  # the default of 5 blocks a call for a minute when the server is down
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_LOGGING_FORMATTERS_STANDARD_FORMAT": _LINE,
    "PREFECT_LOGGING_FORMATTERS_STANDARD_FLOW_RUN_FMT": _LINE,
    "PREFECT_LOGGING_FORMATTERS_STANDARD_TASK_RUN_FMT": _LINE,
    "RAY_USAGE_STATS_ENABLED": "0",
    "TQDM_DISABLE": "1",  # progress is logged; bars of libraries would tear the lines
}


def set_up() -> None:
    """All local state below `.amvl/` of the working directory, by absolute path; no proxy between our own servers."""
    past_proxies()
    home = (STATE / "prefect").absolute()
    home.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("PREFECT_HOME", str(home))
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)


def healthy(url: str) -> bool:
    """Whether a server answers there within two seconds."""
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except (OSError, HTTPException, ValueError):  # the last two where the address is malformed
        return False


def serving() -> tuple[str, str] | None:
    """Where this folder's own Prefect and MLflow are, if `make serve` runs in it; another folder's hold other runs."""
    try:
        said = json.loads(SERVING.read_text())
        os.kill(said["pid"], 0)
    except (OSError, ValueError):  # none, or one that was killed while it wrote
        return None
    return said["prefect"], said["mlflow"]


def port_free(port: int) -> bool:
    """Whether this machine's loopback port can be listened on."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def any_port() -> int:
    """A loopback port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def local_tracking() -> tuple[str, str]:
    """MLflow's database and artifact folder below the demo's storage root."""
    root = storage.local_path(LOCAL_STORAGE)
    return f"sqlite:///{root}/mlflow.db", str(root / "mlartifacts")
