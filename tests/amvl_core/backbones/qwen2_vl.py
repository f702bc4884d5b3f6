"""A second family for the tests, Qwen2-VL: what a new base model takes beside its stock class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

from amvl_core.backbones.processor import load_processor
from amvl_core.backbones.qwen2_5_vl import Qwen25VL
from amvl_core.methods.amvl.modeling import LatentParts
from tests.tiny import TINY, stock_folder


class Qwen2VL(Qwen25VL):
    """Its parts have the names and the order of Qwen2.5-VL's. The vision encoder and the time of videos are its own."""

    model_class = Qwen2VLForConditionalGeneration

    def time_steps(self, model: Any, seconds_I: Tensor) -> Tensor:
        """One, whatever a step covers."""
        return torch.ones_like(seconds_I)


BACKBONE = Qwen2VL()


class AmvlQwen2VLConfig(Qwen2VLConfig):
    """With the fields of the latent block."""

    model_type = "amvl_qwen2_vl"
    latent: dict[str, Any] | None = None
    block_start_token_id: int | None = None
    block_end_token_id: int | None = None
    slot_token_ids: list[int] | None = None

    @property
    def num_slots(self) -> int:
        """K."""
        return len(self.slot_token_ids or [])


class AmvlQwen2VL(LatentParts, Qwen2VLForConditionalGeneration):
    """AMVL's training parts on Qwen2-VL."""

    config_class = AmvlQwen2VLConfig


def save_tiny(folder: Path) -> None:
    """A random Qwen2-VL with the tokenizer and the processor of the tests' tiny model."""
    processor = load_processor(stock_folder())
    convert = processor.tokenizer.convert_tokens_to_ids
    size, heads = TINY.hidden_size, TINY.num_heads
    config = Qwen2VLConfig(
        text_config={
            "vocab_size": -(-len(processor.tokenizer) // 64) * 64,
            "hidden_size": size,
            "intermediate_size": TINY.intermediate_size,
            "num_hidden_layers": TINY.num_layers,
            "num_attention_heads": heads,
            "num_key_value_heads": TINY.num_kv_heads,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 3, 3]},
            "eos_token_id": convert("<|im_end|>"),
            "pad_token_id": convert("<|endoftext|>"),
        },
        vision_config={
            "depth": 2, "embed_dim": 32, "num_heads": 4, "mlp_ratio": 2, "patch_size": TINY.patch_size,
            "hidden_size": size,
        },
        image_token_id=convert("<|image_pad|>"),
        video_token_id=convert("<|video_pad|>"),
        vision_start_token_id=convert("<|vision_start|>"),
        vision_end_token_id=convert("<|vision_end|>"),
        tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(3)
    model = Qwen2VLForConditionalGeneration(config)
    model.generation_config.eos_token_id = convert("<|im_end|>")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
