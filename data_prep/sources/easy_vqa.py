"""easy-VQA (github.com/vzhou842/easy-VQA): `{train,test}/questions.json` and `{train,test}/images/<id>.png`.

A row is `[question, answer, image id]`. Thirteen answers; the published split is kept.

The set has no reasoning steps. A training sample gets those that the other training questions about its image give
away, such as "The color is blue." and "The shape is a circle."; test questions are left as they are.
"""

from __future__ import annotations

import posixpath
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence

from amvl_core.contracts.errors import DataError
from amvl_core.contracts.sample import IMAGE_PLACEHOLDER, Conversation, Split
from amvl_core.contracts.sources import EasyVqaSource
from data_prep.sources.archive_members import Archive
from data_prep.sources.jsonfiles import json_items
from data_prep.sources.raw_row import RawRow, malformed

SHAPES = {"circle", "rectangle", "triangle"}
COLOURS = {"black", "blue", "brown", "gray", "green", "red", "teal", "yellow"}
SPLITS: tuple[Split, Split] = ("train", "test")


def rows(source: EasyVqaSource, archive: Archive) -> Iterator[RawRow]:
    """Every published question. Raises DataError if a split's questions are missing or no JSON list."""
    for split in SPLITS:
        member = archive.only(f"{split}/questions.json")
        if member is None:
            raise DataError(f"{source.uri} has no {split}/questions.json; it is not the easy-VQA data set")
        questions = [question for _, question in json_items(archive, member)]
        folder = posixpath.dirname(member)
        steps = _steps(questions) if split == "train" else {}
        for number, question in enumerate(questions):
            yield _row(split, f"{source.name}/{split}/{number:06d}", folder, question, steps)


def _row(split: Split, sample_id: str, folder: str, fields: object, steps: dict[int, tuple[str, ...]]) -> RawRow:
    match fields:
        case [str(question), str(answer), int(image)]:
            return RawRow(sample_id, split, (f"{folder}/images/{image}.png",), (question, answer, steps.get(image, ())))
    return malformed(sample_id, split, f"not [question, answer, image id]: {str(fields)[:100]}")


def _steps(questions: list[object]) -> dict[int, tuple[str, ...]]:
    """What the questions about each image say is in it: open questions, and yes/no questions where they are true."""
    words: dict[int, set[str]] = defaultdict(set)
    for fields in questions:
        match fields:
            case [str(question), str(answer), int(image)]:
                said = set(re.findall(r"\w+", question))
                if answer not in ("yes", "no") or (answer == "yes") != bool(said & {"no", "not"}):
                    words[image] |= said | {answer}
    return {
        image: tuple(
            step.format(*found)
            for step, known in (("The color is {}.", COLOURS), ("The shape is a {}.", SHAPES))
            # Questions that contradict each other give nothing away.
            if len(found := said & known) == 1
        )
        for image, said in words.items()
    }


def convert(source: EasyVqaSource, row: RawRow, images: Sequence[bytes]) -> Conversation:
    """One question; its task is the kind of answer: `yes/no`, `shape` or `colour`."""
    question, answer, steps = row.fields
    task = "yes/no" if answer in ("yes", "no") else "shape" if answer in SHAPES else "colour"
    return Conversation(
        sample_id=row.sample_id,
        source=source.name,
        split=row.split,
        task=task,
        images=tuple(images),
        question=IMAGE_PLACEHOLDER + question,
        steps=steps,
        answer=answer,
    )
