"""Small prepared datasets for the tests, written as preparation writes them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa

from amvl_core.contracts import storage
from amvl_core.contracts.records import DatasetRecord, Shard
from amvl_core.contracts.sample import StoredSample
from data_prep.shards import SCHEMA_VERSION, ShardRow, ShardWriter, sha256, shard_name, shard_table
from tests.tiny import picture


def row(number: int, image_bytes: int | None = None, question: str = "<image>What colour is it?") -> ShardRow:
    """A sample with one picture, or with `image_bytes` of noise in its place."""
    noise = np.random.default_rng(number).bytes(image_bytes) if image_bytes else picture(number)
    answer = "red" if number % 2 else "blue"
    sample = sample_of(f"train-{number}", question + "?" * (number % 7), answer, [noise], source="made")
    return ShardRow(sample, [(32, 32)], 30 + number % 7)


def sample_of(
    sample_id: str,
    question: str,
    answer: str,
    images: Sequence[bytes] = (),
    steps: Sequence[str] = (),
    source: str = "s",
    task: str = "t",
) -> StoredSample:
    """A stored sample without regions."""
    return StoredSample(sample_id, source, task, question, tuple(steps), (None,) * len(steps), answer, tuple(images))


def table(samples: Sequence[StoredSample]) -> pa.Table:
    """As preparation writes them; sizes and token counts are made up."""
    return shard_table(
        [ShardRow(sample, [(32, 32)] * len(sample.images), 15 + 4 * len(sample.images)) for sample in samples]
    )


def write(root: str, shards: Sequence[Sequence[ShardRow]]) -> DatasetRecord:
    """A dataset of these shards, all of them training data."""
    written = []
    with TemporaryDirectory() as folder:
        for number, rows in enumerate(shards):
            file = Path(folder) / shard_name("train", number)
            writer = ShardWriter(file)
            for item in rows:
                writer.write(item)
            writer.close()
            storage.write_bytes(storage.join(root, file.name), file.read_bytes())
            written.append(Shard(file=file.name, split="train", rows=len(rows), sha256=sha256(file)))
    kept = sum(shard.rows for shard in written)
    return DatasetRecord(
        uri=root, fingerprint="data", schema_version=SCHEMA_VERSION, shards=written, kept=kept, dropped={}, reports=[]
    )
