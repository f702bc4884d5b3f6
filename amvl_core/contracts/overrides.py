"""`FIELD=VALUE` on a command line -> changes that `config.override` lays over a preset. Imports no torch."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from amvl_core.contracts.config import RunConfig, merge
from amvl_core.contracts.errors import ConfigError


def parse(params: Sequence[str]) -> dict[str, Any]:
    """`seed=3`, `cluster={"num_workers": 1}` or `cluster.num_workers=1` -> nested changes of a `RunConfig`.

    A value is JSON, or else text. Each lies over those before it, as changes lie over a preset. Raises ConfigError
    where a text is no assignment, its first field is unknown, it names a field of what was given as a list or text, or
    its value is nested too deeply or has an integer of thousands of digits.
    """
    changes: dict[str, Any] = {}
    for text in params:
        path, sign, value = text.partition("=")
        fields = path.split(".")
        if not sign or not all(fields):
            raise ConfigError(f"--param {text}: write FIELD=VALUE, for instance --param seed=3")
        try:
            _check_parents(changes, fields[:-1], text)
            change = _value(value, text)
            for field in reversed(fields):
                change = {field: change}
            changes = merge(changes, change)
        except RecursionError as error:
            raise ConfigError(f"--param {path}: it is nested too deeply for any field; give a plain value") from error
    if unknown := changes.keys() - RunConfig.model_fields.keys():
        known = ", ".join(RunConfig.model_fields)
        raise ConfigError(f"--param {', '.join(sorted(unknown))}: no such field; the fields are {known}")
    return changes


def _check_parents(changes: dict[str, Any], parents: Sequence[str], text: str) -> None:
    """An earlier parameter may have set one of `parents` to what has no fields, which would be lost."""
    given: Any = changes
    for number, parent in enumerate(parents, 1):
        given = given.get(parent, {})
        if not isinstance(given, dict):
            where = ".".join(parents[:number])
            raise ConfigError(f"--param {text}: {where} was given before as {json.dumps(given)}; give {where} once")


def _value(text: str, param: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=lambda pairs: _once(pairs, param))
    except json.JSONDecodeError:
        return text
    except ValueError as error:
        name, most = param.partition("=")[0], sys.get_int_max_str_digits()
        raise ConfigError(f"--param {name}: an integer of more than {most:,} digits; give a smaller one") from error


def _once(pairs: list[tuple[str, Any]], param: str) -> dict[str, Any]:
    """An object; JSON's own reader would keep only the last of several fields of one name."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ConfigError(f"--param {param}: {name} stands there twice; give it once")
        found[name] = value
    return found
