"""Cuts a source into units, lazily. Only the rows of one unit for each split are held, however many rows there are."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

from amvl_core.contracts import storage
from amvl_core.contracts.config import DataConfig
from amvl_core.contracts.records import SourceReport
from amvl_core.contracts.sample import Split
from amvl_core.contracts.sources import ArchiveSource, MicroworldSource
from data_prep import microworld
from data_prep.sources import list_rows, source_name
from data_prep.sources.archive import open_archive
from data_prep.sources.archive_members import Archive
from data_prep.sources.raw_row import RawRow, read_images
from data_prep.units import Unit, unit_name

SPLITS: tuple[Split, Split] = ("train", "test")


def units(data: DataConfig, source: int, finished: Collection[str]) -> Iterator[Unit]:
    """The units of source number `source` in the order of its rows; those that are `finished` (by name) carry none."""
    config = data.sources[source]
    if isinstance(config, MicroworldSource):
        yield from _generated(config, source, data.rows_per_shard)
    else:
        with storage.reaching(config.uri, "read"), open_archive(config.uri) as archive:
            yield from _archived(data, config, archive, source, finished)


def complete(data: DataConfig, reports: list[SourceReport]) -> list[SourceReport]:
    """`reports`, and one of no rows for each source that is to train but has no training row."""
    reported = {report.source for report in reports if report.split == "train"}
    named = {
        source_name(source): source.train if isinstance(source, MicroworldSource) else source.train_limit
        for source in data.sources
    }
    return reports + [
        SourceReport(source=name, split="train", read=0, kept=0, dropped={}, examples={})
        for name, most in named.items()
        if most != 0 and name not in reported
    ]


def _generated(config: MicroworldSource, source: int, size: int) -> Iterator[Unit]:
    counts = {split: microworld.count(config, split) for split in SPLITS}
    for split, count in counts.items():
        for number, start in enumerate(range(0, count, size)):
            yield Unit(source, split, number, start, min(start + size, count), sum(counts.values()))


def _archived(
    data: DataConfig, config: ArchiveSource, archive: Archive, source: int, finished: Collection[str]
) -> Iterator[Unit]:
    waiting: dict[Split, list[RawRow]] = {split: [] for split in SPLITS}
    numbers = dict.fromkeys(SPLITS, 0)

    def rows() -> Iterable[RawRow]:
        return list_rows(config, data.sources[source].kind, archive, data.seed)

    # The rows are listed twice, because progress needs their number and keeping them would take memory.
    total = sum(1 for _ in rows())

    def cut(split: Split) -> Unit:
        part, number = tuple(waiting[split]), numbers[split]
        waiting[split] = []
        numbers[split] += 1
        start = number * data.rows_per_shard
        stop = start + len(part)
        if unit_name(split, number) in finished:
            return Unit(source, split, number, start, stop, total)
        payload = read_images(archive, part) if archive.sequential else None
        return Unit(source, split, number, start, stop, total, part, payload)

    for row in rows():
        waiting[row.split].append(row)
        if len(waiting[row.split]) == data.rows_per_shard:
            yield cut(row.split)
    for split in SPLITS:
        if waiting[split]:
            yield cut(split)
