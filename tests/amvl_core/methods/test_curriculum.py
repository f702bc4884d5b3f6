"""Steps that leave a reply, and the stages in which they do."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from amvl_core.contracts.ablations import table_of
from amvl_core.contracts.config import StageConfig, override
from amvl_core.contracts.errors import ConfigError
from amvl_core.contracts.latent import LatentConfig
from amvl_core.contracts.method import MethodConfig
from amvl_core.contracts.presets import PRESETS
from amvl_core.contracts.sample import StoredSample
from amvl_core.methods.amvl.config import AmvlMethod
from amvl_core.methods.coconut.config import CoconutMethod
from amvl_core.methods.curriculum import curriculum
from amvl_core.methods.monet.config import MonetMethod
from amvl_core.methods.pause.config import PauseMethod
from amvl_core.methods.sft.config import SftMethod

SAMPLE = StoredSample(
    "i", "s", "t", "<image>q", ("a <image>", "b", "c<image>"), (1, None, 2), "red", (b"0", b"1", b"2")
)
LATENT = LatentConfig(num_slots=6)


@pytest.mark.parametrize(
    ("gone", "text", "shown"),
    [
        (0, "a <image>\nb\nc<image>\nred", [0, 1, 2]),
        (1, "b\nc<image>\nred", [0, 2]),
        (3, "red", [0]),
        (9, "red", [0]),
        (None, "red", [0]),
    ],
)
def test_the_first_steps_leave_the_reply_with_their_images(gone: int | None, text: str, shown: list[int]) -> None:
    methods = [SftMethod(replaced_steps=gone), PauseMethod(replaced_steps=gone)]
    for method in methods + ([CoconutMethod(replaced_steps=gone)] if gone != 0 else []):
        written = [s for s in method.layout(SAMPLE, LATENT) if s.kind not in ("prompt", "latent")]
        assert "".join(segment.text for segment in written) == text
        assert method.shown(SAMPLE) == shown


def test_every_sample_has_as_many_slots_as_its_stage() -> None:
    counts = [len(CoconutMethod(replaced_steps=n, slots_per_step=3).slots(LATENT)) for n in (1, 2, None)]
    assert counts == [3, 6, 6]
    segments = CoconutMethod(replaced_steps=2).layout(SAMPLE, LATENT)
    assert segments[1].text == "<latent>" + "<latent_slot>" * 4 + "</latent>" and segments[1].kind == "latent"


def test_a_curriculum_replaces_one_step_more_in_each_stage_and_all_in_the_last() -> None:
    stage = StageConfig(method=CoconutMethod(), steps=5)
    found = curriculum("c", stage, 3)
    assert [(name, one.method.replaced_steps, one.steps) for name, one in found.items()] == [
        ("c_1", 1, 5), ("c_2", 2, 5), ("c_3", None, 10),
    ]  # fmt: skip
    hidden = curriculum("a", StageConfig(method=AmvlMethod(), epochs=0.5), 2)
    assert [(one.method.hidden_steps, one.epochs) for one in hidden.values()] == [(1, 0.5), ("all", 1.0)]
    with pytest.raises(ValueError, match="monet lets no steps go"):
        curriculum("c", StageConfig(method=MonetMethod(), steps=5), 3)


def test_settings_that_cannot_be_are_refused() -> None:
    config = PRESETS["coconut-demo"]()
    with pytest.raises(ConfigError, match=r"coconut_2: 2 steps of 3 slots are 6 slots.*latent.num_slots = 3"):
        override(config, {"stages": {"coconut_2": {"method": {"slots_per_step": 3}}}})
    with pytest.raises(ConfigError, match="zero_stage 3 gathers all weights anew"):
        override(config, {"trainer": {"zero_stage": 3}})


def test_a_mixture_whose_stages_look_alike_is_refused() -> None:
    stages = {"amvl": {"method": {"kind": "pause", "stage_mix": 0.3}}}
    with pytest.raises(ConfigError, match="amvl: stage_mix needs slots_per_step"):
        override(PRESETS["demo"](), {"stages": {**stages, "embedding_adaptation": {"method": {"kind": "pause"}}}})


@pytest.mark.parametrize("fields", [{}, {"mask": "bottleneck"}, {"stage_mix": 0.5}])
def test_slots_for_steps_where_no_step_is_gone_are_refused(fields: dict[str, Any]) -> None:
    method = {"kind": "pause", "slots_per_step": 2, **fields}
    config = PRESETS["coconut-demo"]()
    with pytest.raises(ConfigError, match="coconut_1: slots_per_step needs replaced_steps"):
        override(config, {"stages": {"coconut_1": {"method": method}}})
    for gone in (1, None):
        assert PauseMethod.model_validate({**method, "replaced_steps": gone}).problem(LATENT, None, 0) is None


def test_controls_keep_the_curriculum_or_its_steps() -> None:
    config = PRESETS["coconut-demo"]()
    found = {row.label: row.change(config).stages for row in table_of(config, "controls").rows}
    for label in ("no thoughts", "pause tokens as thoughts"):
        assert [stage.method.replaced_steps for stage in found[label].values()] == [0, 1, 2, None]
    assert [stage.steps for stage in found["no curriculum"].values()] == [1500, 1920]
    mixed = {
        label: [s.method.model_dump().get("stage_mix") for s in stages.values()] for label, stages in found.items()
    }
    assert mixed["no curriculum"] == [None] * 2 and mixed["no thoughts"] == [None] * 4
    assert mixed["pause tokens as thoughts"] == [None, 0.3, 0.3, 0.3]


def test_a_mixed_stage_draws_for_each_sample_how_many_of_its_steps_are_gone() -> None:
    """Of 4,000 samples of three steps 30 % are drawn, evenly from 0 to 3: five deviations are 0.036 and 0.022."""
    stage = CoconutMethod(replaced_steps=2, slots_per_step=1, stage_mix=0.3)
    drawn = [stage.for_training(replace(SAMPLE, sample_id=f"sample-{n}"), LATENT) for n in range(4000)]
    assert drawn == [stage.for_training(replace(SAMPLE, sample_id=f"sample-{n}"), LATENT) for n in range(4000)]
    gone = Counter(method.replaced_steps for method in drawn)
    assert {*gone} == {0, 1, 2, 3}
    assert all(gone[n] / 4000 == pytest.approx(0.075, abs=0.022) for n in (0, 1, 3))
    assert gone[2] / 4000 == pytest.approx(0.775, abs=0.036)
    other = [
        CoconutMethod(replaced_steps=None, slots_per_step=1, stage_mix=0.3).for_training(
            replace(SAMPLE, sample_id=f"sample-{n}"), LATENT
        )
        for n in range(4000)
    ]
    assert [method.replaced_steps for method in other] != [method.replaced_steps for method in drawn]
    assert Counter(method.replaced_steps for method in other)[None] / 4000 == pytest.approx(0.7, abs=0.036)


def drawn(stage: MethodConfig) -> dict[object, MethodConfig]:
    """The settings of a thousand samples of three steps, by the steps that are gone."""
    assert stage.steps_field is not None
    names = (f"sample-{number}" for number in range(1000))
    found = [stage.for_training(replace(SAMPLE, sample_id=name), LATENT) for name in names]
    return {getattr(method, stage.steps_field): method for method in found}


def test_a_drawn_sample_has_the_slots_and_the_reply_of_its_own_stage() -> None:
    found = drawn(CoconutMethod(replaced_steps=1, slots_per_step=2, stage_mix=1.0))
    assert {*found} == {0, 1, 2, 3}
    for gone, text in ((0, "a <image>\nb\nc<image>\nred"), (1, "b\nc<image>\nred"), (3, "red")):
        _, block, *rest = found[gone].layout(SAMPLE, LATENT)
        assert block.text == "<latent>" + "<latent_slot>" * 2 * gone + "</latent>"
        assert "".join(segment.text for segment in rest) == text
    found = drawn(PauseMethod(replaced_steps=1, slots_per_step=2, stage_mix=1.0))
    assert {*found} == {0, 1, 2, 3}
    for gone, method in found.items():
        assert isinstance(gone, int)
        pads = "".join(f"<latent_pad_{slot}>" for slot in range(1, 2 * gone + 1))
        assert method.layout(SAMPLE, LATENT)[1].text == f"<abs_token>{pads}</abs_token>"


def test_no_draw_has_more_slots_than_the_last_stage() -> None:
    stage = CoconutMethod(replaced_steps=1, slots_per_step=3, stage_mix=1.0)
    found = drawn(stage)
    assert {*found} == {0, 1, 2, None}
    assert max(len(method.slots(LATENT)) for method in found.values()) == LATENT.num_slots == 6
    assert stage.added_tokens(LATENT) == 8 and stage.cost(LATENT).added == 8
    assert stage.model_copy(update={"stage_mix": 0.0}).added_tokens(LATENT) == 5


def test_under_the_mask_no_sample_is_drawn_without_a_slot() -> None:
    stage = CoconutMethod(replaced_steps=1, slots_per_step=1, stage_mix=1.0, mask="bottleneck")
    assert {*drawn(stage)} == {1, 2, 3}


def test_nothing_is_drawn_where_stages_are_not_mixed() -> None:
    for method in (CoconutMethod(), PauseMethod(), SftMethod()):
        assert method.for_training(SAMPLE, LATENT) is method and "stage_mix" not in method.model_dump()
