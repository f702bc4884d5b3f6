"""Names of trained and evaluated results: what they depend on, and nothing of the machines they ran on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from amvl_core.contracts.answer_length import max_new_tokens
from amvl_core.contracts.config import RunConfig, StageConfig
from amvl_core.contracts.content_identity import content_identity, encoder_identity
from amvl_core.contracts.records import CheckpointRecord, DatasetRecord, fingerprint

TRAIN_VERSION = 2
EVALUATE_VERSION = 7
FAITHFULNESS_VERSION = 5
ANALYSE_VERSION = 2
LINEAR_PROBE_VERSION = 1
SAMPLING_VERSION = 2
ABLATION_VERSION = 3
EXPERIMENT_VERSION = 3

EVALUATED = {"max_new_tokens", "tau", "latent_mode", "latent_steps", "seed"}
"""Fields of the evaluation's configuration that answers depend on."""

Controls = Sequence[tuple[str, CheckpointRecord]]
"""Checkpoints without latents, by the names that the rows of the faithfulness table give them."""


def train_fingerprint(
    config: RunConfig,
    stage: str,
    dataset: DatasetRecord,
    parent: CheckpointRecord | None,
    teacher: CheckpointRecord | None = None,
) -> str:
    """Of the checkpoint that `stage` leaves. The token budget and ZeRO stage only say how the same sum is taken."""
    return fingerprint(
        "train",
        TRAIN_VERSION,
        stage=_stage(config.stages[stage]),
        seed=config.seed,
        model=_model(config),
        latent=config.latent,
        precision=config.trainer.precision,
        dataset=dataset.fingerprint,
        parent=parent.fingerprint if parent else None,
        **({"teacher": teacher.fingerprint} if teacher else {}),
        **_heldout(config),
    )


def evaluated(config: RunConfig, dataset: DatasetRecord) -> dict[str, Any]:
    """What answers on `dataset` depend on beside the model: the fields `EVALUATED`, with a length in any case."""
    settings = config.evaluation.model_dump(mode="json", include=EVALUATED)
    return settings | {"max_new_tokens": max_new_tokens(config, dataset)}


def evaluate_fingerprint(config: RunConfig, dataset: DatasetRecord, model: CheckpointRecord | None) -> str:
    """Of the answers and scores of `model` (None: the untrained base) on the test split of `dataset`.

    The pixel budget is in the dataset's fingerprint: a prepared one's, or that of a published benchmark's questions.
    """
    return fingerprint(
        "evaluate",
        EVALUATE_VERSION,
        evaluation=evaluated(config, dataset),
        model=model.fingerprint if model else _model(config),
        dataset=dataset.fingerprint,
    )


def faithfulness_fingerprint(
    config: RunConfig, dataset: DatasetRecord, model: CheckpointRecord, controls: Controls
) -> str:
    """Of the answers of `model` under changed latents, and of the controls, on the same questions."""
    return fingerprint(
        "faithfulness",
        FAITHFULNESS_VERSION,
        evaluation={
            **config.evaluation.model_dump(mode="json", include={"faithfulness_items", "seed"}),
            "max_new_tokens": max_new_tokens(config, dataset),
        },
        model=model.fingerprint,
        controls=[[label, control.fingerprint] for label, control in controls],
        dataset=dataset.fingerprint,
    )


def analyse_fingerprint(config: RunConfig, dataset: DatasetRecord, model: CheckpointRecord) -> str:
    """Of the analysis of `model`'s latents on test samples."""
    return fingerprint(
        "analyse",
        ANALYSE_VERSION,
        evaluation=config.evaluation.model_dump(mode="json", include={"analysis_items", "seed"}),
        model=model.fingerprint,
        dataset=dataset.fingerprint,
    )


def linear_probe_fingerprint(dataset: DatasetRecord, model: CheckpointRecord) -> str:
    """Of the linear probes on what `model`'s slots hold on all test questions of `dataset`."""
    return fingerprint("linear_probe", LINEAR_PROBE_VERSION, model=model.fingerprint, dataset=dataset.fingerprint)


def sampling_fingerprint(config: RunConfig, dataset: DatasetRecord, model: CheckpointRecord) -> str:
    """Of several answers of `model` to questions of `dataset`'s test split."""
    return fingerprint(
        "sampling",
        SAMPLING_VERSION,
        evaluation={
            **config.evaluation.model_dump(mode="json", include={"sampled_items", "seed"}),
            "max_new_tokens": max_new_tokens(config, dataset),
        },
        model=model.fingerprint,
        dataset=dataset.fingerprint,
    )


def ablation_fingerprint(
    table: str,
    rows: dict[str, list[RunConfig]],
    dataset: DatasetRecord,
    base: CheckpointRecord | None,
    benchmarks: Sequence[DatasetRecord],
) -> str:
    """Of an ablation table: what each row (label -> a configuration per seed) trains and how it is evaluated.

    `benchmarks` are the questions of published ones.
    """
    return fingerprint(
        "ablation",
        ABLATION_VERSION,
        code=[TRAIN_VERSION, EVALUATE_VERSION, FAITHFULNESS_VERSION, ANALYSE_VERSION],
        table=table,
        rows={label: [_row(config) for config in configs] for label, configs in rows.items()},
        dataset=dataset.fingerprint,
        base=base.fingerprint if base else None,
        benchmarks=[questions.fingerprint for questions in benchmarks],
    )


def experiment_fingerprint(
    name: str,
    judged: Mapping[str, tuple[str, bool]],
    arms: dict[str, list[RunConfig]],
    dataset: DatasetRecord,
    base: CheckpointRecord,
    validation: str | None,
) -> str:
    """Of an experiment: what each arm (label -> a configuration per seed) trains, and how it is evaluated.

    `judged` says of each arm what it is held against: its role, and whether it writes steps. `validation` names the
    questions on which learning rates were chosen.
    """
    return fingerprint(
        "experiment",
        EXPERIMENT_VERSION,
        code=[TRAIN_VERSION, EVALUATE_VERSION, FAITHFULNESS_VERSION, LINEAR_PROBE_VERSION],
        name=name,
        judged=judged,
        arms={label: [_row(config) for config in configs] for label, configs in arms.items()},
        dataset=dataset.fingerprint,
        base=base.fingerprint,
        validation=validation,
    )


def _row(config: RunConfig) -> dict[str, Any]:
    return {
        "seed": config.seed,
        "model": _model(config),
        "latent": config.latent.model_dump(mode="json"),
        "precision": config.trainer.precision,
        **_heldout(config),
        "stages": [_stage(stage) for stage in config.stages.values()],
        "evaluation": config.evaluation.model_dump(
            mode="json", include={*EVALUATED, "faithfulness_items", "analysis_items"}
        ),
    }


def _stage(stage: StageConfig) -> dict[str, Any]:
    """Frozen encoders are in it by what their folders hold."""
    return stage.model_dump(mode="json", exclude={"micro_tokens"}, context=encoder_identity)


def _heldout(config: RunConfig) -> dict[str, int]:
    """How many samples are not trained on. Where there are none, names are those from before one could hold any out."""
    return {"heldout": config.heldout.samples} if config.heldout.samples else {}


def _model(config: RunConfig) -> dict[str, Any]:
    """The base model: the tiny one's fields, the content of a folder, or a Hub id."""
    base = config.model.base
    if base == "tiny":
        return config.model.model_dump(mode="json")
    return {"content": content_identity(base)} if Path(base).is_dir() else {"base": base}
