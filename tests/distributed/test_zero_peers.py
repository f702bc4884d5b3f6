"""Steps of the peer methods under DeepSpeed, two gloo processes, against the reference in one process."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import pytest
import torch

from amvl_core.contracts.config import StageConfig, TrainerConfig
from amvl_core.data.batch import Batch
from amvl_core.methods.method import Method
from tests.distributed.processes import gradients_of_step, in_two_processes
from tests.numerics import test_coconut, test_codi, test_lvr, test_monet, test_mull
from tests.numerics.held import CLOCK, trained

# Two micro-batches a rank: one has text alone first, which for LVR is a sample without a block. Of Mull-Tokens, rank 0
# has no image to stand for.
MICRO = ([[0], [1]], [[2], [3]])
LVR_MICRO = MONET_MICRO = ([[0], [1, 3]], [[2], [4]])
MULL_MICRO = ([[0], [1]], [[2], [3, 4]])
KINDS = [(name, zero) for name in ("coconut", "lvr", "codi", "mull", "monet 2", "monet 3") for zero in (0, 1, 2)]
KINDS += [("lvr", 3), ("mull", 3)]


def made(name: str) -> tuple[Method, Callable[[list[int]], Batch], Any]:
    """A method, what packs some of its samples, and what each rank runs of them."""
    if name == "lvr":
        lvr, processor = test_lvr.method()
        return trained(lvr), lambda some: test_lvr.batch(lvr, processor, [test_lvr.items()[i] for i in some]), LVR_MICRO
    if name == "mull":
        mull, processor = test_mull.method(guided=True)
        items = test_mull.items()
        return trained(mull), lambda some: test_mull.batch(mull, processor, [items[i] for i in some]), MULL_MICRO
    if name == "codi":
        codi, processor = test_codi.method()
        return trained(codi), lambda some: test_codi.batch(codi, processor, [test_codi.items()[i] for i in some]), MICRO
    if name.startswith("monet"):
        monet, processor = test_monet.method(int(name[-1]))
        given = test_monet.items()
        # Rank 1 has text alone first; the samples of the others have one block, two and three.
        return trained(monet), lambda some: test_monet.batch(monet, processor, [given[i] for i in some]), MONET_MICRO
    coconut, processor = test_coconut.method(replaced_steps=1, stage_mix=1.0)
    items = test_coconut.items()
    return trained(coconut), lambda some: test_coconut.batch(coconut, processor, [items[i] for i in some]), MICRO


@lru_cache(maxsize=6)
def reference(name: str) -> dict[str, torch.Tensor]:
    """Gradients of all micro-batches of both ranks in one process, in float64."""
    method, packed, micro = made(name)
    for some in (*micro[0], *micro[1]):
        method.reference(packed(some), CLOCK).backward()
    return {name: p.grad for name, p in method.named_parameters() if p.requires_grad and p.grad is not None}


def find(rank: int) -> dict[str, Any]:
    """Summed gradients of a step, whole, under every ZeRO stage."""
    from amvl_core.train.engine import Engine

    found: dict[str, Any] = {}
    for name, zero_stage in KINDS:
        method, packed, micro = made(name)
        method.float()
        stage = StageConfig(method=method.config, steps=1, global_batch=5, clip=1e9, lr=1e-30, weight_decay=0.0)
        trainer = TrainerConfig(zero_stage=zero_stage, precision="fp32", gradient_checkpointing=False)
        engine = Engine(method, stage, trainer, world_size=2)
        for some in micro[rank]:
            part = packed(some)
            engine.backward(engine.forward(part, CLOCK), part.sample_ids)
        engine.step()
        found[f"{name} {zero_stage}"] = gradients_of_step(engine)
        engine.close()
    return found


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """What two processes found, once for all tests."""
    return in_two_processes(find)


@pytest.mark.parametrize(("name", "zero_stage"), KINDS)
def test_every_gradient_equals_the_reference_in_one_process(found: dict[str, Any], name: str, zero_stage: int) -> None:
    """float32 against float64. Worst seen: 2.4e-6 of the largest element of a gradient."""
    ours, expected = found[f"{name} {zero_stage}"], reference(name)
    assert expected.keys() <= ours.keys()
    for key, grad in expected.items():
        error = (ours[key] - grad).abs().max() / (1e-3 + grad.abs().max())
        assert error < 2e-5, (key, float(error))
