"""Monet against models without slots or without their alignment, and its latent steps at inference."""

from __future__ import annotations

from amvl_core.contracts.ablations import Row, Table, control_row, method_stages
from amvl_core.contracts.config import RunConfig, override
from amvl_core.methods.monet.config import MonetMethod
from amvl_core.methods.pause.config import PauseMethod
from amvl_core.methods.sft.config import SftMethod


def _without_alignment(config: RunConfig) -> RunConfig:
    return override(config, {"stages": {name: {"method": {"align_weight": 0.0}} for name in method_stages(config)}})


def _steps(number: int) -> Row:
    return Row(f"{number} latent steps", lambda config: override(config, {"evaluation": {"latent_steps": number}}))


TABLES: dict[str, Table] = {
    "controls": Table(
        "Controls: the same steps without slots, or without the alignment",
        MonetMethod.label,
        (
            Row("SFT, equal steps", control_row(SftMethod)),
            Row(PauseMethod.label, control_row(PauseMethod)),
            Row("no alignment", _without_alignment),
            Row(MonetMethod.label, lambda config: config),
        ),
    ),
    "test_time": Table(
        "Latent steps at inference, forced on one model",
        "8 latent steps",
        (
            Row("no block", lambda config: override(config, {"evaluation": {"latent_mode": "never"}})),
            *(_steps(number) for number in (0, 4, 8, 10, 12, 16)),
        ),
    ),
}
