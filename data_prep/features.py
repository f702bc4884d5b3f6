"""Features of all training images of a prepared dataset by a frozen encoder, once, with Ray Data.

Each shard of the dataset gets a file with its rows (`amvl_core/data/features.py`), on whichever actor is free. The
file's record is written after it, so a shard whose record is there is finished. A run that was killed loses what it was
writing, and takes over all that is finished.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any, Literal, Protocol

import numpy as np
import pyarrow as pa
from pydantic import ValidationError

from amvl_core.contracts import records, storage
from amvl_core.contracts.content_identity import encoder_identity
from amvl_core.contracts.encoders import BASE, EncoderConfig
from amvl_core.contracts.errors import DataError, StorageError
from amvl_core.contracts.frozen import Frozen
from amvl_core.contracts.parquet import ParquetStream
from amvl_core.contracts.progress import Progress, ProgressFn
from amvl_core.contracts.records import DatasetRecord, FeaturesRecord, Shard
from amvl_core.data.features import SCHEMA, STORED_DTYPE, image_digest
from amvl_core.data.pixels import PictureError, square
from amvl_core.data.stored_features import ADVICE, StoredFeatures, named
from data_prep.shards import parquet_writer, sha256
from data_prep.streaming import Actors, stream

STAGE = "features"
STAGE_VERSION = 1
"""Raised whenever the same encoder and dataset give other files than before."""

BATCH = 64
"""Images that the encoder is given at once, at most."""
DECODERS = 4
"""Threads that decode images for one encoder."""


def fingerprint(dataset: DatasetRecord, encoder: EncoderConfig) -> str:
    """Names the features of a dataset: by what a folder holds, not by where it is or what the encoder is called."""
    return records.fingerprint(
        STAGE,
        STAGE_VERSION,
        dataset=dataset.fingerprint,
        encoder=encoder_identity(encoder),
        size=None if encoder.stored else encoder.size,
    )


def compute(
    dataset: DatasetRecord,
    encoder: EncoderConfig,
    uri: str,
    workers: int,
    device: Literal["cuda", "cpu"],
    on_progress: ProgressFn,
) -> FeaturesRecord:
    """Writes the features of `dataset`'s training images below `uri`, `record.json` last; Ray must be initialised.

    `workers` actors each hold a copy of the encoder on `device`. Raises ConfigError or CheckpointError where the
    encoder cannot be built, DataError where images have no features in a `features:` folder or cannot be read,
    StorageError where `uri` cannot be written, ClusterError where Ray fails.
    """
    assert encoder.source != BASE, "its features change with the model that is trained"
    uri, shards = storage.absolute(uri), dataset.files("train")
    device = "cpu" if encoder.stored is not None else device
    work = Work(storage.absolute(dataset.uri), encoder, uri, device)
    actors = Actors(
        min(workers, len(shards)), num_cpus=1 if device == "cuda" else 0.5, num_gpus=float(device == "cuda")
    )
    stage, done, total = f"{STAGE}-{encoder.name}", 0, dataset.rows("train")
    found: dict[str, ShardFeatures] = {}
    lacking: list[Missing] = []
    on_progress(Progress(stage, 0, total, "samples"))
    started = time.monotonic()
    for shard, result in stream([shards], iter, work, actors):
        done += shard.rows
        if isinstance(result, Missing):
            lacking.append(result)
        else:
            found[shard.file] = result
        left = (time.monotonic() - started) / done * (total - done)
        on_progress(Progress(stage, done, total, "samples", seconds_left=left))
    if lacking:
        images = sum(one.images for one in lacking) + sum(one.images for one in found.values())
        raise DataError(_nothing_for(encoder, lacking, images))
    first = next(iter(found.values()))
    record = FeaturesRecord(
        uri=uri,
        fingerprint=fingerprint(dataset, encoder),
        encoder=encoder,
        dataset=dataset.fingerprint,
        grid=first.grid,
        width=first.width,
        shards=[found[shard.file].shard for shard in shards],
    )
    records.save_record(record)
    storage.remove_leftovers(uri)
    return record


class ShardFeatures(Frozen):
    """What became of a shard, written beside its features."""

    shard: Shard
    images: int
    grid: tuple[int, int]
    width: int


class Missing(Frozen):
    """A shard of which `count` of its `images` have no features; no file is written. `first` names one."""

    file: str
    images: int
    count: int
    first: str


class Features(Protocol):
    """What gives features: a model, or a folder of those that were computed elsewhere."""

    grid: tuple[int, int]
    width: int

    def of(self, sample_ids: Sequence[str], images: Sequence[bytes]) -> list[np.ndarray | None]:
        """[P, D] of each image; None where there are none."""


class Work:
    """What all shards share. It is picklable; an actor builds its encoder when it has its first shard."""

    def __init__(self, dataset: str, encoder: EncoderConfig, uri: str, device: str) -> None:
        self.dataset, self.encoder, self.uri, self.device = dataset, encoder, uri, device

    def __call__(self, shard: Shard) -> tuple[Shard, ShardFeatures | Missing]:
        """Writes the features of one shard, or takes over those that are there."""
        where = storage.join(self.uri, shard.file.removesuffix(".parquet"))
        finished = _load(where)
        if finished is not None:
            return shard, finished
        try:
            record = self._written(shard, f"{where}.parquet")
        except _LackingError as lacking:
            return shard, lacking.missing
        storage.write_bytes(f"{where}.json", record.model_dump_json(indent=2).encode())
        return shard, record

    @cached_property
    def features(self) -> Features:
        """The encoder, or the folder."""
        return _Stored(self.encoder) if self.encoder.stored is not None else _Model(self.encoder, self.device)

    def _written(self, shard: Shard, uri: str) -> ShardFeatures:
        images, lacking = 0, list[str]()
        with storage.writing(uri) as file:
            with parquet_writer(file, SCHEMA) as writer:
                for sample_ids, samples in self._row_groups(shard):
                    images += sum(map(len, samples))
                    lacking += self._write(writer, sample_ids, samples)
            if lacking:
                raise _LackingError(Missing(images=images, count=len(lacking), file=shard.file, first=lacking[0]))
            return ShardFeatures(
                shard=Shard(file=shard.file, split=shard.split, rows=shard.rows, sha256=sha256(file)),
                images=images,
                grid=self.features.grid,
                width=self.features.width,
            )

    def _row_groups(self, shard: Shard) -> Iterator[tuple[list[str], list[list[bytes]]]]:
        """Sample ids and images of the shard."""
        uri = storage.join(self.dataset, shard.file)
        try:
            with storage.opened(uri) as file:
                opened = ParquetStream(file)
                for group in range(opened.num_row_groups):
                    table = opened.read_row_group(group, ["sample_id", "images"])
                    yield table["sample_id"].to_pylist(), table["images"].to_pylist()
        except pa.ArrowInvalid as error:
            raise StorageError(f"{uri} cannot be read ({error}); prepare the data again") from error

    def _write(self, writer: Any, sample_ids: list[str], samples: list[list[bytes]]) -> list[str]:
        """Adds rows, a group each. Returns what the images that have no features are called; then none is added."""
        flat = [
            (name, number, image)
            for name, images in zip(sample_ids, samples, strict=True)
            for number, image in enumerate(images, 1)
        ]
        found = self.features.of([name for name, *_ in flat], [image for *_, image in flat])
        lacking = [named(*place) for place, features in zip(flat, found, strict=True) if features is None]
        if lacking:
            return lacking
        halves = iter([_half(name, features) for (name, *_), features in zip(flat, found, strict=True)])
        for name, images in zip(sample_ids, samples, strict=True):
            row = {
                "sample_id": name,
                "images": [*map(image_digest, images)],
                "features": [next(halves) for _ in images],
            }
            writer.write_table(pa.Table.from_pylist([row], schema=SCHEMA))
        return []


class _LackingError(Exception):
    """Ends the writing of a shard of which some image has no features."""

    def __init__(self, missing: Missing) -> None:
        super().__init__(missing)
        self.missing = missing


class _Model:
    """An encoder on a device."""

    def __init__(self, config: EncoderConfig, device: str) -> None:
        from amvl_core.encoders.pretrained import load_encoder

        self.encoder = load_encoder(config).to(device)
        self.grid, self.width, self.device = self.encoder.grid, self.encoder.width, device
        self.threads = ThreadPoolExecutor(DECODERS)

    def of(self, sample_ids: Sequence[str], images: Sequence[bytes]) -> list[np.ndarray | None]:
        """Of all; a DataError names the sample of an image that cannot be read."""
        import torch

        squares = list(self.threads.map(self._square, sample_ids, images))
        found: list[np.ndarray | None] = []
        for start in range(0, len(squares), BATCH):
            pixels_B3SS = torch.from_numpy(np.stack(squares[start : start + BATCH])).to(self.device)
            found += list(self.encoder(pixels_B3SS).cpu().numpy())
        return found

    def _square(self, sample_id: str, image: bytes) -> np.ndarray:
        try:
            return square(image, self.encoder.size)
        except PictureError as error:
            raise DataError(f"{sample_id}: an image of the prepared dataset cannot be read: {error}") from error


class _Stored:
    """A folder of features."""

    def __init__(self, config: EncoderConfig) -> None:
        assert config.stored is not None
        self.folder = StoredFeatures(config.stored)
        self.grid, self.width = self.folder.grid, self.folder.width

    def of(self, sample_ids: Sequence[str], images: Sequence[bytes]) -> list[np.ndarray | None]:
        """Of the images that the folder knows."""
        return [self.folder.find(image_digest(image)) for image in images]


def _half(sample_id: str, features: np.ndarray | None) -> bytes:
    """Features as they are stored."""
    assert features is not None
    with np.errstate(over="ignore"):
        half = features.astype(STORED_DTYPE)
    if not np.isfinite(half).all():
        raise DataError(
            f"{sample_id}: its features are not all finite in half precision (the largest is "
            f"{np.abs(features).max():g}); set data.features to false, which computes them in every step"
        )
    return half.tobytes()


def _load(where: str) -> ShardFeatures | None:
    if not storage.exists(f"{where}.json"):
        return None
    try:
        return ShardFeatures.model_validate_json(storage.read_bytes(f"{where}.json"))
    except ValidationError as error:
        raise StorageError(f"{where}.json is damaged; remove it to redo that part") from error


def _nothing_for(encoder: EncoderConfig, lacking: list[Missing], images: int) -> str:
    first = min(lacking, key=lambda one: one.file)
    count = sum(one.count for one in lacking)
    return (
        f"encoder {encoder.name}: {count:,} of {images:,} images have no features in {encoder.stored}, the first is "
        f"{first.first}; {ADVICE}"
    )
