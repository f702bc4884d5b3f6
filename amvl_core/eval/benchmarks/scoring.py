"""From stored predictions to a benchmark's table, and to a paired comparison of two checkpoints; needs no model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from amvl_core import storage
from amvl_core.errors import DataError
from amvl_core.eval.benchmarks.base import Benchmark, Outcome
from amvl_core.eval.benchmarks.paper import PAPER
from amvl_core.eval.extract import Extractor, unwrapped
from amvl_core.eval.score import is_correct
from amvl_core.eval.statistics import Comparison, Estimate, compare, estimate, percent

OURS = "unwrapped"
COLUMNS = ("benchmark", "sample_id", "task", "part", "group", "options", "answer", "raw_output")


class Reading(NamedTuple):
    """A benchmark read by one extractor: each metric with its interval, and what the extractor did not decide.

    `unanswered` items are wrong. `drawn` ones have an option drawn by item id where the harness draws at random.
    """

    scores: dict[str, Estimate]
    unanswered: int
    drawn: int


def predictions(uri: str, benchmark: str) -> list[dict[str, Any]]:
    """The columns of a stored `predictions.parquet` that scoring needs, for one of the benchmarks in it.

    Raises DataError where a column or the benchmark is not there.
    """
    with storage.opened(uri) as file:
        try:
            stored = pq.ParquetFile(file)
            missing = [name for name in COLUMNS if name not in stored.schema_arrow.names]
            rows: list[dict[str, Any]] = [] if missing else stored.read(list(COLUMNS)).to_pylist()
        except pa.ArrowException as error:
            raise DataError(f"{uri} cannot be read ({error}); evaluate again") from error
    if missing:
        raise DataError(f"{uri} has no column {missing[0]}: it was not written for a benchmark; evaluate again")
    if not (kept := [row for row in rows if row["benchmark"] == benchmark]):
        there = ", ".join(sorted({row["benchmark"] for row in rows})) or "nothing"
        raise DataError(f"{uri} holds no predictions of {benchmark}, but of {there}")
    return kept


def readings(benchmark: Benchmark) -> dict[str, Extractor]:
    """The benchmark's harness-compatible extractors, then our own."""
    return {**benchmark.readings, OURS: unwrapped}


def score_benchmark(benchmark: Benchmark, rows: Sequence[Mapping[str, Any]], seed: int = 0) -> dict[str, Reading]:
    """Every metric under every extractor."""
    result = {}
    for name, extractor in readings(benchmark).items():
        scored, unanswered, drawn = _outcomes(extractor, rows)
        scores = {metric: estimate(units(scored), seed) for metric, units in benchmark.metrics.items()}
        result[name] = Reading(scores, unanswered, drawn)
    return result


def compare_checkpoints(
    benchmark: Benchmark,
    first: Sequence[Mapping[str, Any]],
    second: Sequence[Mapping[str, Any]],
    reading: str = OURS,
    seed: int = 0,
) -> list[tuple[str, Comparison]]:
    """Every metric that has items, paired by item, under one extractor.

    Raises DataError where the two were not asked the same items.
    """
    extractor = readings(benchmark)[reading]
    before, after = (_outcomes(extractor, rows)[0] for rows in (first, second))
    pairs = ((name, units(before), units(after)) for name, units in benchmark.metrics.items())
    return [(name, compare(mine, theirs, seed)) for name, mine, theirs in pairs if mine or theirs]


def score_table(benchmark: Benchmark, found: Mapping[str, Reading]) -> str:
    """Markdown: each metric with n and interval under every extractor, the paper's figures, and what was undecided."""
    paper = PAPER.get(benchmark.name, {})
    models = list(dict.fromkeys(model for scores in paper.values() for model in scores))
    head = ["", "n", *found, *(f"{model} (paper)" for model in models)]
    lines = [head, ["---"] * len(head)]
    for metric in benchmark.metrics:
        scores = [reading.scores[metric] for reading in found.values()]
        if scores[0].n:
            printed = (paper.get(metric, {}).get(model) for model in models)
            quoted = ["-" if value is None else f"{value:.2f}" for value in printed]
            lines.append([metric, f"{scores[0].n:,}", *map(percent, scores), *quoted])
    blank = [""] * len(models)
    lines.append(["no answer read", "", *(str(reading.unanswered) for reading in found.values()), *blank])
    lines.append(["drawn for the harness", "", *(str(reading.drawn) for reading in found.values()), *blank])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def draw(item_id: str, options: Iterable[str]) -> str:
    """The option that stands in for a harness's random one: uniform over items, and the same for every model."""
    letters = sorted(options) or list("ABCD")
    number = int.from_bytes(hashlib.sha256(item_id.encode()).digest()[:8], "big")
    return letters[number % len(letters)]


def _outcomes(extractor: Extractor, rows: Sequence[Mapping[str, Any]]) -> tuple[list[Outcome], int, int]:
    """Every item as right or wrong, how many gave no answer, and how many answers were drawn."""
    scored, unanswered, drawn = [], 0, 0
    for row in rows:
        options = json.loads(row["options"])
        found = extractor(row["raw_output"], options)
        answer = draw(row["sample_id"], options) if found.drawn else found.answer
        drawn += found.drawn
        unanswered += answer is None or (bool(options) and answer not in options)
        right = answer is not None and is_correct(answer, row["answer"])
        scored.append(Outcome(row["sample_id"], row["task"], row["part"], row["group"], right))
    return scored, unanswered, drawn
