"""A row as a source publishes it, before its images are read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from amvl_core.sample import Split
from data_prep.filters import MALFORMED_ROW, Drop


@dataclass(frozen=True)
class RawRow:
    """`fields` are the published ones, plain data; `images` are archive members; `drop` says why not to convert it."""

    sample_id: str
    split: Split
    images: tuple[str, ...]
    fields: Any
    drop: Drop | None = None


def malformed(sample_id: str, split: Split, detail: str) -> RawRow:
    """A row that is not what its format promises."""
    return RawRow(sample_id, split, (), None, Drop(MALFORMED_ROW, detail))
