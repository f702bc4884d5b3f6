"""A method's step held against its reference: loss and every gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLRMSNorm

from amvl_core.data.batch import Batch
from amvl_core.methods.method import Clock, Method, StepOutput
from tests.numerics.test_generation import steps
from tests.numerics.test_valr_generation import slots_in_blocks

CLOCK = Clock(seed=0, step=3, num_tokens=40.0, num_samples=7)


@pytest.fixture()
def float64_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stock norm rounds gradients to float32: of two passes each alone, of one pass with both their sum."""

    def forward(self: Any, states: Tensor) -> Tensor:
        scale: Tensor = self.weight * torch.rsqrt(states.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return scale * states

    monkeypatch.setattr(Qwen2_5_VLRMSNorm, "forward", forward)


def shaken(model: Any) -> Any:
    """The model with weights large enough that nothing hides at zero."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(0.05 * noise.to(parameter.dtype))
    return model


def trained(method: Method) -> Method:
    """In training, all but its frozen parts and the vision encoder."""
    method.requires_grad_(True)
    for module in (*method.frozen(), method.backbone.vision(method.model)):
        module.requires_grad_(False)
    return method.train()


def gradients(method: Method, loss: Tensor | StepOutput) -> dict[str, Tensor]:
    """Of each trained parameter, zero where there is none."""
    method.zero_grad()
    loss.backward()
    found = {name: p.grad for name, p in method.named_parameters() if p.requires_grad}
    return {name: torch.zeros(()) if grad is None else grad.clone() for name, grad in found.items()}


def held_to_reference(method: Method, data: Batch, checkpointing: bool) -> dict[str, Tensor]:
    """Asserts that loss and gradients are the reference's to 1e-12; gives the gradients."""
    expected = method.reference(data, CLOCK)
    grads = gradients(method, expected)
    if checkpointing:
        method.model.activation_checkpointing_enable()
    try:
        output = method(data, CLOCK)
        found = gradients(method, output)
    finally:
        method.model.activation_checkpointing_disable()
    torch.testing.assert_close(output.terms["loss"], expected.detach(), rtol=1e-12, atol=0)
    assert output.finite() == [True] * len(data.lengths)
    for name, grad in grads.items():
        assert (found[name] - grad).abs().max() <= 1e-12 * (1 + grad.abs().max()), name
    return found


def one_reply_block(model: Any, given: dict[str, Any], number: int, **how: Any) -> None:
    """Asserts that replies begin with one block of `number` slots, and are the same with a cache and without."""
    outputs = []
    for use_cache in (True, False):
        torch.manual_seed(7)
        outputs.append(model.generate(**given, **steps(14), **{"do_sample": False, **how}, use_cache=use_cache))
    assert torch.equal(*outputs)
    for ids in outputs[0][:, given["input_ids"].shape[1] :]:
        assert ids[0] == model.config.block_start_token_id and slots_in_blocks(model.config, ids) == [number]
