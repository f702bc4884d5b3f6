"""Learned pause tokens: the latent block with nothing in it but its tokens' own embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from amvl_core.backbones.processor import AMVLProcessor
from amvl_core.contracts.encoders import Patches
from amvl_core.contracts.latent import LatentConfig
from amvl_core.data.template import end_prompts_with
from amvl_core.methods.block import block_text, slot_tokens
from amvl_core.methods.loading import block_ids, load_stock
from amvl_core.methods.method import Method
from amvl_core.methods.pause.config import PauseMethod
from amvl_core.methods.sft.method import Sft


class Pause(Sft):
    """Fine-tuning on [x, block, y]: the base model's class, a larger vocabulary, a prompt that ends with the block."""

    config: PauseMethod

    @classmethod
    def load(cls, folder: str, processor: AMVLProcessor, latent: LatentConfig, **kwargs: Any) -> Any:
        """The stock model with rows for the block's tokens."""
        return load_stock(folder, processor, slot_tokens(latent), latent.token_init, **kwargs)

    def new_token_rows(self) -> list[int]:
        """The slots and both markers."""
        return block_ids(self.model)

    def equip(self, processor: AMVLProcessor, computed: Mapping[str, Patches], teacher: Method | None = None) -> None:
        """A prompt ends with the block of this stage, which may have fewer slots than there are tokens."""
        ids = self.model.config.slot_token_ids
        length = self.config.block_length(LatentConfig(num_slots=len(ids)))
        end_prompts_with(processor, block_text(processor.tokenizer.convert_ids_to_tokens(ids[:length])))


METHOD = Pause
