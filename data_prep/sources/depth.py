"""How deeply a row may be nested: whoever walks through one goes a call or two deeper with each level."""

from __future__ import annotations

from typing import Any

MAX_DEPTH = 300
TOO_DEEP = f"it is nested too deeply, at most {MAX_DEPTH} levels are read"


def too_deep(value: Any) -> bool:
    """Whether lists and objects lie more than `MAX_DEPTH` deep in each other."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        nested = [item for item in level if isinstance(item, list | tuple | dict)]
        if not nested:
            return False
        level = [child for item in nested for child in (item.values() if isinstance(item, dict) else item)]
    return True
