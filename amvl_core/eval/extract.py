"""Our own reading of an answer: the final answer span first, then the option or words in it.

The harnesses' readings, slips included, are in `lmms_eval.py` and `vlmevalkit.py`; both scores are reported side by
side, because the same texts score up to 40 points apart under different extractors.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping
from typing import NamedTuple

from amvl_core.methods.block import BLOCK_END


class Extraction(NamedTuple):
    """What an extractor read: an option's upper-case letter or free text; None where it found no answer.

    `drawn`: the harness draws an option at random here. Scoring puts a fixed draw in its place and counts it.
    """

    answer: str | None
    drawn: bool = False


Extractor = Callable[[str, Mapping[str, str]], Extraction]
"""(raw output, option letter -> option text) -> what was read. Without options the answer is free text."""

NOTHING = Extraction(None)
DRAWN = Extraction(None, drawn=True)

_THOUGHT_END = re.compile(rf"{re.escape(BLOCK_END)}|</\s*think\s*>", re.IGNORECASE)
_TAGGED = re.compile(r"<answer\b[^>]*>(.*?)(?:</\s*answer\s*>|$)", re.IGNORECASE | re.DOTALL)
_ANSWER_LINE = re.compile(r"^[\W_]*(?:final\s+|correct\s+)?answer\W*:\W*?(\S.*)$", re.IGNORECASE | re.MULTILINE)
_STATED = re.compile(
    r"\b(?:(?:answer|option|choice)\b[^.\n]{0,80}?\b(?:is|be)|i\s+(?:choose|pick|select))\b[\s:]*"
    # "a" before a word is the article, so a small letter counts from b on, or at the end.
    r"(?:option\s+)?[^\w\s]*((?-i:[A-Z])(?!\w)|[b-z](?!\w)|a(?=\W*$))"
    # "A or B" and, where the clause ends with it, "A and B" state no answer.
    r"(?!\W*(?:(?:\bor\b|/)\W*(?:option\s+)?[A-Z]\b|(?:\band\b|[&,])\W*(?:option\s+)?[A-Z]\b\W*(?:$|[.\n])))",
    re.IGNORECASE,
)
_LABELLED = re.compile(r"^[^\w]*(?:option\s+)?([A-Z])(?:[^\w\s]+(?:\s|$)|\s*$)", re.IGNORECASE)
_BARE = re.compile(r"[\W_]*(?:option[\W_]+)?([A-Z])[\W_]*", re.IGNORECASE)
_STANDALONE = re.compile(r"(?<!\w)([A-Z])(?!\w|')")
_ARTICLE = re.compile(r"(?<!\w)A(?= [a-z])(?! (?:or|and|nor|vs|versus|but|to|over|rather|instead)\b)")
_WORD = re.compile(r"\w+(?:[.,]\d+)?")
# What follows a denial up to the end of its clause; the point of "2.5" ends none.
_DENIED = re.compile(
    r"(?:\b(?:not|cannot|never|neither|nor)\b|n['\u2019]t\b)(.*?)(?=[;:!?\n]|[.,](?!\d)|\b(?:but|so|because|since)\b|$)",
    re.IGNORECASE,
)


def final_answer(text: str) -> str:
    r"""The span that states the answer.

    What follows the last latent block or thought; in it the last `<answer>` element, else the last `\boxed{}`, else
    the rest of the last "Answer:" line, else all of it.
    """
    text = _THOUGHT_END.split(text)[-1].strip()
    if tagged := _TAGGED.findall(text):
        text = tagged[-1].strip()
    if (box := _boxed(text)) is not None:
        return box
    if lines := _ANSWER_LINE.findall(text):
        return str(lines[-1]).strip()
    return text


def unwrapped(text: str, options: Mapping[str, str]) -> Extraction:
    """The option that the final answer names by letter or by text, or its last line where there are no options.

    None where it names several, or one that it only denies ("not blue").
    """
    span = unicodedata.normalize("NFKC", final_answer(text)).strip()
    if not options:
        return Extraction(last_line(span) or None)
    return Extraction(_letter(span, options) or _by_text(span, options) or _only_letter(span, options))


def last_line(text: str) -> str:
    """The last line that is not empty."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def _boxed(text: str) -> str | None:
    """The content of the last `\\boxed{...}` with balanced braces, without `\\text{}` around it."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    begin = start + len("\\boxed{")
    depth = 1
    for end in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        if depth == 0:
            return re.sub(r"\\(?:text|mathrm|mathbf|textbf)\s*", "", text[begin:end]).strip()
    return text[begin:].strip()  # generation stopped inside the box


def _letter(span: str, options: Mapping[str, str]) -> str | None:
    """A letter that stands alone, is stated ("the answer is B"), or labels the first line ("B. blue")."""
    if bare := _BARE.fullmatch(span):
        return _offered(bare[1], options)
    if stated := [found[1] for found in _STATED.finditer(span) if not _denied(found.start(1), span)]:
        return _offered(stated[-1], options)
    lines = [line for line in span.splitlines() if line.strip()]
    if lines and (first := _label(lines[0], span, options)):
        return first
    # The last line too, but not the last of a list of options.
    if len(lines) > 1 and not _LABELLED.match(lines[-2]):
        return _label(lines[-1], lines[-1], options)
    return None


def _label(line: str, among: str, options: Mapping[str, str]) -> str | None:
    """The capital that labels the line ("B. blue"), unless `among` names another option too."""
    label = _LABELLED.match(line)
    if not label or not label[1].isupper():
        return None
    others = {letter for letter in _STANDALONE.findall(among) if letter in options} - {label[1]}
    return None if others else _offered(label[1], options)


def _by_text(span: str, options: Mapping[str, str]) -> str | None:
    """The one option whose text the span is or holds as words; a text inside another found one does not count."""
    said = _words(span)
    texts = {letter: _words(text) for letter, text in options.items() if _words(text)}
    equal = [letter for letter, text in texts.items() if text == said]
    if len(equal) == 1:
        return equal[0]
    found = {letter: text for letter, text in texts.items() if f" {text} " in f" {said} "}
    longest = [
        letter for letter, text in found.items() if not any(text != other and text in other for other in found.values())
    ]
    return longest[0] if len(longest) == 1 and _affirmed(texts[longest[0]], span) else None


def _only_letter(span: str, options: Mapping[str, str]) -> str | None:
    """The only option letter in the span, where A before a small letter is the article; not one that is denied."""
    found = [match for match in _STANDALONE.finditer(_ARTICLE.sub(" ", span)) if match[1] in options]
    alone = len({match[1] for match in found}) == 1
    return found[0][1] if alone and any(not _denied(match.start(), span) for match in found) else None


def _affirmed(words: str, span: str) -> bool:
    """Whether the words are in the span, in a row, where nothing denies them."""
    said = list(_WORD.finditer(span.lower()))
    wanted = words.split()
    rows = (said[start : start + len(wanted)] for start in range(len(said)))
    return any([word.group() for word in row] == wanted and not _denied(row[0].start(), span.lower()) for row in rows)


def _denied(place: int, span: str) -> bool:
    """Whether `not` or the like stands before the place in its clause."""
    return any(found.start(1) <= place < found.end(1) for found in _DENIED.finditer(span))


def _offered(letter: str, options: Mapping[str, str]) -> str | None:
    return letter.upper() if letter.upper() in options else None


def _words(text: str) -> str:
    return " ".join(_WORD.findall(unicodedata.normalize("NFKC", text).lower()))
