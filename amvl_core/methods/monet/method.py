"""Monet's three stages: L = L_CE, in which observations weigh more, + w L_align.

Shape suffixes: N tokens, R rows with a label, T aligned tokens, D hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate, chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from amvl_core.backbones.processor import AMVLProcessor
from amvl_core.contracts.encoders import Patches
from amvl_core.contracts.errors import DataError
from amvl_core.contracts.method import MethodConfig
from amvl_core.data.batch import Batch
from amvl_core.data.encode import IGNORED
from amvl_core.methods.feedback.method import FeedbackMethod, slot_norm
from amvl_core.methods.losses import finite_samples, next_labels, widen
from amvl_core.methods.method import Clock, Method, StepOutput
from amvl_core.methods.monet.config import MonetMethod
from amvl_core.methods.monet.modeling import MonetForConditionalGeneration
from amvl_core.methods.probing import Prober


class Monet(FeedbackMethod):
    """One of the stages, with the one before it in number as its frozen teacher.

    Each slot's input is a copy of the state before it. Gradient reaches that state, and never goes on from it through
    the inputs of earlier slots.
    """

    model_class = MonetForConditionalGeneration
    config: MonetMethod

    def __init__(self, model: Any, config: MonetMethod) -> None:
        super().__init__(model, config)
        model.config.max_blocks = config.max_blocks
        model.config.latent_mode = "never" if config.stage == 1 else "written"
        self.teacher: Monet | None = None

    def equip(self, processor: AMVLProcessor, computed: Mapping[str, Patches], teacher: Method | None = None) -> None:
        """The teacher."""
        assert teacher is None or isinstance(teacher, Monet)
        self.teacher = teacher if teacher is None else teacher.eval()

    def frozen(self) -> list[nn.Module]:
        """The teacher."""
        return [] if self.teacher is None else [self.teacher]

    @staticmethod
    def prober(model: MonetForConditionalGeneration, processor: Any, method: MethodConfig) -> Prober:
        """On replies without images, whichever stage came last."""
        return FeedbackMethod.prober(model, processor, method.model_copy(update={"stage": 3}))

    def label_weight(self, batch: Batch) -> float:
        """Of all label tokens, those of observations with their weight."""
        observed = sum(map(len, batch.observed))
        return batch.num_label_tokens + (self.config.weight_of_observations - 1) * observed

    def forward(self, batch: Batch, clock: Clock) -> StepOutput:
        """The objective and its terms."""
        weight, stage, aligned = self.config.weight_of_alignment, self.config.stage, self.aligned(batch)
        taps = self.layers() if weight else ()
        helpers, rows = self.helpers(batch), list(chain.from_iterable(aligned))
        fed, losses_R = self.fed_back(batch, None, taps, rows, helpers=helpers, leaves=True)
        ntp = (losses_R * self.label_weights(batch).to(losses_R)).sum() / clock.num_tokens
        terms, errors_T, direct, loss = {"ntp": ntp}, losses_R.new_zeros(0), ntp, ntp
        if weight:
            errors_T = distances(fed.tapped, self.taught(batch, [len(own) for own in aligned]))
            share_T = errors_T.new_tensor([1 / len(own) for own in aligned for _ in own])
            terms["align"] = (errors_T * share_T).sum() / clock.num_samples
            loss = ntp + weight * terms["align"]
            direct = ntp + weight * terms["align"].detach() if stage == 2 else loss
        if stage > 1:
            terms["slot_norm"] = slot_norm(fed.inputs_TD)
        terms["observed"] = losses_R.new_tensor(sum(map(bool, batch.observed)) / clock.num_samples)
        found = {"loss": loss.detach(), **{name: value.detach() for name, value in terms.items()}}
        fine_R, fine_T = losses_R.detach(), errors_T.detach()
        return StepOutput(direct + fed.handed_on(loss), found, lambda: _finite(batch, fine_R, fine_T, aligned))

    def layers(self) -> range:
        """All that `hidden_states` has, from the embeddings on."""
        return range(self.model.config.text_config.num_hidden_layers + 1)

    def label_weights(self, batch: Batch) -> Tensor:
        """Of each label token, [R]."""
        observed_N = torch.zeros(batch.num_tokens)
        observed_N[list(chain.from_iterable(batch.observed))] = 1.0
        wanted_N = next_labels(batch) != IGNORED
        return 1.0 + (self.config.weight_of_observations - 1.0) * observed_N.roll(-1)[wanted_N]

    def aligned(self, batch: Batch) -> list[list[int]]:
        """The tokens of each sample whose states are aligned, counted through the batch."""
        return _observations_or_slots(self, batch, self.config)

    def helpers(self, batch: Batch) -> list[list[range]]:
        """In stage 2, of each block the tokens of the image before it; else nothing is hidden."""
        if self.config.stage != 2:
            return []
        found = []
        spans = zip(batch.sample_ids, batch.input_ids_N.split(batch.lengths), self.blocks(batch), strict=True)
        for name, ids_T, own in spans:
            is_image = self.backbone.stands_for_features(self.model, ids_T).tolist()
            found.append([_image_before(name, is_image, block) for block in own])
        return found

    @torch.no_grad()
    def taught(self, batch: Batch, counts: Sequence[int]) -> dict[int, Tensor]:
        """The teacher's states [T, D] behind each layer, of as many tokens as `counts` says of each sample.

        A DataError names a sample whose second sequence has others.
        """
        if self.teacher is None or batch.teacher is None:
            raise DataError(
                f"{batch.sample_ids[0]}: no teacher, or no sequence of it; Monet trains on samples that are laid out "
                "to train, beside the stage that teaches"
            )
        aligned = _observations_or_slots(self.teacher, batch.teacher, self.config)
        for name, count, own in zip(batch.sample_ids, counts, aligned, strict=True):
            if count != len(own):
                raise DataError(f"{name}: {count} tokens to align, but {len(own)} of the teacher's")
        rows = list(chain.from_iterable(aligned))
        helpers = self.teacher.helpers(batch.teacher)
        return self.teacher.run(batch.teacher, (), taps=self.layers(), tapped=rows, helpers=helpers).tapped

    def rows(self, batch: Batch) -> int:
        """Those of the student and of the teacher."""
        return batch.num_tokens + (0 if batch.teacher is None else batch.teacher.num_tokens)

    def reference(self, batch: Batch, clock: Clock) -> Tensor:
        """The stock model, one sample at a time: token by token through the slots, then once over the whole."""
        from amvl_core.methods.monet.reference import objective

        return objective(self, batch, clock)


def _observations_or_slots(method: Monet, batch: Batch, config: MonetMethod) -> list[list[int]]:
    """What a stage aligns, in its own sequences and in its teacher's: 1: nothing, 2: observations, 3: slots."""
    if not config.weight_of_alignment:
        return [[] for _ in batch.lengths]
    if config.stage == 2:
        return batch.observed
    starts = accumulate(batch.lengths, initial=0)
    return [
        [start + place for block in own for place in block]
        for start, own in zip(starts, method.blocks(batch), strict=False)
    ]


def _image_before(name: str, is_image: Sequence[bool], block: range) -> range:
    """The tokens of the image that ends right before a block's entry marker. A DataError where there is none."""
    stop = block.start - 2  # behind it its end marker and the block's entry marker
    start = stop
    while start > 0 and is_image[start - 1]:
        start -= 1
    if start == stop:
        raise DataError(f"{name}: no image stands before the block at token {block.start}")
    return range(start, stop)


def distances(student: Mapping[int, Tensor], teacher: Mapping[int, Tensor]) -> Tensor:
    """The mean over layers of 1 - cos between two models' states, [T]."""
    cosines = [functional.cosine_similarity(widen(student[layer]), widen(teacher[layer]), dim=-1) for layer in student]
    return 1 - torch.stack(cosines).mean(0)


def _finite(batch: Batch, losses_R: Tensor, errors_T: Tensor, aligned: Sequence[Sequence[int]]) -> list[bool]:
    """Of each sample, whether the losses of its label tokens and its distances are finite."""
    parts = errors_T.split([len(own) for own in aligned])
    tokens = finite_samples(batch, losses_R)
    return [fine and bool(part.isfinite().all()) for fine, part in zip(tokens, parts, strict=True)]


METHOD = Monet
