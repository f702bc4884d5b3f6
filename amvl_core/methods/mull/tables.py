"""Mull-Tokens against models without guided slots, or without slots. Imports no torch."""

from __future__ import annotations

from amvl_core.contracts.ablations import Row, Table, control_row, last_stage_alone, method_stages
from amvl_core.contracts.config import RunConfig, override
from amvl_core.methods.mull.config import MullMethod
from amvl_core.methods.pause.config import PauseMethod
from amvl_core.methods.sft.config import SftMethod


def _without_words(config: RunConfig) -> RunConfig:
    return override(config, {"stages": {name: {"method": {"words_weight": 0.0}} for name in method_stages(config)}})


TABLES: dict[str, Table] = {
    "controls": Table(
        "Controls: the same steps without slots, or with slots that stood for nothing",
        MullMethod.label,
        (
            Row("SFT, equal steps", control_row(SftMethod)),
            Row(PauseMethod.label, control_row(PauseMethod)),
            Row("no first stage", last_stage_alone),
            Row("slots stand for no words", _without_words),
            Row(MullMethod.label, lambda config: config),
        ),
    ),
}
