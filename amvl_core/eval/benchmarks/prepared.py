"""The test split of a prepared dataset: microworld, easy-VQA, NLVR, the maze and whatever else has been prepared.

The answers are words, compared after normalisation. `uri` is the folder of the dataset's record.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace

from amvl_core.contracts.errors import DataError
from amvl_core.contracts.records import TEST_SPLIT, DatasetRecord, load_record
from amvl_core.contracts.sample import StoredSample, placed, shown_by_question
from amvl_core.data.reader import ShardReader
from amvl_core.eval.benchmarks.benchmark import EXACT, Benchmark, Metric, Question, SkippedQuestion, digest, mean


def read(source: str) -> Callable[[str], Iterator[Question | SkippedQuestion]]:
    """A reader of one source's samples, in the order of the shards."""

    def reader(uri: str) -> Iterator[Question | SkippedQuestion]:
        shards = ShardReader(_record(uri), "test")
        sources = shards.column("source")
        for number in range(len(shards)):
            if sources[number] != source:
                continue
            yield question(shards[number])

    return reader


def question(sample: StoredSample) -> Question:
    """A stored sample as a question: of a source, or of a published benchmark that has been read (`extra`)."""
    extra, images = sample.extra, question_images(sample)
    return Question(
        item_id=sample.sample_id,
        # As in the score table: a source has tasks of its own, a benchmark's are known by its name.
        task=sample.task if extra else f"{sample.source}/{sample.task}",
        images=images,
        videos=sample.videos,
        prompt=sample.question,
        answer=sample.answer,
        options=extra.get("options", {}),
        part=extra.get("part", ""),
        # Many questions about one image are not independent.
        group=extra["group"] if extra else digest(*images) if images else "",
        asked=extra.get("asked", ""),
    )


def stored(asked: Question, source: str) -> StoredSample:
    """A published question as it is stored: what `question` needs to give it back."""
    return StoredSample(
        sample_id=asked.item_id,
        source=source,
        task=asked.task,
        question=asked.prompt,
        steps=(),
        step_images=(),
        answer=asked.answer,
        images=tuple(asked.images),
        videos=tuple(asked.videos),
        extra={"options": dict(asked.options), "part": asked.part, "group": asked.group, "asked": asked.asked},
    )


def benchmark_name(shards: ShardReader) -> str:
    """What was read: a published benchmark's name, or TEST_SPLIT. Reads no image."""
    if not len(shards) or not json.loads(shards.column("extra")[0]):
        return TEST_SPLIT
    return str(shards.column("source")[0])


def with_places(sample: StoredSample) -> StoredSample:
    """With a place in the question for each of its images, which a published question may leave out."""
    return replace(sample, question=placed(sample.question, len(question_images(sample)), sample.videos))


def question_images(sample: StoredSample) -> tuple[bytes, ...]:
    """The images that the question shows; those behind them belong to the steps."""
    return sample.images[: shown_by_question(sample.images, sample.steps)]


def benchmark(source: str) -> Benchmark:
    """The benchmark of one source's test split."""
    return _exact(source, read(source), {"overall": mean()})


def test_split(tasks: Iterable[str]) -> Benchmark:
    """The whole test split of a prepared dataset: all its questions, then each of its tasks."""
    return _exact(TEST_SPLIT, _everything, {"all": mean(), **{task: mean(task) for task in sorted(set(tasks))}})


def _exact(
    name: str, read: Callable[[str], Iterator[Question | SkippedQuestion]], metrics: Mapping[str, Metric]
) -> Benchmark:
    return Benchmark(name, None, read, _record, {}, metrics, headline=EXACT)


def _everything(uri: str) -> Iterator[Question | SkippedQuestion]:
    shards = ShardReader(_record(uri), "test")
    yield from (question(shards[number]) for number in range(len(shards)))


def _record(uri: str) -> DatasetRecord:
    record = load_record(uri, DatasetRecord)
    if record is None:
        raise DataError(f"{uri} holds no prepared dataset; run the pipeline first, or give its record's folder")
    return record
