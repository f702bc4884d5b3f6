"""What a benchmark is: questions from its published files, the extractors it is read with, and its metrics.

Predictions are stored with everything that scoring needs (`row`), so scores are recomputed from them without a model.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from amvl_core.contracts.sample import Video
from amvl_core.data.pixels import PictureError, decode
from amvl_core.eval.extract import Extraction, Extractor, unwrapped
from amvl_core.eval.score import is_correct
from amvl_core.eval.significance import Unit

MALFORMED_ROW = "malformed_row"

OURS, EXACT = "unwrapped", "exact match"
"""Our own readings: of the final answer, and of the last lines."""


@dataclass(frozen=True)
class Question:
    """One item as a model sees it: encoded images, the frozen prompt, and the letter or text that is right.

    `task` is its column in the published table; `part` is what an average is taken over beside it (the rotation, the
    source). Questions of one `group` are not independent; empty: it stands alone. Without `options` the answer is
    free text. `asked` is the question alone, without options and instructions, as a training set would ask it; empty:
    it is the prompt. The frames of `videos` are among `images`.
    """

    item_id: str
    task: str
    images: tuple[bytes, ...]
    prompt: str
    answer: str
    options: Mapping[str, str] = field(default_factory=dict)
    part: str = ""
    group: str = ""
    asked: str = ""
    videos: tuple[Video, ...] = ()

    def row(self, benchmark: str) -> dict[str, str]:
        """The columns of a stored prediction that are known before there is one."""
        return {
            "benchmark": benchmark,
            "sample_id": self.item_id,
            "task": self.task,
            "part": self.part,
            "group": self.group,
            "prompt": self.prompt,
            "options": json.dumps(self.options, ensure_ascii=False),
            "answer": self.answer,
        }


class SkippedQuestion(NamedTuple):
    """A published row that is no question, and why."""

    place: str
    """`<file>/<number of the row, from 0>`."""
    reason: str
    detail: str = ""


class BadRowError(Exception):
    """Raised by a benchmark's converter; the reader turns it into a `SkippedQuestion`."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail.encode(errors="backslashreplace").decode()  # no record takes half of a surrogate pair


class Outcome(NamedTuple):
    """One scored item."""

    item_id: str
    task: str
    part: str
    group: str
    score: float
    """0 to 1: whether it is right, or how nearly where the benchmark grades."""


Metric = Callable[[Sequence[Outcome]], list[Unit]]
"""Outcomes -> the units whose weighted mean the metric is; no units where it has no items."""


Own = Callable[[str, Mapping[str, str], str], Extraction]
"""Our own reading: (raw output, options, gold answer) -> what was read; of the gold answer only the form may count."""

Grade = Callable[[str, str, Mapping[str, str]], float]
"""(answer that was read, gold answer, options) -> score from 0 to 1."""


def right_or_wrong(answer: str, gold: str, options: Mapping[str, str]) -> float:
    """1 where the answer is the gold one after normalisation, else 0."""
    return float(is_correct(answer, gold))


@dataclass(frozen=True)
class Benchmark:
    """`read(uri)` gives the questions; `readings` are the harness-compatible extractors by the harness's name.

    Without a harness the last lines of an output are compared with the gold answer.
    The first of `metrics` is the overall score.
    """

    name: str
    size: int | None
    """Published questions, for the reader of a table to see what is missing; None: the data set decides."""
    read: Callable[[str], Iterator[Question | SkippedQuestion]]
    check: Callable[[str], object]
    """`check(uri)` raises a DataError, at once and without reading on, where the files are not there."""
    readings: Mapping[str, Extractor]
    metrics: Mapping[str, Metric]
    headline: str = OURS
    """The reading that stands for the score where there is room for one."""
    own: Own = unwrapped
    grade: Grade = right_or_wrong
    published: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Scores in per cent that its authors print: metric -> who or what is scored -> score."""


def convert(
    rows: Iterator[tuple[str, str, dict[str, Any]]], to_question: Callable[[str, dict[str, Any]], Question]
) -> Iterator[Question | SkippedQuestion]:
    """Each (place, file, row) as `to_question(file, row)`, or as a drop, named by its place, where that is no question.

    A bad row is one that lacks a field or its images, has a field of another type or an unreadable image, or repeats an
    item.
    """
    seen: set[str] = set()
    for place, file, row in rows:
        try:
            question = to_question(file, row)
            _check_texts(question)
            if question.item_id in seen:
                raise BadRowError("duplicate_id", question.item_id)
            if question.options and question.answer not in question.options:
                raise BadRowError("answer_not_among_options", f"{question.answer!r} of {sorted(question.options)}")
            if not question.answer:
                raise BadRowError("missing_answer")
            if not question.images:
                raise BadRowError("missing_image")
            for data in question.images:
                _check_image(data)
        except BadRowError as bad:
            yield SkippedQuestion(place, bad.reason, bad.detail)
            continue
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            yield SkippedQuestion(place, MALFORMED_ROW, f"{type(error).__name__}: {error}")
            continue
        seen.add(question.item_id)
        yield question


def lettered(texts: Sequence[Any]) -> dict[str, str]:
    """Option texts as A, B, C ...; numbers become text, and a cell that is null or NaN is no option."""
    cells = [(chr(ord("A") + i), text) for i, text in enumerate(texts)]
    return {letter: str(text).strip() for letter, text in cells if text is not None and text == text}


def letter(answer: Any) -> str:
    """`(B)`, `b` or `B.` as `B`."""
    return str(answer).strip().strip("().").upper()


def digest(*parts: bytes | str) -> str:
    """A name for content: questions about the same image in the same words share it."""
    hashes = [hashlib.sha256(part.encode() if isinstance(part, str) else part).digest() for part in parts]
    return hashlib.sha256(b"".join(hashes)).hexdigest()[:16]


def mean(task: str | None = None) -> Metric:
    """The micro average: the mean score of the items, of one task or of all."""

    def metric(outcomes: Sequence[Outcome]) -> list[Unit]:
        return [Unit(o.item_id, o.score, group=o.group) for o in outcomes if task in (None, o.task)]

    return metric


def mean_of_tasks(tasks: Sequence[str] | None = None) -> Metric:
    """The macro average: the mean of the tasks' means, whatever their sizes."""

    def metric(outcomes: Sequence[Outcome]) -> list[Unit]:
        chosen = [o for o in outcomes if tasks is None or o.task in tasks]
        sizes = Counter(o.task for o in chosen)
        return [Unit(o.item_id, o.score, 1 / sizes[o.task], o.group, o.task) for o in chosen]

    return metric


def mean_of_parts(task: str | None = None, shares: Mapping[str, float] | None = None) -> Metric:
    """The mean of the parts' means, each part weighing its share of `shares` or all alike.

    Groups may lie across parts, so the parts are no strata of the bootstrap unless they have shares of their own.
    """

    def metric(outcomes: Sequence[Outcome]) -> list[Unit]:
        chosen = [o for o in outcomes if task in (None, o.task) and (shares is None or o.part in shares)]
        sizes = Counter(o.part for o in chosen)
        weights = {part: (shares[part] if shares else 1) / size for part, size in sizes.items()}
        return [Unit(o.item_id, o.score, weights[o.part], o.group, o.part if shares else "") for o in chosen]

    return metric


def whole_groups(size: int) -> Metric:
    """The share of groups whose items are all right; a group with fewer than `size` items is left out."""

    def metric(outcomes: Sequence[Outcome]) -> list[Unit]:
        groups: dict[str, list[bool]] = {}
        for o in outcomes:
            groups.setdefault(o.group, []).append(o.score == 1)
        return [Unit(name, all(right)) for name, right in groups.items() if len(right) == size]

    return metric


def _check_texts(question: Question) -> None:
    """Raises BadRowError for a field that is no text, or one that holds half of a surrogate pair: nothing stores it."""
    for name, text in {**question.row(""), "asked": question.asked}.items():
        if not isinstance(text, str):
            raise BadRowError(MALFORMED_ROW, f"{name} is no text: {text!r}")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise BadRowError(MALFORMED_ROW, f"{name} is no text: {error}") from error


def _check_image(data: bytes) -> None:
    """Raises BadRowError for an image that cannot be decoded: found now, it is a drop; found later, it ends the run."""
    try:
        decode(data)
    except PictureError as error:
        raise BadRowError(error.reason, error.detail) from error
