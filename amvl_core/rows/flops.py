"""FLOPs of matrix products in one training step, counted from shapes.

The limit that a measured ratio is held to, and what the planner's hours come from. A forward pass costs 2 FLOPs per
weight and row, attention 4 per head dimension and pair of query and key; backward costs twice the forward pass.

`config` is a text or vision configuration by Hugging Face's names: a stock one, or a shape of `infra/plan/shapes.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from amvl_core.rows.spans import Piece, Rows, Span

PEAK_BF16_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12}
"""Dense bf16 FLOPs per second of a GPU, by what its name contains (NVIDIA's data sheets, SXM)."""


def sft_rows(x: int, y: int) -> Rows:
    """One sample of plain fine-tuning: one row, read everywhere."""
    return [[Span(x + y, read=x + y)]]


def row_flops(config: Any, spans: Sequence[Span]) -> float:
    """Forward FLOPs of the layers of a text stack over one packed row: of a row and every row that it sees."""
    size, layers = config.hidden_size, config.num_hidden_layers
    kv = size // config.num_attention_heads * config.num_key_value_heads
    total = 0.0
    for span in spans:
        for layer in range(layers):
            asked = span.read if layer == layers - 1 else span.rows
            total += 2 * span.rows * size * 2 * kv
            total += 2 * asked * (2 * size * size + 3 * size * config.intermediate_size)
            pairs = asked * (span.keys - asked) + asked * (asked + 1) // 2
            total += 4 * size * pairs
    return total


def rows_flops(config: Any, rows: Rows, logit_rows: int) -> float:
    """Forward FLOPs of the packed rows of one step, with logits on `logit_rows` of them."""
    head = 2.0 * logit_rows * float(config.hidden_size) * float(config.vocab_size)
    return sum(row_flops(config, spans) for spans in rows) + head


def prefill_flops(config: Any, x: int) -> float:
    """Up to the first token behind a prompt of x tokens, as the stock model runs it: every layer on all of them."""
    return rows_flops(config, [[Span(x, read=x)]], 1)


def decode_flops(config: Any, seen: int) -> float:
    """One further token behind `seen`."""
    return rows_flops(config, [[Span(1, read=1, context=(Piece(0, 0, 0, seen),))]], 1)


def vision_flops(config: Any, patches: float, images: float) -> float:
    """Forward FLOPs of Qwen2.5-VL's vision encoder over `patches` patches of `images` equal images."""
    size, merged = config.hidden_size, config.spatial_merge_size**2
    window = min((config.window_size // config.patch_size) ** 2, patches / max(images, 1))
    whole = len(config.fullatt_block_indexes)
    weights = config.depth * (4 * size**2 + 3 * size * config.intermediate_size)
    weights += config.in_channels * config.temporal_patch_size * config.patch_size**2 * size
    merger = (merged * size) ** 2 + merged * size * config.out_hidden_size
    keys = whole * patches / max(images, 1) + (config.depth - whole) * window
    return float(2 * patches * (weights + merger / merged) + 4 * size * patches * keys)
