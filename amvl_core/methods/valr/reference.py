"""VaLR's objective written out with the stock model: each sample alone, token by token through its slots.

It is what the fed-back rows are compared with, and what a loop over samples, as Coconut's, costs.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache

from amvl_core.contracts.encoders import Patches
from amvl_core.data.batch import Batch
from amvl_core.data.encode import IGNORED
from amvl_core.methods.method import Clock

if TYPE_CHECKING:
    from amvl_core.methods.valr.method import Valr


def one_by_one(method: Valr, batch: Batch, clock: Clock) -> Tensor:
    """L_CE + lambda L_REPA, as a share of the global batch's."""
    model, config = method.model, method.config
    slot, k = model.config.slot_token_id, model.config.num_slots
    embeds, positions = method.embed(batch).split(batch.lengths), method.positions(batch).split(batch.lengths, 1)
    ids, labels = batch.input_ids_N.split(batch.lengths), batch.labels_N.split(batch.lengths)
    targets = {name: method.features(name, batch) for name in method.projectors if batch.targets}
    loss = embeds[0].new_zeros(())
    for sample, (ids_T, labels_T) in enumerate(zip(ids, labels, strict=True)):
        is_slot = (ids_T == slot).tolist()
        final, layer = _states(model, embeds[sample][None], positions[sample][:, None], is_slot, config.align_layer)
        kept = labels_T[1:] != IGNORED
        logits = model.lm_head(final[:-1][kept])
        logits = logits if logits.dtype == torch.float64 else logits.float()
        loss = loss + functional.cross_entropy(logits, labels_T[1:][kept], reduction="sum") / clock.num_tokens
        about = batch.about[sample] if method.projectors else []
        blocks = [(block, number) for block, number in enumerate(about) if number is not None]
        for block, number in blocks:
            slots = layer[torch.tensor(is_slot)][block * k : (block + 1) * k]
            found = [
                _cosine(projector, slots, method.patches[name], config.interpolation, targets[name][number])
                for name, projector in method.projectors.items()
            ]
            share = config.align_weight / len(blocks) / clock.num_samples
            loss = loss - share * torch.stack(found).mean()
    return loss


def _states(model: Any, embeds: Tensor, positions: Tensor, is_slot: list[bool], layer: int) -> tuple[Tensor, Tensor]:
    """Final states and those behind `layer`, [T, D] each: a slot's input is the final state before it."""
    cache = DynamicCache(config=model.config.text_config)
    finals: list[Tensor] = []
    layers: list[Tensor] = []
    for start, stop in _chunks(is_slot):
        inputs = finals[-1][:, -1:] if is_slot[start] else embeds[:, start:stop]
        output = model.model.language_model(
            inputs_embeds=inputs,
            position_ids=positions[..., start:stop],
            past_key_values=cache,
            use_cache=True,
            output_hidden_states=True,
        )
        finals.append(output.last_hidden_state)
        layers.append(output.hidden_states[layer])
    return torch.cat(finals, 1)[0], torch.cat(layers, 1)[0]


def _chunks(is_slot: list[bool]) -> Iterator[tuple[int, int]]:
    """Slots one by one, what stands between them at once."""
    edges = [0, *(i for i in range(1, len(is_slot)) if is_slot[i] or is_slot[i - 1]), len(is_slot)]
    yield from pairwise(edges)


def _cosine(projector: Any, slots: Tensor, patches: Patches, interpolation: str, target: Tensor) -> Tensor:
    """The mean cosine similarity over patches of one block."""
    if interpolation == "bilinear":
        side = round(len(slots) ** 0.5)
        grid = slots.T.reshape(1, -1, side, side)
        up = functional.interpolate(grid, (patches.rows, patches.columns), mode="bilinear")[0].flatten(1).T
    else:
        up = functional.interpolate(slots.T[None], patches.number, mode="linear")[0].T
    found, target = projector(up), target.to(slots.dtype)
    return ((found * target).sum(-1) / found.norm(dim=-1) / target.norm(dim=-1)).mean()
