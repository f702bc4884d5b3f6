"""Monet's objective written out with the stock model, one sample at a time.

As in the paper there are two passes: one that gives the slots' inputs token by token, on a cache, and one over the
whole sequence with these inputs in their places.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache

from amvl_core.data.batch import Batch
from amvl_core.data.encode import IGNORED
from amvl_core.methods.feedback.reference import chunks
from amvl_core.methods.method import Clock

if TYPE_CHECKING:
    from amvl_core.methods.monet.method import Monet


class Sample(NamedTuple):
    """One sample: ids and labels [T], embeddings [T, D], positions [3, T], observations, slots, what is seen [T, T]."""

    ids_T: Tensor
    labels_T: Tensor
    embeds_TD: Tensor
    positions_3T: Tensor
    observed: list[int]
    slots: list[int]
    mask_TT: Tensor


def objective(method: Monet, batch: Batch, clock: Clock) -> Tensor:
    """L_CE + w L_align, as a share of the global batch's."""
    config, language = method.config, method.model.model.language_model
    loss = torch.zeros((), dtype=method.model.dtype, device=method.model.device)
    students = samples(method, batch)
    teachers = samples(method.teacher, batch.teacher) if method.teacher and batch.teacher else [None] * len(students)
    for student, teacher in zip(students, teachers, strict=True):
        vectors = slot_inputs(language, student)
        inputs_TD = student.embeds_TD.clone()
        for slot, vector in zip(student.slots, vectors, strict=True):
            inputs_TD[slot] = vector
        layers = hidden_states(language, student, inputs_TD)
        ntp = torch.zeros_like(loss)
        for token in range(1, len(student.ids_T)):
            if student.labels_T[token] != IGNORED:
                (logits_V,) = method.model.lm_head(layers[-1][token - 1 : token])
                log_p = logits_V.log_softmax(-1)[student.labels_T[token]]
                weight = config.weight_of_observations if token in student.observed else 1.0
                ntp = ntp - weight * log_p / clock.num_tokens
        loss = loss + ntp
        aligned = {1: [], 2: student.observed, 3: student.slots}[config.stage]
        if not config.weight_of_alignment or not aligned or teacher is None or method.teacher is None:
            continue
        taught = method.teacher.model.model.language_model
        with torch.no_grad():
            inputs_TD = teacher.embeds_TD.clone()
            for slot, vector in zip(teacher.slots, slot_inputs(taught, teacher), strict=True):
                inputs_TD[slot] = vector
            targets = hidden_states(taught, teacher, inputs_TD)
        wanted = teacher.observed if config.stage == 2 else teacher.slots
        gaps = [
            1 - functional.cosine_similarity(own[here], target[there], dim=0)
            for own, target in zip(layers, targets, strict=True)
            for here, there in zip(aligned, wanted, strict=True)
        ]
        align = config.weight_of_alignment * torch.stack(gaps).mean() / clock.num_samples
        if config.stage == 2:  # its gradient goes through the slots' inputs alone
            gradients = torch.autograd.grad(align, vectors, retain_graph=True)
            through = torch.stack([(v * g).sum() for v, g in zip(vectors, gradients, strict=True)]).sum()
            align = align.detach() + through - through.detach()
        loss = loss + align
    return loss


def samples(method: Monet, batch: Batch) -> list[Sample]:
    """The samples of a batch."""
    found, start = [], 0
    embeds, positions = method.embed(batch).split(batch.lengths), method.positions(batch).split(batch.lengths, 1)
    for number, length in enumerate(batch.lengths):
        ids_T, labels_T = (values[start : start + length] for values in (batch.input_ids_N, batch.labels_N))
        observed = [token - start for token in batch.observed[number]]
        slots = (ids_T == method.model.config.slot_token_id).nonzero()[:, 0].tolist()
        mask_TT = seen(ids_T, method.model.config) if method.config.stage == 2 else torch.ones(length, length).tril()
        found.append(Sample(ids_T, labels_T, embeds[number], positions[number], observed, slots, mask_TT.bool()))
        start += length
    return found


def seen(ids_T: Tensor, config: Any) -> Tensor:
    """What each token sees: of an image right before a block only that image itself and the block's slots do."""
    ids = ids_T.tolist()
    mask_TT = torch.ones(len(ids), len(ids)).tril()
    for marker in (place for place, token in enumerate(ids) if token == config.block_start_token_id):
        stop = first = marker - 1
        while ids[first - 1] == config.image_token_id:
            first -= 1
        end = ids.index(config.block_end_token_id, marker)
        mask_TT[stop : marker + 1, first:stop] = 0
        mask_TT[end:, first:stop] = 0
    return mask_TT


def slot_inputs(language: Any, sample: Sample) -> list[Tensor]:
    """The state before each slot, [D] each; what is fed back is a copy without gradient."""
    cache, vectors, last = DynamicCache(config=language.config), [], torch.empty(0)
    is_slot = [place in sample.slots for place in range(len(sample.ids_T))]
    for start, stop in chunks(is_slot):
        if is_slot[start]:
            vectors.append(last)
        inputs = last.detach()[None] if is_slot[start] else sample.embeds_TD[start:stop]
        states = language(
            inputs_embeds=inputs[None],
            position_ids=sample.positions_3T[:, None, start:stop],
            attention_mask=additive(sample.mask_TT[start:stop, :stop], inputs),
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state[0]
        last = states[-1]
    return vectors


def hidden_states(language: Any, sample: Sample, inputs_TD: Tensor) -> list[Tensor]:
    """The states behind all layers, [T, D] each, from the embeddings on."""
    output = language(
        inputs_embeds=inputs_TD[None],
        position_ids=sample.positions_3T[:, None],
        attention_mask=additive(sample.mask_TT, inputs_TD),
        use_cache=False,
        output_hidden_states=True,
    )
    return [states[0] for states in output.hidden_states]


def additive(mask_TS: Tensor, like: Tensor) -> Tensor:
    """A mask as the stock model adds it, [1, 1, T, S]."""
    added = torch.zeros(mask_TS.shape, dtype=like.dtype, device=like.device)
    return added.masked_fill(~mask_TS.to(like.device), torch.finfo(like.dtype).min)[None, None]
