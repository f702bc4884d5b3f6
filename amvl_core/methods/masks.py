"""Which tokens attend to images: the field of a method that may hide them. Imports no torch."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from amvl_core.contracts.method import MethodConfig

Mask = Literal["full", "bottleneck"]


def _mask(**how: Any) -> Any:
    return Field(
        "full",
        description="bottleneck: only slots and images attend to images, so what question and reply know of them has "
        "passed the slots; without slots it has not passed at all",
        **how,
    )


class MaskedMethod(MethodConfig):
    """The field of a method that may hide images from all tokens but its slots (LIVR, arXiv 2512.21218)."""

    mask: Mask = _mask()

    @property
    def bottleneck(self) -> bool:
        """As `mask` says."""
        return self.mask == "bottleneck"


class LaterMaskedMethod(MaskedMethod):
    """The same of a method that was trained before it had the field: left out where full, fingerprints are as then."""

    mask: Mask = _mask(exclude_if=lambda mask: mask == "full")
