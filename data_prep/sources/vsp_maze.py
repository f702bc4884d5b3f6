"""The maze tasks of Visual-Spatial-Planning (github.com/UCSB-NLP-Chang/Visual-Spatial-Planning).

`maze/<task>/maps/<level>/{img/<i>.png, question/<i>.txt, answer/<i>.txt, pure_text/<i>.txt}`. In task1 the question
is "Is there a hole in row 1, column 3?", in task4 a sequence of moves such as `LRL` that is safe or not; answers are
Y or N. Levels of task4 share maps, and there is no published split: maps, identified by their description, are
divided by a hash, so that no map of the test split is trained on.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence

from amvl_core.contracts.errors import DataError
from amvl_core.contracts.sample import IMAGE_PLACEHOLDER, Conversation, Split
from amvl_core.contracts.sources import VspMazeSource
from data_prep.sources.archive_members import Archive, DamagedMemberError, DeadLinkError
from data_prep.sources.raw_row import RawRow, malformed

TEST_ONE_IN = 5
TASKS = {"task1": "hole", "task4": "safe path"}
MOVES = {"L": "left", "R": "right", "U": "up", "D": "down"}
ANSWERS = {"Y": "yes", "N": "no"}
_QUESTION = re.compile(r"(?:^|/)maze/(?P<task>task1|task4)/maps/(?P<level>[^/]+)/question/(?P<number>\d+)\.txt$")


def rows(source: VspMazeSource, archive: Archive) -> Iterator[RawRow]:
    """Every question of both tasks, by task, level and number. Raises DataError if there is none."""
    found = [(match, name) for name in archive.names() if (match := _QUESTION.search(name))]
    if not found:
        raise DataError(f"{source.uri} has no maze/task1/maps or maze/task4/maps; it is not the VSP maze data set")
    found.sort(key=lambda item: (item[0]["task"], item[0]["level"], int(item[0]["number"])))
    for match, name in found:
        sample_id = f"{source.name}/{match['task']}/{match['level']}/{match['number']}"
        yield _row(archive, sample_id, match["task"], name)


def _row(archive: Archive, sample_id: str, task: str, question_name: str) -> RawRow:
    def text(kind: str) -> str:
        return archive.read(_beside(question_name, kind, "txt")).decode().strip()

    try:
        description = text("pure_text")
    except (KeyError, UnicodeDecodeError, DamagedMemberError, DeadLinkError):
        return malformed(sample_id, "test", "it has no readable description in pure_text, so its split is unknown")
    bucket = int.from_bytes(hashlib.sha256(description.encode()).digest()[:8], "big")
    split: Split = "test" if bucket % TEST_ONE_IN == 0 else "train"
    try:
        question, answer = text("question"), ANSWERS.get(text("answer"))
    except (KeyError, UnicodeDecodeError, DamagedMemberError, DeadLinkError):
        return malformed(sample_id, split, "it has no readable question or answer file")
    if answer is None:
        return malformed(sample_id, split, f"the answer is {text('answer')[:20]!r}, not Y or N")
    if task == "task4" and not (question and set(question) <= set(MOVES)):
        return malformed(sample_id, split, f"the moves are {question[:20]!r}, not of L, R, U and D")
    fields = {"task": task, "question": question, "answer": answer}
    return RawRow(sample_id, split, (_beside(question_name, "img", "png"),), fields)


def _beside(question_name: str, kind: str, suffix: str) -> str:
    folder, _, file = question_name.rpartition("/question/")
    return f"{folder}/{kind}/{file.removesuffix('txt')}{suffix}"


def convert(source: VspMazeSource, row: RawRow, images: Sequence[bytes]) -> Conversation:
    """One question; the answer is `yes` or `no`."""
    question = row.fields["question"]
    if row.fields["task"] == "task4":
        moves = ", ".join(MOVES[move] for move in question)
        question = f"The player moves {moves}. Is the path safe from every hole?"
    return Conversation(
        sample_id=row.sample_id,
        source=source.name,
        split=row.split,
        task=TASKS[row.fields["task"]],
        images=tuple(images),
        question=IMAGE_PLACEHOLDER + question,
        steps=(),
        answer=row.fields["answer"],
    )
