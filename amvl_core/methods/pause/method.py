"""Learned pause tokens: the latent block with nothing in it but its tokens' own embeddings."""

from __future__ import annotations

from typing import Any

from amvl_core.backbones.processor import AMVLProcessor
from amvl_core.contracts.latent import LatentConfig
from amvl_core.methods.block import slot_tokens
from amvl_core.methods.loading import block_ids, load_stock
from amvl_core.methods.sft.method import Sft


class Pause(Sft):
    """Fine-tuning on [x, block, y]: the base model's class, a larger vocabulary, a prompt that ends with the block."""

    @classmethod
    def load(cls, folder: str, processor: AMVLProcessor, latent: LatentConfig, **kwargs: Any) -> Any:
        """The stock model with rows for the block's tokens."""
        return load_stock(folder, processor, slot_tokens(latent), latent.token_init, **kwargs)

    def new_token_rows(self) -> list[int]:
        """The slots and both markers."""
        return block_ids(self.model)


METHOD = Pause
