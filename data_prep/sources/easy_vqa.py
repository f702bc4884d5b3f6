"""easy-VQA (github.com/vzhou842/easy-VQA): `{train,test}/questions.json` and `{train,test}/images/<id>.png`.

A row is `[question, answer, image id]`. Thirteen answers; the published split is kept.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterator, Sequence

from amvl_core.config import EasyVqaSource
from amvl_core.errors import DataError
from amvl_core.sample import IMAGE_PLACEHOLDER, Conversation, Split
from data_prep.sources.archive import Archive
from data_prep.sources.row import RawRow, malformed

SHAPES = {"circle", "rectangle", "triangle"}
SPLITS: tuple[Split, Split] = ("train", "test")


def rows(source: EasyVqaSource, archive: Archive) -> Iterator[RawRow]:
    """Every published question. Raises DataError if a split's questions are missing or no JSON list."""
    for split in SPLITS:
        member = archive.find(f"{split}/questions.json")
        if member is None:
            raise DataError(f"{source.uri} has no {split}/questions.json; it is not the easy-VQA data set")
        try:
            questions = json.loads(archive.read(member))
        except ValueError as error:
            raise DataError(f"{source.uri}: {member} is not valid JSON ({error})") from error
        if not isinstance(questions, list):
            raise DataError(f"{source.uri}: {member} is not a list of questions")
        folder = posixpath.dirname(member)
        for number, question in enumerate(questions):
            yield _row(split, f"easy_vqa/{split}/{number:06d}", folder, question)


def _row(split: Split, sample_id: str, folder: str, fields: object) -> RawRow:
    match fields:
        case [str(), str(), int(image)]:
            return RawRow(sample_id, split, (f"{folder}/images/{image}.png",), fields)
    return malformed(sample_id, split, f"not [question, answer, image id]: {str(fields)[:100]}")


def convert(source: EasyVqaSource, row: RawRow, images: Sequence[bytes]) -> Conversation:
    """One question; its task is the kind of answer: `yes/no`, `shape` or `colour`."""
    question, answer, _ = row.fields
    task = "yes/no" if answer in ("yes", "no") else "shape" if answer in SHAPES else "colour"
    return Conversation(
        sample_id=row.sample_id,
        source="easy_vqa",
        split=row.split,
        task=task,
        images=tuple(images),
        question=IMAGE_PLACEHOLDER + question,
        steps=(),
        answer=answer,
    )
