"""Counts what makes the host wait for a device: asking for numbers, and for sizes that depend on
them. On a CPU nothing waits, so what was asked is counted.
"""

from typing import Any

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


class Waits(TorchFunctionMode):
    """A `with` block in which `found` gets a name for each time that a device is waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), named: Any = None):
        name = getattr(function, "__name__", "")
        by_mask = name in ("__getitem__", "__setitem__") and _has_mask(args[1])
        if name in ASKING or by_mask:
            self.found.append(name)
        return function(*args, **(named or {}))


def _has_mask(index: Any) -> bool:
    each = index if isinstance(index, tuple) else (index,)
    return any(isinstance(one, torch.Tensor) and one.dtype == torch.bool for one in each)
