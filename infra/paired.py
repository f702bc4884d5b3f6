"""Two evaluations of the same items, from their stored predictions."""

from __future__ import annotations

import pyarrow.parquet as pq

from amvl_core import storage
from amvl_core.eval.statistics import Comparison, Unit, compare
from amvl_core.records import EvalRecord


def outcomes(record: EvalRecord) -> list[Unit]:
    """Whether each item of the test split was answered rightly; questions about the same images are one group."""
    with storage.opened(record.predictions_uri) as file:
        rows = pq.read_table(file, columns=["sample_id", "group", "correct"]).to_pylist()
    return [Unit(row["sample_id"], float(row["correct"]), group=row["group"]) for row in rows]


def compare_evaluations(first: EvalRecord, second: EvalRecord) -> Comparison:
    """The paired test of `second` against `first`. Raises DataError where they were not asked the same items."""
    return compare(outcomes(first), outcomes(second))
