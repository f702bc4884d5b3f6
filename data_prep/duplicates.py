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

What is nearly the same is found in three steps. Pairs to compare are found by hashing: the same text, and mean
brightness and colour in the same cell of one of four shifted grids. Then the `THUMB_SIDE`-squared RGB thumbnails
(`nearly_equal`) and the width by height must agree: a copy that was scaled or compressed again differs little, and only
at places where its original has contrast. Of those that are left the `TRIES` nearest are compared pixel by pixel
(`data_prep/copies.py`), since thumbnails show no text. Test samples are never dropped, because scores would no longer
compare with published ones.

Shape suffixes: N rows, F features, P pairs, M images of all rows, D values of a thumbnail, HWC its pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from data_prep.copies import Pictures, Place, same_aspect
from data_prep.duplicate_keys import FEATURES, NO_KEY, THUMB_BYTES, KeyFile, hash64, image_features, read
from data_prep.filters import CONTAMINATED, DUPLICATE
from data_prep.images import DIGEST_BYTES, THUMB_SIDE

NEAR = 20
FLAT = 6
"""Levels of 255: `nearly_equal` allows `NEAR` where there is contrast and `FLAT` where there is none. Measured: of 90
photographs that were scaled to a half or compressed again (JPEG, quality 30 and up) none exceeds them, and all of 1,770
pairs of different drawings do, with lines of one pixel on 1000 x 1000 (docs/data-preparation.md)."""

TRIES = 4
"""Images or rows that one is compared with pixel by pixel: a set of diagrams alike would cost its square otherwise."""

FEW = 2
"""Images that a question may be asked of, in training and in the benchmarks, to be evidence; measured there too."""

GRID_STEP = 8.0
GRIDS = 4
CLOSE = 2.0
"""Cells of 8 levels, four grids shifted by 2: a copy whose features are off by half a level shares a cell of at least
one grid with its original in 99.6 % of all cases. Only rows whose features are off by at most `CLOSE` are compared."""

WINDOW = 64
"""Rows of one cell are compared with so many next in brightness; a crowded cell would cost its square otherwise."""

_MIX = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9))
_PAIRS_AT_ONCE = 1024


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


@dataclass(frozen=True)
class _Rows:
    """All rows. Rows that win over others come first: test, then training, each in source order."""

    file_N: np.ndarray
    row_N: np.ndarray
    is_test_N: np.ndarray
    is_asked_N: np.ndarray
    """Whether the row is a question of a benchmark."""
    text_N: np.ndarray
    asked_N: np.ndarray
    question_N: np.ndarray
    images_N: np.ndarray
    exact_N: np.ndarray
    digest_M: np.ndarray
    blank_M: np.ndarray
    owner_M: np.ndarray
    number_M: np.ndarray
    """Which image of its row it is."""

    def place(self, image: int) -> Place:
        """Where an image is, by its number among those of all rows."""
        owner = self.owner_M[image]
        return Place(int(self.file_N[owner]), int(self.row_N[owner]), int(self.number_M[image]))

    def images_of(self, file: int) -> np.ndarray:
        """The numbers of the images of a file, in order."""
        here: np.ndarray = np.flatnonzero(self.file_N[self.owner_M] == file)
        return here


def find(files: Sequence[KeyFile], *, duplicates: bool, contaminated: bool) -> list[Repeat]:
    """The training rows that are duplicates or contaminated, by file and row; the order of `files` is that of sources.

    The result is a pure function of the files' contents. Memory: at most 160 bytes for each row, what is compared of
    rows that share their text with another, and the thumbnails of all images of the test split and of benchmarks.
    """
    used = [number for number, file in enumerate(files) if contaminated or file.split == "train"]
    used.sort(key=lambda number: files[number].split != "test")
    rows = _load(files, used)
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


def distances(files: Sequence[KeyFile]) -> np.ndarray:
    """[P]: how much the thumbnails of each pair of different rows that is compared differ, in levels of 255."""
    rows = _load(files, range(len(files)))
    pairs_P2 = _pairs(files, rows, np.unique(_first(rows, np.arange(len(rows.text_N)))))
    found = [_difference(part.one_PD, part.other_PD) for part in _compared(files, rows, pairs_P2)]
    return np.concatenate([np.empty(0, np.int32), *found])


def _load(files: Sequence[KeyFile], used: Sequence[int]) -> _Rows:
    columns = ["text", "asked", "question", "images", "digests", "blank"]
    with ThreadPoolExecutor(8) as pool:  # reading from an object store is mostly waiting
        tables = list(pool.map(lambda number: _arrays(read(files[number], columns)), used))
    lengths = [len(table["text"]) for table in tables]
    images_N = _concat(tables, "images", np.int32)
    owner_M = np.repeat(np.arange(len(images_N), dtype=np.int32), images_N)
    return _Rows(
        file_N=np.repeat(np.array(used, np.int32), lengths),
        row_N=np.concatenate([np.arange(length, dtype=np.int32) for length in lengths] or [np.empty(0, np.int32)]),
        is_test_N=np.repeat(np.array([files[number].split == "test" for number in used], bool), lengths),
        is_asked_N=np.repeat(np.array([files[number].benchmark is not None for number in used], bool), lengths),
        text_N=_concat(tables, "text", np.uint64),
        asked_N=_concat(tables, "asked", np.uint64),
        question_N=_concat(tables, "question", np.uint64),
        images_N=images_N,
        exact_N=_concat(tables, "exact", np.uint64),
        digest_M=_concat(tables, "digests", np.uint64),
        blank_M=_concat(tables, "blank", bool),
        owner_M=owner_M,
        number_M=(np.arange(len(owner_M)) - (np.cumsum(images_N) - images_N)[owner_M]).astype(np.int32),
    )


def _arrays(table: pa.Table) -> dict[str, np.ndarray]:
    digests = table["digests"].to_pylist()
    joined = np.frombuffer(b"".join(digests), np.uint64).reshape(-1, DIGEST_BYTES // 8)
    return {
        **{name: table[name].to_numpy() for name in ("text", "asked", "question")},
        "images": table["images"].to_numpy(),
        "digests": joined[:, 0].copy(),
        "blank": np.frombuffer(b"".join(table["blank"].to_pylist()), bool),
        "exact": np.array([hash64(digest) for digest in digests], np.uint64),
    }


def _concat(tables: list[dict[str, np.ndarray]], name: str, kind: Any) -> np.ndarray:
    return np.concatenate([np.empty(0, kind), *(table.pop(name) for table in tables)])


def _same_image(rows: _Rows, because: dict[int, _Because]) -> None:
    """Training rows that show an image of the test split."""
    of_test_M = rows.is_test_N[rows.owner_M]
    shown = np.flatnonzero(of_test_M & ~rows.blank_M)
    digests, first = np.unique(rows.digest_M[shown], return_index=True)
    for image in np.flatnonzero(~of_test_M & np.isin(rows.digest_M, digests)).tolist():
        of_image = int(shown[first[np.searchsorted(digests, rows.digest_M[image])]])
        because.setdefault(int(rows.owner_M[image]), _shows(rows, "image", image, of_image))


def _shows(rows: _Rows, match: Match, image: int, of_image: int) -> _Because:
    """Image `image` of all rows is image `of_image` of them."""
    return _Because(
        int(rows.owner_M[of_image]), match, image=int(rows.number_M[image]), of_image=int(rows.number_M[of_image])
    )


def _near_image(files: Sequence[KeyFile], rows: _Rows, pictures: Pictures, because: dict[int, _Because]) -> None:
    """Training rows that nearly show an image of a test row; the thumbnails of one file at a time are in memory."""
    shown = _Shown.of(files, rows)
    if not len(shown.image_M):
        return
    for number in np.unique(rows.file_N[~rows.is_test_N]).tolist():
        here_M = rows.images_of(number)
        thumbs_MD, sizes_M2 = _thumbs(files[number])
        open_M = ~rows.blank_M[here_M] & ~np.isin(rows.owner_M[here_M], list(because))
        images = here_M[open_M].tolist()
        for image, nearest in shown.near(thumbs_MD[open_M], sizes_M2[open_M]).items():
            owner, place = int(rows.owner_M[images[image]]), rows.place(images[image])
            for other in nearest if owner not in because else ():
                if pictures.are_copies(place, rows.place(other)):
                    because[owner] = _shows(rows, "near image", images[image], other)
                    break


@dataclass(frozen=True)
class _Shown:
    """The different images of all test rows that show something, by the cell of their quadrants' brightness: its key,
    thumbnails, features, published sizes, and the first of the images of all rows that is it.
    """

    key_M: np.ndarray
    thumbs_MD: np.ndarray
    features_MF: np.ndarray
    sizes_M2: np.ndarray
    image_M: np.ndarray

    @classmethod
    def of(cls, files: Sequence[KeyFile], rows: _Rows) -> _Shown:
        thumbs, sizes = [np.empty((0, THUMB_BYTES), np.uint8)], [np.empty((0, 2), np.int32)]
        images = [np.empty(0, np.int64)]
        for number in np.unique(rows.file_N[rows.is_test_N]).tolist():
            here_M = rows.images_of(number)
            some_M = ~rows.blank_M[here_M]
            thumbs_MD, sizes_M2 = _thumbs(files[number])
            thumbs.append(thumbs_MD[some_M])
            sizes.append(sizes_M2[some_M])
            images.append(here_M[some_M])
        image_M = np.concatenate(images)
        _, first_M = np.unique(rows.digest_M[image_M], return_index=True)
        thumbs_MD = np.concatenate(thumbs)[first_M]
        features_MF = image_features(thumbs_MD)
        key_M = _cell_key(features_MF[:, :4])
        order = np.argsort(key_M, kind="stable")
        sizes_M2 = np.concatenate(sizes)[first_M]
        return cls(key_M[order], thumbs_MD[order], features_MF[order], sizes_M2[order], image_M[first_M][order])

    def near(self, thumbs_MD: np.ndarray, sizes_M2: np.ndarray) -> dict[int, list[int]]:
        """By the number of one of `thumbs_MD`: at most `TRIES` test images that it may be a copy of, nearest first."""
        features_MF = image_features(thumbs_MD)
        found = [np.empty((0, 3), np.int64)]
        image_P, shown_P = self._candidates(features_MF)
        for start in range(0, len(image_P), _PAIRS_AT_ONCE):
            image, shown = (pairs[start : start + _PAIRS_AT_ONCE] for pairs in (image_P, shown_P))
            close = np.abs(features_MF[image] - self.features_MF[shown]).max(1) <= CLOSE
            image, shown = image[close], shown[close]
            one, other = thumbs_MD[image], self.thumbs_MD[shown]
            near = nearly_equal(one, other) & same_aspect(sizes_M2[image], self.sizes_M2[shown])
            total = _total(one[near], other[near])
            found.append(np.stack([image[near], total, self.image_M[shown[near]]], 1))
        return _nearest(np.concatenate(found))

    def _candidates(self, features_MF: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pairs (image, shown) with all that are close: cells are twice `CLOSE` wide, so a close image is in one of
        the at most sixteen cells around the corners of what is close.
        """
        found = []
        for corner in product((-CLOSE, CLOSE), repeat=4):
            key_M = _cell_key(features_MF[:, :4] + np.array(corner, np.float32))
            low, high = (np.searchsorted(self.key_M, key_M, side) for side in ("left", "right"))
            count = high - low
            image = np.repeat(np.arange(len(key_M)), count)
            shown = np.repeat(high - np.cumsum(count), count) + np.arange(count.sum())
            found.append(image * len(self.key_M) + shown)
        pairs_P = np.unique(np.concatenate(found))
        return pairs_P // len(self.key_M), pairs_P % len(self.key_M)


def _nearest(found_P3: np.ndarray) -> dict[int, list[int]]:
    """Of triples (one, how far, other): by `one` in order, the `TRIES` nearest of its others."""
    nearest: dict[int, list[int]] = {}
    for one, _, other in found_P3[np.lexsort(found_P3.T[::-1])].tolist():
        others = nearest.setdefault(one, [])
        if len(others) < TRIES:
            others.append(other)
    return nearest


def _cell_key(quadrants_M4: np.ndarray) -> np.ndarray:
    """int64 [M]: the cell of four brightnesses, each twice `CLOSE` wide; from -1 on, as copies go below zero."""
    cells_M4 = np.floor(quadrants_M4 / (2 * CLOSE)).astype(np.int64) + 1
    key_M: np.ndarray = cells_M4 @ (256 ** np.arange(4))
    return key_M


def _thumbs(file: KeyFile) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [M, D] and int32 [M, 2]: thumbnails and published sizes of the images in a key file, in order."""
    table = read(file, ["thumbs", "sizes"])
    thumbs, sizes = (b"".join(table[name].to_pylist()) for name in ("thumbs", "sizes"))
    return np.frombuffer(thumbs, np.uint8).reshape(-1, THUMB_BYTES), np.frombuffer(sizes, np.int32).reshape(-1, 2)


def nearly_equal(one_PD: np.ndarray, other_PD: np.ndarray) -> np.ndarray:
    """bool [P]: whether one image may be a copy of the other, by their thumbnails; of several images side by side, all.

    No value differs by more than `NEAR` levels, and none by more than both `FLAT` and the contrast around it, in either
    image.
    """
    near_P = _difference(one_PD, other_PD) <= NEAR
    one_PD, other_PD = one_PD[near_P], other_PD[near_P]
    allowed_PHW1 = np.maximum(np.minimum(_contrast(one_PD), _contrast(other_PD)), FLAT)
    differ_PHWC = _pixels(np.maximum(one_PD, other_PD) - np.minimum(one_PD, other_PD))
    near_P[near_P] = (differ_PHWC <= allowed_PHW1).all((1, 2, 3, 4))
    return near_P


def _difference(one_PD: np.ndarray, other_PD: np.ndarray) -> np.ndarray:
    """[P]: the largest difference of any value of two thumbnails, in levels of 255."""
    largest: np.ndarray = (np.maximum(one_PD, other_PD) - np.minimum(one_PD, other_PD)).max(1, initial=0)
    return largest


def _total(one_PD: np.ndarray, other_PD: np.ndarray) -> np.ndarray:
    """int64 [P]: the sum of the differences of all values of two thumbnails."""
    total: np.ndarray = (np.maximum(one_PD, other_PD) - np.minimum(one_PD, other_PD)).sum(1, dtype=np.int64)
    return total


def _pixels(thumbs_PD: np.ndarray) -> np.ndarray:
    """[P, images, H, W, C]."""
    return thumbs_PD.reshape(len(thumbs_PD), thumbs_PD.shape[1] // THUMB_BYTES, THUMB_SIDE, THUMB_SIDE, 3)


def _contrast(thumbs_PD: np.ndarray) -> np.ndarray:
    """[P, images, H, W, 1]: highest less lowest level of a value and its eight neighbours, of the colour with most."""
    padded = np.pad(_pixels(thumbs_PD), ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    across = [padded[:, :, :, x : x + THUMB_SIDE] for x in range(3)]
    high, low = np.maximum.reduce(across), np.minimum.reduce(across)
    high = np.maximum.reduce([high[:, :, y : y + THUMB_SIDE] for y in range(3)])
    low = np.minimum.reduce([low[:, :, y : y + THUMB_SIDE] for y in range(3)])
    contrast: np.ndarray = (high - low).max(-1, keepdims=True)
    return contrast


def _same_question(rows: _Rows, because: dict[int, _Because]) -> None:
    """Training rows that ask a question of a benchmark which is asked of few images."""
    asked, train = np.flatnonzero(rows.is_asked_N), np.flatnonzero(~rows.is_test_N)
    shared = np.intersect1d(rows.question_N[asked], rows.question_N[train])
    shared = shared[shared != NO_KEY]
    asked, train = (index[np.isin(rows.question_N[index], shared)] for index in (asked, train))
    rare = np.intersect1d(_rare(rows, asked), _rare(rows, train))
    first = {int(rows.question_N[row]): row for row in reversed(asked.tolist())}
    for row in train[np.isin(rows.question_N[train], rare)].tolist():
        because.setdefault(row, _Because(first[int(rows.question_N[row])], "question"))


def _rare(rows: _Rows, chosen: np.ndarray) -> np.ndarray:
    """The questions that the `chosen` rows ask of at most `FEW` different images."""
    different = np.unique(np.stack([rows.question_N[chosen], rows.exact_N[chosen]]), axis=1)
    questions, images = np.unique(different[0], return_counts=True)
    rare: np.ndarray = questions[images <= FEW]
    return rare


def _same_text(rows: _Rows, because: dict[int, _Because]) -> None:
    """Training rows that ask and answer what a test row does, of the same images: of none, or such as show nothing."""
    sample_N = rows.asked_N ^ (rows.exact_N * _MIX[1])
    test, train = np.flatnonzero(rows.is_test_N), np.flatnonzero(~rows.is_test_N)
    first = {int(sample_N[row]): row for row in reversed(test.tolist())}
    for row in train[np.isin(sample_N[train], sample_N[test])].tolist():
        because.setdefault(row, _Because(first[int(sample_N[row])], "sample"))


def _same_sample(files: Sequence[KeyFile], rows: _Rows, pictures: Pictures, because: dict[int, _Because]) -> None:
    """Training rows with the text and the images, or nearly, of a training row before them."""
    chosen = np.flatnonzero(~rows.is_test_N)
    first = _first(rows, chosen)
    is_first = first == chosen
    begins_N = np.cumsum(rows.images_N) - rows.images_N
    # In order of `other`, so that everything before it is decided.
    for other, nearest in _near_rows(files, rows, chosen[is_first]).items():
        for one in nearest if other not in because else ():
            if one not in because and _are_copies(rows, pictures, begins_N, one, other):
                because[other] = _Because(one, "near")
                break
    for one, other in zip(first[~is_first].tolist(), chosen[~is_first].tolist(), strict=True):
        # A copy of a dropped row is dropped for the same reason.
        because.setdefault(other, because.get(one, _Because(one, "sample")))


def _are_copies(rows: _Rows, pictures: Pictures, begins_N: np.ndarray, one: int, other: int) -> bool:
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


def _first(rows: _Rows, chosen: np.ndarray) -> np.ndarray:
    """For each of the `chosen` rows the first with the same text and images (itself, if there is none before it)."""
    text, exact = rows.text_N[chosen], rows.exact_N[chosen]
    order = np.lexsort((exact, text))  # stable: the rows of a group stay in their order
    text, exact = text[order], exact[order]
    begins = np.ones(len(order), bool)
    begins[1:] = (text[1:] != text[:-1]) | (exact[1:] != exact[:-1])
    first = np.empty(len(order), np.int64)
    first[order] = chosen[order[begins][np.cumsum(begins) - 1]]
    return first


def _near_rows(files: Sequence[KeyFile], rows: _Rows, candidates: np.ndarray) -> dict[int, list[int]]:
    """By the later row, in order: at most `TRIES` earlier ones that it may be a copy of, nearest first."""
    found = [np.empty((0, 3), np.int64)]
    for part in _compared(files, rows, _pairs(files, rows, candidates)):
        near = nearly_equal(part.one_PD, part.other_PD) & part.same_aspect()
        total = _total(part.one_PD[near], part.other_PD[near])
        found.append(np.stack([part.pairs_P2[near, 1], total, part.pairs_P2[near, 0]], 1))
    return _nearest(np.concatenate(found))


def _pairs(files: Sequence[KeyFile], rows: _Rows, candidates: np.ndarray) -> np.ndarray:
    """[P, 2]: every pair (earlier, later) that shares its text, its number of images, and a cell of some grid."""
    key_N = rows.text_N[candidates] ^ (rows.images_N[candidates].astype(np.uint64) * _MIX[1])
    ordered_N = np.sort(key_N)
    shared_N = np.isin(key_N, ordered_N[1:][ordered_N[1:] == ordered_N[:-1]])  # few: most questions are asked once
    candidates, key_N = candidates[shared_N], key_N[shared_N]
    features_NF = _features_of(files, rows, candidates)
    found = [
        pair for grid in range(GRIDS) for pair in _same_cell(candidates, key_N, features_NF, grid * GRID_STEP / GRIDS)
    ]
    if not found:
        return np.empty((0, 2), np.int64)
    pairs_P2 = np.unique(np.concatenate(found), axis=0)
    text_P2 = rows.text_N[pairs_P2]
    same: np.ndarray = pairs_P2[text_P2[:, 0] == text_P2[:, 1]]  # hashes of different cells may collide
    return same


def _features_of(files: Sequence[KeyFile], rows: _Rows, wanted: np.ndarray) -> np.ndarray:
    """float32 [N, F]: the features of the rows `wanted`."""
    features_NF = np.zeros((len(wanted), FEATURES), np.float32)
    for number in np.unique(rows.file_N[wanted]).tolist():
        column = b"".join(read(files[number], ["features"])["features"].to_pylist())
        here_N = rows.file_N[wanted] == number
        features_NF[here_N] = np.frombuffer(column, np.float32).reshape(-1, FEATURES)[rows.row_N[wanted[here_N]]]
    return features_NF


def _same_cell(
    candidates: np.ndarray, text_N: np.ndarray, features_NF: np.ndarray, shift: float
) -> Iterator[np.ndarray]:
    """Pairs with the same text and number of images in one cell of one grid, of rows close in brightness."""
    key_N = text_N
    for cell_N in np.floor((features_NF + shift) / GRID_STEP).astype(np.int64).astype(np.uint64).T:
        key_N = (key_N ^ cell_N) * _MIX[0]
        key_N ^= key_N >> np.uint64(29)
    order = np.lexsort((candidates, features_NF[:, :4].sum(1), key_N))
    key_N, features_NF, ordered = key_N[order], features_NF[order], candidates[order]
    for distance in range(1, WINDOW + 1):
        same = np.flatnonzero(key_N[:-distance] == key_N[distance:])
        if not len(same):
            return
        close = np.abs(features_NF[same] - features_NF[same + distance]).max(1) <= CLOSE
        yield np.sort(np.stack([ordered[same[close]], ordered[same[close] + distance]], 1), axis=1)


@dataclass(frozen=True)
class _Compared:
    """Pairs of rows with equally many images: thumbnails and published sizes, all of a row's one after the other."""

    pairs_P2: np.ndarray
    one_PD: np.ndarray
    other_PD: np.ndarray
    one_sizes_PMx2: np.ndarray
    other_sizes_PMx2: np.ndarray

    def same_aspect(self) -> np.ndarray:
        """bool [P]: of all images."""
        same = same_aspect(self.one_sizes_PMx2.reshape(-1, 2), self.other_sizes_PMx2.reshape(-1, 2))
        all_P: np.ndarray = same.reshape(len(self.pairs_P2), -1).all(1)
        return all_P


def _compared(files: Sequence[KeyFile], rows: _Rows, pairs_P2: np.ndarray) -> Iterator[_Compared]:
    """Some pairs at a time."""
    wanted = np.unique(pairs_P2)
    thumbs: dict[int, np.ndarray] = {}
    sizes: dict[int, np.ndarray] = {}
    for number in np.unique(rows.file_N[wanted]).tolist():
        table = read(files[number], ["thumbs", "sizes"])
        for index in wanted[rows.file_N[wanted] == number].tolist():
            row = int(rows.row_N[index])
            thumbs[index] = np.frombuffer(table["thumbs"][row].as_py(), np.uint8)
            sizes[index] = np.frombuffer(table["sizes"][row].as_py(), np.int32)
    for count in np.unique(rows.images_N[wanted]).tolist():
        chosen = pairs_P2[(rows.images_N[pairs_P2] == count).all(1)]
        for start in range(0, len(chosen), _PAIRS_AT_ONCE):
            part = chosen[start : start + _PAIRS_AT_ONCE]
            sides = [part[:, side].tolist() for side in (0, 1)]
            one, other = (np.stack([thumbs[i] for i in side]) for side in sides)
            one_sizes, other_sizes = (np.stack([sizes[i] for i in side]) for side in sides)
            yield _Compared(part, one, other, one_sizes, other_sizes)
