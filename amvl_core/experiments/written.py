"""Written steps against bare answers, on each task of dependent steps (docs/microworld.md)."""

from __future__ import annotations

from amvl_core.contracts.config import override
from amvl_core.contracts.sources import MAX_DIFFICULTY, DependentTask
from amvl_core.experiments.experiment import Arm, Experiment
from amvl_core.experiments.shared import shared, stage
from amvl_core.methods.sft.config import SftMethod

STEPS = 800
"""Optimiser steps of each arm behind the shared ones."""
UNTIED = {
    "model": {"tiny": {"tie_word_embeddings": False}},
    "stages": {"steps": {"lr": 2e-3, "lr_scale": {"embeddings": 1.0}}},
}
"""The demo's own model and rates: nothing is fed back here, and so it learns to write the steps sooner."""


def written(task: DependentTask) -> Experiment:
    """The ceiling and the control that answers at once, from one checkpoint that has learned to write the steps."""
    return Experiment(
        f"Written steps and bare answers: {task}",
        override(shared((1, MAX_DIFFICULTY), train=16000, test=1600, steps=2400, task=task), UNTIED),
        (
            Arm("SFT, steps in words", "ceiling", {"sft": stage(SftMethod(), STEPS)}, writes=True),
            Arm("SFT, bare answers", "control", {"bare": stage(SftMethod(replaced_steps=None), STEPS)}),
        ),
        rates=(1e-3,),
        tried=(),
        validation={},
        seeds=1,
    )
