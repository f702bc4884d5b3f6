"""Which code and which libraries made a result: no host names, no paths, no user names."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

UNKNOWN = "unknown"
PACKAGES = ("torch", "transformers", "deepspeed", "ray", "mlflow", "prefect", "pyarrow", "pillow", "numpy", "pydantic")
_CHECKOUT = Path(__file__).resolve().parent.parent


def provenance(folder: Path = _CHECKOUT) -> dict[str, str]:
    """Commit, whether the checkout differs from it, versions, Python and platform, as flat text."""
    commit = _git(folder, "rev-parse", "HEAD")
    dirty = UNKNOWN if commit == UNKNOWN else str(bool(_git(folder, "status", "--porcelain"))).lower()
    return {
        "commit": commit,
        "dirty": dirty,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        **{f"version.{name}": installed(name) for name in PACKAGES},
    }


def installed(package: str) -> str:
    """The version of an installed package, `unknown` where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return UNKNOWN


def _git(folder: Path, *arguments: str) -> str:
    """What git prints, or `unknown` where there is no git or no repository (an installed package, an image)."""
    command = ["git", "-C", str(folder), *arguments]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return UNKNOWN
    return result.stdout.strip()
