"""One's own data, in the layouts in which people have it: what is plain is read, else the field that is wrong named."""

from __future__ import annotations

import base64
import json
import os
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from amvl_core.contracts.errors import DataError
from amvl_core.contracts.sample import Conversation
from amvl_core.contracts.sources import ChatJsonlSource, LlavaJsonSource
from data_prep.filters import MALFORMED_ROW, MISSING_IMAGE, PLACEHOLDER_MISMATCH, UNREADABLE_IMAGE, Drop
from data_prep.sources import detect
from data_prep.sources.own_chats import REPEATED
from tests.data_prep.archives import as_folder, as_tar, as_zip, chat, chat_row, json_lines
from tests.data_prep.pictures import encode, png
from tests.data_prep.sources.reading import listed, outcomes
from tests.data_prep.test_units import finish, work

A, B = chat()["pictures/a.png"], chat()["pictures/b.png"]
INLINE = base64.b64encode(A).decode()
IMAGES = {"pictures/a.png": A, "pictures/b.png": B}


def turns(question: Any = "<image>What?", answer: Any = "This.", keys: str = "role content user assistant") -> Any:
    role, content, user, assistant = keys.split()
    return [{role: user, content: question}, {role: assistant, content: answer}]


SHAREGPT = "from value human gpt"


def one(path: Path, row: object, name: str = "train.jsonl") -> Conversation | Drop:
    """What becomes of a row that is alone in its file."""
    content = json_lines(row) if name.endswith("l") else json.dumps([row]).encode()
    (found,) = outcomes(detect(as_folder(path, IMAGES | {name: content}))).values()
    return found


@pytest.mark.parametrize("name", ["train.jsonl", "train.json"])
@pytest.mark.parametrize(
    "row",
    [
        {"messages": turns(), "images": ["pictures/a.png"]},
        {"messages": turns(), "images": "pictures/a.png"},
        {"messages": turns(), "image": ["pictures/a.png"]},
        {"messages": turns(), "image": "pictures/a.png", "images": None},
        {"messages": turns(), "image": "pictures/a.png", "images": ["pictures/a.png"]},
        {"messages": turns(keys=SHAREGPT), "images": ["pictures/a.png"]},
        {"conversations": turns(keys=SHAREGPT), "images": ["pictures/a.png"]},
        {"conversations": turns(keys=SHAREGPT), "image": "pictures/a.png", "system": "Be brief."},
        {"conversations": turns(keys="from value user assistant"), "image": "pictures/a.png"},
        {"conversations": turns(), "image": "pictures/a.png"},
        {"messages": turns(), "images": ["./pictures/a.png"]},
        {"messages": turns(), "images": ["pictures\\a.png"]},
        {"messages": turns(), "images": [{"path": "pictures/a.png", "bytes": None}]},
        {"messages": turns(), "images": [{"bytes": INLINE}]},
        {"messages": turns(), "images": [INLINE]},
        {"messages": turns(), "images": ["data:image/png;base64," + INLINE]},
        {"messages": turns(), "images": ["data:image/png;base64," + base64.encodebytes(A).decode().rstrip("=\n")]},
        {"messages": turns([{"type": "image"}, {"type": "text", "text": "What?"}]), "images": ["pictures/a.png"]},
        *[
            {"messages": turns([image, {"type": "text", "text": "What?", "image": None, "image_url": None}])}
            for image in (
                {"type": "image", "image": "pictures/a.png", "text": None},
                {"type": "image", "image": "pictures/a.png", "text": ""},
                {"type": "image", "image": {"path": "pictures/a.png"}},
                {"type": "image", "url": "pictures/a.png"},
                {"type": "image", "path": "pictures/a.png"},
                {"type": "image_url", "image_url": "pictures/a.png"},
                {"type": "image_url", "image_url": {"url": "pictures/a.png", "detail": "low"}},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64," + INLINE}},
                {"image": "pictures/a.png"},
            )
        ],
        {"messages": turns(), "images": ["pictures/a.png"], "steps": None, "regions": None, "id": None, "task": None},
        {"messages": turns(), "images": ["pictures/a.png"], "conversations": None, "steps": float("nan")},
        {"messages": [turn | {"weight": None, "name": ""} for turn in turns()], "images": ["pictures/a.png"]},
        {
            "messages": turns(),
            "images": ["pictures/a.png"],
            "videos": [],
            "audios": [],
            "objects": {"ref": [], "bbox": []},
        },
    ],
)
def test_what_is_plain_is_read(tmp_path: Path, row: dict[str, Any], name: str) -> None:
    found = one(tmp_path / "s", row, name)
    assert isinstance(found, Conversation), found
    place = "line-0000001" if name == "train.jsonl" else "item-0000001"
    assert found == Conversation(f"s/train/{place}", "s", "train", "s", (A,), "<image>What?", (), "This.")


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_plain_base64_may_be_of_any_common_form(tmp_path: Path, form: str) -> None:
    data = encode(Image.new("RGB", (32, 32), "red"), form)
    found = one(tmp_path / "s", chat_row(images=[base64.b64encode(data).decode()]))
    assert isinstance(found, Conversation) and found.images == (data,)


def test_a_tiff_of_the_other_byte_order_may_be_plain_base64(tmp_path: Path) -> None:
    text = base64.b64encode(b"MM\0*" + bytes(100)).decode()
    found = one(tmp_path / "s", chat_row(images=[text]))
    assert isinstance(found, Conversation) and found.images == (b"MM\0*" + bytes(100),)


@pytest.mark.parametrize("empty", [{"steps": []}, {"regions": []}, {"steps": [], "regions": []}])
def test_empty_steps_and_regions_are_none_also_of_several_questions(tmp_path: Path, empty: dict[str, Any]) -> None:
    row = {"messages": turns() + turns("And?"), "images": ["pictures/a.png"], **empty}
    uri = as_folder(tmp_path / "s", IMAGES | {"train.jsonl": json_lines(row)})
    found = list(outcomes(detect(uri)).values())
    assert [sample.question for sample in found if isinstance(sample, Conversation)] == ["<image>What?", "<image>And?"]


@pytest.mark.parametrize("null", [{"images": None}, {"image": None}, {"images": []}, {"image": ""}, {}])
def test_a_question_without_an_image(tmp_path: Path, null: dict[str, Any]) -> None:
    found = one(tmp_path / "s", {"conversations": turns("Is seven prime?", "yes", SHAREGPT), **null}, "train.json")
    assert isinstance(found, Conversation) and (found.images, found.answer) == ((), "yes")


@pytest.mark.parametrize(
    ("value", "text"), [(42, "42"), (0, "0"), (-1.5, "-1.5"), (True, "true"), (False, "false"), ("007", "007")]
)
def test_a_number_is_the_text_that_json_writes(tmp_path: Path, value: Any, text: str) -> None:
    row = chat_row(
        messages=turns([{"type": "image"}, {"type": "text", "text": value}], value), task=value, steps=[value]
    )
    region = [{"label": value, "box": [0, 0, 8, 8]}]
    found = one(tmp_path / "s", {**row, "id": value, "regions": region})
    assert isinstance(found, Conversation)
    assert (found.question, found.answer, found.task, found.steps) == ("<image>" + text, text, text, (text,))
    assert (found.sample_id, found.regions[0].label) == (f"s/train/{text}", text)


LONG = "data:image/png;base64," + "A" * 2_500_000


@pytest.mark.parametrize(
    ("row", "reason", "said"),
    [
        ({"images": ["https://x.org/1.png"]}, MISSING_IMAGE, "images.0: https://x.org/1.png is a URL"),
        ({"images": ["s3://b/1.png"]}, MISSING_IMAGE, "images.0: s3://b/1.png is a URL"),
        ({"images": "http://x.org/" + "1" * 5000}, MISSING_IMAGE, "images: http://x.org/1"),
        ({"images": [LONG]}, UNREADABLE_IMAGE, ""),
        ({"images": ["data:image/png,abc"]}, UNREADABLE_IMAGE, "no base64 follows 'data:image/png'"),
        ({"images": ["x" * 5000]}, MISSING_IMAGE, "images.0: 'xxx"),
        ({"images": [1]}, MALFORMED_ROW, "images.0: must be the path of a file, not 1"),
        ({"images": [None]}, MALFORMED_ROW, "images.0: must be the path of a file, not null"),
        ({"image": "pictures/b.png"}, MALFORMED_ROW, "image: there is also images"),
        ({"messages": None}, MALFORMED_ROW, "neither messages nor conversations, one is needed; its fields: images"),
        ({"conversations": turns()}, MALFORMED_ROW, "both messages and conversations"),
        ({"messages": "Hi"}, MALFORMED_ROW, "messages: must be a list, not 'Hi'"),
        ({"messages": [None]}, MALFORMED_ROW, "messages.0: must be an object, not null"),
        ({"messages": turns(answer=None)}, MALFORMED_ROW, "messages.1.content: is missing"),
        ({"messages": turns(answer={"a": 1})}, MALFORMED_ROW, "messages.1.content: must be a text, not an object"),
        ({"messages": turns(answer=["a"])}, MALFORMED_ROW, "messages.1.content.0: must be {"),
        ({"messages": turns([{"type": "audio"}])}, MALFORMED_ROW, "messages.0.content.0.type: 'audio' is not read"),
        ({"messages": turns([{"type": "text"}])}, MALFORMED_ROW, "messages.0.content.0.text: is missing"),
        (
            {"messages": turns([{"type": "text", "text": [1]}])},
            MALFORMED_ROW,
            "messages.0.content.0.text: must be a text",
        ),
        ({"messages": turns([{"type": "image", "image": 7}])}, MALFORMED_ROW, "messages.0.content.0.image: must be"),
        (
            {"messages": turns([{"type": "image", "max_pixels": 9}])},
            MALFORMED_ROW,
            "messages.0.content.0.max_pixels: is not read",
        ),
        ({"messages": [turn | {"weight": 0} for turn in turns()]}, MALFORMED_ROW, "messages.0.weight: is not read"),
        (
            {"messages": turns(keys="from value human function_call")},
            MALFORMED_ROW,
            "messages.1.from: 'function_call' is no role",
        ),
        ({"messages": turns()[:1]}, MALFORMED_ROW, "messages: must be of user and assistant by turns"),
        ({"messages": turns()[:1] + 2 * turns()[1:]}, MALFORMED_ROW, "messages: must be of user and assistant"),
        ({"messages": 2 * turns()}, PLACEHOLDER_MISMATCH, "messages: 2 <image> in 2 questions for 1 images"),
        ({"audios": ["a.mp3"]}, MALFORMED_ROW, "audios: nothing but images, videos and text"),
        (
            {"objects": {"ref": ["a"], "bbox": [[1, 2, 3, 4]]}},
            MALFORMED_ROW,
            "objects: nothing but images, videos and text",
        ),
        ({"steps": "First."}, MALFORMED_ROW, "steps: Input should be a valid list"),
        ({"steps": [["a"]]}, MALFORMED_ROW, "steps.0: Input should be a valid string"),
        ({"regions": [{"label": "a", "box": [1, 2]}]}, MALFORMED_ROW, "regions.0.box: List should have at least 4"),
        ({"regions": [{"label": "a", "bbox": [1]}]}, MALFORMED_ROW, "regions.0.box: Field required"),
        ({"regions": [{"label": "a", "box": [1, 2, 3, 4], "image": 1}]}, MALFORMED_ROW, "regions.0.image: there is no"),
        ({"id": {"a": 1}}, MALFORMED_ROW, "id: must be a text or a number, not an object"),
    ],
)
def test_the_field_that_is_wrong_is_named_in_few_words(
    tmp_path: Path, row: dict[str, Any], reason: str, said: str
) -> None:
    source = ChatJsonlSource(uri=as_folder(tmp_path / "s", chat({**chat_row(), **row}, chat_row())))
    units = finish(work(source, tmp_path / "out"))
    (report,) = [unit.report for unit in units]
    assert report.dropped == {reason: 1} and report.kept == 1
    (example,) = report.examples[reason]
    assert said in example.detail and len(example.detail) <= 300


def test_a_row_that_is_no_object_is_named(tmp_path: Path) -> None:
    found = one(tmp_path / "s", [[1]], "train.json")
    assert isinstance(found, Drop) and found.detail == "the row must be an object, not a list"


@pytest.mark.parametrize(
    ("path", "said"),
    [
        (
            "pictures/a.PNG",
            "'pictures/a.PNG' is not there; paths count from the folder of train.jsonl; pictures/a.png exists",
        ),
        ("Pictures/a.png", "pictures/a.png exists"),
        ("a.png", "pictures/a.png exists"),
        ("pictures/a.jpeg", "pictures/a.png exists"),
        ("/data/set/pictures/a.png", "'/data/set/pictures/a.png' leads outside of the data"),
        ("/data/set/pictures/a.png", "pictures/a.png exists"),
        ("../pictures/b.png", "pictures/b.png exists"),
        ("pictures/img_00007.png", "pictures/img_0007.png exists"),
        (
            ".pictures/a.png",
            "'.pictures/a.png' is hidden; paths count from the folder of train.jsonl; pictures/a.png exists",
        ),
        ("pictures", "'pictures' is not there; paths count from the folder of train.jsonl"),
    ],
)
@pytest.mark.parametrize("pack", [as_folder, as_tar, as_zip])
def test_the_nearest_path_is_proposed(tmp_path: Path, pack: Any, path: str, said: str) -> None:
    files = {f"set/{name}": data for name, data in chat(chat_row(images=[path])).items()}
    uri = pack(tmp_path / "x", files | {"set/pictures/img_0007.png": A, "other/pictures/a.png": B})
    (found,) = outcomes(detect(uri)).values()
    assert isinstance(found, Drop) and found.reason == MISSING_IMAGE
    assert found.detail.startswith("images.0: ") and said in found.detail and "archive" not in found.detail


def test_an_accent_may_be_a_letter_of_its_own(tmp_path: Path) -> None:
    files = chat(chat_row(images=["pictures/\u00fc.png"])) | {"pictures/u\u0308.png": B}
    (found,) = outcomes(detect(as_zip(tmp_path / "x.zip", files))).values()
    assert isinstance(found, Conversation) and found.images == (B,)


def test_names_on_disk_that_are_no_utf8_are_shown_with_their_bytes(tmp_path: Path) -> None:
    latin = os.fsdecode(b"caf\xe9")
    rows = json_lines(chat_row(images=["pictures/caf\u00e9.png"]))
    files = {"train.jsonl": rows, f"pictures/{latin}.png": A, f"test_{latin}.jsonl": b""}
    source = ChatJsonlSource(uri=as_folder(tmp_path / "s", files))
    (unit,) = finish(work(source, tmp_path / "out"))
    (drop,) = unit.report.examples[MISSING_IMAGE]
    assert drop.detail.endswith(r"pictures/caf\udce9.png exists")
    assert list(unit.report.notes) == [r"test_caf\udce9.jsonl is not read; the file of the test rows is called test"]
    for said, names in {
        r"holds caf\udce9/train.jsonl, x/train.jsonl,": [f"{latin}/train.jsonl", "x/train.jsonl"],
        r"train_caf\udce9.jsonl is there": [f"train_{latin}.jsonl"],
    }.items():
        with pytest.raises(DataError, match=re.escape(said)):
            detect(as_folder(tmp_path / str(len(names)), dict.fromkeys(names, b"")))


@pytest.mark.parametrize("name", ["train.jsonl", "train.json"])
def test_rows_of_one_id_are_samples_of_their_own(tmp_path: Path, name: str) -> None:
    rows = [chat_row(f"<image>{question}?", id="x") for question in "abc"] + [chat_row(id="x-0"), chat_row()]
    rows += [chat_row(id=f"{(name[6:] == 'json' and 'item') or 'line'}-0000005"), chat_row(id="y" * 500)]
    content = json_lines(*rows) if name.endswith("l") else json.dumps(rows).encode()
    source = detect(as_folder(tmp_path / "s", IMAGES | {name: content}))
    found = outcomes(source)
    place = "line" if name.endswith("l") else "item"
    assert all(isinstance(sample, Conversation) for sample in found.values())
    assert list(found)[:6] == [
        "s/train/x", f"s/train/x-{place}-0000002", f"s/train/x-{place}-0000003", "s/train/x-0",
        f"s/train/{place}-0000005", f"s/train/id-{place}-0000005",
    ]  # fmt: skip
    assert len(list(found)[6]) < 220
    (unit,) = finish(work(source, tmp_path / "out"))
    assert unit.report.notes == {REPEATED: 2}


def test_a_field_that_nothing_reads_is_counted(tmp_path: Path) -> None:
    rows = [
        chat_row(region=[], split="train"),
        chat_row(region=[]),
        chat_row(images=["gone"], region=1),
        chat_row(width=3),
    ]
    source = detect(as_folder(tmp_path / "s", chat(*rows)))
    units = finish(work(source, tmp_path / "out", rows_per_shard=2))
    first, second = (unit.report for unit in units)
    assert first.notes == {"the field 'region' is not read": 2, "the field 'split' is not read": 1}
    assert first.merged(second).notes == {"the field 'region' is not read": 3, "the field 'split' is not read": 1}
    many = detect(as_folder(tmp_path / "m", chat(*[chat_row(**{f"field{i}": 1}) for i in range(40)])))
    reports = [unit.report for unit in finish(work(many, tmp_path / "many", rows_per_shard=30))]
    assert len(reports[0].notes) == len(reports[0].merged(reports[1]).notes) == 20


@pytest.mark.parametrize("name", ["val.jsonl", "validation.jsonl", "Dev.json", "data/eval.jsonl.gz"])
def test_a_file_that_may_hold_the_test_rows_is_named(tmp_path: Path, name: str) -> None:
    source = detect(as_folder(tmp_path / "s", chat(chat_row(), chat_row()) | {name: b"[]"}))
    (unit,) = finish(work(source, tmp_path / "out"))
    assert unit.report.notes == {f"{name} is not read; the file of the test rows is called test": 1}
    named = detect(as_folder(tmp_path / "t", chat(chat_row(), test=(chat_row(),)) | {name: b"[]"}))
    assert all(unit.report.notes == {} for unit in finish(work(named, tmp_path / "out2")))


def test_the_kind_says_which_of_two_files_is_read_and_the_other_is_noted(tmp_path: Path) -> None:
    other = json.dumps([{"conversations": turns("Text?", "yes", SHAREGPT)}]).encode()
    files = chat(chat_row(), test=(chat_row(),)) | {"train.json": other, "test.json": other}
    uri = as_folder(tmp_path / "s", files)
    for make, read, left in ((ChatJsonlSource, "jsonl", "json"), (LlavaJsonSource, "json", "jsonl")):
        rows = listed(make(uri=uri))
        assert [row.fields["question"] for row in rows] == 2 * ["<image>What?" if read == "jsonl" else "Text?"]
        said = [
            f"{name}.{left} is not read: {make(uri=uri).kind} looks for another file first"
            for name in ("train", "test")
        ]
        assert [note for row in rows for note in row.notes] == said


@pytest.mark.parametrize("name", ["training.jsonl", "Train.jsonl", "train_v2.json"])
def test_a_file_that_may_hold_the_training_rows_is_named(tmp_path: Path, name: str) -> None:
    uri = as_folder(tmp_path / "s", IMAGES | {name: b"[]"})
    with pytest.raises(DataError, match=f"{name} is there"):
        detect(uri)
    for source, wanted in ((ChatJsonlSource(uri=uri), "jsonl"), (LlavaJsonSource(uri=uri), "json")):
        with pytest.raises(
            DataError, match=rf"has no train\.{wanted}; .*{name} is there: call what trains train\.{wanted}"
        ):
            listed(source)


@pytest.mark.parametrize(
    "files",
    [
        {"birds/train.jsonl": b"", "cars/train.jsonl": b""},
        {"train.jsonl": b"", "old/train.jsonl": b""},
        {"a/train.json": b"[]", "b/train.json": b"[]"},
        {"train.jsonl": b"", "train.json": b"[]"},
        {"train.jsonl": b"", "train.jsonl.gz": b""},
        {"a/com.jsonl": b"", "b/com.jsonl": b""},
        {"a/viscot_363k.json": b"", "b/viscot_363k.json": b""},
        {"a/train/questions.json": b"", "b/train/questions.json": b""},
        {"a/onethinker_sft_image.json": b"", "b/onethinker_sft_image.json": b""},
    ],
)
@pytest.mark.parametrize("pack", [as_folder, as_zip])
def test_of_two_data_sets_none_is_passed_over(tmp_path: Path, pack: Any, files: dict[str, bytes]) -> None:
    with pytest.raises(DataError) as error:
        detect(pack(tmp_path / "x", files | IMAGES))
    assert all(name in str(error.value) for name in files)


# --- Parquet

BYTES = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def table(path: Path, rows: list[dict[str, Any]], image: pa.DataType | None = None) -> bytes:
    """Rows as Parquet, two in a row group; the columns of images are of the given type."""
    names = dict.fromkeys(name for row in rows for name in row)
    arrays = {name: pa.array([row.get(name) for row in rows], image if "image" in name else None) for name in names}
    pq.write_table(pa.table(arrays), path, row_group_size=2)
    return path.read_bytes()


def parquet_rows(*images: Any) -> list[dict[str, Any]]:
    return [{"messages": turns("<image>What?" if image else "What?"), "images": image} for image in images]


@pytest.mark.parametrize(
    ("kind", "of"),
    [
        (pa.list_(BYTES), lambda data: [{"bytes": data, "path": "x.png"}]),
        (pa.large_list(BYTES), lambda data: [{"bytes": data, "path": None}]),
        (pa.list_(pa.binary()), lambda data: [data]),
        (pa.list_(pa.struct([("bytes", pa.large_binary())])), lambda data: [{"bytes": data}]),
        (BYTES, lambda data: {"bytes": data, "path": "x.png"}),
        (pa.binary(), lambda data: data),
        (pa.list_(pa.string()), lambda data: [base64.b64encode(data).decode()]),
    ],
)
@pytest.mark.parametrize("column", ["images", "image"])
def test_parquet_of_ones_own(tmp_path: Path, kind: pa.DataType, of: Any, column: str) -> None:
    rows = parquet_rows(of(A), None, of(B), of(A), of(B))
    rows = [{"messages": row["messages"], column: row["images"], "task": "t", "id": None} for row in rows]
    table(tmp_path / "My cups.parquet", rows, kind)
    source = detect(str(tmp_path / "My cups.parquet"))
    assert source == ChatJsonlSource(uri=str(tmp_path / "My cups.parquet"), name="my_cups")
    samples = list(outcomes(source).values())
    assert [sample.images for sample in samples if isinstance(sample, Conversation)] == [(A,), (), (B,), (A,), (B,)]
    assert isinstance(samples[0], Conversation) and samples[0].sample_id == "my_cups/train/row-0000001"
    assert (samples[0].question, samples[0].answer, samples[0].task) == ("<image>What?", "This.", "t")


@pytest.mark.parametrize("name", ["test_set.parquet", "test-00000-of-00001.parquet"])
def test_a_parquet_file_that_is_the_source_trains_whatever_it_is_called(tmp_path: Path, name: str) -> None:
    table(tmp_path / name, parquet_rows([{"bytes": A, "path": None}]), pa.list_(BYTES))
    (found,) = outcomes(detect(str(tmp_path / name))).values()
    assert isinstance(found, Conversation) and found.split == "train"
    with pytest.raises(DataError, match="holds no data that is understood"):  # a folder may lack its training rows
        detect(str(tmp_path))


@pytest.mark.parametrize("pack", [as_folder, as_tar, as_zip])
def test_parquet_files_in_a_folder(tmp_path: Path, pack: Any) -> None:
    path = tmp_path / "x.parquet"
    several = [{"bytes": A, "path": None}, {"bytes": None, "path": "../pictures/b.png"}]
    parts = turns([{"type": "image", "text": None}, {"type": "image", "text": None}, {"type": "text", "text": "What?"}])
    whole = [{"type": "text", "text": "This."}]
    first = table(path, [{"messages": [parts[0], {"role": "assistant", "content": whole}], "images": several}] * 3)
    conversation = {"conversations": turns(keys=SHAREGPT), "image": {"bytes": B, "path": None}, "extra": 1}
    second = table(path, [conversation], BYTES)
    files = {"data/train-00000-of-00002.parquet": first, "data/train-00001-of-00002.parquet": second}
    source = detect(pack(tmp_path / "s", files | {"data/test.parquet": second} | IMAGES))
    found = outcomes(source)
    assert list(found) == [*(f"s/train/row-000000{i}" for i in range(1, 5)), "s/test/row-0000001"]
    samples = [sample for sample in found.values() if isinstance(sample, Conversation)]
    assert [sample.images for sample in samples] == [(A, B)] * 3 + [(B,)] * 2
    assert samples[0].question == "<image><image>What?"
    notes = [row.notes for row in listed(source)]
    assert notes == [(), (), (), ("the field 'extra' is not read",), ("the field 'extra' is not read",)]


def test_parquet_that_is_not_understood_says_its_columns(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    with pytest.raises(DataError, match=r"x\.parquet has the columns query, answer"):
        table(path, [{"query": "a", "answer": "b"}])
        detect(str(path))


def test_a_damaged_parquet_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    good = table(path, parquet_rows([{"bytes": A, "path": None}]), pa.list_(BYTES))
    uri = as_folder(tmp_path / "s", {"train-0.parquet": good, "train-1.parquet": good[: len(good) // 2]})
    with pytest.raises(DataError, match=r"holds no data that is understood[\s\S]*train-1\.parquet is damaged"):
        detect(as_folder(tmp_path / "cut", {"train-1.parquet": good[: len(good) // 2]}))
    with pytest.raises(DataError, match=r"s/train-1\.parquet is damaged or incomplete .* download"):
        outcomes(ChatJsonlSource(uri=uri))


def test_a_dead_link_in_the_place_of_the_rows_is_named(tmp_path: Path) -> None:
    uri = as_folder(tmp_path / "s", IMAGES)
    for name in ("train.jsonl", "train-0.parquet"):
        (tmp_path / "s" / name).symlink_to("../blobs/1")
        with pytest.raises(DataError, match=rf"{re.escape(name)} is a link to \.\./blobs/1, which"):
            listed(detect(uri))
        (tmp_path / "s" / name).unlink()


def test_the_image_of_a_hub_snapshot_is_read(tmp_path: Path) -> None:
    as_folder(tmp_path / "hub/blobs", {"1": chat(chat_row())["train.jsonl"], "2": A})
    snapshot = tmp_path / "hub/snapshots/abc"
    (snapshot / "pictures").mkdir(parents=True)
    (snapshot / "train.jsonl").symlink_to("../../blobs/1")
    (snapshot / "pictures/a.png").symlink_to("../../../blobs/2")
    (found,) = outcomes(detect(str(snapshot))).values()
    assert isinstance(found, Conversation) and found.images == (A,)


def test_images_in_rows_do_not_depend_on_how_they_are_packed(tmp_path: Path) -> None:
    """Inline images travel with their rows, others with the payload of a tar or by name; the shards are the same."""
    rows = [chat_row(images=[image]) for image in ("pictures/a.png", INLINE, "data:image/png;base64," + INLINE)]
    shards = []
    for pack in (as_folder, as_tar, as_zip):
        source = ChatJsonlSource(uri=pack(tmp_path / pack.__name__, chat(*rows)))
        shards.append([unit.shard for unit in finish(work(source, tmp_path / f"out-{pack.__name__}"))])
    assert shards[0] == shards[1] == shards[2] and shards[0][0].rows == 3


def test_png_of_another_size(tmp_path: Path) -> None:
    data = png(64, 32)
    found = one(tmp_path / "s", {"messages": turns(), "images": [base64.b64encode(data).decode()]})
    assert isinstance(found, Conversation) and found.images == (data,)


def test_a_time_out_of_range_in_parquet_is_one_drop(tmp_path: Path) -> None:
    columns = {"messages": [turns("What?")] * 2, "id": pa.array([1, 2**60], pa.timestamp("us"))}
    pq.write_table(pa.table(columns), tmp_path / "train.parquet")
    found = [value for value in outcomes(detect(str(tmp_path))).values() if isinstance(value, Drop)]
    assert found[-1].reason == MALFORMED_ROW and "row 1 of row group 0" in found[-1].detail
