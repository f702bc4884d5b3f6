"""Learned pause tokens: what the method says of itself without torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from amvl_core.contracts.latent import LatentConfig
from amvl_core.methods.block import BlockMethod
from amvl_core.methods.curriculum import MixedStages, StepsReplaced
from amvl_core.methods.masks import MaskedMethod

if TYPE_CHECKING:
    from amvl_core.contracts.config import RunConfig


class PauseMethod(MaskedMethod, MixedStages, StepsReplaced, BlockMethod):
    """Learned pause tokens: the latent block stays what its tokens' embeddings are; next-token loss alone.

    The control for latents: the same sequence and the same additional computation, nothing read, sampled or injected.
    """

    kind: Literal["pause"] = "pause"
    label = "pause tokens"

    def slots(self, latent: LatentConfig) -> list[str]:
        """The first tokens of the block, as many as the stage has; the prompts of a trained model have all of them."""
        return super().slots(latent)[: self.block_length(latent)]

    @classmethod
    def control(cls, config: RunConfig) -> tuple[str, RunConfig]:
        """Learned pause tokens in the place of the latents, in the same stages."""
        from amvl_core.contracts.ablations import replaced

        return cls.label, replaced(config, cls)


CONFIG = PauseMethod
