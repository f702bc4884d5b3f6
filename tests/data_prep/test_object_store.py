"""Preparation on an S3 endpoint that fails: it waits, and gives up with an error that says so."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import s3fs

from amvl_core.contracts import storage
from amvl_core.contracts.errors import StorageError
from amvl_core.contracts.sources import EasyVqaSource
from data_prep import listing
from data_prep.sources.raw_row import images_of
from data_prep.sources.zip_and_tar import Zip
from tests.data_prep import archives
from tests.data_prep.archives import as_folder, as_zip
from tests.data_prep.flaky import Faults, flaky
from tests.data_prep.test_units import finish, work


@pytest.fixture()
def faults(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Faults]:
    with flaky(os.environ["AWS_ENDPOINT_URL"]) as found:
        monkeypatch.setenv("AWS_ENDPOINT_URL", found.url)
        s3fs.S3FileSystem.clear_instance_cache()
        yield found
    s3fs.S3FileSystem.clear_instance_cache()


def test_an_endpoint_that_is_away_for_a_while_or_breaks_off_changes_nothing(
    faults: Faults, s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library asks as often as ever; between two requests it would wait for up to 20 seconds."""
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0.01)
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


def test_a_store_that_goes_away_in_the_middle_of_a_unit_loses_no_sample(
    faults: Faults, s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is no drop: the unit ends without a record and names the source, and the next run does it whole."""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    as_folder(tmp_path / "easy", archives.easy_vqa(8, 2))
    uri = f"{s3_bucket}/away/easy"
    storage.upload(tmp_path / "easy", uri)
    job = work(EasyVqaSource(uri=uri), tmp_path / "out")
    unit = next(iter(listing.units(job.data, 0, ())))
    calls = iter(range(100))

    def away_after_three(*arguments: Any) -> Any:
        faults.unavailable = 10**6 if next(calls) >= 3 else 0
        return images_of(*arguments)

    monkeypatch.setattr("data_prep.units.images_of", away_after_three)
    with pytest.raises(StorageError, match=f"cannot read {uri}"):
        job.run(unit)
    assert not list((tmp_path / "out").glob("train-*"))
    faults.unavailable = 0
    monkeypatch.setattr("data_prep.units.images_of", images_of)
    found = job.run(unit).report
    assert (found.read, found.kept) == (8, 8)


def test_a_store_that_goes_away_is_no_damage_of_an_archive(tmp_path: Path) -> None:
    class Store(io.BytesIO):
        away = False

        def read(self, size: int | None = -1) -> bytes:
            if self.away:
                raise OSError("Service Unavailable")
            return super().read(size)

    whole = as_zip(tmp_path / "a.zip", {"one": b"1" * 100})
    store = Store(Path(whole).read_bytes())
    archive = Zip("s3://bucket/a.zip", storage.RemoteFile("s3://bucket/a.zip", store))  # type: ignore[arg-type]
    assert archive.read("one") == b"1" * 100
    store.away = True
    with pytest.raises(StorageError, match=r"cannot read s3://bucket/a\.zip: Service Unavailable"):
        archive.read("one")
