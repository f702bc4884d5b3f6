"""Micro-batches of one rank in training order, decoded ahead of the step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from torch.utils.data import DataLoader, Dataset

from amvl_core.contracts.config import StageConfig
from amvl_core.contracts.errors import AmvlError
from amvl_core.contracts.sample import StoredSample
from amvl_core.data.batch import Batch, collate
from amvl_core.data.encode import Encoded
from amvl_core.data.heldout import heldout_batches
from amvl_core.data.order import Sizes, global_batch, micro_batches
from amvl_core.data.reader import ShardReader

HELDOUT = -1
"""The item that is no step."""


class StepDataset(Dataset[list[Batch]]):
    """Item `step` is the list of micro-batches that this rank contributes to optimiser step `step`.

    Item `HELDOUT` is the list of those that it contributes to the held-out loss.
    `encode` is given a row and its number.
    """

    def __init__(
        self,
        reader: ShardReader,
        sizes: Sizes,
        encode: Callable[[int, StoredSample], Encoded],
        stage: StageConfig,
        seed: int,
        rank: int,
        world_size: int,
    ) -> None:
        self.reader, self.sizes, self.encode, self.stage = reader, sizes, encode, stage
        self.seed, self.rank, self.world_size = seed, rank, world_size

    def __getitem__(self, step: int) -> list[Batch]:
        return [self._batch(indices) for indices in self.indices(step)]

    def indices(self, step: int) -> list[list[int]]:
        """The samples of each micro-batch of this rank."""
        if step == HELDOUT:
            turns = heldout_batches(self.sizes.heldout, self.sizes.num_tokens, self.world_size, self.stage.micro_tokens)
            return [turn[self.rank].tolist() for turn in turns]
        whole = global_batch(self.seed, step, self.stage.global_batch, self.sizes, self.stage.data_share)
        turns = micro_batches(whole, self.sizes.num_tokens, self.world_size, self.stage.micro_tokens)
        return [turn[self.rank].tolist() for turn in turns]

    def _batch(self, indices: list[int]) -> Batch:
        return collate([self.encode(i, self.reader[i]) for i in indices])


def read_ahead(dataset: StepDataset, steps: Sequence[int], workers: int) -> Iterator[list[Batch]]:
    """The items of `steps` in order; `workers` processes decode ahead (0: in this process).

    An AmvlError of a loader process is raised as it is. A killed loader process is a RuntimeError, because nothing is
    wrong with the run and its workers may be started again.
    """
    if not workers:
        return map(dataset.__getitem__, steps)
    loader = DataLoader(
        _Caught(dataset),
        batch_size=None,
        sampler=steps,
        num_workers=workers,
        prefetch_factor=2,
        multiprocessing_context="fork",  # starts at once and pickles nothing; the processes touch no device
        worker_init_fn=lambda _: dataset.reader.forget(),
    )
    return _checked(iter(loader), dataset.rank)


def _checked(items: Iterator[list[Batch] | AmvlError], rank: int) -> Iterator[list[Batch]]:
    """Takes each item over while the step before it runs, because mapping its tensors takes some milliseconds."""
    with ThreadPoolExecutor(1) as ahead:
        coming = ahead.submit(next, items, None)
        while True:
            try:
                item = coming.result()
            except RuntimeError as error:
                if "DataLoader worker" not in str(error):
                    raise
                raise RuntimeError(
                    f"a loader process of rank {rank} died ({error}); if memory ran out, lower trainer.loader_workers"
                ) from error
            if item is None:
                return
            if isinstance(item, AmvlError):
                raise item
            coming = ahead.submit(next, items, None)
            yield item


class _Caught(Dataset[list[Batch] | AmvlError]):
    """Gives an AmvlError as an item. Torch would wrap it in a message of its own."""

    def __init__(self, dataset: StepDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, step: int) -> list[Batch] | AmvlError:
        try:
            return self.dataset[step]
        except AmvlError as error:
            return error
