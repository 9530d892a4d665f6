"""What is said on a machine whose cores other programs use."""

import os

import torch

from ..run_files import say_first


def say_if_busy() -> None:
    """Say that other programs use the cores on which the threads of this one are to work.

    Threads wait for each other after every product, and all of them for one without a core.
    """
    # Windows has no such number.
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    cores = os.cpu_count() or 1
    if load >= cores and torch.get_num_threads() > 1 and not torch.cuda.is_available():
        say_first(
            f"note: other programs use this machine (a load of {load:.1f} on {cores} cores). "
            "Threads wait for each other there, and one is often faster: OMP_NUM_THREADS=1 before "
            "the command.",
            to_stderr=True,
        )
