"""The learning rate: a pure function of the optimiser step."""

from __future__ import annotations

import math


def cosine_with_warmup(step: int, total: int, warmup_ratio: float) -> float:
    """Factor on the learning rate for optimiser step `step` of `total`: linear warm-up, then cosine to 0 (App. E)."""
    warmup = math.ceil(total * warmup_ratio)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))
