"""What the experiments on dependent steps share: the data, the model, and the stage that learns to write the steps."""

from __future__ import annotations

from typing import Any

from amvl_core.contracts.config import LrScale, RunConfig, StageConfig, override, validate
from amvl_core.contracts.latent import LatentConfig
from amvl_core.contracts.method import MethodConfig
from amvl_core.contracts.presets import PRESETS
from amvl_core.contracts.sources import DependentTask, MicroworldSource

EMBEDDINGS = LrScale(embeddings=0.2)
"""Of the shared stage: tied embeddings are inputs and outputs at once, and learn the chain later at the full rate."""


def shared(difficulty: tuple[int, int], train: int, test: int, steps: int, task: DependentTask = "chain") -> RunConfig:
    """Fine-tuning with steps in words: what every arm starts from."""
    base = PRESETS["demo"]()
    sft = base.stages["sft"].model_copy(update={"steps": steps, "lr_scale": EMBEDDINGS})
    base = validate(base.model_copy(update={"stages": {"steps": sft}}).model_dump(mode="json"))
    latent = LatentConfig(num_slots=difficulty[1], dim=32, head_hidden=128, token_init=":").model_dump(mode="json")
    evaluation = {"controls": (), "analysis_items": 0, "faithfulness_items": min(test, 512)}
    return override(
        base,
        {
            "data": questions(difficulty, train, test, seed=0, task=task),
            "model": {"tiny": {"tie_word_embeddings": True}},
            "latent": latent,
            "evaluation": evaluation,
            "cluster": {"num_workers": 1},
        },
    )


def questions(
    difficulty: tuple[int, int], train: int, test: int, seed: int, task: DependentTask = "chain"
) -> dict[str, Any]:
    """Fields of the data: one task of dependent steps."""
    source = MicroworldSource(tasks=(task,), difficulty=difficulty, train=train, test=test, seed=seed)
    return {"sources": [source.model_dump(mode="json")]}


def stage(method: MethodConfig, steps: int, **fields: Any) -> StageConfig:
    """The demo's fine-tuning with another method, without the vision encoder."""
    of_demo = PRESETS["demo"]().stages["sft"]
    return of_demo.model_copy(update={"method": method, "steps": steps, "trainable": "language", **fields})
