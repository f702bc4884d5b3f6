"""What a task does with a stage that is finished; the work itself is in test_full_pipeline.py."""

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from prefect.logging import disable_run_logger

from amvl_core.contracts import storage
from amvl_core.contracts.config import RunConfig, override
from amvl_core.contracts.encoders import EncoderConfig
from amvl_core.contracts.errors import ClusterError, DataError
from amvl_core.contracts.fingerprints import evaluate_fingerprint, train_fingerprint
from amvl_core.contracts.progress import Progress
from amvl_core.contracts.records import (
    CheckpointRecord,
    DatasetRecord,
    EvalRecord,
    FeaturesRecord,
    ModelRecord,
    ReadingScore,
    Shard,
    SourceReport,
    TaskScore,
    save_record,
)
from amvl_core.eval.stored import write_table
from amvl_core.methods.amvl.presets import demo
from data_prep import features, pipeline, published
from flows import stage, tasks
from flows.stage import place
from infra import registry
from infra.cluster import Workers
from infra.mlflow_client import client
from infra.processes import Processes
from infra.ray_train import WorkerGroup
from infra.tracking import Tracker
from tests import shards
from tests.data_prep.test_features import stored


def test_a_finished_training_stage_is_reused_and_what_a_killed_run_left_beside_it_goes(tmp_path: Path) -> None:
    config = override(demo(), {"storage": str(tmp_path)})
    data = DatasetRecord(uri="u", fingerprint="d", schema_version=1, shards=[], kept=1, dropped={}, reports=[])
    uri = place(config, "train", train_fingerprint(config, "sft", data, None)).uri
    fields = {"stage": "sft", "method": "sft", "step": 1, "config": {}, "dataset": "d", "parent": None, "metrics": {}}
    record = CheckpointRecord(uri=uri, fingerprint="f", num_parameters=1, **fields)
    for name in ("model/config.json", "checkpoints/step-00000001/complete.json", "base/config.json"):
        storage.write_bytes(storage.join(uri, name), b"{}")
    save_record(record)
    with disable_run_logger():
        assert tasks.train.fn(config, "sft", data, None, Tracker(config), Processes(config)) == record
    assert storage.list_names(uri) == ["model", "record.json"]


def dataset(uri: str, split: str, rows: int) -> DatasetRecord:
    shards = [Shard.model_validate({"file": "0.parquet", "split": split, "rows": rows, "sha256": ""})]
    return DatasetRecord(uri=uri, fingerprint="d", schema_version=1, shards=shards, kept=rows, dropped={}, reports=[])


def test_a_dataset_without_a_test_split_ends_the_run_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = override(demo(), {"storage": str(tmp_path)})
    uri = place(config, "prepare", pipeline.fingerprint(config)).uri
    for name in ("report.html", "report.json"):
        storage.write_bytes(storage.join(uri, name), b"{}")
    save_record(dataset(uri, "train", 8))
    shown: list[str] = []
    monkeypatch.setattr(tasks, "create_table_artifact", lambda rows, key, description: shown.append(key))
    with disable_run_logger(), pytest.raises(DataError, match="no test split to evaluate on"):
        tasks.prepare.fn(config, Tracker(config))
    assert shown == ["drop-reasons"]  # what was dropped, and why, may be the reason


@pytest.fixture()
def said(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    for module in (tasks, stage):
        monkeypatch.setattr(module, "get_run_logger", lambda: logging.getLogger("run"))
    caplog.set_level(logging.INFO, logger="run")
    return caplog


def aligned(tmp_path: Path, *encoders: EncoderConfig, **data: bool) -> RunConfig:
    """The demo with a last stage that is aligned with these."""
    method = {"kind": "valr", "align_layer": 2, "encoders": [encoder.model_dump() for encoder in encoders]}
    stages = {"embedding_adaptation": {"method": method, "trainable": "all"}}
    changes = {"storage": str(tmp_path), "stages": {**stages, "amvl": {"method": method}}, "data": data}
    return override(demo(), changes)


def test_features_are_computed_once_for_each_encoder_that_is_no_part_of_the_model(tmp_path: Path) -> None:
    sources = {"dino": "tiny:dinov3", "clip": "tiny:clip", "own": "base"}
    dino, clip, own = (EncoderConfig(name=name, source=source) for name, source in sources.items())
    config = aligned(tmp_path, dino, own, features=True)
    assert config.encoders == (dino, own)
    assert tasks.computed_once([config, aligned(tmp_path, clip, dino, features=True)]) == [dino, clip]
    assert tasks.computed_once([aligned(tmp_path, dino)]) == tasks.computed_once([demo()]) == []


def test_features_are_found_again_and_a_stage_is_given_those_it_needs(
    ray_cluster: None, tmp_path: Path, said: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[Progress] = []
    monkeypatch.setattr(tasks, "working", lambda *_: nullcontext(events.append))
    rows = [shards.row(number) for number in range(3)]
    pi3 = stored(tmp_path / "pi3", [row.sample.images[0] for row in rows])
    renamed = pi3.model_copy(update={"name": "vit"})
    config = aligned(tmp_path, pi3, features=True)
    data = shards.write(str(tmp_path / "data"), [rows])
    (made,) = tasks.features.fn(config, [pi3], data, Tracker(config))
    assert made.encoder == pi3 and made.grid == (2, 3) and events[-1].line().startswith("features-pi3: 3/3 samples")
    (found,) = tasks.features.fn(config, [renamed], data, Tracker(config))
    assert found == made.model_copy(update={"encoder": renamed})
    assert said.messages == [f"features vit: reused {made.fingerprint}"]

    given: list[Sequence[FeaturesRecord]] = []

    def train(self: WorkerGroup, *arguments: Any) -> CheckpointRecord:
        given.append(arguments[-2])
        return CHECKPOINT

    monkeypatch.setattr(WorkerGroup, "train", train)
    monkeypatch.setattr(Tracker, "plan", lambda *_: None)
    for name in ("sft", "amvl"):
        tasks.train.fn(
            config,
            name,
            data,
            dict.fromkeys(config.stages, CHECKPOINT),
            Tracker(config),
            Processes(config),
            [made, found],
        )
    assert given == [[], [made]]


@pytest.mark.parametrize("task", ["prepare", "read", "features"])
def test_what_is_made_of_files_that_changed_meanwhile_is_removed(
    tmp_path: Path, said: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    """A fingerprint names the folder, and another one is in the record."""
    places: list[str] = []

    def made(*given: Any) -> DatasetRecord:
        places.append(next(one for one in given if isinstance(one, str) and one.startswith(str(tmp_path / "storage"))))
        save_record(dataset(places[-1], "test", 8))
        return dataset(places[-1], "test", 8)

    for module, name in ((pipeline, "prepare"), (published, "read"), (features, "compute")):
        monkeypatch.setattr(module, name, made)
    for name in ("working", "Reporter"):
        monkeypatch.setattr(tasks, name, lambda *_: nullcontext())
    monkeypatch.setattr(tasks, "progress_page", lambda _: None)
    monkeypatch.setattr(tasks.cluster, "resources", lambda _: Workers("cpu", 1))
    monkeypatch.setattr(Tracker, "start", lambda _: "run")
    (tmp_path / "vstar").touch()
    benchmark = {"name": "vstar", "uri": str(tmp_path / "vstar")}
    config = override(demo(), {"storage": str(tmp_path / "storage"), "evaluation": {"benchmarks": [benchmark]}})
    encoder, tracker = EncoderConfig(name="e", source="tiny:dinov3"), Tracker(config)
    with pytest.raises(DataError, match=f"{task}.*: the files that it reads changed while they were read"):
        if task == "prepare":
            tasks.prepare.fn(config, tracker)
        elif task == "read":
            tasks.read_benchmarks.fn(config, tracker)
        else:
            tasks.features.fn(config, [encoder], dataset("d", "train", 8), tracker)
    assert len(places) == 1 and not storage.exists(places[0])


CHECKPOINT = CheckpointRecord(
    uri="",
    fingerprint="",
    stage="s",
    method="m",
    step=1,
    config={},
    dataset="d",
    parent=None,
    num_parameters=1,
    metrics={},
)


def test_what_has_no_two_questions_has_no_suite_and_is_named(said: pytest.LogCaptureFixture) -> None:
    one, two, none = dataset("one", "test", 1), dataset("two", "test", 2), dataset("none", "train", 5)
    assert tasks.swappable(demo(), [one, two, none]) == [two]
    assert said.messages == [
        "faithfulness: left out for one: a swap needs at least 2 questions, it has 1",
        "faithfulness: left out for none: a swap needs at least 2 questions, it has 0",
    ]
    assert tasks.swappable(override(demo(), {"evaluation": {"faithfulness_items": 0}}), [two]) == []


@pytest.mark.parametrize(("rows", "items"), [(1, 256), (9, 1)])
def test_one_sample_is_not_analysed_and_the_run_goes_on(said: pytest.LogCaptureFixture, rows: int, items: int) -> None:
    config = override(demo(), {"evaluation": {"analysis_items": items}})
    fields = {"stage": "amvl", "method": "amvl", "step": 1, "config": {}, "dataset": "d", "parent": None, "metrics": {}}
    model = CheckpointRecord(uri="c", fingerprint="f", num_parameters=1, **fields)
    assert tasks.analyse.fn(config, dataset("q", "test", rows), model, Tracker(config), Processes(config)) is None
    assert said.messages == [
        f"analyse: left out: 1 test sample, at least 2 are compared (evaluation.analysis_items is {items})"
    ]


def test_the_gate_asks_the_champion_and_the_best_version_the_same_items(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: pytest.LogCaptureFixture
) -> None:
    """Version 1 scored best, version 2 is champion; of version 1 the checkpoint is gone in the end."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(tasks, "evaluate", tasks.evaluate.fn)
    config = override(demo(), {"storage": str(tmp_path), "tracking": {"margin": 5}})
    data = dataset("d", "test", 200)
    held = client(config)
    held.create_registered_model("amvl")
    for number, right in ((1, 150), (2, 140)):
        fields = {"stage": "amvl", "method": "amvl", "step": 1, "config": {}, "dataset": "d", "parent": None}
        uri = place(config, "train", f"c{number}").uri
        model = CheckpointRecord(uri=uri, fingerprint=f"c{number}", num_parameters=1, metrics={}, **fields)
        save_record(model)
        answers(place(config, "evaluate", evaluate_fingerprint(config, data, model)).uri, right)
        held.create_model_version("amvl", "nowhere")
        held.set_model_version_tag("amvl", str(number), "checkpoint_fingerprint", model.fingerprint)
    held.set_registered_model_alias("amvl", "champion", "2")
    held.set_registered_model_tag("amvl", "best_version", "1")
    new = answers(str(tmp_path / "new"), 139)

    decision = tasks._gate(config, data, new, "run", Processes(config))
    assert (decision.alias, decision.best) == ("champion", 1)
    assert decision.reason.startswith("not worse than the former champion, version 2: -0.5 points (")
    assert "; against the best so far, version 1: -5.5 points (" in decision.reason
    storage.remove(place(config, "train", "c1").uri)
    decision = tasks._gate(config, data, new, "run", Processes(config))
    assert (decision.alias, decision.best) == ("champion", 2)
    assert decision.against_best.startswith("version 2: -0.5 points (")
    assert said.text.count("evaluate champion-2: reused") == 2
    assert said.text.count("evaluate best-1: reused") == 1


def test_a_version_that_cannot_be_asked_is_asked_once_and_stays_the_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def evaluate(config: RunConfig, label: str, *_: object) -> list[EvalRecord]:
        asked.append(label)
        raise ClusterError("gone for a while")

    held = registry.Champion(2, checkpoint=CheckpointRecord.model_construct(fingerprint="held"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(tasks, "evaluate", evaluate)
    monkeypatch.setattr(registry, "champion", lambda _: held)
    monkeypatch.setattr(registry, "best", lambda _: held._replace())
    config = override(demo(), {"storage": str(tmp_path)})
    decision = tasks._gate(
        config, dataset("d", "test", 200), answers(str(tmp_path / "new"), 139), "run", Processes(config)
    )
    assert (decision.alias, decision.best, asked) == ("challenger", 2, ["champion-2"])
    assert "it cannot be evaluated on these items (gone for a while)" in decision.reason


def test_a_champion_of_other_data_is_neither_asked_nor_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mixture that holds its source as well is compared; a best version of other data is left out."""
    there = CheckpointRecord.model_construct(fingerprint="held")
    versions = {"champion": registry.Champion(2, there, "nlvr/nlvr"), "best": registry.Champion(1, there, "nlvr/nlvr")}
    asked = []

    def evaluate(config: RunConfig, label: str, *_: object) -> list[EvalRecord]:
        asked.append(label)
        return [held]

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(tasks, "evaluate", evaluate)
    for name in versions:
        monkeypatch.setattr(registry, name, lambda _, name=name: versions[name])
    config, held, new = override(demo(), {"storage": str(tmp_path)}), *(answers(str(tmp_path / x), 150) for x in "hn")

    def gate(*kinds: str) -> registry.Decision:
        about = {"split": "test", "read": 1, "kept": 1, "dropped": {}, "examples": {}}
        reports = [SourceReport.model_validate({"source": kind, **about}) for kind in kinds]
        data = dataset("d", "test", 200).model_copy(update={"reports": reports})
        sources = [{"kind": kind, "uri": "x.zip"} for kind in kinds]
        given = override(config, {"data": {"sources": sources}, "tracking": {"margin": 5}})
        return tasks._gate(given, data, new, "run", Processes(config))

    other = gate("easy_vqa")
    assert (other.alias, other.best, asked) == ("challenger", 1, [])
    assert other.reason == (
        "not compared with the present champion, version 2: it answers questions of nlvr/nlvr, of which this version "
        "was asked none; set tracking.registered_model to another name, or move the alias by hand"
    )
    assert other.against_best == "not compared"
    mixture = gate("easy_vqa", "nlvr")
    assert (mixture.alias, asked) == ("champion", ["champion-2", "best-1"])
    versions["best"] = registry.Champion(1, there, "easy_vqa/easy_vqa")  # before somebody moved the alias
    alone = gate("nlvr")
    assert (alone.alias, alone.best, asked[2:]) == ("champion", 2, ["champion-2"])


def test_questions_that_the_registered_model_cannot_be_asked_are_said_at_registration(
    tmp_path: Path, said: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_table(str(tmp_path / "0.parquet"), pa.table({"question": ["<image>a", "<image>b", "<image><image>c", "d"]}))
    about = {"name": "amvl", "version": 1, "alias": "champion", "reason": "r", "run_id": "run", "tracking_uri": "t"}
    record = ModelRecord(uri="u", fingerprint="f", **about)
    for name, found in (("start", "run"), ("flush", True)):
        monkeypatch.setattr(Tracker, name, lambda _, found=found: found)
    monkeypatch.setattr(tasks, "_gate", lambda *_: registry.Decision("champion", "r"))
    monkeypatch.setattr(registry, "register", lambda *_: record)
    config, new = override(demo(), {"storage": str(tmp_path)}), answers(str(tmp_path / "new"), 150)
    data, task = dataset(str(tmp_path), "test", 4), tasks.register.fn
    assert task(config, data, CHECKPOINT, [new], [{"task": "all"}], Tracker(config), Processes(config)) == record
    (warned,) = [one.getMessage() for one in said.records if one.levelno == logging.WARNING]
    assert warned.startswith("register: 2 of 4 test questions (50%) cannot be asked of the registered model")


def answers(uri: str, right: int) -> EvalRecord:
    """A stored evaluation on 200 items, the first `right` of them answered rightly."""
    columns = {"sample_id": [f"s{i}" for i in range(200)]} | {name: [""] * 200 for name in ("task", "part", "group")}
    table = pa.table({**columns, "score": [float(i < right) for i in range(200)]})
    write_table(storage.join(uri, "predictions.parquet"), table)
    share = right / 200
    overall = TaskScore(task="all", n=200, accuracy=share, low=share, high=share, majority=0.5)
    readings = [ReadingScore(reading="exact match", scores=[], unanswered=0, drawn=0)]
    about = {"fingerprint": uri, "checkpoint": "c", "stage": "amvl", "dataset": "d", "scores": []}
    record = EvalRecord(uri=uri, overall=overall, readings=readings, **about)
    save_record(record)
    return record
