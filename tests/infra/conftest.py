"""Records and one MLflow database for the folder: creating its tables takes seconds."""

import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from amvl_core.contracts.config import RunConfig, TrackingConfig
from amvl_core.contracts.records import (
    CheckpointRecord,
    DatasetRecord,
    EvalRecord,
    ReadingScore,
    Shard,
    SourceReport,
    TaskScore,
)
from amvl_core.methods.amvl.presets import demo


@pytest.fixture(scope="session")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """The demo's configuration with storage and SQLite in a temporary folder."""
    root = tmp_path_factory.mktemp("storage")
    uri = f"sqlite:///{root}/mlflow.db"
    return demo().model_copy(update={"storage": str(root), "tracking": TrackingConfig(uri=uri)})


@pytest.fixture()
def dataset() -> DatasetRecord:
    report = SourceReport(source="microworld", split="train", read=12, kept=10, dropped={"no_answer": 2}, examples={})
    shards = [Shard(file="train.parquet", split="train", rows=10, sha256="0" * 64)]
    return DatasetRecord(
        uri="/data/d1",
        fingerprint="d1",
        schema_version=1,
        shards=shards,
        kept=10,
        dropped={"no_answer": 2},
        reports=[report],
    )


@pytest.fixture()
def checkpoint(tmp_path: Path) -> Callable[..., CheckpointRecord]:
    def make(stage: str = "amvl", method: str = "amvl", fingerprint: str = "c1", uri: str = "") -> CheckpointRecord:
        return CheckpointRecord(
            uri=uri or str(tmp_path / fingerprint),
            fingerprint=fingerprint,
            stage=stage,
            method=method,
            step=3,
            config={},
            dataset="d1",
            parent=None,
            num_parameters=7,
            metrics={"loss": 0.5},
        )

    return make


@pytest.fixture()
def evaluation() -> Callable[..., EvalRecord]:
    def make(stage: str, correct: int, fingerprint: str = "e1") -> EvalRecord:
        def score(task: str, n: int, right: int) -> TaskScore:
            accuracy = right / n
            return TaskScore(
                task=task,
                n=n,
                accuracy=accuracy,
                low=max(0, accuracy - 0.1),
                high=min(1, accuracy + 0.1),
                majority=0.25,
            )

        scores = [score("microworld/colour", 10, correct), score("microworld/odd_one_out", 10, correct)]
        return EvalRecord(
            uri="/none",
            fingerprint=fingerprint,
            checkpoint="c1",
            stage=stage,
            dataset="d1",
            scores=scores,
            overall=score("all", 20, 2 * correct),
            readings=[ReadingScore(reading="exact match", scores=[], unanswered=0, drawn=0)],
        )

    return make


@pytest.fixture()
def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
