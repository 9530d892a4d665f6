"""The adapter folded into the weights for as long as a model only reads them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import torch
from peft import PeftModel
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper
from torch import nn

from .roles import as_base

MEMORY = 0.5  # a merged copy may take this share of the memory that is free


@contextmanager
def merged(model: Any) -> Iterator[None]:
    """For the length of a `with` block, the active LoRA adapter sits in the weights instead of beside them.

    Each adapted layer gets a merged weight of its own and, at the end, its old weight back: the same tensor, so not one
    bit moves (merging and unmerging in place drifts, by 1e-2 per cycle in bfloat16). Where that cannot be done the
    block runs on the adapter as it is: quantised weights, DoRA and other variants, adapters that are not LoRA, and less
    free memory than twice the copy.
    """
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper)]
    if not isinstance(model, PeftModel) or not layers or not _can_merge(layers):
        yield
        return
    bases = [layer.get_base_layer() for layer in layers]
    weights = [base.weight for base in bases]
    try:
        for layer, base in zip(layers, bases, strict=True):
            total = base.weight.detach().float()
            for adapter in layer.active_adapters:
                if adapter in layer.lora_A:
                    total = total + layer.get_delta_weight(adapter).detach().float()
            base.weight = nn.Parameter(total.to(base.weight.dtype), requires_grad=False)
        with as_base(model):
            yield
    finally:
        for base, weight in zip(bases, weights, strict=True):
            base.weight = weight


def _can_merge(layers: list[Any]) -> bool:
    """Whether the active adapter is two matrices on plain linear layers, and memory has room for a copy."""
    if not all(type(layer) is LoraLinear and not layer.merged and not layer.disable_adapters for layer in layers):
        return False
    if any(layer.lora_variant or any(layer.lora_bias.values()) for layer in layers):
        return False
    weights = [layer.get_base_layer().weight for layer in layers]
    if any(type(weight) is not nn.Parameter or not weight.is_floating_point() for weight in weights):
        return False
    device = weights[0].device
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    return sum(weight.numel() * weight.element_size() for weight in weights) <= MEMORY * free
