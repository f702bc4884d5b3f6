"""VaLR: what the method says of itself without torch. Table and figure numbers are arXiv 2602.04476's."""

from __future__ import annotations

from collections.abc import Callable
from math import isqrt
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, field_validator

from amvl_core.contracts.encoders import EncoderConfig
from amvl_core.contracts.latent import LatentConfig
from amvl_core.contracts.method import Published
from amvl_core.methods.masks import LaterMaskedMethod
from amvl_core.methods.reply_blocks import ReplyBlocks

if TYPE_CHECKING:
    from amvl_core.contracts.ablations import Table
    from amvl_core.contracts.config import RunConfig
    from amvl_core.methods.cost import Cost


class ValrMethod(LaterMaskedMethod, ReplyBlocks):
    """Vision-aligned latent reasoning: blocks of K fed-back states before steps, aligned with frozen encoders.

    L = L_CE + `align_weight` L_REPA. What the paper leaves open is decided in docs/decisions.
    """

    kind: Literal["valr"] = "valr"
    label = "VaLR"
    has_latents = True
    writes_blocks = True
    model_type = "valr"
    own_parts = ("projectors.",)
    columns: ClassVar = {**ReplyBlocks.columns, "align": ("align",)}
    encoders: tuple[EncoderConfig, ...] = Field(
        (EncoderConfig(name="dinov3", source="facebook/dinov3-vitl16-pretrain-lvd1689m"),),
        description="frozen encoders that the slots are aligned with; none: no alignment",
    )
    align_weight: float = Field(0.5, ge=0, description="lambda; 0: no alignment")
    align_layer: int = Field(12, ge=1, description="the layer whose states are aligned, as in `hidden_states`")
    interpolation: Literal["bilinear", "linear"] = Field(
        "bilinear", description="K slots -> patches: as a square on the patches' grid, or along the sequence"
    )
    projector_width: int = Field(2048, ge=1, description="hidden width of psi, a perceptron of three layers")
    gradient_hops: int | None = Field(
        None, ge=0, description="feed-back links in a row that gradient passes; 0: none, left out: all (exact)"
    )

    @field_validator("encoders")
    @classmethod
    def _named_once(cls, encoders: tuple[EncoderConfig, ...]) -> tuple[EncoderConfig, ...]:
        names = [encoder.name for encoder in encoders]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"two encoders are called {twice[0]!r}; give each a name of its own")
        return encoders

    @property
    def aligned_with(self) -> tuple[EncoderConfig, ...]:
        """The encoders whose features its loss needs."""
        return self.encoders if self.align_weight else ()

    def cost(self, latent: LatentConfig) -> Cost:
        """Packed rows and a pass for each slot."""
        from amvl_core.methods.valr.cost import ValrCost

        return ValrCost(self, latent)

    def problem(self, latent: LatentConfig, num_layers: int | None, zero_stage: int) -> str | None:
        """K that is no square, a layer that is not there, a ZeRO stage under which ranks would wait for each other."""
        k = latent.num_slots
        if self.aligned_with and self.interpolation == "bilinear" and isqrt(k) ** 2 != k:
            return (
                f"latent.num_slots is {k}, which is no square; bilinear interpolation takes 1, 4, 9, 16, 25 ... slots "
                "(or set interpolation to linear)"
            )
        if self.aligned_with and num_layers is not None and self.align_layer > num_layers:
            return f"align_layer is {self.align_layer}, the base model has {num_layers} layers; set it lower"
        if zero_stage == 3:
            return (
                "zero_stage 3 gathers all weights anew for every fed-back slot, and ranks whose samples have unequally "
                "many blocks would wait for each other for ever; use 0, 1 or 2"
            )
        return None

    @classmethod
    def presets(cls) -> dict[str, Callable[[], RunConfig]]:
        """The paper's run, the demo, and the bases of the ablation tables at the demo's size."""
        from amvl_core.methods.valr import presets

        return {
            "valr": presets.valr,
            "valr-demo": presets.valr_demo,
            "valr-ablation": presets.valr_ablation,
            "valr-data": presets.valr_data,
        }

    @classmethod
    def published(cls) -> Published:
        """Its tables of VSI-Bench, BLINK, MMVP, MMStar, V* and CV-Bench."""
        from amvl_core.methods.valr.published import PUBLISHED

        return PUBLISHED

    @classmethod
    def tables(cls) -> dict[str, Table]:
        """The paper's ablations, and the controls."""
        from amvl_core.methods.valr.tables import TABLES

        return TABLES


CONFIG = ValrMethod
