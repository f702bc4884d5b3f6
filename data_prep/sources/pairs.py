"""One's own chats: which turns are a question with its answer, and which images go with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from amvl_core.contracts.sample import IMAGE_PLACEHOLDER
from data_prep.filters import MALFORMED_ROW, PLACEHOLDER_MISMATCH
from data_prep.sources.raw_row import ImageRef, Rejected

ROLES = ("user", "assistant")


@dataclass(frozen=True)
class Pair:
    """A question with its answer; `images` are in the order of the `<image>` in the question."""

    question: str
    answer: str
    images: tuple[ImageRef, ...]


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
    counts = [question.count(IMAGE_PLACEHOLDER) for question in questions]
    if sum(counts) != len(images):
        detail = f"{where}: {sum(counts)} {IMAGE_PLACEHOLDER} in {len(questions)} questions for {len(images)} images"
        raise Rejected(PLACEHOLDER_MISMATCH, detail)
    first = counts[0]
    found = [Pair(questions[0], answers[0], tuple(images[:first]))]
    at = first
    for question, answer, count in zip(questions[1:], answers[1:], counts[1:], strict=True):
        shown = (*images[:first], *images[at : at + count])
        found.append(Pair(IMAGE_PLACEHOLDER * first + question, answer, shown))
        at += count
    return found
