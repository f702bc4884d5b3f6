"""JSON lines and JSON lists as streams: one value at a time, and a Drop in the place of what cannot be read.

A file may be compressed, and be UTF-8, UTF-16 or UTF-32, with or without a byte order mark; a line ends as it does on
any system.
"""

from __future__ import annotations

import codecs
import io
import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from amvl_core.contracts.errors import DataError
from data_prep.filters import MALFORMED_ROW, Drop
from data_prep.sources.archive_members import DAMAGED, Archive, DamagedMemberError, decompressor
from data_prep.sources.depth import MAX_DEPTH, TOO_DEEP, too_deep

CHUNK_BYTES = 2**20
MAX_ITEM_CHARS = 2**26
"""A list item that is longer than this is taken for a damaged one, and a line is not read."""

SHOWN_CHARS = 30
"""Of the text on either side of what is no JSON."""

_END = re.compile(r"\s*[,\]]")
_SPACE = re.compile(r"[\s,]*")
# Half of a surrogate pair is legal in JSON but is no text: nothing can store or tokenise it.
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_NO_BYTE = re.compile("[\udc80-\udcff]")
# A text, one that the end cuts off, a bracket; what is none of them holds no bracket that counts.
_BRACKET = re.compile(r'"(?:[^"\\]|\\.)*(?:"|\\?\Z)|[\[\]{}]', re.DOTALL)
_BARE = re.compile(r'[^\s,\[\]{}"]+')
_DIGITS = re.compile(r"\d{1000,}")


@contextmanager
def _opened(archive: Archive, name: str) -> Iterator[tuple[IO[bytes], str, str]]:
    """A file, decompressed, the encoding of its text, and what is done with bytes that are no text.

    Bytes that are no UTF-8 come through as surrogates, so that only the value that holds them is dropped.
    """
    with archive.open(name) as raw:
        decompress = decompressor(raw.read(6))
        raw.seek(0)
        with decompress(raw) if decompress else raw as file:
            encoding = json.detect_encoding(file.read(4))
            file.seek(0)
            if encoding.startswith("utf-8"):
                yield file, "utf-8-sig", "surrogateescape"
            else:
                yield file, encoding, "surrogatepass"


def json_lines(archive: Archive, name: str) -> Iterator[tuple[int, Any]]:
    """(line number from 1, value or Drop) of every line that is not blank.

    Raises DataError if the file breaks off, or cannot be read or decompressed: what is behind that cannot be counted.
    """
    number = 0
    try:
        with _opened(archive, name) as (file, encoding, errors):
            text = io.TextIOWrapper(file, encoding, errors)
            while line := text.readline(MAX_ITEM_CHARS + 1):
                number += 1
                if len(line) > MAX_ITEM_CHARS and not line.endswith("\n"):
                    yield number, Drop(MALFORMED_ROW, f"the line is longer than {MAX_ITEM_CHARS:,} characters")
                    while line and not line.endswith("\n"):
                        line = text.readline(CHUNK_BYTES)
                elif line.strip():
                    yield number, _line(line.lstrip("\ufeff"))
    except (UnicodeError, *DAMAGED, DamagedMemberError) as error:
        raise _broken(archive, name, f"line number {number + 1} cannot be read ({error})") from error


def _broken(archive: Archive, name: str, what: str) -> DataError:
    return DataError(
        f"{archive.uri}: {name} is cut or damaged: {what}, and nothing behind it can be read; download it again and "
        "compare its checksum, or repair it"
    )


def _line(line: str) -> Any:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        return Drop(MALFORMED_ROW, f"not valid JSON: {_wrong(line.rstrip(), error)}")
    return _checked(line, value)


def _checked(text: str, value: Any) -> Any:
    """`value`, or a Drop where a part of its `text` is no text, or too deep to walk through."""
    if text.count("[") + text.count("{") > MAX_DEPTH and too_deep(value):
        return Drop(MALFORMED_ROW, TOO_DEEP)
    try:
        text.encode()
        if _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except ValueError as error:
        return Drop(MALFORMED_ROW, _no_byte(text) or f"half of a surrogate pair is no text: {error}")
    return value


def _no_byte(text: str) -> str:
    found = _NO_BYTE.search(text)
    if found is None:
        return ""
    return f"byte {ord(found[0]) - 0xDC00:#x} at character {found.start() + 1} is no UTF-8; save the file as UTF-8"


def _wrong(text: str, error: Exception, start: int = 0) -> str:
    """What is wrong with the text from `start` on, which cannot be read as JSON, and where."""
    if isinstance(error, RecursionError):
        return TOO_DEEP
    if not isinstance(error, json.JSONDecodeError):
        digits = max((len(found) for found in _DIGITS.findall(text, start)), default=0)
        return f"an integer of {digits:,} digits, at most {sys.get_int_max_str_digits():,} are read"
    before, after = text[start : error.pos], text[error.pos :]
    if said := _no_byte(text):
        return said
    what = error.msg
    if before.rstrip().endswith(",") and after[:1] in ("}", "]"):
        what = f"a comma before {after[0]}"
    elif error.msg == "Extra data":
        what = "a comma behind the value" if after.strip() == "," else "it goes on behind the value"
    elif after[:1] == "'":
        what = "texts stand in double quotes"
    shown = " ".join(f"{before[-SHOWN_CHARS:]} >>> {after[:SHOWN_CHARS]}".split())
    return f"{what}, at character {len(before) + 1}: {shown}"


def json_values(archive: Archive, name: str) -> Iterator[tuple[str, int, Any]]:
    """("line" or "item", number from 1, value or Drop): lines or a list, whichever the file holds, whatever its name.

    Raises DataError where it is neither, or breaks off.
    """
    first = _first(archive, name)
    lines = ".jsonl" in name
    if first == "{" and not lines:
        _, value = next(json_lines(archive, name), (0, None))
        lines = isinstance(value, dict) and ("messages" in value or "conversations" in value)
    if first == "[" or not lines:
        yield from (("item", number + 1, value) for number, value in json_items(archive, name))
    else:
        yield from (("line", number, value) for number, value in json_lines(archive, name))


def _first(archive: Archive, name: str) -> str:
    """The first character of a file that is no space; empty where it has none, or cannot be read."""
    try:
        with _opened(archive, name) as (file, encoding, errors):
            return _Text(file, encoding, errors).ahead()
    except (UnicodeError, *DAMAGED, DamagedMemberError):
        return ""


def is_list(archive: Archive, name: str) -> bool:
    """Whether a JSON file is a list, or is so damaged that `json_items` must say it."""
    return _first(archive, name) in ("[", "")


def json_items(archive: Archive, name: str) -> Iterator[tuple[int, Any]]:
    """(number from 0, value or Drop) of every item of a JSON list.

    Raises DataError if it is no list, breaks off or goes on behind its end: what is behind that cannot be counted, so
    it would be lost unseen.
    """
    number = 0
    try:
        with _opened(archive, name) as opened:
            text = _Text(*opened)
            if text.ahead() not in ("[", ""):
                raise DataError(f"{archive.uri}: {name} is not a JSON list")
            text.at += 1
            while text.ahead() != "]":
                yield number, text.item()
                number += 1
            text.at += 1
            if text.ahead():
                raise DataError(f"{archive.uri}: {name} goes on behind the end of its list; write one list into it")
    except (ValueError, *DAMAGED, DamagedMemberError) as error:
        raise _broken(archive, name, f"item number {number + 1} is not valid JSON ({error})") from error


class _Text:
    """A window on the text of a JSON list; `at` is where the next item begins in it."""

    def __init__(self, file: IO[bytes], encoding: str, errors: str) -> None:
        self._file = file
        self._text, self.at, self._ended = "", 0, False
        self._decoder = codecs.getincrementaldecoder(encoding)(errors)
        self._json = json.JSONDecoder()

    def ahead(self) -> str:
        """The next character that is no space or comma; empty text at the end."""
        while True:
            self.at = _SPACE.match(self._text, self.at).end()  # type: ignore[union-attr]
            if self.at < len(self._text) or self._ended:
                return self._text[self.at : self.at + 1]
            self._more()

    def item(self) -> Any:
        """The next item, or a Drop where it cannot be read. Raises ValueError where it cannot be told from the rest."""
        while True:
            end, found, wrong = self._try()
            if end is not None and (_END.match(self._text, end) or (self._ended and not self._text[end:].strip())):
                self.at = end
                return found
            if self._ended or len(self._text) - self.at > MAX_ITEM_CHARS:
                raise ValueError(wrong or "it goes on behind the item")
            self._more()

    def _try(self) -> tuple[int | None, Any, str]:
        """Where the item that begins here ends, and what it is; where no end is seen, None and what is wrong."""
        try:
            value, end = self._json.raw_decode(self._text, self.at)
        except json.JSONDecodeError as error:
            return None, None, _wrong(self._text, error, self.at)
        except (ValueError, RecursionError) as error:
            behind = self._behind()
            wrong = _wrong(self._text[: len(self._text) if behind is None else behind], error, self.at)
            return behind, Drop(MALFORMED_ROW, wrong), wrong
        return end, _checked(self._text[self.at : end], value), ""

    def _behind(self) -> int | None:
        """Where an item that is JSON, but cannot be read, ends; None where its end has not been reached."""
        if bare := _BARE.match(self._text, self.at):
            return bare.end()
        depth = 0
        for found in _BRACKET.finditer(self._text, self.at):
            depth += (found[0] in "[{") - (found[0] in "]}")
            if depth == 0:
                return found.end()
        return None

    def _more(self) -> None:
        """Reads as much again as there is: an item is looked at a few times, however long it is."""
        data = self._file.read(max(CHUNK_BYTES, len(self._text) - self.at))
        self._text = self._text[self.at :] + self._decoder.decode(data, final=not data)
        self.at, self._ended = 0, not data
