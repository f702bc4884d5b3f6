"""Accelerators that are simulated: values lie in this machine's memory, and no operation takes two devices.

`with simulated():` a tensor or module can be moved to `DEVICES`. Where a tensor was left on the CPU, or lies on the
other device, the operation is refused as CUDA would refuse it: only scalars and indices may come from the CPU. PyTorch
lets a process have one backend that is written in Python, and it stays for as long as the process does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

DEVICES = tuple(torch.device("privateuseone", number) for number in range(2))
INDEXED = ("index", "index_put", "index_put_", "_index_put_impl_")
"""Operations whose indices may lie on the CPU."""
COPIES = ("_to_copy", "copy", "copy_")
"""What moves values between devices."""


class Simulated(Tensor):
    """A tensor on a simulated device; `value` is the tensor itself."""

    @staticmethod
    def __new__(cls, value: Tensor, device: torch.device) -> Simulated:
        return torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined,no-any-return]
            cls,
            value.shape,
            strides=value.stride(),
            storage_offset=value.storage_offset(),
            dtype=value.dtype,
            device=device,
            requires_grad=value.requires_grad,
        )

    def __init__(self, value: Tensor, device: torch.device) -> None:
        self.value = value

    def __repr__(self) -> str:  # type: ignore[override]
        return f"{self.value} on {self.device}"

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.tolist:
            return args[0].value.tolist()
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.is_inference_mode_enabled():  # elsewhere what is made of other operations has come apart before
            with self:
                made = func.decompose(*args, **(kwargs or {}))
            if made is not NotImplemented:
                return made
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    """The operation on the values; what it gives lies where its tensors lie, or where it is told to."""
    name = func.overloadpacket.__name__
    if name in COPIES or name in INDEXED:
        device = args[0].device
        if name in INDEXED:
            _check(name, device, [index for index in args[1] if index is not None and index.device.type != "cpu"])
            _check(name, device, args[2:])
    else:
        device = _check(name, None, (args, kwargs))
    if kwargs.get("device") is not None:
        device, kwargs = torch.device(kwargs["device"]), {**kwargs, "device": torch.device("cpu")}
    args_in, kwargs_in = _each(_value, (args, kwargs))
    made = func(*args_in, **kwargs_in)
    if name.endswith("_") and not name.endswith("__"):
        return args[0]
    if device.type == "cpu":
        return made
    return _each(lambda tensor: tensor if isinstance(tensor, Simulated) else Simulated(tensor, device), made)


def _value(tensor: Tensor) -> Tensor:
    return tensor.value if isinstance(tensor, Simulated) else tensor


def _each(change: Callable[[Tensor], Any], given: Any) -> Any:
    """`given` with its tensors changed; PyTorch's own `tree_map` takes longer than the operations."""
    if isinstance(given, Tensor):
        return change(given)
    if isinstance(given, list | tuple):
        return type(given)(_each(change, part) for part in given)
    return {name: _each(change, part) for name, part in given.items()} if isinstance(given, dict) else given


def _check(name: str, device: torch.device | None, given: Any) -> torch.device:
    """The one device of the tensors that are given; a number on the CPU goes with any."""
    found: set[torch.device] = set()
    _each(lambda tensor: found.add(tensor.device) if isinstance(tensor, Simulated) or tensor.ndim else None, given)
    if len(found | ({device} if device else set())) > 1:
        raise RuntimeError(f"{name} was given tensors on {sorted(map(str, found))}, and its own is {device}")
    return device or next(iter(found), torch.device("cpu"))


def _backend() -> torch.library.Library:
    """What PyTorch's own code asks of a device when it makes a tensor there, such as one of a list's numbers."""
    _setup_privateuseone_for_python_backend("simulated")
    kernels = torch.library.Library("aten", "IMPL", "PrivateUse1")
    kernels.impl("empty_strided", _empty_strided)
    kernels.impl("empty.memory_format", _empty)
    kernels.impl("_local_scalar_dense", lambda tensor: tensor.value.item())
    kernels.impl("_copy_from", _copy_from)
    return kernels


def _empty_strided(size: Any, stride: Any, dtype: Any = None, device: Any = None, **_: Any) -> Simulated:
    return Simulated(torch.empty_strided(size, stride, dtype=dtype), device)


def _empty(size: Any, dtype: Any = None, device: Any = None, **_: Any) -> Simulated:
    return Simulated(torch.empty(size, dtype=dtype), device)


def _copy_from(source: Tensor, target: Simulated, non_blocking: bool = False) -> Tensor:
    target.value.copy_(_value(source))
    return target


_KERNELS = _backend()  # before a first backward pass, which counts the devices


@contextmanager
def simulated() -> Iterator[None]:
    """While it is open there are `DEVICES`."""
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with _Mode():
            yield
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)
