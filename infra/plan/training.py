"""FLOPs of a training on data that are prepared: of the matrix products, with the tokens that its samples have."""

from __future__ import annotations

import statistics

from amvl_core.backbones.loading import model_folder
from amvl_core.backbones.processor import load_processor
from amvl_core.contracts.config import RunConfig
from amvl_core.contracts.records import CheckpointRecord, DatasetRecord
from amvl_core.contracts.sample import Segment, StoredSample, shown_by_question
from amvl_core.data.encode import IGNORED, Encoded, Encoder, laid_out
from amvl_core.data.reader import ShardReader
from infra.plan.shapes import model_shape

SAMPLES = 64
"""Training samples whose mean length counts."""


def training_flops(config: RunConfig, stages: list[str], dataset: DatasetRecord, base: CheckpointRecord) -> float:
    """Of the text stack in these `stages`, which give their length in steps; `base` has the processor."""
    with model_folder(base.model_uri) as folder:
        encoder = Encoder(load_processor(folder))
    reader = ShardReader(dataset, "train")
    samples = [reader[row] for row in range(min(SAMPLES, dataset.rows("train")))]
    prompt = statistics.fmean(_prompt_tokens(encoder, sample) for sample in samples)
    shape, total = model_shape(config.model).text, 0.0
    for name in stages:
        stage = config.stages[name]
        assert stage.steps is not None
        laid = [laid_out(encoder, stage.method.for_training(one, config.latent), config.latent, one) for one in samples]
        reply = statistics.fmean(map(_reply_tokens, laid))
        step = stage.method.cost(config.latent).step(round(prompt), round(reply))
        total += step.flops(shape, round(reply)) * stage.global_batch * stage.steps
    return total


def _prompt_tokens(encoder: Encoder, sample: StoredSample) -> int:
    images = sample.images[: shown_by_question(sample.images, sample.steps)]
    asked = encoder.encode(sample.sample_id, [Segment("prompt", sample.question)], images, sample.videos)
    return len(asked.input_ids)


def _reply_tokens(encoded: Encoded) -> int:
    """Those that the model is to write, and those of steps that it is not to write but that training runs."""
    return int((encoded.labels != IGNORED).sum()) + encoded.hidden_tokens
