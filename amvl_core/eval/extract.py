"""Our own reading of an answer: the final answer span first, then the option or words in it.

The harnesses' readings, slips included, are in `lmms_eval.py` and `vlmevalkit.py`; both scores are reported side by
side, because the same texts score up to 40 points apart under different extractors.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from amvl_core.eval.option_texts import UNSPACED, WORD, Place, occurrences, same
from amvl_core.eval.score import folded, shaped
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
_ANSWER_LINE = re.compile(
    r"^[\W_]*(?:(?:final\s+|correct\s+)?answer|(?:最终|正确|最終)?答案|答え|正解|정답|답)"
    r"\W*[:\uff1a](?:\*\*|__)?\W*?(\S.*)$",
    re.IGNORECASE | re.MULTILINE,
)
_TAG = re.compile(r"</?[A-Za-z]\w*>")
_MATH = re.compile(r"(?<!\w)\$(?=\S)([^$\n]*?\S)\$(?!\d)|\\\((.+?)\\\)")

# A letter that is a word of its own: not of "C++", "B-52", "U.S.A", "R&B", "P(A)", "A's", "c < 3".
_BEFORE = (
    rf"(?<!{WORD})(?<![+&@#^~/\\±¬√])(?<!(?<!option)-)(?<!\w')(?<!{WORD}\.)"
    r"(?<!(?<![A-Za-z])[A-Za-z]\()(?<!\w[<>])(?<!\w [<>+] )"
)
_AFTER = (
    rf"(?!{WORD})(?![-+#&@^/\\%°])(?! *(?:[<>+]|!?=) *\w)(?!'\w)(?:(?<='.)|(?!'))"
    r"(?!\.(?:\d|[A-Za-z](?![A-Za-z])))(?!\((?![^\W\d]{2}))"
)
_LETTER = rf"{_BEFORE}([A-Z]){_AFTER}"
_CLAIM = (
    r"(?:\b(?:(?:answer|option|choice)\b[^.\n]{0,80}?\b(?:is|be)|i\s+(?:choose|pick|select))\b"
    r"|(?:答案|正解|答え|정답|답)(?:选项|選項)?[应應]?[该該]?(?:是|为|為|は|은|는|选|選)"
    r"|(?:[我故应應该該]|所以|因此|(?<![^\s,。;!?、]))[选選][择擇]?)[\s:]*"
)
_CLAIMED = re.compile(rf"{_CLAIM}(?=(\S.*)$)", re.IGNORECASE | re.MULTILINE)
_STATED = re.compile(
    # "a" before a word is the article, so a small letter counts from b on, or at the end.
    rf"{_CLAIM}(?:option\s+)?[^\w\s]*{_BEFORE}((?-i:[A-Z]){_AFTER}|[b-z]{_AFTER}|a(?=\W*$))"
    # "A or B" and, where the clause ends with it, "A and B" state no answer.
    rf"(?!\W*(?:(?:\bor\b|/|或者?|还是|還是|[和与與及、]|か|と|또는)[选選]?\W*(?:option\s+)?[A-Z](?!{WORD})"
    r"|(?:\band\b|[&,])\W*(?:option\s+)?[A-Z]\b\W*(?:$|[.\n])))",
    re.IGNORECASE,
)
_LABELLED = re.compile(
    rf"^[^\w]*(?:option\s+|选项|選項)?{_LETTER}(?:[.):,;!?\]}}*\"'`>。、—]+(?:\s|$|(?=[{UNSPACED}]))|\s*$)",
    re.IGNORECASE,
)
_BARE = re.compile(rf"[\W_]*(?:(?:option|选项|選項)[\W_]*)?{_LETTER}[\W_]*", re.IGNORECASE)
_STANDALONE = re.compile(_LETTER)
# A at the start of a sentence, before a small letter, a number, a quotation or a name ("A Ford car"), but for a word
# that follows no article: "A is closer than B", "A Because it is red".
_ARTICLE = re.compile(
    r"(?<!\w)(?<![\w,;] )A(?= (?:[a-z\d\"']|[A-Z][\w-]* [a-z]))"
    r"(?! (?i:or|and|nor|vs|versus|but|to|over|rather|instead|than|because|since|so|as|if"
    r"|that|which|who|is|isn't|was|wasn't|has|hasn't|does|doesn't|would|should|could|cannot|seems|appears|looks|fits"
    r"|matches|shows|follows|completes|contains|represents|corresponds|for|from|with|without|in|on|at|by"
    r"|the|this|that's|it|its|it's|there|we|i"
    r"|(?:can|may|might|must|will) be)\b)"
)
# What follows a denial up to the end of its clause; the point of "2.5" ends none.
_DENIED = re.compile(
    r"(?:\b(?:not|cannot|never|neither|nor|impossible)\b|n't\b|[不非没沒别別勿]|排除|除了)(.*?)"
    r"(?=[;:!?。\n]|[.,](?!\d)|\b(?:but|so|because|since)\b|[而但因]|所以|$)",
    re.IGNORECASE,
)
_WRONG = r"(?:is|are|looks?|seems?) (?:wrong|incorrect|false)\b"
# Of a list it rules out all: "A, C and D are wrong".
_RULED_OUT = re.compile(rf"(?:(?:[\s,&]|\b(?:and|or)\b)+[A-Z]\b)*[\s\"'*)\]]*{_WRONG}", re.IGNORECASE)
_DENIED_BEHIND = re.compile(
    r"[\s\"'*)\]]*(?:(?:is|was|can|could|does|would|must)(?:n't| not)\b|cannot\b"
    rf"|{_WRONG}"
    r"|[选選]?[项項]?(?:不|并非|並非|是?错|是?錯)|では|じゃ|[가는은이]? ?아[니닙])",
    re.IGNORECASE,
)


def final_answer(text: str) -> str:
    r"""The span that states the answer.

    What follows the last latent block or thought; in it the last `<answer>` element, else the last `\boxed{}`, else
    the rest of the last "Answer:" line, else all of it.
    """
    span, labelled = _span(text)
    return (span.splitlines() or [""])[0] if labelled else span


def unwrapped(text: str, options: Mapping[str, str], gold: str = "") -> Extraction:
    """The option that the final answer names by text or letter; without options, as many of its lines as `gold` has.

    None where it names several, or one that it only denies ("not blue"), or a letter that is another option's text.
    """
    if not options:
        return Extraction(_free_text(text, gold) or None)
    written = folded(final_answer(text)).strip()
    span = _MATH.sub(lambda found: found[1] or found[2], written)
    claims = [found[1] for found in _CLAIMED.finditer(span) if not _denied(found.start(1), found.start(1), span)]
    for said in (written, span, *reversed(claims)):
        by_text, by_letter = same(said, options), _bare(_TAG.sub("", said), options)
        if by_text or by_letter:
            agreed = by_text == by_letter or None in (by_text, by_letter)
            return Extraction(by_text or by_letter) if agreed else NOTHING
    untagged = _TAG.sub("", span)
    return Extraction(_letter(untagged, options) or _by_text(span, options) or _only_letter(untagged, options))


def _free_text(text: str, gold: str) -> str:
    """The lines behind the label, else the last ones; all of the text counts where the gold answer has such marks."""
    if final_answer(gold) != gold.strip():
        return shaped(text, gold)
    span, labelled = _span(text)
    return shaped(span, gold, first=labelled)


def _span(text: str) -> tuple[str, bool]:
    """The final answer, and whether it stands behind a label; then what follows its line is still in it."""
    text = _THOUGHT_END.split(text)[-1].strip()
    if tagged := _TAGGED.findall(text):
        text = tagged[-1].strip()
    if (box := _boxed(text)) is not None:
        return box, False
    if labels := list(_ANSWER_LINE.finditer(text)):
        line = labels[-1][1].strip()
        if line.endswith("**") and line.count("**") == 1:  # "**Answer: 5**"
            line = line.removesuffix("**")
        return line + text[labels[-1].end() :], True
    return text, False


def _boxed(text: str) -> str | None:
    """The content of the last `\\boxed{...}` with balanced braces, without `\\text{}` around it and plain signs."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    begin = start + len("\\boxed{")
    depth, end = 1, begin
    while depth and end < len(text):  # generation may have stopped inside the box
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        end += 1
    inside = text[begin : end - (not depth)]
    inside = re.sub(r"\\(?:text|mathrm|mathbf|textbf)\s*", "", inside)
    inside = re.sub(r"\\[dt]?frac\{(-?\w+)\}\{(\w+)\}", r"\1/\2", inside)
    return re.sub(r"\\([%$#&_])", r"\1", inside).strip()


def _bare(said: str, options: Mapping[str, str]) -> str | None:
    """The letter that is all of it, with marks around."""
    bare = _BARE.fullmatch(said.strip("_* \n"))
    return _offered(bare[1], options) if bare else None


def _letter(span: str, options: Mapping[str, str]) -> str | None:
    """A letter that is stated ("the answer is B"), or labels the first line ("B. blue")."""
    if stated := [found for found in _STATED.finditer(span) if not _denied(*found.span(1), span)]:
        return _offered(stated[-1][1], options)
    lines = [line for line in span.splitlines() if line.strip()]
    listed = any(_LABELLED.match(line) for line in lines[1:])
    # What follows explains it, or is the rest of a list of options.
    if lines and (first := _label(lines[0], span if listed else lines[0], options)):
        return first
    # The last line too, but not the last of a list of options.
    if len(lines) > 1 and not _LABELLED.match(lines[-2]):
        return _label(lines[-1], lines[-1], options)
    return None


def _label(line: str, among: str, options: Mapping[str, str]) -> str | None:
    """The capital that labels the line ("B. blue"), unless `among` names another option too."""
    label = _LABELLED.match(line)
    if not label or not label[1].isupper() or _denied(*label.span(1), line):
        return None
    others = {match[1] for match in _named(among, options)} - {label[1]}
    return None if others else _offered(label[1], options)


def _by_text(span: str, options: Mapping[str, str]) -> str | None:
    """The one option whose text the span holds where nothing denies it; a text inside another found one is not one."""
    said = span.casefold()
    found = occurrences(said, options)
    outer = {
        letter: places
        for letter, places in found.items()
        if not all(any(_inside(place, other) for other in _others(found, letter)) for place in places)
    }
    if len(outer) != 1:
        return None
    ((letter, places),) = outer.items()
    return letter if any(not _denied(*place, said) for place in places) else None


def _others(found: Mapping[str, list[Place]], letter: str) -> list[Place]:
    return [place for other, places in found.items() if other != letter for place in places]


def _inside(place: Place, other: Place) -> bool:
    return place != other and other[0] <= place[0] and place[1] <= other[1]


def _only_letter(span: str, options: Mapping[str, str]) -> str | None:
    """The only option letter in the span, where A before a small letter is the article; not one that is denied."""
    found = _named(_ARTICLE.sub(" ", span), options)
    alone = len({match[1] for match in found}) == 1
    return found[0][1] if alone and any(not _denied(*match.span(1), span) for match in found) else None


def _named(span: str, options: Mapping[str, str]) -> list[re.Match[str]]:
    """The letters of options in the span, but for those that are said to be wrong ("B is right, A is wrong")."""
    found = [match for match in _STANDALONE.finditer(span) if match[1] in options]
    return [match for match in found if not _RULED_OUT.match(span, match.end())]


def _denied(start: int, end: int, span: str) -> bool:
    """Whether `not` or the like stands before the place in its clause, or "is wrong" behind it."""
    before = any(found.start(1) <= start < found.end(1) for found in _DENIED.finditer(span))
    return before or _DENIED_BEHIND.match(span, end) is not None


def _offered(letter: str, options: Mapping[str, str]) -> str | None:
    return letter.upper() if letter.upper() in options else None
