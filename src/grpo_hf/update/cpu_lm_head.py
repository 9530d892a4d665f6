"""The language-model head on a CPU, one product less than the usual way.

The log-probability of token y is log p_y = z_y - log Σ_v exp z_v with the logits z = W h /
temperature, so

    ∂ log p_y / ∂h = (W_y - Σ_v p_v W_v) / temperature.

That vector does not depend on what comes after; the backward only scales it. So the forward
computes it while a tile of logits is still in the cache, and the backward neither recomputes logits
nor keeps them. The entropy comes with it, as

    H = -Σ_v p_v log p_v = log Σ_v exp z_v - Σ_v p_v z_v = -log p_y - h · (Σ_v p_v W_v - W_y) /
    temperature.

Shapes: S scored tokens, D hidden size, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor

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
        entropy: whether to compute it; it has no gradient.

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
        # One tile of logits for all: it stays in the cache, where a matrix of S rows would not.
        logits = hidden.new_empty(min(TILE, len(hidden)), len(weight))
        log_probs = hidden.new_empty(len(hidden))
        downhill = torch.empty_like(hidden) if entropy or gradient else None  # Σ_v p_v W_v - W_y
        for start in range(0, len(hidden), TILE):
            tile = slice(start, start + TILE)
            label = labels[tile, None]
            z = torch.mm(hidden[tile], weight.T, out=logits[: len(label)])
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
                torch.mm(weights, weight, out=downhill[tile]).div_(total)
        entropies = None
        if entropy and downhill is not None:
            entropies = -log_probs - (hidden * downhill).sum(1)
        if gradient and downhill is not None:
            ctx.save_for_backward(downhill.div_(-temperature))
        if entropies is not None:
            ctx.mark_non_differentiable(entropies)
        return log_probs, entropies

    @staticmethod
    def backward(ctx: Any, grad_log_probs: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return grad_log_probs[:, None] * gradient, None, None, None, None, None
