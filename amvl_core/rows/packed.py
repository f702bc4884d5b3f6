"""Packed rows through the text stack: many causal sequences in one row, some of which continue a common prefix.

A row is a list of spans. A span attends to itself causally and, where it has a context, to the first keys of another
span: of the same row, or of a row that has been run before. So a prefix is computed once, its keys and values are
shared with gradient, and no mask over it exists. Linear layers, norms and MLPs are the stock modules, called once per
layer and row whatever the row holds.

In the last layer only those rows go on whose output is read; of all others nothing but keys and values is needed.

Shape suffixes: N rows, R rows that are read, M queries and S keys of one span, H heads, G key-value heads, C head
size, D hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import rotate_half


@dataclass(frozen=True)
class Span:
    """`rows` consecutive rows; the final hidden states of the last `read` of them are wanted.

    `context = (span, seen)`: before its own rows it sees the first `seen` rows of that span of the context row.
    """

    rows: int
    read: int
    context: tuple[int, int] | None = None


class KeyValues(NamedTuple):
    """Keys and values of one layer, after rotation, [N, G, C] each."""

    keys: Tensor
    values: Tensor


@dataclass
class Context:
    """A row that has been run: its spans, and each layer's keys and values, through which gradient flows back."""

    spans: Sequence[Span]
    layers: list[KeyValues]


def run_row(
    text_model: Any, embeds_ND: Tensor, positions_3N: Tensor, spans: Sequence[Span], context: Context | None = None
) -> tuple[Tensor, Context]:
    """Final hidden states of the rows that are read, [R, D], after the last norm; and the row as a context.

    `text_model` is a stock Qwen2.5-VL text model, `positions_3N` are M-RoPE positions. Without `context` the contexts
    of the spans are spans of this row itself. A layer whose `gradient_checkpointing` is on is run again in backward.
    """
    if sum(span.rows for span in spans) != len(embeds_ND):
        raise ValueError(f"the spans have {sum(span.rows for span in spans)} rows, the embeddings {len(embeds_ND)}")
    cos_1NC, sin_1NC = text_model.rotary_emb(embeds_ND, positions_3N[:, None])
    rope = (cos_1NC[0], sin_1NC[0])
    repeats = text_model.config.num_attention_heads // text_model.config.num_key_value_heads
    everywhere = _Plan(spans, context, [span.rows for span in spans], repeats, embeds_ND)
    at_the_end = _Plan(spans, context, [span.read for span in spans], repeats, embeds_ND)
    hidden_ND, layers = embeds_ND, []
    for number, layer in enumerate(text_model.layers):
        plan = at_the_end if number == len(text_model.layers) - 1 else everywhere
        shared = context.layers[number] if context else None
        arguments = (layer, hidden_ND, rope, plan, shared)
        if layer.gradient_checkpointing and layer.training and torch.is_grad_enabled():
            hidden_ND, key_values = checkpoint(_run_layer, *arguments, use_reentrant=False)
        else:
            hidden_ND, key_values = _run_layer(*arguments)
        layers.append(key_values)
    return text_model.norm(hidden_ND), Context(spans, layers)


class _Plan:
    """How the spans of a row attend in one layer, where the last `queries` rows of each ask."""

    def __init__(
        self, spans: Sequence[Span], context: Context | None, queries: list[int], repeats: int, like: Tensor
    ) -> None:
        self.queries = queries
        self.sizes = [span.rows for span in spans]
        self.all_rows = queries == self.sizes
        self.pieces, self.seen = _cut(context.spans if context else spans, [span.context for span in spans])
        ends = torch.tensor(self.sizes).cumsum(0).tolist()
        chosen = [torch.arange(end - asked, end) for end, asked in zip(ends, queries, strict=True)]
        self.rows_R = torch.cat(chosen).to(like.device)
        self.masks = [
            _lower_right(asked, (span.context[1] if span.context else 0) + span.rows, repeats, like)
            for span, asked in zip(spans, queries, strict=True)
        ]

    def attend(self, module: Any, query_RHC: Tensor, own: KeyValues, shared: KeyValues | None) -> Tensor:
        """Attention of every span, [R, H, C]."""
        before = [part.split(self.pieces) for part in (own if shared is None else shared)]
        outputs = []
        rows = zip(query_RHC.split(self.queries), *(part.split(self.sizes) for part in own), strict=True)
        for number, (query_MHC, key_SGC, value_SGC) in enumerate(rows):
            if seen := self.seen[number]:
                key_SGC, value_SGC = (
                    torch.cat([*(part[i] for i in seen), behind])
                    for part, behind in zip(before, (key_SGC, value_SGC), strict=True)
                )
            outputs.append(_attend(module, query_MHC, key_SGC, value_SGC, self.masks[number]))
        return torch.cat(outputs)


def _cut(sources: Sequence[Span], contexts: Sequence[tuple[int, int] | None]) -> tuple[list[int], list[list[int]]]:
    """Sizes that cut the rows of `sources` where contexts end, and for each context the pieces that it sees.

    One cut for all, because the gradient of a slice is as large as what it was sliced from.
    """
    pieces: list[int] = []
    seen: dict[tuple[int, int], list[int]] = {}
    for number, source in enumerate(sources):
        first, begin = len(pieces), 0
        for end in sorted({source.rows, *(context[1] for context in contexts if context and context[0] == number)}):
            pieces.append(end - begin)
            seen[number, end] = list(range(first, len(pieces)))
            begin = end
    return pieces, [seen[context] if context else [] for context in contexts]


def _run_layer(
    layer: Any, hidden_ND: Tensor, rope: tuple[Tensor, Tensor], plan: _Plan, shared: KeyValues | None
) -> tuple[Tensor, KeyValues]:
    """One decoder layer over a row, [R, D], by its stock modules; and the row's keys and values."""
    attention = layer.self_attn
    size = attention.head_dim
    normed_ND = layer.input_layernorm(hidden_ND)
    key_NGC = _rotate(attention.k_proj(normed_ND).unflatten(-1, (-1, size)), *rope)
    own = KeyValues(key_NGC, attention.v_proj(normed_ND).unflatten(-1, (-1, size)))
    if not plan.all_rows:
        hidden_ND, normed_ND, *rope_R = (t.index_select(0, plan.rows_R) for t in (hidden_ND, normed_ND, *rope))
        rope = (rope_R[0], rope_R[1])
    query_RHC = _rotate(attention.q_proj(normed_ND).unflatten(-1, (-1, size)), *rope)
    hidden_RD = hidden_ND + attention.o_proj(plan.attend(attention, query_RHC, own, shared).flatten(1))
    return hidden_RD + layer.mlp(layer.post_attention_layernorm(hidden_RD)), own


def _rotate(value_NHC: Tensor, cos_NC: Tensor, sin_NC: Tensor) -> Tensor:
    """Rotary embedding, as the stock model applies it."""
    return value_NHC * cos_NC[:, None] + rotate_half(value_NHC) * sin_NC[:, None]


def _attend(module: Any, query_MHC: Tensor, key_SGC: Tensor, value_SGC: Tensor, mask: Tensor | None) -> Tensor:
    """Grouped-query attention of M queries at the end of S keys, [M, H, C]."""
    queries, heads, size = query_MHC.shape
    groups = key_SGC.shape[1]
    key_1GSC, value_1GSC = key_SGC.transpose(0, 1)[None], value_SGC.transpose(0, 1)[None]
    options = {"scale": module.scaling, "dropout_p": module.attention_dropout if module.training else 0.0}
    if mask is None:
        output_1HMC = functional.scaled_dot_product_attention(
            query_MHC.transpose(0, 1)[None], key_1GSC, value_1GSC, is_causal=True, enable_gqa=True, **options
        )
        return output_1HMC[0].transpose(0, 1)
    # The heads of a group become rows that share its keys: nothing is repeated, and every kernel takes it.
    shape = (groups, heads // groups)
    packed = query_MHC.unflatten(1, shape).permute(1, 2, 0, 3).reshape(1, groups, -1, size)
    output = functional.scaled_dot_product_attention(packed, key_1GSC, value_1GSC, attn_mask=mask, **options)
    return output[0].unflatten(1, (shape[1], queries)).permute(2, 0, 1, 3).flatten(1, 2)


def _lower_right(queries: int, keys: int, repeats: int, like: Tensor) -> Tensor | None:
    """What the last `queries` of `keys` rows do not see, as an additive mask [repeats x M, S], one for all layers.

    None for a whole causal sequence, which needs no mask.
    """
    if queries == keys:
        return None
    hidden = torch.ones(queries, keys, dtype=torch.bool, device=like.device).triu(keys - queries + 1)
    return (
        torch.zeros(queries, keys, dtype=like.dtype, device=like.device)
        .masked_fill(hidden, -torch.inf)
        .repeat(repeats, 1)
    )
