"""Pairs of rows or images that may be copies: found without comparing all with all, by hashes and thumbnails.

Pairs are found by hashing: mean brightness and colour in the same cell of a grid, of rows with the same text in one of
four shifted grids, of test images in any cell nearby. Then the thumbnails (`nearly_equal`) and width by height must
agree. Thumbnails show no text, so of what is left the `TRIES` nearest are to be compared pixel by pixel
(`data_prep/copies.py`).

Shape suffixes: N rows, F features, P pairs, M images, D values of a thumbnail.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from data_prep.copies import same_aspect
from data_prep.duplicate_keys import FEATURES, THUMB_BYTES, KeyFile, image_features, read
from data_prep.duplicate_rows import MIX, Rows, first_alike, load

NEAR = 40
"""Levels of 255 that thumbnails of copies may differ by: thin coloured lines lose as much in JPEG."""

TRIES = 4
"""Images or rows that one is compared with pixel by pixel: a set of diagrams alike would cost its square otherwise."""

GRID_STEP = 8.0
GRIDS = 4
CLOSE = 2.0
"""Cells of 8 levels, four grids shifted by 2: a copy whose features are off by half a level shares a cell of at least
one grid with its original in 99.6 % of all cases. Only rows whose features are off by at most `CLOSE` are compared."""

WINDOW = 64
"""Rows of one cell are compared with so many next in brightness; a crowded cell would cost its square otherwise."""

_PAIRS_AT_ONCE = 1024


@dataclass(frozen=True)
class Shown:
    """The different images of all test rows that show something, by the cell of their quadrants' brightness: its key,
    thumbnails, features, published sizes, and the first of the images of all rows that is it.
    """

    key_M: np.ndarray
    thumbs_MD: np.ndarray
    features_MF: np.ndarray
    sizes_M2: np.ndarray
    image_M: np.ndarray

    @classmethod
    def of(cls, files: Sequence[KeyFile], rows: Rows) -> Shown:
        """The images of `rows`, which are those of `files`."""
        thumbs, sizes = [np.empty((0, THUMB_BYTES), np.uint8)], [np.empty((0, 2), np.int32)]
        images = [np.empty(0, np.int64)]
        for number in np.unique(rows.file_N[rows.is_test_N]).tolist():
            here_M = rows.images_of(number)
            some_M = ~rows.blank_M[here_M]
            thumbs_MD, sizes_M2 = thumbnails(files[number])
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


def thumbnails(file: KeyFile) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [M, D] and int32 [M, 2]: thumbnails and published sizes of the images in a key file, in order."""
    table = read(file, ["thumbs", "sizes"])
    thumbs, sizes = (b"".join(table[name].to_pylist()) for name in ("thumbs", "sizes"))
    return np.frombuffer(thumbs, np.uint8).reshape(-1, THUMB_BYTES), np.frombuffer(sizes, np.int32).reshape(-1, 2)


def nearly_equal(one_PD: np.ndarray, other_PD: np.ndarray) -> np.ndarray:
    """bool [P]: whether one image may be a copy of the other, by their thumbnails; of several images side by side, all.

    No value differs by more than `NEAR` levels.
    """
    near_P: np.ndarray = _difference(one_PD, other_PD) <= NEAR
    return near_P


def _difference(one_PD: np.ndarray, other_PD: np.ndarray) -> np.ndarray:
    """[P]: the largest difference of any value of two thumbnails, in levels of 255."""
    largest: np.ndarray = (np.maximum(one_PD, other_PD) - np.minimum(one_PD, other_PD)).max(1, initial=0)
    return largest


def _total(one_PD: np.ndarray, other_PD: np.ndarray) -> np.ndarray:
    """int64 [P]: the sum of the differences of all values of two thumbnails."""
    total: np.ndarray = (np.maximum(one_PD, other_PD) - np.minimum(one_PD, other_PD)).sum(1, dtype=np.int64)
    return total


def near_rows(files: Sequence[KeyFile], rows: Rows, candidates: np.ndarray) -> dict[int, list[int]]:
    """By the later row, in order: at most `TRIES` earlier ones that it may be a copy of, nearest first."""
    found = [np.empty((0, 3), np.int64)]
    for part in _compared(files, rows, _pairs(files, rows, candidates)):
        near = nearly_equal(part.one_PD, part.other_PD) & part.same_aspect()
        total = _total(part.one_PD[near], part.other_PD[near])
        found.append(np.stack([part.pairs_P2[near, 1], total, part.pairs_P2[near, 0]], 1))
    return _nearest(np.concatenate(found))


def _pairs(files: Sequence[KeyFile], rows: Rows, candidates: np.ndarray) -> np.ndarray:
    """[P, 2]: every pair (earlier, later) that shares its text, its number of images, and a cell of some grid."""
    key_N = rows.text_N[candidates] ^ (rows.images_N[candidates].astype(np.uint64) * MIX[1])
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


def _features_of(files: Sequence[KeyFile], rows: Rows, wanted: np.ndarray) -> np.ndarray:
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
        key_N = (key_N ^ cell_N) * MIX[0]
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
        whole: np.ndarray = np.logical_and.reduce(same.reshape(len(self.pairs_P2), -1), axis=1)
        return whole


def _compared(files: Sequence[KeyFile], rows: Rows, pairs_P2: np.ndarray) -> Iterator[_Compared]:
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


def distances(files: Sequence[KeyFile]) -> np.ndarray:
    """[P]: how much the thumbnails of each pair of different rows that is compared differ, in levels of 255."""
    rows = load(files, range(len(files)))
    pairs_P2 = _pairs(files, rows, np.unique(first_alike(rows, np.arange(len(rows.text_N)))))
    found = [_difference(part.one_PD, part.other_PD) for part in _compared(files, rows, pairs_P2)]
    return np.concatenate([np.empty(0, np.int32), *found])
