"""A VaLR checkpoint in evaluation, suite and served model, which know it by its method's interface alone."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pyarrow as pa
import pytest
import torch

from amvl_core.contracts.config import RunConfig, override
from amvl_core.contracts.parts import Part
from amvl_core.contracts.presets import PRESETS
from amvl_core.contracts.records import CheckpointRecord, Place
from amvl_core.eval.questions import Questions
from amvl_core.eval.suite import ProbingWorker, Suite
from benchmarks.tiny import LATENT, TINY
from infra.pyfunc_model import AmvlModel
from infra.reports.figures import faithfulness_chart
from tests.infra.test_ray_analysis import COMMON, TOLERANCE, of_answer, predictions, published_questions
from tests.numerics.test_valr_generation import K, valr_model
from tests.tiny import picture


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    storage = str(tmp_path_factory.mktemp("storage"))
    small = {
        "storage": storage,
        "model": {"tiny": TINY.model_dump()},
        "latent": {"num_slots": LATENT.num_slots},
        "stages": {"valr": {"method": {"encoders": [], "blocks": "first_step"}}},
    }
    return override(PRESETS["valr-demo"](), small)


@pytest.fixture(scope="module")
def checkpoint(config: RunConfig) -> CheckpointRecord:
    uri = Path(config.storage) / "train" / "valr"
    model, processor = valr_model(dtype=torch.float32)
    model.config.latent_mode = "first_step"
    model.save_pretrained(uri / "model")
    processor.save_pretrained(uri / "model")
    about = {"stage": "valr", "method": "valr", "step": 4, "dataset": "data", "parent": None, "metrics": {}}
    settings = config.model_dump(mode="json")
    return CheckpointRecord(uri=str(uri), fingerprint="valr", config=settings, num_parameters=1, **about)


def test_the_suite_asks_it_as_the_evaluation_does(config, checkpoint, tmp_path) -> None:
    """The unchanged model says what the evaluation's says, with the same log p; the verdict and the chart follow."""
    questions, config = published_questions(config, "vstar", tmp_path)
    asked = Questions.of(questions)
    worker = ProbingWorker(config, checkpoint, "")
    items = worker.work(worker.prepare(asked, Part("answers", (0, 1), 2, donor=0)))
    found = {item["sample_id"]: item for item in items if item["variant"] == "unchanged"}
    stored = predictions(config, asked, checkpoint)
    assert found.keys() == {prediction["sample_id"] for prediction in stored}
    for prediction in stored:
        item = found[prediction["sample_id"]]
        assert {key: item[key] for key in COMMON} == {key: prediction[key] for key in COMMON}
        assert item["log_likelihood"] == pytest.approx(of_answer(prediction), abs=TOLERANCE)
        assert prediction["blocks"] >= 1 and prediction["latent_steps"] >= K and prediction["tokens"] > 0
    place = Place(str(tmp_path / "suite"), "suite")
    record = Suite(config, questions, checkpoint, place).finish([pa.Table.from_pylist(items)])
    assert [row.variant for row in record.rows] == list(dict.fromkeys(item["variant"] for item in items))
    assert record.verdict.startswith("Swapping the latents between items changes accuracy by ")
    labels = [text.get_text() for text in faithfulness_chart(record.rows, record.verdict).axes[0].get_yticklabels()]
    assert [label.split("  ")[0] for label in labels] == [row.variant for row in record.rows[1:]]


def test_it_is_served_without_markers(checkpoint: CheckpointRecord) -> None:
    served = AmvlModel()
    settings = {"max_new_tokens": 6, "tau": 0.0, "seed": 0}
    served.load_context(SimpleNamespace(artifacts={"model": checkpoint.model_uri}, model_config=settings))
    answers = served.predict(None, pd.DataFrame({"image": [picture(1)] * 2, "question": ["What colour?"] * 2}))
    assert answers[0] == answers[1] and "latent" not in answers[0]
    refused = pd.DataFrame({"image": [picture(1)], "question": ["a <latent>"]})
    with pytest.raises(Exception, match="contains '<latent>'"):
        served.predict(None, refused)
