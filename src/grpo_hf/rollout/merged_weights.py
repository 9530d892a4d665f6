"""The adapter folded into the weights for as long as a model only reads them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from ..models.precision import free_memory
from ..torch_seam import arrange_weight, has_onednn, onednn_linear
from ..trl_seam import lora_is_two_products
from ..update.cpu_lora import is_left_alone
from ..update.cpu_products import has_own_forward

MEMORY = 0.5  # merged weights may take this share of the memory that is free
ROWS = 16  # about as many are decoded at a time; oneDNN arranges weights for that


@contextmanager
def merged(model: Any) -> Iterator[None]:
    """Fold the active LoRA adapter into the weights for the length of a `with` block.

    These are weights of their own; those of the model are not touched, so that not one bit of them
    moves (merging and unmerging in place drifts, by 1e-2 per cycle in bfloat16). On a CPU they are
    arranged as oneDNN wants them for a few rows, once instead of at every product: decoding is
    mostly such products. Without gradients only.

    Where the adapter cannot be folded in, the block runs on it as it is: quantised weights, DoRA
    and other variants, adapters that are not LoRA, hooks on a part of a layer, and less free memory
    than twice what the merged weights take.
    """
    layers = _layers(model)
    if not copied_bytes(model):
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
    """List layers with an adapter, and others that gain by an arrangement."""
    adapted = []
    inside: set[nn.Module] = set()
    for module in model.modules():
        if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper):
            adapted.append(module)
            inside.update(module.modules())
    arranged = []
    for module in model.modules():
        # A forward of its own, such as accelerate's hooks put on a layer, stays.
        plain = type(module) is nn.Linear and not has_own_forward(module)
        if module not in inside and plain and _arrangeable(module.weight):
            arranged.append(module)
    return adapted + arranged


@torch.no_grad()
def _product(layer: Any) -> Callable[[Tensor], Tensor]:
    """Return what a linear layer computes with its active adapter in the weight, as a function."""
    weight = _base(layer).weight.detach()
    bias = _base(layer).bias
    if isinstance(layer, LoraLinear):
        dtype = weight.dtype
        # Added in float32: in bfloat16 an early adapter's change would round away.
        weight = weight.float()
        for name in layer.active_adapters:
            if name in layer.lora_A:
                weight = weight + layer.get_delta_weight(name).float()
        weight = weight.to(dtype)
        # GPT-2's layers keep their weight transposed.
        if layer.fan_in_fan_out:
            weight = weight.T
    if not _arrangeable(weight):
        return lambda x: F.linear(x, weight, bias)
    arranged = arrange_weight(weight, ROWS)
    return lambda x: onednn_linear(x, arranged, bias)


def _base(layer: Any) -> Any:
    return layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer


def _arrangeable(weight: Tensor) -> bool:
    """Return whether torch has oneDNN's product for a weight.

    The functions that it uses are those of compiled models.
    """
    is_float32_on_cpu = weight.device.type == "cpu" and weight.dtype == torch.float32
    return is_float32_on_cpu and has_onednn()


def copied_bytes(model: Any) -> int:
    """Return how much memory `merged` takes beside a model; 0 if it leaves the adapter as it is.

    The adapter has to be two matrices on plain linear layers, and memory has to have room.
    """
    layers = _layers(model)
    if not isinstance(model, PeftModel) or not _adapter_folds(layers):
        return 0
    needed = 0
    for layer in layers:
        weight = _base(layer).weight
        # Quantised weights are parameters of another class or of integers; offloaded ones are meta.
        if type(weight) is not nn.Parameter or not weight.is_floating_point() or weight.is_meta:
            return 0
        needed += weight.numel() * weight.element_size()
    return needed if needed <= MEMORY * free_memory(_base(layers[0]).weight.device) else 0


def _adapter_folds(layers: list[Any]) -> bool:
    """Return whether the active adapter is two matrices on plain linear layers."""
    adapted = [layer for layer in layers if type(layer) is not nn.Linear]
    if not adapted:
        return False
    for layer in adapted:
        # Every adapter on the layer has to be two products, not just the active one: a variant on
        # another one changes how PEFT computes the layer.
        if type(layer) is not LoraLinear or not is_left_alone(layer):
            return False
        if not all(lora_is_two_products(layer, name) for name in layer.lora_bias):
            return False
    return all(type(_base(layer)) in (nn.Linear, Conv1D) for layer in adapted)
