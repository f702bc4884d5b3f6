"""VaLR: what the method says of itself without torch. Table and figure numbers are arXiv 2602.04476's."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from math import isqrt
from typing import ClassVar, Literal

from pydantic import Field

from amvl_core.contracts.encoders import EncoderConfig
from amvl_core.contracts.errors import DataError
from amvl_core.contracts.latent import LatentConfig
from amvl_core.contracts.method import MethodConfig, Published
from amvl_core.contracts.sample import IMAGE_PLACEHOLDER, STEP_END, Segment, StoredSample, reply

LATENT_START = "<latent>"
LATENT_END = "</latent>"
SLOT = "<latent_slot>"
"""Stands in a slot in token ids. Its embedding is never used: a slot's input is the state before it."""


class ValrMethod(MethodConfig):
    """Vision-aligned latent reasoning: blocks of K fed-back states before steps, aligned with frozen encoders.

    L = L_CE + `align_weight` L_REPA. What the paper leaves open is decided in docs/decisions.
    """

    kind: Literal["valr"] = "valr"
    label = "VaLR"
    has_latents = True
    model_type = "valr"
    own_parts = ("projectors.",)
    columns: ClassVar = {**MethodConfig.columns, "align": ("align",)}
    reserved = r"</?latent>|<latent_slot>"
    blocks: Literal["paper", "first_step", "every_step", "interleaved"] = Field(
        "paper",
        description="where blocks stand: before the first step, before every step, or in the place of the images that "
        "steps show, which leave the input; paper: interleaved where steps show images, every step where the question "
        "shows several, else the first step (App. B)",
    )
    max_blocks: int = Field(8, ge=1, description="blocks in a sample, at most; later steps have none")
    encoders: tuple[EncoderConfig, ...] = Field(
        (EncoderConfig(name="dinov3", source="facebook/dinov3-vitl16-pretrain-lvd1689m"),),
        description="frozen encoders that the slots are aligned with; none: no alignment",
    )
    align_weight: float = Field(0.5, ge=0, description="lambda; 0: no alignment")
    align_layer: int = Field(12, ge=1, description="the layer whose states are aligned, as in `hidden_states`")
    interpolation: Literal["bilinear", "linear"] = Field(
        "bilinear", description="K slots -> patches: as a square on the patches' grid, or along the sequence"
    )
    projector_width: int = Field(2048, ge=1, description="hidden width of psi, a perceptron of three layers")
    gradient_hops: int | None = Field(
        None, ge=0, description="feed-back links in a row that gradient passes; 0: none, left out: all (exact)"
    )

    @property
    def aligned_with(self) -> tuple[EncoderConfig, ...]:
        """The encoders whose features its loss needs."""
        return self.encoders if self.align_weight else ()

    def slots(self, latent: LatentConfig) -> list[str]:
        """K times the same token."""
        return [SLOT] * latent.num_slots

    def layout(self, sample: StoredSample, latent: LatentConfig) -> list[Segment]:
        """Prompt, then blocks and steps, then the answer. The entry marker is written by the model, the rest is not."""
        return [Segment("prompt", sample.question), *self._reply(sample, latent.num_slots)]

    def shown(self, sample: StoredSample) -> list[int]:
        """The images in the sequence: where blocks take the place of steps' images, those of the question alone."""
        if self._blocks(sample) != "interleaved":
            return super().shown(sample)
        return list(range(sample.question.count(IMAGE_PLACEHOLDER)))

    def added_tokens(self, latent: LatentConfig) -> int:
        """Slots and markers of as many blocks as there may be."""
        return (1 if self.blocks == "first_step" else self.max_blocks) * (latent.num_slots + 2)

    def follows(self, before: MethodConfig) -> bool:
        """Its own, or a stock model's without another block."""
        return before.kind == self.kind or (before.model_type is None and not before.reserved)

    def problem(self, latent: LatentConfig, num_layers: int | None, zero_stage: int) -> str | None:
        """K that is no square, a layer that is not there, a ZeRO stage under which ranks would wait for each other."""
        k = latent.num_slots
        if self.aligned_with and self.interpolation == "bilinear" and isqrt(k) ** 2 != k:
            return (
                f"latent.num_slots is {k}, which is no square; bilinear interpolation takes 1, 4, 9, 16, 25 ... slots "
                "(or set interpolation to linear)"
            )
        if self.aligned_with and num_layers is not None and self.align_layer > num_layers:
            return f"align_layer is {self.align_layer}, the base model has {num_layers} layers"
        if zero_stage == 3:
            return (
                "zero_stage 3 gathers all weights anew for every fed-back slot, and ranks whose samples have unequally "
                "many blocks would wait for each other for ever; use 0, 1 or 2"
            )
        return None

    @classmethod
    def published(cls) -> Published:
        """Its tables of VSI-Bench, BLINK, MMVP, MMStar, V* and CV-Bench."""
        from amvl_core.methods.valr.published import PUBLISHED

        return PUBLISHED

    def _blocks(self, sample: StoredSample) -> str:
        if self.blocks != "paper":
            return self.blocks
        if any(IMAGE_PLACEHOLDER in step for step in sample.steps):
            return "interleaved"
        return "every_step" if sample.question.count(IMAGE_PLACEHOLDER) > 1 else "first_step"

    def _reply(self, sample: StoredSample, slots: int) -> Iterator[Segment]:
        places = self._blocks(sample)
        if places == "interleaved":
            yield from self._interleaved(sample, slots)
            return
        *steps, answer = reply(sample)
        if not steps:
            only = 0 if len(sample.images) == 1 else None
            yield from (*block(slots, only), answer)
            return
        most = 1 if places == "first_step" else self.max_blocks
        for number, (step, image) in enumerate(zip(steps, sample.step_images, strict=True)):
            if number < most:
                if image is not None and not 0 <= image < len(sample.images):
                    raise DataError(
                        f"{sample.sample_id}: step {number + 1} is about image {image + 1}, but the sample has "
                        f"{len(sample.images)}; prepare the data again"
                    )
                yield from block(slots, image)
            yield step
        yield answer

    def _interleaved(self, sample: StoredSample, slots: int) -> Iterator[Segment]:
        """A block in the place of each image that a step shows: the image is its target, and leaves the input."""
        image = sample.question.count(IMAGE_PLACEHOLDER)
        written = 0
        for step in sample.steps:
            parts = [*step.split(IMAGE_PLACEHOLDER)]
            parts[-1] += STEP_END
            yield from _text(parts[0])
            for _, part in pairwise(parts):
                if written < self.max_blocks:
                    yield from block(slots, image)
                image, written = image + 1, written + 1
                yield from _text(part)
        yield Segment("answer", sample.answer)


def block(slots: int, image: int | None) -> tuple[Segment, Segment]:
    """A latent block: the entry marker, which the model is to write; then slots and exit marker, which it is not.

    `image` is the image that the slots are aligned with.
    """
    return Segment("step", LATENT_START), Segment("latent", SLOT * slots + LATENT_END, image)


def _text(text: str) -> list[Segment]:
    return [Segment("step", text)] if text else []


CONFIG = ValrMethod
