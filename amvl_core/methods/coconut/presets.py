"""Whole configurations of Coconut. Imports no torch."""

from __future__ import annotations

from amvl_core.contracts.config import LrScale, RunConfig, override, validate
from amvl_core.contracts.sources import MicroworldSource
from amvl_core.methods.coconut.config import CoconutMethod
from amvl_core.methods.curriculum import curriculum

MOVES = 3
"""The most dependent steps of a question."""


def coconut_demo() -> RunConfig:
    """The whole pipeline on two CPU cores: fine-tuning on chains of colours with steps in words, then a slot for each
    step that leaves, with pause tokens in the same curriculum as the control.

    The tiny model has one table for inputs and outputs, as GPT-2 has. While the chain is learned, that table learns
    more slowly, and all else at half the demo's rate: at the full rates it is learned much later, or not. The demo is
    one training of the experiment `latents-small`: one worker, and its seed.
    """
    from amvl_core.contracts.presets import PRESETS

    demo = PRESETS["demo"]()
    fine_tuning = demo.stages["sft"]
    steps = fine_tuning.model_copy(update={"steps": 1500, "lr": 1e-3, "lr_scale": LrScale(embeddings=0.2)})
    stage = fine_tuning.model_copy(
        update={
            "method": CoconutMethod(slots_per_step=1, stage_mix=0.3),
            "trainable": "language",
            "steps": 480,
            "lr": 1e-3,
        }
    )
    stages = {"steps": steps, **curriculum("coconut", stage, MOVES)}
    config = validate(demo.model_copy(update={"stages": stages}).model_dump(mode="json"))
    source = MicroworldSource(tasks=("chain",), difficulty=(1, MOVES), train=16000, test=600)
    return override(
        config,
        {
            "data": {"sources": [source.model_dump(mode="json")]},
            "model": {"tiny": {"tie_word_embeddings": True}},
            "latent": {"num_slots": MOVES, "token_init": ":"},
            "evaluation": {"controls": ["pause"]},
            "cluster": {"num_workers": 1},
        },
    )
