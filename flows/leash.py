"""`python -m flows.leash MODULE ...`: `python -m MODULE ...` that ends, with its own children, when its starter does.

The starter holds the other end of standard input: the system closes that with it, also where SIGKILL ended it. Start
it in a session of its own, because it ends its whole process group.
"""

import os
import signal
import subprocess
import sys
import threading

STOP_S = 15.0


def main(command: list[str]) -> None:
    """Runs the command; does not return."""
    child = subprocess.Popen([sys.executable, "-m", *command], stdin=subprocess.DEVNULL)
    signal.signal(signal.SIGTERM, lambda *_: None)  # it is for the others of the group; the child goes first
    threading.Thread(target=_stop_with_starter, args=(child,), daemon=True).start()
    child.wait()
    os.killpg(0, signal.SIGKILL)  # what the child left behind, and this process


def _stop_with_starter(child: subprocess.Popen[bytes]) -> None:
    os.read(0, 1)  # nothing is ever written: it returns at the end of file
    os.killpg(0, signal.SIGTERM)
    try:
        child.wait(STOP_S)
    except subprocess.TimeoutExpired:
        child.kill()


if __name__ == "__main__":
    main(sys.argv[1:])
