"""A GPU that is only pretended: tensors of the CPU that say they are elsewhere, and may not mix."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

CPU, GPU = torch.device("cpu"), torch.device("xpu", 0)
_MARK = "_on_the_pretended_gpu"
_DEVICE, _GRAD = Tensor.device.__get__, Tensor.grad.__get__  # type: ignore[attr-defined]
_INDEXED = {"__getitem__", "__setitem__", "index_put", "index_put_"}
_LIKE_THE_FIRST = {
    "copy_", "expand_as", "view_as", "reshape_as", "__set__", "_has_compatible_shallow_copy_type",
}  # fmt: skip


def is_there(tensor: Tensor) -> bool:
    """Whether a tensor is on the pretended GPU; its storage knows, which all of its views share."""
    return hasattr(tensor.untyped_storage(), _MARK)


class PretendedGPU(TorchFunctionMode):
    """While it is active, tensors can be moved to ``GPU``, and to mix them is an error as on CUDA.

    A CPU tensor without dimensions mixes with all, and indices of the CPU with what they index.
    """

    def __torch_function__(
        self, func: Callable, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = func.__name__
        if name == "__get__" and func != _GRAD:
            return GPU if func == _DEVICE and is_there(args[0]) else func(*args)
        kwargs = kwargs or {}
        given = _tensors((*args, *kwargs.values()) if kwargs else args)
        there = [is_there(tensor) for tensor in given]
        asked, args, kwargs = _take_device(name, args, kwargs)
        if asked is not None:
            goes = asked.type == GPU.type
        elif True in there:
            _check(name, given, there)
            goes = there[0] or name not in _INDEXED | _LIKE_THE_FIRST
        else:
            return func(*args, **kwargs)
        if goes and kwargs.get("generator") is not None:
            raise RuntimeError(f"{name}: a generator of the CPU for a tensor of the GPU")
        result = func(*args, **kwargs)
        if asked is not None and given and is_there(result) != goes:
            result = result.clone()
        for tensor in _tensors((result,)) if goes else ():
            setattr(tensor.untyped_storage(), _MARK, True)
        return result


def _tensors(values: Iterable[Any]) -> list[Tensor]:
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (tuple, list)):
            found += _tensors(value)
    return found


def _take_device(name: str, args: Any, kwargs: Any) -> tuple[torch.device | None, Any, Any]:
    """The device that a call asks for, and what it is called with, which names the CPU instead."""
    if name == "cpu":
        return CPU, args, kwargs
    first = name == "to" and len(args) > 1
    value = args[1] if first else kwargs.get("device")
    if value is None or isinstance(value, torch.dtype):
        return None, args, kwargs
    if isinstance(value, Tensor):  # x.to(other)
        asked, value = GPU if is_there(value) else CPU, value.dtype
    else:
        asked = torch.device(value)
        value = CPU if asked.type == GPU.type else asked
    if first:
        return asked, (args[0], value, *args[2:]), kwargs
    return asked, args, {**kwargs, "device": value}


def _check(name: str, given: Sequence[Tensor], there: Sequence[bool]) -> None:
    """Raise for what CUDA would refuse."""
    if name in _LIKE_THE_FIRST:
        return
    if name in ("numpy", "__array__"):
        raise TypeError(f"{name}: a tensor of the GPU; copy it to the CPU first")
    if name in _INDEXED and there[0]:
        return
    all_alike, writes = name in ("cat", "stack"), name.endswith("_") and not name.endswith("__")
    for i, (tensor, on) in enumerate(zip(given, there)):
        if not on and (tensor.dim() or all_alike or (writes and i == 0)):
            raise RuntimeError(f"{name}: tensors of the CPU and of the GPU")
