"""Markers without slots: fine-tuning on a reply that has both markers."""

from __future__ import annotations

from typing import Any

from amvl_core.backbones.processor import AMVLProcessor
from amvl_core.contracts.latent import LatentConfig
from amvl_core.methods.loading import add_tokens, load_stock
from amvl_core.methods.reply_blocks import LATENT_END, LATENT_START
from amvl_core.methods.sft.method import Sft


class Markers(Sft):
    """The base model's class with rows for two more tokens."""

    @classmethod
    def load(cls, folder: str, processor: AMVLProcessor, latent: LatentConfig, **kwargs: Any) -> Any:
        """The stock model with both markers, from a base or from a checkpoint of its own."""
        model = load_stock(folder, processor, None, **kwargs)
        add_tokens(model, processor, [LATENT_START, LATENT_END], latent.token_init)
        model.config.update({"marker_token_ids": processor.tokenizer.convert_tokens_to_ids([LATENT_START, LATENT_END])})
        return model

    def new_token_rows(self) -> list[int]:
        """Both markers."""
        found: list[int] = self.model.config.marker_token_ids
        return found


METHOD = Markers
