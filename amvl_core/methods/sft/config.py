"""Supervised fine-tuning: what it says of itself without torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from amvl_core.contracts.errors import ConfigError
from amvl_core.methods.curriculum import StepsReplaced
from amvl_core.methods.masks import MaskedMethod

if TYPE_CHECKING:
    from amvl_core.contracts.config import RunConfig


class SftMethod(MaskedMethod, StepsReplaced):
    """Supervised fine-tuning of the base model, without latents."""

    kind: Literal["sft"] = "sft"
    label = "SFT"

    @classmethod
    def control(cls, config: RunConfig) -> tuple[str, RunConfig]:
        """Plain fine-tuning from the same base, as long as all stages of the method together.

        Their stages of new rows alone have no counterpart without new tokens: their steps are added to the last stage.
        Raises ConfigError where the stages give their length in different units.
        """
        from amvl_core.contracts.ablations import method_stages, with_stages

        stages, kind = list(method_stages(config).values()), config.method.kind
        kept = [stage for stage in stages if stage.trainable != "new_rows"]
        if not kept:
            raise ConfigError(f"every {kind} stage trains new rows only; fine-tuning of equal steps has no counterpart")
        steps, epochs = [s.steps for s in stages if s.steps], [s.epochs for s in stages if s.epochs]
        if steps and epochs:
            raise ConfigError(f"the {kind} stages give both steps and epochs; give all in one of them, to be added up")
        last = kept[-1].model_copy(
            update={
                "method": cls(),
                "steps": sum(steps) or None,
                "epochs": sum(epochs) or None,
                "lr_scale": kept[-1].lr_scale.model_copy(update={"latent": 1.0}),
            }
        )
        return "SFT, equal steps", with_stages(config, {"sft_equal_steps": last})


CONFIG = SftMethod
