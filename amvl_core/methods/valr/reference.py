"""VaLR's objective written out with the stock model, one sample at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from amvl_core.contracts.encoders import Patches
from amvl_core.data.batch import Batch
from amvl_core.methods.feedback.reference import one_by_one, token_loss
from amvl_core.methods.method import Clock

if TYPE_CHECKING:
    from amvl_core.methods.valr.method import Valr


def objective(method: Valr, batch: Batch, clock: Clock) -> Tensor:
    """L_CE + lambda L_REPA, as a share of the global batch's."""
    model, config = method.model, method.config
    k = model.config.num_slots
    targets = {name: method.features(name, batch) for name in method.projectors if batch.targets}
    loss = torch.zeros((), dtype=model.dtype, device=model.device)
    for sample, read in enumerate(one_by_one(method, batch)):
        loss = loss + token_loss(model, read) / clock.num_tokens
        about = batch.about[sample] if method.projectors else []
        blocks = [(block, number) for block, number in enumerate(about) if number is not None]
        for block, number in blocks:
            slots = read.layers_TD[config.align_layer][torch.tensor(read.is_slot)][block * k : (block + 1) * k]
            found = [
                _cosine(projector, slots, method.patches[name], config.interpolation, targets[name][number])
                for name, projector in method.projectors.items()
            ]
            share = config.align_weight / len(blocks) / clock.num_samples
            loss = loss - share * torch.stack(found).mean()
    return loss


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
