"""What a task does with a stage that is finished; the work itself is in test_full_pipeline.py."""

from pathlib import Path

import pytest
from prefect.logging import disable_run_logger

from amvl_core.contracts import storage
from amvl_core.contracts.config import override
from amvl_core.contracts.errors import DataError
from amvl_core.contracts.fingerprints import train_fingerprint
from amvl_core.contracts.records import CheckpointRecord, DatasetRecord, Shard, save_record
from amvl_core.methods.amvl.presets import demo
from data_prep import pipeline
from flows import tasks
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


def test_a_benchmark_with_one_question_has_no_suite(tmp_path: Path) -> None:
    config = override(demo(), {"storage": str(tmp_path)})
    fields = {"stage": "amvl", "method": "amvl", "step": 1, "config": {}, "dataset": "d", "parent": None, "metrics": {}}
    model = CheckpointRecord(uri="c", fingerprint="f", num_parameters=1, **fields)
    with disable_run_logger():
        assert tasks.faithfulness.fn(config, [dataset("q", "test", 1)], model, [], Tracker(config)) == []
