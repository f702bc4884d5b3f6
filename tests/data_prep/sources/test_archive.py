from __future__ import annotations

import os
from pathlib import Path

import pytest

from amvl_core import storage
from amvl_core.errors import DataError
from data_prep.filters import MISSING_IMAGE, Drop
from data_prep.sources.archive import open_archive
from data_prep.sources.members import Inner, resolve
from data_prep.sources.row import read_image
from tests.data_prep.archives import Files, as_folder, as_tar, as_zip

FILES: Files = {"top/a.txt": b"alpha", "top/deep/a.txt": b"beta", "top/b.bin": bytes(range(256)) * 100}


@pytest.fixture(params=["folder", "tar", "tar.gz", "tar.xz", "tar.bz2", "zip"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    kind = request.param
    if kind == "folder":
        return as_folder(tmp_path / "data", FILES)
    # The name says nothing, so the kind must be told by content.
    path = tmp_path / "data.bin"
    return as_zip(path, FILES) if kind == "zip" else as_tar(path, FILES, f"w:{kind[4:]}")


def test_every_kind_gives_the_same_members(uri: str) -> None:
    with open_archive(uri) as archive:
        assert archive.names() == sorted(FILES)
        assert {name: archive.read(name) for name in archive.names()} == FILES
        assert archive.find("a.txt") == "top/a.txt"
        assert archive.find("c.txt") is None
        with pytest.raises(KeyError):
            archive.read("top/c.txt")


def test_a_missing_archive_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.zip does not exist"), open_archive(str(tmp_path / "gone.zip")):
        pass


def test_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("hello")
    with pytest.raises(DataError, match=r"x\.txt is neither"), open_archive(str(tmp_path / "x.txt")):
        pass


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "zip"])
@pytest.mark.parametrize("keep", [0.3, 0.97])
def test_a_cut_archive_is_damaged(tmp_path: Path, kind: str, keep: float) -> None:
    noise = {f"{i}.bin": os.urandom(4096) for i in range(8)}
    path = tmp_path / f"x.{kind}"
    as_zip(path, noise) if kind == "zip" else as_tar(path, noise, f"w:{kind[4:]}")
    # A plain tar ends with padding that it can lose: cut inside its members.
    whole = path.read_bytes()[: 8 * 4608] if kind == "tar" else path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * keep)])
    with pytest.raises(DataError, match="damaged"), open_archive(str(path)):
        pass


def test_a_flipped_byte_is_damaged(tmp_path: Path) -> None:
    path = Path(as_tar(tmp_path / "x.tar.gz", {"a": os.urandom(5000)}))
    data = bytearray(path.read_bytes())
    data[2500] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(DataError, match="damaged"), open_archive(str(path)):
        pass


def test_a_damaged_zip_member_is_found_when_read(tmp_path: Path) -> None:
    path = Path(as_zip(tmp_path / "x.zip", {"a.txt": b"payload" * 50}))
    path.write_bytes(path.read_bytes().replace(b"payload", b"qayload", 1))
    with open_archive(str(path)) as archive, pytest.raises(DataError, match="damaged"):
        archive.read("a.txt")


@pytest.mark.parametrize("name", ["../evil.txt", "/etc/evil.txt", "a/../../evil.txt"])
@pytest.mark.parametrize("pack", [as_tar, as_zip])
def test_members_that_point_outside_do_not_exist(tmp_path: Path, name: str, pack: object) -> None:
    uri = pack(tmp_path / "x.bin", {name: b"x", "good.txt": b"y"})  # type: ignore[operator]
    with open_archive(uri) as archive:
        assert archive.names() == ["good.txt"]
        for asked in (name, "evil.txt"):
            with pytest.raises(KeyError):
                archive.read(asked)
    assert not (tmp_path.parent / "evil.txt").exists()


def test_a_folder_does_not_lead_outside(tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("secret")
    uri = as_folder(tmp_path / "data", {"a.txt": b"a"})
    (tmp_path / "data" / "link.txt").symlink_to(tmp_path / "secret.txt")
    with open_archive(uri) as archive:
        with pytest.raises(KeyError):
            archive.read("link.txt")
        with pytest.raises(KeyError):
            archive.read("../secret.txt")


def test_resolve() -> None:
    assert resolve("data", "./img/a.png") == "data/img/a.png"
    assert resolve("data", "../img/a.png") == "img/a.png"
    assert resolve("", "../a.png") is None
    assert resolve("data", "/etc/passwd") is None
    assert resolve("data", "..") == "."


def nested(folder: Path) -> str:
    inner = {name: Path(as_zip(folder.parent / name, files)).read_bytes() for name, files in ZIPS.items()}
    return as_folder(folder, {"a.txt": b"a", "images/plain.txt": b"p", "deep/er/z.zip": b"no zip", **{
        f"images/{name}" if name == "in.zip" else name: data for name, data in inner.items()
    }})  # fmt: skip


ZIPS: dict[str, Files] = {"top.zip": {"images/one.txt": b"1"}, "in.zip": {"two.txt": b"2", "x/three.txt": b"3"}}
INSIDE = {"images/one.txt": b"1", "images/two.txt": b"2", "images/x/three.txt": b"3"}


@pytest.mark.parametrize("place", ["local", "s3"])
def test_zips_in_a_folder_are_part_of_it(tmp_path: Path, place: str, s3_bucket: str) -> None:
    uri = nested(tmp_path / "data [1]")
    if place == "s3":
        storage.upload(tmp_path / "data [1]", uri := f"{s3_bucket}/data [1]")
    with open_archive(uri) as archive:
        assert set(archive.names()) == {
            *INSIDE,
            "a.txt",
            "images/plain.txt",
            "deep/er/z.zip",
            "top.zip",
            "images/in.zip",
        }
        for name, data in INSIDE.items():
            assert archive.read(name) == data
            with archive.open(name) as file:
                assert file.read() == data
        assert archive.find("two.txt") == "images/two.txt" and archive.find_folder("x") == "images/x"
        located = {name: archive.located(name) for name in (*INSIDE, "a.txt", "gone.txt")}
    assert located["images/x/three.txt"] == Inner("images/in.zip", "x/three.txt")
    assert (located["a.txt"], located["gone.txt"]) == ("a.txt", "gone.txt")
    # What was located is read without looking for zips again.
    with open_archive(uri) as archive:
        for name, data in INSIDE.items():
            assert read_image(archive, located[name]) == data
        assert read_image(archive, "a.txt") == b"a"
        missing = read_image(archive, "gone.txt")
        assert isinstance(missing, Drop) and missing.reason == MISSING_IMAGE


def test_a_damaged_zip_in_a_folder_is_named(tmp_path: Path) -> None:
    uri = as_folder(tmp_path / "data", {"a.txt": b"a", "images/x.zip": b"PK not really"})
    with open_archive(uri) as archive, pytest.raises(DataError, match=r"images/x\.zip is damaged"):
        archive.names()
