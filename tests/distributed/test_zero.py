"""The shared-prefix step under DeepSpeed, two gloo processes, against three whole passes in one process."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from amvl_core.contracts.config import StageConfig, TrainerConfig
from amvl_core.methods.amvl.config import AmvlMethod
from amvl_core.methods.amvl.method import Amvl
from amvl_core.methods.amvl.reference import three_pass
from amvl_core.methods.method import Clock
from tests.distributed.processes import gradients_of_step, in_two_processes
from tests.tiny import LATENT, SAMPLES, amvl_model, batch

METHOD = AmvlMethod(beta_warmup=50, gamma_start=10, gamma_warmup=50, posterior_samples=2)
CLOCK = Clock(seed=5, step=40, num_tokens=14.0, num_samples=5)
STAGE = StageConfig(method=METHOD, steps=1, global_batch=5, clip=1e9)
TEXT = [SAMPLES[2], ("Is the other one left?", "yes", ())]
# Two micro-batches a rank, of one and two samples. Rank 0 holds images in the first, rank 1 in the second; both call
# the same modules.
MICRO = ([SAMPLES[:2], TEXT[:1]], [TEXT[1:], SAMPLES[3:]])
CASES = [
    *((zero_stage, "none", checkpointing) for zero_stage in range(4) for checkpointing in (False, True)),
    *((1, "optimizer", True), (2, "optimizer", False), (3, "parameters", True)),
]


def reference(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Gradients of all micro-batches of both ranks, by three passes in one process."""
    model, processor = amvl_model(dtype=dtype)
    model.model.visual.requires_grad_(False)
    for micro in (*MICRO[0], *MICRO[1]):
        three_pass(model, batch(processor, LATENT, micro), METHOD, CLOCK)[0].backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def find(rank: int) -> dict[str, Any]:
    """A step under every ZeRO stage."""
    found: dict[str, Any] = {}
    for zero_stage, offload, checkpointing in CASES:
        name = f"zero {zero_stage}, offload {offload}, checkpointing {checkpointing}"
        found[name] = gradients(rank, zero_stage, checkpointing, offload)
    for zero_stage in (0, 1, 2, 3):
        found[f"zero {zero_stage}, bf16"] = gradients(rank, zero_stage, True, precision="bf16")
    found["bf16"] = bf16_weights(rank)
    found["adaptation"] = adaptation(rank)
    return found


def accumulate(engine: Any, processor: Any, rank: int) -> None:
    """Forward and backward over the rank's micro-batches, as the training loop does it."""
    for micro in MICRO[rank]:
        part = batch(processor, LATENT, micro)
        output = engine.forward(part, CLOCK)
        engine.backward(output, part.sample_ids)


def gradients(
    rank: int, zero_stage: int, checkpointing: bool, offload: str = "none", precision: str = "fp32"
) -> dict[str, torch.Tensor]:
    """Summed gradients of one step, whole; of the second, so that what the first leaves behind would be seen."""
    from amvl_core.train.engine import DTYPES, Engine

    model, processor = amvl_model(dtype=DTYPES[precision])
    trainer = TrainerConfig(
        zero_stage=zero_stage, offload=offload, precision=precision, gradient_checkpointing=checkpointing
    )
    still = STAGE.model_copy(update={"lr": 1e-30, "weight_decay": 0.0})
    engine = Engine(Amvl(model.train(), METHOD), still, trainer, world_size=2)
    for _ in range(2):
        accumulate(engine, processor, rank)
        engine.step()
        grads = gradients_of_step(engine)
    engine.close()
    return {name.removeprefix("model."): grad for name, grad in grads.items()}


def bf16_weights(rank: int) -> dict[str, torch.Tensor]:
    """All weights after a bf16 step under ZeRO-2 with checkpointing."""
    from amvl_core.train.engine import Engine

    model, processor = amvl_model(dtype=torch.bfloat16)
    trainer = TrainerConfig(zero_stage=2, precision="bf16", gradient_checkpointing=True)
    engine = Engine(Amvl(model.train(), METHOD), STAGE.model_copy(update={"lr": 0.1}), trainer, world_size=2)
    accumulate(engine, processor, rank)
    engine.step()
    state = engine.weights(engine.weight_bytes())
    engine.close()
    return state


def adaptation(rank: int) -> dict[int, dict[str, torch.Tensor]]:
    """All weights after three steps of embedding adaptation under each ZeRO stage."""
    from amvl_core.train.engine import Engine

    found = {}
    for zero_stage in (0, 1, 2, 3):
        model, processor = amvl_model(dtype=torch.float32)
        stage = STAGE.model_copy(update={"trainable": "new_rows", "lr": 1e-2, "weight_decay": 0.1})
        trainer = TrainerConfig(zero_stage=zero_stage, precision="fp32", gradient_checkpointing=False)
        engine = Engine(Amvl(model.train(), METHOD), stage, trainer, world_size=2)
        for _ in range(3):
            accumulate(engine, processor, rank)
            engine.step()
        found[zero_stage] = engine.weights(engine.weight_bytes())
        engine.close()
    return found


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """What two processes found, once for all tests."""
    return in_two_processes(find)


@pytest.mark.parametrize(("zero_stage", "offload", "checkpointing"), CASES)
def test_every_gradient_equals_three_passes_in_one_process(
    found, zero_stage: int, offload: str, checkpointing: bool
) -> None:
    ours = found[f"zero {zero_stage}, offload {offload}, checkpointing {checkpointing}"]
    theirs = reference(torch.float32)
    whole = torch.stack([grad.norm() for grad in theirs.values()]).norm()
    assert len(ours) > 30
    for name, grad in ours.items():
        expected = theirs.get(name, torch.zeros_like(grad))
        error = float((grad - expected).norm() / torch.maximum(expected.norm(), 1e-3 * whole))
        # Measured worst case over stages: 2e-6.
        assert error < 2e-5, f"{name}: {error:.1e}"


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_gradients_in_bf16_point_where_those_in_float32_do(found, zero_stage: int) -> None:
    """A micro-batch that is lost or counted twice changes the whole gradient by a quarter or more."""
    ours, theirs = found[f"zero {zero_stage}, bf16"], reference(torch.float32)
    names = sorted(theirs)
    difference = torch.stack([(ours[name] - theirs[name]).norm() for name in names]).norm()
    error = float(difference / torch.stack([theirs[name].norm() for name in names]).norm())
    # Measured worst case over stages: 3.3e-2.
    assert error < 0.1


def test_bf16_moves_every_trained_weight_and_keeps_them_finite(found) -> None:
    model, _ = amvl_model(dtype=torch.bfloat16)
    for name, value in model.named_parameters():
        after = found["bf16"][name]
        assert after.dtype == torch.bfloat16 and torch.isfinite(after.float()).all(), name
        assert torch.equal(after, value) == name.startswith("model.visual."), name


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_adaptation_moves_the_new_rows_and_nothing_else(found, zero_stage: int) -> None:
    model, _ = amvl_model(dtype=torch.float32)
    rows = Amvl(model, METHOD).new_token_rows()
    for name, value in model.named_parameters():
        after = found["adaptation"][zero_stage][name]
        if name == "model.language_model.embed_tokens.weight":
            changed = (after != value).any(1).nonzero()[:, 0].tolist()
            assert changed == sorted(rows)
        else:
            assert torch.equal(after, value), name
