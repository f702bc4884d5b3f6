"""The keys of all rows at once, as the rules of `data_prep/duplicates.py` read them.

Shape suffixes: N rows, M images of all rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from data_prep.copies import Place
from data_prep.duplicate_keys import KeyFile, hash64, read
from data_prep.images import DIGEST_BYTES

MIX = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9))
"""Factors that mix 64-bit hashes."""


@dataclass(frozen=True)
class Rows:
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


def load(files: Sequence[KeyFile], used: Sequence[int]) -> Rows:
    """The rows of the files numbered `used`, in that order."""
    columns = ["text", "asked", "question", "images", "digests", "blank"]
    with ThreadPoolExecutor(8) as pool:  # reading from an object store is mostly waiting
        tables = list(pool.map(lambda number: _arrays(read(files[number], columns)), used))
    lengths = [len(table["text"]) for table in tables]
    images_N = _concat(tables, "images", np.int32)
    owner_M = np.repeat(np.arange(len(images_N), dtype=np.int32), images_N)
    return Rows(
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


def first_alike(rows: Rows, chosen: np.ndarray) -> np.ndarray:
    """For each of the `chosen` rows the first with the same text and images (itself, if there is none before it)."""
    text, exact = rows.text_N[chosen], rows.exact_N[chosen]
    order = np.lexsort((exact, text))  # stable: the rows of a group stay in their order
    text, exact = text[order], exact[order]
    begins = np.ones(len(order), bool)
    begins[1:] = (text[1:] != text[:-1]) | (exact[1:] != exact[:-1])
    first = np.empty(len(order), np.int64)
    first[order] = chosen[order[begins][np.cumsum(begins) - 1]]
    return first
