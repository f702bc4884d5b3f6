"""Which tokens attend to images, for the methods whose training is one plain pass. Imports no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from amvl_core.contracts.method import MethodConfig


class MaskedMethod(MethodConfig):
    """The field of a method that may hide images from all tokens but its slots (LIVR, arXiv 2512.21218)."""

    mask: Literal["full", "bottleneck"] = Field(
        "full",
        description="bottleneck: only slots and images attend to images, so what question and reply know of them has "
        "passed the slots; without slots it has not passed at all",
    )

    @property
    def bottleneck(self) -> bool:
        """As `mask` says."""
        return self.mask == "bottleneck"
