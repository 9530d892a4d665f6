"""Products of float32 matrices on a CPU, by the faster one of torch's two libraries.

torch multiplies by MKL, which gives its AVX-512 kernels to Intel's processors alone. oneDNN, which
torch has beside it, gives them to every processor: on an AMD EPYC that is about twice as fast. So
there, where oneDNN's products are measured to be torch's, it multiplies in each linear layer and in
the head. Elsewhere nothing is changed.

A forward that is learned from has to round as TRL's does: another rounding there is amplified by
all layers behind it, and moves the gradient of SmolLM2-135M by 1.4e-5, all the others by 2e-6. It
does, to the bit, if oneDNN adds in parts as MKL does (`TERMS`). That is measured once for each
shape of weight, and MKL multiplies where it does not hold.

Shapes: N tokens, I and O features in and out.
"""

import logging
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..torch_seam import has_faster_products, onednn_linear

logger = logging.getLogger(__name__)

# Terms that MKL adds in a row; the sums of such parts are then added one by one. oneDNN adds all
# terms in a row, which rounds worse: the head's gradient has a term for each word.
TERMS = 192
# Fewer than four rows are no matrix to MKL, which then adds in another order. It deals the rows to
# its threads, and for fewer than so many of each one a share may be as small.
ROWS_OF_THREAD = 8
# Weights of more rows than that are measured on so many.
_MEASURED_ROWS = 1024
# Of a product's norm; the two libraries are about 5e-7 apart.
_APART = 1e-5


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return `x Wᵀ + bias` for float32 matrices on a CPU; without gradients."""
    # oneDNN has no sums of nothing.
    if x.shape[-1] == 0 or not _is_used():
        return F.linear(x, weight, bias)
    return _by_onednn(x, weight, bias)


def linear_to_the_bit(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return what `F.linear` does for float32 matrices on a CPU, to the bit; without gradients."""
    if len(x) < fewest_rows() or not _is_used() or not _has_same_bits(*weight.shape):
        return F.linear(x, weight, bias)
    return _in_parts(x, weight, bias)


def fewest_rows() -> int:
    """Return how many rows sums in parts need to be MKL's to the bit."""
    return ROWS_OF_THREAD * torch.get_num_threads()


def _by_onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if not weight.T.is_contiguous():
        return onednn_linear(x, weight.contiguous(), bias)
    return _in_parts(x, weight, bias)


def _in_parts(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiply part by part of the sums, as MKL does."""
    parts = list(zip(x.split(TERMS, -1), map(_laid_out, weight.split(TERMS, 1)), strict=True))
    y = onednn_linear(*parts[0], bias)
    for of_x, of_weight in parts[1:]:
        y += onednn_linear(of_x, of_weight, None)
    return y


def _laid_out(weight: Tensor) -> Tensor:
    # For rows that do not lie side by side oneDNN has only its slowest kernel.
    return weight if weight.T.is_contiguous() else weight.contiguous()


def _is_used() -> bool:
    return has_faster_products() and _is_right()


@cache
def _is_right() -> bool:
    """Measure once, on matrices as a forward and a backward have them, whether oneDNN is right."""
    generator = torch.Generator().manual_seed(0)
    rows, weight = (torch.randn(size, 3 * TERMS, generator=generator) for size in (64, 48))
    columns = rows.T.contiguous().T
    turned = weight.T.contiguous().T
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        for x, w in ((rows, weight), (rows, turned), (columns, turned)):
            expected = F.linear(x, w)
            if not (_by_onednn(x, w) - expected).norm() <= _APART * expected.norm():
                logger.warning(
                    "Products stay with torch's usual library: oneDNN's are others on this machine."
                )
                return False
    return True


@cache
def _has_same_bits(out: int, features: int) -> bool:
    """Measure once for a shape of weight whether sums in parts are MKL's to the bit."""
    if features == 0:
        return False
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(max(64, fewest_rows()), features, generator=generator)
    weight = torch.randn(min(out, _MEASURED_ROWS), features, generator=generator)
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        return torch.equal(_in_parts(x, weight), F.linear(x, weight))


def multiply_faster(model: nn.Module) -> None:
    """Let the linear layers of a model multiply by the faster library, if it is not the usual."""
    if not _is_used():
        return
    for layer in model.modules():
        if type(layer) is not nn.Linear or "forward" in vars(layer):
            continue
        # On a GPU the check at each call would only cost.
        if is_float32_on_cpu(layer.weight):
            # No bound method, which is pickled by its name, and the class has none of that name.
            layer.forward = partial(_forward, layer)  # type: ignore[method-assign]


def has_own_forward(module: nn.Module) -> bool:
    """Return whether someone replaced the forward of a module, other than `multiply_faster`."""
    forward = vars(module).get("forward")
    return forward is not None and getattr(forward, "func", None) is not _forward


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
        multiply = linear_to_the_bit if learns else linear
        return multiply(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, _ = ctx.needs_input_grad
        # Gradients are on where the backward itself is learned from (`create_graph`).
        multiply = F.linear if torch.is_grad_enabled() else linear
        grad_x = multiply(grad_y, weight.T) if needs_x else None
        grad_weight = product_of_columns(grad_y, x, multiply) if needs_weight else None
        return grad_x, grad_weight, grad_y.sum(0) if needs_bias else None, None


def product_of_columns(
    left: Tensor, right: Tensor, multiply: Callable[..., Tensor] = linear
) -> Tensor:
    """Return `leftᵀ right`, (O, I), for (N, O) and (N, I)."""
    # oneDNN copies its first operand into rows, and takes the second one as it lies.
    if left.shape[1] > right.shape[1]:
        return multiply(right.T, left.T).T
    return multiply(left.T, right.T)
