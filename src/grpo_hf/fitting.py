"""A small training loop: AdamW on a few weights, over examples of known lengths, the same for the same seed."""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

_POOL = 16  # batches; so many are sorted by length at a time, which leaves little padding and keeps the order random


@dataclass(frozen=True)
class FitSettings:
    """How weights learn.

    Args:
        learning_rate: of AdamW; 2e-5 is that of DeepSeekMath's reward model (arXiv 2402.03300, section 4.2), which
            trained all its weights. An adapter usually takes more.
        epochs: times that each example is seen.
        batch_size: examples per step.
        max_grad_norm: gradients are clipped to it.
        seed: of the order, and of dropout.
        progress: called after each step with its number, the number of steps, and its loss.
    """

    learning_rate: float = 2e-5
    epochs: int = 1
    batch_size: int = 8
    max_grad_norm: float = 1.0
    seed: int = 0
    progress: Callable[[int, int, float], None] | None = None


def fit(
    weights: Sequence[nn.Parameter],
    lengths: Sequence[int],
    loss_of: Callable[[Sequence[int]], Tensor],
    settings: FitSettings,
) -> list[float]:
    """Descend a loss; the optimizer, its state and the gradients are gone afterwards.

    Args:
        weights: what learns.
        lengths: tokens of each example; similar ones share a batch.
        loss_of: the loss of a batch, given the numbers of its examples.

    Returns:
        The loss of each step.
    """
    order, losses = random.Random(settings.seed), []
    batches = [batch for _ in range(settings.epochs) for batch in shuffled_batches(lengths, settings.batch_size, order)]
    optimizer = torch.optim.AdamW(weights, lr=settings.learning_rate, weight_decay=0.0)
    with own_random_numbers(settings.seed), torch.enable_grad():
        for step, batch in enumerate(batches, 1):
            loss = loss_of(batch)
            loss.backward()
            clip_grad_norm_(weights, settings.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            if settings.progress is not None:
                settings.progress(step, len(batches), losses[-1])
    return losses


def shuffled_batches(lengths: Sequence[int], size: int, order: random.Random) -> list[list[int]]:
    """Every example once, those of similar length together, batches in random order."""
    rows = order.sample(range(len(lengths)), len(lengths))
    pools = [sorted(pool, key=lengths.__getitem__) for pool in parts(rows, size * _POOL)]
    batches = [batch for pool in pools for batch in parts(pool, size)]
    order.shuffle(batches)
    return batches


def parts(rows: Sequence[int], size: int) -> list[list[int]]:
    """As many rows at a time, in their order."""
    return [list(rows[start : start + size]) for start in range(0, len(rows), size)]


@contextmanager
def own_random_numbers(seed: int) -> Iterator[None]:
    """Draw from a seed, and leave torch's generators as they were."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield
