"""Training on real Ray Train and DeepSpeed: two workers, gloo, CPU."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from amvl_core.contracts import storage
from amvl_core.contracts.config import RunConfig
from amvl_core.contracts.errors import DataError, StorageError
from amvl_core.contracts.progress import Progress
from amvl_core.contracts.records import CheckpointRecord, DatasetRecord, Place, load_record
from benchmarks.trial import configuration, dataset
from infra.actors import Actors
from infra.ray_eval import evaluate
from infra.ray_train import WorkerGroup


def run(group: WorkerGroup, config: RunConfig, data: DatasetRecord, stage: str, parent: CheckpointRecord | None):
    events: list[Progress] = []
    return group.train(config, stage, data, parent, storage.join(config.storage, stage), stage, events.append), events


def weights(record: CheckpointRecord) -> dict[str, torch.Tensor]:
    return load_file(Path(record.model_uri) / "model.safetensors")


@pytest.fixture(scope="module")
def chain(ray_cluster, tmp_path_factory):
    """The demo's three stages, each from the one before, by the same workers; then they meet data that cannot be read.

    `error` is what that ended with.
    """
    root = str(tmp_path_factory.mktemp("chain"))
    config, data = configuration(root), dataset(root + "/data")
    records: dict[str, CheckpointRecord] = {}
    parent, logs = None, {}
    group, runs = WorkerGroup(config), set()
    for stage in config.stages:
        parent, logs[stage] = run(group, config, data, stage, parent)
        records[stage] = parent
        runs.add(group._run)
    broken, wrong = configuration(root + "/broken"), dataset(root + "/wrong", place="<image><image>")
    with pytest.raises(DataError) as error:
        run(group, broken, wrong, "amvl", records["sft"])
    assert len(runs) == 1 and group._run is None
    assert load_record(storage.join(broken.storage, "amvl"), CheckpointRecord) is None
    return config, data, records, logs, str(error.value)


def test_every_step_is_reported_once_with_its_terms(chain) -> None:
    _, _, _, logs, _ = chain
    for stage, events in logs.items():
        assert [event.done for event in events] == [1, 2, 3, 4]
        for event in events:
            assert {"loss", "ntp", "lr", "grad_norm", "tokens_per_s", "data_wait"} <= event.metrics.keys()
            if stage != "sft":
                assert {"kl_forward", "kl_reverse", "beta", "gamma", "cosine"} <= event.metrics.keys()
    assert [e.metrics["beta"] for e in logs["amvl"]] == [0.0, 0.5, 1.0, 1.0]


def test_records_form_a_chain_and_no_resume_state_is_left(chain) -> None:
    config, _, records, _, _ = chain
    assert records["sft"].parent is None
    assert records["amvl"].parent == records["embedding_adaptation"].fingerprint
    assert records["sft"].num_parameters == sum(t.numel() for t in weights(records["sft"]).values())
    for stage in config.stages:
        assert load_record(storage.join(config.storage, stage), CheckpointRecord) == records[stage]
        assert storage.list_names(storage.join(config.storage, stage)) == ["history.json", "model", "record.json"]


def test_embedding_adaptation_moves_the_new_rows_and_nothing_else(chain) -> None:
    _, _, records, _, _ = chain
    before, after = weights(records["sft"]), weights(records["embedding_adaptation"])
    config = json.loads((Path(records["amvl"].model_uri) / "config.json").read_text())
    new = [config["block_start_token_id"], *config["slot_token_ids"], config["block_end_token_id"]]
    for name, value in before.items():
        if name.endswith(("embed_tokens.weight", "lm_head.weight")):
            old = [i for i in range(len(value)) if i not in new]
            assert torch.equal(value[old], after[name][old]), name
        else:
            assert torch.equal(value, after[name]), name
    embedding = next(value for name, value in after.items() if name.endswith("embed_tokens.weight"))
    mean = before[next(n for n in before if n.endswith("embed_tokens.weight"))][: min(new)].mean(0)
    assert all(not torch.allclose(embedding[row], mean, atol=1e-7) for row in new)


def test_the_vision_encoder_learns_in_sft_and_is_bit_unchanged_later(chain) -> None:
    _, _, records, _, _ = chain
    sft, amvl = weights(records["sft"]), weights(records["amvl"])
    visual = [name for name in sft if name.startswith("visual.")]
    assert len(visual) > 10
    assert all(torch.equal(sft[name], amvl[name]) for name in visual)
    moved = [name for name in sft if not name.startswith("visual.") and not torch.equal(sft[name], amvl[name])]
    assert len(moved) > 10


def test_evaluation_stores_predictions_and_scores_them(chain, tmp_path) -> None:
    config, data, records, _, _ = chain
    events: list[Progress] = []
    asked = [(data, Place(str(tmp_path / "eval"), "e"))]
    with Actors(config) as actors:
        (record,) = evaluate(actors, config, asked, records["amvl"], events.append)
    rows = pq.read_table(record.predictions_uri).to_pylist()
    assert [r["sample_id"] for r in rows] == [f"test-{i}" for i in range(6)]
    assert record.overall.n == 6 and record.overall.accuracy == sum(r["score"] for r in rows) / 6
    assert record.overall.majority == 0.5 and record.scores[0].task == "made/colour"
    assert events[-1].done == events[-1].total == 6


def test_a_failed_worker_is_started_again_and_resumes_to_the_same_weights(chain, tmp_path) -> None:
    """One is killed, and then its storage fails for a while, which is an ordinary failure.

    The next stage has new workers, and gives what it gave by workers that had two stages behind them.
    """
    _, data, records, _, _ = chain
    again = configuration(str(tmp_path), trainer={"max_failures": 2})
    group = WorkerGroup(again)
    record, events = run_with_faults(group, again, data, tmp_path, ["kill", "refuse"])
    failed = group._run
    assert faults_of(tmp_path) == ["0-kill", "1-refuse"]
    # The checkpoint of step 2 brings what was logged until then; step 3 is done again, and is the same.
    assert [event.done for event in events] == [1, 2, 3, 1, 2, 3, 1, 2, 3, 4]
    losses = [event.metrics["loss"] for event in events]
    assert losses[:3] == losses[3:6] == losses[6:9]
    same(record, records["sft"])
    record, _ = run(group, again, data, "amvl", records["embedding_adaptation"])
    assert group._run is not failed
    same(record, records["amvl"])
    assert group.close() is None


def same(one: CheckpointRecord, other: CheckpointRecord) -> None:
    """Every weight is, to the last bit."""
    for name, value in weights(one).items():
        assert torch.equal(value, weights(other)[name]), name


def faults_of(folder: Path) -> list[str]:
    return sorted(file.name.removeprefix("fault-") for file in folder.glob("fault-*"))


def run_with_faults(group, config, data, root: Path, faults: list[str]):
    """Trains while one worker meets the next of `faults` each time that it reads its last batch, until all were met."""
    import infra.ray_train as ray_train

    original = ray_train._worker
    folder = str(root)

    def worker(settings):
        import os
        import pathlib

        from amvl_core.contracts.errors import StorageError
        from amvl_core.data import loader

        read = loader.StepDataset.__getitem__

        def getitem(self, step):
            met = len(list(pathlib.Path(folder).glob("fault-*")))
            if step == 3 and self.rank == self.world_size - 1 and met < len(faults):
                pathlib.Path(folder, f"fault-{met}-{faults[met]}").touch()
                if faults[met] == "kill":
                    os.kill(os.getpid(), 9)
                raise StorageError("cannot read the samples: 503")
            return read(self, step)

        loader.StepDataset.__getitem__ = getitem
        original(settings)

    ray_train._worker = worker
    try:
        return run(group, config, data, "sft", None)
    finally:
        ray_train._worker = original


def test_a_lasting_fault_of_the_storage_is_told_when_the_failures_run_out(chain, tmp_path) -> None:
    _, data, _, _, _ = chain
    config = configuration(str(tmp_path), trainer={"max_failures": 0}, cluster={"num_workers": 1})
    with pytest.raises(StorageError, match=r"once too often .*the last time on the storage: cannot read the samples"):
        run_with_faults(WorkerGroup(config), config, data, tmp_path, ["refuse"] * 2)
    assert faults_of(tmp_path) == ["0-refuse"]


def test_an_error_of_the_data_reaches_the_caller_as_it_is(chain) -> None:
    *_, error = chain
    assert "more image placeholders than its 1 images" in error
