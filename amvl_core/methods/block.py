"""One latent block between prompt and answer (Eq. 5): its tokens and its layout, for every method that has one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from amvl_core.contracts.latent import LatentConfig
from amvl_core.contracts.method import MethodConfig
from amvl_core.contracts.sample import Segment, StoredSample
from amvl_core.data.template import end_prompts_with

BLOCK_START = "<abs_token>"
BLOCK_END = "</abs_token>"
BLOCK_FIELDS = ("block_start_token_id", "block_end_token_id", "slot_token_ids")
"""Of a model's configuration: the block's token ids."""


class BlockMethod(MethodConfig):
    """The fields of a method whose sequence is [prompt, block of `latent.num_slots` slots, steps, answer]."""

    reserved = r"</?abs_token>|<latent_pad(?:_\d+)?>"

    def slots(self, latent: LatentConfig) -> list[str]:
        """K tokens, or the same one K times (`latent.slot_tokens`)."""
        return slot_tokens(latent)

    def layout(self, sample: StoredSample, latent: LatentConfig) -> list[Segment]:
        """Prompt, block, steps, answer."""
        block = Segment("latent", block_text(self.slots(latent)))
        return [Segment("prompt", sample.question), block, *self.reply(sample)]

    def added_tokens(self, latent: LatentConfig) -> int:
        """The slots and both markers."""
        return latent.num_slots + 2


def slot_tokens(latent: LatentConfig) -> list[str]:
    """One token per slot: `<latent_pad_1>` ... `<latent_pad_k>`, or `<latent_pad>` k times where they share one."""
    if latent.slot_tokens == "shared":
        return ["<latent_pad>"] * latent.num_slots
    return [f"<latent_pad_{i}>" for i in range(1, latent.num_slots + 1)]


def block_text(slots: Sequence[str]) -> str:
    """The latent block as text: start marker, slots, end marker."""
    return BLOCK_START + "".join(slots) + BLOCK_END


def add_latent_tokens(processor: Any, slots: Sequence[str]) -> None:
    """Adds the block's tokens to the tokenizer, and the block to the generation prompt of the chat template.

    A prompt that ends with the block cannot lead to an answer without latent reasoning.
    """
    tokens = [BLOCK_START, *dict.fromkeys(slots), BLOCK_END]
    processor.tokenizer.add_special_tokens({"extra_special_tokens": tokens}, replace_extra_special_tokens=False)
    end_prompts_with(processor, block_text(slots))


def token_ids(processor: Any, slots: Sequence[str]) -> dict[str, Any]:
    """The block's token ids, as fields of a model's configuration."""
    convert = processor.tokenizer.convert_tokens_to_ids
    return dict(zip(BLOCK_FIELDS, (convert(BLOCK_START), convert(BLOCK_END), convert(list(slots))), strict=True))
