"""Counts what makes the host wait for a device: asking for numbers, and for sizes that depend on
them. On a CPU nothing waits, so what was asked is counted.
"""

from typing import Any, ClassVar

import torch
from torch.overrides import TorchFunctionMode

ASKING = {
    "item",
    "tolist",
    "numpy",
    "cpu",
    "nonzero",
    "argwhere",
    "unique",
    "_unique2",
    "masked_select",
    "equal",
    "allclose",
    "__bool__",
    "__int__",
    "__float__",
    "__index__",
}


class OnDevice(torch.Tensor):
    """Stands for a tensor of a device, on the host; `found` names each time that it is waited for.

    What is computed from it is on the device too; what `cpu` returns is not.
    """

    found: ClassVar[list[str]] = []

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), named: Any = None):
        cls.found += _waits(function, args)
        result = super().__torch_function__(function, types, args, named or {})
        of_host = getattr(function, "__name__", "") == "cpu"
        return result.as_subclass(torch.Tensor) if of_host else result


class Waits(TorchFunctionMode):
    """A `with` block in which `found` gets a name for each time that a device is waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), named: Any = None):
        self.found += _waits(function, args)
        return function(*args, **(named or {}))


def _waits(function: Any, args: Any) -> list[str]:
    """Name the function if whoever calls it waits for a device."""
    name = getattr(function, "__name__", "")
    by_mask = name in ("__getitem__", "__setitem__") and _has_mask(args[1])
    return [name] if name in ASKING or by_mask else []


def _has_mask(index: Any) -> bool:
    each = index if isinstance(index, tuple) else (index,)
    return any(isinstance(one, torch.Tensor) and one.dtype == torch.bool for one in each)
