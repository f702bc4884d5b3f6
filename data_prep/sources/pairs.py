"""One's own chats: which turns are a question with its answer, and which images go with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from amvl_core.contracts.sample import IMAGE_PLACEHOLDER, PLACEHOLDER, VIDEO_PLACEHOLDER
from data_prep.filters import MALFORMED_ROW, PLACEHOLDER_MISMATCH
from data_prep.sources.raw_row import ImageRef, Rejected

ROLES = ("user", "assistant")


@dataclass(frozen=True)
class Pair:
    """A question with its answer; `images` are in the order of the `<image>` and `<video>` in the question."""

    question: str
    answer: str
    images: tuple[ImageRef, ...]


def in_order(
    turns: Sequence[tuple[str, str]],
    steps: Sequence[str],
    images: Sequence[ImageRef],
    videos: Sequence[ImageRef],
    where: str,
) -> list[ImageRef]:
    """The images and videos of a conversation in the order of their places, those of its steps last.

    Raises Rejected where some have none.
    """
    if not videos:
        return list(images)
    shown = [place for _, text in turns for place in PLACEHOLDER.findall(text)]
    by_steps = sum(step.count(IMAGE_PLACEHOLDER) for step in steps)
    for place, found, count, name in (
        (IMAGE_PLACEHOLDER, images, shown.count(IMAGE_PLACEHOLDER) + by_steps, "images"),
        (VIDEO_PLACEHOLDER, videos, shown.count(VIDEO_PLACEHOLDER), "videos"),
    ):
        if count != len(found):
            detail = f"{where}: {count} {place} for {len(found)} {name}; write one for each where it goes"
            raise Rejected(PLACEHOLDER_MISMATCH, detail)
    left = {IMAGE_PLACEHOLDER: iter(images), VIDEO_PLACEHOLDER: iter(videos)}
    return [*[next(left[place]) for place in shown], *left[IMAGE_PLACEHOLDER]]


def pairs(turns: Sequence[tuple[str, str]], images: Sequence[ImageRef], where: str) -> list[Pair]:
    """The pairs of a conversation of (role, text), the field `where`; a system turn before them is left out.

    A pair is asked by itself: turns before it are left out, but for the images of the first question, which every
    pair shows before its own. Raises Rejected where the turns do not alternate, or where there are several and the
    images are not those that their questions show.
    """
    said = turns[1:] if turns and turns[0][0] == "system" else turns
    roles = [role for role, _ in said]
    if not said or roles != [*ROLES] * (len(said) // 2):
        raise Rejected(MALFORMED_ROW, f"{where}: must be of {' and '.join(ROLES)} by turns, not {roles[:6]}")
    questions, answers = ([text for _, text in said[start::2]] for start in (0, 1))
    if len(questions) == 1:
        return [Pair(questions[0], answers[0], tuple(images))]
    shown_by = [PLACEHOLDER.findall(question) for question in questions]
    counts = [len(places) for places in shown_by]
    if sum(counts) != len(images):
        detail = f"{where}: {sum(counts)} {IMAGE_PLACEHOLDER} in {len(questions)} questions for {len(images)} images"
        raise Rejected(PLACEHOLDER_MISMATCH, detail)
    first = counts[0]
    found = [Pair(questions[0], answers[0], tuple(images[:first]))]
    at = first
    for question, answer, count in zip(questions[1:], answers[1:], counts[1:], strict=True):
        shown = (*images[:first], *images[at : at + count])
        found.append(Pair("".join(shown_by[0]) + question, answer, shown))
        at += count
    return found
