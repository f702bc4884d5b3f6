"""Mull-Tokens' objective written out with the stock model, one sample and one slot at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from amvl_core.data.batch import Batch
from amvl_core.data.encode import IGNORED
from amvl_core.methods.method import Clock
from amvl_core.methods.written_mask import written_mask

if TYPE_CHECKING:
    from amvl_core.methods.mull.method import Mull


def objective(method: Mull, batch: Batch, clock: Clock) -> Tensor:
    """L_CE + a L_words + b L_images, as a share of the global batch's; L_CE alone where no slot is guided."""
    model, guided = method.model, method.config.guided
    embeds, positions = method.embed(batch).split(batch.lengths), method.positions(batch).split(batch.lengths, 1)
    ids, labels = batch.input_ids_N.split(batch.lengths), batch.labels_N.split(batch.lengths)
    targets_ID = method.targets(batch) if guided else None
    loss = torch.zeros((), dtype=model.dtype, device=model.device)
    for sample, (ids_T, labels_T) in enumerate(zip(ids, labels, strict=True)):
        states_TD = model.model.language_model(
            inputs_embeds=embeds[sample][None],
            attention_mask=written_mask(model, ids_T),
            position_ids=positions[sample][:, None],
            use_cache=False,
        ).last_hidden_state[0]
        logits_TV = model.lm_head(states_TD)
        after_T = labels_T[1:].to(logits_TV.device)
        answer = functional.cross_entropy(logits_TV[:-1], after_T, ignore_index=IGNORED, reduction="sum")
        loss = loss + answer / clock.num_tokens
        if targets_ID is None:
            continue
        words, images = [], []
        places = [place for place, token in enumerate(ids_T.tolist()) if token in model.config.slot_token_ids]
        for place, said, target in zip(places, batch.words[sample], batch.about[sample], strict=True):
            if said:
                each = logits_TV[place].expand(len(said), -1)
                words.append(functional.cross_entropy(each, torch.tensor(said, device=each.device)))
            if target is not None:
                cosine = functional.cosine_similarity(states_TD[place], targets_ID[target].to(states_TD.dtype), dim=0)
                images.append(1 - cosine)
        if words:
            loss = loss + method.config.words_weight * torch.stack(words).mean() / clock.num_samples
        if images:
            loss = loss + method.config.images_weight * torch.stack(images).mean() / clock.num_samples
    return loss
