"""What a task does with a stage that is finished; the work itself is in test_full_pipeline.py."""

from pathlib import Path

from prefect.logging import disable_run_logger

from amvl_core import storage
from amvl_core.config import override
from amvl_core.presets import demo
from amvl_core.records import CheckpointRecord, DatasetRecord, save_record
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
