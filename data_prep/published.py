"""A published benchmark as a dataset with a test split alone, so that it is evaluated as any other is.

It is read once, before anything is trained. So damage is found while it costs nothing, rows that are no question are
counted, and every worker has random access to the rest.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from dataclasses import replace

from amvl_core.contracts import records, storage
from amvl_core.contracts.config import BenchmarkSource, RunConfig
from amvl_core.contracts.content_identity import content_identity, tokenizer_identity
from amvl_core.contracts.errors import DataError
from amvl_core.contracts.method import control_token
from amvl_core.contracts.progress import Progress, ProgressFn
from amvl_core.contracts.records import EXAMPLES_PER_REASON, DatasetRecord, DroppedExample, Shard, SourceReport
from amvl_core.contracts.sample import placed
from amvl_core.data.encode import MAX_ASPECT, TokenCounter
from amvl_core.data.pixels import upright_size
from amvl_core.eval.benchmarks import BENCHMARKS
from amvl_core.eval.benchmarks.benchmark import Question, SkippedQuestion
from amvl_core.eval.benchmarks.prepared import stored
from data_prep.filters import EXTREME_ASPECT, RESERVED_TEXT
from data_prep.shards import SCHEMA_VERSION, ShardRow, ShardWriter, sha256, shard_name

Size = tuple[int, int]

STAGE = "benchmark"
STAGE_VERSION = 7
"""Raised whenever the same files give other questions than before."""


def fingerprint(config: RunConfig, source: BenchmarkSource) -> str:
    """Names the questions by the files' content, and by what their lengths depend on. Raises DataError."""
    return records.fingerprint(
        STAGE,
        STAGE_VERSION,
        schema=SCHEMA_VERSION,
        name=source.name,
        content=content_identity(source.uri),
        model=tokenizer_identity(config.model),
        pixels=[config.data.min_pixels, config.evaluation.max_pixels],
        video=config.evaluation.video,
    )


def read(config: RunConfig, source: BenchmarkSource, uri: str, on_progress: ProgressFn) -> DatasetRecord:
    """Reads all questions into one shard at `uri`, then writes the record. Raises DataError where there are none."""
    benchmark = BENCHMARKS[source.name]
    counter = TokenCounter.from_model(config.model)
    dropped: dict[str, list[DroppedExample]] = defaultdict(list)
    counts: Counter[str] = Counter()
    name, started, said = shard_name("test", 0), time.monotonic(), 0.0
    with storage.writing(storage.join(uri, name)) as file:
        writer = ShardWriter(file)
        for number, found in enumerate(benchmark.read(storage.absolute(source.uri)), 1):
            sizes = [] if isinstance(found, SkippedQuestion) else [upright_size(data) for data in found.images]
            if not isinstance(found, SkippedQuestion) and config.evaluation.video == "images":
                found = replace(found, videos=())
            item = found if isinstance(found, SkippedQuestion) else _unanswerable(found, sizes) or found
            if isinstance(item, SkippedQuestion):
                counts[item.reason] += 1
                if len(dropped[item.reason]) < EXAMPLES_PER_REASON:
                    dropped[item.reason].append(DroppedExample(sample_id=item.place, detail=item.detail))
            else:
                writer.write(_row(item, sizes, config, source.name, counter))
            if time.monotonic() - said > 1:
                said = time.monotonic()
                total = max(benchmark.size or 0, number)
                left = (said - started) / number * (total - number)
                on_progress(Progress(f"read {source.name}", number, total, "questions", left))
        writer.close()
        if not writer.rows:
            reasons = ", ".join(f"{reason} ({count})" for reason, count in counts.items()) or "it holds no row"
            raise DataError(f"{source.uri} gives no question of {source.name}: {reasons}")
        shard = Shard(file=name, split="test", rows=writer.rows, sha256=sha256(file))
    drops = dict(sorted(counts.items()))
    report = SourceReport(
        source=source.name,
        split="test",
        read=shard.rows + sum(drops.values()),
        kept=shard.rows,
        dropped=drops,
        examples=dict(sorted(dropped.items())),
    )
    record = DatasetRecord(
        uri=uri,
        fingerprint=fingerprint(config, source),
        schema_version=SCHEMA_VERSION,
        shards=[shard],
        kept=shard.rows,
        dropped=drops,
        reports=[report],
    )
    records.save_record(record)
    return record


def _row(question: Question, sizes: list[Size], config: RunConfig, source: str, counter: TokenCounter) -> ShardRow:
    budget = (config.data.min_pixels, config.evaluation.max_pixels)
    tokens = counter.count([question.prompt], sizes, *budget, question.videos)
    return ShardRow(stored(question, source), sizes, tokens)


def _unanswerable(question: Question, sizes: list[Size]) -> SkippedQuestion | None:
    """Why no model can be asked this. Found now, it is a drop. Found by a worker, it would end the run."""
    # A text with another number of places than there are images cannot be asked. Without places the images come first.
    try:
        placed(question.prompt, len(question.images), question.videos)
    except DataError as error:
        return SkippedQuestion(question.item_id, "image_places", str(error))
    if token := control_token(question.prompt):
        return SkippedQuestion(
            question.item_id, RESERVED_TEXT, f"the text contains {token!r}, a control token of the model"
        )
    for width, height in sizes:
        if max(width, height) > MAX_ASPECT * min(width, height):
            detail = f"{width} x {height} pixels, one side is more than {MAX_ASPECT} times the other"
            return SkippedQuestion(question.item_id, EXTREME_ASPECT, detail)
    return None
