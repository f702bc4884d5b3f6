"""The unit of preparation: a range of one source's rows that becomes one shard, on whichever machine is free.

Units are cut by input rows, not by kept ones, so what a shard holds does not depend on any other unit; that is what
makes shards parallel, repeatable and byte-identical however many machines there are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Protocol

from amvl_core.config import DataConfig, MicroworldSource, Source
from amvl_core.records import DroppedExample, Shard, SourceReport
from amvl_core.sample import Conversation, Region, Segment, Split
from data_prep import microworld
from data_prep.filters import Drop, check_length, check_text, shown_images
from data_prep.images import StoredImage, standardise
from data_prep.layouts import lay_out, without_replaced_images
from data_prep.shards import ShardRow, extra_json, write_shard
from data_prep.sources import convert, source_name
from data_prep.sources.archive import open_archive
from data_prep.sources.row import ImageRef, RawRow, images_of

EXAMPLES_PER_REASON = 3

# easy-VQA asks ten questions in a row about an image; it is verified once. Few, because images may be large.
_standardise = lru_cache(maxsize=4)(standardise)


class Counts(Protocol):
    """What `amvl_core.data.encode.TokenCounter` offers."""

    def count(
        self, segments: list[Segment], image_sizes: list[tuple[int, int]], min_pixels: int, max_pixels: int
    ) -> int:
        """Tokens of a laid-out sample."""


@dataclass(frozen=True)
class Unit:
    """Rows `start` to `stop` of a split of source number `source`, and the shard number they go to.

    `rows` is empty for generated sources. `payload` holds images where the archive is sequential, so
    that no other process has to read it again; otherwise None.
    """

    split: Split
    number: int
    source: int
    start: int
    stop: int
    rows: tuple[RawRow, ...] = ()
    payload: Mapping[ImageRef, bytes | Drop] | None = None


@dataclass(frozen=True)
class Done:
    """What became of a unit. `shard` is None where no row was kept."""

    unit: int
    shard: Shard | None
    report: SourceReport


class Work:
    """Everything that all units share. Picklable, and cheap to unpickle: no torch, no transformers."""

    def __init__(self, data: DataConfig, num_slots: int, counter: Counts, uri: str) -> None:
        self.data = data
        self.num_slots = num_slots
        self.counter = counter
        self.uri = uri

    def run(self, index: int, unit: Unit) -> Done:
        """Converts, filters, lays out and stores one unit. `index` is handed back in the result."""
        source = self.data.sources[unit.source]
        rows: list[ShardRow] = []
        dropped: Counter[str] = Counter()
        examples: dict[str, list[DroppedExample]] = {}
        read = 0
        for sample_id, found in _conversations(source, unit):
            read += 1
            result = self.row(found) if isinstance(found, Conversation) else found
            if isinstance(result, ShardRow):
                rows.append(result)
                continue
            dropped[result.reason] += 1
            if dropped[result.reason] <= EXAMPLES_PER_REASON:
                example = DroppedExample(sample_id=sample_id, detail=result.detail)
                examples.setdefault(result.reason, []).append(example)
        shard = write_shard(self.uri, unit.split, unit.number, rows) if rows else None
        report = SourceReport(
            source=source_name(source),
            split=unit.split,
            read=read,
            kept=len(rows),
            dropped=dict(sorted(dropped.items())),
            examples=dict(sorted(examples.items())),
        )
        return Done(index, shard, report)

    def row(self, conversation: Conversation) -> ShardRow | Drop:
        """One sample as it is stored, or why it is dropped."""
        drop = check_text(conversation, self.data)
        if drop:
            return drop
        conversation = without_replaced_images(conversation, self.data)
        images: list[StoredImage] = []
        for number, data in enumerate(shown_images(conversation, self.data), 1):
            image = _standardise(data, self.data.min_pixels, self.data.max_pixels)
            if isinstance(image, Drop):
                return replace(image, detail=f"image {number}: {image.detail}")
            images.append(image)
        segments = lay_out(conversation, self.data, self.num_slots)
        sizes = [(image.width, image.height) for image in images]
        num_tokens = self.counter.count(segments, sizes, self.data.min_pixels, self.data.max_pixels)
        drop = check_length(num_tokens, self.data)
        if drop:
            return drop
        return ShardRow(
            sample_id=conversation.sample_id,
            source=conversation.source,
            segments=segments,
            images=[image.data for image in images],
            image_sizes=sizes,
            num_tokens=num_tokens,
            extra=extra_json(
                conversation.task, conversation.answer, conversation.steps, _scaled(conversation.regions, images)
            ),
        )


def _scaled(regions: tuple[Region, ...], images: list[StoredImage]) -> list[Region]:
    """Boxes in pixels of the stored images; boxes on images that the sample does not show are left out."""
    scaled = []
    for region in regions:
        if region.image < len(images):
            x1, y1, x2, y2 = (round(value * images[region.image].scale, 2) for value in region.box)
            scaled.append(replace(region, box=(x1, y1, x2, y2)))
    return scaled


def _conversations(source: Source, unit: Unit) -> Iterator[tuple[str, Conversation | Drop]]:
    """Every row of the unit by its sample id: converted, or why it cannot be."""
    if isinstance(source, MicroworldSource):
        for conversation in microworld.generate(source, unit.split, unit.start, unit.stop):
            yield conversation.sample_id, conversation
        return
    with open_archive(source.uri) if unit.payload is None else nullcontext() as archive:
        for row in unit.rows:
            images = row.drop or images_of(row, unit.payload, archive)
            if isinstance(images, Drop):
                yield row.sample_id, images
            else:
                yield row.sample_id, convert(source, source.kind, row, images)
