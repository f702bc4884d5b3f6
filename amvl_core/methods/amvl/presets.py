"""Whole configurations, as functions: they can be compared, tested and composed. Imports no torch."""

from __future__ import annotations

from amvl_core.contracts.config import (
    ClusterConfig,
    DataConfig,
    EvaluationConfig,
    HeldoutConfig,
    ModelConfig,
    RunConfig,
    StageConfig,
    TrainerConfig,
    override,
)
from amvl_core.contracts.latent import LatentConfig
from amvl_core.contracts.sources import MicroworldSource
from amvl_core.contracts.storage import LOCAL_STORAGE
from amvl_core.methods.amvl.config import AmvlMethod
from amvl_core.methods.sft.config import SftMethod


def paper() -> RunConfig:
    """The paper's run: Qwen2.5-VL-7B on two nodes of 8 A100s (Appendix E)."""
    return RunConfig(
        stages={
            "embedding_adaptation": StageConfig(method=AmvlMethod(), trainable="new_rows", epochs=0.15),
            "amvl": StageConfig(method=AmvlMethod(), epochs=2.85),
        }
    )


def demo() -> RunConfig:
    """The whole pipeline on two CPU cores: a tiny model from scratch on microworld."""
    amvl = AmvlMethod(beta_warmup=100, gamma_start=50, gamma_warmup=100, kl_reduction="mean")
    batch = {"global_batch": 32, "micro_tokens": 4096, "beta2": 0.98}
    return RunConfig(
        storage=LOCAL_STORAGE,
        data=DataConfig(
            sources=(MicroworldSource(),),
            min_pixels=16 * 16,
            max_pixels=128 * 128,
            max_tokens=256,
            rows_per_shard=2048,
        ),
        model=ModelConfig(base="tiny"),
        latent=LatentConfig(num_slots=4, dim=32, head_hidden=128),
        stages={
            "sft": StageConfig(method=SftMethod(), trainable="all", steps=1500, lr=2e-3, **batch),
            "embedding_adaptation": StageConfig(method=amvl, trainable="new_rows", steps=20, lr=5e-3, **batch),
            "amvl": StageConfig(method=amvl, steps=200, lr=5e-4, **batch),
        },
        heldout=HeldoutConfig(samples=64),
        trainer=TrainerConfig(
            zero_stage=1,
            precision="fp32",
            gradient_checkpointing=False,
            loader_workers=1,
            log_every=10,
            checkpoint_every=500,
        ),
        cluster=ClusterConfig(num_workers=2),
        evaluation=EvaluationConfig(batch_size=100, max_pixels=256 * 256, controls=()),
    )


def ablation() -> RunConfig:
    """The demo's data, model and base, with longer AMVL stages; a row is one worker, so that two run on two cores."""
    method = {"beta_warmup": 200, "gamma_start": 100, "gamma_warmup": 200}
    stages = {"embedding_adaptation": {"method": method}, "amvl": {"method": method, "steps": 400}}
    return override(demo(), {"stages": stages, "cluster": {"num_workers": 1}})
