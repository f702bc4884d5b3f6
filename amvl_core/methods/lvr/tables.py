"""LVR against models without vision tokens in their slots, and its latent steps at inference."""

from __future__ import annotations

from typing import Any

from amvl_core.contracts.ablations import Change, Row, Table, control_row, method_stages, replaced
from amvl_core.contracts.config import RunConfig, override
from amvl_core.methods.lvr.config import LvrMethod
from amvl_core.methods.pause.config import PauseMethod
from amvl_core.methods.sft.config import SftMethod


def _method(**fields: Any) -> Change:
    return lambda config: override(config, {"stages": {name: {"method": fields} for name in method_stages(config)}})


def _steps(number: int) -> Row:
    return Row(f"{number} latent steps", lambda config: override(config, {"evaluation": {"latent_steps": number}}))


def _plain(config: RunConfig) -> RunConfig:
    """Fine-tuning on the same replies without a block."""
    return replaced(config, SftMethod)


TABLES: dict[str, Table] = {
    "controls": Table(
        "Controls: the same replies without a block, with pause tokens, or without the features' error",
        LvrMethod.label,
        (
            Row("SFT, equal steps", _plain),
            Row(PauseMethod.label, control_row(PauseMethod)),
            Row("no error of features", _method(feature_weight=0.0)),
            Row(LvrMethod.label, lambda config: config),
        ),
    ),
    "test_time": Table(
        "Latent steps at inference, forced on one model",
        "8 latent steps",
        (
            Row("no block", lambda config: override(config, {"evaluation": {"latent_mode": "never"}})),
            *(_steps(number) for number in (0, 4, 8, 16)),
        ),
    ),
}
