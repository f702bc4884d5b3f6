"""The rows of the paper's ablation tables as functions RunConfig -> RunConfig, with the paper's figures beside them.

A row changes what its table says and nothing else: in every AMVL stage, or in `latent` or `evaluation`. Stages before
the first AMVL stage are what all rows start from. Table numbers are those of arXiv 2607.00461.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

from amvl_core.contracts.config import (
    AmvlMethod,
    PauseMethod,
    RunConfig,
    SftMethod,
    StageConfig,
    flatten,
    override,
    validate,
)
from amvl_core.contracts.errors import ConfigError

TableName: TypeAlias = Literal[3, 4, 8, 9, 10, 11, "controls"]
Change: TypeAlias = Callable[[RunConfig], RunConfig]

VSTAR, HR_4K, HR_8K = "V*", "HR-4K", "HR-8K"
PAPER_COLUMNS = {VSTAR: "vstar", HR_4K: "hrbench_4k", HR_8K: "hrbench_8k"}
"""A column of the paper's tables -> the name of that benchmark here (`evaluation.benchmarks`)."""


class Row(NamedTuple):
    """One line of a table: its name, what it changes, and the paper's scores in per cent where it gives them."""

    label: str
    change: Change
    paper: dict[str, float]


class Table(NamedTuple):
    """A table; `headline` is the label of the row that is AMVL as configured, which the others are compared with."""

    title: str
    headline: str
    rows: tuple[Row, ...]


def amvl_stages(config: RunConfig) -> dict[str, StageConfig]:
    """The stages that rows change. Raises ConfigError where there is none."""
    found = {name: stage for name, stage in config.stages.items() if stage.method.kind == "amvl"}
    if not found:
        raise ConfigError("stages holds no stage of the method amvl, so there is nothing to ablate; add one")
    return found


def shared_stages(config: RunConfig) -> list[str]:
    """The stages before the first AMVL stage: every row starts from the checkpoint of the last of them."""
    changed = amvl_stages(config)
    return [name for name in config.stages if name not in changed]


def with_seed(config: RunConfig, seed: int) -> RunConfig:
    """The same run with another seed of training and of drawn latents; the data stay."""
    return override(config, {"seed": seed, "evaluation": {"seed": seed}})


def difference(before: RunConfig, after: RunConfig) -> str:
    """What a row changes, as `beta_max 1.0 -> 0.0, ...`; fields that only one of the two methods has are left out."""
    old, new = flatten(before), flatten(after)
    kinds = {name: stage.method.kind for name, stage in after.stages.items() if name not in before.stages}
    found = {
        f"{key.rsplit('.', 1)[-1]} {old[key]} -> {new[key]}" for key in old.keys() & new.keys() if old[key] != new[key]
    }
    found |= {f"{kind} in the place of amvl" for kind in kinds.values()}
    return ", ".join(sorted(found)) or "as configured"


def _method(fields: Callable[[AmvlMethod], dict[str, Any]]) -> Change:
    """Sets fields of the method of each AMVL stage."""

    def change(config: RunConfig) -> RunConfig:
        stages = {name: stage.method for name, stage in amvl_stages(config).items()}
        return override(
            config, {"stages": {name: {"method": fields(m)} for name, m in stages.items() if isinstance(m, AmvlMethod)}}
        )

    return change


def _as_configured(config: RunConfig) -> RunConfig:
    amvl_stages(config)
    return config


def _terms(*left_out: str) -> Change:
    return _method(lambda _: dict.fromkeys(left_out, 0.0))


def _weights(ntp: float, beta: float, gamma: float) -> Change:
    """Table 9's numbers multiply the schedule's maxima (decision 3)."""
    return _method(
        lambda m: {"ntp_weight": ntp * m.ntp_weight, "beta_max": beta * m.beta_max, "gamma_max": gamma * m.gamma_max}
    )


def _gradients_flow(*terms: str) -> Change:
    return _method(lambda _: {f"stop_gradient_{term}": False for term in terms})


def _exchange_starts(method: AmvlMethod) -> dict[str, Any]:
    return {"beta_start": method.gamma_start, "gamma_start": method.beta_start}


def _scaled(field: Literal["num_slots", "dim"], value: int, headline: int) -> Change:
    """`value` where the configuration has the paper's `headline`; in proportion where it is smaller, and at least 1."""

    def change(config: RunConfig) -> RunConfig:
        scaled = max(1, round(getattr(config.latent, field) * value / headline))
        return override(_as_configured(config), {"latent": {field: scaled}})

    return change


def _latent(**fields: Any) -> Change:
    return lambda config: override(_as_configured(config), {"latent": fields})


def _tau(tau: float) -> Change:
    return lambda config: override(_as_configured(config), {"evaluation": {"tau": tau}})


def sft_of_equal_steps(config: RunConfig) -> RunConfig:
    """Plain fine-tuning from the same base, as long as all AMVL stages together.

    Their stages of new rows alone have no counterpart without new tokens: their steps are added to the last stage.
    Raises ConfigError where the stages give their length in different units.
    """
    stages = list(amvl_stages(config).values())
    kept = [stage for stage in stages if stage.trainable != "new_rows"]
    if not kept:
        raise ConfigError("every AMVL stage trains new rows only; fine-tuning of equal steps has no counterpart")
    steps, epochs = [s.steps for s in stages if s.steps], [s.epochs for s in stages if s.epochs]
    if steps and epochs:
        raise ConfigError("the AMVL stages give both steps and epochs; give all in one of them, to be added up")
    last = kept[-1].model_copy(
        update={"method": SftMethod(), "steps": sum(steps) or None, "epochs": sum(epochs) or None}
    )
    return _replaced(config, {"sft_equal_steps": last})


def pause_tokens(config: RunConfig) -> RunConfig:
    """Learned pause tokens in the place of the latents, in the same stages."""
    stages = amvl_stages(config).items()
    return _replaced(
        config, {f"pause_{name}": stage.model_copy(update={"method": PauseMethod()}) for name, stage in stages}
    )


CONTROLS: dict[str, tuple[str, Change]] = {
    "sft": ("SFT, equal steps", sft_of_equal_steps),
    "pause": ("pause tokens", pause_tokens),
}
"""`evaluation.controls`: what tables call each, and the run that trains it."""


def controls(config: RunConfig) -> dict[str, RunConfig]:
    """The runs of `evaluation.controls` by label; none where no latent model comes last, or none is asked again.

    A stage that `config` does not have is the control's own; it starts where the latent stages start.
    """
    last = list(config.stages.values())[-1]
    if last.method.kind != "amvl" or not config.evaluation.faithfulness_items:
        return {}
    chosen = (CONTROLS[name] for name in config.evaluation.controls)
    return {label: change(config) for label, change in chosen}


def _replaced(config: RunConfig, stages: dict[str, StageConfig]) -> RunConfig:
    shared = {name: config.stages[name] for name in shared_stages(config)}
    return validate(config.model_copy(update={"stages": {**shared, **stages}}).model_dump(mode="json"))


def _scores(vstar: float, hr_4k: float | None = None, hr_8k: float | None = None) -> dict[str, float]:
    given = {VSTAR: vstar, HR_4K: hr_4k, HR_8K: hr_8k}
    return {name: score for name, score in given.items() if score is not None}


_AMVL = _scores(84.29, 72.12, 68.50)
_FORWARD_FIRST = "NTP+Fwd+Rev, forward-first"

TABLES: dict[TableName, Table] = {
    3: Table(
        "Table 3: terms of the objective and their order",
        _FORWARD_FIRST,
        (
            Row("NTP", _terms("beta_max", "gamma_max"), _scores(81.15, 70.50, 67.38)),
            Row("Fwd only", _terms("ntp_weight", "gamma_max"), _scores(40.84, 53.37, 52.00)),
            Row("Rev only", _terms("ntp_weight", "beta_max"), _scores(75.92, 69.62, 64.38)),
            Row("NTP+Fwd", _terms("gamma_max"), _scores(82.72, 72.12, 67.75)),
            Row("NTP+Rev", _terms("beta_max"), _scores(82.20, 71.75, 67.25)),
            Row("NTP+Fwd+Rev, reverse-first", _method(_exchange_starts), _scores(80.63, 72.38, 68.25)),
            Row(_FORWARD_FIRST, _as_configured, _AMVL),
        ),
    ),
    4: Table(
        "Table 4: number and width of the latents",
        "k = 8, d = 512",
        (
            Row("k = 4", _scaled("num_slots", 4, 8), _scores(76.44)),
            Row("k = 16", _scaled("num_slots", 16, 8), _scores(81.15)),
            Row("d = 128", _scaled("dim", 128, 512), _scores(82.72)),
            Row("d = 256", _scaled("dim", 256, 512), _scores(76.96)),
            Row("d = 768", _scaled("dim", 768, 512), _scores(79.58)),
            Row("k = 8, d = 512", _as_configured, _scores(84.29)),
        ),
    ),
    8: Table(
        "Table 8: the variational head",
        "native",
        (
            Row("linear", _latent(head="linear"), _scores(76.96)),
            Row("MLP", _latent(head="mlp"), _scores(75.92)),
            Row("native", _latent(head="native"), _scores(84.29)),
            Row("deeper native", _latent(head="deeper"), _scores(75.39)),
        ),
    ),
    9: Table(
        "Table 9: weights of NTP, forward and reverse KL",
        "(1, 1, 1)",
        (
            Row("(1, 1, 1)", _weights(1, 1, 1), _scores(84.29)),
            Row("(1, 0.5, 1)", _weights(1, 0.5, 1), _scores(81.68)),
            Row("(1, 1, 0.5)", _weights(1, 1, 0.5), _scores(80.63)),
            Row("(2, 1, 1)", _weights(2, 1, 1), _scores(80.63)),
            Row("(2, 0.5, 1)", _weights(2, 0.5, 1), _scores(81.68)),
            Row("(2, 1, 0.5)", _weights(2, 1, 0.5), _scores(81.68)),
        ),
    ),
    10: Table(
        "Table 10: stop-gradients removed",
        "both kept",
        (
            Row("without forward", _gradients_flow("forward"), _scores(83.25)),
            Row("without reverse", _gradients_flow("reverse"), _scores(80.10)),
            Row("without both", _gradients_flow("forward", "reverse"), _scores(81.68)),
            Row("both kept", _as_configured, _scores(84.29)),
        ),
    ),
    11: Table(
        "Table 11: temperature of the latents",
        "tau = 0",
        tuple(
            Row(f"tau = {tau:g}", _tau(tau), _scores(score))
            for tau, score in ((0.0, 84.29), (0.2, 83.25), (0.5, 83.25), (0.8, 82.72), (1.0, 82.20))
        ),
    ),
    "controls": Table(
        "Controls: the same steps without latents",
        "AMVL",
        (
            Row(*CONTROLS["sft"], _scores(81.68, 68.38, 61.63)),
            Row(*CONTROLS["pause"], {}),
            Row("AMVL", _as_configured, _AMVL),
        ),
    ),
}
"""Table 11 trains nothing that the headline row has not."""

BASE_SCORES = _scores(76.44, 68.00, 63.75)
"""The paper's Qwen2.5-VL-7B (Table 1), beside the model that our rows start from."""
