"""One row of one's own data: what it says and shows, as LLaVA, LLaMA-Factory, ms-swift or OpenAI name the fields."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NotRequired

from pydantic import BeforeValidator, NonNegativeInt, TypeAdapter, with_config
from typing_extensions import TypedDict

from amvl_core.contracts.errors import shortened
from amvl_core.contracts.sample import IMAGE_PLACEHOLDER, VIDEO_PLACEHOLDER
from data_prep.filters import MALFORMED_ROW, MISSING_IMAGE, Drop
from data_prep.sources.pictures import PublishedBox
from data_prep.sources.raw_row import NOTHING_ELSE, Cell, Inline, Rejected, checked, without_nulls

TURNS = ("messages", "conversations")
IMAGES = ("images", "image")
VIDEOS = ("videos", "video")
READ = (*TURNS, *IMAGES, *VIDEOS, "steps", "regions", "id", "task")
UNREAD = ("system", "model", "source", "data_source", "dataset", "metadata", "width", "height")
"""What published sets have beside it. Other fields are passed over too, but are counted: one may be misspelt."""

NEEDED = ("audio", "audios", "objects")
"""What the text of a row is about and the model cannot be shown: without it the row would say something else."""

ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
PATHS = ("image", "image_url", "video", "video_url", "url", "path")
PARTS = {
    "image": IMAGE_PLACEHOLDER,
    "image_url": IMAGE_PLACEHOLDER,
    "video": VIDEO_PLACEHOLDER,
    "video_url": VIDEO_PLACEHOLDER,
}
KINDS = {IMAGE_PLACEHOLDER: "image", VIDEO_PLACEHOLDER: "video"}
MAX_ID = 200

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
# How JPEG, PNG, WebP, GIF, BMP and TIFF begin in base64.
_BASE64 = re.compile(r"(/9j/|iVBORw0KGgo|UklGR|R0lGOD|Qk[0-3]|SUkqA|TU0AK)[A-Za-z0-9+/=\s]{60,}")

Picture = str | Cell | Inline
"""A path as it stands in the row, or an image that needs none."""


def as_text(value: Any) -> Any:
    """A number, true or false as the text that JSON writes of it; anything else as it is."""
    if isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return json.dumps(value)
    return value


Text = Annotated[str, BeforeValidator(as_text)]


@with_config(NOTHING_ELSE)
class Area(TypedDict):
    """A box in pixels of image number `image`, 0 where it is left out."""

    label: Text
    box: PublishedBox
    image: NotRequired[NonNegativeInt]


TEXT, TEXTS, AREAS = TypeAdapter(Text), TypeAdapter(list[Text]), TypeAdapter(list[Area])


@dataclass(frozen=True)
class Chat:
    """What a row holds; `turns` are (role, text), `turns_field` is what they are called, `unread` what is passed over.

    `images` are those of the messages, in their order, then those that stand beside them; `videos` likewise.
    """

    turns_field: str
    turns: list[tuple[str, str]]
    images: list[tuple[str, Picture]]
    videos: list[tuple[str, Picture]]
    steps: list[str] | None
    regions: list[Area] | None
    name: str | None
    task: str | None
    unread: tuple[str, ...]


def read(value: object) -> Chat:
    """A row as a file holds it. Raises Rejected with the path of the field that is wrong."""
    if isinstance(value, Drop):
        raise Rejected(value.reason, value.detail)
    if not isinstance(value, dict):
        raise Rejected(MALFORMED_ROW, f"the row must be an object, not {_what(value)}")
    fields = without_nulls(value)
    for name in NEEDED:
        if not _empty(fields.get(name)):
            raise Rejected(MALFORMED_ROW, f"{name}: nothing but images, videos and text can be shown to the model")
    said = [name for name in TURNS if name in fields]
    if len(said) != 1:
        there = ", ".join(shortened(name, 40) for name in list(fields)[:12]) or "none"
        what = "both messages and conversations" if said else "neither messages nor conversations"
        raise Rejected(MALFORMED_ROW, f"the row has {what}, one is needed; its fields: {there}")
    field = said[0]
    turns: list[tuple[str, str]] = []
    named: dict[str, list[tuple[str, Picture]]] = {IMAGE_PLACEHOLDER: [], VIDEO_PLACEHOLDER: []}
    for number, turn in enumerate(_list(fields[field], field)):
        turns.append(_turn(turn, f"{field}.{number}", named))
    for place, found in named.items():
        shown = sum(text.count(place) for _, text in turns)
        if found and len(found) != shown:
            what = KINDS[place]
            raise Rejected(
                MALFORMED_ROW, f"{field}: {len(found)} of its {shown} {what}s have a path; give it to all or to none"
            )
    return Chat(
        turns_field=field,
        turns=turns,
        images=named[IMAGE_PLACEHOLDER] + _beside(fields, IMAGES, "image"),
        videos=named[VIDEO_PLACEHOLDER] + _beside(fields, VIDEOS, "video"),
        steps=checked(TEXTS, fields["steps"], "steps") if "steps" in fields else None,
        regions=checked(AREAS, fields["regions"], "regions") if "regions" in fields else None,
        name=_name(fields["id"]) if "id" in fields else None,
        task=checked(TEXT, fields["task"], "task") if "task" in fields else None,
        unread=tuple(str(name) for name in fields if name not in (*READ, *UNREAD, *NEEDED)),
    )


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise Rejected(MALFORMED_ROW, f"{where}: must be a list, not {_what(value)}")
    return value


def _name(value: Any) -> str:
    name = as_text(value)
    if not isinstance(name, str):
        raise Rejected(MALFORMED_ROW, f"id: must be a text or a number, not {_what(value)}")
    return shortened(name, MAX_ID)


def _what(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", type(None): "null"}
    return kinds.get(type(value)) or shortened(repr(value), 80)


def _empty(value: Any) -> bool:
    if isinstance(value, list | dict):
        return all(map(_empty, value.values() if isinstance(value, dict) else value))
    return value is None or value == ""


def _turn(turn: Any, where: str, named: dict[str, list[tuple[str, Picture]]]) -> tuple[str, str]:
    """Role and text of a turn; the images and videos that it names are added to `named`."""
    if not isinstance(turn, dict):
        raise Rejected(MALFORMED_ROW, f"{where}: must be an object, not {_what(turn)}")
    role, content = ("from", "value") if "from" in turn else ("role", "content")
    _nothing_else(turn, where, (role, content))
    for name in (role, content):
        if name not in turn:
            raise Rejected(MALFORMED_ROW, f"{where}.{name}: is missing")
    who = ROLES.get(turn[role]) if isinstance(turn[role], str) else None
    if who is None:
        raise Rejected(
            MALFORMED_ROW,
            f"{where}.{role}: {_what(turn[role])} is no role that is read; they are user (human), assistant (gpt) and "
            "system",
        )
    where = f"{where}.{content}"
    if isinstance(turn[content], list):
        parts = enumerate(turn[content])
        return who, "".join(_part(part, f"{where}.{number}", named) for number, part in parts)
    return who, _text(turn[content], where)


def _text(value: Any, where: str) -> str:
    text = as_text(value)
    if not isinstance(text, str):
        raise Rejected(MALFORMED_ROW, f"{where}: must be a text, not {_what(value)}")
    return text


def _part(part: Any, where: str, named: dict[str, list[tuple[str, Picture]]]) -> str:
    """The text of a part of a message, or the place of its image or video, which is added to `named` with a path."""
    if not isinstance(part, dict):
        raise Rejected(MALFORMED_ROW, f'{where}: must be {{"type": "text", "text": ...}}, not {_what(part)}')
    paths = [name for name in PATHS if part.get(name)]
    seen = "video" if any(name.startswith("video") for name in paths) else "image" if paths else None
    kind = part.get("type", "text" if "text" in part and not paths else seen)
    if kind == "text":
        if "text" not in part:
            raise Rejected(MALFORMED_ROW, f"{where}.text: is missing")
        _nothing_else(part, where, ("type", "text"))
        return _text(part["text"], f"{where}.text")
    place = PARTS.get(kind) if isinstance(kind, str) else None
    if place is None:
        raise Rejected(MALFORMED_ROW, f"{where}.type: {_what(kind)} is not read; a part is text, {', '.join(PARTS)}")
    _nothing_else(part, where, ("type", *PATHS))
    if len(paths) > 1:
        raise Rejected(MALFORMED_ROW, f"{where}: {' and '.join(paths)} are both there; one names the {KINDS[place]}")
    named[place] += [(f"{where}.{name}", _picture(part[name], f"{where}.{name}")) for name in paths]
    return place


def _nothing_else(value: dict[str, Any], where: str, read: Sequence[str]) -> None:
    """Raises Rejected for a field inside of a turn that is not read, unless it is empty."""
    for name, item in value.items():
        if name not in read and not _empty(item):
            raise Rejected(MALFORMED_ROW, f"{where}.{shortened(name, 80)}: is not read; remove it, or the row")


def _beside(fields: dict[str, Any], names: tuple[str, str], what: str) -> list[tuple[str, Picture]]:
    """The images or videos that stand beside the messages: one or a list, under either name."""
    found: dict[str, list[tuple[str, Picture]]] = {}
    for name in names:
        if name in fields and fields[name] != "":
            value = fields[name]
            items = enumerate(value) if isinstance(value, list) else [(None, value)]
            wheres = [(name if number is None else f"{name}.{number}", item) for number, item in items]
            found[name] = [(where, _picture(item, where)) for where, item in wheres]
    lists = [[picture for _, picture in pictures] for pictures in found.values() if pictures]
    if len(lists) > 1 and lists[0] != lists[1]:
        raise Rejected(
            MALFORMED_ROW, f"{what}: there is also {what}s, and they differ; one of them names what is shown"
        )
    return next((pictures for pictures in found.values() if pictures), [])


def _picture(value: Any, where: str) -> Picture:
    if isinstance(value, Cell):
        return value
    if isinstance(value, bytes):
        return Inline(value)
    if isinstance(value, dict):
        if isinstance(value.get("bytes"), str | bytes):
            return Inline(value["bytes"])
        paths = [name for name in PATHS if value.get(name)]
        if len(paths) == 1:
            return _picture(value[paths[0]], f"{where}.{paths[0]}")
    if not isinstance(value, str):
        raise Rejected(MALFORMED_ROW, f"{where}: must be the path of a file, not {_what(value)}")
    if value.startswith("data:") or _BASE64.fullmatch(value):
        return Inline(value)
    if _URL.match(value):
        raise Rejected(
            MISSING_IMAGE,
            f"{where}: {shortened(value, 120)} is a URL, nothing is fetched; give a path in the data",
        )
    return value
