"""Bytes that one GPU holds, by part, at the moment of a training step at which it holds most.

The activations are those that `rows/packed.py` leaves for backward, counted tensor by tensor; tests hold the sum
to measured peaks. What is not counted: activations of the heads (a few slots), of a frozen vision encoder (gone before
the text stack runs), and the allocator's fragmentation, for which the planner keeps a reserve.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal

from amvl_core.backbones.spread import stretches
from amvl_core.rows.spans import Piece, Rows, Span, of_one_row
from infra.plan.shapes import TextShape, VisionShape

Offload = Literal["none", "optimizer", "parameters"]
"""`trainer.offload`."""
OFFLOADS: dict[Offload, int] = {"none": 0, "optimizer": 1, "parameters": 3}
"""The ZeRO stage that each needs, from the least to the most that is moved."""
BUCKET = 500_000_000
"""Elements of DeepSpeed's gradient bucket (`reduce_bucket_size`), which it fills and reduces."""
LIVE = 1_000_000_000
"""Elements that ZeRO-3 keeps gathered at most (`stage3_max_live_parameters`)."""


@dataclass(frozen=True)
class Step:
    """What is kept and made while one micro-batch runs.

    `rows` are those of the text stack, `labels` the rows of logits, `patches` those of a trained vision encoder.
    `width` is the bytes of an element. `trained` says whether the layers have gradients. `cut`: each row is
    differentiated in a call of its own (`rows/cut.py`).
    """

    rows: Rows
    labels: int
    patches: int
    width: int
    checkpointing: bool
    trained: bool
    cut: bool = False


@dataclass(frozen=True)
class Moment:
    """One moment of a step, in bytes."""

    name: str
    activations: float = 0.0
    logits: float = 0.0
    key_values: float = 0.0
    waiting_gradients: float = 0.0
    workspace: float = 0.0

    @property
    def total(self) -> float:
        """Bytes beyond weights, gradients and optimiser."""
        return self.activations + self.logits + self.key_values + self.waiting_gradients + self.workspace


def step_peak(text: TextShape, vision: VisionShape, step: Step) -> Moment:
    """The moment of forward and backward at which most is held."""
    return max(_moments(text, vision, step), key=lambda moment: moment.total)


@dataclass(frozen=True)
class _Row:
    """Of one packed row and each of its layers: bytes kept for backward, and those that backward makes again."""

    kept: list[float]
    again: list[float]
    key_values: float
    fixed: float
    norm: float
    workspace: float


def _moments(text: TextShape, vision: VisionShape, step: Step) -> Iterator[Moment]:
    """The end of forward; each layer in backward, the last row's last layer first; the embedding at the end.

    A weight that is used in several rows gets its gradient in as many parts: those of the later rows wait, unreduced,
    until the first row's arrives, unless the graph is cut between them (docs/decisions/30). Keys and values that later
    rows see get theirs layer by layer.
    """
    seeing = [{piece.row for span in spans for piece in span.context} for spans in step.rows]
    last_seen = [max(n for n, seen in enumerate(seeing) if n == row or row in seen) for row in range(len(step.rows))]
    made = _made_columns(step.rows)
    rows = [_row(text, spans, step, made[row], shared=last_seen[row] > row) for row, spans in enumerate(step.rows)]
    layers, width, size = text.num_hidden_layers, step.width, text.hidden_size
    seen, block = _vision(vision, step)
    forward = seen + sum(sum(row.kept) + row.fixed + row.norm for row in rows)
    held = sum(row.key_values for row in rows) * layers
    # log-softmax, its gradient and the gradient of the loss, in float32; then the output layer's own gradient.
    wide, narrow = 12.0 * step.labels * text.vocab_size, float(width * step.labels * text.vocab_size)
    head = float(width * text.vocab_size * size)
    yield Moment("loss", forward, wide, held)
    yield Moment("output layer", forward, narrow, held, workspace=head)
    for number in reversed(range(len(rows))):
        row, first = rows[number], number == 0
        before = seen + sum(sum(other.kept) + other.fixed + other.norm for other in rows[:number])
        for layer in reversed(range(layers)):
            behind = layers - 1 - layer if number == len(rows) - 1 else layers
            waiting = 0 if len(rows) == 1 or step.cut else layer + 1 if first else behind
            gone = first and step.cut and step.checkpointing  # values: each layer makes its own again
            key_values = (1 if gone else 2) * (layer + 1) * row.key_values  # with gradient
            for other, last in zip(rows[:number], last_seen, strict=False):
                back = layers if number < last else layers - 1 - layer if number == last else 0
                key_values += (layers + back) * other.key_values
            yield Moment(
                f"row {number + 1}, layer {layer + 1}",
                before + sum(row.kept[: layer + 1]) + row.fixed + row.again[layer],
                key_values=key_values,
                waiting_gradients=float(width * waiting * text.layer) if step.trained else 0.0,
                workspace=row.workspace,
            )
    yield Moment("vision", seen + block, workspace=float(width * step.patches * vision.intermediate_size))
    yield Moment("embedding", seen + rows[0].fixed, workspace=head + 2.0 * width * _count(step.rows[0]) * size)


def _row(text: TextShape, spans: Sequence[Span], step: Step, made: int, *, shared: bool) -> _Row:
    """What one row of the text stack leaves. `made` columns of other rows are copied to blocks for it.

    `shared`: a later row sees its keys and values.
    """
    rows, size, width, layers = _count(spans), text.hidden_size, step.width, text.num_hidden_layers
    kept = [_layer(text, spans, width, last=layer == layers - 1) for layer in range(layers)]
    again, key_values = [0.0] * layers, 0.0
    if step.checkpointing:
        # float32 norms keep the layer's input itself, which is the checkpoint.
        again = [layer - (width * rows * size if width == 4 else 0) for layer in kept]
        kept = [float(width * rows * size)] * layers
    if shared:
        key_values = 2.0 * width * rows * text.kv_size
        if not step.checkpointing and any(not span.context for span in spans):
            kept = [layer - key_values for layer in kept]
    fixed = _masks(text, spans, width) + 2.0 * width * rows * (size // text.num_attention_heads)
    fixed += 2.0 * width * made * text.kv_size * layers
    norm = float(_norm(width) * sum(span.read for span in spans) * size)
    gradient = size * text.intermediate_size if step.trained else 0
    workspace = float(width * (rows * text.intermediate_size + rows * size + gradient))
    return _Row(kept, again, key_values, fixed, norm, workspace)


def _layer(text: TextShape, spans: Sequence[Span], width: int, *, last: bool) -> float:
    """Bytes that one layer keeps for backward; in the last one only the rows that are read ask and go on."""
    rows, size = _count(spans), text.hidden_size
    asked = [span.read if last else span.rows for span in spans]
    total = sum(asked)
    continued = sum(count for span, count in zip(spans, asked, strict=True) if count != span.keys)
    plain = total if continued < total else 0  # views of one tensor, which is kept whole
    keys = rows if any(not span.context for span in spans) else 0
    keys += sum(span.keys for span in spans if span.context)  # joined with what they continue
    softmax = 0
    if of_one_row(spans):  # at once: scores are joined, and of keys those of other such rows
        plain, continued = total, -total
        keys = sum(1 + sum(piece.rows == 1 for piece in span.context) for span in spans)
        softmax = (4 if width == 4 else 4 + width) * text.num_attention_heads * sum(span.keys for span in spans)
    norms = _norm(width) * (rows + total) * size
    picked = width * total * size if total < rows else 0
    attention = width * size * (plain + continued + 2 * total)  # queries, outputs, outputs of all spans joined
    attention += 2 * width * text.kv_size * keys + 4 * text.num_attention_heads * total + softmax
    return float(norms + picked + attention + 4 * width * total * text.intermediate_size)


def _made_columns(rows: Rows) -> list[int]:
    """Of each row of one-row spans, columns of the blocks that are made for it of rows before and kept.

    Those that see the same of a row share a block.
    """
    made: set[tuple[int, tuple[tuple[Piece, ...], ...]]] = set()
    columns = [0] * len(rows)
    for number, spans in enumerate(rows):
        for row in range(number) if of_one_row(spans) else ():
            seen = tuple(tuple(piece for piece in span.context if piece.row == row) for span in spans)
            if (row, seen) not in made:
                made.add((row, seen))
                columns[number] += len(spans) * max(sum(piece.rows for piece in pieces) for pieces in seen)
    return columns


def _norm(width: int) -> int:
    """Bytes of a norm per element: a float32 copy unless the input is one and is kept itself, scaled, weighted."""
    return 4 + 2 * width


def _masks(text: TextShape, spans: Sequence[Span], width: int) -> float:
    """Masks of the spans that continue another, for the inner layers and for the last one."""
    group = text.num_attention_heads // text.num_key_value_heads
    pairs = sum(count * span.keys for span in spans for count in (span.rows, span.read) if count != span.keys)
    return float(width * group * pairs)


def _vision(vision: VisionShape, step: Step) -> tuple[float, float]:
    """What a trained vision encoder keeps for backward, and what it makes again of one block under checkpointing.

    Of a block queries, keys, values, outputs, norms and the gated MLP; of the merger its norm and two layers.
    """
    size, hidden, width = vision.hidden_size, vision.intermediate_size, step.width
    block = 2 * _norm(width) * size + width * (7 * size + 4 * hidden)
    merger = _norm(width) * size + 3 * width * size
    if step.checkpointing:
        return float(step.patches * (vision.depth * width * size + merger)), float(step.patches * block)
    return float(step.patches * (vision.depth * block + merger)), 0.0


def _count(spans: Sequence[Span]) -> int:
    return sum(span.rows for span in spans)


@dataclass(frozen=True)
class States:
    """Bytes of a rank's share of what outlives a step, and of DeepSpeed's buffers; `host` is in the CPU's memory."""

    weights: float
    gradients: float
    optimiser: float
    buffers: float
    stepping: float
    """Made while the optimiser steps, when no activation is held: the float32 gradient of the rank's share."""
    host: float = 0.0


def states(
    total: int,
    trained: int,
    width: int,
    zero_stage: int,
    workers: int,
    offload: Offload = "none",
    largest: int = 0,
) -> States:
    """The shares of `total` parameters, `trained` of them trained, under ZeRO (Rajbhandari et al. 2020, Sec. 5).

    AdamW's two moments and, for bf16 and for every partitioned optimiser, a float32 copy of the weights. Stage 0 in
    bf16 accumulates gradients in bf16, as the engine's configuration leaves it. Offloaded, optimiser and float32
    gradients lie in the CPU's memory, and so does what a rank accumulates of its share from stage 2 on; at stage 1
    whole gradients stay on the GPU until the step. Below stage 3 they pass through a buffer as large as the `largest`
    parameter. Offloaded weights are gathered from the CPU layer by layer. At stage 2 a rank's share of a backward call
    lies beside the sum of the calls before, and is then added.
    """
    share = 1.0 / workers
    gathered = zero_stage == 3 and (workers > 1 or offload == "parameters")
    copies = 12 if width == 2 or zero_stage > 0 else 8
    bucket = min(BUCKET, trained) * width if zero_stage >= 1 and workers > 1 else 0
    live = min(LIVE, total) * width if gathered else 0
    weights = width * total * (share if zero_stage == 3 else 1.0)
    gradients = width * trained * (share if zero_stage >= 2 else 1.0)
    optimiser = copies * trained * (share if zero_stage >= 1 else 1.0)
    stepping = 4.0 * trained * (share if zero_stage >= 1 else 1.0) if copies == 12 else 0.0
    if offload == "none":
        added = gradients if zero_stage == 2 else 0.0
        return States(weights, gradients, optimiser, bucket + live + added, stepping)
    host = optimiser + stepping + (gradients if zero_stage >= 2 else 0.0)
    moved = offload == "parameters"
    passing = width * largest if zero_stage < 3 else 0
    return States(
        weights=0.0 if moved else weights,
        gradients=gradients if zero_stage == 1 else 0.0,
        optimiser=0.0,
        buffers=float(bucket + live + passing),
        stepping=0.0,
        host=host + (weights if moved else 0.0),
    )


def evaluation(text: TextShape, total: int, width: int, tokens: int, written: int, gpus: int) -> float:
    """Bytes on the fullest of `gpus` GPUs with one model, which answers prompts of `tokens` tokens with `written` more.

    These are the weights, the keys and values of its layers (`amvl_core/backbones/spread.py`), and what one layer makes
    of the prompts.
    """
    rest, layers = total - text.num_hidden_layers * text.layer, [text.layer] * text.num_hidden_layers
    on = Counter(stretches(rest, layers, gpus))
    layer = text.layer + 2 * text.kv_size * (tokens + written)
    held = max(rest + on[0] * layer, *(on[gpu] * layer for gpu in range(gpus)))
    made = (3 * text.intermediate_size + 2 * text.hidden_size) * tokens
    return float(width * (held + made))


def joined(samples: Sequence[Rows]) -> Rows:
    """The rows of some samples in one micro-batch."""
    return [list(chain.from_iterable(spans)) for spans in zip(*samples, strict=True)]
