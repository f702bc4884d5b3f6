"""Fed-back states written out with the stock model: each sample alone, token by token through its slots.

It is what the fed-back rows are compared with, and what a loop over samples costs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache

from amvl_core.data.batch import Batch
from amvl_core.data.encode import IGNORED
from amvl_core.methods.method import Clock, Method
from amvl_core.methods.written_mask import written_mask


class Read(NamedTuple):
    """One sample: its labels [T], which tokens are slots, and its final states and all `hidden_states`, [T, D] each."""

    labels_T: Tensor
    is_slot: list[bool]
    final_TD: Tensor
    layers_TD: list[Tensor]


def one_by_one(method: Method, batch: Batch, masked: bool = True) -> Iterator[Read]:
    """Every sample of the batch, by the stock model on a cache; `masked`: under the method's mask."""
    model = method.model
    embeds, positions = method.embed(batch).split(batch.lengths), method.positions(batch).split(batch.lengths, 1)
    ids, labels = batch.input_ids_N.split(batch.lengths), batch.labels_N.split(batch.lengths)
    for sample, (ids_T, labels_T) in enumerate(zip(ids, labels, strict=True)):
        is_slot = (ids_T == model.config.slot_token_id).tolist()
        mask = written_mask(model, ids_T) if masked else None
        yield Read(labels_T, is_slot, *_states(model, embeds[sample][None], positions[sample][:, None], is_slot, mask))


def next_token_loss(method: Method, batch: Batch, clock: Clock) -> Tensor:
    """The objective of a method with next-token loss alone, as a share of the global batch's."""
    losses = [token_loss(method.model, read) for read in one_by_one(method, batch)]
    return torch.stack(losses).sum() / clock.num_tokens


def token_loss(model: Any, read: Read) -> Tensor:
    """The sum of -log p over the label tokens of a sample."""
    kept = read.labels_T[1:] != IGNORED
    logits = model.lm_head(read.final_TD[:-1][kept])
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return functional.cross_entropy(logits, read.labels_T[1:][kept].to(logits.device), reduction="sum")


def _states(
    model: Any, embeds: Tensor, positions: Tensor, is_slot: Sequence[bool], mask: Tensor | None
) -> tuple[Tensor, list[Tensor]]:
    """Final states and those behind all layers, [T, D]; a slot's input is what `fed` makes of the state before."""
    cache = DynamicCache(config=model.config.text_config)
    finals: list[Tensor] = []
    layers: list[tuple[Tensor, ...]] = []
    for start, stop in chunks(is_slot):
        inputs = model.fed(finals[-1][:, -1:]) if is_slot[start] else embeds[:, start:stop]
        output = model.model.language_model(
            inputs_embeds=inputs,
            attention_mask=None if mask is None else mask[..., start:stop, :stop],
            position_ids=positions[..., start:stop],
            past_key_values=cache,
            use_cache=True,
            output_hidden_states=True,
        )
        finals.append(output.last_hidden_state)
        layers.append(output.hidden_states)
    return torch.cat(finals, 1)[0], [torch.cat(parts, 1)[0] for parts in zip(*layers, strict=True)]


def chunks(is_slot: Sequence[bool]) -> Iterator[tuple[int, int]]:
    """Slots one by one, what stands between them at once."""
    edges = [0, *(i for i in range(1, len(is_slot)) if is_slot[i] or is_slot[i - 1]), len(is_slot)]
    yield from pairwise(edges)
