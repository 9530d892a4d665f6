"""Engines that shard weights, on processes of a CPU: FSDP2 and DeepSpeed's ZeRO."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import wraps
from typing import Any
from unittest.mock import patch

from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType


@contextmanager
def shards_on_a_cpu() -> Iterator[None]:
    """Let accelerate shard on processes of a CPU for a block, where it wants an accelerator.

    accelerate 1.15 heeds an FSDP plugin on devices of other kinds only, and finds no backend for
    DeepSpeed where there is no such device. torch's `fully_shard` and ZeRO work with gloo as they
    do elsewhere.
    """
    initialise, prepare_backend = AcceleratorState.__init__, PartialState._prepare_backend

    @wraps(initialise)
    def with_fsdp(self: Any, *positional: Any, **named: Any) -> None:
        initialise(self, *positional, **named)
        plugin = named.get("fsdp_plugin")
        if plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.FSDP
            if self._mixed_precision != "no":
                plugin.set_mixed_precision(self._mixed_precision)
            self.fsdp_plugin = plugin
            # Every further state takes this over.
            PartialState._shared_state["distributed_type"] = self.distributed_type

    @wraps(prepare_backend)
    def with_gloo(self: Any, *positional: Any, **named: Any) -> Any:
        backend, kind = prepare_backend(self, *positional, **named)
        if kind == DistributedType.NO and "deepspeed" in sys.modules:
            return "gloo", DistributedType.MULTI_CPU
        return backend, kind

    # DeepSpeed would compile communication of its own.
    no_kernel: Any = nullcontext()
    if "deepspeed" in sys.modules:
        no_kernel = patch("deepspeed.comm.torch.build_shm_op", lambda: None)
    with (
        patch.object(AcceleratorState, "__init__", with_fsdp),
        patch.object(PartialState, "_prepare_backend", with_gloo),
        no_kernel,
    ):
        yield


# What a configuration says for each engine.
ENGINES: dict[str, dict[str, Any]] = {
    "ddp": {"use_cpu": True},
    "fsdp2": {"use_cpu": True, "fsdp": True, "fsdp_config": {"version": 2}},
    "fsdp2-bf16": {"use_cpu": True, "fsdp": True, "fsdp_config": {"version": 2}, "bf16": True},
}
for _stage in (2, 3):
    ENGINES[f"zero{_stage}"] = {
        "deepspeed": {
            "zero_optimization": {"stage": _stage},
            # Its own optimizers want a compiler.
            "zero_allow_untested_optimizer": True,
            "gradient_accumulation_steps": "auto",
            "train_batch_size": "auto",
            "train_micro_batch_size_per_gpu": "auto",
            "gradient_clipping": "auto",
        }
    }


def environment_of(engine: str) -> dict[str, str]:
    """Return the environment variables with which an engine runs on a CPU."""
    # Told to use the CPU, accelerate leaves DeepSpeed out; without a GPU it finds none.
    if engine.startswith("zero"):
        return {"ACCELERATE_USE_CPU": "false", "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    return {}
