"""A model on several devices, for one that is larger than a GPU's memory: layer after layer, each device a stretch.

Only decoder layers leave the first device. Embeddings, vision encoder, last norm, LM head and what a method adds stay
there, so a model's inputs and outputs lie where they would with one device. It is for inference: in training the model
is shared by ZeRO. A library's device map moves what a layer's `forward` is given; packed rows (`amvl_core/rows`) call
the parts of a layer and ask `device_of` themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from amvl_core.backbones.backbone import backbone_of

_DEVICE = "_device_of_its_own"


def spread(model: Any, devices: Sequence[torch.device]) -> Any:
    """Moves `model`, whose weights are on the CPU, to `devices`. Each holds as many bytes to within a layer.

    The first device also holds all that is not a layer. If that alone is more than its share, it has no layer.
    """
    if len(devices) == 1:
        return model.to(devices[0])
    language = backbone_of(model).language_model(model)
    layers = language.layers
    sizes = [_bytes(layer) for layer in layers]
    kept: dict[torch.device, WeakTensorKeyDictionary] = {device: WeakTensorKeyDictionary() for device in devices}
    for layer, number in zip(layers, stretches(_bytes(model) - sum(sizes), sizes, len(devices)), strict=True):
        device = devices[number]
        layer.to(device)
        setattr(layer, _DEVICE, device)
        layer.register_forward_pre_hook(partial(_bring, device, kept[device]), with_kwargs=True)
    language.layers = nn.ModuleList()
    model.to(devices[0])
    language.layers = layers
    layers[-1].register_forward_hook(lambda _, given, output: _moved(output, devices[0], kept[devices[0]]))
    return model


def stretches(rest: float, layers: Sequence[float], devices: int) -> list[int]:
    """Which of the `devices` each layer lies on: `layers` are their sizes, `rest` is what else the first one holds.

    A device takes layers until it holds its share of what those before it left.
    """
    numbers, device, held, left = [], 0, rest, rest + sum(layers)
    for size in layers:
        if device < devices - 1 and held >= left / (devices - device):
            device, held, left = device + 1, 0.0, left - held
        numbers.append(device)
        held += size
    return numbers


def device_of(layer: nn.Module, hidden: Tensor) -> torch.device:
    """Where a layer of a model that is spread takes its inputs; of any other model where they are."""
    device: torch.device = getattr(layer, _DEVICE, hidden.device)
    return device


def _bytes(module: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in module.parameters())


def _bring(
    device: torch.device, kept: WeakTensorKeyDictionary, layer: nn.Module, given: Any, options: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """The layer's arguments on its device."""
    return _moved(given, device, kept), {name: _moved(value, device, kept) for name, value in options.items()}


def _moved(value: Any, device: torch.device, kept: WeakTensorKeyDictionary) -> Any:
    """Tensors and tuples of them on the device, all else as it is.

    A mask or a rotary embedding is given to every layer. Its copy is `kept` for the next one, as long as it is there.
    """
    if isinstance(value, tuple):
        return tuple(_moved(part, device, kept) for part in value)
    if not isinstance(value, Tensor) or value.device == device:
        return value
    if value not in kept:
        kept[value] = value.to(device)
    return kept[value]
