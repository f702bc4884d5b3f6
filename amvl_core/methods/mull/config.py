"""Mull-Tokens: what the method says of itself without torch (arXiv 2512.10941)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

from pydantic import Field

from amvl_core.contracts.encoders import BASE, EncoderConfig
from amvl_core.contracts.latent import LatentConfig
from amvl_core.contracts.sample import IMAGE_PLACEHOLDER, Segment, StoredSample, shown_by_question
from amvl_core.methods.block import BLOCK_END, BLOCK_START, BlockMethod, slot_tokens
from amvl_core.methods.curriculum import StepsReplaced
from amvl_core.methods.masks import MaskedMethod

if TYPE_CHECKING:
    from amvl_core.contracts.ablations import Table
    from amvl_core.contracts.config import RunConfig


class Thought(NamedTuple):
    """What a slot of the first stage stands for: the words of a step, or an image that a step shows, by number."""

    words: str | None = None
    image: int | None = None


class MullMethod(MaskedMethod, StepsReplaced, BlockMethod):
    """Learned slots between question and answer, in the place of steps.

    First stage (`guided`): a slot for each step. L = L_CE + `words_weight` L_words + `images_weight` L_images.
    Second stage: `latent.num_slots` slots, and L_CE of the answer alone.
    """

    kind: Literal["mull"] = "mull"
    label = "Mull-Tokens"
    has_latents = True
    columns: ClassVar = {**BlockMethod.columns, "words": ("words",), "images": ("images",)}
    guided: bool = Field(False, description="the first stage: each slot stands for a step's words or image")
    replaced_steps: None = Field(None, description="all steps leave the reply, with the images they show")
    words_weight: float = Field(0.5, ge=0, description="of the loss of the words that slots stand for")
    images_weight: float = Field(0.5, ge=0, description="of 1 - cosine with the images that slots stand for")
    image_size: int = Field(
        224, ge=8, description="such an image is shown to the base model's own vision encoder as a square of this side"
    )

    def layout(self, sample: StoredSample, latent: LatentConfig) -> list[Segment]:
        """Question, block, answer. A guided slot is a segment of its own.

        A sample without steps has the second stage's block, and none of its slots is guided.
        """
        if not self.guided:
            return super().layout(sample, latent)
        tokens = slot_tokens(latent)
        thoughts = list(self._thoughts(sample))[: len(tokens)] or [Thought()] * len(tokens)
        slots = [
            Segment("latent", token, thought.image, words=thought.words)
            for token, thought in zip(tokens, thoughts, strict=False)
        ]
        slots[0] = Segment("latent", BLOCK_START + slots[0].text, slots[0].image, words=slots[0].words)
        slots[-1] = Segment("latent", slots[-1].text + BLOCK_END, slots[-1].image, words=slots[-1].words)
        return [Segment("prompt", sample.question), *slots, *self.reply(sample)]

    def _thoughts(self, sample: StoredSample) -> Iterator[Thought]:
        """What the steps hold, in order: stretches of words, and images."""
        image = shown_by_question(sample.images, sample.steps)
        for step in sample.steps:
            for number, text in enumerate(step.split(IMAGE_PLACEHOLDER)):
                if number:
                    yield Thought(image=image)
                    image += 1
                if words := text.strip():
                    yield Thought(words=words)

    @property
    def aligned_with(self) -> tuple[EncoderConfig, ...]:
        """The base model's own vision encoder, in the first stage."""
        return (EncoderConfig(name=BASE, source=BASE, size=self.image_size),) if self.guided else ()

    def lacks(self, sample: StoredSample) -> str | None:
        """Steps, in the first stage."""
        return "steps" if self.guided and not sample.steps else None

    @classmethod
    def presets(cls) -> dict[str, Callable[[], RunConfig]]:
        """The paper's two stages, and the demo's data and model."""
        from amvl_core.methods.mull.presets import mull, mull_demo

        return {"mull": mull, "mull-demo": mull_demo}

    @classmethod
    def tables(cls) -> dict[str, Table]:
        """Controls."""
        from amvl_core.methods.mull.tables import TABLES

        return TABLES


CONFIG = MullMethod
