"""The passes of the text stack that AMVL needs, behind one function: prior, posterior, decoder.

    prior      [x, <abs>, slots]                        reads p(Z | x)
    posterior  [x, <abs>, y, slots]                     reads q(Z | x, y): under causal attention the slots see y
    decoder    [x, <abs>, Z injected, </abs>, y]        predicts y

Each pass runs the whole stack (three times the work of fine-tuning); nothing outside this file knows that.
Shape suffixes: B samples, T tokens, K slots, D hidden size, Z latent dimensions, N label tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from amvl_core.data.batch import Batch
from amvl_core.data.encode import IGNORED
from amvl_core.gaussian import Gaussian
from amvl_core.modeling import AMVLForConditionalGeneration

PosteriorPositions = Literal["natural", "aligned"]


@dataclass
class Passes:
    """What one sample of latents gives: both distributions, Z, and logits where y is predicted."""

    prior: Gaussian
    posterior: Gaussian
    latent_BKZ: Tensor
    logits_NV: Tensor
    labels_N: Tensor


@dataclass
class Block:
    """Where the latent block stands in each sample: `start_B` is the first slot's column, `lengths_B` the end of y."""

    start_B: Tensor
    lengths_B: Tensor
    num_slots: int

    def slots_BK(self) -> Tensor:
        """Columns of the slots."""
        return self.start_B[:, None] + torch.arange(self.num_slots, device=self.start_B.device)

    def posterior_order(self) -> tuple[Tensor, Tensor]:
        """Columns that make [x, <abs>, y, slots] out of [x, <abs>, slots, </abs>, y], and the slots' new columns.

        The first is [B, T - 1] (padding repeats column 0), the second [B, K].
        """
        total = int(self.lengths_B.max()) - 1
        column_T = torch.arange(total, device=self.start_B.device)
        y_lengths_B = self.lengths_B - self.start_B - self.num_slots - 1
        slots_at_B = self.start_B + y_lengths_B
        in_y = (column_T >= self.start_B[:, None]) & (column_T < slots_at_B[:, None])
        in_slots = (column_T >= slots_at_B[:, None]) & (column_T < (slots_at_B + self.num_slots)[:, None])
        order_BT = column_T.expand(len(self.start_B), -1)
        order_BT = torch.where(in_y, order_BT + self.num_slots + 1, order_BT)
        order_BT = torch.where(in_slots, order_BT - y_lengths_B[:, None], order_BT)
        order_BT = torch.where(column_T >= (slots_at_B + self.num_slots)[:, None], 0, order_BT)
        return order_BT, slots_at_B[:, None] + torch.arange(self.num_slots, device=self.start_B.device)


def find_block(model: AMVLForConditionalGeneration, batch: Batch) -> Block:
    """The latent block of every sample; a ValueError names the sample that has none, two, or one out of order."""
    slots = torch.tensor(model.config.slot_token_ids, device=batch.input_ids_BT.device)
    is_slot_BT = torch.isin(batch.input_ids_BT, slots)
    start_B = is_slot_BT.int().argmax(1)
    block = Block(start_B, batch.lengths_B, len(slots))
    columns_BK = block.slots_BK().clamp_max(batch.input_ids_BT.shape[1] - 1)
    in_order_B = (batch.input_ids_BT.gather(1, columns_BK) == slots).all(1)
    for row, (count, ordered) in enumerate(zip(is_slot_BT.sum(1).tolist(), in_order_B.tolist(), strict=True)):
        if count != len(slots) or not ordered:
            raise ValueError(
                f"{batch.sample_ids[row]}: {count} latent slots in the sample, the model needs one block of "
                f"{len(slots)}"
            )
    return block


def run_passes(
    model: AMVLForConditionalGeneration,
    batch: Batch,
    embeds_BTD: Tensor,
    draw: Callable[[Gaussian], Tensor],
    posterior_positions: PosteriorPositions,
) -> Passes:
    """Prior, posterior, a draw from the posterior, and the decoder on it.

    `embeds_BTD` are the embeddings of [x, <abs>, slots, </abs>, y] with image features in place.
    """
    block = find_block(model, batch)
    positions_3BT = rope_positions(model, batch)
    slots_BK = block.slots_BK()

    prefix = int(slots_BK.max()) + 1
    hidden_BTD = _text_stack(model, embeds_BTD[:, :prefix], positions_3BT[..., :prefix])
    prior = model.prior(_take(hidden_BTD, slots_BK))

    order_BT, posterior_slots_BK = block.posterior_order()
    posterior_3BT = positions_3BT[..., : order_BT.shape[1]]
    if posterior_positions == "aligned":
        aligned = positions_3BT.gather(2, slots_BK.expand(3, -1, -1))
        posterior_3BT = posterior_3BT.scatter(2, posterior_slots_BK.expand(3, -1, -1), aligned)
    hidden_BTD = _text_stack(model, _take(embeds_BTD, order_BT), posterior_3BT)
    posterior = model.posterior(_take(hidden_BTD, posterior_slots_BK))

    latent_BKZ = draw(posterior)
    injected_BKD = model.injector(latent_BKZ.to(embeds_BTD.dtype))
    index_BKD = slots_BK[..., None].expand(-1, -1, embeds_BTD.shape[-1])
    hidden_BTD = _text_stack(model, embeds_BTD.scatter(1, index_BKD, injected_BKD), positions_3BT)
    logits_NV, labels_N = label_logits(model, hidden_BTD, batch.labels_BT)
    return Passes(prior, posterior, latent_BKZ, logits_NV, labels_N)


def label_logits(model: torch.nn.Module, hidden_BTD: Tensor, labels_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and labels on the rows that predict a label token, and on no other: [N, V] and [N]."""
    predicts_BT = labels_BT[:, 1:] != IGNORED
    return model.lm_head(hidden_BTD[:, :-1][predicts_BT]), labels_BT[:, 1:][predicts_BT]


def rope_positions(model: torch.nn.Module, batch: Batch) -> Tensor:
    """M-RoPE positions [3, B, T] of the batch as it stands."""
    ids_BT = batch.input_ids_BT
    if batch.image_grid_thw is None:
        return torch.arange(ids_BT.shape[1], device=ids_BT.device).expand(3, *ids_BT.shape)
    is_image = (ids_BT == model.config.image_token_id).int()
    mask = torch.arange(ids_BT.shape[1], device=ids_BT.device) < batch.lengths_B[:, None]
    positions, _ = model.model.get_rope_index(
        ids_BT, is_image, image_grid_thw=batch.image_grid_thw, attention_mask=mask.long()
    )
    return positions


def _text_stack(model: AMVLForConditionalGeneration, embeds_BTD: Tensor, positions_3BT: Tensor) -> Tensor:
    """Final hidden states, after the last norm. Padding stands on the right, so causal attention needs no mask."""
    return model.model.language_model(
        inputs_embeds=embeds_BTD, position_ids=positions_3BT, use_cache=False
    ).last_hidden_state


def _take(values_BTD: Tensor, columns_BK: Tensor) -> Tensor:
    """Rows `columns_BK` of each sample: [B, K, D]."""
    return values_BTD.gather(1, columns_BK[..., None].expand(-1, -1, values_BTD.shape[-1]))
