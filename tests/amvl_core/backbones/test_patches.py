"""The patch embedding as a matrix product: the convolution's own sums, under its names."""

from __future__ import annotations

import torch
from torch import nn

from amvl_core.backbones.patches import PatchProjection, project_patches
from amvl_core.backbones.processor import load_processor
from amvl_core.methods.loading import load_model
from amvl_core.methods.sft.config import SftMethod
from amvl_core.methods.sft.method import Sft
from tests.tiny import LATENT, stock_folder


def pair(bias: bool) -> tuple[nn.Sequential, nn.Sequential]:
    """The stock module, and the same with its patches projected."""
    torch.manual_seed(0)
    stock = nn.Sequential(nn.Conv3d(3, 16, (2, 8, 8), (2, 8, 8), bias=bias)).double()
    ours = nn.Sequential(nn.Conv3d(3, 16, (2, 8, 8), (2, 8, 8), bias=bias)).double()
    ours.load_state_dict(stock.state_dict())
    project_patches(ours)
    return stock, ours


def test_values_and_gradients_are_the_convolutions() -> None:
    """In float64 the worst was 4e-15."""
    for bias in (False, True):
        stock, ours = pair(bias)
        assert isinstance(ours[0], PatchProjection)
        for size in ((2, 8, 8), (4, 16, 8)):  # one patch, as the encoder gives them, and several
            given = torch.randn(5, 3, *size, dtype=torch.float64)
            inputs = [given.clone().requires_grad_() for _ in range(2)]
            expected, found = stock(inputs[0]), ours(inputs[1])
            assert found.shape == expected.shape
            towards = torch.randn_like(expected)
            expected.backward(towards)
            found.backward(towards)
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(inputs[1].grad, inputs[0].grad, rtol=1e-12, atol=1e-12)
        for (name, one), (other, two) in zip(stock.named_parameters(), ours.named_parameters(), strict=True):
            assert name == other
            torch.testing.assert_close(two.grad, one.grad, rtol=1e-12, atol=1e-12)


def test_a_convolution_that_is_no_patch_embedding_stays() -> None:
    others = nn.Sequential(
        nn.Conv3d(3, 4, 2, 2, padding=1), nn.Conv3d(4, 4, 2, 2, groups=2), nn.Conv3d(4, 4, 2, dilation=2)
    )
    project_patches(others)
    assert {type(module) for module in others} == {nn.Conv3d}


def test_models_that_are_trained_and_asked_have_it_and_keep_their_names() -> None:
    stock = Sft.load(stock_folder(), load_processor(stock_folder()), LATENT)
    names = list(stock.state_dict())
    Sft(stock, SftMethod())
    for model in (stock, load_model(stock_folder())):
        assert list(model.state_dict()) == names
        assert isinstance(model.model.visual.patch_embed.proj, PatchProjection)
