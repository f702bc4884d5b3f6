"""Experiments over several methods, by name. They are the one place that knows methods by name; no torch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from amvl_core.contracts.errors import ConfigError
from amvl_core.contracts.sources import DEPENDENT_TASKS
from amvl_core.experiments.experiment import Experiment
from amvl_core.experiments.latents import (
    latents,
    latents_bottleneck,
    latents_eight,
    latents_medium,
    latents_quick,
    latents_small,
    latents_small_bottleneck,
    latents_small_long,
    latents_wording,
)
from amvl_core.experiments.written import written

EXPERIMENTS: dict[str, Callable[[], Experiment]] = {
    "latents": latents,
    "latents-bottleneck": latents_bottleneck,
    "latents-eight": latents_eight,
    "latents-medium": latents_medium,
    "latents-quick": latents_quick,
    "latents-small": latents_small,
    **{f"latents-small-{task}": partial(latents_small, task) for task in DEPENDENT_TASKS if task != "chain"},
    "latents-small-bottleneck": latents_small_bottleneck,
    "latents-small-long": latents_small_long,
    "latents-wording": latents_wording,
    **{f"written-{task}": partial(written, task) for task in DEPENDENT_TASKS},
}


def experiment(name: str) -> Experiment:
    """Raises ConfigError where there is none of that name."""
    if name not in EXPERIMENTS:
        raise ConfigError(f"there is no experiment {name!r}; choose one of {', '.join(EXPERIMENTS)}")
    return EXPERIMENTS[name]()
