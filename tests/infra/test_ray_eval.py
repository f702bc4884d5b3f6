"""Evaluation over Ray: the same bytes whichever workers answer and whatever is killed on the way."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest

from amvl_core.contracts import storage
from amvl_core.contracts.errors import DataError, StorageError
from amvl_core.contracts.parts import Part
from amvl_core.contracts.progress import Progress
from amvl_core.contracts.records import (
    CheckpointRecord,
    DatasetRecord,
    EvalRecord,
    FaithfulnessRecord,
    Place,
    load_record,
    save_record,
)
from amvl_core.eval.benchmarks.prepared import question
from amvl_core.eval.predict import Answerer
from infra import ray_eval
from tests.infra import evaluations
from tests.tiny import stock_folder

TEST = 24
REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DatasetRecord:
    return evaluations.dataset(tmp_path_factory.mktemp("dataset"), TEST)


@pytest.fixture(scope="module")
def uninterrupted(data: DatasetRecord, ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> EvalRecord:
    """One worker, killed once and started again by Ray."""
    killed: list[int] = []

    def kill_once(event: Progress) -> None:
        if event.done and not killed:
            # By the whole name: actors of Ray's own, left by other tests of this cluster, are called ray::Actor... too.
            processes = psutil.Process().children(recursive=True)
            workers = [p for p in processes if p.cmdline()[:1] in (["ray::Actor"], ["ray::Actor.work"])]
            assert len(workers) == 1
            killed.append(workers[0].pid)
            workers[0].kill()

    uri = tmp_path_factory.mktemp("evaluation")
    record = evaluations.run(evaluations.config(workers=1), data, str(uri), kill_once)
    assert killed
    return record


def test_a_record_and_its_predictions_are_all_that_is_left(uninterrupted: EvalRecord) -> None:
    assert sorted(path.name for path in Path(uninterrupted.uri).iterdir()) == ["predictions.parquet", "record.json"]
    assert load_record(uninterrupted.uri, EvalRecord) == uninterrupted
    assert uninterrupted.overall.n == TEST
    assert [score.task for score in uninterrupted.scores] == ["made/colour", "made/count"]
    # A third of the questions has a step before the answer, so their candidates are not scored.
    likely = next(r for r in uninterrupted.readings if r.reading == "likelihood")
    assert likely.scores[0].n == TEST - TEST // 3


@pytest.mark.slow
def test_an_evaluation_that_was_killed_goes_on_and_gives_the_same_bytes_on_other_workers(
    data: DatasetRecord, uninterrupted: EvalRecord, tmp_path: Path
) -> None:
    settings, uri = evaluations.config(workers=2), tmp_path / "evaluation"
    (tmp_path / "config.json").write_text(settings.model_dump_json())
    command = [sys.executable, "-m", "tests.infra.evaluations", str(tmp_path / "config.json"), data.uri, str(uri)]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 120
    while len(list(uri.glob("parts/0*.parquet"))) < 2:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (uri / "record.json").exists()
    (uri / "parts" / "999999-of-another-cut.parquet").write_bytes(b"not read")

    events: list[Progress] = []
    record = evaluations.run(settings, data, str(uri), events.append)
    assert 4 <= events[0].done < TEST
    assert [event.done for event in events] == sorted(event.done for event in events)
    assert (events[-1].done, events[-1].total, events[-1].seconds_left) == (TEST, TEST, 0)
    assert (uri / "predictions.parquet").read_bytes() == Path(uninterrupted.predictions_uri).read_bytes()
    assert record == uninterrupted.model_copy(update={"uri": str(uri)})
    assert not (uri / "parts").exists()


def test_what_is_stored_is_what_the_model_says_alone_and_together(
    data: DatasetRecord, uninterrupted: EvalRecord
) -> None:
    """Without Ray, each question by itself; float32 log-likelihoods differ by at most 2e-6 nats."""
    from amvl_core.data.reader import ShardReader

    answerer, reader = Answerer.from_pretrained(stock_folder()), ShardReader(data, "test")
    stored = {row["sample_id"]: row for row in pq.read_table(uninterrupted.predictions_uri).to_pylist()}
    assert len(stored) == TEST
    for number in range(0, TEST, 5):
        asked = question(reader[number])
        row = stored[asked.item_id]
        prompts = answerer.encode([asked.images], [asked.prompt], pixels=(16 * 16, 64 * 64))
        candidates = json.loads(row["candidates"])
        (alone,) = answerer.predict(prompts, 6, [candidates])
        assert row["raw_output"] == alone.text
        assert json.loads(row["log_likelihoods"]) == pytest.approx(alone.log_likelihoods, abs=1e-4)
        expected = sorted(evaluations.ANSWERS[asked.task.removeprefix("made/")]) if number % 3 != 2 else []
        assert candidates == expected
        assert (row["temperature"], row["tau"], row["seed"], row["max_new_tokens"]) == (0.0, 0.0, 0, 6)
        assert (row["min_pixels"], row["max_pixels"], row["dtype"]) == (16 * 16, 64 * 64, "float32")
        assert row["dataset"] == data.fingerprint


def test_an_error_of_a_worker_is_the_users_own(data: DatasetRecord, ray_cluster: None, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no test split"):
        evaluations.run(evaluations.config(), data.model_copy(update={"shards": data.shards[:1]}), str(tmp_path))
    damaged = evaluations.dataset(tmp_path, 2, image=b"no picture")
    with pytest.raises(DataError, match=r"^the image cannot be read"):
        evaluations.run(evaluations.config(), damaged, str(tmp_path / "evaluation"))
    assert not (tmp_path / "evaluation" / "record.json").exists()


class Overtaken:
    """Actors whose files of parts another run removes at the end of the work `at`, when it has made the record."""

    def __init__(self, at: str, record: EvalRecord | FaithfulnessRecord | None) -> None:
        self.at, self.record, self.worked = at, record, list[str]()

    def tables(self, make: Any, asked: Any, parts: Any, folder: str, name: str, on_progress: Any) -> dict[str, str]:
        self.worked.append(name)
        storage.write_bytes(f"{folder}/part", b"")
        if name == self.at:
            if self.record is not None:
                save_record(self.record)
            raise StorageError("cannot read the part: it does not exist")
        return {"answers": name}


class Asked:
    """A stage at its last argument, and its questions; its tables are its record."""

    def __init__(self, *given: Any) -> None:
        self.place, self.asked = given[-1], self

    def name(self, work: str) -> str:
        return f"{work} on {self.place.fingerprint}"

    def parts(self, workers: int) -> list[Part]:
        return []

    def finish(self, tables: Any) -> Any:
        return tables


def test_the_slower_of_two_runs_takes_the_record_of_the_other(
    tmp_path: Path, evaluation: Callable[..., EvalRecord]
) -> None:
    record = evaluation("amvl", 5).model_copy(update={"uri": str(tmp_path)})
    stage: Any = Asked(Place(str(tmp_path), "e1"))
    slower: Any = Overtaken(stage.name, None)
    with pytest.raises(StorageError, match="cannot read the part"):
        ray_eval._recorded(EvalRecord, slower, Asked, stage, [], lambda _: None)
    slower.record = record
    assert ray_eval._recorded(EvalRecord, slower, Asked, stage, [], lambda _: None) == record
    assert storage.list_names(str(tmp_path)) == ["record.json"]


def test_the_slower_of_two_suites_does_so_and_goes_on_with_the_other_questions(
    tmp_path: Path, checkpoint: Callable[..., CheckpointRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_eval, "Suite", Asked)
    record = FaithfulnessRecord(
        uri=str(tmp_path / "a"), fingerprint="a", benchmark="b", checkpoint="c", stage="amvl", dataset="d", rows=[],
        verdict="made elsewhere",
    )  # fmt: skip
    places = [Place(str(tmp_path / name), name) for name in "ab"]
    slower: Any = Overtaken("faithfulness sft on a", record)
    controls = [(label, checkpoint(label)) for label in ("sft", "pause")]
    data: Any = None
    asked = [(data, place) for place in places]
    found = list(ray_eval.faithfulness(slower, evaluations.config(), asked, checkpoint(), controls, lambda _: None))
    works = [f"faithfulness {label}" for label in ("amvl", "sft", "pause")]
    assert found == [record, [f"{work} on b" for work in works]]
    assert slower.worked == [*[f"{work} on {name}" for work in works for name in "ab"][:-2], f"{works[-1]} on b"]
    assert storage.list_names(str(tmp_path / "b")) == []
