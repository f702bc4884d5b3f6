import os
import subprocess
import sys

import pytest
from safetensors import SafetensorError

from amvl_core.contracts import storage
from amvl_core.contracts.errors import StorageError


def test_a_failed_write_leaves_the_old_file_and_no_fragment(tmp_path, monkeypatch) -> None:
    target = str(tmp_path / "file")
    storage.write_bytes(target, b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage.os, "fsync", full)
    with pytest.raises(StorageError, match=r"cannot write .*file: No space left on device"):
        storage.write_bytes(target, b"new")
    assert storage.read_bytes(target) == b"old"
    assert storage.list_names(str(tmp_path)) == ["file"]


def test_a_full_disk_of_this_machine_is_not_taken_for_the_store(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(storage.tempfile, "tempdir", str(tmp_path))
    memory, _ = storage.filesystem("memory://bucket")
    memory.pipe_file("/bucket/full/model", b"x")
    full = OSError(28, "No space left on device")

    def get_file(*_: object) -> None:
        raise full

    monkeypatch.setattr(type(memory), "get_file", get_file)
    said = rf"cannot write {tmp_path}: No space left on device; set TMPDIR to a disk with room"
    with pytest.raises(StorageError, match=said):
        storage.download("memory://bucket/full", tmp_path)
    for error in (full, SafetensorError("No space left on device")):
        with pytest.raises(StorageError, match=said), storage.reaching(str(tmp_path), "write"):
            raise error
        with pytest.raises(StorageError, match=said), storage.writing("memory://bucket/full/model"):
            raise error
    full = OSError(5, "Input/output error")
    with pytest.raises(StorageError, match=r"cannot read memory://bucket/full: Input/output error$"):
        storage.download("memory://bucket/full", tmp_path)


def test_what_a_killed_writer_left_is_removed_once_it_is_old(tmp_path) -> None:
    old, young = tmp_path / ".shard.parquet.1.tmp", tmp_path / ".shard.parquet.2.tmp"
    for file in (old, young, tmp_path / "shard.parquet"):
        file.write_bytes(b"x")
    os.utime(old, (0, 0))
    storage.remove_leftovers(str(tmp_path))
    assert sorted(file.name for file in tmp_path.iterdir()) == [young.name, "shard.parquet"]


def test_a_copy_is_whole_and_replaces_what_was_there(tmp_path) -> None:
    storage.write_bytes(str(tmp_path / "a"), b"new")
    storage.write_bytes(str(tmp_path / "b"), b"old")
    storage.copy(str(tmp_path / "a"), str(tmp_path / "b"))
    storage.write_bytes(str(tmp_path / "a"), b"newer")
    assert storage.read_bytes(str(tmp_path / "b")) == b"new"


def test_a_root_that_is_a_file_is_refused(tmp_path) -> None:
    (tmp_path / "root").write_text("")
    with pytest.raises(StorageError, match="cannot write"):
        storage.check_writable(str(tmp_path / "root"))


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_paths_and_file_uris_are_the_same(tmp_path, scheme: str) -> None:
    root = scheme + str(tmp_path)
    storage.check_writable(root)
    storage.write_bytes(storage.join(root, "a", "b.bin"), b"x")
    assert storage.read_bytes(str(tmp_path / "a" / "b.bin")) == b"x"
    assert storage.absolute(root) == str(tmp_path)
    storage.remove(storage.join(root, "a"))
    assert storage.list_names(root) == []
    with pytest.raises(StorageError, match="does not exist"):
        storage.read_bytes(storage.join(root, "a", "b.bin"))


def test_an_unknown_scheme_is_refused() -> None:
    with pytest.raises(StorageError, match="cannot use 'nosuch://x'"):
        storage.filesystem("nosuch://x")


def test_s3_behaves_like_a_folder(s3_bucket: str, tmp_path) -> None:
    root = storage.join(s3_bucket, "storage-test")
    storage.check_writable(root)
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "f").write_bytes(b"1")
    storage.upload(tmp_path, storage.join(root, "up"))
    assert storage.list_names(storage.join(root, "up")) == ["deep"]
    back = storage.download(storage.join(root, "up"), tmp_path / "down")
    assert (back / "deep" / "f").read_bytes() == b"1"
    storage.remove(root)
    assert not storage.exists(storage.join(root, "up", "deep", "f"))


def test_what_another_process_wrote_since_the_last_listing_is_there(s3_bucket: str) -> None:
    root = storage.join(s3_bucket, "written-elsewhere")
    folder, file = storage.join(root, "stage"), storage.join(root, "stage", "model")
    storage.write_bytes(storage.join(root, "other"), b"1")
    assert storage.list_names(root) == ["other"]
    write = f"import fsspec; fsspec.filesystem('s3').pipe({file!r}, b'1')"
    subprocess.run([sys.executable, "-c", write], check=True)
    assert storage.exists(folder)
    storage.remove(folder)
    assert not storage.exists(file)


@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
def test_an_endpoint_without_a_scheme_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "localhost:9000")
    with pytest.raises(StorageError, match=f"{name} is 'localhost:9000'; begin it with http:// or https://"):
        storage.exists("s3://bucket/folder")


@pytest.mark.parametrize("uri", ["s3://", "s3:///"])
def test_a_store_without_a_bucket_is_refused(uri: str) -> None:
    with pytest.raises(StorageError, match=f"cannot use '{uri}' as storage: it names no bucket"):
        storage.filesystem(uri)
