"""The language-model head on a CPU, one product less than the usual way.

The log-probability of token y is log p_y = z_y - log Σ_v exp z_v with the logits z = W h /
temperature, so

    ∂ log p_y / ∂h = (W_y - Σ_v p_v W_v) / temperature.

That vector does not depend on what comes after; the backward only scales it. So the forward
computes it while a tile of logits is still in the cache, and the backward neither recomputes logits
nor keeps them. The entropy comes with it, as

    H = -Σ_v p_v log p_v = log Σ_v exp z_v - Σ_v p_v z_v = -log p_y - h · (Σ_v p_v W_v - W_y) /
    temperature.

TRL logs the entropy of every update, and few losses use it. Its gradient,

    ∂H / ∂h = -Σ_v p_v (log p_v + H) W_v / temperature,

is therefore computed in the backward, from logits computed again, and only where a loss asks.

Shapes: S scored tokens, D hidden size, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .cpu_products import linear

TILE = 128  # tokens whose logits are alive at a time


def selected_log_probs(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    temperature: float = 1.0,
    entropy: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Log-probability of each label, and the entropy of its distribution if asked for.

    Args:
        hidden (S, D): float32.
        weight (V, D): frozen, float32.
        labels (S,): token ids.
        temperature: what the logits are divided by.
        entropy: whether to compute it; it has a gradient, as TRL's has.

    Returns:
        Log-probabilities and entropies, (S,) each, the second None if not asked for.
    """
    gradient = torch.is_grad_enabled() and hidden.requires_grad
    return _SelectedLogProbs.apply(hidden, weight, labels, temperature, entropy, gradient)


class _SelectedLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        temperature: float,
        entropy: bool,
        gradient: bool,
    ) -> tuple[Tensor, Tensor | None]:
        hidden = hidden / temperature
        log_probs = hidden.new_empty(len(hidden))
        downhill = torch.empty_like(hidden) if entropy or gradient else None  # Σ_v p_v W_v - W_y
        for start in range(0, len(hidden), TILE):
            tile = slice(start, start + TILE)
            label = labels[tile, None]
            z = linear(hidden[tile], weight)
            chosen = z.gather(1, label)
            largest = z.amax(1, keepdim=True)
            weights = z.sub_(largest).exp_()
            # Pairwise; log_softmax adds in a row, and 50,000 terms lose 6 bits.
            total = weights.sum(1, keepdim=True)
            log_probs[tile] = (chosen - largest - total.log())[:, 0]
            if downhill is not None:
                # Before the product: p_y may be nearly 1, and the difference of two products of
                # about W_y would be rounding.
                weights.scatter_add_(1, label, -total)
                downhill[tile] = linear(weights, weight.T).div_(total)
        entropies = None
        if entropy and downhill is not None:
            entropies = -log_probs - (hidden * downhill).sum(1)
        if gradient and downhill is not None:
            ctx.save_for_backward(downhill.div_(-temperature), hidden, weight)
            ctx.temperature = temperature
            # A loss without the entropy gives no gradient for it, rather than zeros to work on.
            ctx.set_materialize_grads(False)
        return log_probs, entropies

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_log_probs: Tensor | None, grad_entropies: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        gradient, hidden, weight = ctx.saved_tensors
        grad = torch.zeros_like(gradient)
        if grad_log_probs is not None:
            grad = grad_log_probs[:, None] * gradient
        if grad_entropies is not None:
            scale = grad_entropies / ctx.temperature
            grad.addcmul_(_entropy_gradient(hidden, weight), scale[:, None])
        return grad, None, None, None, None, None


def _entropy_gradient(scaled: Tensor, weight: Tensor) -> Tensor:
    """Return temperature · ∂H / ∂h, (S, D), for states divided by the temperature, (S, D)."""
    gradient = torch.empty_like(scaled)
    for start in range(0, len(scaled), TILE):
        tile = slice(start, start + TILE)
        log_p = linear(scaled[tile], weight).log_softmax(1)
        p = log_p.exp()
        # Of the same numbers, so that the weights below add up to 0.
        entropies = -(p * log_p).sum(1, keepdim=True)
        gradient[tile] = linear(p.mul_(log_p.add_(entropies)).neg_(), weight.T)
    return gradient
