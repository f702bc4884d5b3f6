"""What a task does with a stage that is finished; the work itself is in test_full_pipeline.py."""

import logging
from pathlib import Path

import pytest
from prefect.logging import disable_run_logger

from amvl_core import storage
from amvl_core.config import override
from amvl_core.errors import DataError
from amvl_core.presets import demo
from amvl_core.records import CheckpointRecord, DatasetRecord, Shard, save_record
from data_prep import pipeline
from flows import tasks
from infra.fingerprints import train_fingerprint
from infra.tracking import Tracker


def test_a_finished_training_stage_is_reused_and_what_a_killed_run_left_beside_it_goes(tmp_path: Path) -> None:
    config = override(demo(), {"storage": str(tmp_path)})
    data = DatasetRecord(uri="u", fingerprint="d", schema_version=1, shards=[], kept=1, dropped={}, reports=[])
    uri = tasks.stage_uri(config, "train", train_fingerprint(config, "sft", data, None))
    fields = {"stage": "sft", "method": "sft", "step": 1, "config": {}, "dataset": "d", "parent": None, "metrics": {}}
    record = CheckpointRecord(uri=uri, fingerprint="f", num_parameters=1, **fields)
    for name in ("model/config.json", "checkpoints/step-00000001/complete.json", "base/config.json"):
        storage.write_bytes(storage.join(uri, name), b"{}")
    save_record(record)
    with disable_run_logger():
        assert tasks.train.fn(config, "sft", data, None, Tracker(config)) == record
    assert storage.list_names(uri) == ["model", "record.json"]


def dataset(uri: str, split: str, rows: int) -> DatasetRecord:
    shards = [Shard.model_validate({"file": "0.parquet", "split": split, "rows": rows, "sha256": ""})]
    return DatasetRecord(uri=uri, fingerprint="d", schema_version=1, shards=shards, kept=rows, dropped={}, reports=[])


def test_a_dataset_without_a_test_split_ends_the_run_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = override(demo(), {"storage": str(tmp_path)})
    uri = tasks.stage_uri(config, "prepare", pipeline.fingerprint(config))
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
    monkeypatch.setattr(tasks, "get_run_logger", lambda: logging.getLogger("run"))
    return caplog


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
    assert tasks.analyse.fn(config, dataset("q", "test", rows), model, Tracker(config)) is None
    assert said.messages == [
        f"analyse: left out: 1 test sample, at least 2 are compared (evaluation.analysis_items is {items})"
    ]
