"""How published reasoning is cut into steps."""

from __future__ import annotations

import re

_THOUGHT = re.compile(r"(?<!\S)THOUGHT \d+:\s*")
_ACTION = re.compile(r"(?<!\S)ACTION \d+:")


def thoughts(trace: str) -> list[str]:
    """The texts between `THOUGHT 0:`, `THOUGHT 1:` ..., and what stands before the first of them."""
    return [part for part in (part.strip() for part in _THOUGHT.split(trace)) if part]


def without_action(thought: str) -> tuple[str, str]:
    """A thought and the `ACTION n:` behind it: code that edits the image, which is not reasoning in words."""
    found = _ACTION.search(thought)
    return (thought[: found.start()].strip(), thought[found.end() :].strip()) if found else (thought.strip(), "")


def numbered(text: str) -> list[str]:
    """The sentences of `1. ... 2. ...`, one a line or running on; the whole text where it is not numbered."""
    parts: list[str] = []
    rest = text.strip()
    # Running on, a number begins a sentence only behind the end of another.
    gap = r"\n\s*" if re.search(r"\n\s*2\.\s", rest) else r"(?<=[^\w\s,])\s+"
    while found := re.match(rf"{len(parts) + 1}\.\s+", rest):
        after = re.search(rf"{gap}(?={len(parts) + 2}\.\s)", rest)
        end, follow = (after.start(), after.end()) if after else (len(rest), len(rest))
        parts.append(rest[found.end() : end].strip())
        rest = rest[follow:]
    return parts or ([rest] if rest else [])


def paragraphs(text: str) -> list[str]:
    """What blank lines divide."""
    return [part.strip() for part in re.split(r"\n\s*\n", text) if part.strip()]


def boxed(text: str) -> tuple[str, str] | None:
    r"""What stands before the sentence of the last `\boxed{...}`, and what is in the braces; None without one."""
    start = text.rfind(r"\boxed{")
    if start < 0:
        return None
    depth, at = 0, start + len(r"\boxed")
    for end in range(at, len(text)):
        depth += (text[end] == "{") - (text[end] == "}")
        if depth == 0:
            sentence = max((found.end() for found in re.finditer(r"[.!?]\s+|\n", text[:start])), default=0)
            return text[:sentence].strip(), text[at + 1 : end].strip()
    return None
