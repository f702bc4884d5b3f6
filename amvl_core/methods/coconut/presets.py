"""Whole configurations of Coconut. Imports no torch."""

from __future__ import annotations

from amvl_core.contracts.ablations import with_stages
from amvl_core.contracts.config import LrScale, RunConfig, override
from amvl_core.contracts.sources import MicroworldSource
from amvl_core.methods.coconut.config import CoconutMethod
from amvl_core.methods.curriculum import curriculum


def coconut_demo() -> RunConfig:
    """The whole pipeline on two CPU cores, on chains of one to three steps, where the latents are needed.

    The tiny model has tied embeddings and learns to write the steps. Then they leave in three stages, and three slots
    take their place (docs/experiments/latents.md says why so).
    """
    from amvl_core.contracts.presets import PRESETS

    chains = MicroworldSource(tasks=("chain",), difficulty=(1, 3), train=16000, test=600)
    base = override(
        PRESETS["demo"](),
        {
            "data": {"sources": [chains.model_dump(mode="json")]},
            "model": {"tiny": {"tie_word_embeddings": True}},
            "latent": {"num_slots": 3},
            "stages": {"sft": {"lr_scale": LrScale(embeddings=0.2).model_dump()}},
        },
    )
    method = CoconutMethod(slots_per_step=None)
    stage = list(base.stages.values())[-1].model_copy(update={"method": method, "steps": 320, "lr": 1e-3})
    return with_stages(base, curriculum("coconut", stage, most=2))
