"""A stage of VaLR by two processes without Ray: cut off and resumed with its projectors, and what it leaves."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from amvl_core.contracts import storage
from amvl_core.contracts.ablations import shared_stages
from amvl_core.contracts.config import RunConfig, validate
from amvl_core.contracts.presets import PRESETS
from benchmarks.tiny import TINY
from benchmarks.trial import Trial


class ValrTrial(Trial):
    """As `Trial`; the stage `sft` is one of VaLR."""

    def __init__(self, root: Path, steps: int) -> None:
        super().__init__(root, steps)
        config = PRESETS["valr-demo"]()
        method = config.method.model_copy(update={"align_layer": 1})
        stage = config.stages["valr"].model_copy(
            update={"method": method, "steps": steps, "global_batch": 8, "micro_tokens": 60}
        )
        assert shared_stages(config) == ["sft"]
        fields = self.config.model_copy(update={"stages": {"sft": stage}, "latent": config.latent})
        self.config: RunConfig = validate(fields.model_dump(mode="json"))


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> ValrTrial:
    made = ValrTrial(tmp_path_factory.mktemp("valr"), 6)
    assert made.config.model.tiny == TINY
    assert made.run("whole", stop_at=4) == [0, 0]
    return made


def test_a_stage_that_was_killed_goes_on_with_its_projectors(trial: ValrTrial) -> None:
    codes = trial.run("killed", kill_at=3)
    assert codes[0] == -signal.SIGKILL
    assert trial.run("killed", stop_at=4) == [0, 0]
    assert trial.state("killed", 4) == trial.state("whole", 4)
    assert trial.curve("killed") == trial.curve("whole")
    # The checkpoint was taken after step 2; what was logged until then comes again, and then step 3, done again.
    assert [line.get("done") for line in trial.lines("killed")] == [1, 2, 3, 1, 2, 3, 4, None]


def test_every_term_is_logged(trial: ValrTrial) -> None:
    metrics: dict[str, Any] = trial.lines("whole")[0]["metrics"]
    assert {"loss", "ntp", "align", "align_dinov3", "align_siglip", "slot_norm"} <= metrics.keys()
    assert metrics["loss"] == pytest.approx(metrics["ntp"] + 0.5 * metrics["align"], rel=1e-5)
    assert -1 <= metrics["align"] <= 1


def test_neither_encoders_nor_projectors_are_exported(trial: ValrTrial) -> None:
    assert trial.run("exported") == [0, 0]
    folder = Path(storage.join(trial.record("exported").uri, "model"))
    with safe_open(folder / "model.safetensors", "pt") as weights:
        names = set(weights.keys())
    with safe_open(f"{trial.root}/base/model.safetensors", "pt") as weights:
        assert names == set(weights.keys())
