"""JSON lines and JSON lists as streams: one value at a time, and a Drop in the place of what cannot be read."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any

from amvl_core.errors import DataError
from data_prep.filters import MALFORMED_ROW, Drop
from data_prep.sources.archive import DAMAGED, Archive

CHUNK_BYTES = 2**20
MAX_ITEM_CHARS = 2**26
"""A list item that is longer than this is taken for a damaged one."""

_END = re.compile(r"\s*[,\]]")
_SPACE = re.compile(r"[\s,]*")
# Half of a surrogate pair is legal in JSON but is no text: nothing can store or tokenise it.
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def json_lines(archive: Archive, name: str) -> Iterator[tuple[int, Any]]:
    """(line number from 1, value or Drop) of every line that is not blank."""
    number = 0
    with archive.open(name) as file:
        try:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, _line(line)
        except DAMAGED as error:
            yield number + 1, Drop(MALFORMED_ROW, f"{name} is damaged behind line {number} ({error})")


def _line(line: bytes) -> Any:
    try:
        text = line.decode("utf-8-sig")
        value = json.loads(text)
        _check(text, value)
    except (ValueError, RecursionError) as error:
        return Drop(MALFORMED_ROW, f"not valid JSON: {error}")
    return value


def _check(text: str, value: Any) -> None:
    if _SURROGATE.search(text):
        json.dumps(value, ensure_ascii=False).encode()


def json_items(archive: Archive, name: str) -> Iterator[tuple[int, Any]]:
    """(number from 0, value or Drop) of every item of a JSON list; the Drop of a list that breaks off is its last.

    Raises DataError if it is no list.
    """
    decoder = json.JSONDecoder()
    number, at, text, ended = 0, 0, "", False
    # Bytes that are no UTF-8 come through as surrogates, so that only the item that holds them is dropped.
    utf8 = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape")
    with archive.open(name) as file:
        while True:
            at = _SPACE.match(text, at).end()  # type: ignore[union-attr]
            if number == 0 and text[at : at + 1] not in ("[", ""):
                raise DataError(f"{archive.uri}: {name} is not a JSON list")
            try:
                if at == len(text):
                    raise ValueError("it ends in the middle")
                if number == 0:
                    number, at = 1, at + 1
                    continue
                if text[at] == "]":
                    return
                value, end = decoder.raw_decode(text, at)
                if not _END.match(text, end) and not (ended and not text[end:].strip()):
                    raise ValueError("it goes on")
            except (ValueError, RecursionError) as error:
                if ended or len(text) - at > MAX_ITEM_CHARS:
                    detail = f"item {number - 1} is not valid JSON ({error}); nothing behind it in {name} can be read"
                    yield max(number - 1, 0), Drop(MALFORMED_ROW, detail)
                    return
                # As much again as there is: an item is looked at a few times, however long it is.
                try:
                    data = file.read(max(CHUNK_BYTES, len(text) - at))
                except DAMAGED:
                    data = b""
                text, at, ended = text[at:] + utf8.decode(data, final=not data), 0, not data
                continue
            yield number - 1, _item(text[at:end], value)
            number, at = number + 1, end


def _item(text: str, value: Any) -> Any:
    try:
        text.encode()
        _check(text, value)
    except ValueError as error:
        return Drop(MALFORMED_ROW, f"not valid UTF-8: {error}")
    return value
