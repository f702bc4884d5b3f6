"""LVR: what the method says of itself without torch (arXiv 2509.24251)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from amvl_core.contracts.latent import LatentConfig
from amvl_core.contracts.sample import IMAGE_PLACEHOLDER, PLACEHOLDER, Fill, Region, Segment, StoredSample
from amvl_core.methods.curriculum import StepsReplaced
from amvl_core.methods.masks import LaterMaskedMethod
from amvl_core.methods.reply_blocks import LATENT_END, LATENT_START, SLOT, FeedbackBlocks

if TYPE_CHECKING:
    from amvl_core.contracts.ablations import Table
    from amvl_core.contracts.config import RunConfig


class LvrMethod(LaterMaskedMethod, StepsReplaced, FeedbackBlocks):
    """Latent visual reasoning: slots that hold the vision tokens of a sample's region, each predicted by the state
    before it. L = L_CE + `feature_weight` L_MSE. At inference the model's own states stand there.
    """

    kind: Literal["lvr"] = "lvr"
    label = "LVR"
    has_latents = True
    writes_blocks = True
    model_type = "lvr"
    columns: ClassVar = {**FeedbackBlocks.columns, "mse": ("mse",)}
    replaced_steps: int | None = Field(
        None,
        ge=0,
        description="so many of a sample's first steps leave its reply, with their images; null: all",
    )
    feature_weight: float = Field(0.1, ge=0, description="of the error of the states before the slots")
    latent_steps: int = Field(8, ge=1, description="slots of a block at inference, each fed the state before it")
    max_slots: int = Field(
        1280,
        ge=1,
        description="vision tokens of a region, at most; of more, as many spread evenly (1280: a whole image of "
        "data.max_pixels' default)",
    )

    def slots(self, latent: LatentConfig) -> list[str]:
        """Those of a block at inference."""
        return [SLOT] * self.latent_steps

    def layout(self, sample: StoredSample, latent: LatentConfig) -> list[Segment]:
        """Question, a block for the first region, the steps that are left, answer.

        Both markers carry a label. A sample without a region in an image that is shown has no block.
        """
        block: list[Segment] = []
        if region := self._region(sample):
            fill = Fill(self.shown(sample).index(region.image), region.box, self.max_slots)
            slots = Segment("latent", SLOT, fill=fill)
            block = [Segment("step", LATENT_START), slots, Segment("step", LATENT_END)]
        return [Segment("prompt", sample.question), *block, *self.reply(sample)]

    def lacks(self, sample: StoredSample) -> str | None:
        """A region."""
        return None if self._region(sample) else "regions in images that are shown"

    def _region(self, sample: StoredSample) -> Region | None:
        """The first one, where the question or a step that is left shows its image, and not as a frame of a video."""
        if not sample.regions:
            return None
        region, image, videos = sample.regions[0], 0, iter(sample.videos)
        for number, text in enumerate((sample.question, *sample.steps)):
            for place in PLACEHOLDER.findall(text):
                frames = 1 if place == IMAGE_PLACEHOLDER else next(videos).frames
                if image <= region.image < image + frames:
                    gone = 0 < number <= self._gone(sample)
                    return None if gone or place != IMAGE_PLACEHOLDER else region
                image += frames
        return None

    def added_tokens(self, latent: LatentConfig) -> int:
        """The largest block."""
        return self.max_slots + 2

    @classmethod
    def presets(cls) -> dict[str, Callable[[], RunConfig]]:
        """The demo's data and model."""
        from amvl_core.methods.lvr.presets import lvr_demo

        return {"lvr-demo": lvr_demo}

    @classmethod
    def tables(cls) -> dict[str, Table]:
        """Controls, and the number of latent steps at inference."""
        from amvl_core.methods.lvr.tables import TABLES

        return TABLES


CONFIG = LvrMethod
