"""Latent blocks in a model's reply: their tokens and layouts, for every method that has them. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from amvl_core.contracts.errors import DataError
from amvl_core.contracts.latent import LatentConfig
from amvl_core.contracts.method import MethodConfig
from amvl_core.contracts.sample import IMAGE_PLACEHOLDER, STEP_END, Segment, StoredSample, shown_by_question
from amvl_core.methods.curriculum import StepsReplaced

if TYPE_CHECKING:
    from amvl_core.methods.cost import Cost

LATENT_START = "<latent>"
LATENT_END = "</latent>"
SLOT = "<latent_slot>"
"""Stands in a slot in token ids. Its embedding is never used: a slot's input is the state before it."""


class FeedbackBlocks(MethodConfig):
    """A method whose sequence has blocks of slots between two markers, and whose model may feed its states back."""

    reserved = r"</?latent>|<latent_slot>"

    def slots(self, latent: LatentConfig) -> list[str]:
        """K times the same token."""
        return [SLOT] * latent.num_slots

    def block(self, latent: LatentConfig, image: int | None) -> tuple[Segment, ...]:
        """A block, of which the entry marker alone carries a label; `image` is the image that it is about."""
        inside = "".join(self.slots(latent)) + LATENT_END
        return Segment("step", LATENT_START), Segment("latent", inside, image)

    def follows(self, before: MethodConfig) -> bool:
        """Its own, or a stock model's without another block."""
        return before.kind == self.kind or (before.model_type is None and not before.reserved)


class PromptBlock(StepsReplaced, FeedbackBlocks):
    """The fields of a method with one block of fed-back states behind the question, in the place of steps.

    No token of the block carries a label, and the model does not write it.
    """

    has_latents = True
    writes_blocks = True
    replaced_steps: int | None = Field(
        None, ge=1, description="the first steps that slots stand for, in every sample as many slots; null: all steps"
    )
    gradient_hops: int | None = Field(
        None, ge=0, description="feed-back links in a row that gradient passes; 0: none, left out: all (exact)"
    )

    def layout(self, sample: StoredSample, latent: LatentConfig) -> list[Segment]:
        """Question, block, the steps that are left, answer."""
        block = LATENT_START + "".join(self.slots(latent)) + LATENT_END
        return [Segment("prompt", sample.question), Segment("latent", block), *self.reply(sample)]

    def most_slots(self, latent: LatentConfig) -> int:
        """Those of the longest block that is trained on."""
        return len(self.slots(latent))

    def added_tokens(self, latent: LatentConfig) -> int:
        """The slots and both markers."""
        return self.most_slots(latent) + 2

    def cost(self, latent: LatentConfig) -> Cost:
        """Two packed rows and a pass for each slot."""
        from amvl_core.methods.feedback.cost import FeedbackCost

        return FeedbackCost(1, self.most_slots(latent))

    def problem(self, latent: LatentConfig, num_layers: int | None, zero_stage: int) -> str | None:
        """A ZeRO stage that gathers the weights for every slot."""
        if zero_stage == 3:
            return "zero_stage 3 gathers all weights anew for every fed-back slot; use 0, 1 or 2"
        return None


class ReplyBlocks(StepsReplaced, FeedbackBlocks):
    """The fields of a method whose reply has blocks of `latent.num_slots` slots between the steps that are left.

    The model writes a block's entry marker, which carries a label; slots and exit marker carry none.
    """

    blocks: Literal["paper", "first_step", "every_step", "interleaved"] = Field(
        "paper",
        description="where blocks stand: before the first step, before every step, or in the place of the images that "
        "steps show, which leave the input; paper: interleaved where steps show images, every step where the question "
        "shows several, else the first step (VaLR, App. B)",
    )
    max_blocks: int = Field(8, ge=1, description="blocks in a sample, at most; later steps have none")

    def layout(self, sample: StoredSample, latent: LatentConfig) -> list[Segment]:
        """Prompt, then blocks and steps, then the answer."""
        return [Segment("prompt", sample.question), *self._reply(sample, latent)]

    def shown(self, sample: StoredSample) -> list[int]:
        """The images in the sequence: where blocks take the place of steps' images, those of the question alone."""
        if self._places(sample) == "interleaved":
            return list(range(shown_by_question(sample.images, sample.steps)))
        return super().shown(sample)

    def added_tokens(self, latent: LatentConfig) -> int:
        """Slots and markers of as many blocks as there may be."""
        return (1 if self.blocks == "first_step" else self.max_blocks) * (len(self.slots(latent)) + 2)

    def lacks(self, sample: StoredSample) -> str | None:
        """Images in the steps that are left, where blocks take their places and no other."""
        alone = self.blocks == "interleaved" and not self._steps_show(sample)
        return "images that steps show" if alone else super().lacks(sample)

    def _steps_show(self, sample: StoredSample) -> bool:
        return any(IMAGE_PLACEHOLDER in step for step in sample.steps[self._gone(sample) :])

    def _places(self, sample: StoredSample) -> str:
        if self.blocks != "paper":
            return self.blocks
        if self._steps_show(sample):
            return "interleaved"
        return "every_step" if sample.question.count(IMAGE_PLACEHOLDER) > 1 else "first_step"

    def _reply(self, sample: StoredSample, latent: LatentConfig) -> Iterator[Segment]:
        places = self._places(sample)
        if places == "interleaved":
            yield from self._interleaved(sample, latent)
            return
        *steps, answer = self.reply(sample)
        if not steps:
            yield from (*self.block(latent, _only(sample)), answer)
            return
        most = 1 if places == "first_step" else self.max_blocks
        gone = self._gone(sample)
        for number, (step, image) in enumerate(zip(steps, sample.step_images[gone:], strict=True)):
            if number < most:
                if image is not None and not 0 <= image < len(sample.images):
                    raise DataError(
                        f"{sample.sample_id}: step {gone + number + 1} is about image {image + 1}, but the sample has "
                        f"{len(sample.images)}; prepare the data again"
                    )
                yield from self.block(latent, _only(sample) if image is None else image)
            yield step
        yield answer

    def _interleaved(self, sample: StoredSample, latent: LatentConfig) -> Iterator[Segment]:
        """A block in the place of each image that a step shows: the image is its target, and leaves the input."""
        gone, first = self._gone(sample), shown_by_question(sample.images, sample.steps)
        image = first = first + sum(step.count(IMAGE_PLACEHOLDER) for step in sample.steps[:gone])
        for step in sample.steps[gone:]:
            text, *others = f"{step}{STEP_END}".split(IMAGE_PLACEHOLDER)
            yield from _written(text)
            for text in others:
                if image - first < self.max_blocks:
                    yield from self.block(latent, image)
                yield from _written(text)
                image += 1
        yield Segment("answer", sample.answer)


def _only(sample: StoredSample) -> int | None:
    """The only image of a sample, or the frame in the middle of its only video; None where there are several."""
    if len(sample.images) == 1:
        return 0
    if len(sample.videos) == 1 and sample.videos[0].frames == len(sample.images):
        return len(sample.images) // 2
    return None


def _written(text: str) -> list[Segment]:
    return [Segment("step", text)] if text else []
