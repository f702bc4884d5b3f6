"""From stored predictions to what an `EvalRecord` holds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from amvl_core.contracts.records import MetricScore, ReadingScore, TaskScore
from amvl_core.eval.benchmarks.benchmark import Benchmark, Outcome
from amvl_core.eval.benchmarks.scoring import Reading, outcomes, readers, score_benchmark
from amvl_core.eval.score import majority_answers
from amvl_core.eval.significance import weighted_mean


def summarise(
    benchmark: Benchmark, rows: Sequence[Mapping[str, Any]], majority: Mapping[str, str] | None = None
) -> tuple[list[TaskScore], TaskScore, list[ReadingScore]]:
    """Scores under the headline reading (each metric but the first, then the first: the overall), and every reading.

    `majority` maps a task to its commonest answer; without it the answers in `rows` themselves decide.
    """
    common = majority if majority is not None else majority_answers((row["task"], row["answer"]) for row in rows)
    found = score_benchmark(benchmark, rows)
    scored = outcomes(benchmark, readers(benchmark)[benchmark.headline], rows)[0]
    blind = [
        outcome._replace(score=_blind(benchmark, common.get(row["task"]), row))
        for outcome, row in zip(scored, rows, strict=True)
    ]
    scores = [
        _task_score(benchmark, metric, found[benchmark.headline], blind)
        for metric in benchmark.metrics
        if found[benchmark.headline].scores[metric].n
    ]
    return scores[1:], scores[0], [_reading(name, reading) for name, reading in found.items()]


def _task_score(benchmark: Benchmark, metric: str, reading: Reading, blind: list[Outcome]) -> TaskScore:
    units, estimate = benchmark.metrics[metric], reading.scores[metric]
    return TaskScore(
        task=metric,
        n=estimate.n,
        accuracy=estimate.value,
        low=estimate.low,
        high=estimate.high,
        majority=weighted_mean(units(blind)),
    )


def _blind(benchmark: Benchmark, common: str | None, row: Mapping[str, Any]) -> float:
    """What the commonest answer of the row's task scores."""
    return 0.0 if common is None else benchmark.grade(common, row["answer"], json.loads(row["options"]))


def _reading(name: str, reading: Reading) -> ReadingScore:
    scores = [
        MetricScore(metric=metric, n=found.n, value=found.value, low=found.low, high=found.high)
        for metric, found in reading.scores.items()
        if found.n
    ]
    return ReadingScore(reading=name, scores=scores, unanswered=reading.unanswered, drawn=reading.drawn)
