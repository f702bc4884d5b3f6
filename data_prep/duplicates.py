"""Samples that were seen before, and training samples that give a test sample away.

Three rules, whose false-positive rates `python -m benchmarks.duplicates` measures:

- the **same image**, exactly or nearly: a training sample that shows an image of the test split or of a benchmark is
  contaminated;
- the **same question**: a training sample that asks a question of a benchmark is contaminated, if the question has
  `duplicate_keys.MIN_WORDS` words and is asked of at most `FEW` images in training and as many in the benchmarks. Other
  questions are templates that are filled in again and again, and are no evidence;
- the **same sample**: equal texts (`duplicate_keys.normalise`), and images that are equal or nearly so. A training
  sample is a duplicate if its question, stored steps and answer are those of another training sample. The first in the
  order of the sources is kept. A sample without images is contaminated if it has question and answer of a test sample.

Images of one colour, or nearly so (`images.CONTENT`), show nothing. They are the same where they are equal and the rest
of the sample is too; they are no test image, and nearly the same as no other.

What may be nearly the same is found by hashes and thumbnails (`data_prep/near_pairs.py`), and compared pixel by pixel
(`data_prep/copies.py`). Test samples are never dropped, because scores would no longer compare with published ones.

Shape suffixes: N rows, M images of all rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from data_prep.copies import Pictures
from data_prep.duplicate_keys import NO_KEY, KeyFile
from data_prep.duplicate_rows import MIX, Rows, first_alike, load
from data_prep.filters import CONTAMINATED, DUPLICATE
from data_prep.near_pairs import Shown, near_rows, thumbnails

FEW = 2
"""Images that a question may be asked of, in training and in benchmarks, to be evidence (docs/data-preparation.md)."""

Match = Literal["image", "near image", "question", "sample", "near"]


@dataclass(frozen=True)
class Repeat:
    """Row `row` of key file `file` is dropped for `reason`, because of row `of_row` of key file `of_file`.

    `match` says what they share: an image (`image`) or nearly so (`near image`), the question, everything (`sample`) or
    nearly so (`near`). Where it is an image, `image` and `of_image` are its number, from 0, in either.
    """

    file: int
    row: int
    reason: str
    of_file: int
    of_row: int
    match: Match
    image: int = 0
    of_image: int = 0


@dataclass(frozen=True)
class _Because:
    """Why a row is dropped: the number of another row, and which images of both, where it is an image."""

    row: int
    match: Match
    image: int = 0
    of_image: int = 0


def find(files: Sequence[KeyFile], *, duplicates: bool, contaminated: bool) -> list[Repeat]:
    """The training rows that are duplicates or contaminated, by file and row; the order of `files` is that of sources.

    The result is a pure function of the files' contents. Memory: at most 160 bytes for each row, what is compared of
    rows that share their text with another, and the thumbnails of all images of the test split and of benchmarks.
    """
    used = [number for number, file in enumerate(files) if contaminated or file.split == "train"]
    used.sort(key=lambda number: files[number].split != "test")
    rows = load(files, used)
    because: dict[int, _Because] = {}
    pictures = Pictures(files)
    _same_image(rows, because)
    if contaminated:
        _near_image(files, rows, pictures, because)
        _same_question(rows, because)
        _same_text(rows, because)
    if duplicates:
        _same_sample(files, rows, pictures, because)
    return sorted(
        (
            Repeat(
                file=int(rows.file_N[other]),
                row=int(rows.row_N[other]),
                reason=CONTAMINATED if rows.is_test_N[why.row] else DUPLICATE,
                of_file=int(rows.file_N[why.row]),
                of_row=int(rows.row_N[why.row]),
                match=why.match,
                image=why.image,
                of_image=why.of_image,
            )
            for other, why in because.items()
        ),
        key=lambda repeat: (repeat.file, repeat.row),
    )


def _same_image(rows: Rows, because: dict[int, _Because]) -> None:
    """Training rows that show an image of the test split."""
    of_test_M = rows.is_test_N[rows.owner_M]
    shown = np.flatnonzero(of_test_M & ~rows.blank_M)
    digests, first = np.unique(rows.digest_M[shown], return_index=True)
    for image in np.flatnonzero(~of_test_M & np.isin(rows.digest_M, digests)).tolist():
        of_image = int(shown[first[np.searchsorted(digests, rows.digest_M[image])]])
        because.setdefault(int(rows.owner_M[image]), _shows(rows, "image", image, of_image))


def _shows(rows: Rows, match: Match, image: int, of_image: int) -> _Because:
    """Image `image` of all rows is image `of_image` of them."""
    return _Because(
        int(rows.owner_M[of_image]), match, image=int(rows.number_M[image]), of_image=int(rows.number_M[of_image])
    )


def _near_image(files: Sequence[KeyFile], rows: Rows, pictures: Pictures, because: dict[int, _Because]) -> None:
    """Training rows that nearly show an image of a test row; the thumbnails of one file at a time are in memory."""
    shown = Shown.of(files, rows)
    if not len(shown.image_M):
        return
    for number in np.unique(rows.file_N[~rows.is_test_N]).tolist():
        here_M = rows.images_of(number)
        thumbs_MD, sizes_M2 = thumbnails(files[number])
        open_M = ~rows.blank_M[here_M] & ~np.isin(rows.owner_M[here_M], list(because))
        images = here_M[open_M].tolist()
        for image, nearest in shown.near(thumbs_MD[open_M], sizes_M2[open_M]).items():
            owner, place = int(rows.owner_M[images[image]]), rows.place(images[image])
            for other in nearest if owner not in because else ():
                if pictures.are_copies(place, rows.place(other)):
                    because[owner] = _shows(rows, "near image", images[image], other)
                    break


def _same_question(rows: Rows, because: dict[int, _Because]) -> None:
    """Training rows that ask a question of a benchmark which is asked of few images."""
    asked, train = np.flatnonzero(rows.is_asked_N), np.flatnonzero(~rows.is_test_N)
    shared = np.intersect1d(rows.question_N[asked], rows.question_N[train])
    shared = shared[shared != NO_KEY]
    asked, train = (index[np.isin(rows.question_N[index], shared)] for index in (asked, train))
    rare = np.intersect1d(_rare(rows, asked), _rare(rows, train))
    first = {int(rows.question_N[row]): row for row in reversed(asked.tolist())}
    for row in train[np.isin(rows.question_N[train], rare)].tolist():
        because.setdefault(row, _Because(first[int(rows.question_N[row])], "question"))


def _rare(rows: Rows, chosen: np.ndarray) -> np.ndarray:
    """The questions that the `chosen` rows ask of at most `FEW` different images."""
    different = np.unique(np.stack([rows.question_N[chosen], rows.exact_N[chosen]]), axis=1)
    questions, images = np.unique(different[0], return_counts=True)
    rare: np.ndarray = questions[images <= FEW]
    return rare


def _same_text(rows: Rows, because: dict[int, _Because]) -> None:
    """Training rows that ask and answer what a test row does, of the same images: of none, or such as show nothing."""
    sample_N = rows.asked_N ^ (rows.exact_N * MIX[1])
    test, train = np.flatnonzero(rows.is_test_N), np.flatnonzero(~rows.is_test_N)
    first = {int(sample_N[row]): row for row in reversed(test.tolist())}
    for row in train[np.isin(sample_N[train], sample_N[test])].tolist():
        because.setdefault(row, _Because(first[int(sample_N[row])], "sample"))


def _same_sample(files: Sequence[KeyFile], rows: Rows, pictures: Pictures, because: dict[int, _Because]) -> None:
    """Training rows with the text and the images, or nearly, of a training row before them."""
    chosen = np.flatnonzero(~rows.is_test_N)
    first = first_alike(rows, chosen)
    is_first = first == chosen
    begins_N = np.cumsum(rows.images_N) - rows.images_N
    # In order of `other`, so that everything before it is decided.
    for other, nearest in near_rows(files, rows, chosen[is_first]).items():
        for one in nearest if other not in because else ():
            if one not in because and _are_copies(rows, pictures, begins_N, one, other):
                because[other] = _Because(one, "near")
                break
    for one, other in zip(first[~is_first].tolist(), chosen[~is_first].tolist(), strict=True):
        # A copy of a dropped row is dropped for the same reason.
        because.setdefault(other, because.get(one, _Because(one, "sample")))


def _are_copies(rows: Rows, pictures: Pictures, begins_N: np.ndarray, one: int, other: int) -> bool:
    """Whether each image of a row is the other's, or a copy of it; images that show nothing have no copies."""
    pairs = ((int(begins_N[one]) + i, int(begins_N[other]) + i) for i in range(int(rows.images_N[one])))
    return all(
        rows.digest_M[first] == rows.digest_M[second]
        or (
            not (rows.blank_M[first] or rows.blank_M[second])
            and pictures.are_copies(rows.place(first), rows.place(second))
        )
        for first, second in pairs
    )
