from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from amvl_core.contracts import content_identity as identities
from amvl_core.contracts import storage
from amvl_core.contracts.config import ModelConfig
from amvl_core.contracts.content_identity import content_identity, tokenizer_identity
from amvl_core.data.encode import TokenCounter
from tests.data_prep.archives import Files, as_folder, as_zip
from tests.tiny import stock_folder

FILES: Files = {"a/x": b"1", "a/y": b"22", "b/deep/z": b"333"}
LARGE = 6 * 2**20


def in_parts(uri: str, data: bytes) -> None:
    """Uploads an object in parts, so that its ETag is no MD5 of it."""
    fs, path = storage.filesystem(uri)
    with fs.open(path, "wb", block_size=5 * 2**20) as file:
        file.write(data)
    fs.invalidate_cache()
    assert "-" in fs.info(path)["ETag"]


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


@pytest.fixture()
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of bytes of each file that was read."""
    sizes: list[int] = []

    def counted(file: Any, digest: Any) -> Any:
        found = file_digest(file, digest)
        sizes.append(file.tell())
        return found

    file_digest = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", counted)
    return sizes


def test_a_process_reads_a_file_once_and_again_when_it_has_changed(
    tmp_path: Path, read: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identities, "_SETTLED_NS", 0)
    folder, file = as_folder(tmp_path / "x", FILES), tmp_path / "x" / "a/y"
    alone = str(file)
    before = content_identity(folder), content_identity(alone)
    assert (content_identity(folder), content_identity(alone)) == before
    assert sorted(read) == [1, 2, 2, 3]
    times = file.stat().st_atime_ns, file.stat().st_mtime_ns
    time.sleep(0.05)
    file.write_bytes(b"23")
    os.utime(file, ns=times)
    after = content_identity(folder), content_identity(alone)
    assert after[0] != before[0] and after[1] != before[1] and sorted(read) == [1, 1, 2, 2, 2, 2, 3, 3]
    file.rename(tmp_path / "x" / "a/z")
    assert content_identity(folder) not in (before[0], after[0])


def test_a_file_that_changed_just_now_is_read_again(
    tmp_path: Path, read: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identities, "_SETTLED_NS", 3600 * 10**9)
    file = tmp_path / "x"
    file.write_bytes(b"1")
    assert content_identity(str(file)) == content_identity(str(file))
    assert read == [1, 1]


def test_an_object_without_an_md5_is_brought_once_and_again_when_it_has_changed(
    s3_bucket: str, read: list[int]
) -> None:
    uri, found = f"{s3_bucket}/identity/parts", []
    for seed in (b"1", b"2"):
        in_parts(f"{uri}/large", seed * LARGE)
        storage.write_bytes(f"{uri}/small", b"3")
        found += [content_identity(uri), content_identity(uri)]
    assert found[0] == found[1] != found[2] == found[3]
    assert read == [LARGE, LARGE]


def test_an_archive_is_its_bytes(tmp_path: Path) -> None:
    one = content_identity(as_zip(tmp_path / "x.zip", FILES))
    (tmp_path / "y.zip").write_bytes((tmp_path / "x.zip").read_bytes())
    os.utime(tmp_path / "y.zip", (2, 2))
    assert content_identity(str(tmp_path / "y.zip")) == one
    (tmp_path / "y.zip").write_bytes((tmp_path / "x.zip").read_bytes()[:-1] + b"x")
    assert content_identity(str(tmp_path / "y.zip")) != one


def test_a_store_and_a_disk_agree_also_of_what_was_uploaded_in_parts(tmp_path: Path, s3_bucket: str) -> None:
    files = {**FILES, "large": os.urandom(LARGE)}
    storage.upload(Path(as_folder(tmp_path / "x", files)), f"{s3_bucket}/identity/x")
    in_parts(f"{s3_bucket}/identity/x/large", files["large"])
    storage.write_bytes(f"{s3_bucket}/identity/x/.DS_Store", b"1")
    for name in ("", "/large", "/a/y"):
        assert content_identity(f"{s3_bucket}/identity/x{name}") == content_identity(f"{tmp_path}/x{name}")


def written(folder: Path, old: bool) -> Path:
    """Tokenizer and image processor of a base model, as transformers writes them, or wrote them before version 5."""
    shutil.copytree(stock_folder(), folder, ignore=shutil.ignore_patterns("*.safetensors"))
    if old:
        processor, template = folder / "processor_config.json", folder / "chat_template.jinja"
        fields = json.loads(processor.read_text())["image_processor"]
        (folder / "preprocessor_config.json").write_text(json.dumps(fields))
        (folder / "chat_template.json").write_text(json.dumps({"chat_template": template.read_text()}))
        processor.unlink()
        template.unlink()
    return folder


@pytest.mark.parametrize(
    ("old", "name", "before", "after"),
    [
        (False, "processor_config.json", '"patch_size": 8', '"patch_size": 16'),
        (False, "chat_template.jinja", "assistant", "the assistant"),
        (False, "tokenizer_config.json", '"<|video_pad|>"', '"<|video_pad|>", "<|more|>"'),
        (False, "tokenizer.json", '"Ġreach",', '"reach",'),
        (True, "preprocessor_config.json", '"merge_size": 2', '"merge_size": 4'),
        (True, "chat_template.json", "assistant", "the assistant"),
    ],
)
def test_a_tokenizer_that_counts_otherwise_is_another(
    tmp_path: Path, old: bool, name: str, before: str, after: str
) -> None:
    folder = written(tmp_path / "base", old)
    model, moved = ModelConfig(base=str(folder)), ModelConfig(base=str(written(tmp_path / "moved", old)))
    (folder / "model.safetensors").write_bytes(b"other weights")
    assert tokenizer_identity(model) == tokenizer_identity(moved)
    counter = TokenCounter.from_model(moved)
    text = (folder / name).read_text()
    assert before in text
    (folder / name).write_text(text.replace(before, after))
    assert TokenCounter.from_model(model) != counter
    assert tokenizer_identity(model) != tokenizer_identity(moved)
