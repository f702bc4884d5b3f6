"""A skip is told with its reason, and is a failure in CI."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
A_TEST = """
import pytest

def test_it():
    pytest.skip("there is no data")
"""
A_FILE = """
import pytest

pytest.skip("there is no data", allow_module_level=True)
"""


@pytest.mark.parametrize(
    ("text", "ci", "code"),
    [(A_TEST, "", 0), (A_FILE, "", 5), (A_TEST, "true", 1), (A_FILE, "true", 2)],
    ids=["test", "file", "test in CI", "file in CI"],
)
def test_it_is_told_and_fails_in_ci(tmp_path: Path, text: str, ci: str, code: int) -> None:
    file = tmp_path / "test_it.py"
    file.write_text(text)
    command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-c", ROOT / "pyproject.toml", "-n", "0", file]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"CI": ci}, capture_output=True, text=True)
    assert "there is no data" in done.stdout
    assert ("in CI a skip is a failure" in done.stdout) == bool(ci)
    assert done.returncode == code
