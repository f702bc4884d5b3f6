"""Schedules of the KL weights: pure functions of the optimiser step."""

from __future__ import annotations


def ramp(step: int, start: int, warmup: int, maximum: float) -> float:
    """0 before `start`, then linearly to `maximum` within `warmup` optimiser steps (App. E: beta_t, gamma_t)."""
    return maximum * min(1.0, max(0, step - start) / warmup)
