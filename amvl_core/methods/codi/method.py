"""Self-distillation into fed-back slots: L = CE(student) + CE(teacher) + f D.

Shape suffixes: N tokens, R rows with a label, B samples, D hidden size, L layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from amvl_core.contracts.errors import DataError
from amvl_core.data.batch import Batch
from amvl_core.data.encode import IGNORED
from amvl_core.methods.codi.config import CodiMethod
from amvl_core.methods.codi.modeling import CODIForConditionalGeneration
from amvl_core.methods.feedback.method import FeedbackMethod, slot_norm
from amvl_core.methods.losses import finite_samples, widen
from amvl_core.methods.method import Clock, StepOutput


class Codi(FeedbackMethod):
    """Student and teacher are one model, and both are trained; no gradient of D reaches the teacher.

    The teacher reads plainly: a bottleneck mask is the student's alone, which has slots to see through.
    """

    model_class = CODIForConditionalGeneration
    config: CodiMethod

    def forward(self, batch: Batch, clock: Clock) -> StepOutput:
        """The objective and its terms."""
        taught = teacher_of(batch)
        layers = range(1, self.model.config.text_config.num_hidden_layers + 1)
        before = rows_before(batch, taught)
        student, losses_R = self.fed_back(batch, self.config.gradient_hops, layers, before.student)
        teacher, taught_R = self.fed_back(taught, None, layers, before.teacher, masked=False)
        ntp, words_B = losses_R.sum() / clock.num_tokens, means(taught_R, taught.label_counts)
        distil_B = torch.stack([distance(student.tapped[n], teacher.tapped[n]) for n in layers]).mean(0)
        words, distil = words_B.sum() / clock.num_samples, distil_B.sum() / clock.num_samples
        loss = ntp + words + self.config.distil_weight * distil
        terms = {"loss": loss, "ntp": ntp, "teacher_ntp": words, "distil": distil}
        found = {name: value.detach() for name, value in terms.items()}
        found["slot_norm"] = slot_norm(student.inputs_TD)
        fine_R, fine_B = losses_R.detach(), (words_B + distil_B).detach().isfinite()

        def finite() -> list[bool]:
            tokens = finite_samples(batch, fine_R)
            return [fine and bool(rest) for fine, rest in zip(tokens, fine_B, strict=True)]

        return StepOutput(loss, found, finite)

    def rows(self, batch: Batch) -> int:
        """Those of the student and of the teacher."""
        return batch.num_tokens + teacher_of(batch).num_tokens

    def reference(self, batch: Batch, clock: Clock) -> Tensor:
        """The stock model, one sample at a time: token by token through the slots, and once for the teacher."""
        from amvl_core.methods.codi.reference import objective

        return objective(self, batch, clock)


class Before(NamedTuple):
    """Of each sample, the row before what student and teacher both write."""

    student: list[int]
    teacher: list[int]


def rows_before(batch: Batch, taught: Batch) -> Before:
    """The student's first label token and what follows end the teacher's sequence too.

    A DataError names a sample where they do not.
    """
    found, start, other = Before([], []), 0, 0
    for name, length, taught_length in zip(batch.sample_ids, batch.lengths, taught.lengths, strict=True):
        own_T, taught_T = batch.input_ids_N[start : start + length], taught.input_ids_N[other : other + taught_length]
        first = int((batch.labels_N[start : start + length] != IGNORED).nonzero()[0])
        size = length - first
        if size >= taught_length or not torch.equal(own_T[-size:], taught_T[-size:]):
            raise DataError(
                f"{name}: the teacher's sequence does not end as the student's, of which {size} tokens count"
            )
        found.student.append(start + first - 1)
        found.teacher.append(other + taught_length - size - 1)
        start, other = start + length, other + taught_length
    return found


def teacher_of(batch: Batch) -> Batch:
    """The second sequences. A DataError where there are none."""
    if batch.teacher is None:
        raise DataError(
            f"{batch.sample_ids[0]}: no teacher's sequence; CODI trains on samples that are laid out to train"
        )
    return batch.teacher


def means(values_R: Tensor, counts: Sequence[int]) -> Tensor:
    """The mean of each sample's values, [B]."""
    return torch.stack([part.mean() for part in values_R.split(list(counts))])


def distance(student_BD: Tensor, teacher_BD: Tensor) -> Tensor:
    """Smooth L1 between states, over the standard deviation of the teacher's, [B]. The teacher's get no gradient."""
    target_BD = widen(teacher_BD.detach())
    return functional.smooth_l1_loss(widen(student_BD), target_BD, reduction="none").mean(-1) / target_BD.std(-1)


METHOD = Codi
