"""Whole configurations of Monet. Imports no torch."""

from __future__ import annotations

from typing import Any

from amvl_core.contracts.ablations import with_stages
from amvl_core.contracts.config import ClusterConfig, DataConfig, RunConfig, StageConfig, override
from amvl_core.contracts.latent import LatentConfig
from amvl_core.contracts.sources import CogcomSource, MonetSource
from amvl_core.methods.monet.config import MonetMethod


def monet() -> RunConfig:
    """The paper's supervised part: Qwen2.5-VL-7B on eight GPUs. An epoch is about a thousand steps.

    Its data have no test rows. CogCoM's are evaluated on.
    """
    common: dict[str, Any] = {"lr": 1e-5, "global_batch": 128, "warmup_ratio": 0.01}
    return RunConfig(
        data=DataConfig(
            sources=(
                MonetSource(uri="s3://amvl/sources/monet"),
                CogcomSource(uri="s3://amvl/sources/cogcom", train_limit=0),
            )
        ),
        latent=LatentConfig(num_slots=8),
        stages={
            "monet_1": StageConfig(method=MonetMethod(stage=1), epochs=4.0, **common),
            "monet_2": StageConfig(method=MonetMethod(stage=2), epochs=1.0, **common),
            "monet_3": StageConfig(method=MonetMethod(stage=3), epochs=1.0, **common),
        },
        cluster=ClusterConfig(num_workers=8),
    )


def monet_demo() -> RunConfig:
    """The whole pipeline on two CPU cores: the demo's data, tiny model and fine-tuning, then Monet on its regions."""
    from amvl_core.contracts.presets import PRESETS

    base = override(PRESETS["demo"](), {"latent": {"num_slots": 4}})
    last = list(base.stages.values())[-1]
    methods = {f"monet_{stage}": MonetMethod.model_validate({"stage": stage, "crop_tokens": 16}) for stage in (1, 2, 3)}
    return with_stages(base, {name: last.model_copy(update={"method": one}) for name, one in methods.items()})
