"""Long work over a model, in parts: each has a file of its own, so that a kill loses none that is finished."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Part:
    """One kind of work on `items`, which are rows of the test split; `donor` is the row that a swap needs besides.

    `cost` says how long it takes against the others.
    """

    kind: str
    items: tuple[int, ...]
    cost: int
    donor: int | None = None

    def file(self, number: int) -> str:
        """The name of its file. It says what the part asks, so that a part of another cut is never taken for it."""
        content = json.dumps([self.kind, self.items, self.donor])
        return f"{number:06d}-{hashlib.sha256(content.encode()).hexdigest()[:12]}.parquet"


class Worker(Protocol):
    """A model, and what it does with a part. While one part is worked on, another thread prepares the next."""

    def prepare(self, asked: Any, part: Part) -> Any:
        """Reads, decodes and tokenizes, without the model."""

    def work(self, ready: Any) -> list[dict[str, Any]]:
        """The rows of the part's table."""
