"""Keys of the benchmarks that a run evaluates, so that no training sample gives one of their questions away.

Questions are read one at a time, because an image of HR-Bench 8K has 33 million pixels. Their images are brought into
the run's pixel budget like those of the training data, so that equal images have equal digests. What is kept are the
keys of `data_prep/duplicate_keys.py` and those images, which near copies are compared with. They lie in
`{storage}/prepare/benchmarks/`, and all datasets with the same budget share them. So a benchmark is read once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from amvl_core.contracts import records, storage
from amvl_core.contracts.config import BenchmarkSource
from amvl_core.contracts.content_identity import content_identity
from amvl_core.contracts.progress import Progress, ProgressFn
from amvl_core.contracts.records import Place, Record
from amvl_core.eval.benchmarks import BENCHMARKS
from amvl_core.eval.benchmarks.benchmark import Question
from data_prep.duplicate_keys import KeyFile, Keys, count_images, key_name, write_pictures
from data_prep.images import PixelBudget, StoredImage, standardise
from data_prep.streaming import stream

FOLDER = "benchmarks"
"""The folder beside the datasets that holds the keys."""

VERSION = 5
"""Raised whenever the same benchmark gives other keys than before."""

BATCH_QUESTIONS = 64
BATCH_BYTES = 32 * 2**20
"""A batch is one task and one file. It ends when one of the two limits is reached."""


class BenchmarkRecord(Record):
    """A benchmark that training samples can be compared with; `files` are keys below `uri`.

    `images` counts those that can be compared. Preparation would refuse the others, by their size or proportions.
    `dropped` counts the published rows that are no question.
    """

    kind: Literal["benchmark"] = "benchmark"
    name: str
    questions: int
    images: int
    dropped: dict[str, int]
    files: list[str]

    @property
    def keys(self) -> list[KeyFile]:
        """What `duplicates.find` takes."""
        return [KeyFile(storage.join(self.uri, file), "test", self.name) for file in self.files]


def identity(source: BenchmarkSource) -> dict[str, Any]:
    """What a dataset's fingerprint holds of a benchmark: its content, not its place. Raises DataError."""
    return {"name": source.name, "content": content_identity(source.uri)}


@dataclass(frozen=True)
class _Batch:
    """Questions that become the key file `number` of benchmark `source`; none where that is there already."""

    source: int
    number: int
    size: int
    dropped: Counter[str]
    questions: tuple[Question, ...]


def prepare(
    sources: Sequence[BenchmarkSource], budget: PixelBudget, folder: str, on_progress: ProgressFn
) -> list[BenchmarkRecord]:
    """The keys of every benchmark, below `folder`. Ray must be initialised. Keys that are there are not made again.

    Raises DataError where a benchmark is not what its reader takes, StorageError where `folder` cannot be written.
    """

    def fingerprint(source: BenchmarkSource) -> str:
        return records.fingerprint(FOLDER, VERSION, source=identity(source), budget=vars(budget))

    named = [fingerprint(source) for source in sources]
    uris = [storage.join(folder, name) for name in named]
    found = {number: records.load_record(uri, BenchmarkRecord) for number, uri in enumerate(uris)}
    missing = [number for number, record in found.items() if record is None]
    done: dict[int, list[_Batch]] = {number: [] for number in missing}
    total = sum(BENCHMARKS[sources[number].name].size or 0 for number in missing)
    absolute = [source.model_copy(update={"uri": storage.absolute(source.uri)}) for source in sources]
    for batch in stream(missing, partial(_cut, absolute, uris), partial(_run, budget, uris)):
        done[batch.source].append(batch)
        read = sum(one.size for batches in done.values() for one in batches)
        on_progress(Progress("prepare", read, max(total, read), "questions of benchmarks"))
    for number, batches in done.items():
        source, where = sources[number], Place(uris[number], named[number])
        records.check_unchanged(source.name, where, fingerprint(source))
        files = [_file(batch.number) for batch in sorted(batches, key=lambda batch: batch.number)]
        record = BenchmarkRecord(
            **where._asdict(),
            name=source.name,
            questions=sum(batch.size for batch in batches),
            images=sum(count_images(storage.join(where.uri, file)) for file in files),
            dropped=dict(sorted(sum((batch.dropped for batch in batches), Counter[str]()).items())),
            files=files,
        )
        records.save_record(record)
        storage.remove_leftovers(record.uri)
        found[number] = record
    return [record for _, record in sorted(found.items()) if record is not None]


def _file(number: int) -> str:
    return key_name(f"{number:05d}")


def _cut(sources: Sequence[BenchmarkSource], uris: Sequence[str], source: int) -> Iterator[_Batch]:
    questions = BENCHMARKS[sources[source].name].read(sources[source].uri)
    with storage.reaching(sources[source].uri, "read"):
        yield from _batches(source, questions, set(storage.list_names(uris[source])))


def _batches(source: int, questions: Iterator[Any], finished: Collection[str]) -> Iterator[_Batch]:
    """Cuts by what was published alone, so that a run that was killed cuts again at the same places."""
    waiting: list[Question] = []
    dropped: Counter[str] = Counter()
    number = size = 0

    def cut() -> _Batch:
        there = _file(number) in finished
        return _Batch(source, number, len(waiting), dropped, () if there else tuple(waiting))

    for question in questions:
        if not isinstance(question, Question):
            dropped[question.reason] += 1
            continue
        waiting.append(question)
        size += sum(map(len, question.images))
        if len(waiting) == BATCH_QUESTIONS or size >= BATCH_BYTES:
            yield cut()
            waiting, dropped, number, size = [], Counter(), number + 1, 0
    yield cut()


def _run(budget: PixelBudget, uris: Sequence[str], batch: _Batch) -> _Batch:
    """Writes the keys of a batch; the result holds no image."""
    where = storage.join(uris[batch.source], _file(batch.number))
    if batch.questions or not batch.size:
        keys, pictures = Keys(), []
        for question in batch.questions:
            found = [standardise(data, budget) for data in question.images]
            images = [image for image in found if isinstance(image, StoredImage)]
            keys.add(question.item_id, question.asked or question.prompt, question.answer, images)
            pictures.append(images)
        write_pictures(KeyFile(where, "test"), pictures)
        keys.write(where)
    return _Batch(batch.source, batch.number, batch.size, batch.dropped, ())
