"""Random numbers that are drawn aside, so that a run keeps its own."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def own_random_numbers(seed: int) -> Iterator[None]:
    """Draw from a seed, and leave torch's generators as they were."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield
