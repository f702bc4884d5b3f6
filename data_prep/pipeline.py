"""Preparation: sources -> verified, laid-out, sharded samples, with Ray Data.

Rows are listed once, in the driver; everything else happens in tasks of one shard each (`data_prep/work.py`).
"""

from __future__ import annotations

import hashlib
import logging
import pickle
import time
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amvl_core import records, storage
from amvl_core.config import MicroworldSource, ModelConfig, RunConfig
from amvl_core.errors import AmvlError, ClusterError, ConfigError, DataError
from amvl_core.progress import Progress, ProgressFn
from amvl_core.records import DatasetRecord, DroppedExample, SourceReport
from amvl_core.sample import Split
from data_prep import microworld
from data_prep.identity import content_identity
from data_prep.shards import SCHEMA_VERSION
from data_prep.sources import list_rows, source_name
from data_prep.sources.archive import open_archive
from data_prep.sources.row import read_images
from data_prep.work import EXAMPLES_PER_REASON, Done, Unit, Work

if TYPE_CHECKING:
    import pyarrow as pa

STAGE = "prepare"
STAGE_VERSION = 1
"""Raised whenever the same configuration gives other shards than before."""

SPLITS: tuple[Split, Split] = ("train", "test")


def fingerprint(config: RunConfig) -> str:
    """Names the dataset that `config` gives: by what archives hold, not by where they are. Raises DataError."""
    data = config.data.model_dump(mode="json")
    for source in data["sources"]:
        uri = source.pop("uri", None)
        if uri is not None:
            source["content"] = content_identity(uri)
    return records.fingerprint(
        STAGE,
        STAGE_VERSION,
        schema=SCHEMA_VERSION,
        data=data,
        num_slots=config.latent.num_slots,
        model=_tokenizer_identity(config.model),
    )


def _tokenizer_identity(model: ModelConfig) -> dict[str, Any]:
    """What token counts depend on: the tokenizer and the patch size, not the weights."""
    if model.base == "tiny":
        return {"base": "tiny", "patch_size": model.tiny.patch_size}
    folder = Path(model.base)
    files = [folder / name for name in ("tokenizer.json", "preprocessor_config.json")]
    present = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files if file.is_file()}
    return {"files": present} if present else {"base": model.base}


def prepare(config: RunConfig, uri: str, on_progress: ProgressFn) -> DatasetRecord:
    """Writes the shards of `config.data` below `uri`, `record.json` last; Ray must be initialised.

    Raises DataError for a missing or damaged archive and where no training sample is kept, StorageError where `uri`
    cannot be written, ClusterError where Ray fails. Without a record nothing below `uri` counts as finished.
    """
    from amvl_core.data.encode import TokenCounter

    names = Counter(source_name(source) for source in config.data.sources)
    if twice := [name for name, times in names.items() if times > 1]:
        raise ConfigError(f"data.sources: more than one source is called {twice[0]!r}; give each a name of its own")
    uri = storage.absolute(uri)
    identity = fingerprint(config)
    counter = TokenCounter.from_model(config.model, config.latent)
    work = Work(_absolute(config).data, config.latent.num_slots, counter, uri)
    with closing(_units(work)) as units:
        done = _run(work, units, on_progress)
    record = _record(uri, identity, done)
    records.save_record(record)
    return record


def _absolute(config: RunConfig) -> RunConfig:
    """Tasks run in working directories of their own."""
    sources = tuple(
        source
        if isinstance(source, MicroworldSource)
        else source.model_copy(update={"uri": storage.absolute(source.uri)})
        for source in config.data.sources
    )
    return config.model_copy(update={"data": config.data.model_copy(update={"sources": sources})})


def _units(work: Work) -> Generator[Unit, None, None]:
    """Each source is opened once; shards are numbered through a split, source after source."""
    numbers = dict.fromkeys(SPLITS, 0)
    for index, source in enumerate(work.data.sources):
        if isinstance(source, MicroworldSource):
            for split in SPLITS:
                for start, stop in _ranges(microworld.count(source, split), work.data.rows_per_shard):
                    yield Unit(split, numbers[split], index, start, stop)
                    numbers[split] += 1
            continue
        with open_archive(source.uri) as archive:
            rows = list(list_rows(source, source.kind, archive, work.data.seed))
            for split in SPLITS:
                members = [row for row in rows if row.split == split]
                for start, stop in _ranges(len(members), work.data.rows_per_shard):
                    part = tuple(members[start:stop])
                    payload = read_images(archive, part) if archive.sequential else None
                    yield Unit(split, numbers[split], index, start, stop, part, payload)
                    numbers[split] += 1


def _ranges(count: int, size: int) -> list[tuple[int, int]]:
    return [(start, min(start + size, count)) for start in range(0, count, size)]


def _run(work: Work, units: Iterator[Unit], on_progress: ProgressFn) -> list[Done]:
    """Runs every unit in Ray Data, in whatever order, and returns the results in unit order."""
    import pyarrow as pa
    import ray
    import ray.data

    assert ray.is_initialized(), "the caller says which Ray this runs on"
    # A unit goes to the object store as soon as it is cut, where Ray may spill it: the driver holds one at a time.
    blocks: list[Any] = []
    total = 0
    for index, unit in enumerate(units):
        total += unit.stop - unit.start
        packed = pa.array([pickle.dumps((index, unit), protocol=pickle.HIGHEST_PROTOCOL)], pa.large_binary())
        blocks.append(ray.put(pa.table({"unit": packed})))
    on_progress(Progress(STAGE, 0, total, "samples"))
    if not blocks:
        return []
    ray.data.DataContext.get_current().enable_progress_bars = False
    started = time.monotonic()
    results: list[Done] = []
    finished = 0
    try:
        with _quiet():
            dataset = ray.data.from_arrow_refs(blocks).map_batches(
                partial(_task, work=ray.put(work)), batch_size=None, batch_format="pyarrow"
            )
            for row in dataset.iter_rows():
                result = pickle.loads(row["result"])
                if isinstance(result, AmvlError):
                    raise result
                results.append(result)
                finished += result.report.read
                left = (time.monotonic() - started) / max(finished, 1) * (total - finished)
                on_progress(Progress(STAGE, finished, total, "samples", seconds_left=left))
    except ray.exceptions.RayError as error:
        raise ClusterError(f"Ray could not finish the preparation; run it again. It said: {error}") from error
    return sorted(results, key=lambda result: result.unit)


@contextmanager
def _quiet() -> Iterator[None]:
    """Ray Data narrates every execution on the console; `on_progress` is what the user follows."""
    logger = logging.getLogger("ray.data")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _task(block: pa.Table, work: Any) -> pa.Table:
    """One block is one unit. The user's errors come back as values: Ray would wrap them beyond recognition."""
    import pyarrow as pa
    import ray

    index, unit = pickle.loads(block["unit"][0].as_py())
    shared: Work = ray.get(work)
    try:
        result: Done | AmvlError = shared.run(index, unit)
    except AmvlError as error:
        result = error
    return pa.table({"result": pa.array([pickle.dumps(result)], pa.binary())})


def _record(uri: str, identity: str, done: list[Done]) -> DatasetRecord:
    reports: dict[tuple[str, Split], SourceReport] = {}
    for result in done:
        key = (result.report.source, result.report.split)
        reports[key] = _merge(reports[key], result.report) if key in reports else result.report
    dropped: Counter[str] = Counter()
    for report in reports.values():
        dropped.update(report.dropped)
    trained = sum(report.kept for report in reports.values() if report.split == "train")
    if trained == 0:
        raise DataError(_nothing_kept(list(reports.values())))
    return DatasetRecord(
        uri=uri,
        fingerprint=identity,
        schema_version=SCHEMA_VERSION,
        shards=[result.shard for result in done if result.shard is not None],
        kept=sum(report.kept for report in reports.values()),
        dropped=dict(sorted(dropped.items())),
        reports=list(reports.values()),
    )


def _merge(one: SourceReport, other: SourceReport) -> SourceReport:
    examples: dict[str, list[DroppedExample]] = {}
    for reason in sorted({*one.examples, *other.examples}):
        both = [*one.examples.get(reason, []), *other.examples.get(reason, [])]
        examples[reason] = both[:EXAMPLES_PER_REASON]
    return SourceReport(
        source=one.source,
        split=one.split,
        read=one.read + other.read,
        kept=one.kept + other.kept,
        dropped=dict(sorted((Counter(one.dropped) + Counter(other.dropped)).items())),
        examples=examples,
    )


def _nothing_kept(reports: list[SourceReport]) -> str:
    lines = [
        f"  {report.source}: {count} x {reason}, such as {report.examples[reason][0].sample_id}: "
        f"{report.examples[reason][0].detail}"
        for report in reports
        if report.split == "train"
        for reason, count in report.dropped.items()
    ]
    read = sum(report.read for report in reports if report.split == "train")
    return "\n".join([f"no training sample is left of the {read} that were read; check data.sources", *lines])
