"""Alignment of a block's slots with a frozen encoder's patches (L_REPA).

Shape suffixes: B blocks, K slots, P patches, D hidden size, E the encoder's width.
"""

from __future__ import annotations

from math import isqrt
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional

from amvl_core.contracts.encoders import Patches
from amvl_core.methods.losses import widen


class Projector(nn.Sequential):
    """psi: Linear, SiLU, Linear, SiLU, Linear (the shape of REPA's), [..., D] -> [..., E]."""

    def __init__(self, size: int, hidden: int, width: int) -> None:
        super().__init__(
            nn.Linear(size, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, width)
        )


def upsampled(slots_BKD: Tensor, patches: Patches, interpolation: Literal["bilinear", "linear"]) -> Tensor:
    """States of K slots as states of P patches, [B, P, D].

    bilinear: the slots are a square, which is stretched over the patches' grid. linear: along the sequence.
    """
    rows_BDK = slots_BKD.transpose(1, 2)
    if interpolation == "linear":
        return functional.interpolate(rows_BDK, patches.number, mode="linear").transpose(1, 2)
    side = isqrt(slots_BKD.shape[1])
    grid = (patches.rows, patches.columns)
    square_BDRC = functional.interpolate(rows_BDK.unflatten(2, (side, side)), grid, mode="bilinear")
    return square_BDRC.flatten(2).transpose(1, 2)


def similarities(projected_BPE: Tensor, features_BPE: Tensor) -> Tensor:
    """The mean over its patches of each block's cosine similarity with its target, [B]."""
    wide_BPE = widen(projected_BPE)
    return functional.cosine_similarity(wide_BPE, features_BPE.to(wide_BPE.dtype), dim=-1).mean(1)
