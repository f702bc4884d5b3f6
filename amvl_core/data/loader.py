"""Micro-batches of one rank in training order, decoded ahead of the step."""

from __future__ import annotations

from collections.abc import Iterator

from torch.utils.data import DataLoader, Dataset

from amvl_core.config import StageConfig
from amvl_core.data.batch import Batch, collate
from amvl_core.data.encode import Encoder
from amvl_core.data.order import global_batch, micro_batches
from amvl_core.data.reader import ShardReader


class StepDataset(Dataset[list[Batch]]):
    """Item `step` is the list of micro-batches that this rank contributes to optimiser step `step`."""

    def __init__(
        self, reader: ShardReader, encoder: Encoder, stage: StageConfig, seed: int, rank: int, world_size: int
    ) -> None:
        self.reader, self.encoder, self.stage = reader, encoder, stage
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.num_tokens = reader.column("num_tokens")

    def __getitem__(self, step: int) -> list[Batch]:
        indices = global_batch(self.seed, step, self.stage.global_batch, self.num_tokens)
        mine = micro_batches(indices, self.rank, self.world_size, self.stage.micro_batch)
        return [self._batch([int(i) for i in block]) for block in mine]

    def _batch(self, indices: list[int]) -> Batch:
        rows = [self.reader[i] for i in indices]
        samples = [self.encoder.encode(row["sample_id"], row["segments"], row["images"]) for row in rows]
        return collate(samples)


def steps_from(dataset: StepDataset, start: int, total: int, workers: int) -> Iterator[list[Batch]]:
    """Items `start` to `total` in order; `workers` processes decode ahead (0: in this process)."""
    loader = DataLoader(
        dataset,
        batch_size=None,
        sampler=range(start, total),
        num_workers=workers,
        prefetch_factor=2 if workers else None,
    )
    return iter(loader)
