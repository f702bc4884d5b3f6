"""CODI's objective written out with the stock model, one sample at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from amvl_core.data.batch import Batch
from amvl_core.data.encode import IGNORED
from amvl_core.methods.feedback.reference import one_by_one, token_loss
from amvl_core.methods.method import Clock

if TYPE_CHECKING:
    from amvl_core.methods.codi.method import Codi


def objective(method: Codi, batch: Batch, clock: Clock) -> Tensor:
    """CE(student) + CE(teacher) + f D, as a share of the global batch's."""
    model = method.model
    assert batch.teacher is not None
    loss = torch.zeros((), dtype=model.dtype, device=model.device)
    for student, teacher in zip(
        one_by_one(method, batch), one_by_one(method, batch.teacher, masked=False), strict=True
    ):
        loss = loss + token_loss(model, student) / clock.num_tokens
        words = int((teacher.labels_T[1:] != IGNORED).sum())
        loss = loss + token_loss(model, teacher) / words / clock.num_samples
        shared = len(student.labels_T) - (student.labels_T != IGNORED).tolist().index(True)
        layers = list(zip(student.layers_TD, teacher.layers_TD, strict=True))[1:]
        for own_TD, taught_TD in layers:
            own, taught = own_TD[-shared - 1], taught_TD[-shared - 1].detach()
            gap = (own - taught).abs()
            smooth = torch.where(gap < 1, gap**2 / 2, gap - 0.5).mean()
            deviation = ((taught - taught.mean()) ** 2).sum().div(len(taught) - 1).sqrt()
            loss = loss + method.config.distil_weight * smooth / deviation / len(layers) / clock.num_samples
    return loss
