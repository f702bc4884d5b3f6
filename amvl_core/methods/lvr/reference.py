"""LVR's objective written out with the stock model, one sample at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from amvl_core.data.batch import Batch
from amvl_core.methods.feedback.reference import Read, token_loss
from amvl_core.methods.method import Clock
from amvl_core.methods.written_mask import written_mask

if TYPE_CHECKING:
    from amvl_core.methods.lvr.method import Lvr


def objective(method: Lvr, batch: Batch, clock: Clock) -> Tensor:
    """L_CE + w L_MSE, as a share of the global batch's."""
    model = method.model
    embeds, positions = method.embed(batch), method.positions(batch).split(batch.lengths, 1)
    loss, start = torch.zeros((), dtype=model.dtype, device=model.device), 0
    for sample, length in enumerate(batch.lengths):
        ids_T, labels_T = (values[start : start + length] for values in (batch.input_ids_N, batch.labels_N))
        inputs = list(embeds[start : start + length])
        features = iter([embeds[token].detach() for token in batch.filled_with[sample]])
        is_slot = (ids_T == model.config.slot_token_id).tolist()
        for place, slot in enumerate(is_slot):
            if slot:
                inputs[place] = next(features)
        final = model.model.language_model(
            inputs_embeds=torch.stack(inputs)[None],
            attention_mask=written_mask(model, ids_T),
            position_ids=positions[sample][:, None],
            use_cache=False,
        ).last_hidden_state[0]
        loss = loss + token_loss(model, Read(labels_T, is_slot, final, [])) / clock.num_tokens
        slots = [place for place, slot in enumerate(is_slot) if slot]
        if slots:
            said, shown = final[[place - 1 for place in slots]], torch.stack([inputs[place] for place in slots])
            mse = functional.mse_loss(said, shown)
            loss = loss + method.config.feature_weight * mse / clock.num_samples
        start += length
    return loss
