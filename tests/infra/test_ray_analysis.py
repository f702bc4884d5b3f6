"""Faithfulness and analysis over real Ray actors on a tiny checkpoint with random weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from amvl_core.contracts.config import BenchmarkSource, RunConfig, override
from amvl_core.contracts.errors import DataError
from amvl_core.contracts.parts import Part
from amvl_core.contracts.progress import Progress
from amvl_core.contracts.records import (
    TEST_SPLIT,
    AnalysisRecord,
    CheckpointRecord,
    DatasetRecord,
    FaithfulnessRecord,
    LinearProbeRecord,
    Place,
    SamplingRecord,
    Shard,
    load_record,
    save_record,
)
from amvl_core.eval.analysis import read_tables
from amvl_core.eval.benchmarks import BENCHMARKS
from amvl_core.eval.evaluation import EvaluationWorker, with_predictions
from amvl_core.eval.faithfulness import score_variants, verdict
from amvl_core.eval.linear_probe import probed
from amvl_core.eval.questions import Questions
from amvl_core.eval.sampling import score_samples
from amvl_core.eval.suite import ProbingWorker
from amvl_core.methods.amvl.analysis.analysis import HEAT_MAPS, AmvlAnalysis
from amvl_core.methods.amvl.analysis.summary import Summary
from benchmarks.trial import configuration, sample
from data_prep.published import read
from infra import analysis, ray_eval
from infra.actors import Actors
from tests.amvl_core.eval.benchmarks import published
from tests.shards import table
from tests.tiny import LATENT, amvl_model, picture, stock_folder

ROWS = 9
TOLERANCE = 1e-4
"""In nats, of log p in float32."""
COMMON = ("raw_output", "prediction", "score", "task", "group", "answer")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("storage")


@pytest.fixture(scope="module")
def actors(ray_cluster: None, config: RunConfig) -> Iterator[Actors]:
    """They go on from test to test, also where one was broken off or failed."""
    with Actors(config) as found:
        yield found


@pytest.fixture(scope="module")
def config(root: Path) -> RunConfig:
    evaluation = {"faithfulness_items": ROWS, "analysis_items": ROWS, "batch_size": 4}
    return configuration(str(root), evaluation=evaluation, cluster={"num_workers": 2})


@pytest.fixture(scope="module")
def dataset(root: Path) -> DatasetRecord:
    folder = root / "prepare" / "data"
    folder.mkdir(parents=True)
    pq.write_table(table([sample(f"test-{i}", i) for i in range(ROWS)]), folder / "test.parquet")
    shards = [Shard(file="test.parquet", split="test", rows=ROWS, sha256="")]
    record = DatasetRecord(
        uri=str(folder), fingerprint="data", schema_version=1, shards=shards, kept=ROWS, dropped={}, reports=[]
    )
    save_record(record)
    return record


def checkpoint(config: RunConfig, root: Path, stage: str) -> CheckpointRecord:
    uri = root / "train" / stage
    uri.mkdir(parents=True)
    if stage == "amvl":
        import torch

        model, processor = amvl_model(dtype=torch.float32)
        model.save_pretrained(uri / "model")
        processor.save_pretrained(uri / "model")
    else:
        (uri / "model").symlink_to(stock_folder())
    record = CheckpointRecord(
        uri=str(uri),
        fingerprint=stage,
        stage=stage,
        method=stage,
        step=4,
        config=config.model_dump(mode="json"),
        dataset="data",
        parent=None,
        num_parameters=1,
        metrics={},
    )
    save_record(record)
    return record


@pytest.fixture(scope="module")
def amvl(config: RunConfig, root: Path) -> CheckpointRecord:
    return checkpoint(config, root, "amvl")


@pytest.fixture(scope="module")
def sft(config: RunConfig, root: Path) -> CheckpointRecord:
    return checkpoint(config, root, "sft")


class Stopped(Exception):  # noqa: N818
    """Stands in for a kill of the driver."""


def test_interrupted_suites_go_on_and_give_the_same_files(actors, config, dataset, amvl, sft, root, tmp_path) -> None:
    """Of the test split, and of a benchmark besides."""
    controls = [("plain", sft)]
    questions, config = published_questions(config, "vstar", tmp_path)

    def run(folder: Path, on_progress: Callable[[Progress], None]) -> list[FaithfulnessRecord]:
        asked = [(dataset, Place(str(folder / "test"), "t")), (questions, Place(str(folder / "vstar"), "v"))]
        return list(ray_eval.faithfulness(actors, config, asked, amvl, controls, on_progress))

    events: list[Progress] = []

    def stop(progress: Progress) -> None:
        events.append(progress)
        if len(events) == 3:  # the first one says what is there already
            raise Stopped

    interrupted, whole = root / "interrupted", root / "whole"
    with pytest.raises(Stopped):
        run(interrupted, stop)
    assert load_record(str(interrupted / "test"), FaithfulnessRecord) is None
    left = sorted(interrupted.glob("test/parts/*/*.parquet"))
    assert len(left) >= 2
    before = {path: path.stat().st_mtime_ns for path in left}
    seen: list[Progress] = []

    def watch(progress: Progress) -> None:
        seen.append(progress)
        assert {path: path.stat().st_mtime_ns for path in left} == before

    record, of_vstar = run(interrupted, watch)
    stages = [f"faithfulness {who}{where}" for who in ("amvl", "plain") for where in ("", " on vstar")]
    assert list(dict.fromkeys(event.stage for event in seen)) == stages
    assert (record.benchmark, of_vstar.benchmark, of_vstar.rows[0].n) == (TEST_SPLIT, "vstar", 2)
    assert not any(interrupted.glob("*/parts"))
    run(whole, lambda _: None)
    for name in ("test/items.parquet", "vstar/items.parquet"):
        assert (interrupted / name).read_bytes() == (whole / name).read_bytes()

    items = pq.read_table(whole / "test" / "items.parquet").to_pylist()
    assert len(items) == (15 + 1) * ROWS
    assert record.rows == score_variants(items)  # without a model
    assert record.verdict == verdict(record.rows)
    assert [row.variant for row in record.rows][-1] == "plain"
    donors = {item["sample_id"]: item["donor"] for item in items}
    assert sorted(donors) == sorted(donors.values())
    cycle, here = [], "test-0"
    while here not in cycle:
        cycle.append(here)
        here = donors[here]
    assert len(cycle) == ROWS  # one cycle: nobody is its own donor


@pytest.mark.parametrize("name", ["vstar", "blink"])
def test_a_published_benchmark_is_asked_and_read_as_in_its_evaluation(config, amvl, sft, tmp_path, name: str) -> None:
    """The suite's unchanged model says what the evaluation's says, with the same log p: same prompt, pixels, layout."""
    questions, config = published_questions(config, name, tmp_path)
    asked = Questions.of(questions)
    assert asked.benchmark == name
    for variant, model in (("unchanged", amvl), ("plain", sft)):
        worker = ProbingWorker(config, model, "" if variant == "unchanged" else variant)
        items = worker.work(worker.prepare(asked, Part("answers", (0, 1), 2, donor=0)))
        found = {item["sample_id"]: item for item in items if item["variant"] == variant}
        stored = predictions(config, asked, model)
        assert found.keys() == {prediction["sample_id"] for prediction in stored}
        for prediction in stored:
            item = found[prediction["sample_id"]]
            assert {key: item[key] for key in COMMON} == {key: prediction[key] for key in COMMON}
            assert item["log_likelihood"] == pytest.approx(of_answer(prediction), abs=TOLERANCE)
    if name == "vstar":  # its picture is larger than either budget: what was compared above depends on the pixels
        shrunk = predictions(override(config, {"evaluation": {"max_pixels": config.data.max_pixels}}), asked, sft)
        assert abs(of_answer(shrunk[0]) - of_answer(stored[0])) > 10 * TOLERANCE


def published_questions(config: RunConfig, name: str, folder: Path) -> tuple[DatasetRecord, RunConfig]:
    """Two questions of a benchmark, V* with a picture of 320 x 320, and a configuration with a pixel budget for it."""
    files = folder / name
    files.mkdir()
    getattr(published, name)(files)
    for file in files.glob("direct_attributes/*.png"):
        file.write_bytes(picture(0, 320, 320))
    config = override(config, {"evaluation": {"max_pixels": 200 * 200, "max_new_tokens": 6}})
    source = BenchmarkSource.model_validate({"name": name, "uri": str(files)})
    return read(config, source, str(folder / f"{name}-questions"), lambda _: None), config


def predictions(config: RunConfig, asked: Questions, model: CheckpointRecord) -> list[dict[str, Any]]:
    """What the evaluation stores, without Ray."""
    worker = EvaluationWorker(config, model)
    table = pa.Table.from_pylist(worker.work(worker.prepare(asked, Part("answers", (0, 1), 2))))
    return with_predictions(table, table.to_pylist(), BENCHMARKS[asked.benchmark]).to_pylist()


def of_answer(prediction: dict[str, Any]) -> float:
    """log p of the right candidate."""
    candidates, scores = json.loads(prediction["candidates"]), json.loads(prediction["log_likelihoods"])
    return float(scores[candidates.index(prediction["answer"])])


def test_an_error_of_a_worker_is_the_users_own(actors, config, amvl, tmp_path) -> None:
    damaged = [replace(sample(f"test-{i}", i), images=(b"no picture",)) for i in range(2)]
    pq.write_table(table(damaged), tmp_path / "test.parquet")
    shards = [Shard(file="test.parquet", split="test", rows=2, sha256="")]
    record = DatasetRecord(
        uri=str(tmp_path), fingerprint="damaged", schema_version=1, shards=shards, kept=2, dropped={}, reports=[]
    )
    with pytest.raises(DataError):
        ray_eval.analyse(actors, config, record, amvl, Place(str(tmp_path / "a"), "a"), lambda _: None)


def test_an_analysis_holds_what_its_tables_say(actors, config, dataset, amvl, root) -> None:
    uri = root / "analyse" / "a"
    record = ray_eval.analyse(actors, config, dataset, amvl, Place(str(uri), "a"), lambda _: None)
    assert load_record(str(uri), AnalysisRecord) == record
    assert all((uri / name).exists() for name in record.files)
    assert {"geometry.png", "similarity.png", "sensitivity.png", "information.png", "occlusion.png"} <= {*record.files}
    tables, found = read_tables(record), Summary.of(record)
    assert tables["latents"].num_rows == found.n == ROWS
    assert len(found.kl_per_slot) == len(found.similarity) == LATENT.num_slots
    assert set(found.sensitivity) == {"image", "text"}
    assert found.mutual_information <= np.log(found.candidates)
    assert found.mutual_information <= found.mutual_information_upper
    assert tables["occlusion"].num_rows == HEAT_MAPS
    for name in ("geometry", "similarity", "sensitivity", "information", "occlusion"):
        columns = AmvlAnalysis().data(record, tables, name)
        assert len({len(column) for column in columns.values()}) == 1
    cells = AmvlAnalysis().data(record, tables, "occlusion")
    assert len(cells["shift"]) == sum(np.prod(row["shape"]) for row in tables["occlusion"].to_pylist())


def test_linear_probes_are_those_of_what_the_prober_holds(actors, config, amvl, tmp_path) -> None:
    """60 questions with two steps; the record's figures are those of its file, and that is what one process gives.

    In float32. Worst seen: 8e-7.
    """
    asked = [replace(sample(f"test-{i}", i), steps=("abc"[i % 3], "same"), step_images=(None, None)) for i in range(60)]
    (tmp_path / "data").mkdir()
    pq.write_table(table(asked), tmp_path / "data" / "test.parquet")
    shards = [Shard(file="test.parquet", split="test", rows=60, sha256="")]
    data = DatasetRecord(
        uri=str(tmp_path / "data"), fingerprint="s", schema_version=1, shards=shards, kept=60, dropped={}, reports=[]
    )
    place = Place(str(tmp_path / "probe"), "p")
    record = ray_eval.linear_probe(actors, config, data, amvl, place, lambda _: None)
    assert record == load_record(place.uri, LinearProbeRecord)
    assert ([step.step for step in record.steps], record.left_out) == ([1], [2])
    assert (record.steps[0].n, record.steps[0].texts, len(record.steps[0].slots)) == (60, 3, LATENT.num_slots)
    assert not (tmp_path / "probe" / "parts").exists()
    rows = pq.read_table(record.vectors_uri).to_pylist()
    again, _ = probed(
        np.array([row["prompt"] for row in rows]),
        np.array([row["slots"] for row in rows]),
        [json.loads(row["steps"]) for row in rows],
        [row["group"] or row["sample_id"] for row in rows],
    )
    assert again == record.steps
    worker = ProbingWorker(config, amvl, "")
    held = worker.prober.held(asked)
    for row, slots_KD, prompt_D in zip(
        sorted(rows, key=lambda row: int(row["sample_id"].removeprefix("test-"))),
        *(part.numpy() for part in held),
        strict=True,
    ):
        np.testing.assert_allclose(row["slots"], slots_KD, rtol=0, atol=1e-5)
        np.testing.assert_allclose(row["prompt"], prompt_D, rtol=0, atol=1e-5)


def test_draws_are_stored_and_scored_from_what_is_stored(actors, config, dataset, amvl, tmp_path) -> None:
    config = override(config, {"evaluation": {"sampled_items": 5}})
    place = Place(str(tmp_path), "s")
    record = ray_eval.sample(actors, config, dataset, amvl, place, lambda _: None)
    assert record == load_record(place.uri, SamplingRecord)
    rows = pq.read_table(record.samples_uri).to_pylist()
    assert score_samples(rows) == record.scores
    assert {score.n for score in record.scores} == {5}
    by_source: dict[str, dict[tuple[str, float], set[str]]] = {}
    for row in rows:
        by_source.setdefault(row["source"], {}).setdefault((row["sample_id"], row["scale"]), set()).add(
            row["raw_output"]
        )
    assert all(max(map(len, by_source[source].values())) > 1 for source in ("latents", "tokens"))
    numbers = {name: int(name.removeprefix("test-")) for name, _ in by_source["greedy"]}
    worker = EvaluationWorker(config, amvl)
    asked = Part("answers", tuple(numbers.values()), 5)
    plain = worker.work(worker.prepare(Questions.of(dataset), asked))
    assert {row["sample_id"]: {row["raw_output"]} for row in plain} == {
        name: said for (name, _), said in by_source["greedy"].items()
    }


def test_fewer_than_two_samples_are_refused(config, dataset, amvl, root) -> None:
    small = dataset.model_copy(update={"shards": [dataset.shards[0].model_copy(update={"rows": 1})]})
    with pytest.raises(DataError, match="swaps latents between at least 2"):
        list(ray_eval.faithfulness(Actors(config), config, [(small, Place(str(root / "x"), "x"))], amvl, [], print))


def test_the_command_leaves_published_benchmarks_to_a_run(
    capsys: pytest.CaptureFixture[str], actors: Actors, config, amvl, tmp_path: Path
) -> None:
    """Their pixel budget is a run's own, and names its result."""
    actors.close()  # the command leaves Ray
    questions, _ = published_questions(config, "vstar", tmp_path)
    assert analysis.main(["faithfulness", "--checkpoint", amvl.uri, "--dataset", questions.uri]) == 1
    assert "holds questions of vstar; a run asks them" in capsys.readouterr().err


def test_the_command_says_what_is_missing(
    capsys: pytest.CaptureFixture[str], dataset, amvl, sft, tmp_path: Path
) -> None:
    assert analysis.main(["sampling", "--checkpoint", amvl.uri, "--dataset", dataset.uri]) == 1
    assert "as many test questions as --items says" in capsys.readouterr().err
    assert analysis.main(["geometry"]) == 1
    assert "give --checkpoint" in capsys.readouterr().err
    assert analysis.main(["geometry", "--checkpoint", str(tmp_path)]) == 1
    assert "holds no CheckpointRecord" in capsys.readouterr().err
    assert analysis.main(["geometry", "--checkpoint", sft.uri]) == 1
    assert "has no latents" in capsys.readouterr().err
