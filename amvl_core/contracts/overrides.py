"""`FIELD=VALUE` on a command line -> changes that `config.override` lays over a preset. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from amvl_core.contracts.config import RunConfig
from amvl_core.contracts.errors import ConfigError


def parse(params: Sequence[str]) -> dict[str, Any]:
    """`seed=3`, `cluster={"num_workers": 1}` or `cluster.num_workers=1` -> nested changes of a `RunConfig`.

    A value is JSON, or else text. Raises ConfigError where a text is no assignment or its first field is unknown.
    """
    changes: dict[str, Any] = {}
    for text in params:
        path, sign, value = text.partition("=")
        if not sign or not path:
            raise ConfigError(f"--param {text}: write FIELD=VALUE, for instance --param seed=3")
        *parents, last = path.split(".")
        target = changes
        for parent in parents:
            target = target.setdefault(parent, {})
        target[last] = _value(value)
    if unknown := changes.keys() - RunConfig.model_fields.keys():
        known = ", ".join(RunConfig.model_fields)
        raise ConfigError(f"--param {', '.join(sorted(unknown))}: no such field; the fields are {known}")
    return changes


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
