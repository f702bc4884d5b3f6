"""Monet's sequences, the stages that its stages need, and what it says to the planner and the token budget."""

from __future__ import annotations

from typing import Any

import pytest

from amvl_core.backbones.processor import load_processor
from amvl_core.contracts.ablations import table_of
from amvl_core.contracts.config import Parents, override
from amvl_core.contracts.errors import ConfigError
from amvl_core.contracts.latent import LatentConfig
from amvl_core.contracts.presets import PRESETS
from amvl_core.contracts.sample import Crop, Region, StoredSample
from amvl_core.data.encode import Encoder, laid_out, laid_out_to_train
from amvl_core.methods.monet.config import MonetMethod
from amvl_core.methods.reply_blocks import LATENT_END, LATENT_START, SLOT
from amvl_core.methods.sft.config import SftMethod
from infra.plan.planner import plan
from tests.tiny import picture, stock_folder

LATENT = LatentConfig(num_slots=2)
BLOCK = LATENT_START + SLOT * 2 + LATENT_END


def sample(steps: tuple[str, ...], images: int, regions: int = 0) -> StoredSample:
    """A question about its first image; regions lie in that one."""
    boxes = tuple(Region(f"r{number}", (number, 0.0, number + 8.0, 8.0)) for number in range(regions))
    shown = tuple(picture(number) for number in range(images))
    return StoredSample("i", "s", "t", "<image>q", steps, (None,) * len(steps), "red", shown, boxes)


def crop(number: int) -> Crop:
    return Crop(0, (number, 0.0, number + 8.0, 8.0), 256)


@pytest.mark.parametrize(
    ("fields", "of", "reply", "observed", "shown"),
    [
        ({}, sample(("a <image> b", "c"), 2), "a IB b\nc\nred", [" b\n"], [1]),
        ({}, sample(("a <image>", "b"), 2), "a IB\nb\nred", ["b\n"], [1]),
        ({}, sample(("<image>b<image>c",), 3), "IBbIBc\nred", ["b", "c\n"], [1, 2]),
        ({}, sample(("a", "b<image>"), 2), "a\nbIB\nred", ["red"], [1]),
        ({"max_blocks": 1}, sample(("<image>b<image>c",), 3), "IBbc\nred", ["b"], [1]),
        ({}, sample(("a", "b"), 1, 2), "IBa\nIBb\nred", ["a\n", "b\n"], [crop(0), crop(1)]),
        ({}, sample(("a", "b"), 1, 3), "IBa\nb\nred", ["a\n"], [crop(0)]),
        ({"max_blocks": 1}, sample(("a", "b"), 1, 2), "IBa\nb\nred", ["a\n"], [crop(0)]),
        ({}, sample((), 1, 2), "IBred", ["red"], [crop(0)]),
        ({}, sample(("a <image>",), 2, 1), "a IB\nred", ["red"], [1]),
        ({}, sample(("a",), 1), "a\nred", [], []),
    ],
)
def test_images_and_blocks_and_what_is_said_of_them(
    fields: dict[str, Any], of: StoredSample, reply: str, observed: list[str], shown: list[Any]
) -> None:
    """I and B stand for an auxiliary image and a block: stage 1 has I, stage 2 both, stage 3 B."""
    for stage, block in ((1, ""), (2, BLOCK), (3, BLOCK)):
        method = MonetMethod.model_validate({**fields, "stage": stage})
        segments = method.layout(of, LATENT)[1:]
        image = "<image>" if stage < 3 else ""
        assert "".join(segment.text for segment in segments) == reply.replace("I", image).replace("B", block)
        assert [segment.text for segment in segments if segment.observation] == observed
        assert sum(segment.kind == "image" for segment in segments) == (len(shown) if stage < 3 else 0)
        assert method.shown(of) == [0, *(shown if stage < 3 else [])]
        if stage > 1:
            before = MonetMethod.model_validate({**fields, "stage": stage - 1})
            assert method.teacher(of, LATENT) == before.layout(of, LATENT)
            assert method.shown_to_teacher(of) == before.shown(of)
    assert (method.lacks(of) is None) == bool(shown)


def test_an_observation_has_the_same_tokens_for_student_and_teacher_and_no_sequence_is_longer_than_said() -> None:
    processor = load_processor(stock_folder())
    tokens = [LATENT_START, SLOT, LATENT_END]
    processor.tokenizer.add_special_tokens({"extra_special_tokens": tokens}, replace_extra_special_tokens=False)
    of = sample(("In the corner.", "It is round."), 1, 2)
    plain = len(laid_out(Encoder(processor), SftMethod(), LATENT, of).input_ids)
    for stage in (1, 2, 3):
        method = MonetMethod.model_validate({"stage": stage, "crop_tokens": 1, "max_blocks": 2})
        encoded = laid_out_to_train(Encoder(processor), method, LATENT, of, {})
        found = [encoded] if encoded.teacher is None else [encoded, encoded.teacher]
        assert len(found) == method.sequences
        said = {tuple(one.input_ids[list(one.observed)].tolist()) for one in found}
        assert said == {tuple(processor.tokenizer("In the corner.\nIt is round.\n")["input_ids"])}
        assert sum(len(one.input_ids) for one in found) == method.sequences * plain + method.added_tokens(LATENT)


def test_a_stage_starts_from_the_last_stage_1_and_is_taught_by_the_one_before() -> None:
    config = PRESETS["monet-demo"]()
    assert [config.parents(name) for name in config.stages] == [
        Parents(None, None),
        Parents("sft", None),
        Parents("monet_1", "monet_1"),
        Parents("monet_1", "monet_2"),
    ]
    (without,) = (row.change(config) for row in table_of(config, "controls").rows if row.label == "no alignment")
    assert without.parents("monet_3") == Parents("monet_1", None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stages": {"monet_2": {"method": {"stage": 1}}}}, "stages.monet_3: stage 3 of Monet needs its stage 2"),
        ({"stages": {"monet_1": {"method": {"stage": 2}}}}, "stages.monet_1: stage 2 of Monet needs its stage 1"),
        (
            {"stages": {"monet_1": {"method": {"align_weight": 1}}}},
            "monet_1.method: Value error, stage 1 of Monet has",
        ),
        ({"trainer": {"zero_stage": 3}}, "stages.monet_2: zero_stage 3 gathers all weights anew"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        override(PRESETS["monet-demo"](), changes)


def test_the_plan_has_the_teacher_beside_the_model_and_its_pass() -> None:
    stages = plan(PRESETS["monet"]()).stages
    first, second, third = stages.values()
    for stage in (second, third):
        assert stage.memory_gib["weights"] == pytest.approx(2 * first.memory_gib["weights"], abs=2e-3)
    assert first.flops_per_step["sft"] < second.flops_per_step["monet"] < 2 * first.flops_per_step["sft"]
