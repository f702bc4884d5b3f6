"""Losses that several methods share."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from amvl_core.data.batch import Batch
from amvl_core.data.encode import IGNORED


def token_losses(logits_NV: Tensor, labels_N: Tensor) -> Tensor:
    """-log p of each label token, [N], in float32 or wider (Eq. 11).

    A micro-batch's loss is their sum divided by the number of label tokens of the global batch, so that the sum over
    micro-batches is the mean over all tokens wherever they were placed.
    """
    return functional.cross_entropy(widen(logits_NV), labels_N, reduction="none")


def next_labels(batch: Batch) -> Tensor:
    """The label that each token predicts, [N]; a sample's last token predicts none."""
    labels_N = batch.labels_N.roll(-1)
    labels_N[torch.tensor(batch.lengths).cumsum(0) - 1] = IGNORED
    return labels_N


def finite_samples(batch: Batch, losses_N: Tensor) -> list[bool]:
    """Of each sample, whether the losses of its label tokens are finite."""
    return [bool(part.isfinite().all()) for part in losses_N.split(batch.label_counts)]


def widen(value: Tensor) -> Tensor:
    """In float32, or as it is where it is wider."""
    return value if value.dtype == torch.float64 else value.float()
