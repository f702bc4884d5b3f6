from __future__ import annotations

import bz2
import gzip
import json
import lzma
import re
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amvl_core.contracts.errors import DataError
from data_prep.filters import MALFORMED_ROW, Drop
from data_prep.sources import jsonfiles
from data_prep.sources.archive import open_archive
from data_prep.sources.jsonfiles import is_list, json_items, json_lines, json_values
from tests.data_prep.archives import as_folder, as_zip


def values(folder: Path, data: bytes, read: Any = json_items) -> list[Any]:
    with open_archive(as_folder(folder, {"x.json": data})) as archive:
        return [value for _, value in read(archive, "x.json")]


PACKERS: tuple[Callable[[bytes], bytes], ...] = (gzip.compress, bz2.compress, lzma.compress)


def shown(found: list[Any]) -> list[Any]:
    return [value.reason if isinstance(value, Drop) else value for value in found]


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(st.lists(plain, max_size=6), st.sampled_from([None, 2]), st.booleans(), st.integers(1, 40))
def test_a_list_is_what_json_reads(items: list[Any], indent: int | None, ascii_: bool, chunk: int) -> None:
    data = json.dumps(items, indent=indent, ensure_ascii=ascii_).encode("utf-8", "surrogatepass")
    with pytest.MonkeyPatch.context() as patch, TemporaryDirectory() as folder:
        patch.setattr(jsonfiles, "CHUNK_BYTES", chunk)
        assert values(Path(folder), data) == items


@pytest.mark.parametrize("chunk", [1, 7, 2**20])
@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b'[{"a": "\xff"}, {"a": 2}]', [MALFORMED_ROW, {"a": 2}]),
        (b'[{"a": "\\ud800"}, {"a": 2}]', [MALFORMED_ROW, {"a": 2}]),
        (b'[{"a": "\\ud83d\\ude00"}]', [{"a": "\U0001f600"}]),
        # JSON, but more than is read: where it ends is seen by its brackets.
        (b'[{"id": ' + b"1" * 5001 + b', "b": "]}"}, 2]', [MALFORMED_ROW, 2]),
        (b"[" + b"1" * 5001 + b", 2]", [MALFORMED_ROW, 2]),
        (b'[{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b'}, 2, "a]"]', [MALFORMED_ROW, 2, "a]"]),
        ('[{"a": "ü"}, 2]'.encode("utf-16"), [{"a": "ü"}, 2]),
        ('[{"a": "ü"}, 2]'.encode("utf-32-le"), [{"a": "ü"}, 2]),
        (gzip.compress(b'[{"a": 1}, 2]', mtime=0), [{"a": 1}, 2]),
        (b'\xef\xbb\xbf[{"a": 1}]', [{"a": 1}]),
        (b" [ ] ", []),
    ],
)
def test_an_item_that_is_no_text_is_one_drop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes, expected: list[Any], chunk: int
) -> None:
    monkeypatch.setattr(jsonfiles, "CHUNK_BYTES", chunk)
    assert shown(values(tmp_path, data)) == expected


@pytest.mark.parametrize("chunk", [1, 7, 2**20])
@pytest.mark.parametrize(
    ("data", "item"),
    [
        (b'[{"a": 1}, {"a": 2}, {"a"', 3),  # cut
        (b'[{"a": 1}, {"a": 2}', 3),  # cut between items
        (b'[{"a": 1}, {bad}, {"a": 2}]', 2),  # nothing says where the next one begins
        (b"", 1),
    ],
)
def test_a_list_that_breaks_off_is_refused_like_an_archive_that_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes, item: int, chunk: int
) -> None:
    monkeypatch.setattr(jsonfiles, "CHUNK_BYTES", chunk)
    with pytest.raises(
        DataError, match=f"is cut or damaged: item number {item} is not valid JSON .* nothing behind it can"
    ):
        values(tmp_path, data)


def test_lines(tmp_path: Path) -> None:
    deep = b"[" * 100_000
    lines = [b'{"a": 1}', b"", b'{"a": "\xff"}', b'{"a"', b'{"a": "\\ud800"}', deep, b"9" * 5000, '{"a": "ü"}'.encode()]
    found = values(tmp_path, b"\n".join(lines), json_lines)
    assert shown(found) == [{"a": 1}, *[MALFORMED_ROW] * 5, {"a": "ü"}]


ROW = {"messages": [], "a": "ü"}
LINES = "\n".join([json.dumps(ROW, ensure_ascii=False)] * 3)


@pytest.mark.parametrize(
    "data",
    [
        LINES.encode("utf-8-sig"),
        LINES.replace("\n", "\r\n").encode(),
        LINES.replace("\n", "\r").encode(),
        LINES.replace("\n", "\n\ufeff").encode(),  # files that were joined
        LINES.encode("utf-16"),
        LINES.encode("utf-16-be"),
        gzip.compress(LINES.encode(), mtime=0),
        bz2.compress(LINES.encode()),
        lzma.compress(LINES.encode("utf-16")),
    ],
)
def test_lines_in_any_encoding(tmp_path: Path, data: bytes) -> None:
    assert values(tmp_path, data, json_lines) == [ROW] * 3


@pytest.mark.parametrize("name", ["x.json", "x.jsonl", "x.jsonl.gz"])
def test_lines_and_lists_are_told_apart_by_content(tmp_path: Path, name: str) -> None:
    pretty = json.dumps([ROW, ROW], indent=1).encode()
    for number, (data, kind) in enumerate([(LINES.encode(), "line"), (pretty, "item"), (b" " + pretty, "item")]):
        with open_archive(as_folder(tmp_path / str(number), {name: data})) as archive:
            found = list(json_values(archive, name))
        assert found == [(kind, place, ROW) for place in range(1, len(found) + 1)] and len(found) >= 2


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"a": 1,}', r"a comma before }, at character 9: {\"a\": 1, >>> }"),
        (b'{"a": 1},', "a comma behind the value, at character 9"),
        (b'{"a": 1} {"b": 2}', "it goes on behind the value, at character 10"),
        (b"{'a': 1}", "texts stand in double quotes"),
        (b'{"a": ' + b"7" * 5001 + b"}", "an integer of 5,001 digits, at most 4,300 are read"),
        (b'{"a": "\xb0\xa1"}', "byte 0xb0 at character 8 is no UTF-8; save the file as UTF-8"),
        (b"[" * 100_000, "it is nested too deeply"),
    ],
)
def test_what_is_wrong_with_a_line_is_said(tmp_path: Path, line: bytes, said: str) -> None:
    drop, good = values(tmp_path, line + b"\n1", json_lines)
    assert good == 1 and re.search(said, drop.detail) and len(drop.detail) <= 300


def test_a_second_list_is_not_passed_over(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="goes on behind the end of its list"):
        values(tmp_path, b'[{"a": 1}]\n[{"a": 2}]')


def test_lines_keep_their_numbers(tmp_path: Path) -> None:
    with open_archive(as_folder(tmp_path, {"x": b"\n1\n\n\xff\n2"})) as archive:
        assert [number for number, _ in json_lines(archive, "x")] == [2, 4, 5]


MANY = b"".join(b'{"number": %d}\n' % i for i in range(20_000))
CUT = {
    **{kind: (f"x.jsonl.{kind}", pack(MANY)[:-9]) for kind, pack in zip(("gz", "bz2", "xz"), PACKERS, strict=True)},
    "gz whose checksum is wrong": ("x.jsonl.gz", gzip.compress(MANY)[:-8] + bytes(8)),
    "gz with something behind it": ("x.jsonl.gz", gzip.compress(MANY) + b"more"),
    "utf-16": ("x.jsonl", MANY.decode().encode("utf-16")[:-1]),
    # As pbzip2 writes it: stream behind stream. Python takes one that is damaged for the end.
    "the second of two bz2": ("x.jsonl.bz2", bz2.compress(MANY) + b"BZh9" + bytes(9) + bz2.compress(MANY)),
    "the second of two xz": ("x.jsonl.xz", lzma.compress(MANY) + b"\xfd7zXY" + lzma.compress(MANY)),
}


@pytest.mark.parametrize("kind", CUT)
def test_lines_that_break_off_are_refused_like_a_list(tmp_path: Path, kind: str) -> None:
    """One drop would stand for all rows behind it."""
    name, data = CUT[kind]
    with (
        open_archive(as_folder(tmp_path / "x", {name: data})) as archive,
        pytest.raises(DataError, match=rf"x: {re.escape(name)} is cut or damaged: line number \d+ .* download it"),
    ):
        list(json_values(archive, name))


def test_streams_that_follow_each_other_are_one_file(tmp_path: Path) -> None:
    """Zeros between them are padding."""
    for pack in PACKERS:
        data = pack(b'{"a": 1}\n') + bytes(8) + pack(b'{"a": 2}\n') + bytes(4)
        assert values(tmp_path, data, json_lines) == [{"a": 1}, {"a": 2}]


def test_lines_in_a_damaged_member_of_a_zip_are_refused(tmp_path: Path) -> None:
    path = Path(as_zip(tmp_path / "x.zip", {"x.jsonl": MANY}))
    path.write_bytes(path.read_bytes().replace(b'"number": 19999', b'"number": 18888', 1))
    with open_archive(str(path)) as archive, pytest.raises(DataError, match=r"is cut or damaged: line number .* CRC"):
        list(json_lines(archive, "x.jsonl"))


def test_a_line_that_is_too_long_to_be_read_is_one_drop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonfiles, "MAX_ITEM_CHARS", 50)
    monkeypatch.setattr(jsonfiles, "CHUNK_BYTES", 7)
    lines = [b'"%s"' % (b"x" * length) for length in (48, 49, 48, 500)]
    long = "is longer than 50 characters"
    for end in (b"", b"\n"):
        first, second, third, last = values(tmp_path, gzip.compress(b"\r\n".join(lines) + end), json_lines)
        assert (first, third) == ("x" * 48, "x" * 48) and long in second.detail and long in last.detail


@pytest.mark.parametrize("read", [json_lines, json_items])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, read: Any) -> None:
    """Measured peaks: 0.04 MiB (lines) and 4.1 MiB (items, in chunks of 1 MiB) for a file of 22 MiB."""
    row = json.dumps({"text": "x" * 1000})
    data = ("\n".join([row] * 22_000) if read is json_lines else "[" + ",".join([row] * 22_000) + "]").encode()
    with open_archive(as_folder(tmp_path, {"x": data})) as archive:
        del data
        tracemalloc.start()
        assert sum(1 for _ in read(archive, "x")) == 22_000
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 6 * 2**20, peak


@pytest.mark.parametrize(
    ("content", "expected"),
    [(b" [1]", True), (b"\xef\xbb\xbf[", True), (b"", True), (b'{"a": [1]}', False), (b"x", False)],
)
def test_what_is_a_list(tmp_path: Path, content: bytes, expected: bool) -> None:
    with open_archive(as_folder(tmp_path / "x", {"a.json": content})) as archive:
        assert is_list(archive, "a.json") == expected


def test_a_damaged_file_is_not_passed_over_as_no_list(tmp_path: Path) -> None:
    path = Path(as_zip(tmp_path / "x.zip", {"a.json": b'{"payload": 1}'}))
    path.write_bytes(path.read_bytes().replace(b"payload", b"qayload", 1))
    with open_archive(str(path)) as archive:
        assert is_list(archive, "a.json")
