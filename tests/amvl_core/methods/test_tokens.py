from __future__ import annotations

import pytest

from amvl_core.backbones.tiny import build_processor
from amvl_core.contracts.config import TinyConfig
from amvl_core.contracts.latent import LatentConfig
from amvl_core.contracts.method import control_token
from amvl_core.methods.block import add_latent_tokens, slot_tokens


@pytest.mark.parametrize("kind", ["distinct", "shared"])
def test_every_special_token_of_a_latent_model_is_a_control_token(kind: str) -> None:
    processor = build_processor(TinyConfig())
    slots = slot_tokens(LatentConfig.model_validate({"num_slots": 2, "slot_tokens": kind}))
    add_latent_tokens(processor, slots)
    tokens = processor.tokenizer.all_special_tokens
    assert {"<|image_pad|>", "<abs_token>", *slots} <= set(tokens)
    assert [control_token(f"a {token} b") for token in tokens] == tokens


def test_a_text_that_only_looks_like_one_is_text() -> None:
    assert control_token("<image>Is a < b | c > d? <tag> <latents>") is None
