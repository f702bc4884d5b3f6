"""The model registry: a checkpoint becomes a version of a registered model that answers questions about images."""

from __future__ import annotations

import io
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path

import amvl_core
from amvl_core import storage
from amvl_core.config import RunConfig
from amvl_core.errors import StorageError
from amvl_core.records import CheckpointRecord, DatasetRecord, EvalRecord, ModelRecord, save_record
from amvl_core.records import fingerprint as canonical_fingerprint
from infra.mlflow_client import client, metric_name, tracking_uri
from infra.provenance import UNKNOWN, installed, provenance

VERSION = 1
REQUIREMENTS = ("torch", "transformers", "mlflow", "pillow", "pydantic", "safetensors", "numpy", "fsspec", "pyarrow")
"""What `amvl_core` needs to load a model and answer; the versions are those that trained it."""


def fingerprint(config: RunConfig, checkpoint: CheckpointRecord, evaluations: list[EvalRecord]) -> str:
    """Names a registration: the weights, their scores, and the place in the registry."""
    return canonical_fingerprint(
        "register",
        VERSION,
        checkpoint=checkpoint.fingerprint,
        evaluations=[record.fingerprint for record in evaluations],
        model=config.tracking.registered_model,
        alias=config.tracking.alias,
        experiment=config.tracking.experiment,
    )


def is_current(config: RunConfig, record: ModelRecord) -> bool:
    """Whether the registry still holds the version that `record` names, under its alias: it may have been emptied."""
    from mlflow.exceptions import MlflowException

    try:
        version = client(config).get_model_version_by_alias(record.name, record.alias)
    except MlflowException:
        return False
    return int(version.version) == record.version and version.run_id == record.run_id


def run_fragment(config: RunConfig, run_id: str) -> str:
    """Where the run is on an MLflow page: what follows the server's address."""
    experiment_id = client(config).get_run(run_id).info.experiment_id
    return f"/#/experiments/{experiment_id}/runs/{run_id}"


def register(
    config: RunConfig,
    run_id: str,
    dataset: DatasetRecord,
    checkpoint: CheckpointRecord,
    evaluations: list[EvalRecord],
    uri: str,
) -> ModelRecord:
    """Logs the model with the run `run_id`, registers it as a new version, moves the alias to it, writes the record.

    `evaluations` end with the model's own. Raises StorageError where the registry or its artifact store does not
    take the model.
    """
    name, alias = config.tracking.registered_model, config.tracking.alias
    mlflow_client = client(config)
    from mlflow.exceptions import MlflowException

    try:
        version = _log(name, run_id, checkpoint)
        for key, value in _tags(dataset, checkpoint, evaluations).items():
            mlflow_client.set_model_version_tag(name, version, metric_name(key), value)
        mlflow_client.set_registered_model_alias(name, alias, version)
    except (MlflowException, OSError) as error:
        raise StorageError(
            f"the model registry at {tracking_uri(config)} did not take {name}: {error}; the checkpoint at "
            f"{checkpoint.uri} is complete, so a second run only registers it"
        ) from error
    record = ModelRecord(
        uri=uri,
        fingerprint=fingerprint(config, checkpoint, evaluations),
        name=name,
        version=int(version),
        alias=alias,
        run_id=run_id,
        tracking_uri=tracking_uri(config),
    )
    save_record(record)
    return record


def _log(name: str, run_id: str, checkpoint: CheckpointRecord) -> str:
    """Writes the model's files and returns the new version."""
    import mlflow
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema

    signature = ModelSignature(
        inputs=Schema([ColSpec(DataType.binary, "image"), ColSpec(DataType.string, "question")]),
        outputs=Schema([ColSpec(DataType.string)]),
    )
    with tempfile.TemporaryDirectory() as temporary, _quiet(), mlflow.start_run(run_id=run_id):
        folder = storage.download(checkpoint.model_uri, Path(temporary))
        info = mlflow.pyfunc.log_model(
            name=name,
            python_model=str(Path(__file__).with_name("pyfunc_model.py")),
            artifacts={"model": str(folder)},
            code_paths=[str(Path(amvl_core.__file__).parent)],
            signature=signature,
            pip_requirements=_requirements(),
            registered_model_name=name,
        )
    return str(info.registered_model_version)


@contextmanager
def _quiet() -> Iterator[None]:
    """MLflow speaks on standard error and in warnings; what went wrong still comes as an exception."""
    with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def _requirements() -> list[str]:
    """The installed versions, without the part after `+`, which names one machine's build."""
    found = {package: installed(package).split("+")[0] for package in REQUIREMENTS}
    return [f"{package}=={version}" for package, version in found.items() if version != UNKNOWN]


def _tags(dataset: DatasetRecord, checkpoint: CheckpointRecord, evaluations: list[EvalRecord]) -> dict[str, str]:
    made = provenance()
    scores = {f"accuracy.{score.task}": f"{score.accuracy:.4f}" for score in evaluations[-1].scores}
    return {
        "data_fingerprint": dataset.fingerprint,
        "checkpoint_fingerprint": checkpoint.fingerprint,
        "method": checkpoint.method,
        "commit": made["commit"],
        "dirty": made["dirty"],
        **scores,
        **{f"accuracy.{record.stage}": f"{record.overall.accuracy:.4f}" for record in evaluations},
        "accuracy": f"{evaluations[-1].overall.accuracy:.4f}",
        "n": str(evaluations[-1].overall.n),
    }
