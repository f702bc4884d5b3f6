"""Whole configurations of VaLR. Imports no torch."""

from __future__ import annotations

from amvl_core.contracts.ablations import with_stages
from amvl_core.contracts.config import ClusterConfig, DataConfig, LrScale, RunConfig, StageConfig, override, validate
from amvl_core.contracts.encoders import EncoderConfig
from amvl_core.contracts.latent import LatentConfig
from amvl_core.contracts.sources import CogcomSource, MonetSource, OneThinkerSource
from amvl_core.methods.sft.config import SftMethod
from amvl_core.methods.valr.config import ValrMethod


def valr() -> RunConfig:
    """The paper's run: Qwen2.5-VL-7B on four A100s, fine-tuning and then blocks with alignment (VaLR-S).

    Its data have no test rows. CogCoM's are evaluated on.
    """
    stage = {"epochs": 1.0, "global_batch": 128, "warmup_ratio": 0.03, "weight_decay": 0.01}
    return RunConfig(
        data=DataConfig(
            sources=(
                MonetSource(uri="s3://amvl/sources/monet"),
                OneThinkerSource(uri="s3://amvl/sources/onethinker"),
                CogcomSource(uri="s3://amvl/sources/cogcom", train_limit=0),
            )
        ),
        latent=LatentConfig(num_slots=16),
        stages={
            "sft": StageConfig(method=SftMethod(), lr=1e-5, **stage),
            "valr": StageConfig(method=ValrMethod(), lr=2e-6, lr_scale=LrScale(latent=5.0), **stage),
        },
        cluster=ClusterConfig(num_workers=4),
    )


def valr_demo() -> RunConfig:
    """The whole pipeline on two CPU cores: the demo's data, tiny model and fine-tuning, then VaLR."""
    from amvl_core.contracts.presets import PRESETS

    base = override(PRESETS["demo"](), {"latent": {"num_slots": 4}})
    last = list(base.stages.values())[-1]
    method = ValrMethod(
        encoders=tuple(EncoderConfig(name=kind, source=f"tiny:{kind}", size=64) for kind in ("dinov3", "siglip")),
        align_layer=2,
        projector_width=128,
    )
    stage = last.model_copy(update={"method": method, "lr_scale": LrScale(latent=2.0)})
    return with_stages(base, {"valr": stage})


def valr_ablation() -> RunConfig:
    """The demo with a longer last stage; a row is one worker, so that two run on two cores."""
    return override(valr_demo(), {"stages": {"valr": {"steps": 400}}, "cluster": {"num_workers": 1}})


def valr_data() -> RunConfig:
    """The base of the table `data`: VaLR from the untrained tiny model, so that it sees no more than a row's share."""
    base = valr_ablation()
    first, last = base.stages["sft"], base.stages["valr"]
    stage = first.model_copy(update={"method": last.method, "lr_scale": last.lr_scale})
    return validate(base.model_copy(update={"stages": {"valr": stage}}).model_dump(mode="json"))
