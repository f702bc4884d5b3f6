"""The latent block of a run: one place for all stages that have one."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from amvl_core.contracts.frozen import Settings


class LatentConfig(Settings):
    """Latent block and variational parts (Eq. 5 to 9, Tables 4 and 8)."""

    num_slots: int = Field(8, ge=1, description="k")
    dim: int = Field(512, ge=1, description="d")
    head: Literal["linear", "mlp", "native", "deeper"] = Field("native", description="Table 8; native is Eq. 8")
    head_hidden: int = Field(1024, ge=1)
    separate_heads: bool = Field(False, description="a posterior head of its own; the paper shares one")
    slot_tokens: Literal["distinct", "shared"] = Field("distinct", description="a token per slot, or one for all")
    token_init: str | None = Field(
        None,
        exclude_if=lambda text: text is None,
        description="the token of the base model, as text, whose embedding the new tokens start from (Coconut's code: "
        '"<<", which opens a calculation); null: the mean of all (App. E)',
    )
    injector: Literal["linear", "mlp"] = "linear"
    logvar_min: float = -8.0
    logvar_max: float = 4.0

    @model_validator(mode="after")
    def _bounds(self) -> LatentConfig:
        if self.logvar_min >= self.logvar_max:
            raise ValueError(f"logvar_min ({self.logvar_min}) must be below logvar_max ({self.logvar_max})")
        return self
