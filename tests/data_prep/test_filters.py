from __future__ import annotations

from dataclasses import replace

import pytest

from amvl_core.contracts.config import DataConfig
from amvl_core.contracts.sample import Conversation
from data_prep import filters
from data_prep.filters import check_length, check_text, shown_images

GOOD = Conversation("s/1", "s", "train", "t", (b"a", b"b"), "<image>What is it?", ("See <image>.", "So."), "a cat")
STEPS = DataConfig(target="steps_and_answer")
ANSWER = DataConfig(target="answer")


def test_a_good_sample_passes() -> None:
    assert check_text(GOOD, STEPS) is None
    assert check_text(GOOD, ANSWER) is None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"question": "<image> \n"}, filters.NO_QUESTION),
        ({"question": "<image>\u200b\u202e"}, filters.NO_QUESTION),
        ({"answer": " \n"}, filters.NO_ANSWER),
        ({"answer": "\u200b\xad"}, filters.NO_ANSWER),
        ({"steps": ("See <image>.", "\ufeff ")}, filters.INCOMPLETE_REASONING),
        ({"steps": ("See <image>.", " ")}, filters.INCOMPLETE_REASONING),
        ({"images": (b"a",)}, filters.PLACEHOLDER_MISMATCH),
        ({"images": (b"a", b"b", b"c")}, filters.PLACEHOLDER_MISMATCH),
        ({"answer": "<image>"}, filters.PLACEHOLDER_MISMATCH),
        ({"question": "<image>What<|image_pad|>?"}, filters.RESERVED_TEXT),
        ({"answer": "a<|im_end|>b"}, filters.RESERVED_TEXT),
        ({"answer": "<latent_pad_3>"}, filters.RESERVED_TEXT),
        ({"answer": "<latent_pad>"}, filters.RESERVED_TEXT),
        ({"answer": "</abs_token>"}, filters.RESERVED_TEXT),
        ({"answer": "a\0b"}, filters.RESERVED_TEXT),
    ],
)
def test_what_is_dropped(change: dict[str, object], reason: str) -> None:
    drop = check_text(replace(GOOD, **change), STEPS)  # type: ignore[arg-type]
    assert drop is not None
    assert drop.reason == reason
    assert drop.detail


def test_an_empty_step_does_not_matter_where_steps_are_no_target() -> None:
    assert check_text(replace(GOOD, steps=("See <image>.", "")), ANSWER) is None


def test_images_of_steps_go_with_the_steps() -> None:
    assert shown_images(GOOD, STEPS) == (b"a", b"b")
    assert shown_images(GOOD, ANSWER) == (b"a",)


def test_length_is_a_limit_inclusive() -> None:
    config = DataConfig(max_tokens=20)
    assert check_length(20, config) is None
    drop = check_length(21, config)
    assert drop is not None and drop.reason == filters.TOO_LONG
    assert "21" in drop.detail and "20" in drop.detail
