"""Encoded samples -> one `Batch` of tensors, padded on the right.

Shape suffixes: B samples, T tokens, P patches, I images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from amvl_core.data.encode import IGNORED, Encoded


@dataclass
class Batch:
    """`lengths` says where padding begins; causal attention needs no mask for padding on the right."""

    sample_ids: list[str]
    input_ids_BT: Tensor
    labels_BT: Tensor
    lengths_B: Tensor
    pixel_values: Tensor | None
    image_grid_thw: Tensor | None

    @property
    def num_label_tokens(self) -> int:
        """Tokens that the next-token loss is taken on."""
        return int((self.labels_BT[:, 1:] != IGNORED).sum())

    @property
    def num_tokens(self) -> int:
        """Tokens that are not padding."""
        return int(self.lengths_B.sum())

    def to(self, device: torch.device) -> Batch:
        """The same batch on `device`."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return Batch(**{k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in values.items()})


def collate(samples: Sequence[Encoded], pad_token_id: int) -> Batch:
    """Pads to the longest sample."""
    longest = max(len(sample.input_ids) for sample in samples)
    ids_BT = np.full((len(samples), longest), pad_token_id, dtype=np.int64)
    labels_BT = np.full((len(samples), longest), IGNORED, dtype=np.int64)
    for row, sample in enumerate(samples):
        ids_BT[row, : len(sample.input_ids)] = sample.input_ids
        labels_BT[row, : len(sample.labels)] = sample.labels
    pixels = [sample.pixel_values for sample in samples if sample.pixel_values is not None]
    grids = [sample.image_grid_thw for sample in samples if sample.image_grid_thw is not None]
    return Batch(
        sample_ids=[sample.sample_id for sample in samples],
        input_ids_BT=torch.from_numpy(ids_BT),
        labels_BT=torch.from_numpy(labels_BT),
        lengths_B=torch.tensor([len(sample.input_ids) for sample in samples]),
        pixel_values=torch.from_numpy(np.concatenate(pixels)) if pixels else None,
        image_grid_thw=torch.from_numpy(np.concatenate(grids)) if grids else None,
    )
