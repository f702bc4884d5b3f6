"""Pairs stored predictions by item: two evaluations, or the variants of the latents."""

from __future__ import annotations

from typing import Any

from amvl_core.contracts.records import EvalRecord, FaithfulnessRecord
from amvl_core.eval.benchmarks import benchmark_of
from amvl_core.eval.benchmarks.benchmark import Outcome
from amvl_core.eval.significance import Comparison, Unit, compare
from amvl_core.eval.stored import read_table

ITEMS = ["sample_id", "variant", "group", "score", "log_likelihood"]


def outcomes(record: EvalRecord) -> list[Unit]:
    """The units of the overall score under the headline reading: the score of each item.

    On the test split questions about the same images are one group; a published benchmark has weights and groups of
    its own.
    """
    rows = read_table(record.predictions_uri, ["sample_id", "task", "part", "group", "score"]).to_pylist()
    overall = next(iter(benchmark_of(record.benchmark, ()).metrics.values()))
    return overall([Outcome(r["sample_id"], r["task"], r["part"], r["group"], r["score"]) for r in rows])


def variant_items(record: FaithfulnessRecord) -> list[dict[str, Any]]:
    """Every item under every variant of the latents, as `score_variants` takes them."""
    rows: list[dict[str, Any]] = read_table(record.items_uri, ITEMS).to_pylist()
    return rows


def compare_evaluations(first: EvalRecord, second: EvalRecord) -> Comparison:
    """The paired test of `second` against `first`. Raises DataError where they were not asked the same items."""
    return compare(outcomes(first), outcomes(second))
