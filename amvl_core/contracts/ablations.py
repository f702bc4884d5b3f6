"""Ablation tables: rows are functions RunConfig -> RunConfig, with the paper's figures beside them; and controls.

A row changes what its table says and nothing else: in the stages of the run's method, in `latent` or in `evaluation`.
The stages before those are what all rows start from. A method brings its own tables (`MethodConfig.tables`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple, TypeAlias

from amvl_core.contracts.config import RunConfig, StageConfig, flatten, override, untaken, validate
from amvl_core.contracts.errors import ConfigError
from amvl_core.contracts.method import MethodConfig, configurations

Change: TypeAlias = Callable[[RunConfig], RunConfig]
Figures: TypeAlias = Mapping[str, float]

VSTAR, HR_4K, HR_8K = "V*", "HR-4K", "HR-8K"
BLINK, MMVP, MMSTAR, CV_BENCH = "BLINK", "MMVP", "MMStar", "CV-Bench"
PAPER_COLUMNS = {
    VSTAR: "vstar",
    HR_4K: "hrbench_4k",
    HR_8K: "hrbench_8k",
    BLINK: "blink",
    MMVP: "mmvp",
    MMSTAR: "mmstar",
    CV_BENCH: "cv_bench",
}
"""A column of a paper's tables -> the name of that benchmark here (`evaluation.benchmarks`)."""
NO_FIGURES: Figures = MappingProxyType({})


class Row(NamedTuple):
    """One line of a table: its name, what it changes, and the paper's scores in per cent and its latents' figures."""

    label: str
    change: Change
    paper: Figures = NO_FIGURES
    measured: Figures = NO_FIGURES


class Table(NamedTuple):
    """A table; `headline` is the label of the row to which others are compared: the method as configured, or the
    paper's choice of what the table changes.

    `base` holds the paper's scores of the model that its rows start from.
    """

    title: str
    headline: str
    rows: tuple[Row, ...]
    base: Figures = NO_FIGURES


def table_of(config: RunConfig, name: str | int) -> Table:
    """A table of the run's method. Raises ConfigError where the method has none of that name."""
    tables = config.method.tables()
    if str(name) not in tables:
        known = f"choose one of {', '.join(tables)}" if tables else "it has none"
        raise ConfigError(f"{config.method.kind} has no ablation table {name}; {known}")
    return tables[str(name)]


def method_stages(config: RunConfig) -> dict[str, StageConfig]:
    """The stages of the run's method, the last stage's: those that rows change."""
    kind = config.method.kind
    return {name: stage for name, stage in config.stages.items() if stage.method.kind == kind}


def shared_stages(config: RunConfig) -> list[str]:
    """The stages before those: every row starts from the checkpoint of the last of them."""
    changed = method_stages(config)
    return [name for name in config.stages if name not in changed]


def with_stages(config: RunConfig, stages: Mapping[str, StageConfig]) -> RunConfig:
    """The same run with `stages` in the place of those of its method, and evaluated in the ways that these take."""
    shared = {name: config.stages[name] for name in shared_stages(config)}
    evaluation = config.evaluation.model_copy(update=untaken(list(stages.values())[-1].method))
    changes = {"stages": {**shared, **stages}, "evaluation": evaluation}
    return validate(config.model_copy(update=changes).model_dump(mode="json"))


def replaced(config: RunConfig, method: type[MethodConfig]) -> RunConfig:
    """The same run with `method` in the stages of the run's method, under names of their own.

    Fields that both methods have stay, and so do steps that are gone; a learning rate for parts that `method` does not
    have goes.
    """
    stages = {}
    for name, stage in method_stages(config).items():
        own = stage.method.model_dump(include={*method.model_fields} - {"kind"})
        if stage.method.steps_field and method.steps_field:
            gone = getattr(stage.method, stage.method.steps_field)
            own[method.steps_field] = method.all_steps if gone == stage.method.all_steps else gone
        scale = stage.lr_scale.model_copy(update={} if method.own_parts else {"latent": 1.0})
        changes = {"method": method.model_validate(own), "lr_scale": scale}
        stages[f"{method.model_fields['kind'].default}_{name}"] = stage.model_copy(update=changes)
    return with_stages(config, stages)


def control_row(method: type[MethodConfig]) -> Change:
    """The run that trains the control `method` in the place of the run's own."""

    def change(config: RunConfig) -> RunConfig:
        found = method.control(config)
        assert found is not None
        return found[1]

    return change


def last_stage_alone(config: RunConfig) -> RunConfig:
    """The last stage of the run's method alone, for as long as all of its stages."""
    stages = method_stages(config)
    name, last = list(stages.items())[-1]
    steps, epochs = (sum(getattr(stage, unit) or 0 for stage in stages.values()) for unit in ("steps", "epochs"))
    return with_stages(config, {name: last.model_copy(update={"steps": steps or None, "epochs": epochs or None})})


def with_seed(config: RunConfig, seed: int) -> RunConfig:
    """The same run with another seed of training and of drawn latents; the data stay."""
    return override(config, {"seed": seed, "evaluation": {"seed": seed}})


def difference(before: RunConfig, after: RunConfig) -> str:
    """What a row changes, as `beta_max 1.0 -> 0.0, ...`; fields that only one of the two methods has are left out."""
    old, new = _by_name(flatten(before)), _by_name(flatten(after))
    kinds = {name: stage.method.kind for name, stage in after.stages.items() if name not in before.stages}
    found = {
        f"{key.rsplit('.', 1)[-1]} {old[key]} -> {new[key]}" for key in old.keys() & new.keys() if old[key] != new[key]
    }
    found |= {f"{kind} in the place of {before.method.kind}" for kind in kinds.values()}
    return ", ".join(sorted(found)) or "as configured"


def _by_name(fields: Mapping[str, str]) -> dict[str, str]:
    """A list whose entries have names as these names, in the place of all fields of its entries."""
    lists: dict[str, list[str]] = {}
    for key, value in fields.items():
        if entry := re.fullmatch(r"(.+)\.\d+\.name", key):
            lists.setdefault(entry[1], []).append(value)
    plain = {key: value for key, value in fields.items() if not key.startswith(tuple(f"{name}." for name in lists))}
    return plain | {name: " + ".join(values) for name, values in lists.items()}


def controls(config: RunConfig) -> dict[str, RunConfig]:
    """The runs of `evaluation.controls` by label; none where no latent model comes last, or none is asked again.

    A stage that `config` does not have is the control's own; it starts where the latent stages start.
    """
    if not config.method.has_latents or not config.evaluation.faithfulness_items:
        return {}
    found = [configurations()[name].control(config) for name in config.evaluation.controls]
    return dict(control for control in found if control)
