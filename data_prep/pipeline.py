"""Preparation: sources -> verified samples in shards, with Ray Data.

Each source is prepared on its own, into a folder that is named by its fingerprint (`{storage}/prepare/sources/`). All
datasets that the source is part of share the folder. So a mixture that grows by one source prepares that one. The
dataset is then put together without decoding anything. Duplicates and contaminated samples can be found only with all
sources and the benchmarks that the run evaluates. A shard that holds some is copied without them. All other shards are
linked.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from amvl_core.contracts import records, storage
from amvl_core.contracts.config import BenchmarkSource, RunConfig
from amvl_core.contracts.content_identity import content_identity, tokenizer_identity
from amvl_core.contracts.errors import ConfigError, DataError
from amvl_core.contracts.progress import Progress, ProgressFn
from amvl_core.contracts.records import (
    EXAMPLES_PER_REASON,
    DatasetRecord,
    DroppedExample,
    Place,
    Record,
    Shard,
    SourceReport,
)
from amvl_core.contracts.sample import Split
from amvl_core.contracts.sources import DEPENDENT_TASKS, MicroworldSource, Source
from data_prep import contamination, duplicates, listing, report
from data_prep.duplicate_keys import KeyFile, key_name, sample_id
from data_prep.duplicates import Match, Repeat
from data_prep.microworld.dependent import REVISIONS
from data_prep.shards import SCHEMA_VERSION, copy_without, shard_name
from data_prep.shards import check as check_shard
from data_prep.sources import source_name
from data_prep.streaming import stream
from data_prep.units import Unit, UnitRecord, Work, unit_name

STAGE = "prepare"
STAGE_VERSION = 8
"""Raised whenever the same configuration gives other shards than before."""

SOURCES = "sources"
"""The folder beside the datasets that holds what each source gave."""

COPIES_AT_ONCE = 8

_NOT_OF_A_SOURCE = {"sources", "drop_duplicates", "drop_contaminated", "features", "accept_losses"}
"""Fields of `data` that change nothing of what a source gives by itself."""

_HOW: dict[Match, str] = {
    "image": "image {image} is image {of_image} of",
    "near image": "image {image} is nearly image {of_image} of",
    "question": "asks the same as",
    "sample": "the same as",
    "near": "the same, with nearly the same images, as",
}


class SourceRecord(Record):
    """A prepared source: `units` in order, whose files are below `uri`."""

    kind: Literal["source"] = "source"
    units: list[UnitRecord]


def fingerprint(config: RunConfig) -> str:
    """Names the dataset that `config` gives: by what archives hold, not by where they are. Raises DataError."""
    return _dataset_fingerprint(config, _source_fingerprints(config))


def _dataset_fingerprint(config: RunConfig, sources: list[str]) -> str:
    flags = config.data.model_dump(include={"drop_duplicates", "drop_contaminated"})
    benchmarks = [contamination.identity(source) for source in _compared(config)]
    return records.fingerprint(STAGE, STAGE_VERSION, sources=sources, benchmarks=benchmarks, **flags)


def _compared(config: RunConfig) -> tuple[BenchmarkSource, ...]:
    """The benchmarks that training samples are compared with."""
    return config.evaluation.benchmarks if config.data.drop_contaminated else ()


def _source_fingerprints(config: RunConfig) -> list[str]:
    return [_source_fingerprint(config, source) for source in config.data.sources]


def _source_fingerprint(config: RunConfig, source: Source) -> str:
    """What a source gives by itself: its content and settings, and what is done with each of its rows."""
    return records.fingerprint(
        "source",
        STAGE_VERSION,
        schema=SCHEMA_VERSION,
        source=_source_identity(source),
        data=config.data.model_dump(mode="json", exclude=_NOT_OF_A_SOURCE),
        model=tokenizer_identity(config.model),
    )


def _source_identity(source: Source) -> dict[str, Any]:
    fields = source.model_dump(mode="json")
    if isinstance(source, MicroworldSource):
        if not set(source.tasks) & set(DEPENDENT_TASKS):
            del fields["difficulty"]  # nothing depends on it
        if revised := {task: REVISIONS[task] for task in source.tasks if task in REVISIONS}:
            fields["revisions"] = revised
    uri = fields.pop("uri", None)
    return fields if uri is None else {**fields, "content": content_identity(uri)}


def prepare(config: RunConfig, uri: str, on_progress: ProgressFn) -> DatasetRecord:
    """Writes the shards of `config.data` below `uri`, `record.json` last; Ray must be initialised.

    Goes on from whatever units of its sources are finished. `report.html` and `report.json` are written beside the
    shards. Raises DataError for a missing or damaged archive and where no training sample is kept, StorageError where
    `uri` cannot be written, ClusterError where Ray fails. Without a record nothing below `uri` counts as finished.
    """
    from amvl_core.data.encode import TokenCounter

    names = Counter(source_name(source) for source in config.data.sources)
    if twice := [name for name, times in names.items() if times > 1]:
        raise ConfigError(f"data.sources: more than one source is called {twice[0]!r}; give each a name of its own")
    uri = storage.absolute(uri)
    identities = _source_fingerprints(config)
    folders = tuple(storage.join(uri.rpartition("/")[0], SOURCES, identity) for identity in identities)
    counter = TokenCounter.from_model(config.model)
    work = Work(_absolute(config).data, counter, folders)
    sources = _prepare_sources(config, work, identities, on_progress)
    parts = _parts(sources)
    folder = storage.join(uri.rpartition("/")[0], contamination.FOLDER)
    benchmarks = contamination.prepare(_compared(config), work.budget, folder, on_progress)
    files = [part.keys for part in parts if part.record.shard is not None]
    files += [file for benchmark in benchmarks for file in benchmark.keys]
    repeats = _find_repeats(config, parts, files)
    reports = listing.complete(config.data, _reports(parts, repeats, files))
    if not any(found.kept for found in reports if found.split == "train"):
        raise DataError(_nothing_kept(reports))
    record = DatasetRecord(
        uri=uri,
        fingerprint=_dataset_fingerprint(config, identities),
        schema_version=SCHEMA_VERSION,
        shards=_publish(parts, repeats, uri),
        kept=sum(found.kept for found in reports),
        dropped=dict(sorted(sum((Counter(found.dropped) for found in reports), Counter[str]()).items())),
        reports=reports,
    )
    report.write(record, benchmarks)
    records.save_record(record)
    return record


def _absolute(config: RunConfig) -> RunConfig:
    """The configuration with absolute places, because tasks run in working directories of their own."""
    sources = tuple(
        source
        if isinstance(source, MicroworldSource)
        else source.model_copy(update={"uri": storage.absolute(source.uri)})
        for source in config.data.sources
    )
    return config.model_copy(update={"data": config.data.model_copy(update={"sources": sources})})


def _prepare_sources(
    config: RunConfig, work: Work, identities: list[str], on_progress: ProgressFn
) -> list[SourceRecord]:
    """The record of every source, in order; those without one are prepared."""
    found = {index: records.load_record(uri, SourceRecord) for index, uri in enumerate(work.uris)}
    missing = [index for index, record in found.items() if record is None]
    units: dict[int, list[UnitRecord]] = {index: [] for index in missing}
    totals = dict.fromkeys(missing, 0)
    done = sum(unit.report.read for record in found.values() if record is not None for unit in record.units)
    known = done
    on_progress(Progress(STAGE, 0, known, "samples"))
    started, reused = time.monotonic(), done
    for source, total, unit in stream(missing, partial(_cut, work), partial(_run, work)):
        units[source].append(unit)
        totals[source] = total
        done += unit.report.read
        known = reused + sum(totals.values())  # of the sources that have been listed
        left = (time.monotonic() - started) / max(done - reused, 1) * (known - done)
        on_progress(Progress(STAGE, done, known, "samples", seconds_left=left))
    for index in missing:
        given, where = config.data.sources[index], Place(work.uris[index], identities[index])
        records.check_unchanged(f"source {source_name(given)}", where, _source_fingerprint(config, given))
        ordered = sorted(units[index], key=lambda unit: (listing.SPLITS.index(unit.split), unit.number))
        record = SourceRecord(**where._asdict(), units=ordered)
        records.save_record(record)
        storage.remove_leftovers(record.uri)
        found[index] = record
    if not missing:
        on_progress(Progress(STAGE, done, done, "samples"))
    return [record for _, record in sorted(found.items()) if record is not None]


def _cut(work: Work, source: int) -> Iterator[Unit]:
    suffix = ".json"
    names = storage.list_names(work.uris[source])
    return listing.units(work.data, source, {name.removesuffix(suffix) for name in names if name.endswith(suffix)})


def _run(work: Work, unit: Unit) -> tuple[int, int, UnitRecord]:
    return unit.source, unit.total, work.run(unit)


@dataclass(frozen=True)
class _Part:
    """A unit of one of the sources, as a part of the dataset: `shard` is the file it becomes there."""

    where: str
    record: UnitRecord
    shard: str

    @property
    def keys(self) -> KeyFile:
        return KeyFile(key_name(self.where), self.record.split)


def _parts(sources: list[SourceRecord]) -> list[_Part]:
    """All units, source after source; shards are numbered through a split."""
    before: dict[Split, int] = dict.fromkeys(listing.SPLITS, 0)
    parts = []
    for source in sources:
        for unit in source.units:
            where = storage.join(source.uri, unit_name(unit.split, unit.number))
            parts.append(_Part(where, unit, shard_name(unit.split, before[unit.split] + unit.number)))
        for split in listing.SPLITS:
            before[split] += sum(unit.split == split for unit in source.units)
    return parts


def _find_repeats(config: RunConfig, parts: list[_Part], files: list[KeyFile]) -> dict[int, list[Repeat]]:
    """Repeats by the number of the part that they are in; `files` are the parts' keys, then those of benchmarks."""
    numbers = [number for number, part in enumerate(parts) if part.record.shard is not None]
    flags = {"duplicates": config.data.drop_duplicates, "contaminated": config.data.drop_contaminated}
    repeats: dict[int, list[Repeat]] = {}
    for repeat in duplicates.find(files, **flags) if any(flags.values()) else []:
        repeats.setdefault(numbers[repeat.file], []).append(repeat)
    return repeats


def _reports(parts: list[_Part], repeats: dict[int, list[Repeat]], files: list[KeyFile]) -> list[SourceReport]:
    """One report for each source and split, with the repeats among the dropped."""
    reports: dict[tuple[str, Split], SourceReport] = {}
    for number, part in enumerate(parts):
        found, here = part.record.report, repeats.get(number, [])
        key = (found.source, found.split)
        shown = reports[key].examples if key in reports else {}
        counts = Counter(repeat.reason for repeat in here)
        examples = {
            reason: [
                _example(files, repeat)
                for repeat in [r for r in here if r.reason == reason][
                    : EXAMPLES_PER_REASON - len(shown.get(reason, []))
                ]
            ]
            for reason in counts
        }
        found = SourceReport(
            source=found.source,
            split=found.split,
            read=found.read,
            kept=found.kept - len(here),
            dropped=dict(sorted((Counter(found.dropped) + counts).items())),
            examples=dict(sorted({**found.examples, **examples}.items())),
            notes=found.notes,
            too_long=found.too_long,
            target_tokens=found.target_tokens,
        )
        reports[key] = reports[key].merged(found) if key in reports else found
    return list(reports.values())


def _example(files: list[KeyFile], repeat: Repeat) -> DroppedExample:
    file, other = files[repeat.file], files[repeat.of_file]
    what = "the test sample" if other.split == "test" else "sample"
    if other.benchmark is not None:
        what = f"the question of {other.benchmark},"
    how = _HOW[repeat.match].format(image=repeat.image + 1, of_image=repeat.of_image + 1)
    return DroppedExample(
        sample_id=sample_id(file, repeat.row), detail=f"{how} {what} {sample_id(other, repeat.of_row)}"
    )


def _publish(parts: list[_Part], repeats: dict[int, list[Repeat]], uri: str) -> list[Shard]:
    """Brings the shards into the dataset's folder, without the rows that repeat others."""
    copies = [
        (number, part, tuple(repeat.row for repeat in repeats.get(number, [])))
        for number, part in enumerate(parts)
        if part.record.shard is not None
    ]
    copy = partial(_copy, uri)
    with ThreadPoolExecutor(COPIES_AT_ONCE) as pool:  # linking, or asking an object store to copy: mostly waiting
        results = dict(pool.map(copy, [item for item in copies if not item[2]]))
    changed = [item for item in copies if item[2]]
    results.update(stream([changed] if changed else [], iter, copy))
    return [shard for _, shard in sorted(results.items()) if shard is not None]


def _copy(uri: str, item: tuple[int, _Part, tuple[int, ...]]) -> tuple[int, Shard | None]:
    number, part, left_out = item
    shard = part.record.shard
    assert shard is not None
    source, target = f"{part.where}.parquet", storage.join(uri, part.shard)
    check_shard(source, shard.rows)
    if not left_out:
        storage.copy(source, target)
        return number, shard.model_copy(update={"file": part.shard})
    rows, digest = copy_without(source, target, left_out)
    return number, Shard(file=part.shard, split=shard.split, rows=rows, sha256=digest) if rows else None


def _nothing_kept(reports: list[SourceReport]) -> str:
    lines = [
        f"  {found.source}: {count} x {reason}, such as {found.examples[reason][0].sample_id}: "
        f"{found.examples[reason][0].detail}"
        for found in reports
        if found.split == "train"
        for reason, count in found.dropped.items()
    ]
    read = sum(found.read for found in reports if found.split == "train")
    return "\n".join([f"no training sample is left of the {read} that were read; check data.sources", *lines])
