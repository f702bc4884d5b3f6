"""What the experiments on dependent steps share: the data, the model, and the stage that learns to write the steps."""

from __future__ import annotations

from typing import Any

from amvl_core.contracts.config import RunConfig, StageConfig, override, validate
from amvl_core.contracts.method import MethodConfig
from amvl_core.contracts.presets import PRESETS
from amvl_core.contracts.sources import DependentTask, MicroworldSource


def shared(difficulty: tuple[int, int], train: int, test: int, steps: int, task: DependentTask = "chain") -> RunConfig:
    """Fine-tuning with steps in words, as in `coconut-demo`: what every arm starts from."""
    base = PRESETS["coconut-demo"]()
    stages = {"steps": base.stages["steps"].model_copy(update={"steps": steps})}
    return override(
        validate(base.model_copy(update={"stages": stages}).model_dump(mode="json")),
        {
            "data": questions(difficulty, train, test, seed=0, task=task),
            "latent": {"num_slots": difficulty[1]},
            "evaluation": {"controls": (), "analysis_items": 0, "faithfulness_items": min(test, 512)},
        },
    )


def questions(
    difficulty: tuple[int, int], train: int, test: int, seed: int, task: DependentTask = "chain"
) -> dict[str, Any]:
    """Fields of the data: one task of dependent steps."""
    source = MicroworldSource(tasks=(task,), difficulty=difficulty, train=train, test=test, seed=seed)
    return {"sources": [source.model_dump(mode="json")]}


def stage(method: MethodConfig, steps: int, **fields: Any) -> StageConfig:
    """The last stage of `coconut-demo` with another method: the vision encoder is not trained."""
    last = list(PRESETS["coconut-demo"]().stages.values())[-1]
    return last.model_copy(update={"method": method, "steps": steps, **fields})
