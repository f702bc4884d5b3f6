"""The keys of each row of a shard, which equal and similar samples are found by. They are written beside the shard.

Shape suffixes: N rows, M images of all rows, F features, D values of a thumbnail, HWC its pixels.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from amvl_core.contracts import storage
from amvl_core.contracts.parquet import ParquetStream
from amvl_core.contracts.sample import IMAGE_PLACEHOLDER, Split
from data_prep.images import THUMB_SIDE, StoredImage
from data_prep.shards import ROW_GROUP_ROWS, parquet_writer

THUMB_BYTES = 3 * THUMB_SIDE**2
FEATURES = 6

MIN_WORDS = 8
"""A shorter question is asked of too many images for its words alone to be a key."""

NO_KEY = 0
"""Stands in the column `question` if the question is too short."""

SCHEMA = pa.schema(
    [
        ("sample_id", pa.string()),
        ("text", pa.uint64()),
        ("asked", pa.uint64()),
        ("question", pa.uint64()),
        ("images", pa.int32()),
        ("digests", pa.binary()),
        ("features", pa.binary(4 * FEATURES)),
        ("thumbs", pa.binary()),
        ("sizes", pa.binary()),
        ("blank", pa.binary()),
    ]
)
"""Of the images of a row, one after the other: `digests`, `thumbs`, the published `sizes` as two int32, and `blank`."""

PICTURES = pa.schema([("images", pa.list_(pa.binary()))])
"""What a shard has too: the images of each row. Benchmarks have them in files of their own."""

_SUFFIX = ".keys.parquet"


def normalise(text: str) -> str:
    """Text as it is compared: case, spacing and the marks at the end do not count; signs inside it do.

    A text of marks alone keeps them, and so does a number its factorial: `5!` is not `5`.
    """
    plain = " ".join(unicodedata.normalize("NFC", text.replace(IMAGE_PLACEHOLDER, " ")).casefold().split())
    bare = plain.rstrip(".?! ")
    if not bare or (bare[-1].isdigit() and plain[len(bare) :].startswith("!")):
        return plain
    return bare


@dataclass
class Keys:
    """The keys of the rows of one shard. They are collected row by row and written beside the shard."""

    _rows: list[dict[str, Any]] = field(default_factory=list)

    def add(
        self,
        sample_id: str,
        question: str,
        answer: str,
        images: Sequence[StoredImage],
        steps: Sequence[str] = (),
    ) -> None:
        """Adds the keys of the next row; `steps` are those that its shard stores.

        The column `question` is the hash of the question, `asked` of question and answer, `text` of the steps too.
        """
        plain, right = normalise(question), normalise(answer)
        self._rows.append(
            {
                "sample_id": sample_id,
                "text": hash64("\0".join([plain, right, *map(normalise, steps)]).encode()),
                "asked": hash64(f"{plain}\0{right}".encode()),
                "question": hash64(plain.encode()) if len(plain.split()) >= MIN_WORDS else NO_KEY,
                "images": len(images),
                "digests": b"".join(image.digest for image in images),
                "thumbs": b"".join(image.thumb for image in images),
                "sizes": np.array([image.upright_size for image in images], np.int32).tobytes(),
                "blank": bytes(image.blank for image in images),
            }
        )

    def write(self, uri: str) -> None:
        """Writes the keys, whole or not at all."""
        images_N = np.array([row["images"] for row in self._rows], np.int64)
        features_NF = features(b"".join(row["thumbs"] for row in self._rows), images_N)
        for row, values in zip(self._rows, features_NF, strict=True):
            row["features"] = values.tobytes()
        with storage.writing(uri) as file, parquet_writer(file, SCHEMA) as writer:
            writer.write_table(pa.Table.from_pylist(self._rows, schema=SCHEMA))


def features(thumbs: bytes, images_N: np.ndarray) -> np.ndarray:
    """float32 [N, F] of rows with `images_N` thumbnails each, one after the other: brightness of the four quadrants,
    and half the means of R - G and B - G, which JPEG keeps less well; over all thumbnails of a row.
    """
    thumbs_MD = np.frombuffer(thumbs, np.uint8).reshape(-1, THUMB_BYTES)
    features_NF = np.zeros((len(images_N), FEATURES), np.float32)
    some = np.flatnonzero(images_N)
    if len(some):
        starts = np.cumsum(images_N)[some] - images_N[some]
        mean_ND = np.add.reduceat(thumbs_MD, starts, axis=0, dtype=np.float64) / images_N[some][:, None]
        features_NF[some] = image_features(mean_ND)
    return features_NF


def image_features(thumbs_MD: np.ndarray) -> np.ndarray:
    """float32 [M, F]: `features` of each thumbnail by itself."""
    half = THUMB_SIDE // 2
    pixels_MHWC = thumbs_MD.reshape(-1, THUMB_SIDE, THUMB_SIDE, 3)
    quadrants_M4 = pixels_MHWC.mean(3).reshape(-1, 2, half, 2, half).mean((2, 4)).reshape(-1, 4)
    red_M, green_M, blue_M = pixels_MHWC.mean((1, 2)).T
    columns = [quadrants_M4, (red_M - green_M)[:, None] / 2, (blue_M - green_M)[:, None] / 2]
    return np.concatenate(columns, 1).astype(np.float32)


@dataclass(frozen=True)
class KeyFile:
    """The keys of one shard; or, as test samples, of questions of the `benchmark` of that name.

    The images of the rows lie beside the keys, in `pictures`.
    """

    uri: str
    split: Split
    benchmark: str | None = None

    @property
    def pictures(self) -> str:
        """A shard, or a file of `PICTURES` alone; in row groups of `ROW_GROUP_ROWS`."""
        return f"{self.uri.removesuffix(_SUFFIX)}.parquet"


def key_name(name: str) -> str:
    """What the keys of the images in `{name}.parquet` are called."""
    return f"{name}{_SUFFIX}"


def write_pictures(file: KeyFile, images: Sequence[Sequence[StoredImage]]) -> None:
    """Writes the images of each row beside its keys."""
    table = pa.table({"images": [[image.data for image in row] for row in images]}, schema=PICTURES)
    with storage.writing(file.pictures) as temporary, parquet_writer(temporary, PICTURES) as writer:
        writer.write_table(table, row_group_size=ROW_GROUP_ROWS)


def read_pictures(file: KeyFile, group: int) -> list[list[bytes]]:
    """The encoded images of the rows from `group` x `ROW_GROUP_ROWS` on, as many as a row group has."""
    with storage.opened(file.pictures) as stream:
        found: list[list[bytes]] = ParquetStream(stream).read_row_group(group, ["images"])["images"].to_pylist()
    return found


def sample_id(file: KeyFile, row: int) -> str:
    """The id of a row of a key file."""
    return str(read(file, ["sample_id"])["sample_id"][row])


def count_images(uri: str) -> int:
    """How many images the rows of a key file show."""
    return int(np.sum(read(KeyFile(uri, "test"), ["images"])["images"].to_numpy()))


def read(file: KeyFile, columns: list[str]) -> pa.Table:
    """Columns of a key file."""
    with storage.opened(file.uri) as stream:
        return ParquetStream(stream).read(columns)


def hash64(data: bytes) -> int:
    """64 bits of the SHA-256."""
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "little")
