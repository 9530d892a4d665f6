"""The memory of tensors that are alive, counted at every operation."""

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class LiveTensors(TorchDispatchMode):
    """Counts the bytes of tensors that are made inside of its `with` block, and their peak."""

    def __init__(self, *known: Any) -> None:
        """`known` are tensors that were there before."""
        super().__init__()
        self.now = 0
        self.peak = 0
        self._seen = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        output = function(*args, **(kwargs or {}))
        for value in tree_iter(output):
            if isinstance(value, torch.Tensor):
                self._add(value.untyped_storage())
        return output

    def _add(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return
        self._seen.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)

        def gone() -> None:
            self._seen.discard(key)
            self.now -= size

        weakref.finalize(storage, gone)
