"""The bottleneck mask of one sequence written out pair by pair, for the references."""

from __future__ import annotations

import torch
from torch import Tensor

from amvl_core.methods.method import Method


def written_mask(method: Method, ids_T: Tensor) -> Tensor | None:
    """What a stock model adds to its scores, [1, 1, T, T]; None where the method hides nothing."""
    config = method.model.config
    if not method.config.bottleneck:
        return None
    mask = torch.zeros(1, 1, len(ids_T), len(ids_T), dtype=method.model.dtype, device=method.model.device)
    images, slots = (config.image_token_id, config.video_token_id), getattr(config, "slot_token_ids", None) or []
    for asks, asking in enumerate(ids_T.tolist()):
        for seen, token in enumerate(ids_T.tolist()):
            if seen > asks or (token in images and asking not in (*images, *slots)):
                mask[0, 0, asks, seen] = -torch.inf
    return mask
