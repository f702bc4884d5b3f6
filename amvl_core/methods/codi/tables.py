"""The controls of CODI."""

from __future__ import annotations

from amvl_core.contracts.ablations import Row, Table, control_row, method_stages
from amvl_core.contracts.config import RunConfig, override
from amvl_core.methods.codi.config import CodiMethod
from amvl_core.methods.pause.config import PauseMethod
from amvl_core.methods.sft.config import SftMethod


def _without_distillation(config: RunConfig) -> RunConfig:
    return override(config, {"stages": {name: {"method": {"distil_weight": 0.0}} for name in method_stages(config)}})


TABLES: dict[str, Table] = {
    "controls": Table(
        "Controls: the same steps without fed-back states, or without the distillation",
        CodiMethod.label,
        (
            Row("SFT, equal steps", control_row(SftMethod)),
            Row(PauseMethod.label, control_row(PauseMethod)),
            Row("f = 0", _without_distillation),
            Row(CodiMethod.label, lambda config: config),
        ),
    ),
}
