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


def shared_prefix_rows(x: int, y: int, k: int, draws: int = 1) -> Rows:
    """One sample of AMVL as `amvl_core/methods/amvl/prefix.py` lays it out: the context row and the decoder row."""
    prefix = (Piece(row=0, span=0, start=0, stop=x),)
    context = [Span(x + k, k), Span(y + k, k, prefix)]
    return [context, [Span(k + y, y, prefix)] * draws]


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


def sft_flops(config: Any, x: int, y: int, logit_rows: int) -> float:
    """A step of plain fine-tuning on x and y tokens, with logits on `logit_rows` of them."""
    return 3.0 * (_rows_flops(config, sft_rows(x, y)) + _head_flops(config, logit_rows))


def three_pass_flops(config: Any, x: int, y: int, k: int, logit_rows: int | None = None, draws: int = 1) -> float:
    """AMVL by three whole passes; logits on `logit_rows` of y, on all of it where that is not given."""
    lengths = (x + k, x + y + k, *[x + k + 1 + y] * draws)
    layers = _rows_flops(config, [[Span(length, read=length)] for length in lengths])
    return 3.0 * (layers + draws * _head_flops(config, y if logit_rows is None else logit_rows))


def shared_prefix_flops(config: Any, x: int, y: int, k: int, logit_rows: int | None = None, draws: int = 1) -> float:
    """AMVL on a shared prefix; logits on `logit_rows` of y, on all of it where that is not given."""
    layers = _rows_flops(config, shared_prefix_rows(x, y, k, draws))
    return 3.0 * (layers + draws * _head_flops(config, y if logit_rows is None else logit_rows))


def prefill_flops(config: Any, x: int, k: int | None) -> float:
    """Up to the first token behind a prompt of x tokens; with `k`, of a latent block that is filled behind it."""
    if k is None:
        return row_flops(config, [Span(x, read=x)]) + _head_flops(config, 1)
    prompt = (Piece(row=0, span=0, start=0, stop=x + 1),)
    reading, decoding = Span(x + 1 + k, read=x + 1 + k), Span(k + 1, read=k + 1, context=prompt)
    return row_flops(config, [reading]) + row_flops(config, [decoding]) + _head_flops(config, 1)


def decode_flops(config: Any, seen: int) -> float:
    """One further token behind `seen`."""
    return row_flops(config, [Span(1, read=1, context=(Piece(0, 0, 0, seen),))]) + _head_flops(config, 1)


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


def _rows_flops(config: Any, rows: Rows) -> float:
    return sum(row_flops(config, spans) for spans in rows)


def _head_flops(config: Any, rows: int) -> float:
    return 2.0 * rows * float(config.hidden_size) * float(config.vocab_size)
