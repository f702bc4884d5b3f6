"""How often `data_prep/duplicates.py` is wrong: `python -m benchmarks.duplicates FOLDER [--rows N] [--drawings N]`.

False positives: rows of data sets without copies that are taken for near copies of another row with the same text. All
of microworld, easy-VQA, NLVR and the VSP mazes is compared, and 16 crops of each natural photograph as if the same had
been asked about each. `near_images` is the same for test images, where the question does not count: training rows that
nearly show an image of the test split, or crops of other photographs; `near_images_of_train` are those in one half of
the training shards that nearly show an image of the other half. `questions` are training rows that ask a question of
the test split, as if that were a published benchmark, by how many images it may be asked of in either.

`drawings` (`benchmarks/drawings.py`): those of one half that nearly show one of the other half. `changed` are pictures
beside the same with one detail changed (`benchmarks/changed.py`): how many of the changed ones nearly show any of the
others, as they are and compressed or scaled. `by_thumbnails` says how many thumbnails alone would take for copies.
Misses: photographs, drawings and pictures that were scaled or compressed again and are not found. The last line is one
JSON object; a data set that is not in FOLDER is null.
"""

from __future__ import annotations

import argparse
import io
import json
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from PIL import Image

from amvl_core.contracts.config import DataConfig
from amvl_core.contracts.presets import PRESETS
from amvl_core.contracts.sources import EasyVqaSource, MicroworldSource, NlvrSource, Source, VspMazeSource
from amvl_core.data.encode import TokenCounter
from benchmarks.changed import CHANGED
from benchmarks.drawings import DRAWINGS
from data_prep import duplicates, listing, near_pairs
from data_prep.duplicate_keys import KeyFile, Keys, key_name, write_pictures
from data_prep.duplicates import Repeat
from data_prep.images import PixelBudget, StoredImage, standardise
from data_prep.units import Work, unit_name

BUDGET = PixelBudget(256, 512 * 512, 28)
DRAWN = PixelBudget(256 * 28 * 28, 1280 * 28 * 28, 28)
CROPS = 4

CHANGES: dict[str, Callable[[Image.Image], bytes]] = {
    "half size": lambda image: _encoded(_half(image), "PNG"),
    "JPEG 90": lambda image: _encoded(image, "JPEG", quality=90),
    "JPEG 60": lambda image: _encoded(image, "JPEG", quality=60),
    "JPEG 30": lambda image: _encoded(image, "JPEG", quality=30),
    "half size, JPEG 75": lambda image: _encoded(_half(image), "JPEG", quality=75),
}


def main() -> None:
    """Prints one line for each data set and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the real data lies")
    parser.add_argument("--rows", type=int, default=22_000, help="of microworld, an eleventh of them for the test")
    parser.add_argument("--drawings", type=int, default=60, help="of each kind, at most")
    chosen = parser.parse_args()
    folder, test = chosen.folder, chosen.rows // 11
    archives: dict[str, Callable[[str], Source]] = {
        "easy-vqa": lambda uri: EasyVqaSource(uri=uri),
        "nlvr": lambda uri: NlvrSource(uri=uri),
        "vsp-maze": lambda uri: VspMazeSource(uri=uri),
    }
    found: dict[str, Any] = {"microworld": _false_positives(MicroworldSource(train=chosen.rows - test, test=test))}
    print("microworld", found["microworld"], flush=True)
    for name, source in archives.items():
        path = folder / f"{name}.tar.gz"
        found[name] = _false_positives(source(str(path))) if path.exists() else None
        print(name, found[name], flush=True)
    for name, draw in DRAWINGS.items():
        found.setdefault("drawings", {})[name] = _drawings(list(islice(draw(), chosen.drawings)))
        print(name, found["drawings"][name], flush=True)
    for name, make in CHANGED.items():
        found.setdefault("changed", {})[name] = _changed(list(make(chosen.drawings)))
        print(name, found["changed"][name], flush=True)
    photos = folder / "natural-photos.tar.gz"
    found["photos"] = _photos(list(_open(photos))) if photos.exists() else None
    print("photos", found["photos"], flush=True)
    print(json.dumps(found))


def _false_positives(source: Source) -> dict[str, Any]:
    """Repeats of one source: `exact` ones are copies, every `near` one is a false positive."""
    config = PRESETS["demo"]()
    data = DataConfig(**{**config.data.model_dump(), "sources": (source,), "max_tokens": 4096})
    with tempfile.TemporaryDirectory() as folder:
        work = Work(data, TokenCounter.from_model(config.model), (folder,))
        done = [work.run(unit) for unit in listing.units(data, 0, ())]
        files = [KeyFile(key_name(f"{folder}/{unit_name(unit.split, unit.number)}"), unit.split) for unit in done]
        started = time.perf_counter()
        repeats = duplicates.find(files, duplicates=True, contaminated=True)
        seconds = time.perf_counter() - started
        distances = near_pairs.distances(files)
        everything = [replace(file, split="train") for file in files]
        near = sum(r.match == "near" for r in duplicates.find(everything, duplicates=True, contaminated=False))
        train, test = ([file for file in files if file.split == split] for split in ("train", "test"))
        questions = _questions(test, train)
        near_images = _near_images(test, train)
        near_images_of_train = _near_images(train[::2], train[1::2])
    rows = sum(unit.report.kept for unit in done)
    by_reason = {
        f"exact_{reason}": sum("near" not in repeat.match and repeat.reason == reason for repeat in repeats)
        for reason in ("duplicate", "contaminated")
    }
    compared = {"compared": len(distances), "smallest_difference": int(distances.min(initial=256))}
    images = {"near_images": near_images, "near_images_of_train": near_images_of_train, **questions}
    found = {"rows": rows, **by_reason, "near": near, "rate": near / rows, **images}
    return {**found, **compared, "seconds": round(seconds, 2)}


def _questions(benchmark: list[KeyFile], training: list[KeyFile]) -> dict[str, Any]:
    """Rows of `training` that ask a question of `benchmark` which has enough words, and is asked of few images too."""
    asked = [replace(file, benchmark="benchmark") for file in benchmark]
    few: dict[str, int] = {}
    for limit in (1, duplicates.FEW, 10**9):
        with patch.object(duplicates, "FEW", limit):
            repeats = duplicates.find([*asked, *training], duplicates=False, contaminated=True)
        few[str(limit) if limit < 10**9 else "any"] = sum(repeat.match == "question" for repeat in repeats)
    return {"questions": few}


def _near_images(benchmark: list[KeyFile], training: list[KeyFile]) -> int:
    """How many rows of `training` nearly show an image of `benchmark`."""
    asked = [replace(file, split="test", benchmark="benchmark") for file in benchmark]
    repeats = duplicates.find([*asked, *training], duplicates=False, contaminated=True)
    return sum(repeat.match == "near image" for repeat in repeats)


def _open(archive: Path) -> Iterator[Image.Image]:
    with tarfile.open(archive) as tar:
        for member in tar:
            content = tar.extractfile(member) if member.name.endswith((".png", ".jpg", ".jpeg")) else None
            if content is not None:
                yield Image.open(io.BytesIO(content.read())).convert("RGB")


def _photos(photos: list[Image.Image]) -> dict[str, Any]:
    crops = [_encoded(crop, "PNG") for photo in photos for crop in _crops(photo)]
    stored = [_stored(crop) for crop in crops]
    false = len(_repeats(stored))
    half = len(photos) // 2 * CROPS**2  # crops of other photographs
    near_images = _shown(stored[:half], stored[half:])
    missed, missed_images = {}, {}
    for name, change in CHANGES.items():
        pairs = [(_stored(_encoded(photo, "PNG")), _stored(change(photo))) for photo in photos]
        missed[name] = sum(not _repeats(list(pair)) for pair in pairs)
        missed_images[name] = sum(not _shown([original], [copy]) for original, copy in pairs)
    found = {"photos": len(photos), "crops": len(crops), "near": false, "rate": false / len(crops), "missed": missed}
    return {**found, "near_images": near_images, "missed_images": missed_images}


def _drawings(drawings: list[Image.Image]) -> dict[str, Any]:
    """Drawings of one half that nearly show one of the other, and changed copies that are not found, of all."""
    stored = [_stored(_encoded(drawing, "PNG"), DRAWN) for drawing in drawings]
    half = len(stored) // 2
    missed = {name: len(stored) - _shown(stored, _all(change, drawings)) for name, change in CHANGES.items()}
    pairs = half * (len(stored) - half)
    return {"pairs": pairs, "near": _shown(stored[:half], stored[half:]), "drawings": len(stored), "missed": missed}


def _changed(pairs: list[tuple[Image.Image, Image.Image]]) -> dict[str, Any]:
    """What is taken for an image of `pairs`' first sides: of the other sides, and of copies of the first."""
    ways = {"PNG": lambda image: _encoded(image, "PNG"), **CHANGES}
    first, other = ([pair[side] for pair in pairs] for side in (0, 1))
    shown = _all(ways["PNG"], first)
    thumbs = [
        np.stack([np.frombuffer(image.thumb, np.uint8) for image in _all(ways["PNG"], side)]) for side in (first, other)
    ]
    return {
        "pictures": len(pairs),
        "by_thumbnails": int(near_pairs.nearly_equal(*thumbs).sum()),
        "near": {name: _shown(shown, _all(way, other)) for name, way in ways.items()},
        "missed": {name: len(pairs) - _shown(shown, _all(way, first)) for name, way in CHANGES.items()},
    }


def _all(way: Callable[[Image.Image], bytes], images: list[Image.Image]) -> list[StoredImage]:
    return [_stored(way(image), DRAWN) for image in images]


def _crops(photo: Image.Image) -> Iterator[Image.Image]:
    width, height = photo.width // CROPS, photo.height // CROPS
    for row in range(CROPS):
        for column in range(CROPS):
            left, top = column * width, row * height
            yield photo.crop((left, top, left + width, top + height))


def _half(image: Image.Image) -> Image.Image:
    return image.resize((image.width // 2, image.height // 2))


def _encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def _stored(data: bytes, budget: PixelBudget = BUDGET) -> StoredImage:
    image = standardise(data, budget)
    assert isinstance(image, StoredImage), image
    return image


def _repeats(images: list[StoredImage]) -> list[Repeat]:
    with tempfile.TemporaryDirectory() as folder:
        file = _key_file(f"{folder}/keys", images, "The same?")
        found = duplicates.find([file], duplicates=True, contaminated=False)
    return [repeat for repeat in found if repeat.match == "near"]


def _shown(benchmark: list[StoredImage], training: list[StoredImage]) -> int:
    """How many of `training` nearly show an image of `benchmark`."""
    with tempfile.TemporaryDirectory() as folder:
        asked = _key_file(f"{folder}/b", benchmark, "One?")
        return _near_images([asked], [_key_file(f"{folder}/t", training, "Another?")])


def _key_file(path: str, images: list[StoredImage], question: str) -> KeyFile:
    keys = Keys()
    for number, image in enumerate(images):
        keys.add(str(number), question, "A thing.", [image])
    file = KeyFile(key_name(path), "train")
    write_pictures(file, [[image] for image in images])
    keys.write(file.uri)
    return file


if __name__ == "__main__":
    main()
