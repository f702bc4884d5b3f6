from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from amvl_core.contracts import storage
from amvl_core.contracts.content_identity import content_identity
from tests.data_prep.archives import Files, as_folder, as_zip

FILES: Files = {"a/x": b"1", "a/y": b"22", "b/deep/z": b"333"}


def test_a_folder_is_its_files_wherever_it_lies(tmp_path: Path) -> None:
    one = content_identity(as_folder(tmp_path / "one", FILES))
    assert one["files"] == 3
    assert one == content_identity(as_folder(tmp_path / "two", dict(reversed(FILES.items()))))


@pytest.mark.parametrize(
    "files",
    [
        {"a/x": b"22", "a/y": b"1", "b/deep/z": b"333"},
        {"a/x": b"1", "a/y": b"22", "b/z": b"333"},
        {"a/x": b"1", "a/y": b"22"},
        {"a/x": b"1", "a/y": b"23", "b/deep/z": b"333"},
        {**FILES, "c": b""},
    ],
    ids=["exchanged", "moved", "one less", "another byte", "one more"],
)
def test_another_folder_is_another(tmp_path: Path, files: Files) -> None:
    one, other = (content_identity(as_folder(tmp_path / name, of)) for name, of in (("one", FILES), ("two", files)))
    assert one != other


def test_what_is_no_content_does_not_count(tmp_path: Path) -> None:
    before = content_identity(uri := as_folder(tmp_path / "x", FILES))
    shutil.copytree(uri, tmp_path / "copy")
    assert content_identity(str(tmp_path / "copy")) == before
    os.utime(tmp_path / "x" / "a/x", (2, 2))
    assert content_identity(uri) == before
    as_folder(tmp_path / "x", {".DS_Store": b"1", "a/._x": b"2", "__MACOSX/a/x": b"3", "b/Thumbs.db": b"4"})
    (tmp_path / "x" / "empty").mkdir()
    for name, target in (("gone", tmp_path / "nothing"), ("self", "self"), ("loop", ".")):
        (tmp_path / "x" / name).symlink_to(target)
    assert content_identity(uri) == before


def test_the_same_time_and_size_do_not_hide_another_content(tmp_path: Path) -> None:
    before = content_identity(uri := as_folder(tmp_path / "x", FILES))
    file = tmp_path / "x" / "a/y"
    times = file.stat().st_atime_ns, file.stat().st_mtime_ns
    file.write_bytes(b"23")
    os.utime(file, ns=times)
    assert content_identity(uri) != before


def test_a_folder_of_links_is_the_folder_that_it_shows(tmp_path: Path) -> None:
    before = content_identity(as_folder(tmp_path / "x", FILES))
    blobs = Path(as_folder(tmp_path / "hub/blobs", {"0": b"1", "1": b"22"}))
    as_folder(tmp_path / "elsewhere", {"deep/z": b"333"})
    snapshot = Path(as_folder(tmp_path / "hub/snapshots/1", {"a/x": b"", "a/y": b""}))
    for number, name in enumerate(("a/x", "a/y")):
        (snapshot / name).unlink()
        (snapshot / name).symlink_to(os.path.relpath(blobs / str(number), (snapshot / name).parent))
    (snapshot / "b").symlink_to(tmp_path / "elsewhere")
    assert content_identity(str(snapshot)) == before


def test_an_archive_is_its_bytes(tmp_path: Path) -> None:
    one = content_identity(as_zip(tmp_path / "x.zip", FILES))
    (tmp_path / "y.zip").write_bytes((tmp_path / "x.zip").read_bytes())
    os.utime(tmp_path / "y.zip", (2, 2))
    assert content_identity(str(tmp_path / "y.zip")) == one
    (tmp_path / "y.zip").write_bytes((tmp_path / "x.zip").read_bytes()[:-1] + b"x")
    assert content_identity(str(tmp_path / "y.zip")) != one


def test_a_store_and_a_disk_agree_also_of_what_was_uploaded_in_parts(tmp_path: Path, s3_bucket: str) -> None:
    files = {**FILES, "large": os.urandom(6 * 2**20)}
    storage.upload(Path(as_folder(tmp_path / "x", files)), f"{s3_bucket}/identity/x")
    fs, path = storage.filesystem(f"{s3_bucket}/identity/x/large")
    with fs.open(path, "wb", block_size=5 * 2**20) as file:
        file.write(files["large"])
    fs.invalidate_cache()
    assert "-" in fs.info(path)["ETag"]
    storage.write_bytes(f"{s3_bucket}/identity/x/.DS_Store", b"1")
    for name in ("", "/large", "/a/y"):
        assert content_identity(f"{s3_bucket}/identity/x{name}") == content_identity(f"{tmp_path}/x{name}")
