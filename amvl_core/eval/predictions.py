"""What stored predictions say without a model: a readable sample, and the paired comparison of two models."""

from __future__ import annotations

from typing import Any

from amvl_core.contracts.records import EvalRecord
from amvl_core.eval.benchmarks import benchmark_of
from amvl_core.eval.benchmarks.scoring import compare_checkpoints, predictions
from amvl_core.eval.significance import Comparison
from amvl_core.eval.stored import read_table

SAMPLES_PER_TASK = 12
COLUMNS = ("task", "sample_id", "prompt", "answer", "prediction", "score", "raw_output")


def sample(record: EvalRecord) -> dict[str, list[Any]]:
    """The first predictions of every task, wrong ones first, as columns."""
    rows = read_table(record.predictions_uri, COLUMNS).to_pylist()
    kept: list[dict[str, Any]] = []
    for task in sorted({row["task"] for row in rows}):
        of_task = sorted((row for row in rows if row["task"] == task), key=lambda row: row["sample_id"])
        wrong = [row for row in of_task if row["score"] < 1][: SAMPLES_PER_TASK // 2]
        right = [row for row in of_task if row["score"] == 1][: SAMPLES_PER_TASK - len(wrong)]
        kept += wrong + right
    return {name: [row[name] for row in kept] for name in COLUMNS}


def comparisons(first: EvalRecord, second: EvalRecord) -> dict[str, dict[str, Comparison]]:
    """Reading -> metric -> the paired comparison of two evaluations of the same benchmark, item by item.

    Raises DataError where the two were not asked the same items.
    """
    before, after = predictions(first.predictions_uri), predictions(second.predictions_uri)
    benchmark = benchmark_of(first.benchmark, (row["task"] for row in before))
    return {
        reading.reading: dict(compare_checkpoints(benchmark, before, after, reading.reading))
        for reading in second.readings
    }
