from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import stat
import tarfile
import tempfile
import tracemalloc
import zipfile
from pathlib import Path

import pytest
import s3fs

from amvl_core.contracts import storage
from amvl_core.contracts.errors import DataError, StorageError
from data_prep.filters import MISSING_IMAGE, UNREADABLE_IMAGE, Drop
from data_prep.sources import archive_members
from data_prep.sources.archive import open_archive
from data_prep.sources.archive_members import ByteRange, DamagedMemberError, DeadLinkError, Inner, resolve, with_links
from data_prep.sources.jsonfiles import json_lines
from data_prep.sources.raw_row import read_image
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
        assert archive.only("b.bin") == "top/b.bin"
        assert archive.only("c.txt") is None
        with pytest.raises(DataError, match=r"holds top/a\.txt, top/deep/a\.txt, and only one of them"):
            archive.only("a.txt")
        with pytest.raises(KeyError):
            archive.read("top/c.txt")


def test_a_missing_archive_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.zip does not exist"), open_archive(str(tmp_path / "gone.zip")):
        pass


def test_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("hello")
    with pytest.raises(DataError, match=r"x\.txt is one file and neither"), open_archive(str(tmp_path / "x.txt")):
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


@pytest.mark.parametrize("kind", ["tar.gz", "tar in a folder"])
@pytest.mark.parametrize("damage", ["a wrong header", "cut in a header", "cut behind a member", "a hole", "two"])
def test_a_tar_that_does_not_end_where_it_says_is_damaged(tmp_path: Path, kind: str, damage: str) -> None:
    """Python's tarfile takes each of these for the end, and the members behind it would be lost unseen."""
    (tmp_path / "x").mkdir()
    path = Path(as_tar(tmp_path / "x" / "x.tar", {f"{i}.txt": b"x" * 100 for i in range(10)}, "w"))
    whole, half = path.read_bytes(), 5 * 1024
    data = {
        "a wrong header": whole[:half] + b"\xff" + whole[half + 1 :],
        "cut in a header": whole[: half + 100],
        "cut behind a member": whole[:half],
        "a hole": whole[:half] + bytes(1024) + whole[half + 1024 :],
        "two": whole[:half] + bytes(30 * 1024) + whole,
    }[damage]
    path.write_bytes(data if kind == "tar in a folder" else gzip.compress(data))
    where = path.parent if kind == "tar in a folder" else path
    named = pytest.raises(DataError, match=r"x\.tar is damaged or incomplete .*at byte 5,120")
    with named, open_archive(str(where)) as archive:
        archive.names()


@pytest.mark.parametrize("pack", ["tar.bz2", "tar.xz"])
def test_a_tar_whose_second_compressed_stream_is_damaged(tmp_path: Path, pack: str) -> None:
    compress = bz2.compress if pack == "tar.bz2" else lzma.compress
    whole = Path(as_tar(tmp_path / "x.tar", {"a": b"a" * 512}, "w")).read_bytes()
    (tmp_path / "x.tar").write_bytes(compress(whole) + compress(whole)[:3] + b"damaged")
    with pytest.raises(DataError, match="damaged"), open_archive(str(tmp_path / "x.tar")):
        pass


BIG: Files = {"a.bin": bytes(2000), "b.bin": bytes(2001), "x.jsonl": b'{"a": 1}\n' * 500}


@pytest.mark.parametrize("kind", ["zip", "tar.gz", "zip in a folder", "tar in a folder"])
def test_a_member_that_is_too_large_to_be_read_whole_is_a_drop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Rows are streamed, and may be of any size."""
    monkeypatch.setattr(archive_members, "MAX_MEMBER_BYTES", 2000)
    (tmp_path / "x").mkdir()
    path = tmp_path / "x" / f"x.{kind[:3]}"
    if kind.startswith("zip"):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
            for name, data in BIG.items():
                packed.writestr(name, data)
    else:
        as_tar(path, BIG, "w:gz" if kind == "tar.gz" else "w")
    with open_archive(str(path.parent if "folder" in kind else path)) as archive:
        assert read_image(archive, archive.located("a.bin")) == archive.read("a.bin") == bytes(2000)
        found = read_image(archive, archive.located("b.bin"))
        with pytest.raises(DamagedMemberError, match=r"b\.bin has 2,001 bytes; at most 2,000 of one member"):
            archive.read("b.bin")
        assert len(list(json_lines(archive, "x.jsonl"))) == 500
    assert isinstance(found, Drop) and found.reason == UNREADABLE_IMAGE and "at most 2,000" in found.detail


def test_a_zip_whose_member_is_larger_than_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive_members, "MAX_MEMBER_BYTES", 100)
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("a.bin", bytes(50_000_000))
    data = (tmp_path / "x.zip").read_bytes().replace((50_000_000).to_bytes(4, "little"), (100).to_bytes(4, "little"))
    (tmp_path / "x.zip").write_bytes(data)
    with open_archive(str(tmp_path / "x.zip")) as archive:
        tracemalloc.start()
        with pytest.raises(DamagedMemberError, match="Bad CRC"):
            archive.read("a.bin")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 10**6, peak


@pytest.mark.parametrize("kind", ["tar.gz", "tar in a folder"])
def test_a_sparse_member_of_a_tar_is_a_drop(tmp_path: Path, kind: str) -> None:
    """A few bytes of a tar say that it is 50 MB large: such a member would fill the disk that tars are unpacked to."""
    (tmp_path / "x").mkdir()
    path = tmp_path / "x" / "x.tar"
    with tarfile.open(path, "w:gz" if kind == "tar.gz" else "w", format=tarfile.PAX_FORMAT) as tar:
        info, data = tarfile.TarInfo("GNUSparseFile.0/a.bin"), b"1\n0\n512\n".ljust(512, b"\0") + b"x" * 512
        info.size = len(data)
        info.pax_headers = {"major": "1", "minor": "0", "name": "a.bin", "realsize": str(50 * 10**6)}
        info.pax_headers = {f"GNU.sparse.{name}": value for name, value in info.pax_headers.items()}
        tar.addfile(info, io.BytesIO(data))
        info = tarfile.TarInfo("b.bin")
        info.size = 1
        tar.addfile(info, io.BytesIO(b"b"))
    where = path.parent if kind == "tar in a folder" else path
    with open_archive(str(where)) as archive:
        located = {name: archive.located(name) for name in ("a.bin", "b.bin")}
        for read in (archive.read, archive.open):
            with pytest.raises(DamagedMemberError, match=r"x\.tar/a\.bin is a sparse file; pack it without --sparse"):
                read("a.bin")
        if kind == "tar.gz":
            assert archive._spool.seek(0, io.SEEK_END) == 1  # type: ignore[attr-defined]
            found = {name: read_image(archive, place) for name, place in located.items()}
    if kind == "tar in a folder":  # as a task does, which has listed nothing
        with open_archive(str(where)) as archive:
            found = {name: read_image(archive, place) for name, place in located.items()}
    assert isinstance(drop := found.pop("a.bin"), Drop) and "sparse" in drop.detail and found == {"b.bin": b"b"}


def test_a_link_in_a_zip_is_no_longer_than_a_path(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as packed:
        packed.writestr("a.txt", b"a")
        for name, times in (("short.txt", 10), ("long.txt", 1000)):
            info = zipfile.ZipInfo(name)
            info.external_attr = (stat.S_IFLNK | 0o777) << 16
            packed.writestr(info, "a.txt/../" * times + "a.txt")
    with open_archive(str(tmp_path / "x.zip")) as archive:
        assert archive.names() == ["a.txt", "short.txt"] and archive.read("short.txt") == b"a"


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_a_disk_that_is_full_is_not_called_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    files = {"x.parquet": bytes(10_000)}
    path = as_zip(tmp_path / "x", files) if kind == "zip" else as_tar(tmp_path / "x", files)
    full = open("/dev/full", "r+b", buffering=0)  # noqa: SIM115  closed by who spools
    monkeypatch.setattr(tempfile, "SpooledTemporaryFile", lambda size: full)
    with (
        pytest.raises(StorageError, match=r"cannot unpack .*x to .* \(TMPDIR\): No space"),
        open_archive(path) as archive,
    ):
        archive.open("x.parquet")


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


def test_a_path_does_not_lead_out_of_a_folder_but_a_link_may(tmp_path: Path) -> None:
    (tmp_path / "other.txt").write_text("other")
    uri = as_folder(tmp_path / "data", {"a.txt": b"a"})
    (tmp_path / "data" / "link.txt").symlink_to(tmp_path / "other.txt")
    with open_archive(uri) as archive:
        assert archive.read("link.txt") == b"other"
        with pytest.raises(KeyError):
            archive.read("../other.txt")


@pytest.mark.parametrize("name", ["gone", "gone/a.txt", "self"])
def test_a_link_that_leads_nowhere_is_named(tmp_path: Path, name: str) -> None:
    uri = as_folder(tmp_path / "data", {"a.txt": b"a"})
    (tmp_path / "data" / "gone").symlink_to("../nothing")
    (tmp_path / "data" / "self").symlink_to("self")
    with open_archive(uri) as archive:
        assert archive.names() == ["a.txt", "gone", "self"]
        for read in (archive.open, archive.read):
            with pytest.raises(
                DeadLinkError, match=r"data/(gone is a link to \.\./nothing|self is a link to self), which"
            ):
                read(name)


def test_a_folder_that_is_linked_inside_of_itself_is_listed_once(tmp_path: Path) -> None:
    uri = as_folder(tmp_path / "data", {"a/b/c.txt": b"c"})
    (tmp_path / "data/a/b/up").symlink_to("../..")
    (tmp_path / "data/again").symlink_to("a/b")
    with open_archive(uri) as archive:
        assert archive.names() == ["a/b/c.txt", "again/c.txt"]


JUNK: Files = dict.fromkeys(
    [".DS_Store", "a/._x.txt", "__MACOSX/a/x.txt", "a/Thumbs.db", ".git/config", "a/.ipynb_checkpoints/x.txt"], b"junk"
)


@pytest.mark.parametrize("kind", ["folder", "tar", "zip", "tar in a folder", "s3"])
def test_hidden_files_are_no_members(tmp_path: Path, s3_bucket: str, kind: str) -> None:
    files = {"a/x.txt": b"x", **JUNK}
    uri = as_folder(tmp_path / "data", files)
    if kind == "s3":
        storage.upload(tmp_path / "data", uri := f"{s3_bucket}/hidden")
    elif kind != "folder":
        pack = as_zip if kind == "zip" else as_tar
        uri = pack(tmp_path / "x.bin", files)
    if kind == "tar in a folder":
        (tmp_path / "set").mkdir()
        uri = str(Path(as_tar(tmp_path / "set" / "x.tar", files, "w")).parent)
    with open_archive(uri) as archive:
        assert set(archive.names()) - {"x.tar"} == {"a/x.txt"}
        with pytest.raises(KeyError):
            archive.read("a/Thumbs.db")


def test_a_compressed_name_is_found_beside_the_plain_one(tmp_path: Path) -> None:
    with open_archive(as_folder(tmp_path / "x", {"d/train.jsonl.gz": b""})) as archive:
        assert archive.only("train.jsonl") == "d/train.jsonl.gz"
    both = pytest.raises(DataError, match=r"holds train\.jsonl, d/train\.jsonl\.gz, and only one")
    with open_archive(as_folder(tmp_path / "x", {"train.jsonl": b""})) as archive, both:
        archive.only("train.jsonl")


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
        assert archive.only("two.txt") == "images/two.txt" and archive.find_folder("x") == "images/x"
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


@pytest.mark.parametrize("kind", ["loose", "two zips", "a tar"])
def test_a_file_that_is_in_two_places_is_not_read_from_either(tmp_path: Path, kind: str) -> None:
    files = {"train.jsonl": b"old", "readme.txt": b"r", "own.txt": b"o"}
    (tmp_path / "x").mkdir()
    as_tar(tmp_path / "x/data.tar", files, "w") if kind == "a tar" else as_zip(tmp_path / "x/data.zip", files)
    twice = {"train.jsonl": b"new", "readme.txt": b"r"}
    as_zip(tmp_path / "x/more.zip", twice) if kind == "two zips" else as_folder(tmp_path / "x", twice)
    places = {"loose": "data.zip and beside it", "two zips": "data.zip and more.zip", "a tar": "data.tar and beside it"}
    with open_archive(str(tmp_path / "x")) as archive:
        for read in (archive.located, archive.read, archive.open):
            with pytest.raises(DataError, match=rf"x: train\.jsonl is in {places[kind]}.*; remove one"):
                read("train.jsonl")
        assert archive.only("own.txt") == "own.txt" and archive.read("own.txt") == b"o"


def test_a_damaged_zip_in_a_folder_is_named(tmp_path: Path) -> None:
    uri = as_folder(tmp_path / "data", {"a.txt": b"a", "images/x.zip": b"PK not really"})
    with open_archive(uri) as archive, pytest.raises(DataError, match=r"images/x\.zip is damaged"):
        archive.names()


TARRED: Files = {
    f"cot/{name}.bin": os.urandom(size) for name, size in (("a", 0), ("b", 5000), ("c", 100), ("d", 30_000))
}


def in_pieces(folder: Path, names: list[str], files: Files = TARRED) -> str:
    """A tar cut into as many equal pieces, wherever that falls."""
    whole = Path(as_tar(folder.parent / "whole.tar", files, "w")).read_bytes()
    size = -(-len(whole) // len(names))
    return as_folder(folder, {name: whole[i * size : (i + 1) * size] for i, name in enumerate(names)})


PIECES = {
    "a tar": ["images.tar"],
    "numbers": [f"split/cot_images_{i:02d}" for i in range(13)],
    "parts": [f"images.tar.part-{i:03d}" for i in range(3)],
    "from one": [f"images.tar.part-{i:03d}" for i in range(1, 4)],
    "letters": [f"split/images.tar.a{letter}" for letter in "abcdefg"],
}


@pytest.mark.parametrize("kind", PIECES)
@pytest.mark.parametrize("place", ["local", "s3"])
def test_a_tar_in_a_folder_is_part_of_it_also_in_pieces(tmp_path: Path, s3_bucket: str, kind: str, place: str) -> None:
    uri = in_pieces(tmp_path / "data", PIECES[kind])
    as_folder(tmp_path / "data", {"a.txt": b"a", "split/plain_00": b"no tar", "split/img_07": b"x"})
    if place == "s3":
        storage.upload(tmp_path / "data", uri := f"{s3_bucket}/pieces/{kind}")
    base = PIECES[kind][0].rpartition("/")[0]
    inside = {f"{base}/{name}".lstrip("/"): data for name, data in TARRED.items()}
    with open_archive(uri) as archive:
        assert set(archive.names()) == {*inside, *PIECES[kind], "a.txt", "split/plain_00", "split/img_07"}
        for name, data in inside.items():
            assert archive.read(name) == data
            with archive.open(name) as file:
                assert file.read() == data
        assert archive.find_folder("cot") == f"{base}/cot".lstrip("/")
        located = {name: archive.located(name) for name in (*inside, "a.txt", "gone.txt")}
    assert all(isinstance(located[name], ByteRange) for name in inside)
    assert (located["a.txt"], located["gone.txt"]) == ("a.txt", "gone.txt")
    with open_archive(uri) as archive:  # as a task does: nothing is listed
        for name, data in inside.items():
            assert read_image(archive, located[name]) == data


def test_a_tar_in_a_folder_reads_headers_only_to_find_its_members(tmp_path: Path) -> None:
    in_pieces(tmp_path / "data", ["x.tar"], {f"{i}.bin": bytes(10**6) for i in range(8)})
    with open_archive(str(tmp_path / "data")) as archive:
        tar = archive.inner("x.tar")
        read = 0

        class Counting(io.BufferedReader):
            def read(self, size: int | None = -1, /) -> bytes:
                nonlocal read
                data = super().read(size)
                read += len(data)
                return data

        with open(tmp_path / "data" / "x.tar", "rb", buffering=0) as file:
            tar._file = Counting(file)  # type: ignore[attr-defined]
            assert len(tar.names()) == 8 and read < 10**5


def test_a_piece_that_is_missing_is_named(tmp_path: Path) -> None:
    uri = in_pieces(tmp_path / "data", PIECES["numbers"])
    (tmp_path / "data/split/cot_images_05").unlink()
    with open_archive(uri) as archive, pytest.raises(DataError, match=r"lacks split/cot_images_05, a piece"):
        archive.names()
    in_pieces(tmp_path / "data", PIECES["numbers"])
    (tmp_path / "data/split/cot_images_12").unlink()
    (tmp_path / "data/split/cot_images_11").unlink()
    with open_archive(uri) as archive, pytest.raises(DataError, match="damaged or incomplete"):
        archive.names()


@pytest.mark.parametrize(
    ("kind", "gone", "missing"),
    [
        ("parts", 1, "images.tar.part-000"),
        ("letters", 1, "split/images.tar.aa"),
        ("letters", 2, "split/images.tar.aa"),
        ("published", 1, "cot_images_tar_split/cot_images_00"),
        ("published", 3, "cot_images_tar_split/cot_images_00"),
    ],
)
def test_the_first_piece_of_a_tar_is_missed_by_the_name_of_the_others(
    tmp_path: Path, kind: str, gone: int, missing: str
) -> None:
    published = [f"cot_images_tar_split/cot_images_{i:02d}" for i in range(5)]
    names = published if kind == "published" else PIECES[kind]
    uri = in_pieces(tmp_path / "data", names, {"a.bin": bytes(50_000)})
    for name in names[:gone]:
        (tmp_path / "data" / name).unlink()
    with open_archive(uri) as archive, pytest.raises(DataError, match=rf"lacks {missing}, the first piece of a tar"):
        archive.names()


def test_names_that_only_look_like_pieces_of_a_tar_are_files(tmp_path: Path) -> None:
    names = ["x.tar.gz", "x.tar.xz", "y.tar.gz.01", "img_02", "a_tar_b/notes.md", "z.tar.00", "z.tar.01"]
    with open_archive(as_folder(tmp_path / "data", dict.fromkeys(names, b"x"))) as archive:
        assert archive.names() == sorted(names)


def test_members_of_a_tar_in_a_folder_that_point_outside_do_not_exist(tmp_path: Path) -> None:
    files = {"../evil.bin": b"x", "/etc/evil.bin": b"x", "good.bin": b"y"}
    with open_archive(in_pieces(tmp_path / "data", ["x.tar"], files)) as archive:
        assert archive.names() == ["good.bin", "x.tar"]


def test_a_member_that_was_cut_since_it_was_located_is_a_drop(tmp_path: Path) -> None:
    uri = in_pieces(tmp_path / "data", ["x.tar"])
    with open_archive(uri) as archive:
        located = archive.located("cot/d.bin")
    os.truncate(tmp_path / "data/x.tar", 20_000)
    with open_archive(uri) as archive:
        found = read_image(archive, located)
    assert isinstance(found, Drop) and found.reason == "unreadable_image" and "is cut after" in found.detail


LINKS = {
    "set/two.txt": "one.txt", "set/three.txt": "two.txt", "set/all": "../other", "set/in": "all/deep",
    "set/loop": ".", "set/up": "..", "out.txt": "/etc/passwd", "out2.txt": "../x", "set/gone": "nothing",
    "shown.txt": "set/.hidden.txt",
}  # fmt: skip


def linked_tar(path: Path, mode: str) -> str:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, target in LINKS.items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            tar.addfile(info)
        for name, data in LINKED.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        info = tarfile.TarInfo("hard.txt")
        info.type, info.linkname = tarfile.LNKTYPE, "set/one.txt"
        tar.addfile(info)
    return str(path)


def linked_zip(path: Path) -> str:
    with zipfile.ZipFile(path, "w") as archive:
        for name, target in {**LINKS, "hard.txt": "set/one.txt"}.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(info, target)
        for name, data in LINKED.items():
            archive.writestr(name, data)
    return str(path)


LINKED: Files = {"set/one.txt": b"1", "other/deep/x.txt": b"x", "set/.hidden.txt": b"h"}


@pytest.mark.parametrize("kind", ["tar.gz", "zip", "tar in a folder"])
def test_links_in_an_archive_lead_inside_of_it(tmp_path: Path, kind: str) -> None:
    if kind == "zip":
        uri = linked_zip(tmp_path / "x.zip")
    else:
        uri = linked_tar(tmp_path / "x.tar", "w:gz" if kind == "tar.gz" else "w")
    with open_archive(str(tmp_path) if kind == "tar in a folder" else uri) as archive:
        found = {name: archive.read(name) for name in archive.names() if name != "x.tar"}
    ones = dict.fromkeys(["set/one.txt", "set/two.txt", "set/three.txt", "hard.txt"], b"1")
    xs = dict.fromkeys(["other/deep/x.txt", "set/all/deep/x.txt", "set/in/x.txt"], b"x")
    assert found == {**ones, **xs, "shown.txt": b"h"}


def test_links_in_an_archive_that_lead_in_circles_end(tmp_path: Path) -> None:
    links = {f"{a}/to-{b}": f"../{b}" for a in "abcdefgh" for b in "abcdefgh" if a != b}
    with pytest.raises(DataError, match="links lead in circles"):
        with_links("x", {f"{a}/file": 1 for a in "abcdefgh"}, {name: to[3:] for name, to in links.items()})


def test_backslashes_in_a_zip_are_folders(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "y.zip", "w") as archive:
        for name in ("img!", "img!1.png", "..!evil.txt"):
            archive.writestr(name, b"x")
    data = (tmp_path / "y.zip").read_bytes().replace(b"img!", b"img\\").replace(b"..!", b"..\\")
    (tmp_path / "y.zip").write_bytes(data)
    with open_archive(str(tmp_path / "y.zip")) as archive:
        assert archive.names() == ["img/1.png"] and archive.read("img/1.png") == b"x"
    assert resolve("data", "img\\1.png") == "data/img/1.png" and resolve("", "..\\x") is None


@pytest.mark.parametrize("text", [b'{"a": 1}\n', b'{"a": 1}\n' * 500, b""])
def test_one_compressed_file_is_not_called_damaged(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(text))
    named = pytest.raises(DataError, match=r"x\.jsonl\.gz is one compressed file and neither")
    with named, open_archive(str(tmp_path / "x.jsonl.gz")):
        pass


@pytest.mark.parametrize(
    ("at", "bytes_", "said"), [(46, b"\xff\xff", "UnicodeDecodeError"), (6, b"\xff", "zip file version 25.5")]
)
def test_a_zip_whose_directory_is_damaged(tmp_path: Path, at: int, bytes_: bytes, said: str) -> None:
    path = Path(as_zip(tmp_path / "x.zip", {"ä.txt": b"a"}))
    data = bytearray(path.read_bytes())
    start = data.index(b"PK\x01\x02") + at
    data[start : start + len(bytes_)] = bytes_
    path.write_bytes(data)
    with pytest.raises(DataError, match=rf"damaged or incomplete .*{said}"), open_archive(str(path)):
        pass


def test_a_zip_whose_member_has_another_name_is_damaged_there(tmp_path: Path) -> None:
    path = Path(as_zip(tmp_path / "x.zip", {"ä.txt": b"a", "b.txt": b"b"}))
    path.write_bytes(path.read_bytes().replace("ä".encode(), b"\xff\xff", 1))
    with open_archive(str(path)) as archive:
        assert archive.read("b.txt") == b"b"
        for read in (archive.read, archive.open):
            with pytest.raises(DamagedMemberError, match="UnicodeDecodeError"):
                read("ä.txt")


@pytest.mark.parametrize("uri", ["s3://bucket/x", "s3://bucket"])
def test_a_store_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch, uri: str) -> None:
    away = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    for name, value in {**away, "AWS_MAX_ATTEMPTS": "1"}.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    try:
        with pytest.raises(StorageError, match=f"cannot reach {uri}: Could not connect"), open_archive(uri):
            pass
    finally:
        s3fs.S3FileSystem.clear_instance_cache()
