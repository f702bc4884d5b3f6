"""The bottleneck mask of one sequence written out pair by pair, for the references."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from amvl_core.rows.bottleneck import has_bottleneck


def written_mask(model: Any, ids_T: Tensor) -> Tensor | None:
    """What a stock model adds to its scores, [1, 1, T, T]; None where nothing is hidden."""
    if not has_bottleneck(model):
        return None
    config = model.config
    mask = torch.zeros(1, 1, len(ids_T), len(ids_T), dtype=model.dtype)
    images, slots = (config.image_token_id, config.video_token_id), getattr(config, "slot_token_ids", None) or []
    for asks, asking in enumerate(ids_T.tolist()):
        for seen, token in enumerate(ids_T.tolist()):
            if seen > asks or (token in images and asking not in (*images, *slots)):
                mask[0, 0, asks, seen] = -torch.inf
    return mask.to(model.device)
