"""The test split of a prepared dataset: microworld, easy-VQA, NLVR, the maze and whatever else has been prepared.

The answers are words, compared after normalisation. `uri` is the folder of the dataset's record.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from amvl_core.contracts.errors import DataError
from amvl_core.contracts.records import TEST_SPLIT, DatasetRecord, load_record
from amvl_core.contracts.sample import Segment, placed
from amvl_core.data.reader import ShardReader
from amvl_core.eval.benchmarks.benchmark import Benchmark, Drop, Metric, Question, digest, mean
from amvl_core.eval.extract import NOTHING, Extraction, last_line


def read(source: str) -> Callable[[str], Iterator[Question | Drop]]:
    """A reader of one source's samples, in the order of the shards."""

    def reader(uri: str) -> Iterator[Question | Drop]:
        shards = ShardReader(_record(uri), "test")
        sources = shards.column("source")
        for number in range(len(shards)):
            if sources[number] != source:
                continue
            yield question(shards[number])

    return reader


def question(row: Mapping[str, Any]) -> Question:
    """A row of a `ShardReader` as a question: of a source, or of a published benchmark that has been read (`extra`)."""
    extra = json.loads(row["extra"])
    images = tuple(row["images"])
    published = "options" in extra
    return Question(
        item_id=row["sample_id"],
        # As in the score table: a source has tasks of its own, a benchmark's are known by its name.
        task=extra["task"] if published else f"{row['source']}/{extra['task']}",
        images=images,
        prompt=row["segments"][0].text,
        answer=extra["answer"],
        options=extra["options"] if published else {},
        part=extra["part"] if published else "",
        # Many questions about one image are not independent.
        group=extra["group"] if published else digest(*images) if images else "",
        asked=extra["asked"] if published else "",
    )


def benchmark_name(row: Mapping[str, Any]) -> str:
    """What a row of a `ShardReader` (`source` and `extra` do) was read from: a published benchmark, or TEST_SPLIT."""
    return str(row["source"]) if "options" in json.loads(row["extra"]) else TEST_SPLIT


def laid_out(row: Mapping[str, Any], slots: int) -> list[Segment]:
    """A row of a `ShardReader` as a sequence with its answer.

    A prepared sample has been laid out. A published question is stored as its prompt alone; a block of `slots` follows
    it, and the answer.
    """
    if benchmark_name(row) == TEST_SPLIT:
        return list(row["segments"])
    asked = question(row)
    block = [Segment("latent", num_slots=slots)] if slots else []
    return [Segment("prompt", placed(asked.prompt, len(asked.images))), *block, Segment("answer", asked.answer)]


def extra(asked: Question) -> str:
    """The `extra` column of a published question: what `question` needs to give it back."""
    fields = {name: getattr(asked, name) for name in ("task", "answer", "part", "group", "asked")}
    return json.dumps({**fields, "options": dict(asked.options)}, ensure_ascii=False)


def exact_match(text: str, options: Mapping[str, str]) -> Extraction:
    """The last line, as the prepared test split has always been scored."""
    found = last_line(text)
    return Extraction(found) if found else NOTHING


def benchmark(source: str) -> Benchmark:
    """The benchmark of one source's test split."""
    return _exact(source, read(source), {"overall": mean()})


def test_split(tasks: Iterable[str]) -> Benchmark:
    """The whole test split of a prepared dataset: all its questions, then each of its tasks."""
    return _exact(TEST_SPLIT, _everything, {"all": mean(), **{task: mean(task) for task in sorted(set(tasks))}})


def _exact(name: str, read: Callable[[str], Iterator[Question | Drop]], metrics: Mapping[str, Metric]) -> Benchmark:
    readings = {"exact match": exact_match}
    return Benchmark(name, None, read, _record, readings, metrics, headline="exact match")


def _everything(uri: str) -> Iterator[Question | Drop]:
    shards = ShardReader(_record(uri), "test")
    yield from (question(shards[number]) for number in range(len(shards)))


def _record(uri: str) -> DatasetRecord:
    record = load_record(uri, DatasetRecord)
    if record is None:
        raise DataError(f"{uri} holds no prepared dataset; run the pipeline first, or give its record's folder")
    return record
