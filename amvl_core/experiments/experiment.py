"""What an experiment is: arms that start from one checkpoint, and the rule that says whether latents matter in one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

from amvl_core.contracts.config import RunConfig, StageConfig, override, validate

Role = Literal["ceiling", "control", "latent"]
"""Ceiling: writes the steps and has no latents. Control: has neither. Latent: is judged by the rule."""


class Arm(NamedTuple):
    """One line of the chart: its own `stages`, which follow the shared ones.

    `writes` says whether its replies hold the steps. An arm is judged against the controls that write as much.
    """

    label: str
    role: Role
    stages: Mapping[str, StageConfig]
    writes: bool = False

    def of(self, shared: RunConfig) -> RunConfig:
        """The whole run of this arm."""
        return validate(shared.model_copy(update={"stages": {**shared.stages, **self.stages}}).model_dump(mode="json"))


class Experiment(NamedTuple):
    """Arms on one dataset whose tasks differ in the number of dependent steps.

    `shared` has the stages that all arms start from. No arm is trained before the checkpoint of these answers the share
    `learned` of each task's test questions. Where there are several `rates`, each arm takes the learning rate
    that does best on the questions of `validation`, fields that are laid over the data of `shared`. `tried` are the
    arms as they are trained for that.
    """

    title: str
    shared: RunConfig
    arms: tuple[Arm, ...]
    rates: tuple[float, ...]
    tried: tuple[Arm, ...]
    validation: Mapping[str, object]
    seeds: int
    learned: float = 0.0

    def validated_on(self, config: RunConfig) -> RunConfig:
        """The run whose test split is the validation split: it asks no changed latents."""
        return override(config, {"data": dict(self.validation), "evaluation": {"faithfulness_items": 0}})


def at_rate(config: RunConfig, shared: Mapping[str, StageConfig], rate: float) -> RunConfig:
    """The same run with the learning rate `rate` in each stage that is not shared."""
    return override(config, {"stages": {name: {"lr": rate} for name in config.stages if name not in shared}})


def difficulty(task: str) -> int:
    """The number of dependent steps of a task, which its name ends with: `chain_3` has 3."""
    return int(task.rpartition("_")[2])
