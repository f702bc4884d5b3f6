"""FLOPs of a training on data that are prepared, as torch counts them in a step that is really taken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from amvl_core.contracts.config import RunConfig
from amvl_core.contracts.records import CheckpointRecord, DatasetRecord
from amvl_core.data.batch import collate
from amvl_core.data.reader import ShardReader
from amvl_core.methods.method import Clock

SAMPLES = 64
"""Training samples whose mean counts."""
ON_CPU: dict[Any, Callable[..., int]] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: (
        lambda query, key, value, *_, **__: sdpa_flop_count(query.shape, key.shape, value.shape)
    ),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda grad, query, key, value, *_, **__: sdpa_backward_flop_count(
            grad.shape, query.shape, key.shape, value.shape
        )
    ),
}
"""torch counts attention on a GPU by these formulas, and knows none for a CPU."""


class Counter(TorchDispatchMode):
    """Adds up the FLOPs of what runs within, by torch's formulas.

    Torch's own `FlopCounterMode` also follows modules, by hooks that `torch.autograd.grad` does not bear, and methods
    whose slots are fed back differentiate within a step.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0.0
        self.formulas = {**flop_registry, **ON_CPU}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Runs the operation and counts it."""
        out = func(*args, **kwargs or {})
        if formula := self.formulas.get(func._overloadpacket):
            self.total += formula(*args, **kwargs or {}, out_val=out)
        return out


def training_flops(config: RunConfig, stages: list[str], dataset: DatasetRecord, base: CheckpointRecord) -> float:
    """Of all that these `stages` run, which give their length in steps: products of matrices, forward and backward.

    The vision encoder, a teacher, frozen encoders and a method's own parts count too. What weights hold says nothing of
    that, so each stage and each teacher begins with those of `base`.
    """
    return sum(_stage_flops(config, name, dataset, base) for name in stages)


def _stage_flops(config: RunConfig, name: str, dataset: DatasetRecord, base: CheckpointRecord) -> float:
    """Of a stage whose samples are as the first ones are; the schedules of its loss are at their end."""
    # Not above: an experiment that is only shown starts without DeepSpeed, which takes seconds to load.
    from amvl_core.train.engine import set_trainable
    from amvl_core.train.loop import TrainJob, build_method, encoding

    stage = config.stages[name]
    assert stage.steps is not None
    job = TrainJob(
        config=config,
        stage=name,
        dataset=dataset,
        start_from=base.model_uri,
        parent=base.fingerprint,
        uri=base.uri,
        fingerprint=base.fingerprint,
        teacher=base.model_uri if config.parents(name).teacher else None,
    )
    method, processor = build_method(job, {})
    set_trainable(method, stage.trainable)
    reader, encode = ShardReader(dataset, "train"), encoding(job, processor, {})
    count = min(SAMPLES, dataset.rows("train"))
    batch = collate([encode(row, reader[row]) for row in range(count)])
    clock = Clock(config.seed, stage.steps, max(1.0, method.label_weight(batch)), count)
    with Counter() as counter:
        method(batch, clock).backward()
    return float(counter.total) / count * stage.global_batch * stage.steps
