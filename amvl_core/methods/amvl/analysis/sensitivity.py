"""What the prior's latents listen to: the image or the words (Figure 4, right)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from amvl_core.contracts.sample import StoredSample
from amvl_core.data.batch import collate
from amvl_core.methods.amvl.prefix import read
from amvl_core.methods.amvl.probes import Prober
from amvl_core.methods.draws import keyed_generator


class Shifts(NamedTuple):
    """Distance of each slot's prior mean from the unpermuted one, [B, K]; NaN where there is nothing to permute."""

    image: Tensor
    text: Tensor


@torch.inference_mode()
def permutation_shifts(prober: Prober, items: Sequence[StoredSample], seed: int) -> Shifts:
    """How far the latents move when the image's tokens, or the question's words, are put in a random order.

    What is permuted are the embeddings of a sample's image tokens (merged patches, behind the vision encoder), or of
    its question's text tokens, each kind among its own places; positions stay. The order is keyed by seed and sample.
    """
    batch = collate([prober.encode(item) for item in items])
    embeds_ND, positions_3N = prober.method.embed(batch), prober.method.positions(batch)
    starts = torch.tensor([0, *batch.lengths]).cumsum(0).tolist()
    template = prober.processor.tokenizer(prober.encoder.prompt(""))["input_ids"]
    special = set(prober.processor.tokenizer.all_special_ids)
    places: dict[str, list[list[int]]] = {"image": [], "text": []}
    for ids_N in batch.input_ids_N.split(batch.lengths):
        ids = ids_N.tolist()
        end = ids.index(prober.model.config.slot_token_ids[0]) - 1
        shown = prober.method.backbone.stands_for_features(prober.model, ids_N[:end])
        places["image"].append(shown.nonzero()[:, 0].tolist())
        places["text"].append([i for i in question_columns(ids[:end], template) if ids[i] not in special])
    positions = prober.method.config.posterior_positions
    plain_BKZ = read(prober.model, batch, embeds_ND, positions_3N, positions).prior.mean
    shifts = {}
    for kind, columns in places.items():
        permuted_ND = embeds_ND.clone()
        for item, start, of in zip(items, starts, columns, strict=False):
            rows = torch.tensor(of, dtype=torch.long) + start
            permuted_ND[rows] = embeds_ND[rows[_order(seed, f"{kind}/{item.sample_id}", len(rows))]]
        moved_BKZ = read(prober.model, batch, permuted_ND, positions_3N, positions).prior.mean
        nothing = torch.tensor([len(of) < 2 for of in columns], device=moved_BKZ.device)
        shifts[kind] = (moved_BKZ - plain_BKZ).norm(dim=-1).masked_fill(nothing[:, None], torch.nan)
    return Shifts(**shifts)


def question_columns(ids: Sequence[int], template: Sequence[int]) -> range:
    """The columns of a prompt that the chat template did not bring: between what it begins and ends with."""
    shorter = min(len(ids), len(template))
    head = next((i for i in range(shorter) if ids[i] != template[i]), shorter)
    tail = next((i for i in range(shorter - head) if ids[-1 - i] != template[-1 - i]), shorter - head)
    return range(head, len(ids) - tail)


def _order(seed: int, name: str, size: int) -> Tensor:
    return torch.randperm(size, generator=keyed_generator(seed, name))
