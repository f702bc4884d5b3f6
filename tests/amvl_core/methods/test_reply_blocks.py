"""Where blocks stand between the steps of a reply, what they are about, and what is labelled."""

from __future__ import annotations

from typing import Any

import pytest

from amvl_core.backbones.processor import load_processor
from amvl_core.contracts.errors import DataError
from amvl_core.contracts.latent import LatentConfig
from amvl_core.contracts.sample import StoredSample
from amvl_core.data.encode import IGNORED, Encoder, laid_out, laid_out_to_train
from amvl_core.methods.markers.config import MarkersMethod
from amvl_core.methods.reply_blocks import LATENT_END, LATENT_START, SLOT
from amvl_core.methods.valr.config import ValrMethod
from tests.tiny import picture, stock_folder

LATENT = LatentConfig(num_slots=4)
BLOCK = LATENT_START + SLOT * 4 + LATENT_END


def sample(question: str, steps: tuple[str, ...], about: tuple[int | None, ...], images: int) -> StoredSample:
    return StoredSample("i", "s", "t", question, steps, about, "red", tuple(picture(n) for n in range(images)))


def written(method: Any, of: StoredSample) -> tuple[str, list[int | None]]:
    segments = method.layout(of, LATENT)
    return "".join(s.text for s in segments[1:]), [s.image for s in segments if s.kind == "latent"]


@pytest.mark.parametrize(
    ("fields", "of", "text", "about"),
    [
        ({}, sample("<image>q", ("a", "b"), (0, 0), 1), f"{BLOCK}a\nb\nred", [0]),
        ({}, sample("<image>q", (), (), 1), f"{BLOCK}red", [0]),
        ({}, sample("q", ("a",), (None,), 0), f"{BLOCK}a\nred", [None]),
        ({}, sample("<image><image>q", ("a", "b"), (1, None), 2), f"{BLOCK}a\n{BLOCK}b\nred", [1, None]),
        ({}, sample("<image><image>q", (), (), 2), f"{BLOCK}red", [None]),
        ({}, sample("<image>q", ("a <image>", "<image>b"), (1, 2), 3), f"a {BLOCK}\n{BLOCK}b\nred", [1, 2]),
        ({"max_blocks": 1}, sample("<image>q", ("a <image>", "<image>b"), (1, 2), 3), f"a {BLOCK}\nb\nred", [1]),
        ({"blocks": "every_step"}, sample("<image>q", ("a", "b"), (0, 0), 1), f"{BLOCK}a\n{BLOCK}b\nred", [0, 0]),
        (
            {"blocks": "every_step", "max_blocks": 1},
            sample("<image>q", ("a", "b"), (0, 0), 1),
            f"{BLOCK}a\nb\nred",
            [0],
        ),
        ({"blocks": "first_step"}, sample("<image><image>q", ("a", "b"), (1, 0), 2), f"{BLOCK}a\nb\nred", [1]),
        ({"blocks": "interleaved"}, sample("<image>q", ("a",), (0,), 1), "a\nred", []),
        ({"replaced_steps": 1}, sample("<image><image>q", ("a", "b"), (1, 0), 2), f"{BLOCK}b\nred", [0]),
        ({"replaced_steps": None}, sample("<image>q", ("a", "b"), (0, 0), 1), f"{BLOCK}red", [0]),
        ({"replaced_steps": 1}, sample("<image>q", ("a <image>", "<image>b"), (1, 2), 3), f"{BLOCK}b\nred", [2]),
        ({"replaced_steps": 2}, sample("<image>q", ("a <image>", "<image>b"), (1, 2), 3), f"{BLOCK}red", [None]),
    ],
)
def test_where_blocks_stand_and_what_they_are_about(
    fields: dict[str, Any], of: StoredSample, text: str, about: list[int | None]
) -> None:
    assert written(ValrMethod(**fields), of) == (text, about)


def test_the_images_of_steps_leave_the_input_where_blocks_take_their_place() -> None:
    of = sample("<image>q", ("a <image>",), (1,), 2)
    assert list(ValrMethod().shown(of)) == [0]
    assert list(ValrMethod(blocks="every_step").shown(of)) == [0, 1]
    assert list(ValrMethod(blocks="every_step", replaced_steps=1).shown(of)) == [0]


@pytest.mark.parametrize("kind", [ValrMethod, MarkersMethod])
def test_a_sample_whose_steps_show_no_image_lacks_them_where_blocks_take_their_places_alone(kind: Any) -> None:
    with_one, without = sample("<image>q", ("a <image>", "b"), (1, 0), 2), sample("<image>q", ("a", "b"), (0, 0), 1)
    for fields, expected in (
        ({}, [None, None]),
        ({"blocks": "every_step"}, [None, None]),
        ({"blocks": "interleaved"}, [None, "images that steps show"]),
        ({"blocks": "interleaved", "replaced_steps": 1}, ["images that steps show"] * 2),
    ):
        assert [kind(**fields).lacks(of) for of in (with_one, without)] == expected


def test_a_step_about_an_image_that_is_not_there_is_an_error() -> None:
    with pytest.raises(DataError, match="i: step 1 is about image 3, but the sample has 1; prepare"):
        ValrMethod().layout(sample("<image>q", ("a",), (2,), 1), LATENT)


def test_the_entry_marker_is_labelled_and_slots_and_exit_are_not() -> None:
    processor = load_processor(stock_folder())
    tokens = [LATENT_START, SLOT, LATENT_END]
    processor.tokenizer.add_special_tokens({"extra_special_tokens": tokens}, replace_extra_special_tokens=False)
    start, slot, end = processor.tokenizer.convert_tokens_to_ids(tokens)
    of = sample("<image>q", ("a", "b"), (0, 0), 1)
    method = ValrMethod(blocks="every_step", encoders=())
    encoded = laid_out(Encoder(processor), method, LATENT, of)
    places = [i for i, token in enumerate(encoded.input_ids) if token in (start, slot, end)]
    assert [encoded.input_ids[i] for i in places] == [start, *[slot] * 4, end] * 2
    assert [encoded.labels[i] for i in places] == [start, *[IGNORED] * 5] * 2
    plain = laid_out(Encoder(processor), MarkersMethod(blocks="every_step"), LATENT, of)
    assert [token for token in plain.labels if token in (start, slot, end)] == [start, end] * 2
    assert len(encoded.input_ids) - len(plain.input_ids) == 2 * 4


def test_targets_are_each_image_once() -> None:
    processor = load_processor(stock_folder())
    of = sample("<image><image>q", ("a", "b", "c"), (1, None, 1), 2)
    encoder = {"name": "dinov3", "source": "tiny:dinov3", "size": 16}
    method = ValrMethod.model_validate({"encoders": [encoder]})
    encoded = laid_out_to_train(Encoder(processor), method, LATENT, of, {})
    assert encoded.targets.about == (0, None, 0)
    assert encoded.targets.arrays["dinov3"].shape == (1, 3, 16, 16)
