"""DeepSpeed: its configuration as a pure function of ours, the engine, its state and the export of weights."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import nn

from amvl_core.config import StageConfig, TrainerConfig
from amvl_core.methods import Method
from amvl_core.train import masters

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

import deepspeed
import deepspeed.ops

# The shared-memory collective would be compiled at every start and needs a compiler; gloo does the same work.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def deepspeed_config(stage: StageConfig, trainer: TrainerConfig, world_size: int) -> dict[str, Any]:
    """The DeepSpeed dictionary of one stage."""
    per_step = world_size * stage.micro_batch
    return {
        "train_micro_batch_size_per_gpu": stage.micro_batch,
        "gradient_accumulation_steps": stage.global_batch // per_step,
        "gradient_clipping": stage.clip,
        "bf16": {"enabled": trainer.precision == "bf16"},
        "zero_optimization": {"stage": trainer.zero_stage},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
    }


def set_trainable(method: Method, trainable: str) -> None:
    """Freezes what a stage does not train; `new_rows` lets gradient through to the new embedding rows alone."""
    method.requires_grad_(trainable != "new_rows")
    visual = method.model.model.visual
    visual.requires_grad_(trainable == "all")
    if trainable == "new_rows":
        weight = method.model.get_input_embeddings().weight
        weight.requires_grad_(True)
        rows = torch.zeros(weight.shape[0], 1, dtype=weight.dtype, device=weight.device)
        rows[method.new_token_rows()] = 1.0
        weight.register_hook(lambda grad: grad * rows.to(grad))


def parameter_groups(method: nn.Module, stage: StageConfig) -> list[dict[str, Any]]:
    """Weight decay on matrices only, and on none where only single rows are trained: decay would move the others."""
    trained = [parameter for parameter in method.parameters() if parameter.requires_grad]
    decay = stage.weight_decay if stage.trainable != "new_rows" else 0.0
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


class Engine:
    """One DeepSpeed engine: forward, backward, step, and the state that a checkpoint holds."""

    def __init__(self, method: Method, stage: StageConfig, trainer: TrainerConfig, world_size: int) -> None:
        set_trainable(method, stage.trainable)
        if trainer.gradient_checkpointing:
            method.model.activation_checkpointing_enable()
        fused = torch.cuda.is_available()
        optimizer = torch.optim.AdamW(
            parameter_groups(method, stage), lr=stage.lr, betas=(0.9, stage.beta2), fused=fused
        )
        self.engine, self.optimizer, _, _ = deepspeed.initialize(
            model=method,
            optimizer=optimizer,
            config=deepspeed_config(stage, trainer, world_size),
            dist_init_required=False,
        )
        self.method = method
        self.device = self.engine.device

    def set_lr(self, lr: float) -> None:
        """The learning rate of the next optimiser step."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    def gradient_norm(self) -> float:
        """Norm of the last step's gradient before clipping; NaN where DeepSpeed does not keep one."""
        norm = self.engine.get_global_grad_norm()
        return float("nan") if norm is None else float(norm)

    def pieces(self) -> list[masters.Piece]:
        """What this rank holds of the float32 weights and of AdamW's state."""
        return masters.pieces(self.method, self.engine)

    def share(self, rank: int, world_size: int) -> list[masters.Piece]:
        """This rank's share of them: over all ranks each element is there once."""
        held = self.pieces()
        if not masters.replicated(self.engine):
            return held
        cuts = [(piece.numel * rank // world_size, piece.numel * (rank + 1) // world_size) for piece in held]
        return [piece.part(*cut) for piece, cut in zip(held, cuts, strict=True) if cut[0] < cut[1]]

    def publish(self) -> None:
        """Makes the model's weights what `pieces` says, after these were written; every rank calls it."""
        masters.publish(self.engine)

    def state_dict(self, rank: int) -> dict[str, torch.Tensor]:
        """All weights of the Hugging Face model on the CPU of rank 0 (empty elsewhere); every rank calls it."""
        state: dict[str, torch.Tensor] = {}
        for name, parameter in self.method.model.named_parameters(remove_duplicate=False):
            with deepspeed.zero.GatheredParameters([parameter], enabled=hasattr(parameter, "ds_id")):
                if rank == 0:
                    state[name] = parameter.detach().cpu().clone()
        return state

    def close(self) -> None:
        """Releases DeepSpeed's buffers before the process group goes."""
        self.engine.destroy()
        del self.engine, self.optimizer
