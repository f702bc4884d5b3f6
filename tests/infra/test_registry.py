"""A tiny model through the real registry and back."""

import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from PIL import Image

from amvl_core.config import RunConfig, TinyConfig
from amvl_core.records import CheckpointRecord, DatasetRecord, EvalRecord, ModelRecord, load_record
from infra import registry
from infra.mlflow_client import client
from infra.tracking import Tracker


def picture() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (48, 32), "teal").save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from amvl_core.tiny import save_tiny_base

    where = tmp_path_factory.mktemp("checkpoint")
    save_tiny_base(TinyConfig(), where / "model")
    return where


@pytest.fixture(scope="module")
def _cache() -> dict[str, Any]:
    return {}


@pytest.fixture()
def registered(
    _cache: dict[str, Any],
    folder: Path,
    tracked: RunConfig,
    dataset: DatasetRecord,
    checkpoint: Callable[..., CheckpointRecord],
    evaluation: Callable[..., EvalRecord],
) -> ModelRecord:
    """Registered once for the file."""
    if not _cache:
        with Tracker(tracked) as tracker:
            run_id = tracker.start()
            scores = [evaluation("sft", 5), evaluation("amvl", 8)]
            model = checkpoint(uri=str(folder))
            uri = f"{tracked.storage}/register/r1"
            _cache["record"] = registry.register(tracked, run_id, dataset, model, scores, uri)
    return _cache["record"]


def test_the_record_names_the_version_and_is_found_again(tracked: RunConfig, registered: ModelRecord) -> None:
    assert load_record(registered.uri, ModelRecord) == registered
    assert (registered.name, registered.version, registered.alias) == ("amvl", 1, "champion")
    assert registry.is_current(tracked, registered)
    assert not registry.is_current(tracked, registered.model_copy(update={"version": 2}))


def test_the_version_says_where_it_comes_from(tracked: RunConfig, registered: ModelRecord) -> None:
    tags = client(tracked).get_model_version("amvl", "1").tags
    assert (
        tags.items()
        >= {
            "data_fingerprint": "d1",
            "checkpoint_fingerprint": "c1",
            "accuracy": "0.8000",
            "accuracy.sft": "0.5000",
            "accuracy.microworld/colour": "0.8000",
        }.items()
    )
    assert len(tags["commit"]) in (7, 40)


def test_the_alias_loads_and_answers(tracked: RunConfig, registered: ModelRecord) -> None:
    import mlflow

    client(tracked)
    model = mlflow.pyfunc.load_model("models:/amvl@champion")
    frame = pd.DataFrame({"image": [picture()] * 2, "question": ["What colour?", "<image>What colour?"]})
    answers = model.predict(frame)
    assert len(answers) == 2
    assert answers[0] == answers[1]
    encoded = pd.DataFrame({"image": [base64.b64encode(picture()).decode()], "question": ["What colour?"]})
    assert model.predict(encoded) == answers[:1]
    for bad, message in (
        ({"image": [picture(), b"no picture"], "question": ["a", "b"]}, "row 1: image is no picture"),
        ({"image": ["%%%"], "question": ["a"]}, "row 0: image is text that is not base64"),
        ({"image": [picture()], "question": [" "]}, "row 0: question must be a text"),
        ({"image": [picture()], "question": ["<image> or <image>"]}, "row 0: question has 2 <image>"),
        ({"image": [picture()]}, "question"),
    ):
        with pytest.raises(mlflow.MlflowException, match=message):
            model.predict(pd.DataFrame(bad))


def test_requirements_are_versions_that_an_index_has() -> None:
    requirements = registry._requirements()
    assert any(line.startswith("torch==") for line in requirements)
    assert not any("+" in line for line in requirements)


def test_a_registration_is_named_by_weights_scores_and_place(
    tracked: RunConfig, checkpoint: Callable[..., CheckpointRecord], evaluation: Callable[..., EvalRecord]
) -> None:
    def name(config: RunConfig = tracked, model: str = "c1", scores: str = "e1") -> str:
        return registry.fingerprint(config, checkpoint(fingerprint=model), [evaluation("amvl", 5, scores)])

    tracking = tracked.tracking.model_copy(update={"alias": "candidate"})
    moved = tracked.model_copy(update={"storage": "/elsewhere"})
    assert (
        len({name(), name(model="c2"), name(scores="e2"), name(tracked.model_copy(update={"tracking": tracking}))}) == 4
    )
    assert name(moved) == name()
