"""JSON lines and JSON lists as streams: one value at a time, and a Drop in the place of what cannot be read."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import IO, Any

from amvl_core.contracts.errors import DataError
from data_prep.filters import MALFORMED_ROW, Drop
from data_prep.sources.archive_members import DAMAGED, Archive, DamagedMemberError

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
    try:
        with archive.open(name) as file:
            for line in file:
                number += 1
                if line.strip():
                    yield number, _line(line)
    except (*DAMAGED, DamagedMemberError) as error:
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


def is_list(archive: Archive, name: str) -> bool:
    """Whether a JSON file is a list, or is so damaged that `json_items` must say it."""
    try:
        with archive.open(name) as file:
            return _Text(file).ahead() in ("[", "")
    except (*DAMAGED, DamagedMemberError):
        return True


def json_items(archive: Archive, name: str) -> Iterator[tuple[int, Any]]:
    """(number from 0, value or Drop) of every item of a JSON list.

    Raises DataError if it is no list, or breaks off: what is behind that cannot be counted, so it would be lost unseen.
    """
    number = 0
    try:
        with archive.open(name) as file:
            text = _Text(file)
            if text.ahead() not in ("[", ""):
                raise DataError(f"{archive.uri}: {name} is not a JSON list")
            text.at += 1
            while text.ahead() != "]":
                yield number, text.item()
                number += 1
    except (ValueError, RecursionError, *DAMAGED, DamagedMemberError) as error:
        raise DataError(
            f"{archive.uri}: {name} is cut or damaged: item {number} is not valid JSON ({error}), and nothing behind "
            "it can be read; download it again and compare its checksum, or repair it"
        ) from error


class _Text:
    """A window on the text of a JSON list; `at` is where the next item begins in it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._text, self.at, self._ended = "", 0, False
        # Bytes that are no UTF-8 come through as surrogates, so that only the item that holds them is dropped.
        self._utf8 = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape")
        self._json = json.JSONDecoder()

    def ahead(self) -> str:
        """The next character that is no space or comma; empty text at the end."""
        while True:
            self.at = _SPACE.match(self._text, self.at).end()  # type: ignore[union-attr]
            if self.at < len(self._text) or self._ended:
                return self._text[self.at : self.at + 1]
            self._more()

    def item(self) -> Any:
        """The next item, or a Drop where it is no text. Raises ValueError where no item can be told from the rest."""
        while True:
            try:
                value, end = self._json.raw_decode(self._text, self.at)
                if not _END.match(self._text, end) and not (self._ended and not self._text[end:].strip()):
                    raise ValueError("it goes on")
            except (ValueError, RecursionError):
                if self._ended or len(self._text) - self.at > MAX_ITEM_CHARS:
                    raise
                self._more()
                continue
            found = _item(self._text[self.at : end], value)
            self.at = end
            return found

    def _more(self) -> None:
        """Reads as much again as there is: an item is looked at a few times, however long it is."""
        data = self._file.read(max(CHUNK_BYTES, len(self._text) - self.at))
        self._text = self._text[self.at :] + self._utf8.decode(data, final=not data)
        self.at, self._ended = 0, not data


def _item(text: str, value: Any) -> Any:
    try:
        text.encode()
        _check(text, value)
    except ValueError as error:
        return Drop(MALFORMED_ROW, f"not valid UTF-8: {error}")
    return value
