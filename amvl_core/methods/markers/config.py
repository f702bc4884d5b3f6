"""Markers without slots: what the method says of itself without torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from amvl_core.contracts.latent import LatentConfig
from amvl_core.contracts.sample import Segment, StoredSample
from amvl_core.methods.masks import MaskedMethod
from amvl_core.methods.reply_blocks import LATENT_END, LATENT_START, ReplyBlocks

if TYPE_CHECKING:
    from amvl_core.contracts.config import RunConfig


class MarkersMethod(MaskedMethod, ReplyBlocks):
    """The two markers of a latent block with no slot between them; the model writes both. Next-token loss alone.

    The control for fed-back latents: the same places, and no state in them.
    """

    kind: Literal["markers"] = "markers"
    label = "markers only"

    def slots(self, latent: LatentConfig) -> list[str]:
        """None."""
        return []

    def block(self, latent: LatentConfig, image: int | None) -> tuple[Segment, ...]:
        """Both markers."""
        return (Segment("step", LATENT_START + LATENT_END),)

    def answers_next(self, sample: StoredSample) -> bool:
        """Never: the model writes the markers first."""
        return False

    def further_tokens(self, latent: LatentConfig) -> int:
        """The markers of all blocks, which count as written."""
        return self.added_tokens(latent)

    @classmethod
    def control(cls, config: RunConfig) -> tuple[str, RunConfig]:
        """Markers in the place of the latents, in the same stages."""
        from amvl_core.contracts.ablations import replaced

        return cls.label, replaced(config, cls)


CONFIG = MarkersMethod
