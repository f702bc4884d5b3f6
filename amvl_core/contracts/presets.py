"""Whole configurations by name. A method brings its own. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable

from amvl_core.contracts.config import RunConfig
from amvl_core.contracts.method import configurations

PRESETS: dict[str, Callable[[], RunConfig]] = {
    name: preset for method in configurations().values() for name, preset in method.presets().items()
}
