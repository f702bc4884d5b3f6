"""Why a sample is not kept. A predicate returns a `Drop`, or None if the sample is fine. Every drop is counted."""

from __future__ import annotations

from dataclasses import dataclass

from amvl_core.contracts.config import DataConfig
from amvl_core.contracts.errors import shortened
from amvl_core.contracts.method import control_token
from amvl_core.contracts.sample import (
    IMAGE_PLACEHOLDER,
    PLACEHOLDER,
    VIDEO_PLACEHOLDER,
    Conversation,
    shown_by_question,
)
from amvl_core.data.pixels import DECOMPRESSION_BOMB as DECOMPRESSION_BOMB
from amvl_core.data.pixels import UNREADABLE_IMAGE as UNREADABLE_IMAGE
from amvl_core.eval.score import folded

MALFORMED_ROW = "malformed_row"
TEST_OVERLAP = "test_overlap"
NO_QUESTION = "no_question"
NO_ANSWER = "no_answer"
INCOMPLETE_REASONING = "incomplete_reasoning"
PLACEHOLDER_MISMATCH = "placeholder_mismatch"
RESERVED_TEXT = "reserved_text"
MISSING_IMAGE = "missing_image"
SMALL_IMAGE = "small_image"
EXTREME_ASPECT = "extreme_aspect"
DEGENERATE_BOX = "degenerate_box"
TOO_LONG = "too_long"
DUPLICATE = "duplicate"
CONTAMINATED = "contaminated"


@dataclass(frozen=True)
class Drop:
    """Why one sample is dropped: a reason that is counted, and what exactly was found."""

    reason: str
    detail: str

    def __post_init__(self) -> None:
        # What a row holds may be of any length; reports and terminals show this.
        object.__setattr__(self, "detail", shortened(self.detail))


def check_text(conversation: Conversation, config: DataConfig) -> Drop | None:
    """The text of a sample: question, answer, steps (where they are a target) and image placeholders."""
    if not _visible(PLACEHOLDER.sub("", conversation.question)):
        return Drop(NO_QUESTION, "the question has no text")
    if not _visible(conversation.answer):
        return Drop(NO_ANSWER, "the answer is empty")
    steps = conversation.steps if config.target == "steps_and_answer" else ()
    for number, step in enumerate(steps, 1):
        if not _visible(step):
            return Drop(INCOMPLETE_REASONING, f"step {number} of {len(steps)} is empty")
    named = [("question", conversation.question), *((f"step {number}", step) for number, step in enumerate(steps, 1))]
    for name, text in [*named, ("answer", conversation.answer)]:
        if found := control_token(text):
            return Drop(RESERVED_TEXT, f"the {name} contains {found!r}, which the model reads as a control token")
    return _check_placeholders(conversation, steps)


def _visible(text: str) -> bool:
    """Whether a text has a character that can be seen: no answer is as one without."""
    return bool((text if text.isascii() else folded(text)).strip())


def _check_placeholders(conversation: Conversation, steps: tuple[str, ...]) -> Drop | None:
    if found := PLACEHOLDER.search(conversation.answer):
        return Drop(PLACEHOLDER_MISMATCH, f"the answer contains {found[0]}, which stands for an image or a video")
    if any(VIDEO_PLACEHOLDER in step for step in conversation.steps):
        return Drop(PLACEHOLDER_MISMATCH, f"a step contains {VIDEO_PLACEHOLDER}; only questions show videos")
    # Images are numbered through question and steps; where steps are no target, theirs are left out with them.
    needed = sum(len(PLACEHOLDER.findall(text)) for text in (conversation.question, *conversation.steps))
    if needed != len(conversation.images):
        what = " or ".join(dict.fromkeys([IMAGE_PLACEHOLDER, *PLACEHOLDER.findall(conversation.question)]))
        return Drop(
            PLACEHOLDER_MISMATCH,
            f"{needed} {what} in question and steps for {len(conversation.images)} images; write one for "
            "each where the image goes",
        )
    return None


def shown_images(conversation: Conversation, config: DataConfig) -> tuple[bytes, ...]:
    """The images that the stored sample shows. Those of steps are among them only if steps are a target."""
    if config.target == "steps_and_answer":
        return conversation.images
    return conversation.images[: shown_by_question(conversation.images, conversation.steps)]


def check_length(num_tokens: int, config: DataConfig) -> Drop | None:
    """A sample is never truncated: cutting inside an image or an answer would train on something false."""
    if num_tokens > config.max_tokens:
        return Drop(TOO_LONG, f"{num_tokens} tokens, data.max_tokens is {config.max_tokens}")
    return None
