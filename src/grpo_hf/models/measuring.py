"""A model as it is measured: without dropout, its adapter at work, in float32, untold."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..trl_seam import forward_before_autocast
from .precision import free_memory
from .random_state import own_random_numbers


@contextmanager
def without_dropout(model: nn.Module) -> Iterator[None]:
    """Evaluate for a block; afterwards each module is in the mode that it was in."""
    # By module: a frozen part may be in evaluation mode while the rest trains.
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def zeros_filled(model: nn.Module) -> Iterator[None]:
    """Let weights that train, and are 0 so far, be small numbers for a block."""
    zeros = []
    for weight in model.parameters():
        if weight.requires_grad and _is_whole(weight) and not weight.any():
            zeros.append((weight, weight.clone()))
    try:
        # The run's own random numbers stay what they would be without a check.
        with own_random_numbers(0):
            for weight, _ in zeros:
                weight.normal_(std=0.05)
        yield
    finally:
        for weight, before in zeros:
            weight.copy_(before)


@contextmanager
def unreported(args: Any) -> Iterator[None]:
    """Let TRL report nothing for a block.

    It reports how long each call took, to trackio even before the training, where trackio raises.
    """
    report_to = args.report_to
    args.report_to = []
    try:
        yield
    finally:
        args.report_to = report_to


def _is_whole(weight: nn.Parameter) -> bool:
    """Return whether a weight is in this process alone, and as a whole."""
    # FSDP2 has a class for its parts. What ZeRO-3 has is empty now and whole in a forward.
    return type(weight.data) is Tensor and not hasattr(weight, "ds_id")


@contextmanager
def in_float32(base: PreTrainedModel, *, wanted: bool, castable: bool) -> Iterator[bool]:
    """Compute in float32 for a block, without autocast, where weights and memory allow it.

    Args:
        base: the causal language model.
        wanted: whether it computes in less than that.
        castable: whether its weights are whole.

    Yields:
        Whether the model computes in float32.
    """
    half = [
        weight
        for weight in (*base.parameters(), *base.buffers())
        if weight.dtype in (torch.float16, torch.bfloat16)
    ]
    needed = 4 * sum(weight.numel() for weight in half)
    quantized = getattr(base, "is_quantized", False)
    if not wanted or not castable or quantized or needed > free_memory(base.device) / 2:
        yield not wanted
        return
    before = vars(base).get("forward")
    forward = forward_before_autocast(base)
    kept = [(weight, weight.data) for weight in half]

    # `generate` reads the signature.
    @wraps(forward)
    def without_autocast(*positional: Any, **named: Any) -> Any:
        with torch.autocast(base.device.type, enabled=False):
            return forward(*positional, **named)

    # On the model itself, because TRL turns autocast on outside of it.
    base.forward = without_autocast
    try:
        for weight, data in kept:
            weight.data = data.float()
        yield True
    finally:
        for weight, data in kept:
            weight.data = data
        vars(base).pop("forward")
        if before is not None:
            base.forward = before
