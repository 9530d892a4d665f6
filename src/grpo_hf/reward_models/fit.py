"""A small training loop: AdamW on a few weights, over examples of known lengths.

The same seed gives the same result.
"""

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
    """Settings of a training loop.

    Args:
        learning_rate: of AdamW. The default, 2e-5, is DeepSeekMath's for its reward model (arXiv
            2402.03300, section 4.2), which trained all its weights. An adapter usually takes more.
        epochs: how often each example is seen.
        batch_size: examples per step.
        tokens_at_once: tokens of a forward pass at most. A larger batch goes through in parts, and
            its step is the same.
        max_grad_norm: gradients are clipped to this norm.
        seed: of the order of examples, and of dropout.
        progress: called after each step with the step's number, the number of steps, and the
            step's loss.
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
    """Descend the mean of a loss.

    The optimizer, its state and the gradients are gone afterwards.

    Args:
        weights: the weights that learn.
        lengths: tokens of each example; examples of similar length share a batch.
        terms: how many terms the loss of each example has.
        loss_of: returns the sum of the loss over all terms of some examples, from their indices.
        settings: of the loop.

    Returns:
        The loss of each step: its mean over the terms of the step's batch.
    """
    order = random.Random(settings.seed)
    batches: list[list[int]] = []
    for _ in range(settings.epochs):
        batches += shuffled_batches(lengths, settings.batch_size, order)
    # Weight decay would pull the adapter towards a no-op.
    optimizer = torch.optim.AdamW(weights, lr=settings.learning_rate, weight_decay=0.0)
    losses = []
    # A caller may have switched gradients off, for instance inside a reward.
    with own_random_numbers(settings.seed), torch.enable_grad():
        for step, batch in enumerate(batches, 1):
            losses.append(_backward(batch, lengths, terms, loss_of, settings.tokens_at_once))
            clip_grad_norm_(weights, settings.max_grad_norm)
            optimizer.step()
            # This sets the gradients to None, which frees their memory.
            optimizer.zero_grad()
            if settings.progress is not None:
                settings.progress(step, len(batches), losses[-1])
    return losses


def _backward(
    batch: Sequence[int],
    lengths: Sequence[int],
    terms: Sequence[int],
    loss_of: Callable[[Sequence[int]], Tensor],
    tokens_at_once: int,
) -> float:
    """Add up the gradients of a batch, part by part, and return its mean loss."""
    terms_of_batch = sum(terms[index] for index in batch)
    batch_loss = 0.0
    for part in affordable(batch, lengths, tokens_at_once):
        # Divided by the terms of the whole batch, so that the parts add up to its mean.
        loss = loss_of(part) / terms_of_batch
        loss.backward()
        batch_loss += loss.item()
    return batch_loss
