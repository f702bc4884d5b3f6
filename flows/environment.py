"""Ports, folders and the environment of Prefect and MLflow; set before either is imported."""

import os
import urllib.request
from pathlib import Path

from amvl_core import storage
from amvl_core.presets import LOCAL_STORAGE

STATE = Path(".amvl")
PREFECT_PORT = int(os.environ.get("PREFECT_PORT", "4200"))
MLFLOW_PORT = int(os.environ.get("MLFLOW_PORT", "5000"))
PREFECT_URL = f"http://127.0.0.1:{PREFECT_PORT}"
MLFLOW_URL = f"http://127.0.0.1:{MLFLOW_PORT}"

_LINE = "%(asctime)s  %(message)s"
_DEFAULTS = {
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_LOGGING_FORMATTERS_STANDARD_FORMAT": _LINE,
    "PREFECT_LOGGING_FORMATTERS_STANDARD_FLOW_RUN_FMT": _LINE,
    "PREFECT_LOGGING_FORMATTERS_STANDARD_TASK_RUN_FMT": _LINE,
    "RAY_USAGE_STATS_ENABLED": "0",
}


def set_up() -> None:
    """All local state below `.amvl/` of the working directory, by absolute path; one log line without decoration."""
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
    except OSError:
        return False


def local_tracking() -> tuple[str, str]:
    """MLflow's database and artifact folder below the demo's storage root."""
    root = storage.local_path(LOCAL_STORAGE)
    return f"sqlite:///{root}/mlflow.db", str(root / "mlartifacts")
