"""Whole configurations of Mull-Tokens. Imports no torch."""

from __future__ import annotations

from amvl_core.contracts.ablations import with_stages
from amvl_core.contracts.config import DataConfig, RunConfig, StageConfig
from amvl_core.contracts.latent import LatentConfig
from amvl_core.contracts.sources import CogcomSource, ZebraCotSource
from amvl_core.methods.mull.config import MullMethod


def mull() -> RunConfig:
    """Both stages on Qwen2.5-VL-7B with 20 slots and the paper's learning rate; data, length and batch are ours.

    Zebra-CoT is published without test rows. CogCoM's are evaluated on.
    """
    stage = {"epochs": 1.0, "global_batch": 128, "lr": 1e-6}
    return RunConfig(
        data=DataConfig(
            sources=(
                ZebraCotSource(uri="s3://amvl/sources/zebra_cot"),
                CogcomSource(uri="s3://amvl/sources/cogcom", train_limit=0),
            )
        ),
        latent=LatentConfig(num_slots=20),
        stages={
            "mull_guided": StageConfig(method=MullMethod(guided=True), **stage),
            "mull": StageConfig(method=MullMethod(), **stage),
        },
    )


def mull_demo() -> RunConfig:
    """The whole pipeline on two CPU cores: the demo's data, tiny model and fine-tuning with steps, then both stages."""
    from amvl_core.contracts.presets import PRESETS

    base = PRESETS["demo"]()
    last = list(base.stages.values())[-1]
    method = MullMethod(image_size=64)
    guided = last.model_copy(update={"method": method.model_copy(update={"guided": True})})
    return with_stages(base, {"mull_guided": guided, "mull": last.model_copy(update={"method": method})})
