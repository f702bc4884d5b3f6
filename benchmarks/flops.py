"""FLOPs of matrix products in one training step, counted from shapes: the limit that a measured ratio is held to.

A forward pass costs 2 FLOPs per weight and row, attention 4 per head dimension and pair of query and key; backward
costs twice the forward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from amvl_core.packed import Span


def row_flops(config: Any, spans: Sequence[Span]) -> float:
    """Forward FLOPs of the layers of a text stack over one packed row (`amvl_core/packed.py`)."""
    size, layers = config.hidden_size, config.num_hidden_layers
    kv = size // config.num_attention_heads * config.num_key_value_heads
    total = 0.0
    for span in spans:
        seen = span.context[1] if span.context else 0
        for layer in range(layers):
            asked = span.read if layer == layers - 1 else span.rows
            total += 2 * span.rows * size * 2 * kv
            total += 2 * asked * (2 * size * size + 3 * size * config.intermediate_size)
            pairs = asked * (seen + span.rows - asked) + asked * (asked + 1) // 2
            total += 4 * size * pairs
    return total


def sft_flops(config: Any, x: int, y: int, logit_rows: int) -> float:
    """A step of plain fine-tuning on x and y tokens, with logits on `logit_rows` of them."""
    whole = [Span(x + y, read=x + y)]
    return 3.0 * (row_flops(config, whole) + _head_flops(config, logit_rows))


def three_pass_flops(config: Any, x: int, y: int, k: int) -> float:
    """AMVL by three whole passes."""
    rows = (x + k, x + y + k, x + k + 1 + y)
    layers = sum(row_flops(config, [Span(length, read=length)]) for length in rows)
    return 3.0 * (layers + _head_flops(config, y))


def shared_prefix_flops(config: Any, x: int, y: int, k: int) -> float:
    """AMVL on a shared prefix, as `amvl_core/prefix.py` lays it out."""
    first = [Span(x + k, k), Span(y + k, k, context=(0, x))]
    second = [Span(k + y, y, context=(0, x))]
    layers = row_flops(config, first) + row_flops(config, second)
    return 3.0 * (layers + _head_flops(config, y))


def prefill_flops(config: Any, x: int, k: int | None) -> float:
    """Up to the first token behind a prompt of x tokens; with `k`, of a latent block that is filled behind it."""
    if k is None:
        return row_flops(config, [Span(x, read=x)]) + _head_flops(config, 1)
    reading, decoding = Span(x + 1 + k, read=x + 1 + k), Span(k + 1, read=k + 1, context=(0, x + 1))
    return row_flops(config, [reading]) + row_flops(config, [decoding]) + _head_flops(config, 1)


def decode_flops(config: Any, seen: int) -> float:
    """One further token behind `seen`."""
    return row_flops(config, [Span(1, read=1, context=(0, seen))]) + _head_flops(config, 1)


def _head_flops(config: Any, rows: int) -> float:
    return 2.0 * rows * float(config.hidden_size) * float(config.vocab_size)
