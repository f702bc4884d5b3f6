"""Encoded samples -> one `Batch`, packed end to end without padding.

Shape suffixes: N tokens of all samples, P patches, I images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from amvl_core.data.encode import IGNORED, Encoded


class Visual(NamedTuple):
    """An image or a video as a stock model takes it; `seconds` are those of a step in time, 0 of a still image."""

    pixels: np.ndarray
    grid: np.ndarray
    seconds: float


_NAMES = {False: ("pixel_values", "image_grid_thw"), True: ("pixel_values_videos", "video_grid_thw")}
"""Of still images and of videos."""


def visuals_of(sample: Encoded) -> list[Visual]:
    """The images and videos of a sample in order."""
    if sample.pixel_values is None or sample.image_grid_thw is None or sample.seconds is None:
        return []
    parts = np.split(sample.pixel_values, sample.image_grid_thw.prod(-1).cumsum()[:-1])
    return [Visual(*one) for one in zip(parts, sample.image_grid_thw, sample.seconds.tolist(), strict=True)]


def visual_inputs(visuals: Sequence[Visual]) -> dict[str, Tensor]:
    """Images and videos as arguments of a stock model."""
    inputs: dict[str, Tensor] = {}
    for moves, (patches, grid) in _NAMES.items():
        if own := [visual for visual in visuals if (visual.seconds > 0) is moves]:
            inputs[patches] = torch.from_numpy(np.concatenate([visual.pixels for visual in own]))
            inputs[grid] = torch.from_numpy(np.stack([visual.grid for visual in own]))
            if moves:
                inputs["second_per_grid_ts"] = torch.tensor([visual.seconds for visual in own], dtype=torch.float64)
    return inputs


@dataclass
class Batch:
    """Samples one after the other. All tensors are on the CPU. A method plans its step there and moves what it runs.

    `lengths` and `num_images` count each sample's tokens and images, a video being one; `pixel_values` [P, ...] and
    `image_grid_thw` [I, 3] hold the images of all samples in order, and are None where no sample has one. `seconds_I`
    are the seconds that a step in time of a video covers, 0 for a still image. `about` says of each latent block of
    each sample which target it is about, if any; `targets` hold those of all samples, by encoder.
    `hidden_tokens` counts, of each sample, those behind its latent block that are not to be written; empty: no sample
    has any.
    `filled_with` are the tokens whose embeddings filled slots take, of each sample, counted through the batch.
    `observed` are the tokens of observations, of each sample, counted through the batch.
    `words` are the token ids of what each latent block of each sample stands for.
    `teacher` holds the samples' second sequences, where they have one.
    """

    sample_ids: list[str]
    lengths: list[int]
    num_images: list[int]
    input_ids_N: Tensor
    labels_N: Tensor
    pixel_values: Tensor | None
    image_grid_thw: Tensor | None
    seconds_I: Tensor | None = None
    about: list[list[int | None]] = field(default_factory=list)
    targets: dict[str, Tensor] = field(default_factory=dict)
    hidden_tokens: list[int] = field(default_factory=list)
    filled_with: list[list[int]] = field(default_factory=list)
    observed: list[list[int]] = field(default_factory=list)
    words: list[list[list[int]]] = field(default_factory=list)
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
    seconds = [sample.seconds for sample in samples if sample.seconds is not None]
    teachers = [sample.teacher for sample in samples if sample.teacher is not None]
    return Batch(
        sample_ids=[sample.sample_id for sample in samples],
        lengths=[len(sample.input_ids) for sample in samples],
        num_images=[0 if sample.image_grid_thw is None else len(sample.image_grid_thw) for sample in samples],
        input_ids_N=torch.from_numpy(np.concatenate([sample.input_ids for sample in samples])),
        labels_N=torch.from_numpy(np.concatenate([sample.labels for sample in samples])),
        pixel_values=torch.from_numpy(np.concatenate(pixels)) if pixels else None,
        image_grid_thw=torch.from_numpy(np.concatenate(grids)) if grids else None,
        seconds_I=torch.from_numpy(np.concatenate(seconds)) if seconds else None,
        about=_about(samples),
        targets=_targets(samples),
        hidden_tokens=[sample.hidden_tokens for sample in samples],
        filled_with=_tokens(samples, [sample.filled_with for sample in samples]),
        observed=_tokens(samples, [sample.observed for sample in samples]),
        words=[[list(block) for block in sample.words] for sample in samples],
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


def _tokens(samples: Sequence[Encoded], numbers: Sequence[Sequence[int]]) -> list[list[int]]:
    """Tokens of each sample, counted through the batch."""
    starts = accumulate((len(sample.input_ids) for sample in samples), initial=0)
    return [[start + token for token in own] for start, own in zip(starts, numbers, strict=False)]


def _targets(samples: Sequence[Encoded]) -> dict[str, Tensor]:
    names = dict.fromkeys(name for sample in samples for name in sample.targets.arrays)
    return {
        name: torch.from_numpy(np.concatenate([s.targets.arrays[name] for s in samples if name in s.targets.arrays]))
        for name in names
    }
