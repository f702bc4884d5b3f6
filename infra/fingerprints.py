"""Names of trained and evaluated results: what they depend on, and nothing of the machines they ran on."""

from __future__ import annotations

from typing import Any

from amvl_core.config import RunConfig
from amvl_core.records import CheckpointRecord, DatasetRecord, fingerprint

TRAIN_VERSION = 1
EVALUATE_VERSION = 2
ABLATION_VERSION = 1


def train_fingerprint(config: RunConfig, stage: str, dataset: DatasetRecord, parent: CheckpointRecord | None) -> str:
    """Of the checkpoint that `stage` leaves. The micro-batch and ZeRO stage only say how the same sum is taken."""
    return fingerprint(
        "train",
        TRAIN_VERSION,
        stage=config.stages[stage].model_dump(mode="json", exclude={"micro_batch"}),
        seed=config.seed,
        model=_model(config),
        latent=config.latent,
        precision=config.trainer.precision,
        dataset=dataset.fingerprint,
        parent=parent.fingerprint if parent else None,
    )


def evaluate_fingerprint(config: RunConfig, dataset: DatasetRecord, model: CheckpointRecord | None) -> str:
    """Of the scores of `model` (None: the untrained base) on the test split."""
    return fingerprint(
        "evaluate",
        EVALUATE_VERSION,
        evaluation=config.evaluation.model_dump(mode="json", exclude={"batch_size"}),
        model=model.fingerprint if model else _model(config),
        dataset=dataset.fingerprint,
    )


def ablation_fingerprint(
    table: str, rows: dict[str, list[RunConfig]], dataset: DatasetRecord, base: CheckpointRecord | None
) -> str:
    """Of an ablation table: what each row (label -> a configuration per seed) trains and how it is evaluated."""
    return fingerprint(
        "ablation",
        ABLATION_VERSION,
        code=[TRAIN_VERSION, EVALUATE_VERSION],
        table=table,
        rows={label: [_row(config) for config in configs] for label, configs in rows.items()},
        dataset=dataset.fingerprint,
        base=base.fingerprint if base else None,
    )


def _row(config: RunConfig) -> dict[str, Any]:
    return {
        "seed": config.seed,
        "model": _model(config),
        "latent": config.latent.model_dump(mode="json"),
        "precision": config.trainer.precision,
        "stages": [stage.model_dump(mode="json", exclude={"micro_batch"}) for stage in config.stages.values()],
        "evaluation": config.evaluation.model_dump(mode="json", exclude={"batch_size"}),
    }


def _model(config: RunConfig) -> dict[str, Any]:
    fields = config.model.model_dump(mode="json")
    return fields if config.model.base == "tiny" else {"base": fields["base"]}
