"""Weights whose parts lie in several processes, which have to go through a model in step."""

from accelerate.utils import gather_object
from torch import nn
from torch.distributed.tensor import DTensor


def is_sharded(model: nn.Module) -> bool:
    """Return whether each forward of a model gathers its weights from all processes.

    FSDP2 makes them tensors that are spread over processes, and ZeRO-3 gives each an id.
    """
    for weight in model.parameters():
        if isinstance(weight, DTensor) or hasattr(weight, "ds_id"):
            return True
    return False


def forwards_missing(model: nn.Module, count: int) -> int:
    """Return how many forwards this process has to add, so that all make as many.

    A process that makes fewer than another leaves that one waiting for its part of the weights.

    Args:
        model: if its weights are whole, none is missing and no process is asked.
        count: how many this process would make.
    """
    return max(gather_object([count])) - count if is_sharded(model) else 0
