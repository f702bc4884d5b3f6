"""The bottleneck mask written out, independent of what makes it in the sources."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def explicit(config: Any, ids: list[int]) -> Tensor:
    """The mask of one sequence, [1, 1, T, T], pair by pair."""
    mask = torch.zeros(1, 1, len(ids), len(ids), dtype=torch.float64)
    images, slots = (config.image_token_id, config.video_token_id), getattr(config, "slot_token_ids", None) or []
    for asks, asking in enumerate(ids):
        for seen, token in enumerate(ids):
            if seen > asks or (token in images and asking not in (*images, *slots)):
                mask[0, 0, asks, seen] = -torch.inf
    return mask
