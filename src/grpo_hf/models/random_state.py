"""Draw random numbers without changing those of the run."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def own_random_numbers(seed: int) -> Iterator[None]:
    """Draw from a seed inside a `with` block; torch's generators are afterwards what they were."""
    # All GPUs: without a list, fork_rng warns where there are several.
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield
