from __future__ import annotations

import io
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from amvl_core.contracts.errors import DataError
from data_prep.sources.table import Table
from tests.data_prep.archives import cell, parquet
from tests.data_prep.pictures import png

IMAGES = [png(200, 200, seed=i) for i in range(6)]
DATA = parquet(*[{"name": f"row {i}", "image": cell(IMAGES[i] if i != 3 else None)} for i in range(6)])


class Counting(io.BytesIO):
    """Counts the bytes that were read."""

    taken = 0

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        self.taken += len(data)
        return data


def test_listing_reads_no_image() -> None:
    file = Counting(DATA)
    table = Table("x", file)
    rows = list(table.rows(["name"], ["image"]))
    assert [(row.group, row.row) for row in rows] == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]
    assert [row.values for row in rows] == [{"name": f"row {i}"} for i in range(6)]
    assert [row.images == {"image"} for row in rows] == [True, True, True, False, True, True]
    # The last 64 KiB are read for the footer; one image has 117 KiB.
    assert file.taken < len(IMAGES[0]) < len(DATA) / 4


def test_images_are_read_group_by_group() -> None:
    file = Counting(DATA)
    table = Table("x", file)
    before = file.taken
    assert table.image(1, 0, "image") == IMAGES[2]
    assert table.image(1, 1, "image") is None
    assert file.taken - before < 2 * len(IMAGES[0])  # group 1 holds a single image
    assert table.image(0, 1, "image") == IMAGES[1]


def test_absent_columns_are_left_out() -> None:
    first = next(Table("x", io.BytesIO(DATA)).rows(["other"], ["reasoning_image_1"]))
    assert first.values == {} and not first.images


def test_an_image_with_neither_bytes_nor_a_path_is_null() -> None:
    """What Hugging Face makes of an empty text in an image column; an empty path with bytes is an image."""
    nothing, unnamed = {"bytes": None, "path": ""}, {"bytes": IMAGES[0], "path": ""}
    data = parquet({"image": nothing}, {"image": unnamed}, {"image": None}, {"image": cell(IMAGES[1])})
    rows = list(Table("x", io.BytesIO(data)).rows([], ["image"]))
    assert [bool(row.images) for row in rows] == [False, True, False, True]


def test_a_text_that_is_no_utf8_takes_its_own_row_only() -> None:
    buffer = io.BytesIO()
    texts = pa.array([b"a", b"\xff", b"c"], pa.binary())
    pq.write_table(pa.table({"text": texts.view(pa.string()), "number": [1, 2, 3]}), buffer)
    rows = list(Table("x", buffer).rows(["text", "number"]))
    assert [row.values for row in rows] == [{"text": "a", "number": 1}, None, {"text": "c", "number": 3}]


def test_a_cut_file_is_damaged(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"x\.parquet is damaged"):
        Table("x.parquet", io.BytesIO(DATA[:-100]))


def test_the_fixture_is_what_it_says() -> None:
    assert pq.ParquetFile(io.BytesIO(DATA)).num_row_groups == 3


@pytest.mark.parametrize("own", [True, False])
def test_every_row_of_a_damaged_row_group_is_counted(own: bool) -> None:
    column = pq.ParquetFile(io.BytesIO(DATA)).metadata.row_group(1).column(0)
    assert column.path_in_schema == "name"
    start, data = column.dictionary_page_offset, bytearray(DATA)
    data[start : start + column.total_compressed_size] = bytes(column.total_compressed_size)
    table = Table("x", io.BytesIO(data))
    rows = table.own_rows(["name"], []) if own else table.rows(["name"])
    assert [row.values is None for row in rows] == [False, False, True, True, False, False]


BYTES = IMAGES[0]


@pytest.mark.parametrize(
    ("column", "becomes"),
    [
        (pa.nulls(2), None),
        (pa.array([BYTES, None]), BYTES),
        (pa.array([BYTES, None], pa.large_binary()), BYTES),
        (pa.array([{"bytes": BYTES}, {"bytes": None}]), BYTES),
        (pa.array([{"bytes": BYTES}, None]), BYTES),
        (pa.array([{"bytes": BYTES, "path": None}, None]), BYTES),
        (pa.array(["a.png", None]), "image is string"),
        (pa.array([[BYTES], None]), "image is list"),
        (pa.array([{"bytes": "abc", "path": "a.png"}, None]), "image is struct<bytes: string>"),
        (pa.array([2**60, None], pa.timestamp("us")), "image is timestamp"),
    ],
)
def test_columns_of_images(column: pa.Array, becomes: bytes | str | None) -> None:
    table = Table("x", written(pa.table({"image": column})))
    assert [bool(row.images) for row in table.rows([], ["image"])] == [becomes is not None, False]
    if isinstance(becomes, str):
        with pytest.raises(DataError, match=f"{becomes}.*, not images; write"):
            table.image(0, 0, "image")
    else:
        assert table.image(0, 0, "image") == becomes


@pytest.mark.parametrize(
    ("column", "said"),
    [
        (pa.array([1, 2**60], pa.timestamp("us")), "OverflowError"),
        (pa.array([1, 2**30], pa.date32()), "OverflowError"),
        (pa.array([None, 1], pa.timestamp("us", tz="Mars/Base")), "'Mars/Base'"),
    ],
)
@pytest.mark.parametrize("own", [True, False])
def test_a_value_that_python_does_not_have_takes_its_own_row_only(column: pa.Array, said: str, own: bool) -> None:
    table = Table("x", written(pa.table({"id": column})))
    good, wrong = table.own_rows(["id"], []) if own else table.rows(["id"])
    assert good.values is not None and wrong.values is None
    assert re.fullmatch(rf"row 1 of row group 0 of x holds what .*{said}.*; write it as text", wrong.unread("x"))


@pytest.mark.parametrize("own", [True, False])
def test_two_columns_of_one_name_are_refused(own: bool) -> None:
    columns = [pa.array([BYTES]), pa.array([BYTES]), pa.array(["a"])]
    table = Table("x", written(pa.Table.from_arrays(columns, names=["image", "image", "name"])))
    with pytest.raises(DataError, match=r"x has several columns 'image'.*rename or remove"):
        list(table.own_rows(["name"], ["image"]) if own else table.rows(["name"], ["image"]))
    assert [row.values for row in table.rows(["name"])] == [{"name": "a"}]


def written(table: pa.Table) -> io.BytesIO:
    file = io.BytesIO()
    pq.write_table(table, file)
    return file
