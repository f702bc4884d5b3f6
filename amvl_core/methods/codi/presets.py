"""Whole configurations of CODI. Imports no torch."""

from __future__ import annotations

from amvl_core.contracts.ablations import with_stages
from amvl_core.contracts.config import RunConfig, override
from amvl_core.methods.codi.config import CodiMethod


def codi_demo() -> RunConfig:
    """The whole pipeline on two CPU cores: the demo's data, tiny model and fine-tuning, then CODI with six slots."""
    from amvl_core.contracts.presets import PRESETS

    base = override(PRESETS["demo"](), {"latent": {"num_slots": 6}})
    stage = list(base.stages.values())[-1].model_copy(update={"method": CodiMethod()})
    return with_stages(base, {"codi": stage})
