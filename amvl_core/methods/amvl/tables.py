"""The rows of the paper's ablation tables, with its figures beside them (arXiv 2607.00461)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from amvl_core.contracts.ablations import HR_4K, HR_8K, VSTAR, Change, Row, Table, control_row, method_stages
from amvl_core.contracts.config import RunConfig, override
from amvl_core.methods.amvl.analysis.geometry import TABLE_7
from amvl_core.methods.amvl.config import AmvlMethod
from amvl_core.methods.pause.config import PauseMethod
from amvl_core.methods.sft.config import SftMethod


def _method(fields: Callable[[AmvlMethod], dict[str, Any]]) -> Change:
    """Sets fields of the method of each AMVL stage."""

    def change(config: RunConfig) -> RunConfig:
        stages = {name: stage.method for name, stage in method_stages(config).items()}
        return override(
            config, {"stages": {name: {"method": fields(m)} for name, m in stages.items() if isinstance(m, AmvlMethod)}}
        )

    return change


def _as_configured(config: RunConfig) -> RunConfig:
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
        return override(config, {"latent": {field: scaled}})

    return change


def _latent(**fields: Any) -> Change:
    return lambda config: override(config, {"latent": fields})


def _tau(tau: float) -> Change:
    return lambda config: override(config, {"evaluation": {"tau": tau}})


def _scores(vstar: float, hr_4k: float | None = None, hr_8k: float | None = None) -> dict[str, float]:
    given = {VSTAR: vstar, HR_4K: hr_4k, HR_8K: hr_8k}
    return {name: score for name, score in given.items() if score is not None}


_BASE = _scores(76.44, 68.00, 63.75)
"""The paper's Qwen2.5-VL-7B (Table 1)."""
_AMVL = _scores(84.29, 72.12, 68.50)
_FORWARD_FIRST = "NTP+Fwd+Rev, forward-first"

TABLES: dict[str, Table] = {
    "3": Table(
        "Table 3: terms of the objective and their order",
        _FORWARD_FIRST,
        (
            Row("NTP", _terms("beta_max", "gamma_max"), _scores(81.15, 70.50, 67.38), TABLE_7["NTP"]),
            Row("Fwd only", _terms("ntp_weight", "gamma_max"), _scores(40.84, 53.37, 52.00)),
            Row("Rev only", _terms("ntp_weight", "beta_max"), _scores(75.92, 69.62, 64.38)),
            Row("NTP+Fwd", _terms("gamma_max"), _scores(82.72, 72.12, 67.75), TABLE_7["NTP+Fwd"]),
            Row("NTP+Rev", _terms("beta_max"), _scores(82.20, 71.75, 67.25), TABLE_7["NTP+Rev"]),
            Row("NTP+Fwd+Rev, reverse-first", _method(_exchange_starts), _scores(80.63, 72.38, 68.25)),
            Row(_FORWARD_FIRST, _as_configured, _AMVL, TABLE_7["AMVL"]),
        ),
        _BASE,
    ),
    "4": Table(
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
        _BASE,
    ),
    "8": Table(
        "Table 8: the variational head",
        "native",
        (
            Row("linear", _latent(head="linear"), _scores(76.96)),
            Row("MLP", _latent(head="mlp"), _scores(75.92)),
            Row("native", _latent(head="native"), _scores(84.29)),
            Row("deeper native", _latent(head="deeper"), _scores(75.39)),
        ),
        _BASE,
    ),
    "9": Table(
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
        _BASE,
    ),
    "10": Table(
        "Table 10: stop-gradients removed",
        "both kept",
        (
            Row("without forward", _gradients_flow("forward"), _scores(83.25)),
            Row("without reverse", _gradients_flow("reverse"), _scores(80.10)),
            Row("without both", _gradients_flow("forward", "reverse"), _scores(81.68)),
            Row("both kept", _as_configured, _scores(84.29)),
        ),
        _BASE,
    ),
    "11": Table(
        "Table 11: temperature of the latents",
        "tau = 0",
        tuple(
            Row(f"tau = {tau:g}", _tau(tau), _scores(score))
            for tau, score in ((0.0, 84.29), (0.2, 83.25), (0.5, 83.25), (0.8, 82.72), (1.0, 82.20))
        ),
        _BASE,
    ),
    "controls": Table(
        "Controls: the same steps without latents",
        "AMVL",
        (
            Row("SFT, equal steps", control_row(SftMethod), _scores(81.68, 68.38, 61.63)),
            Row(PauseMethod.label, control_row(PauseMethod)),
            Row(AmvlMethod.label, _as_configured, _AMVL, TABLE_7["AMVL"]),
        ),
        _BASE,
    ),
}
"""Table 11 trains nothing that the headline row has not."""
