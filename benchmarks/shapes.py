"""Random models for the benchmarks: a small text stack on a CPU, the 7B shape in bf16 on a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from amvl_core.contracts.latent import LatentConfig
from amvl_core.contracts.method import MethodConfig
from amvl_core.contracts.presets import PRESETS
from amvl_core.data.batch import Batch
from amvl_core.data.encode import IGNORED

METHOD, SFT = PRESETS["paper"]().method, PRESETS["demo"]().stages["sft"].method
"""The paper's method, and what it is measured against."""

SPECIAL = 16
"""Token ids below are special tokens; 0 to k - 1 are the slots."""
START, END = SPECIAL - 5, SPECIAL - 6
"""A block's markers."""

SMALL = {
    "vocab_size": 4096,  # its share of the work is that of Qwen2.5-VL-7B's vocabulary
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [8, 12, 12]},
}
SEVEN_B = {
    "vocab_size": 152064,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
}
VISION = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "patch_size": 8, "window_size": 128}
"""The frozen vision encoder costs every variant the same; here it is next to nothing."""


def device() -> torch.device:
    """The GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def latent_config() -> LatentConfig:
    """The paper's k; d in proportion to the hidden size."""
    return LatentConfig() if torch.cuda.is_available() else LatentConfig(dim=64, head_hidden=128)


def block_fields() -> dict[str, Any]:
    """The fields of AMVL's models: its block of the paper's k slots."""
    latent = latent_config()
    return {
        "latent": latent.model_dump(),
        "slot_token_ids": list(range(latent.num_slots)),
        "block_start_token_id": START,
        "block_end_token_id": END,
    }


def model_config(method: MethodConfig, fields: dict[str, Any] | None = None, text: dict[str, Any] | None = None) -> Any:
    """A configuration for a model that `method` trains. `fields`: AMVL's, or these. `text`: this machine's, or this."""
    if method.model_type:
        method.implementation()  # registers its classes
    text = text or (SEVEN_B if torch.cuda.is_available() else SMALL)
    return AutoConfig.for_model(
        method.model_type or "qwen2_5_vl",
        text_config={**text, "max_position_embeddings": 32768, "tie_word_embeddings": False},
        vision_config={**VISION, "out_hidden_size": text["hidden_size"], "fullatt_block_indexes": [0]},
        image_token_id=SPECIAL - 1,
        video_token_id=SPECIAL - 2,
        vision_start_token_id=SPECIAL - 3,
        vision_end_token_id=SPECIAL - 4,
        tie_word_embeddings=False,
        **(block_fields() if fields is None else fields),
    )


def build(method: MethodConfig, fields: dict[str, Any] | None = None, text: dict[str, Any] | None = None) -> Any:
    """A random model of `model_config`, its vision encoder frozen, in training mode."""
    torch.manual_seed(0)
    where = device()
    with where:
        dtype = torch.bfloat16 if where.type == "cuda" else torch.float32
        model = AutoModelForImageTextToText.from_config(model_config(method, fields, text), dtype=dtype)
    model.model.visual.requires_grad_(False)
    return model.train()


def text_batch(x: int, y: int, *, block: bool, vocab_size: int, seed: int = 0) -> Batch:
    """One sample of x tokens (with `block` the last is the start marker) and y label tokens behind them."""
    latent = latent_config()
    ids = torch.randint(SPECIAL, vocab_size, (x + y,), generator=torch.Generator().manual_seed(seed))
    labels = torch.where(torch.arange(x + y) < x, IGNORED, ids)
    if block:
        inner = torch.tensor([*range(latent.num_slots), END])
        ids = torch.cat([ids[: x - 1], torch.tensor([START]), inner, ids[x:]])
        labels = torch.cat([labels[:x], torch.full_like(inner, IGNORED), labels[x:]])
    return Batch(["sample"], [len(ids)], [0], ids, labels, None, None)


def packed(parts: Sequence[Batch]) -> Batch:
    """Text batches as one."""
    ids, labels = (torch.cat([getattr(part, name) for part in parts]) for name in ("input_ids_N", "labels_N"))
    lengths = [length for part in parts for length in part.lengths]
    names = [f"sample-{number}" for number in range(len(lengths))]
    return Batch(names, lengths, [0] * len(lengths), ids, labels, None, None)
