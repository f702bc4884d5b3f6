"""Whole configurations of LVR. Imports no torch."""

from __future__ import annotations

from amvl_core.contracts.ablations import with_stages
from amvl_core.contracts.config import RunConfig
from amvl_core.methods.lvr.config import LvrMethod


def lvr_demo() -> RunConfig:
    """The whole pipeline on two CPU cores: the demo's data, tiny model and fine-tuning, then LVR on its regions."""
    from amvl_core.contracts.presets import PRESETS

    base = PRESETS["demo"]()
    stage = list(base.stages.values())[-1].model_copy(update={"method": LvrMethod(max_slots=64)})
    return with_stages(base, {"lvr": stage})
