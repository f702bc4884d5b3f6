"""Attention over the spans of a packed row (`amvl_core/rows/spans.py`), in two ways.

Most spans have many rows: a call for each, its keys joined in one tensor. Where each span is one row, such as a state
that is fed back, a copy of its context would cost more than the row does: all spans are asked at once, on blocks of
keys that are made once, and scores are joined instead of keys.

Shape suffixes: N rows of a packed row, R rows that ask, M queries and S keys of one span, B spans of one row each,
H heads, G key-value heads, Q heads of one group, C head size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, chain, pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from amvl_core.rows.spans import Piece, Rows, Span, located, of_one_row


class KeyValues(NamedTuple):
    """Keys and values of one layer, after rotation: [N, G, C] each of a row, [B, G, S, C] each of a block."""

    keys: Tensor
    values: Tensor


@dataclass
class Context:
    """A row that has been run: its spans, each layer's keys and values, and the hidden states that were tapped.

    Gradient flows back through all of them.
    """

    spans: Sequence[Span]
    layers: list[KeyValues]
    tapped: dict[int, Tensor]
    blocks: dict[tuple[torch.device, tuple[tuple[Piece, ...], ...]], _Block] = field(default_factory=dict)
    """What spans of one row each have seen of it on a device, for the next ones that see the same."""


def plan_row(
    spans: Sequence[Span], before: Sequence[Context], queries: Sequence[int], repeats: int, like: Tensor
) -> Plan:
    """How a row attends after the rows `before`, where the last `queries` rows of each span ask.

    `repeats` query heads share a key-value head; `like` says where and in which dtype.
    """
    kind = _OneRowSpans if of_one_row(spans) else _LongSpans
    return kind(spans, before, queries, repeats, like)


class Plan(ABC):
    """What attention needs of a row in every layer: `rows` are those that ask."""

    def __init__(
        self, spans: Sequence[Span], before: Sequence[Context], queries: Sequence[int], repeats: int, like: Tensor
    ) -> None:
        self.before, self.own_row = before, len(before)
        self.sizes, self.queries = [span.rows for span in spans], list(queries)
        ends = accumulate(self.sizes)
        self.rows = [row for end, asked in zip(ends, queries, strict=True) for row in range(end - asked, end)]
        self.rows_R = torch.tensor(self.rows, dtype=torch.long, device=like.device)
        self._lay_out(spans, [*(context.spans for context in before), spans], repeats, like)

    @abstractmethod
    def _lay_out(self, spans: Sequence[Span], rows: Rows, repeats: int, like: Tensor) -> None:
        """What is the same in every layer. `rows` are all packed rows so far, with this one."""

    @abstractmethod
    def earlier(self, layer: int) -> list[KeyValues]:
        """What `attend` needs of the rows before, in one layer."""

    @abstractmethod
    def attend(self, module: Any, query_RHC: Tensor, own: KeyValues, earlier: list[KeyValues]) -> Tensor:
        """Attention of the rows that ask, [R, H, C]; `own` are the row's keys and values, [N, G, C]."""


class _LongSpans(Plan):
    """One call a span."""

    def _lay_out(self, spans: Sequence[Span], rows: Rows, repeats: int, like: Tensor) -> None:
        ranges = {piece: located(rows, piece) for span in spans for piece in span.context}
        # Each row is cut once for all spans, because the gradient of a slice is as large as what it was sliced from.
        edges = {piece.row: {0, sum(span.rows for span in rows[piece.row])} for piece in ranges}
        for piece, ends in ranges.items():
            edges[piece.row].update(ends)
        self.cuts = {row: sorted(edges[row]) for row in sorted(edges)}
        places = {piece: slice(*map(self.cuts[piece.row].index, ends)) for piece, ends in ranges.items()}
        self.contexts = [[(piece.row, places[piece]) for piece in span.context] for span in spans]
        self.masks = [
            _lower_right(asked, span.keys, repeats, like) for span, asked in zip(spans, self.queries, strict=True)
        ]

    def earlier(self, layer: int) -> list[KeyValues]:
        return [self.before[row].layers[layer] for row in self.cuts if row < self.own_row]

    def attend(self, module: Any, query_RHC: Tensor, own: KeyValues, earlier: list[KeyValues]) -> Tensor:
        pieces = {
            row: [part.split([end - begin for begin, end in pairwise(cuts)]) for part in source]
            for (row, cuts), source in zip(self.cuts.items(), [*earlier, own], strict=False)
        }
        outputs = []
        rows = zip(query_RHC.split(self.queries), *(part.split(self.sizes) for part in own), strict=True)
        for (query_MHC, *key_value), context, mask in zip(rows, self.contexts, self.masks, strict=True):
            if len(query_MHC):
                key_SGC, value_SGC = (
                    torch.cat([*chain.from_iterable(pieces[row][kind][place] for row, place in context), behind])
                    if context
                    else behind
                    for kind, behind in enumerate(key_value)
                )
                outputs.append(_attend(module, query_MHC, key_SGC, value_SGC, mask))
        return torch.cat(outputs)


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


class _OneRowSpans(Plan):
    """All spans at once, each of one row; what they see of a packed row is one block."""

    def _lay_out(self, spans: Sequence[Span], rows: Rows, repeats: int, like: Tensor) -> None:
        chains = [(*spans[number].context, Piece(self.own_row, number, 0, 1)) for number in self.rows]
        self.blocks: dict[int, _Block] = {}
        for row in sorted({piece.row for pieces in chains for piece in pieces if piece.rows}):
            pieces_seen = tuple(tuple(piece for piece in pieces if piece.row == row) for pieces in chains)
            kept, seen = {} if row == self.own_row else self.before[row].blocks, (like.device, pieces_seen)
            if seen not in kept:
                ranges = [[range(*located(rows, piece)) for piece in pieces] for pieces in pieces_seen]
                kept[seen] = _Block([list(chain.from_iterable(of_span)) for of_span in ranges], like)
            self.blocks[row] = kept[seen]
        masks = [block.mask_BS for block in self.blocks.values()]
        self.mask_B11S = torch.cat(_short_ones_joined(masks, 1), 1)[:, None, None] if masks else None

    def earlier(self, layer: int) -> list[KeyValues]:
        sources = ((block, self.before[row]) for row, block in self.blocks.items() if row < self.own_row)
        return [block.of_layer(layer, source.layers[layer]) for block, source in sources]

    def attend(self, module: Any, query_RHC: Tensor, own: KeyValues, earlier: list[KeyValues]) -> Tensor:
        blocks = [*earlier, self.blocks[self.own_row].of(own)]
        keys, values = (_short_ones_joined(parts, 2) for parts in zip(*blocks, strict=True))
        query_BGQC = query_RHC.unflatten(1, (keys[0].shape[1], -1)) * module.scaling
        scores_BGQS = torch.cat([query_BGQC @ key_BGSC.mT for key_BGSC in keys], -1) + self.mask_B11S
        exact = torch.promote_types(scores_BGQS.dtype, torch.float32)
        weights_BGQS = scores_BGQS.softmax(-1, dtype=exact).to(scores_BGQS.dtype)
        weights_BGQS = functional.dropout(weights_BGQS, module.attention_dropout, module.training)
        parts = weights_BGQS.split([key_BGSC.shape[2] for key_BGSC in keys], -1)
        output_BGQC = torch.stack([part @ value for part, value in zip(parts, values, strict=True)]).sum(0)
        return output_BGQC.flatten(1, 2)


class _Block:
    """Rows of a packed row, for each of B spans, padded to S; their keys and values are [B, G, S, C] each."""

    def __init__(self, rows: Sequence[Sequence[int]], like: Tensor) -> None:
        longest = max(map(len, rows))
        self.index_BS = torch.tensor([[*seen, *[0] * (longest - len(seen))] for seen in rows], device=like.device)
        sizes_B1 = torch.tensor([[len(seen)] for seen in rows], device=like.device)
        padding_BS = torch.arange(longest, device=like.device) >= sizes_B1
        self.mask_BS = torch.zeros_like(padding_BS, dtype=like.dtype).masked_fill(padding_BS, -torch.inf)
        self.layers: dict[int, KeyValues] = {}

    def of(self, row: KeyValues) -> KeyValues:
        """The block of one layer of the row, with gradient."""
        index_N, shape = self.index_BS.flatten(), self.index_BS.shape
        found = (part.index_select(0, index_N).unflatten(0, shape).transpose(1, 2).contiguous() for part in row)
        return KeyValues(*found)

    def of_layer(self, layer: int, row: KeyValues) -> KeyValues:
        """As `of`, made once. A pass without gradient may be the first that asks."""
        if layer not in self.layers:
            with torch.enable_grad():
                self.layers[layer] = self.of(row)
        return self.layers[layer]


def _short_ones_joined(parts: Sequence[Tensor], dim: int) -> list[Tensor]:
    """Parts longer than one as they are; behind them all others in one, as a chain of fed-back states has many."""
    long, short = ([part for part in parts if (part.shape[dim] > 1) is kind] for kind in (True, False))
    return [*long, torch.cat(short, dim)] if short else long
