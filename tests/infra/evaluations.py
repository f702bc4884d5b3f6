"""A small prepared dataset and a configuration that evaluates the stock tiny model on it; also run as a program.

    python -m tests.infra.evaluations CONFIG.json DATASET_URI TARGET_URI

evaluates on a Ray of its own, so that a test can kill it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from amvl_core.contracts.config import RunConfig
from amvl_core.contracts.progress import ProgressFn
from amvl_core.contracts.records import DatasetRecord, EvalRecord, Place, Shard, load_record, save_record
from data_prep.shards import SCHEMA_VERSION, ShardRow, ShardWriter
from tests.shards import sample_of
from tests.tiny import picture, stock_folder

QUESTIONS = (
    "What colour is the circle?",
    "<image>Is there a square in the image, and is it left of the star?",
    "How many?",
)
ANSWERS = {"colour": ("red", "blue", "green"), "count": ("1", "2")}


def rows(split: str, count: int, image: bytes | None = None) -> list[ShardRow]:
    """Questions of unequal length about pictures of unequal size, or all about `image`; every third has a step."""
    found = []
    for i in range(count):
        task = ("colour", "count")[i % 2]
        answer = ANSWERS[task][i // 2 % len(ANSWERS[task])]
        size = (32, 32 + 16 * (i % 3))
        steps = ["look"] if i % 3 == 2 else []
        name, images = f"made/{split}/{i:03d}", [image or picture(i, *size)]
        sample = sample_of(name, QUESTIONS[i % 3], answer, images, steps, source="made", task=task)
        found.append(ShardRow(sample, [size], 20 + 7 * (i % 5)))
    return found


def dataset(folder: Path, test: int, image: bytes | None = None) -> DatasetRecord:
    """A prepared dataset with `test` questions in its test split, at `folder`."""
    shards = []
    for split, count in (("train", 12), ("test", test)):
        writer = ShardWriter(folder / f"{split}.parquet")
        for row in rows(split, count, image):
            writer.write(row)
        writer.close()
        shards.append(Shard.model_validate({"file": f"{split}.parquet", "split": split, "rows": count, "sha256": ""}))
    record = DatasetRecord(
        uri=str(folder),
        fingerprint="d",
        schema_version=SCHEMA_VERSION,
        shards=shards,
        kept=12 + test,
        dropped={},
        reports=[],
    )
    save_record(record)
    return record


def config(workers: int = 1, **evaluation: Any) -> RunConfig:
    """The stock tiny model as it is, a few tokens an answer."""
    fields = {
        "model": {"base": stock_folder()},
        "data": {"min_pixels": 16 * 16, "max_pixels": 64 * 64, "sources": [{"kind": "microworld"}]},
        "cluster": {"num_workers": workers},
        "evaluation": {"batch_size": 2, "max_new_tokens": 6, **evaluation},
        "stages": {"sft": {"method": {"kind": "sft"}, "steps": 1, "global_batch": 4}},
    }
    return RunConfig.model_validate(fields)


def run(settings: RunConfig, data: DatasetRecord, uri: str, on_progress: ProgressFn = lambda _: None) -> EvalRecord:
    """Evaluates the base model on the Ray that this process has joined."""
    from infra.actors import Actors
    from infra.ray_eval import evaluate

    with Actors(settings) as actors:
        (record,) = evaluate(actors, settings, [(data, Place(uri, "e"))], None, on_progress)
    return record


if __name__ == "__main__":
    from infra import cluster

    chosen = RunConfig.model_validate_json(Path(sys.argv[1]).read_text())
    found = load_record(sys.argv[2], DatasetRecord)
    assert found is not None
    cluster.connect(chosen.cluster)
    run(chosen, found, sys.argv[3])
