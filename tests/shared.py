"""What the processes of a test run share."""

from __future__ import annotations

import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from tempfile import mkdtemp

FOLDER = "AMVL_TEST_FOLDER"
"""Names the folder that they all use; `tests/conftest.py` makes and removes it."""
DATA = Path(__file__).parent / "data"
"""Real data; its README says whose."""


def once(name: str, make: Callable[[Path], None]) -> Path:
    """A folder that the first process that asks makes."""
    shared = Path(os.environ[FOLDER])
    folder = shared / name
    if not folder.exists():
        made = Path(mkdtemp(dir=shared))
        make(made)
        try:
            made.rename(folder)
        except OSError:  # another process was first
            shutil.rmtree(made)
    return folder


def unpacked(name: str) -> Path:
    """The folder that `data/NAME.tar.xz` holds."""

    def unpack(folder: Path) -> None:
        with tarfile.open(DATA / f"{name}.tar.xz") as archive:
            archive.extractall(folder, filter="data")

    return once(f"data-{name}", unpack) / name
