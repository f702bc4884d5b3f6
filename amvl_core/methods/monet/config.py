"""Monet: what the method says of itself without torch (arXiv 2511.21395)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, model_validator

from amvl_core.contracts.latent import LatentConfig
from amvl_core.contracts.method import MethodConfig
from amvl_core.contracts.sample import (
    IMAGE_PLACEHOLDER,
    STEP_END,
    Crop,
    Region,
    Segment,
    Shown,
    StoredSample,
    shown_by_question,
)
from amvl_core.methods.reply_blocks import FeedbackBlocks

if TYPE_CHECKING:
    from amvl_core.contracts.ablations import Table
    from amvl_core.contracts.config import RunConfig
    from amvl_core.methods.cost import Cost


class MonetMethod(FeedbackBlocks):
    """Supervised fine-tuning of Monet: reasoning in fed-back slots in the place of auxiliary images, in three stages.

    1. Auxiliary images stand in the reply. Next-token loss, in which observations weigh more.
    2. A block of K slots stands behind each. Nothing but the slots sees the image; what observations then are in every
       layer is aligned with what they are to stage 1's model, by gradient through the slots' inputs alone.
    3. From stage 1 again: the blocks without the images. The slots are aligned with those of stage 2 in every layer.

    An auxiliary image is one that a step shows. Where no step shows any, it is the part of an image that a region
    marks: that of each step if there are as many, else the first one, before the first step. An observation is the text
    behind an auxiliary image, as far as the line goes.
    """

    kind: Literal["monet"] = "monet"
    label = "Monet"
    has_latents = True
    writes_blocks = True
    model_type = "monet"
    columns: ClassVar = {**FeedbackBlocks.columns, "align": ("align",)}
    stage: Literal[1, 2, 3] = Field(3, description="1: images; 2: images and slots, taught by 1; 3: slots, taught by 2")
    observation_weight: float | None = Field(
        None, gt=0, description="of an observation's tokens in the next-token loss; left out: 2 in stage 1, 4 behind it"
    )
    align_weight: float | None = Field(
        None, ge=0, description="of the alignment; left out: 4 in stage 2 (the paper's 2 x 2), 2 in stage 3"
    )
    max_blocks: int = Field(8, ge=1, description="auxiliary images of a sample, at most; later ones leave it")
    crop_tokens: int = Field(
        256, ge=1, description="image tokens of a region's image, at most; the token budget counts as many for each"
    )

    @model_validator(mode="after")
    def _aligned(self) -> MonetMethod:
        if self.stage == 1 and self.align_weight:
            raise ValueError("stage 1 of Monet has no alignment; leave align_weight out")
        return self

    @property
    def weight_of_observations(self) -> float:
        """As configured, else the paper's."""
        paper = 2.0 if self.stage == 1 else 4.0
        return paper if self.observation_weight is None else self.observation_weight

    @property
    def weight_of_alignment(self) -> float:
        """As configured, else the paper's; stage 1 has none."""
        paper = {1: 0.0, 2: 4.0, 3: 2.0}[self.stage]
        return paper if self.align_weight is None else self.align_weight

    @property
    def sequences(self) -> int:
        """The student's, and the teacher's if there is one."""
        return 2 if self.weight_of_alignment else 1

    def starts_from(self, before: Sequence[MethodConfig]) -> int | None:
        """Stages 2 and 3 from the last stage 1."""
        return super().starts_from(before) if self.stage == 1 else self._last(1, before)

    def taught_by(self, before: Sequence[MethodConfig]) -> int | None:
        """The last of the stages before it in number."""
        return self._last(self.stage - 1, before) if self.weight_of_alignment else None

    def _last(self, stage: int, before: Sequence[MethodConfig]) -> int:
        for number in reversed(range(len(before))):
            if isinstance(method := before[number], MonetMethod) and method.stage == stage:
                return number
        raise ValueError(f"stage {self.stage} of Monet needs its stage {stage}; put one before it")

    def layout(self, sample: StoredSample, latent: LatentConfig) -> list[Segment]:
        """Prompt, then steps with images, blocks or both in their places, then the answer."""
        return [Segment("prompt", sample.question), *self._reply(sample, latent)]

    def teacher(self, sample: StoredSample, latent: LatentConfig) -> list[Segment] | None:
        """What the stage that teaches is trained on."""
        return self._before.layout(sample, latent) if self.weight_of_alignment else None

    def shown(self, sample: StoredSample) -> list[Shown]:
        """The question's images, and auxiliary ones but in stage 3."""
        auxiliary = self._auxiliary(sample) if self.stage < 3 else []
        return [*range(shown_by_question(sample.images, sample.steps)), *auxiliary]

    def shown_to_teacher(self, sample: StoredSample) -> list[Shown]:
        """As to the stage that teaches."""
        return self._before.shown(sample)

    @property
    def _before(self) -> MonetMethod:
        """The stage that teaches."""
        return self.model_copy(update={"stage": self.stage - 1})

    def lacks(self, sample: StoredSample) -> str | None:
        """An auxiliary image."""
        return None if None in self._texts(sample) else "an image that a step shows, or a region"

    def added_tokens(self, latent: LatentConfig) -> int:
        """Blocks, and regions' images with their two markers."""
        image, block = self.crop_tokens + 2, latent.num_slots + 2
        own = {1: image, 2: image + block, 3: block}
        taught = own[self.stage - 1] if self.weight_of_alignment else 0
        return self.max_blocks * (own[self.stage] + taught)

    def cost(self, latent: LatentConfig) -> Cost:
        """The student's rows, and the teacher's."""
        from amvl_core.methods.monet.cost import MonetCost

        return MonetCost(self, latent)

    def problem(self, latent: LatentConfig, num_layers: int | None, zero_stage: int) -> str | None:
        """A ZeRO stage under which ranks would wait for each other."""
        if self.stage > 1 and zero_stage == 3:
            return (
                "zero_stage 3 gathers all weights anew for every fed-back slot, and ranks whose samples have unequally "
                "many blocks would wait for each other for ever; use 0, 1 or 2"
            )
        return None

    def _reply(self, sample: StoredSample, latent: LatentConfig) -> Iterator[Segment]:
        seen = False
        left = self.max_blocks
        for text in self._texts(sample):
            if text is None:
                if left:
                    yield from [Segment("image", IMAGE_PLACEHOLDER)] if self.stage < 3 else []
                    yield from self.block(latent, None) if self.stage > 1 else []
                    seen, left = True, left - 1
                continue
            observed = seen and bool(text.strip())
            yield Segment("step", text, observation=observed)
            seen = seen and not observed
        yield Segment("answer", sample.answer, observation=seen)

    def _texts(self, sample: StoredSample) -> Iterator[str | None]:
        """The texts of the steps, cut where auxiliary images stand; None for each of these."""
        regions = len(_regions(sample))
        if not sample.steps:
            yield from [None] * regions
        for number, step in enumerate(sample.steps):
            first, *others = f"{step}{STEP_END}".split(IMAGE_PLACEHOLDER)
            yield from [None] if number < regions else []
            yield from [first] if first else []
            for text in others:
                yield None
                yield from [text] if text else []

    def _auxiliary(self, sample: StoredSample) -> list[Shown]:
        """The auxiliary images in order."""
        shown = range(shown_by_question(sample.images, sample.steps), len(sample.images))
        crops = [Crop(region.image, region.box, self.crop_tokens) for region in _regions(sample)]
        return [*shown, *crops][: self.max_blocks]

    @classmethod
    def presets(cls) -> dict[str, Callable[[], RunConfig]]:
        """The paper's run, and the demo's data and model."""
        from amvl_core.methods.monet.presets import monet, monet_demo

        return {"monet": monet, "monet-demo": monet_demo}

    @classmethod
    def tables(cls) -> dict[str, Table]:
        """Controls, and the number of latent steps at inference."""
        from amvl_core.methods.monet.tables import TABLES

        return TABLES


def _regions(sample: StoredSample) -> Sequence[Region]:
    """Those that auxiliary images are cut from."""
    if any(IMAGE_PLACEHOLDER in step for step in sample.steps):
        return ()
    return sample.regions if len(sample.regions) == len(sample.steps) else sample.regions[:1]


CONFIG = MonetMethod
