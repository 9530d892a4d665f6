"""Draw random numbers without changing those of the run."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def own_random_numbers(seed: int) -> Iterator[None]:
    """Draw from a seed inside a `with` block; torch's generators are afterwards what they were."""
    # All GPUs: without a list, fork_rng warns where there are several.
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield


def remembered_random_numbers() -> Callable[[], None]:
    """Note the random state of this process: Python's, numpy's, torch's and that of every GPU.

    Returns:
        What puts it back.
    """
    of_python, of_numpy = random.getstate(), np.random.get_state()
    of_torch = torch.get_rng_state()
    # A process that has not used a GPU yet is not made to.
    of_gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []

    def put_back() -> None:
        random.setstate(of_python)
        np.random.set_state(of_numpy)
        torch.set_rng_state(of_torch)
        if of_gpus:
            torch.cuda.set_rng_state_all(of_gpus)

    return put_back
