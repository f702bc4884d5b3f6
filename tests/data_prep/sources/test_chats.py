"""Monet, OneThinker and LLaVA json: lists of chats."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from amvl_core.contracts.errors import DataError
from amvl_core.contracts.sample import Conversation, Region
from amvl_core.contracts.sources import LlavaJsonSource, MonetSource, OneThinkerSource
from data_prep.filters import DEGENERATE_BOX, MALFORMED_ROW, MISSING_IMAGE, NO_ANSWER, PLACEHOLDER_MISMATCH
from data_prep.sources import detect
from tests.data_prep.archives import Files, as_folder, as_tar, as_zip
from tests.data_prep.pictures import png
from tests.data_prep.sources.reading import converted, drops, listed

A, B = png(200, 100, seed=1), png(seed=2)


def packed(path: Path, name: str, *items: object) -> str:
    folder = name.rpartition("/")[0]
    base = f"{folder}/" if folder else ""
    return as_folder(path, {name: json.dumps(items).encode(), f"{base}General/a.png": A, f"{base}General/b.png": B})


# --- Monet


def monet(reply: list[dict[str, Any]] | None = None, **change: Any) -> dict[str, Any]:
    image = {"type": "image", "image": "General/b.png"}
    assistant = [
        {"type": "text", "text": "I zoom in.<abs_vis_token></abs_vis_token>"},
        image,
        {"type": "text", "text": "\n\n<observation>A red cup</observation> stands there. So it is \\boxed{C_{1}}."},
    ]
    user = [
        {"type": "image", "image": "General/a.png"},
        {"type": "text", "text": "What stands there?\nPut your final answer within \\boxed{}."},
    ]
    data = [
        {"role": "system", "content": [{"type": "text", "text": "You are helpful."}]},
        {"role": "user", "content": user},
        {"role": "assistant", "content": assistant if reply is None else reply},
    ]
    return {"data": data, "metadata": {"dataset_name": "CogCoM", "sample_id": 3}} | change


MONET = json.dumps(monet()).encode()


def test_monet_keeps_images_in_their_places(tmp_path: Path) -> None:
    source = MonetSource(uri=packed(tmp_path / "m", "CogCoM/data.json", monet()))
    assert detect(source.uri) == source
    assert converted(source) == [
        Conversation(
            "monet/CogCoM/data/0000000", "monet", "train", "CogCoM", (A, B), "<image>What stands there?",
            ("I zoom in.<image>", "A red cup stands there."), "C_{1}",
        )
    ]  # fmt: skip


def published_monet(subset: str) -> Files:
    """A subset as it is published: its own train.json, with paths that count from the top of the set."""
    paths = [f"{subset}/cot_images/{name}" for name in ("a.png", "b.png")]
    text = json.dumps([monet(metadata={"dataset_name": subset})])
    text = text.replace("General/a.png", paths[0]).replace("General/b.png", paths[1])
    return {f"{subset}/train.json": text.encode(), paths[0]: A, paths[1]: B}


@pytest.mark.parametrize("top", ["", "Monet-SFT-125K/"])
@pytest.mark.parametrize("pack", [as_folder, as_tar, as_zip])
def test_monet_as_it_is_published(tmp_path: Path, pack: Any, top: str) -> None:
    files = published_monet("Visual_CoT") | published_monet("Zebra_CoT_count")
    # Neither hides the format, ends the run or becomes rows.
    files |= {"Visual_CoT/dataset_info.json": b'{"splits": {}}', "about.json": b'"Monet"'}
    source = MonetSource(uri=pack(tmp_path / "m", {top + name: data for name, data in files.items()}))
    assert detect(source.uri) == source
    samples = converted(source)
    assert drops(source) == {}
    assert [(sample.sample_id, sample.task) for sample in samples] == [
        (f"monet/{top}{subset}/train/0000000", subset) for subset in ("Visual_CoT", "Zebra_CoT_count")
    ]
    assert all(sample.images == (A, B) for sample in samples)


def test_monet_is_found_behind_other_json_files(tmp_path: Path) -> None:
    files: Files = {"a.json": b"{}", "b.json": b"[]", "c.json": b"[1]", "e.json": b"[", "m.json": b"[" + MONET + b"]"}
    uri = as_folder(tmp_path / "m", files)
    assert detect(uri) == MonetSource(uri=uri)


def test_monet_needs_a_list(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no \.json list of Monet"):
        listed(MonetSource(uri=as_folder(tmp_path / "m", {"a.json": b"{}"})))


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (monet([{"type": "text", "text": "It is C."}]), NO_ANSWER),
        (monet([{"type": "text", "text": "It is \\boxed{C."}]), NO_ANSWER),
        (monet([{"type": "image", "image": None}]), MISSING_IMAGE),
        (
            monet([{"type": "image", "image": "General/gone.png"}, {"type": "text", "text": "\\boxed{C}"}]),
            MISSING_IMAGE,
        ),
        (monet([{"type": "video", "video": "x.mp4"}]), MALFORMED_ROW),
        (monet(data=[]), MALFORMED_ROW),
        (None, MALFORMED_ROW),
    ],
)
def test_monet_rows_that_are_wrong(tmp_path: Path, wrong: object, reason: str) -> None:
    source = detect(packed(tmp_path / "m", "data.json", monet(), wrong, monet()))
    assert drops(source) == {"monet/data/0000001": reason}


# --- OneThinker


def thought(answer: str = "B", reply: str | None = None, **change: Any) -> dict[str, Any]:
    reply = f"<think>Look.\n\nIt is\nred.</think>\n<answer>{answer}</answer>" if reply is None else reply
    messages = [{"role": "user", "content": "<image>Which?"}, {"role": "assistant", "content": reply}]
    return {"messages": messages, "images": ["./General/a.png"]} | change


FILE = "onethinker_sft_image.json"


@pytest.mark.parametrize(
    ("answer", "boxes"),
    [
        ("B", []),
        ('{"boxes":[100, 200, 500, 1000]}', [(20, 20, 100, 100)]),
        ('{"boxes": [[0, 0, 1000, 1000], [100, 200, 500, 1000]]}', [(0, 0, 200, 100), (20, 20, 100, 100)]),
        ('{"points": [1, 2]}', []),
    ],
)
def test_onethinker(tmp_path: Path, answer: str, boxes: list[tuple[float, ...]]) -> None:
    source = detect(packed(tmp_path / "o", f"data/{FILE}", thought(answer)))
    assert isinstance(source, OneThinkerSource)
    assert converted(source) == [
        Conversation(
            "onethinker/train/0000000", "onethinker", "train", "General", (A,), "<image>Which?",
            ("Look.", "It is\nred."), answer, tuple(Region("answer", box) for box in boxes),  # type: ignore[arg-type]
        )
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (thought(reply="<answer>B</answer>"), MALFORMED_ROW),
        (thought(images=["../../a.png"]), MISSING_IMAGE),
        (thought('{"boxes":[500, 200, 100, 1000]}'), DEGENERATE_BOX),
        (thought('{"boxes":[500, 200]}'), MALFORMED_ROW),
        (thought(messages=[{"role": "user", "content": "?"}]), MALFORMED_ROW),
    ],
)
def test_onethinker_rows_that_are_wrong(tmp_path: Path, wrong: object, reason: str) -> None:
    source = detect(packed(tmp_path / "o", FILE, thought(), wrong, thought()))
    assert drops(source) == {"onethinker/train/0000001": reason}


# --- LLaVA


def llava(question: Any = "<image>\nWhat?", answer: Any = "This.", **change: Any) -> dict[str, Any]:
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"image": "General/a.png", "conversations": turns} | change


@pytest.mark.parametrize("pack", [as_folder, as_tar, as_zip])
def test_llava_json(tmp_path: Path, pack: Any) -> None:
    text_only = llava("Hello?")
    del text_only["image"]
    train = [llava(), llava("<image><image>Both?", image=["General/a.png", "General/b.png"]), text_only]
    files = {"train.json": json.dumps(train).encode(), "test.json": json.dumps([llava(answer="That.")]).encode()}
    source = detect(pack(tmp_path / "My cups", files | {"General/a.png": A, "General/b.png": B}))
    assert isinstance(source, LlavaJsonSource) and source.name == "my_cups"
    samples = converted(source)
    assert samples[0] == Conversation(
        "my_cups/train/item-0000001", "my_cups", "train", "my_cups", (A,), "<image>\nWhat?", (), "This."
    )
    assert [sample.images for sample in samples[1:]] == [(A, B), (), (A,)]
    assert (samples[3].split, samples[3].answer) == ("test", "That.")


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (llava(answer=["a"]), MALFORMED_ROW),
        (llava(image="gone.png"), MISSING_IMAGE),
        (llava(conversations=llava()["conversations"][:1]), MALFORMED_ROW),
        (llava(conversations=[]), MALFORMED_ROW),
        (llava(conversations=llava()["conversations"][::-1]), MALFORMED_ROW),
        (llava(conversations=2 * llava()["conversations"]), PLACEHOLDER_MISMATCH),
        (llava(audio="a.mp3"), MALFORMED_ROW),
        (llava(conversations=[turn | {"weight": 0} for turn in llava()["conversations"]]), MALFORMED_ROW),
        ("text", MALFORMED_ROW),
    ],
)
def test_llava_rows_that_are_wrong(tmp_path: Path, wrong: object, reason: str) -> None:
    source = detect(packed(tmp_path / "l", "train.json", llava(), wrong, llava()))
    assert drops(source) == {"l/train/item-0000002": reason}


def test_llava_makes_each_question_with_its_answer_a_sample(tmp_path: Path) -> None:
    said = [
        ("system", "Be brief."),
        ("human", "<image>\nWhat?"),
        ("gpt", "This."),
        ("human", "Where?"),
        ("gpt", "Here."),
    ]
    item = llava(conversations=[{"from": speaker, "value": value} for speaker, value in said], model="", width=200)
    samples = converted(detect(packed(tmp_path / "l", "train.json", item, llava())))
    assert [(sample.sample_id, sample.question, sample.answer) for sample in samples] == [
        ("l/train/item-0000001-0", "<image>\nWhat?", "This."),
        ("l/train/item-0000001-1", "<image>Where?", "Here."),
        ("l/train/item-0000002", "<image>\nWhat?", "This."),
    ]
    assert all(sample.images == (A,) for sample in samples)


def test_llava_needs_a_train_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no train\.json"):
        listed(LlavaJsonSource(uri=as_folder(tmp_path / "l", {"a.txt": b""})))


def test_a_file_that_is_no_list_is_refused(tmp_path: Path) -> None:
    uri = as_folder(tmp_path / "l", {"train.json": b'{"a": 1}'})
    with pytest.raises(DataError, match=r"train\.json is not a JSON list"):
        listed(LlavaJsonSource(uri=uri))
