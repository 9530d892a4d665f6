"""A small training loop: AdamW on a few weights, over examples of known lengths, the same for the same seed."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from ..data.batching import affordable, shuffled_batches
from ..models.random_state import own_random_numbers


@dataclass(frozen=True)
class FitSettings:
    """How weights learn.

    Args:
        learning_rate: of AdamW; 2e-5 is that of DeepSeekMath's reward model (arXiv 2402.03300, section 4.2), which
            trained all its weights. An adapter usually takes more.
        epochs: times that each example is seen.
        batch_size: examples per step.
        tokens_at_once: of a forward pass, at most; a larger batch goes through in parts, and its step is the same.
        max_grad_norm: gradients are clipped to it.
        seed: of the order, and of dropout.
        progress: called after each step with its number, the number of steps, and its loss.
    """

    learning_rate: float = 2e-5
    epochs: int = 1
    batch_size: int = 8
    tokens_at_once: int = 1024
    max_grad_norm: float = 1.0
    seed: int = 0
    progress: Callable[[int, int, float], None] | None = None


def fit(
    weights: Sequence[nn.Parameter],
    lengths: Sequence[int],
    terms: Sequence[int],
    loss_of: Callable[[Sequence[int]], Tensor],
    settings: FitSettings,
) -> list[float]:
    """Descend the mean of a loss; the optimizer, its state and the gradients are gone afterwards.

    Args:
        weights: what learns.
        lengths: tokens of each example; similar ones share a batch.
        terms: of the loss in each example.
        loss_of: the sum of the loss over all terms of some examples, given their numbers.

    Returns:
        The mean over the terms of each step.
    """
    order, losses = random.Random(settings.seed), []
    batches = [
        batch
        for _ in range(settings.epochs)
        for batch in shuffled_batches(lengths, settings.batch_size, order)
    ]
    optimizer = torch.optim.AdamW(weights, lr=settings.learning_rate, weight_decay=0.0)
    with own_random_numbers(settings.seed), torch.enable_grad():
        for step, batch in enumerate(batches, 1):
            losses.append(0.0)
            for part in affordable(batch, lengths, settings.tokens_at_once):
                loss = loss_of(part) / sum(terms[i] for i in batch)
                loss.backward()
                losses[-1] += loss.item()
            clip_grad_norm_(weights, settings.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            if settings.progress is not None:
                settings.progress(step, len(batches), losses[-1])
    return losses
