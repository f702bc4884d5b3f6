"""The counts against PyTorch's own FLOP counter on real modules."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel

from amvl_core.rows.flops import vision_flops
from infra.plan.shapes import VisionShape


def test_the_vision_encoder() -> None:
    """Exact: on a whole number of windows nothing is left to estimate."""
    shape = VisionShape(96, 64, 32, 4, 4, 8, window_size=32, fullatt_block_indexes=(1, 3))
    fields = {**vars(shape), "attn_implementation": "eager"}
    model = Qwen2_5_VisionTransformerPretrainedModel._from_config(Qwen2_5_VLVisionConfig(**fields))
    images, side = 2, 8
    patches = images * side * side
    pixels = torch.zeros(patches, 3 * 2 * 8 * 8)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(pixels, torch.tensor([[1, side, side]] * images))
    assert vision_flops(shape, patches, images) == pytest.approx(counter.get_total_flops(), rel=1e-9)
