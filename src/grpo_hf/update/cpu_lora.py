"""A LoRA layer on a CPU in as few passes over memory as it takes.

PEFT adds the adapter's part in steps of their own: the product with B writes it, the scaling reads
and writes it, the addition reads it and the layer's output and writes both again. Here the product
adds into the output, both ways:

    y = x Wᵀ + s (x Aᵀ) Bᵀ,    u = s (∂y B),    ∂x = ∂y W + u A,    ∂A = uᵀ x,    ∂B = s ∂yᵀ (x Aᵀ)

Shapes: N tokens, I and O features in and out, r the adapter's rank.
"""

from types import MethodType
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from ..trl_seam import lora_is_two_products, own_hooks
from .cpu_products import (
    has_own_forward,
    is_float32_on_cpu,
    linear,
    linear_to_the_bit,
    product_of_columns,
)


def join_products(model: nn.Module) -> None:
    """Let a model's LoRA layers compute that way wherever it is the same as PEFT's."""
    for layer in model.modules():
        # accelerate's hooks put a forward of their own on a layer, and it stays.
        if type(layer) is LoraLinear and "forward" not in vars(layer):
            layer.forward = MethodType(_forward, layer)


def _forward(self: Any, x: Tensor, *positional: Any, **named: Any) -> Tensor:
    adapter = self.active_adapters[0] if len(self.active_adapters) == 1 else None
    if (
        positional
        or named
        or adapter is None
        or adapter not in self.lora_A
        or not _is_plain(self, adapter, x)
    ):
        return LoraLinear.forward(self, x, *positional, **named)
    base, a, b = self.base_layer, self.lora_A[adapter].weight, self.lora_B[adapter].weight
    # Outside of the function: nobody may write into a view that was made inside of it.
    rows = x.reshape(-1, x.shape[-1])
    y = _LoraLinear.apply(rows, base.weight, base.bias, a, b, self.scaling[adapter])
    return y.view(*x.shape[:-1], y.shape[-1])


def is_left_alone(layer: LoraLinear) -> bool:
    """Return whether nothing was put on the parts of a LoRA layer, or in place of its forward.

    A hook on the layer as a whole is none of its parts, and runs whatever its forward is.
    """
    forward = vars(layer).get("forward")
    if forward is not None and getattr(forward, "__func__", None) is not _forward:
        return False
    parts = [module for module in layer.modules() if module is not layer]
    return not any(_is_intercepted(part) for part in parts)


def _is_intercepted(module: nn.Module) -> bool:
    """Return whether a call of a module is more than its class's forward."""
    return bool(own_hooks(module)) or has_own_forward(module)


def _is_plain(layer: Any, adapter: str, x: Tensor) -> bool:
    """Return whether the layer is the two products above, on a frozen float32 matrix on a CPU."""
    base, dropout = layer.base_layer, layer.lora_dropout[adapter]
    # The products below pass by the forwards of these, and so by whatever is put on them.
    passed_by = (base, dropout, layer.lora_A[adapter], layer.lora_B[adapter])
    return (
        lora_is_two_products(layer, adapter)
        and not any(_is_intercepted(module) for module in passed_by)
        and (isinstance(dropout, nn.Identity) or not dropout.training)
        and type(base) is nn.Linear
        and not any(weight.requires_grad for weight in base.parameters())
        and x.dim() > 1
        and is_float32_on_cpu(x, base.weight, layer.lora_A[adapter].weight)
    )


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        scaling: float,
    ) -> Tensor:
        inner = F.linear(x, a)  # (N, r)
        ctx.save_for_backward(x, weight, a, b, inner)
        ctx.scaling = scaling
        y = linear_to_the_bit(x, weight, bias)
        # Into the layer's own output: a sum of two results would read both and write a third.
        return y.addmm_(inner, b.T, alpha=scaling)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, a, b, inner = ctx.saved_tensors
        back = linear(grad_y, b.T).mul_(ctx.scaling)  # (N, r)
        grad_x = None
        # The first layer's input needs none, and its product is as large as all the others.
        if ctx.needs_input_grad[0]:
            grad_x = linear(grad_y, weight.T).addmm_(back, a)
        grad_a = product_of_columns(back, x)
        grad_b = product_of_columns(grad_y, inner).mul_(ctx.scaling)
        return grad_x, None, None, grad_a, grad_b, None
