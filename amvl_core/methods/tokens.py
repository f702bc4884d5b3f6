"""Special tokens of the latent block (Eq. 5), vocabulary growth, and where the block stands in the chat template."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from amvl_core.contracts.config import LatentConfig

BLOCK_START = "<abs_token>"
BLOCK_END = "</abs_token>"

_CONTROL = re.compile(r"<\|[a-z_]+\|>|</?abs_token>|<latent_pad(?:_\d+)?>|\x00")


def control_token(text: str) -> str | None:
    """The first control token of Qwen2.5-VL or of the latent block in `text`, which would be read as structure."""
    found = _CONTROL.search(text)
    return found.group() if found else None


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
    tokenizer = processor.tokenizer
    tokens = [BLOCK_START, *dict.fromkeys(slots), BLOCK_END]
    tokenizer.add_special_tokens({"extra_special_tokens": tokens}, replace_extra_special_tokens=False)
    template = base_template(processor) + template_suffix(slots)
    processor.chat_template = template
    tokenizer.chat_template = template


def template_suffix(slots: Sequence[str]) -> str:
    """What `add_latent_tokens` appends to a chat template."""
    return "{% if add_generation_prompt %}" + block_text(slots) + "{% endif %}"


def base_template(processor: Any) -> str:
    """The processor's chat template without a latent block."""
    template = processor.chat_template or processor.tokenizer.chat_template
    if not template:
        raise ValueError("the processor has no chat template; a vision-language chat model is needed")
    head, found, _ = template.partition("{% if add_generation_prompt %}" + BLOCK_START)
    return str(head) if found else str(template)


def token_ids(processor: Any, slots: Sequence[str]) -> dict[str, Any]:
    """The block's token ids, as fields of `AMVLConfig`."""
    convert = processor.tokenizer.convert_tokens_to_ids
    return {
        "block_start_token_id": convert(BLOCK_START),
        "block_end_token_id": convert(BLOCK_END),
        "slot_token_ids": convert(list(slots)),
    }
