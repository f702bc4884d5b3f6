"""Where DeepSpeed keeps what a checkpoint must hold: float32 weights and Adam's moments, by parameter name.

Under every ZeRO stage a rank holds pieces of parameters, flattened. A piece is known by the parameter's name and its
first element. So another number of workers, under another ZeRO stage, can read the pieces. Frozen weights are not among
them, because they are what the stage started from.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's state of each element."""


@dataclass(frozen=True)
class Piece:
    """Elements `start` to `start + numel` of the trained parameter `name`, flattened.

    `tensors` ("weight", "exp_avg", "exp_avg_sq": float32 [numel]) are views of what the optimiser works on. So is
    `step`, a scalar: the number of updates that these elements have had. Writing into them changes what training goes
    on with.
    """

    name: str
    start: int
    tensors: dict[str, Tensor]
    step: Tensor

    @property
    def numel(self) -> int:
        """Elements in this piece."""
        return int(self.tensors["weight"].numel())

    @property
    def stop(self) -> int:
        """One past the last element."""
        return self.start + self.numel

    def part(self, start: int, stop: int) -> Piece:
        """The elements `start` to `stop`, counted in the parameter, of this piece."""
        cut = slice(start - self.start, stop - self.start)
        return Piece(self.name, start, {kind: tensor[cut] for kind, tensor in self.tensors.items()}, self.step)


def pieces(module: nn.Module, engine: Any) -> list[Piece]:
    """What this rank holds of each trained parameter of `module`, in the order of their names in it.

    `engine` is the DeepSpeed engine. Moments that do not exist yet (before the first step) are created as zeros.
    """
    found = []
    whole_masters = {id(parameter): master for parameter, master in _pairs(engine)} if replicated(engine) else {}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        for master, offset, start, numel in _places(parameter, engine, whole_masters):
            state = _adam_state(engine.basic_optimizer, master)
            whole = {"weight": master.detach(), **{kind: state[kind] for kind in MOMENTS}}
            tensors = {kind: tensor.view(-1)[offset : offset + numel] for kind, tensor in whole.items()}
            found.append(Piece(name, start, tensors, state["step"]))
    return found


def replicated(engine: Any) -> bool:
    """Whether every rank holds all of every parameter, and not a share of its own."""
    return bool(engine.zero_optimization_stage() == 0)


def publish(engine: Any) -> None:
    """Makes the model's weights what the float32 weights are, after these were written; every rank calls it."""
    optimizer = engine.optimizer
    if engine.zero_optimization_stage() == 3:
        for group in range(len(optimizer.fp32_partitioned_groups_flat)):
            optimizer._reassign_or_swap_out_partitioned_parameters(group)
        if optimizer.persistent_parameters:
            optimizer.persistent_parameters[0].partition(optimizer.persistent_parameters)
            optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)
    elif hasattr(optimizer, "update_lp_params"):
        optimizer.update_lp_params()
    else:
        for parameter, master in _pairs(engine):
            parameter.data.copy_(master.data)


def _places(parameter: Any, engine: Any, masters: dict[int, Tensor]) -> Iterator[tuple[Tensor, int, int, int]]:
    """(master tensor, offset in it, first element of the parameter, number of elements): what is on this rank."""
    optimizer = engine.optimizer
    if masters:
        yield masters[id(parameter)], 0, 0, parameter.numel()
    elif engine.zero_optimization_stage() == 3:
        group, offset, padded = optimizer.grad_position[optimizer.get_param_id(parameter)]
        start = optimizer._get_param_partition_rank(parameter) * padded
        numel = min(padded, parameter.ds_numel - start)
        if numel > 0:
            yield optimizer.fp32_partitioned_groups_flat[group], offset, start, numel
    elif (mapping := parameter._hp_mapping) is not None:
        (master,) = optimizer.param_groups[mapping.param_group_index]["params"]
        address, model = mapping.hp_fragment_address, mapping.lp_fragment_address
        yield master, address.start, model.start, model.numel


def _pairs(engine: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """Without ZeRO: each trained parameter and the tensor that the optimiser moves, the same in float32."""
    optimizer = engine.optimizer
    if not hasattr(optimizer, "fp32_groups"):
        yield from ((parameter, parameter) for group in optimizer.param_groups for parameter in group["params"])
        return
    for parameters, masters in zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True):
        yield from zip(parameters, masters, strict=True)


def _adam_state(optimizer: Any, master: Tensor) -> dict[str, Tensor]:
    """AdamW's state of one tensor as torch would create it at its first fused step."""
    state: dict[str, Tensor] = optimizer.state[master]
    if not state:
        state["step"] = torch.zeros((), dtype=torch.float32, device=master.device)
        for kind in MOMENTS:
            state[kind] = torch.zeros_like(master, memory_format=torch.preserve_format)
    return state
