from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from amvl_core.contracts import storage
from amvl_core.contracts.errors import DataError, StorageError
from amvl_core.data.stored_features import StoredFeatures
from tests.shards import sample_of

IMAGES = [b"one", b"two", b"three"]
KEYS = [hashlib.sha256(image).hexdigest() for image in IMAGES]
VALUES = [torch.randn(4, 3, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]


def folder(root: Path, shape: str = '{"grid": [2, 2], "width": 3}') -> Path:
    """Three images in two files and three types."""
    first = {KEYS[0]: VALUES[0], KEYS[1]: VALUES[1].half()}
    save_file(first, root / "a.safetensors", {"model": "pi3"})
    save_file({KEYS[2]: VALUES[2].bfloat16()}, root / "b.safetensors")
    (root / "features.json").write_text(shape)
    return root


@pytest.mark.parametrize("remote", [False, True])
def test_features_are_those_that_the_library_saved(remote: bool, tmp_path: Path, s3_bucket: str) -> None:
    uri = str(folder(tmp_path))
    if remote:
        storage.upload(tmp_path, uri := f"{s3_bucket}/stored-features")
    features = StoredFeatures(uri)
    assert (features.grid, features.width) == ((2, 2), 3)
    found = features.of(0, sample_of("s", "<image><image><image>", "yes", IMAGES[::-1]))
    for found_PD, value, kind in zip(found, VALUES[::-1], (torch.bfloat16, torch.float16, torch.float32), strict=True):
        assert found_PD.dtype == np.float32
        assert np.array_equal(found_PD, value.to(kind).float().numpy())


def test_an_image_without_features_is_named(tmp_path: Path) -> None:
    features = StoredFeatures(str(folder(tmp_path)))
    digest = hashlib.sha256(b"other").hexdigest()
    assert features.find(bytes.fromhex(digest)) is None
    expected = rf"s: image 2 \(SHA-256 {digest}\) has no features in {tmp_path}; compute them"
    with pytest.raises(DataError, match=expected):
        features.of(0, sample_of("s", "<image><image>", "yes", [b"one", b"other"]))


def write(name: str, data: bytes) -> Callable[[Path], object]:
    return lambda root: (root / name).write_bytes(data)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda root: (root / "features.json").unlink(), "holds no features; give the folder with features.json"),
        (lambda root: [file.unlink() for file in root.glob("*.safetensors")], "holds no features"),
        (write("features.json", b'{"grid": [2, 2]}'), "features.json is not as .* Field required"),
        (write("features.json", b'{"grid": [2, 3], "width": 3}'), r"shape \[4, 3\]; features.json asks for \[6, 3\]"),
        (lambda root: save_file({"x": VALUES[0]}, root / "c.safetensors"), "the key 'x' is no SHA-256"),
        (lambda root: save_file({KEYS[0]: VALUES[0].double()}, root / "c.safetensors"), "has F64 of shape"),
        (write("c.safetensors", b"PK\x03\x04 a ZIP file of something else"), "no safetensors file: its header would"),
        (write("c.safetensors", b"\x04\0\0\0\0\0\0\0none"), "is no safetensors file: Expecting value"),
    ],
)  # fmt: skip
def test_a_folder_that_is_not_as_it_should_be_is_refused(
    change: Callable[[Path], object], expected: str, tmp_path: Path
) -> None:
    change(folder(tmp_path))
    with pytest.raises(DataError, match=expected):
        StoredFeatures(str(tmp_path))


def test_a_file_that_is_cut_off_is_named(tmp_path: Path) -> None:
    file = folder(tmp_path) / "b.safetensors"
    file.write_bytes(file.read_bytes()[:-2])
    with pytest.raises(StorageError, match=r"b\.safetensors is cut off"):
        StoredFeatures(str(tmp_path)).find(bytes.fromhex(KEYS[2]))
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(StorageError, match=r"b\.safetensors is cut off"):
        StoredFeatures(str(tmp_path))
