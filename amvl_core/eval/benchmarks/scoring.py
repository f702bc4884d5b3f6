"""From stored predictions to a benchmark's table, and to a paired comparison of two checkpoints; needs no model."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa

from amvl_core.contracts import storage
from amvl_core.contracts.errors import DataError
from amvl_core.contracts.method import configurations
from amvl_core.contracts.parquet import ParquetStream
from amvl_core.eval.benchmarks.benchmark import EXACT, OURS, Benchmark, Outcome
from amvl_core.eval.benchmarks.published import published_scores
from amvl_core.eval.extract import Extraction, Extractor
from amvl_core.eval.score import shaped
from amvl_core.eval.significance import Comparison, Estimate, compare, estimate, markdown, percent

LIKELIHOOD = "likelihood"
COLUMNS = ("benchmark", "sample_id", "task", "part", "group", "options", "answer", "raw_output")
LIKELIHOODS = ("candidates", "log_likelihoods")
"""JSON lists: candidate answers, and log p of each."""

Reader = Callable[[Mapping[str, Any]], Extraction | None]
"""A stored row -> what was read; None where this way of reading does not apply to the row."""


class Reading(NamedTuple):
    """A benchmark read in one way: each metric with its interval, and what that way did not decide.

    `unanswered` items are wrong. `drawn` ones have an option drawn by item id where the harness draws at random.
    """

    scores: dict[str, Estimate]
    unanswered: int
    drawn: int


def predictions(uri: str, benchmark: str | None = None) -> list[dict[str, Any]]:
    """The columns of a stored `predictions.parquet` that scoring needs, for one of the benchmarks in it or for all.

    Raises DataError where a column or the benchmark is not there.
    """
    with storage.opened(uri) as file:
        try:
            stored = ParquetStream(file)
            there = stored.schema_arrow.names
            missing = [name for name in COLUMNS if name not in there]
            wanted = [*COLUMNS, *(name for name in (*LIKELIHOODS, "seed") if name in there)]
            rows: list[dict[str, Any]] = [] if missing else stored.read(wanted).to_pylist()
        except pa.ArrowException as error:
            raise DataError(f"{uri} cannot be read ({error}); evaluate again") from error
    if missing:
        raise DataError(f"{uri} has no column {missing[0]}: it was not written for a benchmark; evaluate again")
    if not (kept := [row for row in rows if benchmark in (None, row["benchmark"])]):
        others = ", ".join(sorted({row["benchmark"] for row in rows})) or "nothing"
        raise DataError(f"{uri} holds no predictions of {benchmark}, but of {others}")
    return kept


def readers(benchmark: Benchmark) -> dict[str, Reader]:
    """The benchmark's harness-compatible extractors, or exact match, then our own, and the likeliest candidate."""
    harness = {name: _of_text(extractor) for name, extractor in benchmark.readings.items()}
    return {**(harness or {EXACT: exact_match}), OURS: _own(benchmark), LIKELIHOOD: likeliest}


def exact_match(row: Mapping[str, Any]) -> Extraction:
    """The last lines, as many as the gold answer has."""
    return Extraction(shaped(row["raw_output"], row["answer"]) or None)


def likeliest(row: Mapping[str, Any]) -> Extraction | None:
    """The candidate with the highest log p, the first of equals; a row without candidates is not read.

    Raises DataError where one of the log p is no finite number.
    """
    candidates: list[str] = json.loads(row.get("candidates") or "[]")
    if not candidates:
        return None
    scores: list[float] = json.loads(row["log_likelihoods"])
    if not all(map(math.isfinite, scores)):
        raise DataError(
            f"{row['sample_id']}: the log-likelihoods of its options are {scores}; "
            "the model's weights or its precision are at fault"
        )
    return Extraction(candidates[scores.index(max(scores))])


def score_benchmark(benchmark: Benchmark, rows: Sequence[Mapping[str, Any]]) -> dict[str, Reading]:
    """Every metric under every way of reading that applies to some of the rows."""
    result = {}
    for name, reader in readers(benchmark).items():
        scored, unanswered, drawn = outcomes(benchmark, reader, rows)
        if scored or name != LIKELIHOOD:
            scores = {metric: estimate(units(scored)) for metric, units in benchmark.metrics.items()}
            result[name] = Reading(scores, unanswered, drawn)
    return result


def compare_checkpoints(
    benchmark: Benchmark,
    first: Sequence[Mapping[str, Any]],
    second: Sequence[Mapping[str, Any]],
    reading: str = OURS,
) -> list[tuple[str, Comparison]]:
    """Every metric that has items, paired by item, under one way of reading.

    No metric has any where this way does not read the same items of both: one model may have had candidates for more
    questions. Raises DataError where the two were not asked the same items.
    """
    reader = readers(benchmark)[reading]
    before, after = (outcomes(benchmark, reader, rows)[0] for rows in (first, second))
    same_asked = {row["sample_id"] for row in first} == {row["sample_id"] for row in second}
    if same_asked and {one.item_id for one in before} != {one.item_id for one in after}:
        return []
    pairs = ((name, units(before), units(after)) for name, units in benchmark.metrics.items())
    return [(name, compare(mine, theirs)) for name, mine, theirs in pairs if mine or theirs]


def score_table(benchmark: Benchmark, found: Mapping[str, Reading]) -> str:
    """Markdown: each metric with n and interval under every reading, published figures, and what was undecided."""
    papers = published_scores(benchmark, configurations().values())
    head = ["", "n", *found, *papers]
    lines = [head, ["---"] * len(head)]
    for metric in benchmark.metrics:
        scores = [reading.scores[metric] for reading in found.values()]
        if scores[0].n:
            quoted = [printed.get(metric, "-") for printed in papers.values()]
            shown = [percent(one) if one.n == scores[0].n else f"{percent(one)}, n = {one.n:,}" for one in scores]
            lines.append([metric, f"{scores[0].n:,}", *shown, *quoted])
    blank = [""] * len(papers)
    lines.append(["no answer read", "", *(str(reading.unanswered) for reading in found.values()), *blank])
    lines.append(["drawn for the harness", "", *(str(reading.drawn) for reading in found.values()), *blank])
    return markdown(lines)


def headline(benchmark: Benchmark, rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, float]]:
    """What the headline reading reads in each stored row (empty: nothing), and its score."""
    reader = readers(benchmark)[benchmark.headline]
    read, (scored, _, _) = [reader(row) for row in rows], outcomes(benchmark, reader, rows)
    texts = [(found.answer if found else None) or "" for found in read]
    return [(text, outcome.score) for text, outcome in zip(texts, scored, strict=True)]


def draw(item_id: str, options: Iterable[str]) -> str:
    """The option that stands in for a harness's random one: uniform over items, and the same for every model."""
    letters = sorted(options) or list("ABCD")
    number = int.from_bytes(hashlib.sha256(item_id.encode()).digest()[:8], "big")
    return letters[number % len(letters)]


def outcomes(benchmark: Benchmark, reader: Reader, rows: Sequence[Mapping[str, Any]]) -> tuple[list[Outcome], int, int]:
    """Every item that is read with its score, how many gave no answer, and how many answers were drawn."""
    scored, unanswered, drawn = [], 0, 0
    for row in rows:
        found = reader(row)
        if found is None:
            continue
        options = json.loads(row["options"])
        answer = draw(row["sample_id"], options) if found.drawn else found.answer
        drawn += found.drawn
        unanswered += answer is None or (bool(options) and answer not in options)
        score = 0.0 if answer is None else benchmark.grade(answer, row["answer"], options)
        scored.append(Outcome(row["sample_id"], row["task"], row["part"], row["group"], score))
    return scored, unanswered, drawn


def _of_text(extractor: Extractor) -> Reader:
    return lambda row: extractor(row["raw_output"], json.loads(row["options"]))


def _own(benchmark: Benchmark) -> Reader:
    return lambda row: benchmark.own(row["raw_output"], json.loads(row["options"]), row["answer"])
