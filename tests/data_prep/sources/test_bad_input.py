"""What is wrong with an archive or a row, whatever the format: one drop with a reason each, and the rest is kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from amvl_core.contracts.sample import Conversation
from amvl_core.contracts.sources import ChatJsonlSource
from data_prep import filters
from data_prep.filters import Drop
from tests.data_prep.archives import as_folder, as_tar, as_zip, chat, chat_row
from tests.data_prep.pictures import png
from tests.data_prep.sources.reading import outcomes

PACKS = pytest.mark.parametrize("pack", [as_folder, as_tar, as_zip])


def reasons(uri: str) -> list[str]:
    """What became of each row, in order."""
    return [
        "kept" if isinstance(found, Conversation) else found.reason
        for found in outcomes(ChatJsonlSource(uri=uri)).values()
    ]


@PACKS
@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (chat_row(answer=["a", "b"]), filters.MALFORMED_ROW),
        (chat_row(images=[None]), filters.MALFORMED_ROW),
        (chat_row(images=["pictures/gone.png"]), filters.MISSING_IMAGE),
        (chat_row(images=[""]), filters.MISSING_IMAGE),
        (chat_row(images=["pictures"]), filters.MISSING_IMAGE),
        (chat_row(images=["../train.jsonl"]), filters.MISSING_IMAGE),
        (chat_row(images=["/etc/passwd"]), filters.MISSING_IMAGE),
        (chat_row(images=["pictures/\0.png"]), filters.MISSING_IMAGE),
        (chat_row(id=["x"]), filters.MALFORMED_ROW),
    ],
)
def test_one_drop_each(tmp_path: Path, pack: Any, row: object, reason: str) -> None:
    assert reasons(pack(tmp_path / "x", chat(chat_row(), row, chat_row()))) == ["kept", reason, "kept"]


@PACKS
@pytest.mark.parametrize("line", [b"\xff\xfe\x00", b'{"messages": [{"role": "us', b'{"messages": "\\ud800"}', b"[[["])
def test_lines_that_are_no_text_or_no_json(tmp_path: Path, pack: Any, line: bytes) -> None:
    files = chat(chat_row())
    good = files["train.jsonl"]
    files["train.jsonl"] = good + line + b"\n" + good
    assert reasons(pack(tmp_path / "x", files)) == ["kept", filters.MALFORMED_ROW, "kept"]


@PACKS
def test_the_last_line_is_cut_in_half(tmp_path: Path, pack: Any) -> None:
    files = chat(chat_row(), chat_row())
    files["train.jsonl"] = files["train.jsonl"][: -len(json.dumps(chat_row())) // 2]
    assert reasons(pack(tmp_path / "x", files)) == ["kept", filters.MALFORMED_ROW]


def test_a_corrupted_member_of_a_zip_costs_the_rows_that_show_it(tmp_path: Path) -> None:
    rows = [chat_row(), chat_row(images=["pictures/b.png"]), chat_row()]
    path = Path(as_zip(tmp_path / "x.zip", chat(*rows)))
    damaged = png(seed=2)
    path.write_bytes(path.read_bytes().replace(damaged, damaged[:-20] + b"\0" * 20))
    assert reasons(str(path)) == ["kept", filters.UNREADABLE_IMAGE, "kept"]


@pytest.mark.parametrize("pack", [as_tar, as_zip])
@pytest.mark.parametrize("name", ["../pictures/evil.png", "/pictures/evil.png", "pictures/../../evil.png"])
def test_a_member_that_points_outside_cannot_be_shown(tmp_path: Path, pack: Any, name: str) -> None:
    rows = [chat_row(), chat_row(images=[name]), chat_row(images=["pictures/evil.png"])]
    uri = pack(tmp_path / "x", chat(*rows) | {name: png(seed=3)})
    assert reasons(uri) == ["kept", filters.MISSING_IMAGE, filters.MISSING_IMAGE]


def test_links_in_a_folder_are_followed_where_they_lead_anywhere(tmp_path: Path) -> None:
    as_folder(tmp_path / "elsewhere", {"deep/b.png": png()})
    rows = [chat_row(images=[f"pictures/{name}"]) for name in ("link.png", "circle.png", "gone.png", "to/deep/b.png")]
    rows += [chat_row(images=["nowhere/b.png"]), chat_row(images=["pictures/up/pictures/a.png"])]
    pictures = Path(as_folder(tmp_path / "x", chat(chat_row(), *rows))) / "pictures"
    (pictures / "link.png").symlink_to(tmp_path / "elsewhere/deep/b.png")
    (pictures / "circle.png").symlink_to(pictures / "circle.png")
    (pictures / "gone.png").symlink_to(tmp_path / "elsewhere/gone.png")
    (pictures / "to").symlink_to(tmp_path / "elsewhere")
    (pictures / "up").symlink_to("..")
    (tmp_path / "x" / "nowhere").symlink_to(tmp_path / "gone")
    missing = filters.MISSING_IMAGE
    assert reasons(str(tmp_path / "x")) == ["kept", "kept", missing, missing, "kept", missing, missing]
    details = [
        found.detail for found in outcomes(ChatJsonlSource(uri=str(tmp_path / "x"))).values() if isinstance(found, Drop)
    ]
    assert all("is a link to" in detail and "leads nowhere" in detail for detail in details[:3])


def test_a_corrupted_member_of_a_zip_in_a_folder(tmp_path: Path) -> None:
    damaged, good = png(seed=2), png(seed=1)
    packed = Path(as_zip(tmp_path / "pictures.zip", {"a.png": good, "b.png": damaged})).read_bytes()
    packed = packed.replace(damaged, damaged[:-20] + b"\0" * 20)
    rows = [chat_row(), chat_row(images=["pictures/b.png"]), chat_row(images=["pictures/c.png"])]
    files = {"train.jsonl": chat(*rows)["train.jsonl"], "pictures/p.zip": packed}
    assert reasons(as_folder(tmp_path / "x", files)) == ["kept", filters.UNREADABLE_IMAGE, filters.MISSING_IMAGE]
