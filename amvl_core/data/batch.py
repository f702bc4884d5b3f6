"""Encoded samples -> one `Batch`, packed end to end without padding.

Shape suffixes: N tokens of all samples, P patches, I images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from amvl_core.data.encode import IGNORED, Encoded


@dataclass
class Batch:
    """Samples one after the other. All tensors are on the CPU. A method plans its step there and moves what it runs.

    `lengths` and `num_images` count each sample's tokens and images; `pixel_values` [P, ...] and `image_grid_thw`
    [I, 3] hold the images of all samples in order, and are None where no sample has one. `about` says of each latent
    block of each sample which target it is about, if any; `targets` hold those of all samples, by encoder.
    `filled_with` are the tokens whose embeddings filled slots take, of each sample, counted through the batch.
    `teacher` holds the samples' second sequences, where they have one.
    """

    sample_ids: list[str]
    lengths: list[int]
    num_images: list[int]
    input_ids_N: Tensor
    labels_N: Tensor
    pixel_values: Tensor | None
    image_grid_thw: Tensor | None
    about: list[list[int | None]] = field(default_factory=list)
    targets: dict[str, Tensor] = field(default_factory=dict)
    filled_with: list[list[int]] = field(default_factory=list)
    teacher: Batch | None = None

    @property
    def label_counts(self) -> list[int]:
        """Of each sample, the tokens that the next-token loss is taken on. Nothing predicts a sample's first token."""
        return [int((labels_N[1:] != IGNORED).sum()) for labels_N in self.labels_N.split(self.lengths)]

    @property
    def num_label_tokens(self) -> int:
        """The tokens of all samples that the next-token loss is taken on."""
        return sum(self.label_counts)

    @property
    def num_tokens(self) -> int:
        """The number of tokens of all samples."""
        return sum(self.lengths)


def collate(samples: Sequence[Encoded]) -> Batch:
    """Packs samples in their order."""
    pixels = [sample.pixel_values for sample in samples if sample.pixel_values is not None]
    grids = [sample.image_grid_thw for sample in samples if sample.image_grid_thw is not None]
    teachers = [sample.teacher for sample in samples if sample.teacher is not None]
    return Batch(
        sample_ids=[sample.sample_id for sample in samples],
        lengths=[len(sample.input_ids) for sample in samples],
        num_images=[0 if sample.image_grid_thw is None else len(sample.image_grid_thw) for sample in samples],
        input_ids_N=torch.from_numpy(np.concatenate([sample.input_ids for sample in samples])),
        labels_N=torch.from_numpy(np.concatenate([sample.labels for sample in samples])),
        pixel_values=torch.from_numpy(np.concatenate(pixels)) if pixels else None,
        image_grid_thw=torch.from_numpy(np.concatenate(grids)) if grids else None,
        about=_about(samples),
        targets=_targets(samples),
        filled_with=_filled_with(samples),
        teacher=collate(teachers) if teachers else None,
    )


def _about(samples: Sequence[Encoded]) -> list[list[int | None]]:
    """Each sample's, counted through the batch."""
    found: list[list[int | None]] = []
    before = 0
    for sample in samples:
        found.append([None if number is None else before + number for number in sample.targets.about])
        before += len(next(iter(sample.targets.arrays.values()), ()))
    return found


def _filled_with(samples: Sequence[Encoded]) -> list[list[int]]:
    starts = accumulate((len(sample.input_ids) for sample in samples), initial=0)
    return [[start + token for token in sample.filled_with] for start, sample in zip(starts, samples, strict=False)]


def _targets(samples: Sequence[Encoded]) -> dict[str, Tensor]:
    names = dict.fromkeys(name for sample in samples for name in sample.targets.arrays)
    return {
        name: torch.from_numpy(np.concatenate([s.targets.arrays[name] for s in samples if name in s.targets.arrays]))
        for name in names
    }
