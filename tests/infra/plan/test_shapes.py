import json
from pathlib import Path
from typing import Any

import pytest
import torch

from amvl_core.contracts.config import ModelConfig
from amvl_core.contracts.errors import ConfigError
from amvl_core.contracts.latent import LatentConfig
from amvl_core.methods.amvl.config import AmvlMethod
from amvl_core.methods.amvl.modeling import AMVLConfig, AMVLForConditionalGeneration
from amvl_core.methods.amvl.presets import demo
from infra.plan.shapes import PUBLISHED, ModelShape, model_shape, parameters
from tests.tiny import stock_folder

# The totals that the Hub shows for the safetensors files of Qwen/Qwen2.5-VL-*-Instruct.
ON_THE_HUB = {"3B": 3_754_622_976, "7B": 8_292_166_656, "32B": 33_452_718_336, "72B": 73_410_777_344}


@pytest.mark.parametrize("name", ON_THE_HUB)
def test_published_shapes_have_the_parameters_of_the_published_weights(name: str) -> None:
    shape = PUBLISHED[f"Qwen/Qwen2.5-VL-{name}-Instruct"]
    assert sum(parameters(shape).values()) == ON_THE_HUB[name]


def built(shape: ModelShape, latent: LatentConfig) -> dict[str, int]:
    """Parameters by part of the real class, without memory."""
    text, vision = shape.text, shape.vision
    config = AMVLConfig(
        text_config={
            **vars(text),
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
        },
        vision_config=vars(vision),
        tie_word_embeddings=text.tie_word_embeddings,
        latent=latent.model_dump(),
        slot_token_ids=list(range(latent.num_slots)),
    )
    with torch.device("meta"):
        model = AMVLForConditionalGeneration._from_config(config)
    prefixes = {
        "vision": ("model.visual.",),
        "language": ("model.language_model.layers.", "model.language_model.norm."),
        "embeddings": ("model.language_model.embed_tokens.", "lm_head."),
        "heads": ("prior_head.", "posterior_head."),
        "injector": ("injector.",),
    }
    names = dict(model.named_parameters())
    counts = {part: sum(p.numel() for n, p in names.items() if n.startswith(of)) for part, of in prefixes.items()}
    assert sum(counts.values()) == sum(p.numel() for p in names.values())
    return counts


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"head": "linear", "injector": "mlp"},
        {"head": "mlp", "separate_heads": True},
        {"head": "deeper", "dim": 64, "head_hidden": 128},
    ],
)
def test_parameters_are_those_of_the_model_that_is_built(fields: dict[str, Any]) -> None:
    shape, latent = PUBLISHED["Qwen/Qwen2.5-VL-3B-Instruct"], LatentConfig(**fields)
    own = AmvlMethod().cost(latent).parts(shape.text.hidden_size)
    assert {**parameters(shape), **own} == built(shape, latent)


def test_a_folder_and_tiny_are_read_from_their_configuration() -> None:
    folder = model_shape(ModelConfig(base=stock_folder()))
    assert (folder.text.hidden_size, folder.text.num_hidden_layers, folder.vision.hidden_size) == (64, 2, 32)
    assert folder.source.endswith("config.json")
    tiny = model_shape(demo().model)
    assert (tiny.text.hidden_size, tiny.vision.patch_size, tiny.source) == (128, 8, "tiny")


def test_a_configuration_as_the_hub_has_it(tmp_path: Path) -> None:
    """With the text part at the top, and of the vision part only what differs from the defaults."""
    published = PUBLISHED["Qwen/Qwen2.5-VL-7B-Instruct"]
    vision = {"hidden_size": 1280, "out_hidden_size": 3584, "tokens_per_second": 2}
    (tmp_path / "config.json").write_text(json.dumps({**vars(published.text), "vision_config": vision}))
    found = model_shape(ModelConfig(base=str(tmp_path)))
    assert (found.text, found.vision) == (published.text, published.vision)


def test_what_is_not_known_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"the shape of 'someone/model' is not known here; give a folder"):
        model_shape(ModelConfig(base="someone/model"))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ConfigError, match=r"not the configuration of a Qwen2\.5-VL model: it has no 'vocab_size'"):
        model_shape(ModelConfig(base=str(tmp_path)))
    for text, said in (('{"a":', "cannot be read"), ("[1]", "is not the"), ('{"text_config": null}', "has no")):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ConfigError, match=said):
            model_shape(ModelConfig(base=str(tmp_path)))
