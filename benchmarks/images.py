"""Where the time of one image goes, and what other ways would save and cost: `python -m benchmarks.images ARCHIVE`.

Milliseconds (the best of several) on one core for photographs of 1600 x 1200 and 2400 x 3200, each part by itself.
PSNR in dB against the resized image without JPEG, the median over the natural photographs scaled by 0.7: of what is
stored now, of chroma at half resolution, and of a filter with a smaller support (null where the archive is not there).
The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import statistics
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.Image import Resampling

from benchmarks.pictures import photograph
from data_prep.images import JPEG_QUALITY, THUMB_SIDE, PixelBudget, budget_size, standardise

BUDGET = PixelBudget(256 * 28 * 28, 1280 * 28 * 28, 28)


def main() -> None:
    """Prints the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path, help="photographs")
    parser.add_argument("--repeats", type=int, default=15, help="of each part, of which the best counts")
    chosen = parser.parse_args()
    found: dict[str, Any] = {
        f"milliseconds {width}x{height}": _times(photograph(0, (width, height)), chosen.repeats)
        for width, height in ((1600, 1200), (2400, 3200))
    }
    found["psnr"] = _qualities(list(_photographs(chosen.archive))) if chosen.archive.exists() else None
    print(json.dumps(found))


def _times(data: bytes, repeats: int) -> dict[str, float]:
    image = _decoded(data)
    size = budget_size(image.width, image.height, BUDGET)
    small = image.resize(size, Resampling.BICUBIC)
    thumb = (THUMB_SIDE, THUMB_SIDE)
    ways: dict[str, Callable[[], object]] = {
        "standardise": lambda: standardise(data, BUDGET),
        "plain Pillow": lambda: _jpeg(_decoded(data).resize(size, Resampling.BICUBIC)),
        "decode": lambda: _decoded(data),
        "decode to YCbCr": lambda: _decoded(data, "YCbCr"),
        "resize, bicubic": lambda: image.resize(size, Resampling.BICUBIC),
        "resize, Hamming": lambda: image.resize(size, Resampling.HAMMING),
        "encode": lambda: _jpeg(small),
        "encode, chroma at half": lambda: _jpeg(small, subsampling=2),
        "thumbnail": lambda: small.resize(thumb, Resampling.HAMMING, reducing_gap=4.0),
        "digest": lambda: hashlib.sha256(data).digest(),
    }
    return {name: round(1000 * min(_seconds(way) for _ in range(repeats)), 1) for name, way in ways.items()}


def _seconds(way: Callable[[], object]) -> float:
    started = time.perf_counter()
    way()
    return time.perf_counter() - started


def _qualities(photographs: list[Image.Image]) -> dict[str, float]:
    found: dict[str, list[float]] = {"stored": [], "chroma at half": [], "Hamming": []}
    for photo in photographs:
        shown = _decoded(_jpeg(photo, quality=90, subsampling=2))
        size = (int(shown.width * 0.7), int(shown.height * 0.7))
        wanted = shown.resize(size, Resampling.BICUBIC)
        found["stored"].append(_psnr(wanted, _jpeg(wanted)))
        found["chroma at half"].append(_psnr(wanted, _jpeg(wanted, subsampling=2)))
        found["Hamming"].append(_psnr(wanted, _jpeg(shown.resize(size, Resampling.HAMMING))))
    return {name: round(statistics.median(values), 1) for name, values in found.items()}


def _psnr(wanted: Image.Image, data: bytes) -> float:
    difference = np.asarray(wanted, np.float64) - np.asarray(_decoded(data), np.float64)
    return float(10 * np.log10(255**2 / np.square(difference).mean()))


def _photographs(archive: Path) -> Iterator[Image.Image]:
    with tarfile.open(archive) as tar:
        for member in tar:
            content = tar.extractfile(member) if member.name.endswith((".png", ".jpg")) else None
            if content is not None:
                yield Image.open(io.BytesIO(content.read())).convert("RGB")


def _decoded(data: bytes, mode: str | None = None) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    if mode is not None:
        image.draft(mode, image.size)
    image.load()
    return image


def _jpeg(image: Image.Image, quality: int = JPEG_QUALITY, subsampling: int = 0) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, subsampling=subsampling)
    return buffer.getvalue()


if __name__ == "__main__":
    main()
