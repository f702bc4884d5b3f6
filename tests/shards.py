"""Small prepared datasets for the tests, written as preparation writes them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from amvl_core.contracts import storage
from amvl_core.contracts.records import DatasetRecord, Shard
from amvl_core.contracts.sample import Segment
from data_prep.shards import ShardRow, ShardWriter, sha256, shard_name
from tests.tiny import picture


def row(
    number: int, image_bytes: int | None = None, question: str = "<image>What colour is it?", slots: int = 0
) -> ShardRow:
    """A sample with one picture, or with `image_bytes` of noise in its place; `slots` make a latent block."""
    noise = np.random.default_rng(number).bytes(image_bytes) if image_bytes else picture(number)
    segments = [
        Segment("prompt", question + "?" * (number % 7)),
        *([Segment("latent", num_slots=slots)] if slots else []),
        Segment("answer", "red" if number % 2 else "blue"),
    ]
    return ShardRow(f"train-{number}", "made", segments, [noise], [(32, 32)], 30 + number % 7, "{}")


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
        uri=root, fingerprint="data", schema_version=1, shards=written, kept=kept, dropped={}, reports=[]
    )
