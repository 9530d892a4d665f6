"""Weights whose parts lie in several processes, which have to go through a model in step."""

import os
from typing import Any

from accelerate.utils import gather_object, parse_flag_from_env
from torch import nn
from torch.distributed.tensor import DTensor


def strategy_of(args: Any) -> str:
    """Return how the processes of a run divide its weights: `ddp` (not at all) or a way to shard.

    accelerate itself knows it only when a trainer is made; until then its launcher's environment
    says it.

    Args:
        args: of the run.

    Returns:
        `ddp`, `fsdp`, `zero2` or `zero3`.
    """
    if args.fsdp or parse_flag_from_env("ACCELERATE_USE_FSDP"):
        return "fsdp"
    plugin = getattr(args, "deepspeed_plugin", None)
    if plugin is not None or parse_flag_from_env("ACCELERATE_USE_DEEPSPEED"):
        stage = getattr(plugin, "zero_stage", None)
        stage = stage or int(os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2"))
        return "zero3" if stage == 3 else "zero2"
    return "ddp"


def is_sharded(model: nn.Module) -> bool:
    """Return whether each forward of a model gathers its weights from all processes.

    FSDP2 makes them tensors that are spread over processes, and ZeRO-3 gives each an id.
    """
    for weight in model.parameters():
        if isinstance(weight, DTensor) or hasattr(weight, "ds_id"):
            return True
    return False


def in_step(model: nn.Module, batches: list[list[int]]) -> list[list[int]]:
    """Add empty batches to those of this process, so that all make as many forwards.

    A process that makes fewer than another leaves that one waiting for its part of the weights. For
    an empty batch any token is read for nothing.

    Args:
        model: if its weights are whole, no batch is added and no process is asked.
        batches: indices of rows.
    """
    if not is_sharded(model):
        return batches
    missing = max(gather_object([len(batches)])) - len(batches)
    return batches + [[] for _ in range(missing)]
