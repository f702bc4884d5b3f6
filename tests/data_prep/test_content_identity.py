from __future__ import annotations

import os
from pathlib import Path

import pytest

from data_prep.content_identity import content_identity
from tests.data_prep.archives import Files, as_folder

FILES: Files = {"a/x": b"1", "a/y": b"22", "b/deep/z": b"333"}


def folder(path: Path, files: Files) -> str:
    uri = as_folder(path, files)
    for name in files:
        os.utime(path / name, (1, 1))
    return uri


def test_a_folder_is_its_files_wherever_it_lies(tmp_path: Path) -> None:
    one = content_identity(folder(tmp_path / "one", FILES))
    assert one["files"] == 3
    assert one == content_identity(folder(tmp_path / "two", dict(reversed(FILES.items()))))


@pytest.mark.parametrize(
    "files",
    [
        {"a/x": b"22", "a/y": b"1", "b/deep/z": b"333"},
        {"a/x": b"1", "a/y": b"22", "b/z": b"333"},
        {"a/x": b"1", "a/y": b"22"},
        {**FILES, "c": b""},
    ],
    ids=["exchanged", "moved", "one less", "one more"],
)
def test_another_folder_is_another(tmp_path: Path, files: Files) -> None:
    one, other = (content_identity(folder(tmp_path / name, of)) for name, of in (("one", FILES), ("two", files)))
    assert one != other


def test_a_touched_file_and_a_link_to_nothing_count(tmp_path: Path) -> None:
    before = content_identity(folder(tmp_path / "x", FILES))
    (tmp_path / "x" / "link").symlink_to(tmp_path / "gone")
    (tmp_path / "x" / "circle").symlink_to(tmp_path / "x" / "circle")
    linked = content_identity(str(tmp_path / "x"))
    assert linked["files"] == 5
    for name in ("link", "circle"):
        (tmp_path / "x" / name).unlink()
    os.utime(tmp_path / "x" / "a/x", (2, 2))
    assert len({str(found) for found in (before, linked, content_identity(str(tmp_path / "x")))}) == 3
