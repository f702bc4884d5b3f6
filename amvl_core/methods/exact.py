"""Sums that come out the same to the last bit in any order: on any number of threads, and with any kernel.

Numbers are first rounded to a grid, on which every partial sum is exact in float64. The rounding looks at one number at
a time and is an operation of IEEE 754, so no thread and no kernel has a say in it either.

Shape suffixes: N rows, C columns, D columns of an output.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

BITS = 52
"""Float64 holds every whole number up to 2^53."""
AT_ONCE = 4096
"""Rows that are widened together: an embedding of half a thousand million numbers is never copied whole."""


def exact_mean(values_NC: Tensor, power: int = 1) -> Tensor:
    """The mean over N of `values ** power`, in float64, [C]."""
    step = _step(values_NC, BITS - len(values_NC).bit_length(), power)
    parts = [_on_grid(part.double() ** power, step).sum(0) for part in values_NC.split(AT_ONCE)]
    return torch.stack(parts).sum(0) / len(values_NC)


def exact_rms(values_NC: Tensor) -> float:
    """The root of the mean square of all values."""
    return math.sqrt(float(exact_mean(exact_mean(values_NC, power=2))))


def exact_linear(layer: nn.Linear, values_NC: Tensor) -> Tensor:
    """What `layer` gives, in float64, [N, D]; its input and its weights are rounded to some 20 bits."""
    bits = (BITS - layer.in_features.bit_length()) // 2
    rows_NC, weight_DC = (_on_grid(value.double(), _step(value, bits)) for value in (values_NC, layer.weight))
    return rows_NC @ weight_DC.T + layer.bias.double()


def _step(values: Tensor, bits: int, power: int = 1) -> float:
    """The power of two by which the largest of `values ** power` becomes a whole number of `bits` bits."""
    low, high = values.detach().aminmax()
    return math.ldexp(1.0, math.frexp(max(-float(low), float(high)) ** power)[1] - bits)


def _on_grid(values: Tensor, step: float) -> Tensor:
    """Rounded to whole multiples of `step`."""
    return (values / step).round() * step
