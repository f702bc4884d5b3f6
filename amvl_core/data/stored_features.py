"""Features that were computed elsewhere (`features:URI`), such as pi3's: a lookup in place of an encoder.

A folder of safetensors files. Each key is the SHA-256 of an image's bytes as the dataset stores them, in hexadecimal
digits; its tensor is [P, D]. `features.json` in the folder says `{"grid": [rows, columns], "width": D}` with
P = rows x columns. Imports no torch.
"""

from __future__ import annotations

import json
import struct
from typing import IO, NamedTuple

import numpy as np
from pydantic import Field, ValidationError

from amvl_core.contracts import storage
from amvl_core.contracts.encoders import Patches
from amvl_core.contracts.errors import DataError, StorageError
from amvl_core.contracts.frozen import Frozen
from amvl_core.contracts.sample import StoredSample
from amvl_core.data.features import image_digest

SHAPE_FILE = "features.json"
SUFFIX = ".safetensors"
_TYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}
_HEADER_LIMIT = 100_000_000
"""As the safetensors library has it."""
ADVICE = "compute them and put them into a file there, by the SHA-256 of the image as it is stored"
"""What to do about images without features."""


class _Shape(Frozen):
    grid: tuple[int, int] = Field(description="rows and columns of patches")
    width: int = Field(ge=1)


class _Entry(NamedTuple):
    """Where a tensor lies: in which file, from which byte on, and as what."""

    file: int
    start: int
    dtype: str


class StoredFeatures:
    """The features in the folder `uri`, local or remote; their places are read at once, they themselves when asked for.

    Raises DataError where the folder is not as this module says.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        names = storage.list_names(uri)
        files = [name for name in names if name.endswith(SUFFIX)]
        if SHAPE_FILE not in names or not files:
            raise DataError(
                f"{uri} holds no features; give the folder with {SHAPE_FILE} and the {SUFFIX} files (docs/valr.md)"
            )
        shape = self._shape()
        self.grid, self.width = shape.grid, shape.width
        self.patches = Patches(*shape.grid, shape.width)
        self._uris = [storage.join(uri, name) for name in files]
        self._entries: dict[bytes, _Entry] = {}
        for number in range(len(files)):
            self._index(number)

    def find(self, digest: bytes) -> np.ndarray | None:
        """Features [P, D] in float32 of the image with this SHA-256, or None. Raises StorageError."""
        entry = self._entries.get(digest)
        if entry is None:
            return None
        rows, columns = self.grid
        stored = np.dtype(_TYPES[entry.dtype])
        with storage.opened(self._uris[entry.file]) as file:
            data = _exactly(file, entry.start, rows * columns * self.width * stored.itemsize, self._uris[entry.file])
        values = np.frombuffer(data, stored)
        if entry.dtype == "BF16":  # the upper half of a float32
            values = (values.astype("<u4") << 16).view("<f4")
        return values.astype(np.float32).reshape(rows * columns, self.width)

    def of(self, row: int, sample: StoredSample) -> tuple[np.ndarray, ...]:
        """Features [P, D] of each image of a sample, whatever its row. A DataError names an image that has none."""
        found = []
        for number, image in enumerate(sample.images, 1):
            features = self.find(image_digest(image))
            if features is None:
                raise DataError(f"{named(sample.sample_id, number, image)} has no features in {self.uri}; {ADVICE}")
            found.append(features)
        return tuple(found)

    def _shape(self) -> _Shape:
        where = storage.join(self.uri, SHAPE_FILE)
        try:
            return _Shape.model_validate_json(storage.read_bytes(where))
        except ValidationError as error:
            raise DataError(
                f'{where} is not as {{"grid": [16, 16], "width": 1024}}: {error.errors()[0]["msg"]}'
            ) from error

    def _index(self, number: int) -> None:
        uri = self._uris[number]
        expected = [self.grid[0] * self.grid[1], self.width]
        with storage.opened(uri) as file:
            (length,) = struct.unpack("<Q", _exactly(file, 0, 8, uri))
            if length > _HEADER_LIMIT:
                raise DataError(f"{uri} is no safetensors file: its header would have {length:,} bytes")
            try:
                header = json.loads(_exactly(file, 8, length, uri))
            except ValueError as error:
                raise DataError(f"{uri} is no safetensors file: {error}") from error
        for key, tensor in header.items():
            if key == "__metadata__":
                continue
            try:
                digest = bytes.fromhex(key)
            except ValueError:
                digest = b""
            if len(digest) != 32:
                raise DataError(f"{uri}: the key {key!r} is no SHA-256 of an image in 64 hexadecimal digits")
            if tensor["shape"] != expected or tensor["dtype"] not in _TYPES:
                raise DataError(
                    f"{uri}: {key} has {tensor['dtype']} of shape {tensor['shape']}; {SHAPE_FILE} asks for {expected} "
                    f"in one of {', '.join(_TYPES)}"
                )
            self._entries[digest] = _Entry(number, 8 + length + tensor["data_offsets"][0], tensor["dtype"])


def named(sample_id: str, number: int, image: bytes) -> str:
    """What image `number`, counted from 1, of a sample is called."""
    return f"{sample_id}: image {number} (SHA-256 {image_digest(image).hex()})"


def _exactly(file: IO[bytes], start: int, length: int, uri: str) -> bytes:
    file.seek(start)
    data = file.read(length)
    if len(data) != length:
        raise StorageError(f"{uri} is cut off; copy it again")
    return data
