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
    """The fields of a method whose block has slots for each step that is gone.

    The block says how many steps are gone, so a stage may hold samples of other stages. Without that, a model that
    cannot tell the answer would write the steps of another stage.
    """

    steps_field: ClassVar[str]
    slots_per_step: int | None = Field(
        None,
        ge=1,
        exclude_if=lambda slots: slots is None,
        description="c, the slots that stand for a step; null: latent.num_slots in every stage",
    )
    stage_mix: float = Field(
        0.0,
        ge=0,
        le=1,
        exclude_if=lambda share: share == 0,
        description="the share of samples for which it is drawn how many of their first steps are gone, from none to "
        "all (`uniform_prob` in Coconut's code)",
    )

    def block_length(self, latent: LatentConfig) -> int:
        """c slots for each step that is gone; `latent.num_slots` for all steps together, or where there is no c."""
        gone = getattr(self, self.steps_field)
        return latent.num_slots if gone is None or self.slots_per_step is None else self.slots_per_step * gone

    def for_training(self, sample: StoredSample, latent: LatentConfig) -> Self:
        """The draw hangs on the sample's name and the stage, so it is the same in every epoch.

        None has more slots than the last stage: where one would, all steps are gone, as in that stage. Under the
        bottleneck mask a draw without a slot does not count, because such a sample would be blind.
        """
        draw = random.Random(f"{sample.sample_id}/{getattr(self, self.steps_field)}")
        if draw.random() >= self.stage_mix:
            return self
        gone = draw.randint(0, len(sample.steps))
        if gone == 0 and self.bottleneck:
            return self
        drawn = self.model_copy(update={self.steps_field: gone})
        beyond = drawn.block_length(latent) > latent.num_slots
        return drawn.model_copy(update={self.steps_field: None}) if beyond else drawn

    def problem(self, latent: LatentConfig, num_layers: int | None, zero_stage: int) -> str | None:
        """More slots than the last stage has, none at all, or a mixture whose stages look alike."""
        if self.stage_mix and self.slots_per_step is None:
            return "stage_mix needs slots_per_step: where all stages have one block, nothing says what is to be written"
        if self.slots_per_step is not None and getattr(self, self.steps_field) == 0:
            return (
                f"slots_per_step needs {self.steps_field}: where no step is gone, a block has no slot; set "
                f"{self.steps_field}, or leave slots_per_step out"
            )
        if (found := self.block_length(latent)) > latent.num_slots:
            return (
                f"{getattr(self, self.steps_field)} steps of {self.slots_per_step} slots are {found} slots, but all "
                f"steps together have latent.num_slots = {latent.num_slots}; raise it, or replace fewer steps"
            )
        return super().problem(latent, num_layers, zero_stage)


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


def curriculum(name: str, stage: StageConfig, stages: int) -> dict[str, StageConfig]:
    """Stages `name`_1 to `name`_`stages`: one more of the first steps is gone in each, and all are in the last.

    The last one is twice as long as the others: Coconut's code stays in it until the end. All else is as in `stage`.
    Raises ValueError where its method lets no steps go.
    """
    method, field = stage.method, stage.method.steps_field
    if field is None:
        raise ValueError(f"{method.kind} lets no steps go, so it has no curriculum over them")
    longer = {unit: 2 * length for unit in ("steps", "epochs") if (length := getattr(stage, unit)) is not None}
    return {
        f"{name}_{number}": stage.model_copy(
            update={"method": method.model_copy(update={field: gone}), **(longer if number == stages else {})}
        )
        for number, gone in enumerate((*range(1, stages), method.all_steps), 1)
    }
