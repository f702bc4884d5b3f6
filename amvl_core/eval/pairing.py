"""Pairs stored predictions by item: two evaluations, or the variants of the latents."""

from __future__ import annotations

from typing import Any

from amvl_core.contracts import storage
from amvl_core.contracts.parquet import ParquetStream
from amvl_core.contracts.records import TEST_SPLIT, EvalRecord, FaithfulnessRecord
from amvl_core.eval.benchmarks import BENCHMARKS
from amvl_core.eval.benchmarks.benchmark import Outcome, mean
from amvl_core.eval.significance import Comparison, Unit, compare

ITEMS = ["sample_id", "variant", "group", "correct", "log_likelihood"]


def outcomes(record: EvalRecord) -> list[Unit]:
    """The units of the overall score under the headline reading: what was answered rightly.

    On the test split questions about the same images are one group; a published benchmark has weights and groups of
    its own.
    """
    own = record.benchmark == TEST_SPLIT
    columns = ["sample_id", "group", "correct"] + ["task", "part"] * (not own)
    with storage.opened(record.predictions_uri) as file:
        rows = ParquetStream(file).read(columns).to_pylist()
    overall = mean() if own else next(iter(BENCHMARKS[record.benchmark].metrics.values()))
    return overall(
        [
            Outcome(row["sample_id"], row.get("task", ""), row.get("part", ""), row["group"], row["correct"])
            for row in rows
        ]
    )


def variant_items(record: FaithfulnessRecord) -> list[dict[str, Any]]:
    """Every item under every variant of the latents, as `score_variants` takes them."""
    with storage.opened(record.items_uri) as file:
        rows: list[dict[str, Any]] = ParquetStream(file).read(ITEMS).to_pylist()
    return rows


def compare_evaluations(first: EvalRecord, second: EvalRecord) -> Comparison:
    """The paired test of `second` against `first`. Raises DataError where they were not asked the same items."""
    return compare(outcomes(first), outcomes(second))
