"""Packed rows through the text stack: many causal sequences in one row, some of which continue others.

A row is a list of spans (`amvl_core/rows/spans.py`). A span attends to itself causally and to its context: pieces of
other spans, of the same row or of rows that have been run before. So a prefix is computed once, its keys and values are
shared with gradient, and no mask over it exists. Linear layers, norms and MLPs are the stock modules, called once per
layer and row whatever the row holds.

In the last layer only those rows go on whose output is read; of all others nothing but keys and values is needed.

Shape suffixes: N rows, R rows that go on, T tapped rows, H heads, G key-value heads, C head size, D hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from amvl_core.backbones.backbone import Rope, TextStack
from amvl_core.backbones.spread import device_of
from amvl_core.rows.attention import Context, KeyValues, Plan, plan_row
from amvl_core.rows.spans import Span


def run_row(
    text: TextStack,
    embeds_ND: Tensor,
    positions_3N: Tensor,
    spans: Sequence[Span],
    before: Sequence[Context] = (),
    taps: Mapping[int, Sequence[int]] | None = None,
    around: AbstractContextManager[Any] | None = None,
) -> tuple[Tensor, Context]:
    """Final hidden states of the rows that are read, [R, D], after the last norm; and the row as a context.

    `text` is a stock text model in its parts (`Backbone.text`), `positions_3N` are its positions. `before` are the
    step's rows that have been run, so this one is number `len(before)`. A layer whose `gradient_checkpointing` is on
    is run again in backward.

    `taps` names, for a layer, rows of this row; their hidden states behind it, [T, D], are in the context's `tapped`.
    Layers count as in Hugging Face's `hidden_states`: 0 are the embeddings, the last one is behind the last norm.

    `around` is entered for each layer, also where it is run again in backward.
    """
    if sum(span.rows for span in spans) != len(embeds_ND):
        raise ValueError(f"the spans have {sum(span.rows for span in spans)} rows, the embeddings {len(embeds_ND)}")
    rope, repeats = text.rope(embeds_ND, positions_3N), text.query_groups
    taps, depth, home = taps or {}, len(text.layers), embeds_ND.device
    everywhere, at_the_end = [span.rows for span in spans], _reaching(spans, taps.get(depth, ()))
    plans: dict[tuple[torch.device, bool], Plan] = {}
    hidden_ND, layers, tapped = embeds_ND, [], {}
    for number, layer in enumerate(text.layers):
        if number in taps:
            tapped[number] = _picked(hidden_ND, taps[number]).to(home)
        hidden_ND = hidden_ND.to(device_of(layer, hidden_ND))
        rope = Rope(*(part.to(hidden_ND.device) for part in rope))
        kind = (hidden_ND.device, number == depth - 1)
        if kind not in plans:
            plans[kind] = plan_row(spans, before, at_the_end if kind[1] else everywhere, repeats, hidden_ND)
        now = plans[kind]
        arguments = (text, layer, hidden_ND, rope, now, now.earlier(number), around or nullcontext())
        if layer.gradient_checkpointing and layer.training and torch.is_grad_enabled():
            hidden_ND, key_values = checkpoint(_run_layer, *arguments, use_reentrant=False)
        else:
            hidden_ND, key_values = _run_layer(*arguments)
        layers.append(key_values)
    hidden_RD = text.final_norm(hidden_ND.to(home))
    if depth in taps:
        places = {row: place for place, row in enumerate(now.rows)}
        tapped[depth] = _picked(hidden_RD, [places[row] for row in taps[depth]])
        ends = zip(accumulate(span.rows for span in spans), spans, strict=True)
        hidden_RD = _picked(hidden_RD, [places[row] for end, span in ends for row in range(end - span.read, end)])
    return hidden_RD, Context(spans, layers, tapped)


def _reaching(spans: Sequence[Span], rows: Sequence[int]) -> list[int]:
    """How many last rows of each span hold those that are read and those of `rows` that lie in it."""
    ends = zip(accumulate(span.rows for span in spans), spans, strict=True)
    return [max([span.read, *(end - row for row in rows if end - span.rows <= row < end)]) for end, span in ends]


def _picked(hidden_ND: Tensor, rows: Sequence[int]) -> Tensor:
    return hidden_ND.index_select(0, torch.tensor(rows, dtype=torch.long, device=hidden_ND.device))


def _run_layer(
    text: TextStack,
    layer: Any,
    hidden_ND: Tensor,
    rope: Rope,
    plan: Plan,
    earlier: list[KeyValues],
    around: AbstractContextManager[Any],
) -> tuple[Tensor, KeyValues]:
    """One decoder layer over a row, [R, D], by its stock modules; and the row's keys and values."""
    with around:
        return _layer(text, layer, hidden_ND, rope, plan, earlier)


def _layer(
    text: TextStack, layer: Any, hidden_ND: Tensor, rope: Rope, plan: Plan, earlier: list[KeyValues]
) -> tuple[Tensor, KeyValues]:
    normed_ND = text.normed(layer, hidden_ND)
    own = KeyValues(*text.keys_values(layer, normed_ND, rope))
    if len(plan.rows) < len(hidden_ND):
        hidden_ND, normed_ND, *rope_R = (t.index_select(0, plan.rows_R) for t in (hidden_ND, normed_ND, *rope))
        rope = Rope(*rope_R)
    query_RHC = text.queries(layer, normed_ND, rope)
    attended_RHC = plan.attend(text.attention(layer), query_RHC, own, earlier) if plan.rows else query_RHC
    return text.finished(layer, hidden_ND, attended_RHC), own
