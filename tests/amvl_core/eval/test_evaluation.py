"""One evaluation worker without Ray: what it stores is enough to score without the model."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from amvl_core.contracts.config import override
from amvl_core.contracts.parts import Part
from amvl_core.contracts.records import TEST_SPLIT, CheckpointRecord, DatasetRecord, Shard
from amvl_core.eval.benchmarks import BENCHMARKS
from amvl_core.eval.benchmarks.__main__ import main
from amvl_core.eval.benchmarks.scoring import predictions, score_benchmark
from amvl_core.eval.evaluation import EvaluationWorker
from amvl_core.eval.questions import Questions
from amvl_core.methods.amvl.presets import paper
from tests.shards import sample_of, table
from tests.tiny import amvl_model, picture, stock_folder


def test_stored_predictions_are_scored_without_the_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samples = [
        sample_of(f"easy_vqa/{i}", "<image>What colour is it?", "red", [picture(i)], source="easy_vqa", task="color")
        for i in range(2)
    ]
    pq.write_table(table(samples), tmp_path / "test.parquet")
    shard = Shard(file="test.parquet", split="test", rows=2, sha256="")
    dataset = DatasetRecord(
        uri=str(tmp_path), fingerprint="d", schema_version=1, shards=[shard], kept=2, dropped={}, reports=[]
    )
    config = override(paper(), {"model": {"base": stock_folder()}, "evaluation": {"max_new_tokens": 2}})
    pixels = (config.data.min_pixels, 2 * config.data.min_pixels)
    config = override(config, {"data": {"max_pixels": pixels[1]}})
    asked = Questions(dataset, TEST_SPLIT, {"easy_vqa/color": ["blue", "red"]})
    worker, path = EvaluationWorker(config, None), tmp_path / "predictions.parquet"
    pq.write_table(pa.Table.from_pylist(worker.work(worker.prepare(asked, Part("answers", (0, 1), 1)))), path)
    rows = predictions(str(path), "easy_vqa")
    assert [(row["sample_id"], row["task"], row["answer"]) for row in rows] == [
        (f"easy_vqa/{i}", "easy_vqa/color", "red") for i in range(2)
    ]
    first = pq.read_table(path).to_pylist()[0]
    assert (first["max_new_tokens"], first["tokens"], first["cut"]) == (2, 2, True)
    assert (first["min_pixels"], first["max_pixels"], first["dtype"]) == (*pixels, "float32")
    assert (first["prompt"], first["checkpoint"], first["dataset"]) == (
        "<image>What colour is it?",
        stock_folder(),
        "d",
    )
    found = score_benchmark(BENCHMARKS["easy_vqa"], rows)
    assert list(found) == ["exact match", "unwrapped", "likelihood"]
    likelier = [json.loads(row["log_likelihoods"]) for row in rows]
    expected = sum(red > blue for blue, red in likelier) / 2
    assert (found["likelihood"].scores["overall"].n, found["likelihood"].scores["overall"].value) == (2, expected)
    assert main(["easy_vqa", str(path)]) == 0
    assert "| overall | 2 |" in capsys.readouterr().out


def test_candidates_are_scored_where_the_answer_is_what_the_model_writes_next(tmp_path: Path) -> None:
    """Questions with no, one and two steps: the model of a stage that hides one step writes the second one first."""
    samples = [sample_of(f"s/{n}", "What colour is it?", "red", (), ["Look."] * n) for n in range(3)]
    pq.write_table(table(samples), tmp_path / "test.parquet")
    shard = Shard(file="test.parquet", split="test", rows=3, sha256="")
    dataset = DatasetRecord(
        uri=str(tmp_path), fingerprint="d", schema_version=1, shards=[shard], kept=3, dropped={}, reports=[]
    )
    asked = Questions(dataset, TEST_SPLIT, {"s/t": ["blue", "red"]})
    for part in amvl_model(dtype=torch.float32):
        part.save_pretrained(tmp_path / "model")
    stages = {
        f"hides_{hidden}": {"method": {"kind": "amvl", "hidden_steps": hidden}, "steps": 1} for hidden in (0, 1, "all")
    }
    config = override(paper(), {"model": {"base": stock_folder()}}).model_copy(update={"stages": {}})
    trained = {**config.model_dump(mode="json"), "stages": stages}
    fields = {"method": "amvl", "step": 1, "config": trained, "dataset": "d", "parent": None}
    models = [
        CheckpointRecord(uri=str(tmp_path), fingerprint="c", stage=name, num_parameters=1, metrics={}, **fields)
        for name in stages
    ]
    found = []
    for model in (None, *models):
        _, _, candidates, _ = EvaluationWorker(config, model).prepare(asked, Part("answers", (0, 1, 2), 1))
        found.append([len(given) for given in candidates])
    assert found == [[2, 0, 0], [2, 0, 0], [2, 2, 0], [2, 2, 2]]
