"""The adapter folded into the weights for as long as a model only reads them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import torch
from peft import PeftModel
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from ..trl_seam import (
    arrange_weight,
    arranged_linear,
    has_arranged_products,
    lora_is_two_products,
)

MEMORY = 0.5  # merged weights may take this share of the memory that is free
ROWS = 16  # about as many are decoded at a time; oneDNN arranges weights for that


@contextmanager
def merged(model: Any) -> Iterator[None]:
    """For the length of a `with` block, linear layers compute with weights in which the active LoRA adapter is folded.

    These are weights of their own; those of the model are not touched, so that not one bit of them moves (merging and
    unmerging in place drifts, by 1e-2 per cycle in bfloat16). On a CPU they are arranged as oneDNN wants them for a few
    rows, once instead of at every product: decoding is mostly such products. Without gradients only.

    Where the adapter cannot be folded in, the block runs on it as it is: quantised weights, DoRA and other variants,
    adapters that are not LoRA, and less free memory than twice what the merged weights take.
    """
    layers = _layers(model)
    if not isinstance(model, PeftModel) or not _can_merge(layers):
        yield
        return
    before = [vars(layer).get("forward") for layer in layers]
    try:
        for layer in layers:
            layer.forward = _product(layer)
        yield
    finally:
        for layer, forward in zip(layers, before, strict=True):
            vars(layer).pop("forward", None)
            if forward is not None:
                layer.forward = forward


def _layers(model: Any) -> list[Any]:
    """Layers with an adapter, and others that gain by an arrangement."""
    adapted = [
        module
        for module in model.modules()
        if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper)
    ]
    inside = {part for layer in adapted for part in layer.modules()}
    others = (part for part in model.modules() if type(part) is nn.Linear and part not in inside)
    return adapted + [
        part for part in others if _arrangeable(part.weight) and "forward" not in vars(part)
    ]


@torch.no_grad()
def _product(layer: Any) -> Callable[[Tensor], Tensor]:
    """What a linear layer computes with its active adapter in the weight, as a function."""
    weight, bias = _base(layer).weight.detach(), _base(layer).bias
    if isinstance(layer, LoraLinear):
        deltas = [
            layer.get_delta_weight(name).float()
            for name in layer.active_adapters
            if name in layer.lora_A
        ]
        weight = sum(deltas, weight.float()).to(weight.dtype)
        weight = weight.T if layer.fan_in_fan_out else weight  # GPT-2's layers
    if not _arrangeable(weight):
        return lambda x: F.linear(x, weight, bias)
    arranged = arrange_weight(weight, ROWS)
    return lambda x: arranged_linear(x, arranged, bias)


def _base(layer: Any) -> Any:
    return layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer


def _arrangeable(weight: Tensor) -> bool:
    """Whether torch has oneDNN's product for a weight (2.13 has, under names of its own for compiled models)."""
    is_float32_on_cpu = weight.device.type == "cpu" and weight.dtype == torch.float32
    return is_float32_on_cpu and has_arranged_products()


def _can_merge(layers: list[Any]) -> bool:
    """Whether the active adapter is two matrices on plain linear layers, and memory has room for merged weights."""
    adapted = [layer for layer in layers if type(layer) is not nn.Linear]
    if not adapted:
        return False
    for layer in adapted:
        # Every adapter on the layer has to be two products, not just the active one: a variant on
        # another one changes how PEFT computes the layer.
        if type(layer) is not LoraLinear:
            return False
        if not all(lora_is_two_products(layer, name) for name in layer.lora_bias):
            return False
    weights = [_base(layer).weight for layer in layers]
    if any(type(_base(layer)) not in (nn.Linear, Conv1D) for layer in adapted):
        return False
    if any(
        type(weight) is not nn.Parameter or not weight.is_floating_point() or weight.is_meta
        for weight in weights
    ):
        return False
    device = weights[0].device
    free = (
        torch.cuda.mem_get_info(device)[0]
        if device.type == "cuda"
        else psutil.virtual_memory().available
    )
    return sum(weight.numel() * weight.element_size() for weight in weights) <= MEMORY * free
