"""Where an output holds the text of an option, as a value of its own and not as a part of another one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import pairwise

from amvl_core.eval.score import folded, normalise

Place = tuple[int, int]
"""Start and end in a text."""

UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u31ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff"
"""Thai to Khmer, Chinese, Japanese, Korean: their letters touch a word of another script without being a part of it."""

WORD = rf"[^\W{UNSPACED}]"

# What makes another value of a text that it touches: "blue-green", "C#", "0.5", "5%", "f(3)", "o'clock".
_BEFORE = re.compile(rf"(?:{WORD}|[-+/\\#&@%^~$€£¥°±.]|\w['(])\Z")
_AFTER = re.compile(rf"{WORD}|[-+/\\#&@%^€£¥°]|['.(]\w")
# And of a number, also across a blank: its sign, its other half ("1 3/4", "3 to 5", "3:30"), a factorial, "million".
_NUMBER_BEFORE = re.compile(
    r"(?:\d[,:*]|[<~]|!=|(?<![-=])>|[-负負]|分之|マイナス|마이너스|[+/^×÷$€£¥±≈]|\d|\d *\*|\d (?:to|or|and)"
    r"|\b(?:minus|negative|than)) *\Z"
)
_NUMBER_AFTER = re.compile(
    r"[,:] *\d|!(?!=)|\.\.| *(?:[$€£¥%‰×÷^<>°/+\d]|!=|[-*x] *\d|(?:percent|hundred|thousand|million|billion)\b)"
    r"| (?:to|or|and|of|out of) [-+.]?\d| and a (?:half|quarter)\b|[十百千万萬亿億兆]|分之|[点點]\d"
)
_NO_ANSWER = re.compile(r" (?:doubt|question|way|idea|matter|longer|reason|need|problem|wonder|means|more|less|one)\b")
"""What makes of "no" a part of another phrase."""
_STARTS_WITH_NUMBER = re.compile(r"[^\w\s]*(?:\d|[^\W\d] ?[-+*/<>=^])")
_OPERATORS = "<>=+*/×÷"


def same(said: str, options: Mapping[str, str]) -> str | None:
    """The one option whose text `said` is, alone or behind its letter; as it is written before as it is normalised."""
    texts = {letter: text for letter, text in options.items() if normalise(text)}
    for form in (str.strip, normalise):
        equal = [letter for letter, text in texts.items() if form(folded(text)) == form(said)]
        if len(equal) == 1:
            return equal[0]
    label = re.match(r"\W*(?:option )?([A-Z])[\s.,:)\]、-]+(.+)", said, re.DOTALL)
    labelled = label and label[1] in texts and normalise(label[2]) == normalise(texts[label[1]])
    return label[1] if label and labelled else None


def occurrences(said: str, options: Mapping[str, str]) -> dict[str, list[Place]]:
    """Option letter -> the places of its text in `said`, which is folded and without case; no letter without a place.

    A text of one letter is not looked for: it is a word of many sentences ("a", "I").
    """
    found: dict[str, list[Place]] = {}
    for letter, text in options.items():
        wanted = normalise(text)
        if wanted and not (len(wanted) == 1 and wanted.isalpha()):
            places = [place.span() for place in _pattern(wanted).finditer(said)]
            if whole := [place for place in places if _whole(said, *place)]:
                found[letter] = whole
    return found


def _pattern(wanted: str) -> re.Pattern[str]:
    """The text's words and signs. Blanks around an operator do not count, and a hyphen between words is a blank."""
    wanted = re.sub(r"(?<=[^\W\d_])-(?=[^\W\d_])", " ", wanted)
    parts = re.findall(rf"[{_OPERATORS}]|[^\s{_OPERATORS}]+", wanted)
    pattern = re.escape(parts[0])
    for before, part in pairwise(parts):
        operator = before in _OPERATORS or part in _OPERATORS
        pattern += (r"\s*" if operator else r"(?:\s+|(?<=[^\W\d_])-(?=[^\W\d_]))") + re.escape(part)
    return re.compile(pattern)


def _whole(said: str, start: int, end: int) -> bool:
    """Whether the text at this place is a value of its own."""
    text, before, after = said[start:end], said[:start], said[end:]
    if _BEFORE.search(before[-3:]) or _AFTER.match(after):
        return False
    if text == "no" and _NO_ANSWER.match(after):
        return False
    edges = (before[-1:] + text[0], text[-1] + after[:1])
    if not any(map(str.isalnum, text)) and any(re.search(r"\w|[.,:;!?]{2}", edge) for edge in edges):
        return False
    # Script without blanks: a text that goes on to the left or right may be any other word.
    if re.fullmatch(rf"\w[{UNSPACED}]", edges[0]) or re.fullmatch(rf"[{UNSPACED}]\w", edges[1]):
        return False
    if _STARTS_WITH_NUMBER.match(text) and _NUMBER_BEFORE.search(before[-16:]):
        return False
    quoted = after[:1] in ("'", '"') and before[-1:] != after[:1]  # feet and inches
    return not (text[-1].isdigit() and (quoted or _NUMBER_AFTER.match(after)))
