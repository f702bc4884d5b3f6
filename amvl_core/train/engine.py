"""DeepSpeed: its configuration as a pure function of ours, the engine, its state and the export of weights."""

from __future__ import annotations

import importlib
import math
import os
import sys
from collections.abc import Callable, Container
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from amvl_core.contracts.config import StageConfig, TrainerConfig
from amvl_core.data.batch import Batch
from amvl_core.methods.method import Clock, Method, StepOutput
from amvl_core.train import optimizer_state
from amvl_core.train.watch import Refusal

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

# DeepSpeed's autotuner, which nothing here uses, imports MLflow where it is installed. No worker needs it.
if "mlflow" not in sys.modules:
    sys.modules["mlflow"] = None  # type: ignore[assignment]

import deepspeed
import deepspeed.ops
from deepspeed.runtime import compiler

if not sys.modules["mlflow"]:
    del sys.modules["mlflow"]

# For any optimiser DeepSpeed imports Muon, and Muon's module loads torch's compiler for kernels that nothing here uses:
# more than a second at every start. So it is imported here, and nothing is compiled meanwhile.
_compile, compiler.compile = compiler.compile, lambda: lambda kernel: kernel
importlib.import_module("deepspeed.runtime.zero.muon.muon_optimizer")
compiler.compile = _compile

# The shared-memory collective would be compiled at every start and needs a compiler; gloo does the same work.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def deepspeed_config(stage: StageConfig, trainer: TrainerConfig) -> dict[str, Any]:
    """The DeepSpeed dictionary of one stage.

    The number of backward calls differs from step to step, so the step says where they end and not a count of them
    (`managed_gradient_accumulation`). A loss is the micro-batch's share of the step's loss. So DeepSpeed has nothing to
    divide by, and both sizes are 1. Offloaded states are stepped on the CPU by the same torch.optim.AdamW. So the
    weights are the same, and nothing is compiled.
    """
    zero: dict[str, Any] = {"stage": trainer.zero_stage}
    if trainer.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    if trainer.offload == "parameters":
        zero["offload_param"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": 0.0 if _plain(trainer) else stage.clip,
        "bf16": {"enabled": trainer.precision == "bf16"},
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }


def _plain(trainer: TrainerConfig) -> bool:
    """Whether DeepSpeed leaves the optimiser as it is: no ZeRO, and no float32 copy of bf16 weights."""
    return trainer.zero_stage == 0 and trainer.precision == "fp32"


class PlainAdamW(torch.optim.AdamW):
    """AdamW for the one case in which DeepSpeed wraps no optimiser of its own around it.

    It does what DeepSpeed's optimisers do. It clips by the global norm and keeps the norm, and it takes no step on a
    gradient that is not finite (`overflow`). Gradients are summed over ranks already, so every rank decides alike.
    """

    def __init__(self, groups: list[dict[str, Any]], clip: float, **options: Any) -> None:
        super().__init__(groups, **options)
        self.clip, self.overflow, self._global_grad_norm = clip, False, 0.0

    def step(self, closure: Any = None) -> None:
        """Takes a step if the gradient is finite."""
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        self._global_grad_norm = float(nn.utils.clip_grad_norm_(parameters, self.clip))
        self.overflow = not math.isfinite(self._global_grad_norm)
        if not self.overflow:
            super().step(closure)


def set_trainable(method: Method, trainable: str) -> None:
    """Freezes what a stage does not train; `new_rows` lets gradient through to the new embedding rows alone."""
    method.requires_grad_(trainable != "new_rows")
    visual = method.backbone.vision(method.model)
    visual.requires_grad_(trainable == "all")
    for module in method.frozen():
        module.requires_grad_(False)
    if trainable == "new_rows":
        weight = method.model.get_input_embeddings().weight
        weight.requires_grad_(True)
        rows = torch.zeros(weight.shape[0], 1, dtype=weight.dtype, device=weight.device)
        rows[method.new_token_rows()] = 1.0
        weight.register_hook(lambda grad: grad * rows.to(grad))


def parameter_groups(method: Method, stage: StageConfig) -> list[dict[str, Any]]:
    """Trained parameters by learning rate (`lr_scale`, a factor on the stage's) and by weight decay.

    Only matrices decay. None does if only single rows are trained, because decay would move the other rows.
    """
    decay = stage.weight_decay if stage.trainable != "new_rows" else 0.0
    scales = _lr_scales(method, stage)
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for parameter in method.parameters():
        if parameter.requires_grad:
            key = (scales.get(parameter, 1.0), parameter.ndim >= 2)
            groups.setdefault(key, []).append(parameter)
    return [
        {"params": groups[scale, matrix], "weight_decay": decay if matrix else 0.0, "lr_scale": scale}
        for scale, matrix in sorted(groups, reverse=True)
    ]


def _lr_scales(method: Method, stage: StageConfig) -> dict[nn.Parameter, float]:
    """The factor on the learning rate of each parameter that has one of its own."""
    model, factors = method.model, stage.lr_scale
    embeddings = [model.get_input_embeddings().weight, model.get_output_embeddings().weight]
    return {
        **dict.fromkeys(method.backbone.vision(model).parameters(), factors.vision),
        **dict.fromkeys(embeddings, factors.embeddings),
        **dict.fromkeys(method.own_parameters(), factors.latent),
    }


def _partition(method: Method, config: dict[str, Any], dtype: torch.dtype) -> None:
    """Shares the weights between the ranks, one after the other: no GPU ever holds more than one of them whole.

    DeepSpeed would move the whole model to the GPU first. What it then leaves out is done here: weights in other
    precisions than the engine's are cast, and buffers are moved.
    """
    for parameter in method.parameters():
        parameter.data = parameter.data.to(dtype)
    deepspeed.init_distributed(dist_init_required=False)
    method.to(deepspeed.zero.Init(module=method, config_dict_or_path=config).local_device)


class Engine:
    """One DeepSpeed engine: forward, backward, step, and the state that a checkpoint holds.

    A model has one engine: DeepSpeed forgets where its parameters lie once more when a closed engine is collected.
    """

    def __init__(self, method: Method, stage: StageConfig, trainer: TrainerConfig, world_size: int) -> None:
        set_trainable(method, stage.trainable)
        if trainer.gradient_checkpointing:
            method.model.activation_checkpointing_enable()
        groups = parameter_groups(method, stage)
        options: dict[str, Any] = {"lr": stage.lr, "betas": (0.9, stage.beta2), "fused": True}
        optimizer = (
            PlainAdamW(groups, stage.clip, **options) if _plain(trainer) else torch.optim.AdamW(groups, **options)
        )
        config = deepspeed_config(stage, trainer)
        if trainer.zero_stage == 3:
            _partition(method, config, DTYPES[trainer.precision])
        self.engine, self.optimizer, _, _ = deepspeed.initialize(
            model=method, optimizer=optimizer, config=config, dist_init_required=False
        )
        self.method = method
        self.device = self.engine.device
        self.world_size = world_size
        self._micro: list[tuple[list[str], Tensor, Callable[[], list[bool]]]] = []

    def forward(self, batch: Batch, clock: Clock) -> StepOutput:
        """The share of one micro-batch."""
        output: StepOutput = self.engine(batch, clock)
        return output

    @torch.no_grad()
    def evaluate(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        """The terms of one micro-batch without dropout, and nothing kept for a gradient. Every rank calls this."""
        training = [module for module in self.engine.modules() if module.training]
        for module in training:
            module.training = False
        terms: dict[str, Tensor] = self.engine(batch, clock).terms
        for module in training:
            module.training = True
        return terms

    def step(self) -> None:
        """The optimiser's step, once all micro-batches are in."""
        self.engine.step()
        self._clear_gradients()

    def _clear_gradients(self) -> None:
        """Zeroes what DeepSpeed adds gradients to.

        It begins to overwrite again only with the first backward call of a step. A weight which that call does not
        reach would be added to its gradient of the step before.
        """
        if self.engine.zero_optimization_stage() == 3:
            self.engine.optimizer.grad_partitions_flat_buffer.zero_()
        elif self.engine.zero_use_cpu_optimizer():
            for gradient in self.engine.optimizer.accumulated_grads_in_cpu.values():
                gradient.zero_()

    def set_lr(self, lr: float) -> None:
        """Sets the learning rate of the next optimiser step: each group gets its factor times `lr`."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]

    def backward(self, output: StepOutput, sample_ids: list[str]) -> None:
        """Adds the gradient of a micro-batch's share of the loss; DeepSpeed averages over ranks, but shares add up.

        A loss that is not finite makes every gradient NaN, on all ranks once gradients are summed. The norm, which is
        computed anyway, then tells every rank that there is no step to take. Nothing waits for the device here.
        """
        finite = torch.isfinite(output.terms["loss"])
        self._micro.append((sample_ids, finite, output.finite))
        output.backward(torch.where(finite, float(self.world_size), torch.nan).to(output.loss), self._differentiate)

    def _differentiate(self, scalar: Tensor) -> None:
        """One backward call. Without a forward pass before it DeepSpeed takes it for a phase of the last one."""
        if self.engine.zero_optimization():
            self.engine.optimizer.clear_backward_seen_flag()
        self.engine.backward(scalar)

    def refusal(self) -> Refusal | None:
        """None if the last optimiser step was taken; else the samples of all ranks that may be the cause.

        Every rank calls this after the step. If the step was not taken, weights and moments are what they were.
        """
        micro, self._micro = self._micro, []
        if self.engine.was_step_applied():
            return None
        mine = (
            [name for sample_ids, finite, each in micro if not finite for name in _not_finite(sample_ids, each())],
            [name for sample_ids, _, _ in micro for name in sample_ids],
        )
        found: list[tuple[list[str], list[str]]] = [([], []) for _ in range(dist.get_world_size())]
        dist.all_gather_object(found, mine)
        named = tuple(name for names, _ in found for name in names)
        return Refusal(bool(named), named or tuple(name for _, names in found for name in names))

    def memory(self) -> float:
        """The most that this rank's GPU held since the last call, in GiB; 0 on a CPU."""
        if self.device.type != "cuda":
            return 0.0
        peak: int = torch.cuda.max_memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        return peak / 2**30

    def gradient_norm(self) -> float:
        """Norm of the last step's gradient, over all ranks, before clipping."""
        return float(self.engine.get_global_grad_norm())

    def pieces(self) -> list[optimizer_state.Piece]:
        """What this rank holds of the float32 weights and of AdamW's state."""
        return optimizer_state.pieces(self.method, self.engine)

    def share(self, rank: int, world_size: int) -> list[optimizer_state.Piece]:
        """This rank's share of the pieces. Over all ranks each element is in one share."""
        held = self.pieces()
        if not optimizer_state.replicated(self.engine):
            return held
        cuts = [(piece.numel * rank // world_size, piece.numel * (rank + 1) // world_size) for piece in held]
        return [piece.part(*cut) for piece, cut in zip(held, cuts, strict=True) if cut[0] < cut[1]]

    def publish(self) -> None:
        """Makes the model's weights what `pieces` says, after these were written; every rank calls it."""
        optimizer_state.publish(self.engine)

    def weight_bytes(self) -> dict[str, int]:
        """Of each weight of the Hugging Face model, the bytes of the whole of it."""
        return {
            name: _numel(parameter) * parameter.element_size()
            for name, parameter in self.method.model.named_parameters()
        }

    def num_parameters(self) -> int:
        """Of the Hugging Face model."""
        return sum(_numel(parameter) for parameter in self.method.model.parameters())

    def weights(self, wanted: Container[str]) -> dict[str, Tensor]:
        """Those of the Hugging Face model's weights, whole, on the CPU. Every rank calls it, each with its own wishes.

        Under ZeRO-3 one weight after the other is gathered on all ranks.
        """
        found: dict[str, Tensor] = {}
        for name, parameter in self.method.model.named_parameters():
            with deepspeed.zero.GatheredParameters([parameter], enabled=hasattr(parameter, "ds_id")):
                if name in wanted:
                    found[name] = parameter.detach().to("cpu", copy=True)
        return found

    def close(self) -> None:
        """Releases DeepSpeed's buffers before the process group goes."""
        self.engine.destroy()
        del self.engine, self.optimizer


def _numel(parameter: Any) -> int:
    """Elements of the whole of a parameter, of which ZeRO-3 leaves a rank a share."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def _not_finite(sample_ids: list[str], each: list[bool]) -> list[str]:
    """The samples of a micro-batch whose part of the loss is not finite; all, where only the parts' sum is not."""
    return [name for name, finite in zip(sample_ids, each, strict=True) if not finite] or sample_ids
