"""Zebra-CoT (huggingface.co/datasets/multimodal-reasoning-lab/Zebra-CoT): reasoning with images between its sentences.

18 configurations are 18 folders of `<split>-000xx-of-000NN.parquet`. Text refers to an image as
`<image_start>[problem_image_1]<image_end>`, to the column of that name; which columns there are differs between
configurations, and thousands of rows refer to an image that is null. There are no boxes.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Sequence

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from amvl_core.contracts.errors import DataError
from amvl_core.contracts.sample import IMAGE_PLACEHOLDER, Conversation, Split
from amvl_core.contracts.sources import ZebraCotSource
from data_prep.filters import INCOMPLETE_REASONING, MALFORMED_ROW, MISSING_IMAGE, PLACEHOLDER_MISMATCH
from data_prep.sources import text
from data_prep.sources.archive_members import Archive
from data_prep.sources.raw_row import Cell, RawRow, Rejected, attempt, checked, numbered, tables
from data_prep.sources.table import TableRow

QUESTION, TRACE, ANSWER = "Question", "Text Reasoning Trace", "Final Answer"
COLUMNS = (QUESTION, TRACE, ANSWER)

Fields = TypedDict("Fields", {"Question": str, "Text Reasoning Trace": str, "Final Answer": str})
FIELDS = TypeAdapter(Fields)

_IMAGE = re.compile(r"<image_start>\s*\[((?:problem|reasoning)_image_\d+)\]\s*<image_end>")
_COLUMN = re.compile(r"(?:problem|reasoning)_image_\d+")


def is_table(columns: Sequence[str]) -> bool:
    """Whether a Parquet file with these columns is one of Zebra-CoT."""
    return set(COLUMNS) <= set(columns)


def rows(source: ZebraCotSource, archive: Archive) -> Iterator[RawRow]:
    """Every row, configuration after configuration. Raises DataError if no Parquet file has the published columns."""
    found = tables(archive, is_table)
    if not found:
        raise DataError(f"{source.uri} holds no Parquet file with the columns {', '.join(COLUMNS)} of Zebra-CoT")
    stems = numbered([f"{_config(name)}/{posixpath.splitext(posixpath.basename(name))[0]}" for name, _ in found])
    for (name, table), stem in zip(found, stems, strict=True):
        config, file = _config(name), posixpath.basename(name)
        split: Split = "train" if file.startswith("train") else "test"
        if isinstance(table, DataError):
            raise table
        columns = [column for column in table.columns if _COLUMN.fullmatch(column)]
        for number, row in enumerate(table.rows(COLUMNS, columns)):
            yield attempt(f"{source.name}/{stem}/{number:07d}", split, _row, config, name, row)


def _config(name: str) -> str:
    return posixpath.basename(posixpath.dirname(name)) or "zebra_cot"


def _row(sample_id: str, split: Split, config: str, member: str, row: TableRow) -> RawRow:
    if row.values is None:
        raise Rejected(MALFORMED_ROW, row.unread(member))
    fields = checked(FIELDS, row.values)
    shown = _IMAGE.findall(fields["Question"] + fields["Text Reasoning Trace"])
    for column in shown:
        if column not in row.images:
            raise Rejected(MISSING_IMAGE, f"the text shows {column}, which is null")
    if unused := sorted(row.images.difference(shown)):
        raise Rejected(PLACEHOLDER_MISMATCH, f"the text shows no {unused[0]}")
    images = tuple(Cell(member, row.group, row.row, column) for column in shown)
    return RawRow(sample_id, split, images, {"config": config, **fields})


def convert(source: ZebraCotSource, row: RawRow, images: Sequence[bytes]) -> Conversation:
    """One row; its thoughts are the steps, its configuration is the task. Raises Rejected where the text is broken."""
    question, trace = (_IMAGE.sub(IMAGE_PLACEHOLDER, row.fields[column]) for column in (QUESTION, TRACE))
    for part in (question, trace):
        if broken := re.search(r"<image_(?:start|end)>", part):
            raise Rejected(PLACEHOLDER_MISMATCH, f"{part[broken.start() :][:60]!r} names no image")
    steps = tuple(text.thoughts(trace))
    if not steps:
        raise Rejected(INCOMPLETE_REASONING, "the reasoning trace is empty")
    return Conversation(
        sample_id=row.sample_id,
        source=source.name,
        split=row.split,
        task=row.fields["config"],
        images=tuple(images),
        question=question,
        steps=steps,
        answer=row.fields[ANSWER],
    )
