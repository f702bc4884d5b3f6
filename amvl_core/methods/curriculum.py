"""Steps in words that leave the sequence, and curricula of stages in which more of them do. Imports no torch."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, ClassVar, Self

from pydantic import Field

from amvl_core.contracts.latent import LatentConfig
from amvl_core.contracts.method import MethodConfig
from amvl_core.contracts.sample import IMAGE_PLACEHOLDER, Segment, StoredSample, reply, shown_by_question

if TYPE_CHECKING:
    from amvl_core.contracts.config import StageConfig


class MixedStages(MethodConfig):
    """The field of a method that a curriculum trains: a stage may hold samples of other stages."""

    steps_field: ClassVar[str]
    stage_mix: float = Field(
        0.0,
        ge=0,
        le=1,
        exclude_if=lambda share: share == 0,
        description="the share of samples for which it is drawn how many of their first steps are gone, from none to "
        "all (Coconut, Sec. 5.1: 0.3)",
    )

    def for_training(self, sample: StoredSample, latent: LatentConfig) -> Self:
        """The draw hangs on the sample's name and the stage, so it is the same in every epoch."""
        draw = random.Random(f"{sample.sample_id}/{getattr(self, self.steps_field)}")
        if draw.random() >= self.stage_mix:
            return self
        return self.model_copy(update={self.steps_field: draw.randint(0, len(sample.steps))})


class StepsReplaced(MethodConfig):
    """The field of a method whose reply may begin behind a sample's first steps."""

    steps_field = "replaced_steps"
    replaced_steps: int | None = Field(
        0, ge=0, description="so many of a sample's first steps leave its reply, with the images they show; null: all"
    )

    def reply(self, sample: StoredSample) -> list[Segment]:
        """The steps that are left, each as a line, then the answer."""
        *steps, answer = reply(sample)
        return [*steps[self._gone(sample) :], answer]

    def answers_next(self, sample: StoredSample) -> bool:
        """Where no step is left."""
        return self._gone(sample) >= len(sample.steps)

    def shown(self, sample: StoredSample) -> list[int]:
        """The images of the question and of the steps that are left."""
        asked = shown_by_question(sample.images, sample.steps)
        first = asked + sum(step.count(IMAGE_PLACEHOLDER) for step in sample.steps[: self._gone(sample)])
        return [number for number in range(len(sample.images)) if not asked <= number < first]

    def _gone(self, sample: StoredSample) -> int:
        return len(sample.steps) if self.replaced_steps is None else self.replaced_steps


def curriculum(name: str, stage: StageConfig, most: int) -> dict[str, StageConfig]:
    """Stages `name`_1 to `name`_`most`, which replace so many first steps, then `name`, which replaces all.

    All else in them is as in `stage`.
    Raises ValueError where the method of `stage` replaces no steps.
    """
    if not isinstance(stage.method, StepsReplaced):
        raise ValueError(f"{stage.method.kind} replaces no steps, so it has no curriculum over them")
    return {
        name if steps is None else f"{name}_{steps}": stage.model_copy(
            update={"method": stage.method.model_copy(update={"replaced_steps": steps})}
        )
        for steps in (*range(1, most + 1), None)
    }
