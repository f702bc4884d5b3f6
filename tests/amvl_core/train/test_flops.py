"""FLOPs of a training against torch's count of the stock model, each sample alone."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from transformers import Qwen2_5_VLForConditionalGeneration

from amvl_core.backbones.loading import base_folder
from amvl_core.backbones.processor import load_processor
from amvl_core.contracts import storage
from amvl_core.contracts.config import RunConfig
from amvl_core.contracts.method import MethodConfig
from amvl_core.contracts.records import CheckpointRecord
from amvl_core.contracts.sample import Segment
from amvl_core.data.batch import collate
from amvl_core.data.encode import IGNORED, Encoder
from amvl_core.methods.pause.config import PauseMethod
from amvl_core.methods.sft.config import SftMethod
from amvl_core.train.flops import training_flops
from benchmarks.trial import configuration, dataset, sample

ROWS = 24
"""Of the dataset's training split."""
SHAPES = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda grad, q, k, v, *_, **__: sdpa_backward_flop_count(grad, q, k, v)
    ),
}
"""Torch knows no formula for a CPU's attention; its counter gives these the shapes."""


def checkpoint(config: RunConfig, uri: str) -> CheckpointRecord:
    with base_folder(config.model) as folder:
        storage.upload(Path(folder), f"{uri}/model")
    return CheckpointRecord(
        uri=uri, fingerprint="b", stage="s", method="sft", step=1, config={}, dataset="d", parent=None,
        num_parameters=1, metrics={},
    )  # fmt: skip


def stock_step(model: Any, encoder: Encoder, number: int, slots: int = 0) -> float:
    """Forward and backward of one sample with logits where there are labels; `slots` tokens stand before the answer."""
    one = sample(f"train-{number}", number, "<image>")
    segments = [Segment("prompt", one.question), Segment("answer", one.answer)]
    batch = collate([encoder.encode(one.sample_id, segments, one.images)])
    first = int((batch.labels_N != IGNORED).nonzero()[0])
    ids = torch.cat([batch.input_ids_N[:first], batch.input_ids_N[:1].expand(slots), batch.input_ids_N[first:]])
    labels = batch.labels_N[first:]
    asked = torch.arange(len(ids) - len(labels), len(ids))[labels != IGNORED] - 1
    with FlopCounterMode(display=False, custom_mapping=SHAPES) as counter:
        hidden = model.model(
            input_ids=ids[None], pixel_values=batch.pixel_values, image_grid_thw=batch.image_grid_thw
        ).last_hidden_state[0]
        torch.nn.functional.cross_entropy(model.lm_head(hidden[asked]), labels[labels != IGNORED]).backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("method", [SftMethod(), PauseMethod()], ids=["sft", "pause"])
def test_a_plain_row_takes_what_the_stock_model_takes_for_it(tmp_path: Path, method: MethodConfig) -> None:
    config, data = configuration(str(tmp_path)), dataset(f"{tmp_path}/data")
    base = checkpoint(config, f"{tmp_path}/base")
    stage = config.stages["sft"].model_copy(update={"method": method})
    counted = training_flops(config.model_copy(update={"stages": {"own": stage}}), ["own"], data, base)
    encoder = Encoder(load_processor(base.model_uri))
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(base.model_uri).train()
    slots = config.latent.num_slots + 2 if method.kind == "pause" else 0
    each = sum(stock_step(model, encoder, number, slots) for number in range(ROWS)) / ROWS
    assert counted == pytest.approx(each * stage.global_batch * (stage.steps or 0), rel=1e-9)
