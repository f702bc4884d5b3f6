"""VaLR's step under DeepSpeed, two gloo processes with unequally many blocks, against the reference in one process."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from amvl_core.contracts.config import StageConfig, TrainerConfig
from amvl_core.methods.method import Clock
from tests.distributed.processes import gradients_of_step, in_two_processes
from tests.numerics.test_valr import batch, equipped, loaded, samples

CLOCK = Clock(seed=0, step=3, num_tokens=40.0, num_samples=5)
FIELDS = {"blocks": "every_step", "encoders": [{"name": "dinov3", "source": "tiny:dinov3", "size": 16}]}
# Two micro-batches a rank. Rank 0 has one to three blocks and images; rank 1 text alone first, then a sample without
# steps.
MICRO = ([[0], [1]], [[2], [3, 4]])
KINDS = [(zero_stage, checkpointing) for zero_stage in (0, 1, 2) for checkpointing in (False, True)]


@pytest.fixture(scope="module")
def reference() -> dict[str, torch.Tensor]:
    """Gradients of all micro-batches of both ranks in one process, in float64."""
    method = equipped(**FIELDS)
    method.zero_grad()
    for micro in (*MICRO[0], *MICRO[1]):
        method.reference(batch(method, [samples()[i] for i in micro]), CLOCK).backward()
    return {name: p.grad for name, p in method.named_parameters() if p.requires_grad and p.grad is not None}


def find(rank: int) -> dict[str, Any]:
    """Summed gradients of a step, whole, under every ZeRO stage."""
    from amvl_core.train.engine import Engine

    found: dict[str, Any] = {}
    for zero_stage, checkpointing in KINDS:
        method = equipped(**FIELDS).float()
        stage = StageConfig(method=method.config, steps=1, global_batch=5, clip=1e9, lr=1e-30, weight_decay=0.0)
        trainer = TrainerConfig(zero_stage=zero_stage, precision="fp32", gradient_checkpointing=checkpointing)
        engine = Engine(method, stage, trainer, world_size=2)
        for _ in range(2):  # of the second step, so that what the first leaves behind would be seen
            for micro in MICRO[rank]:
                part = batch(method, [samples()[i] for i in micro])
                engine.backward(engine.forward(part, CLOCK), part.sample_ids)
            engine.step()
            found[f"{zero_stage} {checkpointing}"] = gradients_of_step(engine)
        engine.close()
        loaded.cache_clear()  # an engine unmaps its parameters again when it is collected: the next has its own model
    return found


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """What two processes found, once for all tests."""
    return in_two_processes(find)


@pytest.mark.parametrize(("zero_stage", "checkpointing"), KINDS)
def test_every_gradient_equals_the_reference_in_one_process(
    found: dict[str, Any], reference: dict[str, torch.Tensor], zero_stage: int, checkpointing: bool
) -> None:
    """float32 against float64. Worst seen: 3.9e-6 of the largest element of a gradient."""
    ours = found[f"{zero_stage} {checkpointing}"]
    assert reference.keys() <= ours.keys()
    assert sum(name.startswith("projectors.") for name in reference) == 6
    for name, grad in reference.items():
        assert (ours[name] - grad).abs().max() < 2e-5 * (1e-3 + grad.abs().max()), name
