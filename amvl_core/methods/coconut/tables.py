"""The controls of Coconut's paper (arXiv 2412.06769, Sec. 4.2)."""

from __future__ import annotations

from amvl_core.contracts.ablations import Row, Table, control_row, last_stage_alone, replaced
from amvl_core.contracts.config import RunConfig, override
from amvl_core.methods.coconut.config import CoconutMethod
from amvl_core.methods.pause.config import PauseMethod
from amvl_core.methods.sft.config import SftMethod


def _without_curriculum(config: RunConfig) -> RunConfig:
    """The last stage alone, and none of its samples as in another one."""
    alone = last_stage_alone(config)
    return override(alone, {"stages": {list(alone.stages)[-1]: {"method": {"stage_mix": 0.0}}}})


def _without_thoughts(config: RunConfig) -> RunConfig:
    """The same curriculum, and nothing in the place of the steps."""
    return replaced(config, SftMethod)


TABLES: dict[str, Table] = {
    "controls": Table(
        "Controls: the same steps without fed-back states, or without the curriculum",
        "Coconut",
        (
            Row("SFT, equal steps", control_row(SftMethod)),
            Row("no curriculum", _without_curriculum),
            Row("no thoughts", _without_thoughts),
            Row("pause tokens as thoughts", control_row(PauseMethod)),
            Row(CoconutMethod.label, lambda config: config),
        ),
    ),
}
