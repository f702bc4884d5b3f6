from __future__ import annotations

import pytest
import torch

from amvl_core.backbones.processor import load_processor
from amvl_core.backbones.tiny import build_processor
from amvl_core.contracts.config import TinyConfig
from amvl_core.contracts.errors import ConfigError
from amvl_core.contracts.latent import LatentConfig
from amvl_core.contracts.method import configurations, control_token
from amvl_core.methods.block import add_latent_tokens, slot_tokens
from tests.tiny import stock_folder


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


@pytest.mark.parametrize("name", sorted(set(configurations()) - {"sft"}))
def test_new_tokens_start_as_the_token_that_the_run_names(name: str) -> None:
    """In the input and in the output layer, for every method that adds tokens; else at the mean of the others."""
    old = len(load_processor(stock_folder()).tokenizer)
    for text in (":", None):
        processor = load_processor(stock_folder())
        latent = LatentConfig(num_slots=2, dim=8, head_hidden=32, token_init=text)
        model = configurations()[name].implementation().load(stock_folder(), processor, latent)
        new = range(old, len(processor.tokenizer))
        assert len(new) >= 2
        for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
            row = layer.weight[:old].mean(0) if text is None else layer.weight[processor.token_id(text)]
            assert torch.allclose(layer.weight[list(new)], row.expand(len(new), -1), atol=1e-6)


@pytest.mark.parametrize(("text", "tokens"), [("", 0), ("colour:", "[2-9]")])
def test_a_text_that_is_not_one_token_is_refused(text: str, tokens: object) -> None:
    with pytest.raises(ConfigError, match=f"token_init is '{text}', which is {tokens} tokens"):
        build_processor(TinyConfig()).token_id(text)
