"""The counts against PyTorch's own FLOP counter on real modules."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel

from amvl_core.rows.flops import row_flops, vision_flops
from amvl_core.rows.spans import Piece, Span
from infra.plan.shapes import PUBLISHED, VisionShape

SEVEN_B = PUBLISHED["Qwen/Qwen2.5-VL-7B-Instruct"].text


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


def test_a_chain_of_rows_costs_what_they_cost_in_one() -> None:
    chain, x = (), 100
    whole = row_flops(SEVEN_B, [Span(x + 5, read=x + 5)])
    parts = row_flops(SEVEN_B, [Span(x, read=x)])
    for number in range(5):
        chain = (*chain, Piece(number, 0, 0, 1 if number else x))
        parts += row_flops(SEVEN_B, [Span(1, read=1, context=chain)])
    assert parts == pytest.approx(whole, rel=1e-12)


def test_what_a_span_does_not_see_costs_nothing() -> None:
    seen = row_flops(SEVEN_B, [Span(20, 20, (Piece(0, 0, 0, 100),))])
    blind = row_flops(SEVEN_B, [Span(20, 20, (Piece(0, 0, 0, 10), Piece(0, 0, 70, 100)))])
    assert seen - blind == 4 * SEVEN_B.hidden_size * SEVEN_B.num_hidden_layers * 20 * 60
