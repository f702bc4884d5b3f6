"""The model registry: a checkpoint becomes a version of a registered model that answers questions about images."""

from __future__ import annotations

import io
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any, NamedTuple

import amvl_core
from amvl_core.contracts import storage
from amvl_core.contracts.config import CHALLENGER, RunConfig
from amvl_core.contracts.errors import StorageError
from amvl_core.contracts.fingerprints import evaluated
from amvl_core.contracts.records import (
    CheckpointRecord,
    DatasetRecord,
    EvalRecord,
    ModelRecord,
    load_record,
    save_record,
)
from amvl_core.contracts.records import fingerprint as canonical_fingerprint
from amvl_core.contracts.sample import IMAGE_PLACEHOLDER, PLACEHOLDER
from amvl_core.contracts.sources import MicroworldSource
from amvl_core.data.reader import ShardReader
from amvl_core.eval.pairing import compare_evaluations
from amvl_core.eval.significance import Comparison, p_text
from infra.mlflow_client import AS_TRAINING, TIME_LIMIT, address, client, metric_name, uploading
from infra.provenance import UNKNOWN, installed, provenance
from infra.tracking import data_name

VERSION = 4
MAX_DESCRIPTION, MAX_TABLE = 5000, 4000
"""Characters of a version's description in MLflow's database, and of the table of scores in it."""
LOGGED_MODEL = "model"
"""The run's own name for what it logs: MLflow refuses a dot there, which a registered model may have."""
REQUIREMENTS = ("torch", "transformers", "mlflow", "pillow", "pydantic", "safetensors", "numpy", "fsspec", "botocore")
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


BEST = "best_version"
"""The tag of a registered model that names the version which scored best so far."""


SOURCES = "sources"
"""The tag of a version that names the sources whose questions it was asked."""


MARGIN = "gate_margin"
"""The tag of a version that says under which margin the gate decided."""


class Champion(NamedTuple):
    """A version that a new one is held against; `checkpoint` is None where its files are not to be found any more.

    `sources` is its tag, empty where an earlier release registered it.
    """

    version: int
    checkpoint: CheckpointRecord | None
    sources: str = ""


class Decision(NamedTuple):
    """The alias that a new version takes, and why; how it compares with the best version so far, and which is now."""

    alias: str
    reason: str
    against_best: str = "there is none to compare with"
    best: int | None = None
    """The version that scores best; None: the new one."""


def is_current(config: RunConfig, new: EvalRecord, record: ModelRecord) -> bool:
    """Whether the registry still holds the version that `record` names, and has a champion: it may have been emptied.

    A version whose answers were mostly cut (`new`) may be there without one. A version that the gate refused under
    another margin is not current, unless somebody gave it the alias by hand.

    Whether that version is still the champion is not asked: a finished pipeline that is run again must not take the
    alias back from a newer one.
    """
    version = _version(config, record)
    if version is None:
        return False
    refused = record.alias == CHALLENGER and config.tracking.alias not in version.aliases
    if refused and version.tags.get(MARGIN) != _margin(config):
        return False
    return new.mostly_cut or champion(config) is not None


def _margin(config: RunConfig) -> str:
    return f"{config.tracking.margin:g}"


def _version(config: RunConfig, record: ModelRecord) -> Any:
    """The version that `record` names, or None where the registry does not hold it any more."""
    found = _found(config, lambda asked: asked.get_model_version(record.name, str(record.version)))
    return found if found is not None and found.run_id == record.run_id else None


def champion(config: RunConfig) -> Champion | None:
    """The version under `tracking.alias`, or None where nothing holds it."""
    name, alias = config.tracking.registered_model, config.tracking.alias
    return _held(config, lambda asked: asked.get_model_version_by_alias(name, alias))


def best(config: RunConfig) -> Champion | None:
    """The version that scored best of all that were registered so far, or None where none is known."""
    name = config.tracking.registered_model
    return _held(
        config, lambda asked: asked.get_model_version(name, asked.get_registered_model(name).tags.get(BEST, "0"))
    )


def _held(config: RunConfig, find: Callable[[Any], Any]) -> Champion | None:
    """The version that `find` finds in the registry, or None.

    Its checkpoint is looked for below the present storage root, then where it was when it was registered.
    """
    found = _found(config, find)
    if found is None:
        return None
    fingerprint = found.tags.get("checkpoint_fingerprint", "")
    here = storage.join(storage.absolute(config.storage), "train", fingerprint)
    checkpoints = (_checkpoint(uri, fingerprint) for uri in (here, found.tags.get("checkpoint_uri", here)))
    checkpoint = next((c for c in checkpoints if c is not None), None)
    return Champion(int(found.version), checkpoint, found.tags.get(SOURCES, ""))


def _found(config: RunConfig, find: Callable[[Any], Any]) -> Any:
    """What `find` asks the registry for, or None where it has no such thing. StorageError where it does not answer."""
    from mlflow.exceptions import MlflowException

    try:
        return find(client(config))
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise StorageError(f"the model registry at {address(config)} does not answer: {error}") from error


def _checkpoint(uri: str, fingerprint: str) -> CheckpointRecord | None:
    try:
        record = load_record(uri, CheckpointRecord)
    except StorageError:
        return None
    return record if record is not None and record.fingerprint == fingerprint else None


def sources(config: RunConfig, dataset: DatasetRecord) -> str:
    """The sources that have questions in the test split, by kind and name: `chat_jsonl/cups, microworld/turn`.

    Own data that has no name is called by its folder. Microworld is named task by task, each asks other questions.
    """
    tested = {report.source for report in dataset.reports if report.split == "test" and report.kept}
    found: set[str] = set()
    for source in config.data.sources:
        if isinstance(source, MicroworldSource):
            found |= {f"{source.kind}/{task}" for task in source.tasks if source.kind in tested}
        elif source.name in tested:
            found.add(f"{source.kind}/{data_name(source)}")
    return ", ".join(sorted(found))


def unasked(held: Champion, asked: str) -> list[str]:
    """The sources of `held` that are not among those which a new version was `asked`."""
    return sorted(set(held.sources.split(", ")) - {*asked.split(", "), ""})


def of_other_data(config: RunConfig, present: Champion, leader: Champion | None, left: list[str]) -> Decision:
    """The gate's answer to a version that was asked nothing of the sources `left`, which the champion was asked."""
    alias = config.tracking.alias
    reason = (
        f"not compared with the present {alias}, version {present.version}: it answers questions of "
        f"{', '.join(left)}, of which this version was asked none; set tracking.registered_model to another name, or "
        "move the alias by hand"
    )
    return Decision(CHALLENGER, reason, "not compared", (leader or present).version)


def decide(
    config: RunConfig,
    new: EvalRecord,
    present: Champion | None,
    held: EvalRecord | None,
    trouble: str = "",
    others: Mapping[int, EvalRecord] | None = None,
) -> Decision:
    """The gate: a new version takes the alias where it is shown to be at most `tracking.margin` points worse.

    `held` is the champion's evaluation on the items and with the settings of `new`, or None where it could not be
    evaluated (`trouble` says why): a champion is never replaced unseen. `others` are such evaluations of further
    versions: with the best of all the new one is compared besides. A version most of whose answers were cut is never
    champion: nobody knows what it says.
    """
    alias, margin = config.tracking.alias, config.tracking.margin
    scored = {**(others or {}), **({present.version: held} if present and held else {})}
    against_best, leader = "there is none to compare with", None
    if scored:
        on_top = present.version if present else 0  # of versions that score alike
        leader = max(scored, key=lambda number: (scored[number].overall.accuracy, number == on_top, -number))
        found = compare_evaluations(scored[leader], new)
        against_best = f"version {leader}: {change(found)}"
        if found.difference > 0:
            leader = None
    if new.mostly_cut:
        reason = (
            f"{new.cut:,} of {new.asked:,} answers were cut before their end; raise evaluation.max_new_tokens, or "
            "train until the model ends its answers"
        )
        return Decision(CHALLENGER, reason, against_best, leader)
    if present is None:
        return Decision(alias, f"the first {alias}", against_best, leader)
    if held is None:
        why = trouble or "its checkpoint is not there any more"
        reason = (
            f"not compared with the present {alias}, version {present.version}: {why}; move the alias by hand, or "
            "delete it and run again"
        )
        return Decision(CHALLENGER, reason, against_best, leader)
    found = compare_evaluations(held, new)
    within = 100 * found.low > -margin
    if within:
        verdict = "not worse than the former"
    elif found.high < 0:
        verdict = "worse than the present"
    else:
        verdict = f"not shown to lose less than tracking.margin ({margin:g} points) against the present"
    reason = f"{verdict} {alias}, version {present.version}: {change(found)}"
    if not against_best.startswith(f"version {present.version}:"):
        reason += f"; against the best so far, {against_best}"
    return Decision(alias if within else CHALLENGER, reason, against_best, leader)


def change(found: Comparison) -> str:
    """`+1.2 points (-0.4 to +2.8), n = 800, 21 gained, 11 lost, McNemar exact p = 0.1102`."""
    p = p_text(found.p)
    return (
        f"{100 * found.difference:+.1f} points ({100 * found.low:+.1f} to {100 * found.high:+.1f}), n = {found.n:,}, "
        f"{found.gained} gained, {found.lost} lost, {found.test} p {p if p.startswith('<') else f'= {p}'}"
    )


def unservable(dataset: DatasetRecord) -> list[str]:
    """A warning where the registered model takes not all test questions; no image is read.

    Shards that are not there any more are asked nothing: an evaluation that is finished does not need them.
    """
    try:
        questions = ShardReader(dataset, "test").column("question")
    except StorageError:
        return []
    if not (count := sum(PLACEHOLDER.findall(question) != [IMAGE_PLACEHOLDER] for question in questions)):
        return []
    return [
        f"register: {count:,} of {len(questions):,} test questions ({count / len(questions):.0%}) cannot be asked of "
        "the registered model, which takes one image with each: they have none, several or a video"
    ]


def run_fragment(config: RunConfig, run_id: str, tab: str = "") -> str:
    """Where the run is on an MLflow page, or one of its tabs: what follows the server's address."""
    experiment_id = client(config).get_run(run_id).info.experiment_id
    return f"/#/experiments/{experiment_id}/runs/{run_id}{tab}{AS_TRAINING}"


def register(
    config: RunConfig,
    run_id: str,
    dataset: DatasetRecord,
    checkpoint: CheckpointRecord,
    evaluations: list[EvalRecord],
    decision: Decision,
    uri: str,
    scores: str,
) -> ModelRecord:
    """Logs the model with the run `run_id`, registers it as a new version with its alias, writes the record.

    A version that the record at `uri` names and the registry still holds is kept: only its alias is decided anew.
    `evaluations` end with the model's own. `scores` is their table in Markdown: the version's description has it below
    the reason of the decision. Raises StorageError where the registry or its artifact store does not take the model.
    """
    name = config.tracking.registered_model
    mlflow_client = client(config)
    from mlflow.exceptions import MlflowException

    before = load_record(uri, ModelRecord)
    known = _version(config, before) if before else None
    try:
        if known:
            version, run_id = known.version, known.run_id
            for alias in {*known.aliases} & {CHALLENGER} - {decision.alias}:
                mlflow_client.delete_registered_model_alias(name, alias)
        else:
            version = _log(config, run_id, checkpoint, evaluated(config, dataset))
        tags = _tags(dataset, checkpoint, evaluations) | {SOURCES: sources(config, dataset)}
        tags |= {"gate": decision.alias, MARGIN: _margin(config)}
        for key, value in tags.items():
            mlflow_client.set_model_version_tag(name, version, metric_name(key), value)
        described = f"**{decision.alias}**: {decision.reason}\n\nAgainst the best so far: {decision.against_best}"
        mlflow_client.update_model_version(name, version, f"{described}\n\n{scores}"[:MAX_DESCRIPTION])
        mlflow_client.set_registered_model_alias(name, decision.alias, version)
        mlflow_client.set_registered_model_tag(name, BEST, str(decision.best or version))
    except (MlflowException, OSError) as error:
        raise StorageError(
            f"the model registry at {address(config)} did not take {name}: {error}; the checkpoint at "
            f"{checkpoint.uri} is complete, so a second run only registers it. Where an upload takes too long, set "
            f"{TIME_LIMIT} to more seconds"
        ) from error
    record = ModelRecord(
        uri=uri,
        fingerprint=fingerprint(config, checkpoint, evaluations),
        name=name,
        version=int(version),
        alias=decision.alias,
        reason=decision.reason,
        run_id=run_id,
        tracking_uri=address(config),
    )
    save_record(record)
    return record


def _log(config: RunConfig, run_id: str, checkpoint: CheckpointRecord, settings: dict[str, Any]) -> str:
    """Writes the model's files and the `settings` that it was evaluated with; returns the new version."""
    import mlflow
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema

    signature = ModelSignature(
        # Base64 text: a column of type binary MLflow would decode itself, in two of its four forms and unchecked.
        inputs=Schema([ColSpec(DataType.string, "image"), ColSpec(DataType.string, "question")]),
        outputs=Schema([ColSpec(DataType.string)]),
    )
    with tempfile.TemporaryDirectory() as temporary, _quiet(), mlflow.start_run(run_id=run_id), uploading():
        folder = storage.download(checkpoint.model_uri, Path(temporary))
        info = mlflow.pyfunc.log_model(
            name=LOGGED_MODEL,
            python_model=str(Path(__file__).with_name("pyfunc_model.py")),
            artifacts={"model": str(folder)},
            model_config={
                **{name: value for name, value in settings.items() if value is not None},
                "gpus": config.cluster.evaluation_gpus,
            },
            code_paths=[str(Path(amvl_core.__file__).parent)],
            signature=signature,
            pip_requirements=_requirements(),
            registered_model_name=config.tracking.registered_model,
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
    return {
        "data_fingerprint": dataset.fingerprint,
        "checkpoint_fingerprint": checkpoint.fingerprint,
        "checkpoint_uri": checkpoint.uri,
        "method": checkpoint.method,
        "commit": made["commit"],
        "dirty": made["dirty"],
        "accuracy": f"{evaluations[-1].overall.accuracy:.4f}",
        "n": str(evaluations[-1].overall.n),
    }
