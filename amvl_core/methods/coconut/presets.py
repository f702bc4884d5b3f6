"""Whole configurations of Coconut. Imports no torch."""

from __future__ import annotations

from amvl_core.contracts.ablations import with_stages
from amvl_core.contracts.config import RunConfig
from amvl_core.methods.coconut.config import CoconutMethod
from amvl_core.methods.curriculum import curriculum


def coconut_demo() -> RunConfig:
    """The whole pipeline on two CPU cores: the demo's data, tiny model and fine-tuning with steps, then two slots for
    the first step, four for the first two, and four for all.
    """
    from amvl_core.contracts.presets import PRESETS

    base = PRESETS["demo"]()
    stage = list(base.stages.values())[-1].model_copy(update={"method": CoconutMethod()})
    return with_stages(base, curriculum("coconut", stage, most=base.latent.num_slots // 2))
