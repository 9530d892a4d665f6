"""Products of float32 matrices on a CPU, by the faster one of torch's two libraries.

torch multiplies by MKL, which gives its AVX-512 kernels to Intel's processors alone. oneDNN, which
torch has beside it, gives them to every processor: on an AMD EPYC that is 2.3 times as fast. So
there each linear layer of a model, with or without an adapter, multiplies by oneDNN in the backward
and in forwards that nothing is learned from. Elsewhere nothing is changed.

The forward that is learned from stays MKL's, as TRL's is: another rounding there is amplified by
all layers behind it, and moves the gradient of SmolLM2-135M by 1.4e-5, all the others by 2e-6.

Shapes: N tokens, I and O features in and out.
"""

import math
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from ..torch_seam import has_faster_products, onednn_linear

# Terms that are added in a row. oneDNN adds all of them so, and the head's gradient has a term for
# each word of the vocabulary; MKL adds parts of about this length.
TERMS = 320


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return `x Wᵀ + bias` for float32 matrices on a CPU; without gradients."""
    # oneDNN has no sums of nothing.
    if not has_faster_products() or x.shape[-1] == 0:
        return F.linear(x, weight, bias)
    if not weight.T.is_contiguous():
        # For rows that do not lie side by side oneDNN has only its slowest kernel.
        return onednn_linear(x, weight.contiguous(), bias)
    parts = math.ceil(x.shape[-1] / TERMS)
    of_x, *others_of_x = x.chunk(parts, -1)
    of_weight, *others_of_weight = weight.chunk(parts, 1)
    y = onednn_linear(of_x, of_weight, bias)
    for of_x, of_weight in zip(others_of_x, others_of_weight, strict=True):
        y += onednn_linear(of_x, of_weight, None)
    return y


def multiply_faster(model: nn.Module) -> None:
    """Let the linear layers of a model multiply by the faster library, if it is not the usual."""
    if not has_faster_products():
        return
    for layer in model.modules():
        if type(layer) is nn.Linear and "forward" not in vars(layer):
            layer.forward = MethodType(_forward, layer)  # type: ignore[method-assign]


def has_own_forward(module: nn.Module) -> bool:
    """Return whether someone replaced the forward of a module, other than `multiply_faster`."""
    forward = vars(module).get("forward")
    return forward is not None and getattr(forward, "__func__", None) is not _forward


def is_float32_on_cpu(*tensors: Tensor) -> bool:
    """Return whether these are computed with as they are, in float32 on a CPU."""
    # Sharded and quantized weights are tensors of classes of their own.
    plain = all(type(tensor) in (Tensor, nn.Parameter) for tensor in tensors)
    known = all(x.device.type == "cpu" and x.dtype == torch.float32 for x in tensors)
    return plain and known and not torch.is_autocast_enabled("cpu")


def _forward(self: nn.Linear, x: Tensor) -> Tensor:
    if x.shape[-1] == 0 or not is_float32_on_cpu(x, self.weight):
        return nn.Linear.forward(self, x)
    # Outside of the function: nobody may write into a view that was made inside of it.
    rows = x.reshape(-1, x.shape[-1])
    y = _Linear.apply(rows, self.weight, self.bias, torch.is_grad_enabled())
    return y.view(*x.shape[:-1], y.shape[-1])


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, learns: bool) -> Tensor:
        needs_x, needs_weight, *_ = ctx.needs_input_grad
        # A frozen weight needs no input in the backward, and what is not kept takes no memory.
        ctx.save_for_backward(x if needs_weight else None, weight if needs_x else None)
        return F.linear(x, weight, bias) if learns else linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, _ = ctx.needs_input_grad
        grad_x = linear(grad_y, weight.T) if needs_x else None
        grad_weight = product_of_columns(grad_y, x) if needs_weight else None
        return grad_x, grad_weight, grad_y.sum(0) if needs_bias else None, None


def product_of_columns(left: Tensor, right: Tensor) -> Tensor:
    """Return `leftᵀ right`, (O, I), for (N, O) and (N, I)."""
    # oneDNN copies its first operand into rows, and takes the second one as it lies.
    if left.shape[1] > right.shape[1]:
        return linear(right.T, left.T).T
    return linear(left.T, right.T)
