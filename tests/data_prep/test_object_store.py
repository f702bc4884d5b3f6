"""Preparation on an S3 endpoint that fails: it waits, and gives up with an error that says so."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import s3fs

from amvl_core import storage
from amvl_core.config import EasyVqaSource
from amvl_core.errors import StorageError
from tests.data_prep import archives
from tests.data_prep.archives import as_folder
from tests.data_prep.flaky import Faults, flaky
from tests.data_prep.test_work import finish, work


@pytest.fixture()
def faults(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Faults]:
    with flaky(os.environ["AWS_ENDPOINT_URL"]) as found:
        monkeypatch.setenv("AWS_ENDPOINT_URL", found.url)
        s3fs.S3FileSystem.clear_instance_cache()
        yield found
    s3fs.S3FileSystem.clear_instance_cache()


def test_an_endpoint_that_is_away_for_a_while_or_breaks_off_changes_nothing(
    faults: Faults, s3_bucket: str, tmp_path: Path
) -> None:
    as_folder(tmp_path / "easy", archives.easy_vqa(8, 2))
    uri = f"{s3_bucket}/flaky/source"
    storage.upload(tmp_path / "easy", uri)
    expected = [unit.shard for unit in finish(work(EasyVqaSource(uri=str(tmp_path / "easy")), tmp_path / "out"))]
    faults.unavailable, faults.broken = 4, 3
    job = work(EasyVqaSource(uri=uri), tmp_path)
    job.uris = (f"{s3_bucket}/flaky/out",)
    assert [unit.shard for unit in finish(job)] == expected
    assert faults.failed == 7
    for shard in expected:
        assert shard is not None
        assert storage.read_bytes(f"{s3_bucket}/flaky/out/{shard.file}") == (tmp_path / "out" / shard.file).read_bytes()


def test_an_endpoint_that_stays_away_is_a_storage_error(
    faults: Faults, s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    storage.write_bytes(f"{s3_bucket}/flaky/file", b"x")
    faults.unavailable = 10**6
    for refused in (
        lambda: storage.write_bytes(f"{s3_bucket}/flaky/file", b"y"),
        lambda: storage.read_bytes(f"{s3_bucket}/flaky/file"),
        lambda: storage.exists(f"{s3_bucket}/flaky/other"),
        lambda: storage.list_names(f"{s3_bucket}/flaky"),
    ):
        with pytest.raises(StorageError, match=f"cannot .* {s3_bucket}/flaky"):
            refused()
    faults.unavailable = 0
    assert storage.read_bytes(f"{s3_bucket}/flaky/file") == b"x"
