"""The unit of preparation is a range of one source's rows. It becomes one shard, on whichever machine is free.

Units are cut by input rows, not by kept ones. So what a shard holds does not depend on any other unit. That makes
shards parallel, repeatable and byte-identical, however many machines there are. A unit's record is written after its
shard, so a unit whose record is there is finished.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Protocol

from pydantic import ValidationError

from amvl_core.contracts import storage
from amvl_core.contracts.config import DataConfig
from amvl_core.contracts.errors import StorageError, shortened
from amvl_core.contracts.frozen import Frozen
from amvl_core.contracts.records import EXAMPLES_PER_REASON, NOTES, DroppedExample, Shard, SourceReport
from amvl_core.contracts.sample import (
    IMAGE_PLACEHOLDER,
    Conversation,
    Region,
    Split,
    StoredSample,
    Video,
    reply,
    shown_by_question,
)
from amvl_core.contracts.sources import MicroworldSource, Source
from data_prep import microworld
from data_prep.duplicate_keys import Keys, key_name
from data_prep.filters import DEGENERATE_BOX, Drop, check_length, check_text, shown_images
from data_prep.images import PixelBudget, StoredImage, standardise
from data_prep.shards import ShardRow, ShardWriter, sha256, shard_name
from data_prep.sources import convert, source_name
from data_prep.sources.archive import open_archive
from data_prep.sources.raw_row import ImageRef, RawRow, images_of
from data_prep.videos import expanded

# easy-VQA asks ten questions in a row about an image, which is verified once. Few are kept: images may be large.
_standardise = lru_cache(maxsize=4)(standardise)


LENGTH_STEP = 64
"""Tokens of samples that are too long are counted in steps of so many: rounded up, so that a budget of it fits."""


class Counts(Protocol):
    """What `amvl_core.data.encode.TokenCounter` offers."""

    @property
    def patch_size(self) -> int:
        """Pixels along a patch of the vision encoder."""

    @property
    def merge_size(self) -> int:
        """Patches along a visual token."""

    def count(
        self,
        texts: list[str],
        image_sizes: list[tuple[int, int]],
        min_pixels: int,
        max_pixels: int,
        videos: Sequence[Video] = (),
    ) -> int:
        """Tokens of a sample."""


@dataclass(frozen=True)
class Unit:
    """Rows `start` to `stop` of a split of source number `source`, and where they go: shard `number` of that split.

    `rows` is empty for generated sources. `payload` holds images where the archive is sequential, so that no
    other process has to read it again; otherwise None. `total` is the number of rows of the source.
    """

    source: int
    split: Split
    number: int
    start: int
    stop: int
    total: int
    rows: tuple[RawRow, ...] = ()
    payload: Mapping[ImageRef, bytes | Drop] | None = None

    @property
    def name(self) -> str:
        """`train-00000`: what the unit's files are called, without their endings."""
        return unit_name(self.split, self.number)


def unit_name(split: Split, number: int) -> str:
    """`train-00000`."""
    return shard_name(split, number).removesuffix(".parquet")


class UnitRecord(Frozen):
    """What became of a unit, written beside its shard. `shard` is None where no row was kept."""

    split: Split
    number: int
    shard: Shard | None
    report: SourceReport


@dataclass
class Tally:
    """Counts of one unit while it runs."""

    read: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[DroppedExample]] = field(default_factory=dict)
    too_long: Counter[int] = field(default_factory=Counter)
    target_tokens: Counter[int] = field(default_factory=Counter)

    def drop(self, sample_id: str, drop: Drop) -> None:
        """Counts a sample that is not kept, and keeps the first as examples."""
        self.dropped[drop.reason] += 1
        if self.dropped[drop.reason] <= EXAMPLES_PER_REASON:
            example = DroppedExample(sample_id=sample_id, detail=drop.detail)
            self.examples.setdefault(drop.reason, []).append(example)


class Work:
    """Everything that all units share. It is picklable, and cheap to unpickle: it needs no torch and no transformers.

    `uris` are the folders that the units of each source go to.
    """

    def __init__(self, data: DataConfig, counter: Counts, uris: tuple[str, ...]) -> None:
        self.data = data
        self.counter = counter
        self.uris = uris
        self.budget = PixelBudget(data.min_pixels, data.max_pixels, counter.patch_size * counter.merge_size)

    def run(self, unit: Unit) -> UnitRecord:
        """Converts, filters and stores one unit, or returns the record of it if it is finished."""
        where = storage.join(self.uris[unit.source], unit.name)
        finished = load_unit(where)
        if finished is not None:
            return finished
        source, tally, keys = self.data.sources[unit.source], Tally(), Keys()
        with storage.reaching(where, "prepare"), storage.writing(f"{where}.parquet") as file:
            shard = ShardWriter(file)
            for sample_id, found in _conversations(source, unit):
                tally.read += 1
                result = self.row(found, keys, tally) if isinstance(found, Conversation) else found
                if isinstance(result, ShardRow):
                    shard.write(result)
                else:
                    tally.drop(sample_id, result)
            shard.close()
            digest = sha256(file)
        keys.write(key_name(where))
        record = UnitRecord(
            split=unit.split,
            number=unit.number,
            shard=Shard(file=f"{unit.name}.parquet", split=unit.split, rows=shard.rows, sha256=digest)
            if shard.rows
            else None,
            report=SourceReport(
                source=source_name(source),
                split=unit.split,
                read=tally.read,
                kept=shard.rows,
                dropped=dict(sorted(tally.dropped.items())),
                examples=dict(sorted(tally.examples.items())),
                notes=dict(Counter(shortened(note) for row in unit.rows for note in row.notes).most_common(NOTES)),
                too_long=dict(sorted(tally.too_long.items())),
                target_tokens=dict(sorted(tally.target_tokens.items())),
            ),
        )
        storage.write_bytes(f"{where}.json", record.model_dump_json(indent=2).encode())
        return record

    def target_tokens(self, sample: StoredSample) -> int:
        """Tokens that the model is taught to write: steps and answer, the two marks of each image, the end of turn."""
        texts = [part.text for part in reply(sample)]
        pixels = (self.data.min_pixels, self.data.max_pixels)
        plain = [text.replace(IMAGE_PLACEHOLDER, "") for text in texts]
        written = self.counter.count(plain, [], *pixels) - self.counter.count([], [], *pixels)
        return written + 2 * sum(text.count(IMAGE_PLACEHOLDER) for text in texts) + 1

    def row(self, conversation: Conversation, keys: Keys, tally: Tally) -> ShardRow | Drop:
        """One sample as it is stored, its keys added to `keys`, its lengths to `tally`; or why it is dropped."""
        drop = check_text(conversation, self.data)
        if drop:
            return drop
        shown = expanded(conversation, self.data.frames, self.data.video)
        if isinstance(shown, Drop):
            return shown
        conversation = shown
        images: list[StoredImage] = []
        for number, data in enumerate(shown_images(conversation, self.data), 1):
            image = _standardise(data, self.budget)
            if isinstance(image, Drop):
                return replace(image, detail=f"image {number}: {image.detail}")
            images.append(image)
        regions = _placed(conversation.regions, images)
        if isinstance(regions, Drop):
            return regions
        asked_for_steps = self.data.target == "steps_and_answer"
        steps = conversation.steps if asked_for_steps else ()
        sample = StoredSample(
            sample_id=conversation.sample_id,
            source=conversation.source,
            task=conversation.task,
            question=conversation.question,
            steps=steps,
            step_images=step_images(conversation) if asked_for_steps else (),
            answer=conversation.answer,
            images=tuple(image.data for image in images),
            regions=tuple(regions),
            videos=conversation.videos,
        )
        sizes = [(image.width, image.height) for image in images]
        texts = [sample.question, *(part.text for part in reply(sample))]
        num_tokens = self.counter.count(texts, sizes, self.data.min_pixels, self.data.max_pixels, sample.videos)
        drop = check_length(num_tokens, self.data)
        if drop:
            tally.too_long[-(-num_tokens // LENGTH_STEP) * LENGTH_STEP] += 1
            return drop
        tally.target_tokens[self.target_tokens(sample)] += 1
        keys.add(sample.sample_id, sample.question, sample.answer, images, steps)
        return ShardRow(sample, sizes, num_tokens)


def load_unit(where: str) -> UnitRecord | None:
    """The record of the unit whose files are called `where`, or None if it is not finished."""
    if not storage.exists(f"{where}.json"):
        return None
    try:
        return UnitRecord.model_validate_json(storage.read_bytes(f"{where}.json"))
    except ValidationError as error:
        raise StorageError(f"{where}.json is damaged; remove it to redo that part") from error


def step_images(conversation: Conversation) -> tuple[int | None, ...]:
    """Which image each step is about: the first that it shows, its region's if each step has one, or the only one."""
    numbers: list[int | None] = []
    shown = shown_by_question(conversation.images, conversation.steps)
    paired = len(conversation.regions) == len(conversation.steps)
    only = 0 if len(conversation.images) == 1 else None
    for number, step in enumerate(conversation.steps):
        count = step.count(IMAGE_PLACEHOLDER)
        numbers.append(shown if count else conversation.regions[number].image if paired else only)
        shown += count
    return tuple(numbers)


def _placed(regions: tuple[Region, ...], images: list[StoredImage]) -> list[Region] | Drop:
    """Boxes in pixels of the stored images; boxes on images that the sample does not show are left out."""
    placed = []
    for region in regions:
        if region.image < len(images):
            box = images[region.image].place(region.box)
            if box is None:
                width, height = images[region.image].source_size
                where = f"box {list(region.box)} on an image of {width} x {height} pixels"
                return Drop(DEGENERATE_BOX, f"nothing is in the {where}")
            placed.append(replace(region, box=box))
    return placed


def _conversations(source: Source, unit: Unit) -> Iterator[tuple[str, Conversation | Drop]]:
    """Every row of the unit by its sample id: converted, or why it cannot be."""
    if isinstance(source, MicroworldSource):
        for conversation in microworld.generate(source, unit.split, unit.start, unit.stop):
            yield conversation.sample_id, conversation
        return
    # A fault of the source's storage must not be taken for one of the output's.
    opened = open_archive(source.uri) if unit.payload is None else nullcontext()
    with storage.reaching(source.uri, "read"), opened as archive:
        for row in unit.rows:
            images = row.drop or images_of(row, unit.payload, archive)
            if isinstance(images, Drop):
                yield row.sample_id, images
            else:
                yield row.sample_id, convert(source, source.kind, row, images)
