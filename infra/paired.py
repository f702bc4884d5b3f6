"""Two evaluations of the same items, from their stored predictions."""

from __future__ import annotations

import pyarrow.parquet as pq

from amvl_core import storage
from amvl_core.eval.statistics import Comparison, Unit, compare
from amvl_core.records import EvalRecord


def outcomes(record: EvalRecord) -> dict[str, bool]:
    """Whether each item of the test split, by its id, was answered rightly."""
    with storage.opened(record.predictions_uri) as file:
        table = pq.read_table(file, columns=["sample_id", "correct"])
    return dict(zip(table["sample_id"].to_pylist(), table["correct"].to_pylist(), strict=True))


def compare_evaluations(first: EvalRecord, second: EvalRecord) -> Comparison:
    """The paired test of `second` against `first`. Raises DataError where they were not asked the same items."""
    before, after = ([Unit(key, float(right)) for key, right in outcomes(record).items()] for record in (first, second))
    return compare(before, after)
