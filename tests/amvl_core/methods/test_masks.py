"""The mask as a field: who has it, and what it leaves of a configuration."""

from __future__ import annotations

import pytest

from amvl_core.contracts.config import validate
from amvl_core.contracts.errors import ConfigError
from amvl_core.contracts.method import configurations
from amvl_core.methods.amvl.presets import demo

MASKED = [kind for kind, method in configurations().items() if "mask" in method.model_fields]
FROM_THE_START = {"sft", "pause", "markers", "mull"}


@pytest.mark.parametrize("kind", MASKED)
def test_a_full_mask_leaves_a_configuration_as_it_was(kind: str) -> None:
    """So the fingerprint of a run from before the field stands."""
    full, hidden = (configurations()[kind].model_validate(fields) for fields in ({}, {"mask": "bottleneck"}))
    assert not full.bottleneck and hidden.bottleneck
    assert ("mask" in full.model_dump(mode="json")) == (kind in FROM_THE_START)
    assert hidden.model_dump(mode="json") == full.model_dump(mode="json") | {"mask": "bottleneck"}


def test_monet_whose_first_stage_has_no_slots_has_no_mask() -> None:
    fields = demo().model_dump(mode="json")
    fields["stages"] = {"only": {"method": {"kind": "monet", "stage": 1, "mask": "bottleneck"}, "steps": 1}}
    with pytest.raises(ConfigError, match=r"stages\.only\.method\.\S*mask"):
        validate(fields)
