"""The protocol of a base model is real: a second family trains exact steps, and an unknown one is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM, Qwen2VLForConditionalGeneration

from amvl_core.backbones import backbone
from amvl_core.backbones.backbone import backbone_of
from amvl_core.backbones.processor import load_processor
from amvl_core.contracts.errors import CheckpointError
from amvl_core.data.encode import IGNORED
from amvl_core.methods.amvl import modeling
from amvl_core.methods.amvl.config import AmvlMethod
from amvl_core.methods.amvl.method import Amvl
from amvl_core.methods.amvl.reference import samples, stock_hidden, three_pass
from amvl_core.methods.method import Clock
from amvl_core.methods.sft.config import SftMethod
from amvl_core.methods.sft.method import Sft
from tests.amvl_core.backbones import qwen2_vl
from tests.tiny import LATENT, batch

CLOCK = Clock(seed=5, step=40, num_tokens=12.0, num_samples=4)


@pytest.fixture()
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A tiny checkpoint of the second family, which is known for the test."""
    monkeypatch.setitem(backbone.FAMILIES, "qwen2_vl", qwen2_vl.__name__)
    monkeypatch.setitem(modeling.MODELS, "qwen2_vl", None)
    modeling.register(qwen2_vl.AmvlQwen2VL, Qwen2VLForConditionalGeneration)
    qwen2_vl.save_tiny(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).model_type == "qwen2_vl"
    return str(tmp_path)


def gradients(model: Any, loss: Any) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Norm-relative; in float64 the worst was 2e-7, as with Qwen2.5-VL: the stock library rotates in float32."""
    assert found.keys() == expected.keys() and len(found) > 20
    for name, value in expected.items():
        assert float((found[name] - value).norm()) <= 2e-6 * float(value.norm()) + 1e-12, name


def test_sft_on_a_second_family_is_its_stock_forward(folder: str) -> None:
    processor = load_processor(folder)
    model = Sft.load(folder, processor, LATENT, dtype=torch.float64).train()
    model.model.visual.requires_grad_(False)
    data = batch(processor, None)
    found = Sft(model, SftMethod())(data, CLOCK).loss
    ours = gradients(model, found)
    expected = 0.0
    for _, ids, labels, embeds, positions in samples(model, data):
        hidden = stock_hidden(model, embeds, positions)[0, :-1]
        keep = labels[1:] != IGNORED
        expected = expected + functional.cross_entropy(model.lm_head(hidden)[keep], labels[1:][keep], reduction="sum")
        assert len(ids) == len(labels)
    theirs = gradients(model, expected / CLOCK.num_tokens)
    assert float(found.detach()) == pytest.approx(float((expected / CLOCK.num_tokens).detach()), rel=1e-7)
    assert_close(ours, theirs)


def test_amvl_on_a_second_family_is_three_passes_of_its_stock_model(folder: str) -> None:
    processor = load_processor(folder)
    model = Amvl.load(folder, processor, LATENT, dtype=torch.float64).train()
    assert isinstance(model, qwen2_vl.AmvlQwen2VL)
    model.model.visual.requires_grad_(False)
    data, config = batch(processor), AmvlMethod(beta_warmup=50, gamma_start=10, gamma_warmup=50)
    output = Amvl(model, config)(data, CLOCK)
    ours = gradients(model, output)
    loss, terms = three_pass(model, data, config, CLOCK)
    theirs = gradients(model, loss)
    for name, value in terms.items():
        assert float(output.terms[name]) == pytest.approx(float(value.detach()), rel=1e-7), name
    assert_close(ours, theirs)


def test_a_family_that_is_not_known_is_refused(tmp_path: Path) -> None:
    config = LlamaConfig(vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    model = LlamaForCausalLM(config)
    with pytest.raises(CheckpointError, match="LlamaForCausalLM extends no known base model; known are qwen2_5_vl"):
        backbone_of(model)
    model.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="a 'llama' model is no known base model, which are qwen2_5_vl"):
        Sft.load(str(tmp_path), None, LATENT)  # type: ignore[arg-type]
