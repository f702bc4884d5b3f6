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

The `THUMB_SIDE`-squared RGB thumbnails decide what is nearly equal (`nearly_equal`). A copy that was scaled or
compressed again differs little, and only at places where its original has contrast. Another object, line or letter
differs much, or at places with even surroundings. Coarse perceptual hashes get that wrong on drawn images. Pairs to
compare are found by hashing: the same text, and mean brightness and colour in the same cell of one of four shifted
grids. Test samples are never dropped, because scores would no longer compare with published ones.

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

from data_prep.duplicate_keys import FEATURES, NO_KEY, THUMB_BYTES, KeyFile, hash64, image_features, read
from data_prep.filters import CONTAMINATED, DUPLICATE
from data_prep.images import DIGEST_BYTES, THUMB_SIDE

NEAR = 20
FLAT = 6
"""Levels of 255: `nearly_equal` allows `NEAR` where there is contrast and `FLAT` where there is none. Measured: of 90
photographs that were scaled to a half or compressed again (JPEG, quality 30 and up) none exceeds them, and all of 1,770
pairs of different drawings do, with lines of one pixel on 1000 x 1000 (docs/data-preparation.md)."""

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
    nearly so (`near`).
    """

    file: int
    row: int
    reason: str
    of_file: int
    of_row: int
    match: Match


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
    owner_M: np.ndarray


def find(files: Sequence[KeyFile], *, duplicates: bool, contaminated: bool) -> list[Repeat]:
    """The training rows that are duplicates or contaminated, by file and row; the order of `files` is that of sources.

    The result is a pure function of the files' contents. Memory: at most 160 bytes for each row, what is compared of
    rows that share their text with another, and the thumbnails of all images of the test split and of benchmarks.
    """
    used = [number for number, file in enumerate(files) if contaminated or file.split == "train"]
    used.sort(key=lambda number: files[number].split != "test")
    rows = _load(files, used)
    because: dict[int, tuple[int, Match]] = {}
    _same_image(rows, because)
    if contaminated:
        _near_image(files, rows, because)
        _same_question(rows, because)
        _same_text(rows, because)
    if duplicates:
        _same_sample(files, rows, because)
    return sorted(
        (
            Repeat(
                file=int(rows.file_N[other]),
                row=int(rows.row_N[other]),
                reason=CONTAMINATED if rows.is_test_N[one] else DUPLICATE,
                of_file=int(rows.file_N[one]),
                of_row=int(rows.row_N[one]),
                match=match,
            )
            for other, (one, match) in because.items()
        ),
        key=lambda repeat: (repeat.file, repeat.row),
    )


def distances(files: Sequence[KeyFile]) -> np.ndarray:
    """[P]: how much the thumbnails of each pair of different rows that is compared differ, in levels of 255."""
    rows = _load(files, range(len(files)))
    pairs_P2 = _pairs(files, rows, np.unique(_first(rows, np.arange(len(rows.text_N)))))
    found = [_difference(one, other) for _, one, other in _compared(files, rows, pairs_P2)]
    return np.concatenate([np.empty(0, np.int32), *found])


def _load(files: Sequence[KeyFile], used: Sequence[int]) -> _Rows:
    columns = ["text", "asked", "question", "images", "digests"]
    with ThreadPoolExecutor(8) as pool:  # reading from an object store is mostly waiting
        tables = list(pool.map(lambda number: _arrays(read(files[number], columns)), used))
    lengths = [len(table["text"]) for table in tables]
    images_N = _concat(tables, "images", np.int32)
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
        owner_M=np.repeat(np.arange(len(images_N), dtype=np.int32), images_N),
    )


def _arrays(table: pa.Table) -> dict[str, np.ndarray]:
    digests = table["digests"].to_pylist()
    joined = np.frombuffer(b"".join(digests), np.uint64).reshape(-1, DIGEST_BYTES // 8)
    return {
        **{name: table[name].to_numpy() for name in ("text", "asked", "question")},
        "images": table["images"].to_numpy(),
        "digests": joined[:, 0].copy(),
        "exact": np.array([hash64(digest) for digest in digests], np.uint64),
    }


def _concat(tables: list[dict[str, np.ndarray]], name: str, kind: Any) -> np.ndarray:
    return np.concatenate([np.empty(0, kind), *(table.pop(name) for table in tables)])


def _same_image(rows: _Rows, because: dict[int, tuple[int, Match]]) -> None:
    """Training rows that show an image of the test split."""
    of_test_M = rows.is_test_N[rows.owner_M]
    digests, first = np.unique(rows.digest_M[of_test_M], return_index=True)
    owners = rows.owner_M[of_test_M][first]
    found_M = np.flatnonzero(~of_test_M & np.isin(rows.digest_M, digests))
    for image in found_M.tolist():
        place = int(np.searchsorted(digests, rows.digest_M[image]))
        because.setdefault(int(rows.owner_M[image]), (int(owners[place]), "image"))


def _near_image(files: Sequence[KeyFile], rows: _Rows, because: dict[int, tuple[int, Match]]) -> None:
    """Training rows that nearly show an image of a test row; the thumbnails of one file at a time are in memory."""
    shown = _Shown.of(files, rows)
    if not len(shown.owner_M):
        return
    for number in np.unique(rows.file_N[~rows.is_test_N]).tolist():
        here_N = np.flatnonzero(rows.file_N == number)
        thumbs_MD, owner_M = _thumbs(files[number], rows.images_N[here_N])
        found: dict[int, int] = {}
        for image, owner in shown.near(thumbs_MD).items():
            found.setdefault(int(here_N[owner_M[image]]), owner)
        for row, owner in found.items():
            because.setdefault(row, (owner, "near image"))


@dataclass(frozen=True)
class _Shown:
    """The different images of all test rows, by the cell of their quadrants' brightness: its key, thumbnails,
    features, and the first row that shows each.
    """

    key_M: np.ndarray
    thumbs_MD: np.ndarray
    features_MF: np.ndarray
    owner_M: np.ndarray

    @classmethod
    def of(cls, files: Sequence[KeyFile], rows: _Rows) -> _Shown:
        thumbs, owners = [np.empty((0, THUMB_BYTES), np.uint8)], [np.empty(0, np.int64)]
        for number in np.unique(rows.file_N[rows.is_test_N]).tolist():
            here_N = np.flatnonzero(rows.file_N == number)
            thumbs_MD, owner_M = _thumbs(files[number], rows.images_N[here_N])
            thumbs.append(thumbs_MD)
            owners.append(here_N[owner_M])
        thumbs_MD, first_M = np.unique(np.concatenate(thumbs), axis=0, return_index=True)
        features_MF = image_features(thumbs_MD)
        key_M = _cell_key(features_MF[:, :4])
        order = np.argsort(key_M, kind="stable")
        return cls(key_M[order], thumbs_MD[order], features_MF[order], np.concatenate(owners)[first_M[order]])

    def near(self, thumbs_MD: np.ndarray) -> dict[int, int]:
        """By the number of one of `thumbs_MD`: the first test row that nearly shows it."""
        features_MF = image_features(thumbs_MD)
        best: dict[int, int] = {}
        image_P, shown_P = self._candidates(features_MF)
        for start in range(0, len(image_P), _PAIRS_AT_ONCE):
            image, shown = (pairs[start : start + _PAIRS_AT_ONCE] for pairs in (image_P, shown_P))
            close = np.abs(features_MF[image] - self.features_MF[shown]).max(1) <= CLOSE
            image, shown = image[close], shown[close]
            near = nearly_equal(thumbs_MD[image], self.thumbs_MD[shown])
            for number, owner in zip(image[near].tolist(), self.owner_M[shown[near]].tolist(), strict=True):
                best[number] = min(owner, best.get(number, owner))
        return best

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


def _cell_key(quadrants_M4: np.ndarray) -> np.ndarray:
    """int64 [M]: the cell of four brightnesses, each twice `CLOSE` wide; from -1 on, as copies go below zero."""
    cells_M4 = np.floor(quadrants_M4 / (2 * CLOSE)).astype(np.int64) + 1
    key_M: np.ndarray = cells_M4 @ (256 ** np.arange(4))
    return key_M


def _thumbs(file: KeyFile, images_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [M, D]: the thumbnails in a key file, and [M]: the row of each, by the number of images of its rows."""
    joined = b"".join(read(file, ["thumbs"])["thumbs"].to_pylist())
    return np.frombuffer(joined, np.uint8).reshape(-1, THUMB_BYTES), np.repeat(np.arange(len(images_N)), images_N)


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


def _same_question(rows: _Rows, because: dict[int, tuple[int, Match]]) -> None:
    """Training rows that ask a question of a benchmark which is asked of few images."""
    asked, train = np.flatnonzero(rows.is_asked_N), np.flatnonzero(~rows.is_test_N)
    shared = np.intersect1d(rows.question_N[asked], rows.question_N[train])
    shared = shared[shared != NO_KEY]
    asked, train = (index[np.isin(rows.question_N[index], shared)] for index in (asked, train))
    rare = np.intersect1d(_rare(rows, asked), _rare(rows, train))
    first = {int(rows.question_N[row]): row for row in reversed(asked.tolist())}
    for row in train[np.isin(rows.question_N[train], rare)].tolist():
        because.setdefault(row, (first[int(rows.question_N[row])], "question"))


def _rare(rows: _Rows, chosen: np.ndarray) -> np.ndarray:
    """The questions that the `chosen` rows ask of at most `FEW` different images."""
    different = np.unique(np.stack([rows.question_N[chosen], rows.exact_N[chosen]]), axis=1)
    questions, images = np.unique(different[0], return_counts=True)
    rare: np.ndarray = questions[images <= FEW]
    return rare


def _same_text(rows: _Rows, because: dict[int, tuple[int, Match]]) -> None:
    """Training rows without an image that ask and answer what a test row does; images have been compared before."""
    test, train = (np.flatnonzero((rows.is_test_N == is_test) & (rows.images_N == 0)) for is_test in (True, False))
    first = {int(rows.asked_N[row]): row for row in reversed(test.tolist())}
    for row in train[np.isin(rows.asked_N[train], rows.asked_N[test])].tolist():
        because.setdefault(row, (first[int(rows.asked_N[row])], "sample"))


def _same_sample(files: Sequence[KeyFile], rows: _Rows, because: dict[int, tuple[int, Match]]) -> None:
    """Training rows with the text and the images, or nearly, of a training row before them."""
    chosen = np.flatnonzero(~rows.is_test_N)
    first = _first(rows, chosen)
    is_first = first == chosen
    for one, other in _near_pairs(files, rows, chosen[is_first]).tolist():
        # In order of `other`, so that everything before it is decided.
        if other not in because and one not in because:
            because[other] = (one, "near")
    for one, other in zip(first[~is_first].tolist(), chosen[~is_first].tolist(), strict=True):
        # A copy of a dropped row is dropped for the same reason.
        because.setdefault(other, because.get(one, (one, "sample")))


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


def _near_pairs(files: Sequence[KeyFile], rows: _Rows, candidates: np.ndarray) -> np.ndarray:
    """[P, 2]: pairs (earlier, later) of different rows that are nearly the same, ordered by the later one."""
    pairs_P2 = _pairs(files, rows, candidates)
    found = [pairs[nearly_equal(one, other)] for pairs, one, other in _compared(files, rows, pairs_P2)]
    pairs_P2 = np.concatenate([pairs_P2[:0], *found])
    ordered: np.ndarray = pairs_P2[np.lexsort((pairs_P2[:, 0], pairs_P2[:, 1]))]
    return ordered


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


def _compared(
    files: Sequence[KeyFile], rows: _Rows, pairs_P2: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Some pairs at a time, with the thumbnails of either side, all of a row's one after the other."""
    wanted = np.unique(pairs_P2)
    thumbs: dict[int, np.ndarray] = {}
    for number in np.unique(rows.file_N[wanted]).tolist():
        column = read(files[number], ["thumbs"])["thumbs"]
        for index in wanted[rows.file_N[wanted] == number].tolist():
            thumbs[index] = np.frombuffer(column[int(rows.row_N[index])].as_py(), np.uint8)
    for count in np.unique(rows.images_N[wanted]).tolist():
        chosen = pairs_P2[(rows.images_N[pairs_P2] == count).all(1)]
        for start in range(0, len(chosen), _PAIRS_AT_ONCE):
            part = chosen[start : start + _PAIRS_AT_ONCE]
            one, other = (np.stack([thumbs[i] for i in part[:, side].tolist()]) for side in (0, 1))
            yield part, one, other
