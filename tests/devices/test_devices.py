"""No tensor is left behind on the CPU, and a model may lie on several GPUs: seen without any."""

import subprocess
import sys


def test_every_method_runs_where_its_model_is() -> None:
    """A backend of PyTorch's is there for as long as the process is, so the tests of it have one of their own."""
    command = [sys.executable, "-m", "pytest", "-n", "0", "--no-header", "tests/devices/on_devices.py"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
