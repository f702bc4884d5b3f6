"""A small dataset and configuration, and runs of one stage by workers without Ray, to be compared."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from amvl_core.backbones.loading import base_folder
from amvl_core.contracts import storage
from amvl_core.contracts.config import RunConfig, override
from amvl_core.contracts.presets import PRESETS
from amvl_core.contracts.records import CheckpointRecord, DatasetRecord, Shard, load_record
from amvl_core.contracts.sample import StoredSample
from amvl_core.train.loop import TrainJob
from benchmarks import local
from benchmarks.tiny import LATENT, TINY, picture
from data_prep.shards import SCHEMA_VERSION, ShardRow, shard_table

ANSWERS = ("red", "blue")


def dataset(root: str, place: str = "<image>") -> DatasetRecord:
    """24 training and 6 test samples; every fifth has no image. `place` stands where an image goes."""
    shards = []
    for split, rows in (("train", 24), ("test", 6)):
        buffer = io.BytesIO()
        samples = [sample(f"{split}-{number}", number, place) for number in range(rows)]
        # The counts of tokens are made up.
        stored = [ShardRow(one, [(32, 32)] * len(one.images), 15 + 4 * len(one.images)) for one in samples]
        pq.write_table(shard_table(stored), buffer, row_group_size=8)
        storage.write_bytes(storage.join(root, f"{split}.parquet"), buffer.getvalue())
        shards.append(Shard(file=f"{split}.parquet", split=split, rows=rows, sha256=""))
    return DatasetRecord(
        uri=root, fingerprint="data", schema_version=SCHEMA_VERSION, shards=shards, kept=30, dropped={}, reports=[]
    )


def sample(name: str, number: int, place: str = "<image>") -> StoredSample:
    """What the samples are that `dataset` writes."""
    images = () if number % 5 == 4 else (picture(number),)
    question, answer = place * len(images) + "What colour is it?", ANSWERS[number % 2]
    return StoredSample(name, "made", "colour", question, (), (), answer, images)


def configuration(root: str, **changes: Any) -> RunConfig:
    """Three stages of a few steps on the smallest model."""
    small = {
        "storage": root,
        "model": {"tiny": TINY.model_dump()},
        "latent": LATENT.model_dump(),
        "stages": {
            name: {"steps": 4, "global_batch": 8, "micro_tokens": 50, "method": {"beta_warmup": 2, "gamma_start": 1}}
            if name != "sft"
            else {"steps": 4, "global_batch": 8, "micro_tokens": 50}
            for name in ("sft", "embedding_adaptation", "amvl")
        },
        "heldout": {"samples": 0},  # of 24 there are too few
        "trainer": {"checkpoint_every": 2, "log_every": 1, "loader_workers": 0},
        "evaluation": {"batch_size": 4, "max_new_tokens": 4},
    }
    return override(override(PRESETS["demo"](), small), changes)


class Trial:
    """Runs of the stage `sft` of `steps` steps from the same weights on the same data."""

    def __init__(self, root: Path, steps: int, **changes: Any) -> None:
        self.root, self.steps = root, steps
        small = {"trainer": {"precision": "fp32"}, "stages": {"sft": {"steps": steps}}}
        self.config = override(configuration(str(root), **small), changes)
        self.data = dataset(f"{root}/data")
        with base_folder(self.config.model) as folder:
            storage.upload(Path(folder), f"{root}/base")

    def job(self, name: str, workers: int = 2) -> str:
        """The stage as JSON."""
        return TrainJob(
            config=override(self.config, {"cluster": {"num_workers": workers}}),
            stage="sft",
            dataset=self.data,
            start_from=f"{self.root}/base",
            parent=None,
            uri=f"{self.root}/{name}",
            fingerprint=name,
        ).model_dump_json()

    def start(self, name: str, workers: int = 2, **arguments: Any) -> list[Any]:
        """The processes of a run."""
        order = [arguments.get(key) for key in ("stop_at", "kill_at")]
        return local.start(local.stage, workers, self.job(name, workers), f"{self.root}/{name}.log", *order)

    def run(self, name: str, workers: int = 2, **arguments: Any) -> list[int | None]:
        """Exit codes of a run."""
        return local.join(self.start(name, workers, **arguments))

    def lines(self, name: str) -> list[dict[str, Any]]:
        """What rank 0 wrote."""
        file = self.root / f"{name}.log"
        text = file.read_text() if file.exists() else ""
        return [json.loads(line) for line in text.split("\n")[:-1]]  # the last may be half written

    def curve(self, name: str) -> list[tuple[int, float, float]]:
        """Step, loss and learning rate as tracking keeps them: a step done again counts once, and must be the same."""
        found: dict[int, tuple[int, float, float]] = {}
        for line in self.lines(name):
            if "done" in line:
                point = (line["done"], line["metrics"]["loss"], line["metrics"]["lr"])
                assert found.setdefault(line["done"], point) == point
        return list(found.values())

    def state(self, name: str, step: int) -> dict[str, Any]:
        """The marker's list of files with their SHA-256: equal if and only if every weight and moment is."""
        marker = self.root / name / "checkpoints" / f"step-{step:08d}" / "complete.json"
        files: dict[str, Any] = json.loads(marker.read_text())["files"]
        del files["history.json"]  # holds times
        return files

    def record(self, name: str) -> CheckpointRecord:
        """The finished stage's."""
        record = load_record(f"{self.root}/{name}", CheckpointRecord)
        assert record is not None
        return record
