"""Of a loss that is not finite, the samples at fault are known."""

from __future__ import annotations

import pytest
import torch

from amvl_core.backbones.processor import load_processor
from amvl_core.data.batch import Batch
from amvl_core.methods.amvl.config import AmvlMethod
from amvl_core.methods.amvl.method import Amvl
from amvl_core.methods.method import Clock, Method
from amvl_core.methods.sft.config import SftMethod
from amvl_core.methods.sft.method import Sft
from tests.tiny import LATENT, amvl_model, batch, stock_folder


def method(name: str) -> tuple[Method, Batch]:
    if name == "sft":
        processor = load_processor(stock_folder())
        return Sft(Sft.load(stock_folder(), processor, LATENT), SftMethod()), batch(processor, None)
    model, processor = amvl_model(dtype=torch.float32)
    return Amvl(model, AmvlMethod(posterior_samples=2)), batch(processor)


@pytest.mark.parametrize("name", ["sft", "amvl"])
@pytest.mark.parametrize("sample", [0, 1, 3])
def test_a_sample_is_at_fault_alone_though_others_are_in_its_row(name: str, sample: int) -> None:
    ours, data = method(name)
    clock = Clock(seed=5, step=0, num_tokens=8.0, num_samples=4)
    assert data.pixel_values is not None and data.image_grid_thw is not None
    output = ours(data, clock)
    assert torch.isfinite(output.loss) and output.finite() == [True] * 4
    patches = [int(grid.prod(-1).sum()) for grid in data.image_grid_thw.split(data.num_images)]
    data.pixel_values.split(patches)[sample].fill_(torch.nan)
    spoiled = ours(data, clock)
    assert torch.isnan(spoiled.loss)
    assert spoiled.finite() == [number != sample for number in range(4)]
