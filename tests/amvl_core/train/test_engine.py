"""What DeepSpeed and AdamW are told; what they make of it is in tests/distributed/test_engine.py."""

import json

import pytest
import torch

from amvl_core.contracts.config import LrScale, StageConfig, TrainerConfig
from amvl_core.methods.amvl.config import AmvlMethod
from amvl_core.methods.amvl.method import Amvl
from amvl_core.train.engine import deepspeed_config, parameter_groups, set_trainable
from tests.tiny import amvl_model

STAGE = StageConfig(method=AmvlMethod(), steps=1, global_batch=8, micro_tokens=64, clip=0.5, weight_decay=0.1)


@pytest.mark.parametrize(
    ("zero_stage", "offload", "moved"),
    [
        (2, "none", set()),
        (1, "optimizer", {"offload_optimizer"}),
        (3, "optimizer", {"offload_optimizer"}),
        (3, "parameters", {"offload_optimizer", "offload_param"}),
    ],
)
def test_offload_is_told_to_deepspeed(zero_stage: int, offload: str, moved: set[str]) -> None:
    trainer = TrainerConfig.model_validate({"zero_stage": zero_stage, "offload": offload})
    config = deepspeed_config(STAGE, trainer)
    zero = config["zero_optimization"]
    assert zero["stage"] == zero_stage
    assert {name for name, value in zero.items() if name != "stage" and value["device"] == "cpu"} == moved
    assert json.loads(json.dumps(config)) == config


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_one_of_both_clips(zero_stage: int, precision: str) -> None:
    trainer = TrainerConfig.model_validate({"zero_stage": zero_stage, "precision": precision})
    plain = zero_stage == 0 and precision == "fp32"
    assert deepspeed_config(STAGE, trainer)["gradient_clipping"] == (0.0 if plain else 0.5)


def groups(**fields: object) -> list[dict]:
    model, _ = amvl_model(dtype=torch.float32)
    method, stage = Amvl(model, AmvlMethod()), STAGE.model_copy(update=fields)
    set_trainable(method, stage.trainable)
    return parameter_groups(method, stage)


def test_without_rates_of_their_own_there_are_matrices_and_the_rest() -> None:
    matrices, rest = groups()
    assert (matrices["weight_decay"], rest["weight_decay"]) == (0.1, 0.0)
    assert all(p.ndim >= 2 for p in matrices["params"]) and all(p.ndim < 2 for p in rest["params"])
    assert {group["lr_scale"] for group in (matrices, rest)} == {1.0}


def test_every_trained_parameter_is_in_one_group() -> None:
    scales = LrScale(latent=3.0, embeddings=0.5, vision=0.25)
    found = groups(trainable="all", lr_scale=scales)
    members = [parameter for group in found for parameter in group["params"]]
    model, _ = amvl_model(dtype=torch.float32)
    assert len(members) == len(set(members)) == len(list(model.parameters()))
    by_scale = {scale: sum(len(g["params"]) for g in found if g["lr_scale"] == scale) for scale in (3.0, 0.5, 0.25)}
    assert by_scale[0.5] == 2
    assert by_scale[0.25] == len(list(model.model.visual.parameters()))
    parts = (model.prior_head, model.injector)
    assert by_scale[3.0] == sum(len(list(part.parameters())) for part in parts)


def test_new_rows_alone_are_not_decayed() -> None:
    [embedding] = groups(trainable="new_rows", lr_scale=LrScale(embeddings=2.0))
    assert embedding["weight_decay"] == 0.0 and embedding["lr_scale"] == 2.0 and len(embedding["params"]) == 1


def test_muon_is_not_compiled() -> None:
    from deepspeed.runtime import compiler
    from deepspeed.runtime.zero.muon.muon_optimizer import muon_update

    assert compiler.compile() is torch.compile  # as it was
    assert not hasattr(muon_update, "_torchdynamo_orig_callable")
