"""One evaluation actor without Ray: what it stores is enough to score without the model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from amvl_core.config import RunConfig
from amvl_core.eval.benchmarks import BENCHMARKS
from amvl_core.eval.benchmarks.scoring import predictions, score_benchmark
from amvl_core.records import DatasetRecord, Shard
from infra.ray_eval import Predictor
from tests.tiny import picture, stock_folder


def test_stored_predictions_are_scored_without_the_model(tmp_path: Path) -> None:
    samples = [
        {
            "sample_id": f"easy_vqa/{i}",
            "source": "easy_vqa",
            "segments": [{"kind": "prompt", "text": "<image>What colour is it?", "num_slots": 0}],
            "images": [picture(i)],
            "extra": json.dumps({"task": "color", "answer": "red"}),
        }
        for i in range(2)
    ]
    pq.write_table(pa.Table.from_pylist(samples), tmp_path / "test.parquet")
    shard = Shard(file="test.parquet", split="test", rows=2, sha256="")
    dataset = DatasetRecord(
        uri=str(tmp_path), fingerprint="d", schema_version=1, shards=[shard], kept=2, dropped={}, reports=[]
    )
    config = RunConfig.model_validate({"model": {"base": stock_folder()}, "evaluation": {"max_new_tokens": 2}})
    columns = Predictor(config.model_dump(mode="json"), dataset.model_dump(mode="json"), None)({"item": np.arange(2)})
    path = tmp_path / "predictions.parquet"
    pq.write_table(pa.table(columns), path)
    rows = predictions(str(path), "easy_vqa")
    assert [(row["sample_id"], row["task"], row["answer"]) for row in rows] == [
        (f"easy_vqa/{i}", "easy_vqa/color", "red") for i in range(2)
    ]
    rescored = score_benchmark(BENCHMARKS["easy_vqa"], rows)["exact match"].scores["overall"]
    assert (rescored.n, rescored.value) == (2, columns["correct"].mean())
