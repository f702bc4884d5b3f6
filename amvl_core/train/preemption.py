"""A machine that is about to be taken away sends SIGTERM. It asks for a checkpoint at the end of the step."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any


class Sigterm:
    """Notes the first SIGTERM. The second one does what SIGTERM did before."""

    def __init__(self) -> None:
        self.arrived = False
        self._before: Any = signal.SIG_DFL

    def listen(self) -> None:
        """Starts to listen. Must be called in the process's main thread."""
        self._before = signal.signal(signal.SIGTERM, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.arrived = True
        signal.signal(signal.SIGTERM, self._before)
