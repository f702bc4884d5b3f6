"""The order of training samples: a pure function of seed, step and sizes, whatever the number of workers."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np


@lru_cache(maxsize=2)
def epoch_order(seed: int, epoch: int, rows: int) -> np.ndarray:
    """A permutation of `rows` sample indices for one epoch."""
    return np.random.Generator(np.random.PCG64([seed, epoch, rows])).permutation(rows)


def global_batch(seed: int, step: int, size: int, num_tokens: np.ndarray) -> np.ndarray:
    """The `size` sample indices of optimiser step `step`, sorted by length.

    Steps read one stream of epochs laid end to end, so every sample is seen once per epoch and no batch is short.
    `num_tokens` [rows] are the samples' lengths.
    """
    rows = len(num_tokens)
    taken: list[np.ndarray] = []
    position, end = step * size, (step + 1) * size
    while position < end:
        epoch, offset = divmod(position, rows)
        piece = epoch_order(seed, epoch, rows)[offset : offset + end - position]
        taken.append(piece)
        position += len(piece)
    indices = np.concatenate(taken)
    return indices[np.argsort(num_tokens[indices], kind="stable")]


def micro_batches(indices: np.ndarray, rank: int, world_size: int, size: int) -> list[np.ndarray]:
    """The micro-batches of one rank: at each turn the ranks hold neighbours in length, so none waits for another."""
    blocks = indices.reshape(-1, size)
    return list(blocks[rank::world_size])


def num_steps(epochs: float | None, steps: int | None, rows: int, size: int) -> int:
    """Optimiser steps of a stage that gives either a number of epochs or of steps."""
    if steps is not None:
        return steps
    assert epochs is not None
    return max(1, math.ceil(epochs * rows / size))
