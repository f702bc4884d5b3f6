"""The test split of a prepared dataset: microworld, easy-VQA, NLVR, the maze and whatever else has been prepared.

The answers are words, compared after normalisation. `uri` is the folder of the dataset's record.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from amvl_core.data.reader import ShardReader
from amvl_core.errors import DataError
from amvl_core.eval.benchmarks.base import Benchmark, Drop, Question, digest, mean
from amvl_core.eval.extract import NOTHING, Extraction, last_line
from amvl_core.records import DatasetRecord, load_record


def read(source: str) -> Callable[[str], Iterator[Question | Drop]]:
    """A reader of one source's samples, in the order of the shards."""

    def reader(uri: str) -> Iterator[Question | Drop]:
        record = load_record(uri, DatasetRecord)
        if record is None:
            raise DataError(f"{uri} holds no prepared dataset; run the pipeline first, or give its record's folder")
        shards = ShardReader(record, "test")
        sources = shards.column("source")
        for number in range(len(shards)):
            if sources[number] != source:
                continue
            yield question(shards[number])

    return reader


def question(row: Mapping[str, Any]) -> Question:
    """A row of a `ShardReader` as a question; its task is `source/task`, as in the score table."""
    extra = json.loads(row["extra"])
    images = tuple(row["images"])
    return Question(
        item_id=row["sample_id"],
        task=f"{row['source']}/{extra['task']}",
        images=images,
        prompt=row["segments"][0].text,
        answer=extra["answer"],
        group=digest(*images),  # many questions about one image are not independent
    )


def exact_match(text: str, options: Mapping[str, str]) -> Extraction:
    """The last line, as the prepared test split has always been scored."""
    found = last_line(text)
    return Extraction(found) if found else NOTHING


def benchmark(source: str) -> Benchmark:
    """The benchmark of one source's test split."""
    return Benchmark(
        name=source, size=None, read=read(source), readings={"exact match": exact_match}, metrics={"overall": mean()}
    )
