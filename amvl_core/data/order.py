"""The order of training samples: a pure function of seed, step and sizes, whatever the number of workers."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from amvl_core.contracts.errors import ConfigError

WINDOW_BLOCKS = 512
"""Blocks whose rows are mixed with each other. An epoch reads from so many at once: 16,384 samples, at 32 a block."""


@dataclass(frozen=True, eq=False)
class Sizes:
    """What the order depends on: tokens of each sample [rows], and rows of each block [blocks], in stored order.

    A block is what is read at once (a row group), and has rows. A sample's tokens are those of its sequence in the
    stage, with what the method adds. The work that a method does for the sample is in proportion to them. The rows
    `heldout` are in no order.
    """

    num_tokens: np.ndarray
    block_rows: np.ndarray
    heldout: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))

    def __post_init__(self) -> None:
        assert len(self.num_tokens) == self.block_rows.sum() > len(self.heldout)

    @property
    def trained(self) -> int:
        """How many samples are there to train on."""
        return len(self.num_tokens) - len(self.heldout)


class Order:
    """A permutation of all samples that are trained on, for one epoch, in two levels. A slice of it is an array.

    The blocks are permuted and cut into windows of about `WINDOW_BLOCKS`, and the rows of each window are permuted. So
    a reader that holds two windows reads every block once per epoch. Fewer than 1.5 `WINDOW_BLOCKS` blocks are one
    window, and the order is then a uniform permutation. What is kept is in proportion to the blocks: each window draws
    its permutation from its own place in the generator's stream, when it is asked for.

    `kept` [rows] says which samples count, where not all do.
    """

    def __init__(self, seed: int, epoch: int, sizes: Sizes, kept: np.ndarray | None = None) -> None:
        bits = np.random.PCG64([seed, epoch, len(sizes.num_tokens)])
        blocks = np.random.Generator(bits).permutation(len(sizes.block_rows))
        windows = max(1, round(len(blocks) / WINDOW_BLOCKS))
        self._state, self._heldout, self._kept = bits.state, sizes.heldout, kept
        self._rows = sizes.block_rows[blocks]
        self._starts = (np.cumsum(sizes.block_rows) - sizes.block_rows)[blocks]
        self._cuts = -(-np.arange(windows + 1) * len(blocks) // windows)
        self._drawn = _ends(self._rows, self._cuts)
        self._ends = _ends(_trained(sizes, kept)[blocks], self._cuts)
        self._window = lru_cache(maxsize=2)(self._permuted)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, places: slice) -> np.ndarray:
        start, stop, _ = places.indices(len(self))
        pieces = [np.empty(0, dtype=np.int64)]
        while start < stop:
            window = int(np.searchsorted(self._ends, start, side="right")) - 1
            first, last = (int(end) for end in self._ends[window : window + 2])
            pieces.append(self._window(window)[start - first : stop - first])
            start = last
        return np.concatenate(pieces)

    def _permuted(self, window: int) -> np.ndarray:
        """The samples of one window, in order."""
        blocks = slice(*self._cuts[window : window + 2])
        rows = self._rows[blocks]
        in_order = np.repeat(self._starts[blocks] - (np.cumsum(rows) - rows), rows) + np.arange(rows.sum())
        bits = np.random.PCG64()
        bits.state = self._state
        bits.advance(int(self._drawn[window]))  # a number for each row of the windows before
        order: np.ndarray = in_order[np.argsort(np.random.Generator(bits).random(len(in_order)), kind="stable")]
        counted = ~np.isin(order, self._heldout)
        if self._kept is not None:
            counted &= self._kept[order]
        return order[counted]


def _ends(counts: np.ndarray, cuts: np.ndarray) -> np.ndarray:
    """The sum of the `counts` of all blocks before each cut."""
    sums: np.ndarray = np.append(0, np.cumsum(counts))[cuts]
    return sums


def _trained(sizes: Sizes, kept: np.ndarray | None) -> np.ndarray:
    """How many samples of each block are trained on."""
    ends = np.cumsum(sizes.block_rows)
    if kept is not None:
        counted: np.ndarray = np.add.reduceat(kept, ends - sizes.block_rows, dtype=np.int64)
        return counted
    return sizes.block_rows - np.bincount(np.searchsorted(ends, sizes.heldout, side="right"), minlength=len(ends))


@lru_cache(maxsize=2)
def epoch_order(seed: int, epoch: int, sizes: Sizes, share: float = 1.0) -> Order:
    """The order of one epoch, of a share of the samples: the first of epoch 0, so a smaller one is part of a larger."""
    return Order(seed, epoch, sizes, None if share == 1 else _share(seed, sizes, share))


@lru_cache(maxsize=1)
def _share(seed: int, sizes: Sizes, share: float) -> np.ndarray:
    """Which samples belong to a share [rows]."""
    first, rows = Order(seed, 0, sizes), rows_of_share(sizes.trained, share)
    kept = np.zeros(len(sizes.num_tokens), dtype=bool)
    for start in range(0, rows, 2**20):
        kept[first[start : min(start + 2**20, rows)]] = True
    return kept


def rows_of_share(rows: int, share: float) -> int:
    """How many of `rows` samples a share is, at least one."""
    return max(1, round(rows * share))


def global_batch(seed: int, step: int, size: int, sizes: Sizes, share: float = 1.0) -> np.ndarray:
    """The `size` sample indices of optimiser step `step`, the longest first.

    Steps read one stream of epochs laid end to end, so every sample of the share is seen once per epoch and no batch is
    short.
    """
    rows = rows_of_share(sizes.trained, share)
    taken: list[np.ndarray] = []
    position, end = step * size, (step + 1) * size
    while position < end:
        epoch, offset = divmod(position, rows)
        piece = epoch_order(seed, epoch, sizes, share)[offset : offset + end - position]
        taken.append(piece)
        position += len(piece)
    indices = np.concatenate(taken)
    return indices[np.argsort(-sizes.num_tokens[indices], kind="stable")]


def micro_batches(indices: np.ndarray, num_tokens: np.ndarray, world_size: int, budget: int) -> list[list[np.ndarray]]:
    """A global batch, the longest first, in turns; in each turn one micro-batch for every rank.

    No micro-batch is empty. None has more than `budget` tokens, except a single sample that alone is longer. There are
    as few turns as this allows. The samples of a turn are neighbours in length. They are spread over the ranks so that
    all have about as many tokens: each sample, the longest first, goes to the rank that has the fewest (Graham 1969).
    """
    lengths = num_tokens[indices]
    most = len(indices) // world_size
    fewest = math.ceil(int(lengths.sum()) / (world_size * budget))
    for turns in range(min(fewest, most), most + 1) if most else ():
        division = [_spread(turn, num_tokens, world_size) for turn in _turns(indices, lengths, turns, world_size)]
        if all(load <= budget for _, load in division):
            return [turn for turn, _ in division]
    raise ConfigError(
        f"a global batch of {len(indices)} samples, the longest of {int(lengths.max())} tokens, cannot be divided over "
        f"{world_size} workers within micro_tokens = {budget}; make global_batch a multiple of cluster.num_workers"
    )


def _turns(indices: np.ndarray, lengths: np.ndarray, turns: int, world_size: int) -> Iterator[np.ndarray]:
    """Cuts the batch into `turns` stretches of about as many tokens each, all but the last a multiple of the ranks.

    Samples of a turn are alike in length. So if each rank gets equally many, the ranks are alike in tokens.
    """
    tokens = np.cumsum(lengths)
    most = len(indices) // world_size
    start = 0
    for turn in range(1, turns):
        samples = np.searchsorted(tokens, tokens[-1] * turn / turns)
        groups = min(max(round(samples / world_size), start // world_size + 1), most - (turns - turn))
        yield indices[start : groups * world_size]
        start = groups * world_size
    yield indices[start:]


def _spread(indices: np.ndarray, num_tokens: np.ndarray, world_size: int) -> tuple[list[np.ndarray], int]:
    """The ranks' shares of a turn, and the most tokens that one of several samples has."""
    held: list[list[int]] = [[] for _ in range(world_size)]
    loads = [(0, rank) for rank in range(world_size)]
    for index, length in zip(indices.tolist(), num_tokens[indices].tolist(), strict=True):
        load, rank = loads[0]
        held[rank].append(index)
        heapq.heapreplace(loads, (load + max(1, length), rank))
    most = max((load for load, rank in loads if len(held[rank]) > 1), default=0)
    return [np.array(samples) for samples in held], most


def num_steps(epochs: float | None, steps: int | None, rows: int, size: int) -> int:
    """The optimiser steps of a stage, which is given a number of either epochs or steps."""
    if steps is not None:
        return steps
    assert epochs is not None
    return max(1, math.ceil(epochs * rows / size))
